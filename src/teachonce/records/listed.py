"""The list of the files of a folder of records (files.json), which whoever makes shards puts behind them.

Writers hash what they write, so nothing is read back; but what a killed command had written is, by the one that
completes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from teachonce.engine.prefetch import prefetch
from teachonce.engine.progress import progress
from teachonce.records.class_table import CLASSES_NAME
from teachonce.records.source import parse_shard_name
from teachonce.records.tfrecord.framing import load_index
from teachonce.storage.files import open_storage
from teachonce.storage.remote.file_index import ListedFile, hash_file, renew_file_index

INDEX_SUFFIX = ".idx"


def list_written(folder: Path, split: str, written: Mapping[str, ListedFile], *, hashes_others: bool = True) -> None:
    """Renew the list of a folder: ``written`` are the entries of files that were hashed as they were written.

    ``hashes_others``: what is there and was never listed is read for its entry. Not by the workers of a job array,
    which end together and would all read what the others list a moment later.
    """
    storage = open_storage(folder)

    def describe(names: list[str]) -> dict[str, ListedFile]:
        ours = [name for name in names if belongs_to(name, split)]
        if not hashes_others:
            ours = [name for name in ours if parse_shard_name(name.removesuffix(INDEX_SUFFIX)) is None]
        shards = [name for name in ours if parse_shard_name(name)]
        if not shards:
            return {name: hash_file(storage, name) for name in ours}
        found: dict[str, ListedFile] = {}
        with progress("records: hashing what was there", len(shards), unit="shards") as advance:
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


def belongs_to(name: str, split: str) -> bool:
    """Whether a file of a folder of records is one of a split, or of all: its shards, their indices, the JSON files."""
    shard = parse_shard_name(name.removesuffix(INDEX_SUFFIX))
    if shard is not None:
        return shard[0] == split
    return name in (CLASSES_NAME, f"records.{split}.json", f"merge.{split}.json")
