"""Folders of class folders of images, ``SPLIT/CLASS/NAME``, as a source of records: no conversion needed.

The images are cut into virtual shards of ``FOLDER_SHARD_RECORDS``, in the order of ``listing``. Labels are those of the
sorted class names, from 0. Images are read, not decoded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import xxhash

from teachonce.engine.buffers import BufferPool
from teachonce.engine.prefetch import overlap
from teachonce.errors import LogitsError, RecordError
from teachonce.records.class_table import ClassTable
from teachonce.records.listing import find_class_folders, find_data_classes, list_images
from teachonce.records.source import Location, Record, RecordSource, ShardInfo, record_key, shard_name
from teachonce.storage.files import open_storage
from teachonce.storage.storage import FileStatus, Storage

FOLDER_SHARD_RECORDS = 1024


class FolderSource(RecordSource):
    """A folder of class folders of images, ``SPLIT/CLASS/NAME``; file names are "CLASS/NAME", as names alone collide.

    Opening it asks for the size of every file, which identifies the data in a plan.
    """

    format = "folder"

    def __init__(self, data: Path, split: str, *, with_boxes: bool = False) -> None:
        self.split = split
        self.with_boxes = with_boxes
        names = find_data_classes(data, split)
        folders = find_class_folders(data / split)
        if not folders:
            raise RecordError(f"{data / split}: no class folders, expected {split}/CLASS/NAME.jpg")
        unknown = sorted(set(folders) - set(names))
        if unknown:
            raise RecordError(
                f"{data / split / unknown[0]}: a class that {data / 'train'} does not have ({len(names)} classes); "
                "rename or remove the folder"
            )
        self.classes = ClassTable(tuple(names), tuple(names), has_background=False)
        self._listing = list_images(data / split, folders)
        self._storage = open_storage(data / split, RecordError)
        labels = {name: label for label, name in enumerate(names)}
        self._labels = [labels[folder] for folder in folders]
        count = -(-len(self._listing) // FOLDER_SHARD_RECORDS)
        starts = range(0, len(self._listing), FOLDER_SHARD_RECORDS)
        found = _all_statuses(self._storage, folders)
        self.shards = tuple(
            self._describe_shard(shard_name(split, index, count), start, found) for index, start in enumerate(starts)
        )

    def _describe_shard(self, name: str, start: int, found: Mapping[str, FileStatus]) -> ShardInfo:
        rows = range(start, min(start + FOLDER_SHARD_RECORDS, len(self._listing)))
        num_bytes = 0
        identity = xxhash.xxh3_128(os.fsencode(self._storage.describe()))
        for index in rows:
            image = self._listing.relative_name(index)
            try:
                status = found.get(image) or self._storage.status(image)
            except RecordError as error:
                raise _unreadable(error) from error
            num_bytes += status.num_bytes
            identity.update(f"{image}\n{status.num_bytes} {status.modified_ns}\n".encode())
        return ShardInfo(name, None, len(rows), num_bytes, identity.hexdigest())

    def read_batch(
        self, locations: Sequence[Location], *, with_logits: bool = False, buffers: BufferPool | None = None
    ) -> list[Record]:
        """The records at several locations; LogitsError where logits are requested, which a folder cannot hold."""
        return [self._read(shard, row, with_logits) for shard, row in locations]

    def _read(self, shard: int, row: int, with_logits: bool) -> Record:
        assert 0 <= row < self.shards[shard].num_records, f"row {row} of {self.shards[shard]}"
        index = shard * FOLDER_SHARD_RECORDS + row
        name = self._listing.relative_name(index)
        where = self._storage.describe(name)
        if with_logits:
            raise LogitsError(f"{where}: an image file has no logits; give --store")
        try:
            encoded = self._storage.read(name)
        except RecordError as error:
            raise _unreadable(error) from error
        return Record(encoded, self._labels[self._listing.folder_of[index]], name, record_key(encoded), where)

    def iter_shard(self, shard: int, *, with_logits: bool = False) -> Iterator[Record]:
        """The records of a shard in order; raises as ``read_batch``."""
        for row in range(self.shards[shard].num_records):
            yield self._read(shard, row, with_logits)


def _all_statuses(storage: Storage, folders: Sequence[str]) -> dict[str, FileStatus]:
    """Of every file in some folders, where that is a request a folder instead of one a file; {} where it is local."""
    if storage.requests_at_once == 1:
        return {}
    listed = zip(folders, overlap(storage, folders, storage.statuses), strict=True)
    return {f"{folder}/{name}": status for folder, found in listed for name, status in found.items()}


def _unreadable(error: RecordError) -> RecordError:
    return RecordError(f"{error}; restore the image and start again")
