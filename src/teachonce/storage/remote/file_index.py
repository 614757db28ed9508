"""files.json: the list of a folder's files, for those who cannot list it: a web server has no listings.

    {
     "format_version": 1,
     "files": {
      "train-00000-of-00008": [104857600, "0f343b0931126a20f133d67c2b018a3b", 1250],
      ...
     },
     "xxh3": "..."
    }

Of each file its size, the hash of its bytes (xxh3, 128 bits) and, where it is a shard of records, how many it has.
Names are relative to the folder, "/" between their parts. Sealed JSON (``sealed_json``), but not immutable: it is put
last, and put again when the folder gets more files. Over http(s) it is what a folder has; elsewhere nothing but
``copy`` reads it, and a folder without it is as good as one with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import xxhash

from teachonce.errors import TeachonceError
from teachonce.storage.names import check_component
from teachonce.storage.sealed_json import read_sealed, sealed_bytes
from teachonce.storage.storage import Storage
from teachonce.storage.strict_json import Count, convert_json, json_values

INDEX_NAME = "files.json"
FORMAT_VERSION = 1
LOCK_NAME = ".files.lock"
LOCK_SECONDS = 30.0
"""That one who renews the list waits for another who does."""
_ADVICE = "remove it, and the command that made the folder (or 'teachonce copy') writes it again"
_BLOCK_BYTES = 4 << 20


class ListedFile(NamedTuple):
    """What the list says of a file."""

    num_bytes: Count
    xxh3: str
    """Of all its bytes, 128 bits."""
    num_records: Count | None = None
    """Of a shard of records."""


@dataclass(frozen=True, kw_only=True)
class FileIndex:
    """The content of files.json."""

    format_version: int = FORMAT_VERSION
    files: dict[str, ListedFile]


def read_file_index(storage: Storage, folder: str = "") -> dict[str, ListedFile] | None:
    """What files.json of a folder lists; None where there is none. Raises where it is damaged, or of a newer format."""
    name = f"{folder}/{INDEX_NAME}" if folder else INDEX_NAME
    if not storage.has(name):
        return None
    value, _ = read_sealed(storage, name, storage.raises, _ADVICE)
    where = storage.describe(name)
    index = convert_json(value, FileIndex, where, storage.raises, advice=_ADVICE)
    if index.format_version != FORMAT_VERSION:
        raise storage.raises(f"{where}: format version {index.format_version}, this teachonce reads {FORMAT_VERSION}")
    for listed in index.files:
        for part in listed.split("/"):
            check_component(part, f"{where}: files", storage.raises)
    return index.files


def put_file_index(storage: Storage, files: Mapping[str, ListedFile]) -> None:
    """Put the list of these files in place of an older one; one that says the same stays."""
    index = FileIndex(files={name: files[name] for name in sorted(files)})
    content = sealed_bytes(json_values(index))
    if storage.has(INDEX_NAME) and storage.read(INDEX_NAME) == content:
        return
    with storage.put(INDEX_NAME) as file:
        file.write(content)


def renew_file_index(
    storage: Storage,
    files: Mapping[str, ListedFile],
    describe: Callable[[list[str]], Mapping[str, ListedFile]],
) -> None:
    """Add files that lie directly in the folder to its list, which others may renew at the same time.

    Of other files the entries stay that are still there in that size. ``describe`` is asked for the entries of all
    that are there and have none; what it leaves out is not listed.
    """
    with _hold(storage):
        present = storage.statuses()
        known = {**(read_file_index(storage) or {}), **files}
        kept = {
            name: entry
            for name, entry in known.items()
            if name in present and present[name].num_bytes == entry.num_bytes
        }
        others = sorted(present.keys() - kept.keys() - {INDEX_NAME})
        put_file_index(storage, {**kept, **describe(others)})


def hash_file(storage: Storage, name: str) -> ListedFile:
    """The entry of a file, which is read for it."""
    hasher, num_bytes = xxhash.xxh3_128(), 0
    with storage.stream(name) as file:
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
            num_bytes += len(block)
    return ListedFile(num_bytes, hasher.hexdigest())


def hash_bytes(content: bytes) -> ListedFile:
    """The entry of a file with this content."""
    return ListedFile(len(content), xxhash.xxh3_128_hexdigest(content))


@contextmanager
def _hold(storage: Storage) -> Iterator[None]:
    end = time.monotonic() + LOCK_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(storage.lock(LOCK_NAME, "listed"))
                break
            except TeachonceError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
        yield
