"""The text files that come with ILSVRC-2012, and the same for any other dataset: labels, texts, boxes.

Labels are 1-based in TFRecords (0 is background), because line N of the labels file is label N. What is read here:

- labels file: one class name (synset) a line, ``imagenet_lsvrc_2015_synsets.txt`` of the walkthrough;
- image labels: one class name a line for a flat validation folder, line N for the N-th image in sorted order,
  ``imagenet_2012_validation_synset_labels.txt`` (not ILSVRC's own numeric ground truth, which counts otherwise);
- metadata: ``synset<TAB>text``; without it, timm's table of WordNet lemmas where the classes are synsets;
- boxes: a CSV ``name,xmin,ymin,xmax,ymax`` relative to the image, or ILSVRC's folder of XML files.

timm's table is read from its files, because importing timm would import torch.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol
from xml.etree import ElementTree

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.errors import ConfigError, RecordError
from teachonce.extras import require
from teachonce.options import parse_number
from teachonce.records.class_table import read_labels, read_lines
from teachonce.records.image_listing import ImageListing
from teachonce.storage.files import open_storage
from teachonce.storage.storage import Storage

_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")
_CSV_HEADER = "name,xmin,ymin,xmax,ymax"


def read_image_labels(path: Path, num_images: int) -> list[str]:
    """The class name of each image of a flat folder; ConfigError where the count of lines is another."""
    names = [line.strip() for _, line in read_lines(path)]
    if len(names) != num_images:
        raise ConfigError(f"{path}: {len(names)} lines for {num_images} images: expected one line an image")
    if "" in names:
        raise ConfigError(f"{path} line {names.index('') + 1}: empty, expected a class name")
    return names


def read_metadata(path: Path) -> dict[str, str]:
    """Human text by class name, from ``synset<TAB>text`` lines."""
    texts: dict[str, str] = {}
    for number, line in read_lines(path):
        name, tab, text = line.strip().partition("\t")
        if not tab or not name or not text.strip():
            raise ConfigError(f"{path} line {number}: {line[:40]!r}, expected 'synset<TAB>text'")
        if texts.setdefault(name, text.strip()) != text.strip():
            raise ConfigError(f"{path} line {number}: {name} has a different text than before; remove one of the two")
    return texts


def class_texts(names: Sequence[str], metadata: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Human text of each class: from ``metadata``, else from timm's table for synsets, else the name itself.

    Raises ConfigError where ``metadata`` is given and lacks a class.
    """
    if metadata is not None:
        missing = [name for name in names if name not in metadata]
        if missing:
            raise ConfigError(
                f"the metadata lacks {len(missing)} of {len(names)} classes, such as {missing[0]}: add a line "
                f"'{missing[0]}<TAB>text', or leave --metadata out"
            )
        return tuple(metadata[name] for name in names)
    if not all(re.fullmatch(r"n\d{8}", name) for name in names):
        return tuple(names)
    table = _read_synset_texts()
    return tuple(table.get(name, name) for name in names)


def imagenet_synsets() -> tuple[str, ...]:
    """The 1000 synsets of ILSVRC-2012 in sorted order, which is their label order; from timm's tables."""
    require("timm", purpose="the list of ImageNet's synsets")
    path = _timm_table("imagenet_synsets.txt")
    if path is None:
        raise ConfigError("timm's table of ImageNet synsets is not available; give a labels file")
    return read_labels(path)


def _read_synset_texts() -> dict[str, str]:
    path = _timm_table("imagenet_synset_to_lemma.txt")
    if path is None:
        warnings.warn(
            "timm, which has the readable names of synsets, is not installed: image/class/text will be the "
            "synset; give --metadata FILE, or pip install 'teachonce[torch]'",
            stacklevel=2,
        )
        return {}
    return read_metadata(path)


def _timm_table(name: str) -> Path | None:
    # Found without importing timm, which would import torch.
    spec = importlib.util.find_spec("timm")
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(folders[0], "data", "_info", name) if folders else None
    return path if path is not None and path.is_file() else None


class BoxReader(Protocol):
    """Bounding boxes by image."""

    def find_boxes(self, relative_name: str) -> NDArray[np.float32]:
        """Boxes [N, 4] of an image ("CLASS/NAME") as xmin, ymin, xmax, ymax in 0..1; N = 0 where it has none."""

    def has_any(self, listing: ImageListing) -> bool:
        """Whether any of the listed images has boxes; False says that boxes and images do not belong together."""

    def digest(self) -> str:
        """Hash of what was given, to notice another file on a re-run."""


def open_boxes(path: Path) -> BoxReader:
    """The boxes of a CSV file or of a folder of ILSVRC XML files."""
    return XmlBoxes(path) if open_storage(path).is_folder() else CsvBoxes(path)


class CsvBoxes:
    """Boxes of a CSV file, by basename or by "CLASS/NAME"; about 24 bytes a box in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        hashes, numbers = array("Q"), array("f")
        hasher = xxhash.xxh3_128()
        for number, line in read_lines(path):
            hasher.update(line.encode() + b"\n")
            if number == 1 and line.replace(" ", "") == _CSV_HEADER:
                continue
            name, *texts = line.strip().rsplit(",", 4)
            try:
                xmin, ymin, xmax, ymax = map(parse_number, map(str.strip, texts))
            except ValueError:
                raise ConfigError(f"{path} line {number}: {line[:60]!r}, expected '{_CSV_HEADER}'") from None
            if not (0 <= xmin <= xmax <= 1 and 0 <= ymin <= ymax <= 1):
                raise ConfigError(
                    f"{path} line {number} ({name}): box {', '.join(texts)}, expected xmin <= xmax and ymin <= ymax "
                    "in 0..1, relative to the image's size"
                )
            hashes.append(_hash_name(name))
            numbers.extend((xmin, ymin, xmax, ymax))
        unsorted = np.array(hashes, np.uint64)
        # Stable, so that the boxes of one image keep the order of the file.
        order = np.argsort(unsorted, kind="stable")
        self._hashes = unsorted[order]
        self._boxes = np.array(numbers, np.float32).reshape(-1, 4)[order]
        self._digest = hasher.hexdigest()

    def find_boxes(self, relative_name: str) -> NDArray[np.float32]:
        """Boxes [N, 4] of an image; lines that name it with its class count before those with its basename."""
        boxes = self._find(relative_name)
        return boxes if len(boxes) else self._find(relative_name.rpartition("/")[2])

    def has_any(self, listing: ImageListing) -> bool:
        """Whether any of the listed images has a box; RecordError where a name fits two of them."""
        names = np.fromiter(map(_hash_name, listing.relative_names()), np.uint64, len(listing))
        basenames = listing.basename_hashes()
        by_name = np.isin(names, self._hashes)
        by_basename = np.flatnonzero(~by_name & np.isin(basenames, self._hashes))
        duplicates = listing.select(by_basename).find_duplicate_basename()
        if duplicates is not None:
            name = duplicates[0].rpartition("/")[2]
            raise RecordError(f"{self.path}: {name} fits {duplicates[0]} and {duplicates[1]}; use CLASS/NAME there")
        return bool(by_name.any() or len(by_basename))

    def digest(self) -> str:
        """Hash of the file's lines."""
        return self._digest

    def _find(self, name: str) -> NDArray[np.float32]:
        key = np.uint64(_hash_name(name))
        first, last = (int(np.searchsorted(self._hashes, key, side)) for side in _SIDES)
        return self._boxes[first:last]


class XmlBoxes:
    """Boxes of ILSVRC's XML files, ``FOLDER/CLASS/STEM.xml`` or ``FOLDER/STEM.xml``, read on demand.

    As the walkthrough's own script does: clipped to the image, corners put in order, empty boxes left out. The size is
    the one that the XML states, because the pixels of its corners refer to it.
    """

    def __init__(self, folder: Path) -> None:
        self._storage = open_storage(folder, RecordError)

    def find_boxes(self, relative_name: str) -> NDArray[np.float32]:
        """Boxes [N, 4] of an image; RecordError where its XML file cannot be understood."""
        name = self._find_file(relative_name)
        return np.empty((0, 4), np.float32) if name is None else _read_xml_boxes(self._storage, name)

    def has_any(self, listing: ImageListing) -> bool:
        """Whether any of the listed images has an XML file."""
        return any(self._find_file(name) is not None for name in listing.relative_names())

    def digest(self) -> str:
        """Hash of the names of the XML files and of what they hold."""
        hasher = xxhash.xxh3_128()
        names = (name for name in self._storage.walk() if name.endswith(".xml"))
        for name in sorted(names, key=lambda name: name.split("/")):
            content = self._storage.read(name)
            hasher.update(name.encode(errors="surrogateescape") + b"\n%d\n" % len(content) + content)
        return hasher.hexdigest()

    def _find_file(self, relative_name: str) -> str | None:
        path = PurePosixPath(relative_name).with_suffix(".xml")
        return next((name for name in (str(path), path.name) if self._storage.has(name)), None)


def _read_xml_boxes(storage: Storage, name: str) -> NDArray[np.float32]:
    content = storage.read(name)
    try:
        root = ElementTree.fromstring(content)
        width, height = (_xml_number(root, f"size/{side}") for side in ("width", "height"))
        if width <= 0 or height <= 0:
            raise ValueError(f"size {width:g} x {height:g}")
        boxes = []
        for box in root.iterfind("object/bndbox"):
            xs = sorted(min(max(_xml_number(box, name) / width, 0.0), 1.0) for name in ("xmin", "xmax"))
            ys = sorted(min(max(_xml_number(box, name) / height, 0.0), 1.0) for name in ("ymin", "ymax"))
            if xs[0] < xs[1] and ys[0] < ys[1]:
                boxes.append((xs[0], ys[0], xs[1], ys[1]))
    except (ElementTree.ParseError, ValueError) as error:
        raise RecordError(
            f"{storage.describe(name)}: boxes cannot be read: {error}; expected ILSVRC's size/width, size/height "
            "and object/bndbox"
        ) from error
    return np.array(boxes, np.float32).reshape(-1, 4)


def _xml_number(element: ElementTree.Element, name: str) -> float:
    text = element.findtext(name)
    if text is None:
        raise ValueError(f"no {name}")
    return parse_number(text.strip())


def _hash_name(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())
