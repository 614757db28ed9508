"""How people lay out folders of images, and which of these a folder has.

    SPLIT/CLASS/NAME.jpg        images at any depth below CLASS (ImageFolder, Imagenette)
    CLASS/NAME.jpg              no splits
    SPLIT/images/NAME.JPEG      beside SPLIT/val_annotations.txt: tiny-imagenet's validation images
    SPLIT/NAME.jpg, NAME.jpg    images without labels, and tiny-imagenet's test/images

A class may be called "train" or "test", so folders count as splits where all of them have such names, or where they
hold folders of their own; upper and lower case are one. A folder below which no image is seen (annotations, what a Mac
leaves) is neither a split nor a class. Folders that are neither clearly classes nor splits are left to the user's
--split.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from teachonce.engine.prefetch import overlap
from teachonce.errors import ConfigError, RecordError
from teachonce.records.class_table import ClassTable, read_lines
from teachonce.records.image_folder import FolderSource, ImageFileSource
from teachonce.records.image_listing import (
    SPLIT_NAMES,
    find_train_classes,
    find_train_folder,
    index_images,
    is_image_name,
    list_images,
)
from teachonce.records.source import NO_LABEL, RecordSource
from teachonce.storage.files import open_storage
from teachonce.storage.storage import Listing, Storage

ANNOTATIONS = "val_annotations.txt"
IMAGES = "images"
LOOKED_AT = 16
"""Folders whose content tells whether folders are classes or splits."""
LOOKED_DEPTH = 4
"""Folders below a folder of the data that are looked into for an image."""


def find_image_splits(data: Path, listing: Listing) -> list[str] | None:
    """The folders of ``data`` that are splits; [] where its images are in none; None where no images are seen.

    ``listing`` is that of the data.
    """
    storage = open_storage(data)
    top = _visible(listing)
    if not top.folders:
        return [] if any(map(is_image_name, top.files)) else None
    known = [name for name in top.folders if _is_split_name(name)]
    names = list(dict.fromkeys((*known, *islice(top.folders, LOOKED_AT))))
    looked_at = dict(zip(names, map(_visible, overlap(storage, names, storage.list_folder)), strict=True))
    empty = {name for name, listing in looked_at.items() if not _holds_images(storage, name, listing)}
    looked_at = {name: listing for name, listing in looked_at.items() if name not in empty}
    if not looked_at:
        return None
    known = [name for name in known if name in looked_at]
    if any(looked_at[name].folders for name in known) or len(known) == len(looked_at):
        return [name for name in top.folders if name not in empty and _is_split(storage, name, looked_at.get(name))]
    if _are_classes(storage, looked_at):
        return []
    return [name for name in top.folders if name not in empty and _is_split(storage, name, looked_at.get(name))] or None


def open_image_split(
    data: Path,
    folder: str,
    split: str,
    *,
    labels: tuple[str, ...] | None = None,
    labels_from: Path | None = None,
    with_boxes: bool = False,
) -> RecordSource:
    """The images of a split that lies in ``folder`` of the data, "": in the data itself."""
    root = data / folder if folder else data
    listing = _visible(open_storage(root, RecordError).list_folder())
    if folder and listing.folders == [IMAGES] and ANNOTATIONS in listing.files:
        return _open_annotated(data, folder, split, labels, with_boxes)
    if folder and listing.folders == [IMAGES] and not _has_class(data, IMAGES):
        return _open_unlabeled(root / IMAGES, split, with_boxes)
    if not listing.folders and any(map(is_image_name, listing.files)):
        return _open_unlabeled(root, split, with_boxes)
    return FolderSource(data, split, folder=folder, labels=labels, labels_from=labels_from, with_boxes=with_boxes)


def _visible(listing: Listing) -> Listing:
    return Listing(listing.files, sorted(name for name in listing.folders if name[0] != "."))


def _is_split_name(name: str) -> bool:
    return name.lower() in SPLIT_NAMES


def _is_split(storage: Storage, name: str, listing: Listing | None) -> bool:
    """Whether a folder is one of images in folders; ``listing`` is that of a folder below which an image was seen."""
    is_seen = listing is not None
    listing = _visible(storage.list_folder(name)) if listing is None else listing
    if not listing.folders:
        return _is_split_name(name) and any(map(is_image_name, listing.files))
    return is_seen or _holds_images(storage, name, listing)


def _holds_images(storage: Storage, name: str, listing: Listing, depth: int = 0) -> bool:
    """Whether an image is seen below a folder; of each folder some are looked into, as deep as tiny-imagenet's are."""
    if any(map(is_image_name, listing.files)):
        return True
    below = [f"{name}/{folder}" for folder in listing.folders[:LOOKED_AT]] if depth < LOOKED_DEPTH else []
    return any(_holds_images(storage, folder, _visible(storage.list_folder(folder)), depth + 1) for folder in below)


def _are_classes(storage: Storage, listings: dict[str, Listing]) -> bool:
    """Whether folders hold a class's images each: some directly, or below folders that are no classes themselves."""
    if any(map(_is_split_name, (name for listing in listings.values() for name in listing.folders))):
        return False
    if any(map(is_image_name, _all_files(listings.values()))):
        return True
    shared = set.intersection(*(set(listing.folders) for listing in listings.values()))
    if len(listings) == 1 or len(shared) > 1:
        return False
    deeper = [f"{name}/{listing.folders[0]}" for name, listing in listings.items() if listing.folders]
    return any(map(is_image_name, _all_files(storage.list_folder(folder) for folder in deeper)))


def _all_files(listings: Iterable[Listing]) -> list[str]:
    return [name for listing in listings for name in listing.files]


def _has_class(data: Path, name: str) -> bool:
    train = find_train_folder(data)
    return train is not None and open_storage(data).is_folder(f"{train}/{name}")


def _open_unlabeled(root: Path, split: str, with_boxes: bool) -> RecordSource:
    listing = list_images(root, [""])
    labels = np.full(len(listing), NO_LABEL, np.int32)
    return ImageFileSource(listing, labels, None, split=split, with_boxes=with_boxes)


def _open_annotated(
    data: Path, folder: str, split: str, labels: tuple[str, ...] | None, with_boxes: bool
) -> RecordSource:
    """Images of which a file says the classes: "NAME<TAB>CLASS<TAB>box"."""
    path = data / folder / ANNOTATIONS
    class_of: dict[str, str] = {}
    for number, line in read_lines(path):
        fields = line.split("\t")
        if len(fields) < 2:
            raise ConfigError(f"{path} line {number}: {line!r}, expected NAME<TAB>CLASS<TAB>...")
        class_of[fields[0]] = fields[1].strip()
    listing = list_images(data / folder / IMAGES, [""])
    images = [listing.basename(index) for index in range(len(listing))]
    missing = next((name for name in images if name not in class_of), None)
    if missing is not None:
        raise RecordError(f"{path}: has no line for {missing}, which {data / folder / IMAGES} holds; complete the file")
    names: Sequence[str] = labels or ()
    if not names:
        names = find_train_classes(data) or sorted(set(class_of.values()))
    label_of = {name: label for label, name in enumerate(names)}
    unknown = next((name for name in images if class_of[name] not in label_of), None)
    if unknown is not None:
        raise RecordError(
            f"{path}: {unknown} has class {class_of[unknown]}, which is not among the {len(names)} of the data; give "
            "the --labels of this data"
        )
    # Below the split's folder, so that names are as they are told: images/val_0.JPEG.
    named = index_images(data / folder, [f"{IMAGES}/{name}" for name in images])
    table = ClassTable(tuple(names), tuple(names), has_background=False)
    numbers = np.array([label_of[class_of[name]] for name in images], np.int32)
    return ImageFileSource(named, numbers, table, split=split, with_boxes=with_boxes)
