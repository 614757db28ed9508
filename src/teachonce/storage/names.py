"""Names that become part of a path, checked: what a file or a command line calls a name stays in its folder.

Splits, shards and files are named in JSON that others may have written or damaged: a plan whose split is ``../../x``
would have ``export`` write outside of --out. Everything that puts such a name into a path asks here first.

Deliberately not included: paths that users give as paths (--out, the SPEC of a model), which may lead anywhere, and
names that a folder's own listing gave, which are components already.
"""

from __future__ import annotations

import unicodedata

from teachonce.errors import TeachonceError

SHOWN_CHARACTERS = 80
"""Of a refused name in a message."""


def check_component(name: str, where: object, error_class: type[TeachonceError]) -> str:
    """``name``, which is one component of a path and can lead nowhere else: "train", "n01440764", "a b-00000-of-00001".

    Raises ``error_class``, ``where`` at its beginning, for "", ".", "..", a name with "/" or a backslash, which some
    systems take for one, and one with NUL or another control character, line breaks among them.
    """
    found = repr(name if len(name) <= SHOWN_CHARACTERS else name[: SHOWN_CHARACTERS - 3] + "...")
    if not name:
        reason = "it is empty"
    elif name in (".", ".."):
        reason = f"{found} refers to a folder itself or its parent"
    elif "/" in name or "\\" in name:
        reason = f"{found} leads to another folder"
    elif any(unicodedata.category(character) == "Cc" for character in name):
        reason = f"{found} has a control character"
    else:
        return name
    raise error_class(f"{where}: {reason}; expected the name of one file or folder, without / or \\")
