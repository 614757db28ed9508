"""Image files as a source of records, no conversion needed: folders of class folders, or images without labels.

The images are cut into virtual shards of ``FOLDER_SHARD_RECORDS``, in the order of their listing. Labels are those of
the sorted class names, from 0, or of a list of names (``--labels``). Images are read, not decoded. Which folder of the
data holds a split is decided in ``folder_layout``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.engine.buffers import BufferPool
from teachonce.engine.prefetch import overlap
from teachonce.errors import ConfigError, LogitsError, RecordError
from teachonce.records.class_table import ClassTable
from teachonce.records.image_listing import (
    TRAIN_NAMES,
    ImageListing,
    find_class_folders,
    find_data_classes,
    find_train_folder,
    list_images,
)
from teachonce.records.source import NO_LABEL, Location, Record, RecordSource, ShardInfo, record_key, shard_name
from teachonce.storage.files import open_storage
from teachonce.storage.storage import FileStatus, Storage

FOLDER_SHARD_RECORDS = 1024
IMAGE_FILE_FORMATS = ("folder", "table")
"""What the format of such a source is called: each image is a file."""


class ImageFileSource(RecordSource):
    """Images of a listing with their ``labels`` [N]; a file name is the image's path below the listing's root.

    Names alone collide. Opening it asks for the size of every file, which identifies the data in a plan; of a local one
    that has none ``unreadable`` says so, for who opens it to decide.
    """

    def __init__(
        self,
        listing: ImageListing,
        labels: NDArray[np.int32],
        classes: ClassTable | None,
        *,
        split: str,
        format: str = "folder",
        with_boxes: bool = False,
    ) -> None:
        self.split, self.format, self.classes = split, format, classes
        self.with_boxes = with_boxes
        is_labeled = labels != NO_LABEL
        self.labeled = "all" if is_labeled.all() else "some" if is_labeled.any() else "none"
        self._labels = labels
        self._listing = listing
        self._storage = open_storage(listing.root, RecordError)
        count = -(-len(self._listing) // FOLDER_SHARD_RECORDS)
        starts = range(0, len(self._listing), FOLDER_SHARD_RECORDS)
        found = _all_statuses(self._storage, listing.folders)
        self.shards = tuple(
            self._describe_shard(shard_name(split, index, count), start, found) for index, start in enumerate(starts)
        )

    def _describe_shard(self, name: str, start: int, found: Mapping[str, FileStatus]) -> ShardInfo:
        rows = range(start, min(start + FOLDER_SHARD_RECORDS, len(self._listing)))
        num_bytes = 0
        identity = xxhash.xxh3_128(os.fsencode(self._storage.describe()))
        is_known = True
        for index in rows:
            image = self._listing.relative_name(index)
            try:
                status = found.get(image) or self._storage.status(image)
            except RecordError as error:
                if not self._storage.is_local:
                    raise RecordError(_explain(error)) from error
                self.unreadable = self.unreadable or _explain(error)
                is_known = False
                continue
            num_bytes += status.num_bytes
            # A hub and a web server say no times; local files have no version.
            identity.update(f"{image}\n{status.num_bytes} {status.modified_ns}{status.version}\n".encode())
        return ShardInfo(name, None, len(rows), num_bytes, identity.hexdigest() if is_known else "")

    def known_labels(self, shard: int) -> NDArray[np.int32]:
        """Those of the listing."""
        first = shard * FOLDER_SHARD_RECORDS
        return self._labels[first : first + self.shards[shard].num_records]

    def read_batch(
        self, locations: Sequence[Location], *, with_logits: bool = False, buffers: BufferPool | None = None
    ) -> list[Record]:
        """The records at several locations; LogitsError where logits are requested, which a folder cannot hold."""
        return list(overlap(self._storage, locations, lambda place: self._read(*place, with_logits)))

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
            if self.keeps_unreadable and self._storage.is_local:
                return Record.without_image(int(self._labels[index]), name, where, error)
            raise RecordError(_explain(error)) from error
        return Record(encoded, int(self._labels[index]), name, record_key(encoded), where)

    def iter_shard(self, shard: int, *, with_logits: bool = False) -> Iterator[Record]:
        """The records of a shard in order; raises as ``read_batch``."""
        rows = range(self.shards[shard].num_records)
        yield from overlap(self._storage, rows, lambda row: self._read(shard, row, with_logits))


class FolderSource(ImageFileSource):
    """A folder of class folders of images, ``SPLIT/CLASS/NAME``, or ``CLASS/NAME`` for ``folder`` "".

    ``folder`` is where the split lies in ``data``; ``labels`` are the class names by label, of a file ``labels_from``,
    where they are not those of the folders.
    """

    def __init__(
        self,
        data: Path,
        split: str,
        *,
        folder: str | None = None,
        labels: tuple[str, ...] | None = None,
        labels_from: Path | None = None,
        with_boxes: bool = False,
    ) -> None:
        folder = split if folder is None else folder
        root = data / folder if folder else data
        folders = find_class_folders(root, warns=True)
        if not folders:
            raise RecordError(f"{root}: no class folders, expected {split}/CLASS/NAME.jpg")
        if not folder:
            # Class folders of a split are meant as such; beside those of data without splits there may be others.
            listing = list_images(root, folders, skip_empty=True)
            folders = sorted({path.partition("/")[0] for path in listing.folders})
        if labels is not None:
            names, origin, advice = list(labels), str(labels_from), "give the --labels of this data"
        else:
            is_train = folder.lower() in ("", TRAIN_NAMES[0])
            names = folders if is_train else find_data_classes(data, folder)
            origin, advice = str(data / (find_train_folder(data) or "train")), "rename or remove the folder"
        unknown = sorted(set(folders) - set(names))
        if unknown:
            has = "does not have" if labels is None else "does not list"
            message = f"{root / unknown[0]}: a class that {origin} {has} ({len(names)} classes); {advice}"
            # Of a list that was given the command is wrong, as for other containers; else the data.
            raise RecordError(message) if labels is None else ConfigError(message)
        if folder:
            listing = list_images(root, folders)
        label_of = {name: label for label, name in enumerate(names)}
        numbers = np.array([label_of[name] for name in folders], np.int32)
        super().__init__(
            listing,
            numbers[listing.class_of(folders)],
            ClassTable(tuple(names), tuple(names), has_background=False),
            split=split,
            with_boxes=with_boxes,
        )


def _all_statuses(storage: Storage, folders: Sequence[str]) -> dict[str, FileStatus]:
    """Of every file in some folders, where that is a request a folder instead of one a file; {} where it is local."""
    if storage.requests_at_once == 1:
        return {}
    listed = zip(folders, overlap(storage, folders, storage.statuses), strict=True)
    return {
        f"{folder}/{name}" if folder else name: status for folder, found in listed for name, status in found.items()
    }


def _explain(error: RecordError) -> str:
    return f"{error}; restore or remove it and start again, `teachonce inspect` lists all such images"
