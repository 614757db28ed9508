"""Hashes of stored files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from teachonce.storage.files import locate


def hash_files(paths: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over (name, content) of files, in the order of their names."""
    digest = hashlib.sha256()
    for name, path in sorted(paths):
        storage, file_name = locate(path)
        digest.update(f"{len(name.encode())} {name} {storage.status(file_name).num_bytes}\n".encode())
        with storage.stream(file_name) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
