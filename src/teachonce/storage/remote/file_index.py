"""files.json: the list of a folder's files, for those who cannot list it: a web server has no listings.

    {
     "format_version": 1,
     "files": {
      "train-00000-of-00008": [104857600, "0f343b0931126a20f133d67c2b018a3b", 1250],
      "train-00000-of-00008.idx": [18750, "a1b1e1a63d2ee31b5e5cf2c8de45ebb0", null]
     },
     "xxh3": "..."
    }

Of each file its size, the hash of its bytes (xxh3, 128 bits) and, where it is a shard of records, how many it has.
Names are relative to the folder, "/" between their parts. Sealed JSON (``sealed_json``), but not immutable: it is put
last, and put again when the folder gets more files. Over http(s) it is what a folder has; elsewhere nothing but
``copy`` reads it, and a folder without it is as good as one with it.
"""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import NamedTuple

import msgspec
import xxhash

from teachonce.errors import TeachonceError
from teachonce.storage.names import check_component
from teachonce.storage.sealed_json import SEAL, ZEROS, read_sealed, seal
from teachonce.storage.storage import Storage
from teachonce.storage.strict_json import Count

INDEX_NAME = "files.json"
FORMAT_VERSION = 1
LOCK_NAME = ".files.lock"
LOCK_SECONDS = 60.0
"""That one who renews the list waits for another who does."""
_ADVICE = "remove it; the command that wrote the folder (or 'teachonce copy') writes it again"
_BLOCK_BYTES = 4 << 20
_PLAIN_NAME = re.compile(r"(?!\.{1,2}(/|$))[\w.+= -]+(/(?!\.{1,2}(/|$))[\w.+= -]+)*", re.ASCII)
"""What needs no further check; most names are so, and there may be a million."""
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class ListedFile(NamedTuple):
    """What the list says of a file."""

    num_bytes: Count
    xxh3: str
    """Of all its bytes, 128 bits."""
    num_records: Count | None = None
    """Of a shard of records."""


def read_file_index(storage: Storage, folder: str = "") -> dict[str, ListedFile] | None:
    """What files.json of a folder lists; None where there is none. Raises where it is damaged, or of a newer format."""
    name = f"{folder}/{INDEX_NAME}" if folder else INDEX_NAME
    if not storage.has(name):
        return None
    value, _ = read_sealed(storage, name, storage.raises, _ADVICE)
    where = storage.describe(name)
    if value.keys() != {"format_version", "files"} or value["format_version"] != FORMAT_VERSION:
        raise storage.raises(
            f"{where}: format version {value.get('format_version')} with {', '.join(value)}; this teachonce reads "
            f"{FORMAT_VERSION}; {_ADVICE}"
        )
    try:
        # Not by ``convert_json``, whose search for unknown keys takes minutes where there are a million files.
        files = msgspec.convert(value["files"], dict[str, ListedFile])
    except msgspec.ValidationError as error:
        raise storage.raises(f"{where}: files: {error}; {_ADVICE}") from error
    for listed in files:
        check_listed_name(listed, f"{where}: files", storage.raises)
    return files


def check_listed_name(name: str, where: object, error_class: type[TeachonceError]) -> None:
    """Raise ``error_class``, ``where`` at its beginning, for a name that a list of files cannot have."""
    if _PLAIN_NAME.fullmatch(name):
        return
    try:
        name.encode()
    except UnicodeEncodeError:
        raise error_class(f"{where}: {name!a}: the name is not UTF-8; rename it") from None
    for part in name.split("/"):
        check_component(part, f"{where}: {name!r}", error_class)


def put_file_index(storage: Storage, files: Mapping[str, ListedFile]) -> None:
    """Put the list of these files in place of an older one; one that says the same stays."""
    # A line a file; of the files of a folder of images the indented form of JSON would be three times as long to make.
    lines = ",\n".join(f"  {_encode(name)}: {_encode(files[name])}" for name in sorted(files))
    text = f'{{\n "format_version": {FORMAT_VERSION},\n "files": {{\n{lines}\n }},\n "{SEAL}": "{ZEROS}"\n}}\n'
    content = seal(text.encode())
    if storage.has(INDEX_NAME) and storage.read(INDEX_NAME) == content:
        return
    with storage.put(INDEX_NAME) as file:
        file.write(content)


def renew_file_index(
    storage: Storage,
    files: Mapping[str, ListedFile],
    describe: Callable[[list[str]], Mapping[str, ListedFile]],
) -> None:
    """Add files directly in the folder to its list, which others may renew at the same time.

    Of other files the entries stay that are still there in that size, and those below folders, at which nobody looks.
    ``describe`` gets the names of all that are there and have no entry; what it leaves out is not listed.
    """
    with ExitStack() as stack:
        if not _hold(storage, stack):
            return
        present = storage.statuses()
        known = {**(read_file_index(storage) or {}), **files}
        kept = {
            name: entry
            for name, entry in known.items()
            if "/" in name or (name in present and present[name].num_bytes == entry.num_bytes)
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


def _hold(storage: Storage, stack: ExitStack) -> bool:
    """Enter the lock; False, with a warning, where another process holds it for too long (the files are complete)."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            stack.enter_context(storage.lock(LOCK_NAME, "listed"))
            return True
        except TeachonceError as error:
            if time.monotonic() > end:
                warnings.warn(
                    f"{error} ({INDEX_NAME} was not updated, which only web servers need; run the same command "
                    "again to update it)",
                    stacklevel=3,
                )
                return False
            time.sleep(0.1)
