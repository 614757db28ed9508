"""The list of the files of a folder of records (files.json), which is put after the shards that a command writes.

Writers hash what they write, so nothing is read back; but what a killed command had written is, by the one that
completes it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from teachonce.engine.prefetch import prefetch
from teachonce.engine.progress import progress
from teachonce.records.class_table import CLASSES_NAME
from teachonce.records.source import parse_shard_name
from teachonce.records.tfrecord.framing import load_index
from teachonce.storage.files import open_storage
from teachonce.storage.remote.file_index import ListedFile, hash_file, read_file_index, renew_file_index
from teachonce.storage.storage import Storage

INDEX_SUFFIX = ".idx"
PEERS_SECONDS = 10.0
WRITERS = ("records", "merge", "reindex")
"""Commands that write shards: each puts its plan beside them, as COMMAND.SPLIT.json."""


def list_written(folder: Path, split: str, written: Mapping[str, ListedFile], *, is_alone: bool = True) -> None:
    """Renew the list of a folder: ``written`` are the entries of files that were hashed as they were written.

    What is there and was never listed, as by a killed command, is read for its entry. Workers of a job array (not
    ``is_alone``) end together: each lists what it wrote and waits ``PEERS_SECONDS`` at most for the others to do so,
    before it reads what is still not listed.
    """
    storage = open_storage(folder)
    is_waiting = not is_alone

    def describe(names: list[str]) -> dict[str, ListedFile]:
        ours = [name for name in names if belongs_to(name, split)]
        if is_waiting:
            ours = [name for name in ours if parse_shard_name(name.removesuffix(INDEX_SUFFIX)) is None]
        shards = [name for name in ours if parse_shard_name(name)]
        if not shards:
            return {name: hash_file(storage, name) for name in ours}
        found: dict[str, ListedFile] = {}
        with progress("records: hashing existing shards", len(shards), unit="shards") as advance:
            threads = storage.requests_at_once
            for name, entry in zip(
                ours, prefetch(ours, lambda name: hash_file(storage, name), threads=threads, ahead=threads), strict=True
            ):
                found[name] = entry
                if name in shards:
                    found[name] = entry._replace(num_records=len(load_index(folder / name)) - 1)
                    advance(1)
        return found

    renew_file_index(storage, written, describe)
    if is_waiting:
        end = time.monotonic() + PEERS_SECONDS
        while time.monotonic() < end and not _is_listed(storage, split):
            time.sleep(0.5)
        is_waiting = False
        if not _is_listed(storage, split):
            renew_file_index(storage, written, describe)


def _is_listed(storage: Storage, split: str) -> bool:
    """Whether the list has every file of a split that is there."""
    listed = read_file_index(storage) or {}
    return all(name in listed for name in storage.statuses() if belongs_to(name, split))


def belongs_to(name: str, split: str) -> bool:
    """Whether a file of a folder of records is one of a split, or of all: its shards, their indices, the JSON files."""
    shard = parse_shard_name(name.removesuffix(INDEX_SUFFIX))
    if shard is not None:
        return shard[0] == split
    return name == CLASSES_NAME or name in (f"{command}.{split}.json" for command in WRITERS)
