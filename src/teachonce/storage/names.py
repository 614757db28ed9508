"""Names that come out of files and become parts of paths: one path component, or a refusal."""

from __future__ import annotations

from teachonce.errors import TeachonceError

_MAX_SHOWN = 80


def check_component(name: str, where: object, error: type[TeachonceError]) -> str:
    """The name, if it can only be a file directly in a folder; else raises ``error``, which names ``where``."""
    if not name or name in (".", "..") or any(char in "/\\" or ord(char) < 32 or ord(char) == 127 for char in name):
        shown = ascii(name[:_MAX_SHOWN])
        raise error(f"{where}: {shown} cannot be part of a file's name, expected a name without slashes; damaged?")
    return name
