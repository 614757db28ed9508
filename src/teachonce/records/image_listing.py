"""Image folders: which images a tree of class folders (or a flat folder) holds, in which order.

A listing of ImageNet has 1.28 million names; here it takes about 30 MB (names in one block of bytes), so that programs
over it keep their memory small and hand parts of it to their workers. Images may lie at any depth below their class
folder, as for torchvision's ImageFolder, whose order this is: by folder, then by name, in code points, the same on
every machine and in every locale.

Images are chosen by the ending of their name and judged by their content later: a text file named .JPEG is listed here
and refused when it is read.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.engine.prefetch import overlap
from teachonce.errors import ConfigError, RecordError
from teachonce.storage.files import open_storage
from teachonce.storage.storage import Storage
from teachonce.terminal import plural, visible

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm"})
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
"""What Windows leaves in folders of images; not worth a warning."""
TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("validation", "val", "valid")
SPLIT_NAMES = frozenset((*TRAIN_NAMES, *VALIDATION_NAMES, "test", "testing", "eval", "evaluation", "dev"))
"""Names of splits, in lower case: Train is one too."""
MAX_DEPTH = 32
"""Folders below a class folder: more is a link that leads back to a folder above it."""
_ANY_NAME = "surrogatepass"
"""How bytes are made of a name that is not UTF-8, and the same name of them, in whatever way it was decoded."""


@dataclass(frozen=True, slots=True)
class ImageListing:
    """Images below ``root``: image ``i`` is ``root / folders[folder_of[i]] / name``, in one block of names."""

    root: Path
    folders: tuple[str, ...]
    folder_of: NDArray[np.int32]
    names: bytes
    bounds: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.folder_of)

    def basename(self, index: int) -> str:
        """File name of an image, without its folder."""
        return self.names[self.bounds[index] : self.bounds[index + 1]].decode(errors=_ANY_NAME)

    def relative_name(self, index: int) -> str:
        """ "CLASS/NAME" of an image; "NAME" in a flat folder."""
        folder = self.folders[self.folder_of[index]]
        return f"{folder}/{self.basename(index)}" if folder else self.basename(index)

    def class_of(self, classes: Sequence[str]) -> NDArray[np.int32]:
        """Of each image [N] the number of its class, the first folder on its way; ``classes`` has all of these."""
        number_of = {name: number for number, name in enumerate(classes)}
        numbers = [number_of[folder.partition("/")[0]] for folder in self.folders]
        return np.array(numbers, np.int32)[self.folder_of]

    def path(self, index: int) -> Path:
        """Path of an image."""
        return self.root / self.relative_name(index)

    def relative_names(self) -> Iterator[str]:
        """The relative names of all images, in order."""
        return map(self.relative_name, range(len(self)))

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> ImageListing:
        """The listing of these images, in this order."""
        names = [self.names[self.bounds[index] : self.bounds[index + 1]] for index in indices]
        bounds = np.cumsum([0, *map(len, names)], dtype=np.int64)
        return ImageListing(self.root, self.folders, self.folder_of[indices], b"".join(names), bounds)

    def basename_hashes(self) -> NDArray[np.uint64]:
        """The xxh3 hash of each image's basename."""
        hashes = (xxhash.xxh3_64_intdigest(self.basename(index).encode()) for index in range(len(self)))
        return np.fromiter(hashes, np.uint64, len(self))

    def find_duplicate_basename(self) -> tuple[str, str] | None:
        """The relative names of two images with one basename, if there are any."""
        hashes = self.basename_hashes()
        unique, counts = np.unique(hashes, return_counts=True)
        if len(unique) == len(hashes):
            return None
        first, second = np.flatnonzero(hashes == unique[counts > 1][0])[:2]
        return self.relative_name(int(first)), self.relative_name(int(second))

    def digest(self) -> str:
        """Hash of the relative names in order; not of what the images hold."""
        hasher = xxhash.xxh3_128()
        for name in self.relative_names():
            hasher.update(name.encode() + b"\n")
        return hasher.hexdigest()


def find_class_folders(folder: Path, *, any_names: bool = False, warns: bool = False) -> list[str]:
    """Names of the folders in ``folder``, sorted; hidden ones do not count. Empty where there are none.

    ``any_names`` as in ``list_images``; ``warns``: of images beside them, which have no class and are left out.
    """
    listing = open_storage(folder, RecordError).list_folder()
    found = [name for name in listing.folders if name[0] != "."]
    beside = sorted(filter(is_image_name, listing.files)) if warns and found else []
    if beside:
        warnings.warn(
            f"{folder}: {plural(len(beside), 'image')} beside the class folders left out, such as {beside[0]}: the "
            "class of an image is the folder that it lies in; move them into theirs",
            stacklevel=2,
        )
    return sorted(found if any_names else (check_image_name(folder, name) for name in found))


def find_data_classes(images: Path, split: str) -> list[str]:
    """Classes of the data: the folders of its training images where there are any, else of the split.

    So a validation folder that lacks a class keeps the labels of the others.
    """
    return find_train_classes(images) or find_class_folders(images / split)


def find_train_folder(images: Path) -> str | None:
    """The folder of training images: train, training, in upper or lower case; None where there is none."""
    folders = open_storage(images).list_folder().folders
    return min((name for name in folders if name.lower() in TRAIN_NAMES), key=str.lower, default=None)


def find_train_classes(images: Path) -> list[str]:
    """The class folders of the training images, sorted; [] where there are none."""
    train = find_train_folder(images)
    return [] if train is None else find_class_folders(images / train)


def list_images(
    root: Path, folders: Sequence[str], *, skip_empty: bool = False, any_names: bool = False
) -> ImageListing:
    """The images of the class folders below ``root``, at any depth (of ``root`` alone for the folder ""), sorted.

    Raises RecordError for a class folder without an image, or leaves it out where ``skip_empty``. That, the folder ""
    aside, and files with other endings that are left out, are one warning each. ``any_names``: also those that are not
    UTF-8 or have a line break, which nothing can be called that is written down, and so are a RecordError else.
    """
    paths: list[str] = []
    folder_of: list[NDArray[np.int32]] = []
    names: list[bytes] = []
    sizes: list[int] = []
    others: list[Path] = []
    empty: list[str] = []
    storage = open_storage(root, RecordError)
    list_below = partial(list_tree, storage, any_names=any_names)
    for folder, listed in zip(folders, overlap(storage, folders, list_below), strict=True):
        for path, files in listed:
            found = _choose_images(root / path, files, others)
            if not any_names:
                found = [check_image_name(root / path, name) for name in found]
            if found:
                encoded = [name.encode(errors=_ANY_NAME) for name in found]
                folder_of.append(np.full(len(found), len(paths), np.int32))
                paths.append(path)
                names.append(b"".join(encoded))
                sizes += map(len, encoded)
        if paths and (not folder or paths[-1].partition("/")[0] == folder):
            continue
        empty.append(folder)
        if not skip_empty or len(empty) == len(folders):
            raise RecordError(
                f"{root / folder}: has no images ({', '.join(sorted(IMAGE_SUFFIXES))}), expected at least one; "
                "fill the folder or remove it"
            )
    if empty := list(filter(None, empty)):
        have, are = ("has", "is") if len(empty) == 1 else ("have", "are")
        found_empty = f"{plural(len(empty), 'folder')} {have} no images and {are} left out"
        warnings.warn(f"{root}: {found_empty}: {', '.join(empty)}", stacklevel=2)
    if others:
        endings = count_endings(path.name for path in others)
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        warnings.warn(
            f"{plural(len(others), 'file')} ignored, most with the extension {endings}, such as {others[0]}: images "
            f"have one of {known}",
            stacklevel=2,
        )
    bounds = np.cumsum([0, *sizes], dtype=np.int64)
    joined = np.concatenate(folder_of) if folder_of else np.empty(0, np.int32)
    return ImageListing(root, tuple(paths), joined, b"".join(names), bounds)


def count_endings(names: Iterable[str]) -> str:
    """The three endings that most of these names have, as a phrase: .tif (12), .gif (1)."""
    counts = Counter(os.path.splitext(name)[1].lower() or "none" for name in names).most_common(3)  # noqa: PTH122
    return ", ".join(f"{suffix} ({count:,})" for suffix, count in counts)


def index_images(root: Path, names: Sequence[str]) -> ImageListing:
    """The listing of these images in this order; "a/b/NAME" is relative to ``root``."""
    number_of: dict[str, int] = {}
    folder_of = [number_of.setdefault(name.rpartition("/")[0], len(number_of)) for name in names]
    encoded = [name.rpartition("/")[2].encode() for name in names]
    bounds = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return ImageListing(root, tuple(number_of), np.array(folder_of, np.int32), b"".join(encoded), bounds)


def known_as(split: str) -> str:
    """The one name by which results call a split, whatever its folder or an option calls it: validation for val.

    Names of files stay as they were asked for.
    """
    return next((alike[0] for alike in (TRAIN_NAMES, VALIDATION_NAMES) if split.lower() in alike), split)


def check_split_names(names: Sequence[str], where: str) -> None:
    """Raise ConfigError where two names mean one split, of which the other's records would be left out."""
    seen: dict[str, str] = {}
    for name in names:
        same = known_as(name).lower()
        if same in seen:
            raise ConfigError(f"{where}: the splits {seen[same]} and {name} are one by their names; give it one name")
        seen[same] = name


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image by the ending of its name; hidden ones are not."""
    return name[0] != "." and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122, a Path costs 2 us


def list_tree(storage: Storage, top: str, *, any_names: bool = False) -> list[tuple[str, list[str]]]:
    """(folder, its files) of a class folder and all below it, in order; of "" the one folder alone.

    ``any_names`` as in ``list_images``, of the folders.
    """
    found: list[tuple[str, list[str]]] = []
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        listing, where = storage.list_folder(folder), storage.describe(folder)
        found.append((folder, listing.files))
        names = [name for name in listing.folders if name[0] != "."] if top else []
        below = [f"{folder}/{name if any_names else check_image_name(where, name)}" for name in names]
        if below and folder.count("/") >= MAX_DEPTH:
            raise RecordError(
                f"{storage.describe(folder)}: is {MAX_DEPTH} folders below its class; a link leads back to a folder "
                "above it: remove it"
            )
        waiting += below
    return sorted(found)


def _choose_images(folder: Path, listed: Sequence[str], others: list[Path]) -> list[str]:
    found = []
    # A broken link is a file: that its image is missing must come out when it is read.
    for name in listed:
        if name[0] == "." or name.lower() in _SYSTEM_FILES:
            continue
        if is_image_name(name):
            found.append(name)
        else:
            others.append(folder / name)
    return sorted(found)


def check_image_name(folder: Path | str, name: str, separator: str = "/") -> str:
    """The name of an image or a folder of images; raises RecordError for one that nothing written down can have."""
    try:
        name.encode()
    except UnicodeEncodeError:
        where = visible(f"{folder}{separator}{name}")
        raise RecordError(f"{where}: {_describe_undecoded(os.fsencode(name))}") from None
    if "\n" in name:
        where = visible(f"{folder}{separator}{name}")
        raise RecordError(f"{where}: the name has a line break, expected one line; rename it")
    return name


def _describe_undecoded(name: bytes) -> str:
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return f"the name {name!r} is not UTF-8; rename it"
    return (
        f"the name {text!r} is UTF-8, but this process decodes names as {sys.getfilesystemencoding()}: set "
        "PYTHONUTF8=1, or LC_ALL=C.UTF-8"
    )
