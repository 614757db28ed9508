"""Hashes of files on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def hash_files(paths: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over (name, content) of files, in the order of their names."""
    digest = hashlib.sha256()
    for name, path in sorted(paths):
        digest.update(f"{len(name.encode())} {name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
