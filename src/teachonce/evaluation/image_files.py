"""The images that ``predict`` is asked about: files and folders, local or at addresses, in the order they are given.

A folder stands for all images at any depth below it, sorted by folder and name. A name may be any bytes, in a folder as
well: no other command has to find an image by it. Names of a folder are kept in one block (``records.image_listing``),
so a million of them take little memory. Nothing here is read but names; nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from teachonce.errors import ConfigError, RecordError
from teachonce.records.image_listing import IMAGE_SUFFIXES, ImageListing, find_class_folders, is_image_name, list_images
from teachonce.storage.address import to_location
from teachonce.storage.files import has_parent, locate, open_storage
from teachonce.storage.storage import Storage


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image: its path as it is shown, and where it is read."""

    path: str
    storage: Storage
    name: str


class ImageFiles:
    """The images of ``paths``; raises ConfigError for one that is not there, and for a folder without images."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._parts: list[tuple[Storage, Path, ImageListing | None]] = []
        self._count = 0
        for path in map(to_location, paths):
            file_storage = _find_file(path)
            if file_storage is not None:
                self._parts.append((file_storage, path, None))
                self._count += 1
                continue
            listing = _list_below(path)
            self._parts.append((open_storage(path, RecordError), path, listing))
            self._count += len(listing)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ImageFile]:
        for storage, path, listing in self._parts:
            if listing is None:
                yield ImageFile(str(path), storage, path.name)
            else:
                for name in listing.relative_names():
                    yield ImageFile(str(path / name), storage, name)


def check_images(paths: Sequence[Path]) -> None:
    """Raise ConfigError for a path that is not there; no folder is listed."""
    for path in map(to_location, paths):
        if _find_file(path) is None:
            _require_folder(path, open_storage(path, RecordError))


def _find_file(path: Path) -> Storage | None:
    """Where a file is; None where the path is none of one."""
    open_storage(path, RecordError)  # an address that cannot be opened is named as it was given
    if not has_parent(path):
        return None
    storage, name = locate(path, RecordError)
    return storage if storage.has(name) else None


def _require_folder(path: Path, storage: Storage) -> None:
    if not storage.is_folder():
        raise ConfigError(f"{path}: no such file or folder; expected an image or a folder of images")


def _list_below(folder: Path) -> ImageListing:
    storage = open_storage(folder, RecordError)
    _require_folder(folder, storage)
    folders = find_class_folders(folder, any_names=True)
    if not folders and not any(map(is_image_name, storage.list_folder().files)):
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ConfigError(f"{folder}: has no images ({suffixes}), expected at least one")
    return list_images(folder, ["", *folders], skip_empty=True, any_names=True)
