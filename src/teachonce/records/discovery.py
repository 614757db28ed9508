"""Which source the records of a folder are: TFRecord shards, else class folders."""

from __future__ import annotations

from pathlib import Path

from teachonce.errors import ConfigError
from teachonce.records.image_folder import FolderSource
from teachonce.records.listing import find_class_folders
from teachonce.records.source import RecordSource, parse_shard_name
from teachonce.records.tfrecord.source import TFRecordSource, find_shards
from teachonce.storage.files import open_storage
from teachonce.storage.names import check_component


def find_splits(data: Path) -> list[str]:
    """The splits that ``data`` holds, as shards or as folders of class folders."""
    listing = open_storage(data).list_folder()
    splits = {shard[0] for shard in map(parse_shard_name, listing.files) if shard}
    splits.update(name for name in listing.folders if name[0] != "." and find_class_folders(data / name))
    return sorted(splits)


def open_records(data: Path, split: str, *, with_boxes: bool = False) -> RecordSource:
    """The records of a split: its TFRecord shards, else its class folders; ``with_boxes`` as in ``RecordSource``.

    Raises what ``find_split`` does, and RecordError where what is there is incomplete.
    """
    paths = find_split(data, split)
    if paths:
        return TFRecordSource(data, split, paths, with_boxes=with_boxes)
    return FolderSource(data, split, with_boxes=with_boxes)


def find_split(data: Path, split: str) -> list[Path]:
    """The TFRecord shards of a split, [] where it has class folders; no record is read.

    Raises ConfigError where there is neither, and for a split that is not a name of a folder in ``data``; RecordError
    where shards are missing.
    """
    check_component(split, f"{data}: split", ConfigError)
    storage = open_storage(data)
    if not storage.is_folder():
        raise ConfigError(f"{data}: no such folder; expected TFRecord shards or SPLIT/CLASS folders of images")
    paths = find_shards(data, split)
    if paths or storage.is_folder(split):
        return paths
    others = find_splits(data)
    found = f"only {', '.join(others)}" if others else "no records"
    raise ConfigError(
        f"{data}: {found}, expected {split}-NNNNN-of-NNNNN shards or {split}/CLASS folders of images; choose "
        "another --split or folder"
    )
