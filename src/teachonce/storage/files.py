"""Opening a storage by its location, and what is done with one file there: written whole, read as JSON."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from teachonce.errors import ConfigError, TeachonceError
from teachonce.extras import missing_extras
from teachonce.storage.address import Address, to_location
from teachonce.storage.local import LocalStorage
from teachonce.storage.storage import Storage
from teachonce.storage.strict_json import parse_json


def open_storage(location: Path | str, raises: type[TeachonceError] = TeachonceError) -> Storage:
    """The storage at a location: a folder, local or at an address, which need not exist.

    ``raises`` is the class of its errors. Raises ConfigError for an address that cannot be opened here.
    """
    path = to_location(location)
    return _open_remote(path, raises) if isinstance(path, Address) else LocalStorage(path, raises)


def _open_remote(address: Address, raises: type[TeachonceError]) -> Storage:
    with missing_extras(str(address)):
        if address.scheme == "hf":
            from teachonce.storage.remote.hub_storage import HubStorage

            return HubStorage(address, raises)
        from teachonce.storage.remote.object_storage import ObjectStorage
        from teachonce.storage.remote.web_storage import WebStorage
    return (WebStorage if address.scheme in ("http", "https") else ObjectStorage)(address, raises)


def locate(path: Path, raises: type[TeachonceError] = TeachonceError) -> tuple[Storage, str]:
    """The storage of a single file, and its name there."""
    return open_storage(path.parent, raises), path.name


def exists(path: Path) -> bool:
    """Whether there is a file or a folder of this name."""
    if has_parent(path) and open_storage(path.parent).has(path.name):
        return True
    return open_storage(path).is_folder()


def check_free(path: Path, option: str = "--out", *, overwrite: bool = False) -> None:
    """Raise ConfigError where a file has this name, unless it may be overwritten, or a folder."""
    if open_storage(path, ConfigError).is_folder():
        raise ConfigError(f"{path}: is a folder; give a file with {option}")
    if not overwrite and has_parent(path) and open_storage(path.parent, ConfigError).has(path.name):
        raise ConfigError(f"{path}: exists; remove it, choose another {option}, or give --overwrite")


def check_can_be_made(path: Path) -> None:
    """Raise ConfigError where no local file of this name could be written: before the work whose result it is."""
    if isinstance(path, Address):
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ConfigError(f"{path}: {folder} is a file and not a folder; choose another place")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{path}: {folder} is not for this user to write to; choose another place")


def has_parent(path: Path) -> bool:
    """Whether there is a folder above: there is none of a bucket, or of a data set of the hub."""
    if not isinstance(path, Address):
        return bool(path.name)
    return len(path.parts) > (4 if path.scheme == "hf" else 2)


@contextmanager
def atomic_write(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """``Storage.put`` for a single file; without ``overwrite``: ``put_if_absent``."""
    storage, name = locate(path)
    with storage.put(name) if overwrite else storage.put_if_absent(name) as file:
        yield file


@contextmanager
def create_file(path: Path, option: str) -> Iterator[BinaryIO]:
    """A result's file under a name that was free; raises ConfigError after the block where another took it meanwhile.

    ``put_if_absent`` keeps the other's file without a word, as writers of the same content need it: here the results
    of a whole command would be gone, so what lies there then is compared with what was written.
    """
    if exists(path):
        raise ConfigError(f"{option} {path}: exists; remove it or choose another file")
    storage, name = locate(path)
    with storage.put_if_absent(name) as file:
        hashed = _HashedFile(file)
        yield cast(BinaryIO, hashed)
    found = hashlib.sha256()
    with storage.stream(name) as file:
        while block := file.read(1 << 20):
            found.update(block)
    if found.digest() != hashed.digest.digest():
        raise ConfigError(
            f"{option} {path}: another command made this file meanwhile, and it was kept: the results of this one are "
            "not written; run it again with another file"
        )


class _HashedFile(io.BufferedIOBase):
    """Writes to ``file``, which its storage finishes, and hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)


def write_json(path: Path, value: Any, *, overwrite: bool = True) -> None:
    """Write ``value`` as indented JSON, atomically, with a newline at the end; ``overwrite`` as in ``atomic_write``."""
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises TeachonceError with the path and the position when it is missing or does not parse."""
    storage, name = locate(path)
    return _parse(storage.read(name), path)


def find_json(path: Path) -> Any | None:
    """As ``read_json``; None where there is no such file."""
    storage, name = locate(path)
    content = storage.find(name)
    return None if content is None else _parse(content, path)


def _parse(content: bytes, path: Path) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise TeachonceError(f"{path}: is not JSON: {error}") from error


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
