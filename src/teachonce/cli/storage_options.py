"""``--storage-options KEY=VALUE ...``: settings of object stores, which every command takes, wherever they stand.

They are set for the process and those that it starts, and are no part of a command's configuration: what is written
down of a command must not hold a secret.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

from teachonce.errors import ConfigError
from teachonce.storage.remote.settings import add_options

OPTION = "--storage-options"
_PAIR = re.compile(r"[A-Za-z][A-Za-z0-9_]*=.*", re.DOTALL)


def take_storage_options(words: Sequence[str]) -> list[str]:
    """The words without the option and its KEY=VALUE words, which are set; raises ConfigError where there are none."""
    left: list[str] = []
    pairs: list[str] = []
    rest = deque(words)
    while rest:
        word = rest.popleft()
        name, equals, value = word.partition("=")
        if name != OPTION:
            left.append(word)
            continue
        found = [value] if equals else []
        while not equals and rest and _PAIR.fullmatch(rest[0]):
            found.append(rest.popleft())
        if not found or _PAIR.fullmatch(found[0]) is None:
            raise ConfigError(f"{word}: expected KEY=VALUE words, such as {OPTION} region=eu-central-1")
        pairs += found
    if pairs:
        add_options(pairs)
    return left
