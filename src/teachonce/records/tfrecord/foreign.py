"""TFRecords that others wrote: other features, other names of shards, gzip.

TensorFlow Datasets (features.json beside the shards: ``image``, ``label`` from 0, class names in label.labels.txt), the
official models' ImageNet (TF-slim's features, labels from 1), and whatever ``--image-feature``, ``--label-feature`` and
``--label-offset`` say. A label of -1, as TFDS gives it to test splits, is none, and so is one that is not there, unless
its feature was named; whether a split has labels is asked of some of its records.

A shard that is compressed as a whole cannot be read by row: it is unpacked once, into the cache folder, which must have
the room. Examples are taken apart in Python here, not by the native library.
"""

from __future__ import annotations

import gzip
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.engine.prefetch import overlap, prefetch
from teachonce.engine.progress import progress
from teachonce.errors import ConfigError, RecordError, TeachonceError
from teachonce.options import option_arguments
from teachonce.records.class_table import BACKGROUND, ClassTable, positions, read_classes, read_labels
from teachonce.records.containers.labels import as_label
from teachonce.records.options import RecordOptions
from teachonce.records.source import NO_LABEL, Buffer, Record, offset_hint, parse_shard_name
from teachonce.records.tfrecord.source import (
    BOX_FEATURES,
    FEATURES,
    IMAGE_FEATURE,
    LABEL_FEATURE,
    TFRecordSource,
    check_boxes,
    check_logits,
    keys_of,
)
from teachonce.records.tfrecord.tf_example import Feature, decode_example
from teachonce.storage.cache_folder import cache_folder, filling_cache
from teachonce.storage.files import atomic_write, exists, locate, open_storage

NAME_FEATURES = ("image/filename", "file_name", "filename", "image/file_name", "id", "image/id")
TFDS_FEATURES = "features.json"
_SHARD_FILE = re.compile(
    r".+\.(tfrecords?|tfrec|tfr)(-\d+-of-\d+)?(\.gz)?|.+\.(tfrecords?|tfrec|tfr)[-.].*", re.IGNORECASE
)
_BESIDE_SHARDS = (".idx", ".json", ".index", ".md5", ".crc", ".crc32", ".crc32c", ".sha1", ".sha256", ".sha512")
"""Endings of files that say something of a shard: its index, what it holds, its checksum."""
_BLOCK_BYTES = 4 << 20
LABEL_RULE = "-1 is none"
"""What labels that were cached by another rule are told apart by."""
ASKED_RECORDS = 128
"""Of which it is seen whether records have labels: the least part of the data in which a gap is noticed."""


def is_tfrecord_name(name: str) -> bool:
    """Whether a file is taken for a shard by its name."""
    return parse_shard_name(name) is not None or is_foreign_name(name)


def is_foreign_name(name: str) -> bool:
    """Whether a shard is named otherwise than ours, SPLIT-NNNNN-of-NNNNN."""
    is_packed = name.endswith(".gz") and parse_shard_name(name.removesuffix(".gz")) is not None
    is_named = _SHARD_FILE.fullmatch(name) is not None and not name.lower().endswith(_BESIDE_SHARDS)
    return is_packed or is_named


def has_foreign_options(options: RecordOptions) -> bool:
    """Whether records are to be read otherwise than as TF-slim's."""
    return bool(options.image_feature or options.label_feature or options.label_offset or options.labels)


def open_foreign_shards(
    data: Path, split: str, names: Sequence[str], options: RecordOptions, *, with_boxes: bool = False
) -> ForeignSource:
    """Some files of a folder as a split; raises ConfigError for what cannot be meant, RecordError for a damaged one."""
    paths = [data / name for name in sorted(names)]
    zipped = [path for path in paths if path.name.endswith(".gz")]
    if zipped:
        folder = _unpack_all(zipped)
        if len(zipped) < len(paths):
            raise ConfigError(
                f"{data}: {len(zipped)} of {len(paths)} {split} shards are compressed; expected all or none"
            )
        paths = [folder / path.name.removesuffix(".gz") for path in paths]
    return ForeignSource(data, split, paths, options, with_boxes=with_boxes)


class ForeignSource(TFRecordSource):
    """Shards whose image and label are in features of other names; ``paths`` are in one folder."""

    def __init__(
        self, data: Path, split: str, paths: list[Path], options: RecordOptions, *, with_boxes: bool = False
    ) -> None:
        super().__init__(paths[0].parent, split, paths, with_boxes=with_boxes)
        is_tfds = open_storage(data).has(TFDS_FEATURES)
        self._image = options.image_feature or ("image" if is_tfds else IMAGE_FEATURE)
        self._label = options.label_feature or ("label" if is_tfds else LABEL_FEATURE)
        self._is_named = options.label_feature is not None
        self._offset = options.label_offset
        self.classes = _find_classes(data, self._label, options)
        self._num_classes = None if self.classes is None else len(self.classes.names)
        self._label_of = {} if self.classes is None else {name: at for at, name in enumerate(self.classes.names)}
        self._known = _find_known_names(data, self._label, options)
        names = "" if self.classes is None else "\n".join(self.classes.names)
        if self._known is not None and self._known != tuple(names.split("\n")):
            names += "\n\n" + "\n".join(self._known)
        rule = f"{self._label}\n{self._offset}\n{names}\n{LABEL_RULE}"
        self.label_reading = xxhash.xxh3_64_hexdigest(rule.encode())
        if self._image != IMAGE_FEATURE:
            self.shards = tuple(
                replace(shard, identity=xxhash.xxh3_128_hexdigest(f"{shard.identity}\n{self._image}".encode()))
                for shard in self.shards
            )

    # What other sources know when they are opened is read here, when it is asked for.
    @cached_property
    def labeled(self) -> Literal["all", "some", "none"]:  # type: ignore[override]
        """What is so of records all over the split: to ask all would be to read the data.

        Warns where none has the feature of the label.
        """
        asked = np.unique(np.linspace(0, self.num_records - 1, ASKED_RECORDS).astype(np.int64))
        storage = open_storage(self._files[0].path.parent, RecordError)
        labels = overlap(storage, self.locate_all(asked), lambda location: self.read_record(*location).label)
        is_labeled = [label != NO_LABEL for label in labels]
        if not any(is_labeled):
            self._warn_without_feature()
        return "all" if all(is_labeled) else "some" if any(is_labeled) else "none"

    def _warn_without_feature(self) -> None:
        found = decode_example(self._keep_open(0).read(0))
        others = sorted(found.keys() - {*FEATURES, *NAME_FEATURES, self._image})
        if self._label not in found and others:
            warnings.warn(
                f"{self._files[0].path}: no feature is known as the label, so its images have none; has "
                f"{', '.join(others)}: name one with --label-feature",
                stacklevel=3,
            )

    def _find(self, payloads: Sequence[Buffer]) -> NDArray[Any] | None:
        return None

    def _decode(self, payload: Buffer, where: str, with_logits: bool) -> Record:
        names = {*FEATURES, *NAME_FEATURES, self._image, self._label}
        names |= {"image/logit"} if with_logits else set()
        names |= set(BOX_FEATURES) if self.with_boxes else set()
        try:
            features = decode_example(payload, names)
        except RecordError as error:
            raise error.at(where) from error
        encoded = self._single(payload, features, self._image, where)
        if not isinstance(encoded, bytes):
            raise RecordError(f"{where}: {self._image} is a number, expected an encoded image; give --image-feature")
        label = NO_LABEL
        if self._is_named or len(features.get(self._label, ())):
            label = self._number(self._single(payload, features, self._label, where), where)
        given = next((features[name] for name in NAME_FEATURES if isinstance(features.get(name), list)), None)
        name = given[0].decode(errors="replace") if isinstance(given, list) and given else where.rpartition("/")[2]
        logits = check_logits(features.get("image/logit"), where, self._num_classes) if with_logits else None
        boxes = check_boxes([features.get(name) for name in BOX_FEATURES], where) if self.with_boxes else None
        # What is said of image/encoded is not said of another image.
        key, own_key = keys_of(features if self._image == IMAGE_FEATURE else {}, encoded, where)
        return Record(encoded, label, name, key, where, logits, boxes, own_key)

    def _single(self, payload: Buffer, features: dict[str, Feature], name: str, where: str) -> Any:
        values = features.get(name)
        if values is None or len(values) == 0:
            option = "--image-feature" if name == self._image else "--label-feature"
            found = ", ".join(sorted(decode_example(payload))) or "nothing"
            raise RecordError(f"{where}: no {name}, found {found}; name the feature with {option}")
        if len(values) > 1:
            raise RecordError(f"{where}: {name} holds {len(values)} values, expected one")
        return values[0]

    def _number(self, found: Any, where: str) -> int:
        if isinstance(found, bytes):
            if not found:
                return NO_LABEL
            name = found.decode(errors="replace")
            if name not in self._label_of:
                known = f"the {len(self._label_of)} classes" if self._label_of else "a list of classes"
                raise RecordError(f"{where}: class {name!r} is not in {known}; give the --labels of this data")
            return self._label_of[name]
        # Whatever the offset: it moves the labels that there are.
        number = as_label(found, f"{where}: {self._label}", RecordError)
        if number in (None, NO_LABEL):
            return NO_LABEL
        label = int(number) + self._offset
        num_classes = self._num_classes if self._known is None else len(self._known)
        if label < 0 or (num_classes is not None and label >= num_classes):
            expected = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
            raise RecordError(
                f"{where}: label {label}, expected {expected} (with --label-offset added); "
                f"{offset_hint(label, num_classes or 0)}the --labels, or the --label-offset, of this data"
            )
        if self._known is not None and self.classes is not None and self._known != self.classes.names:
            return positions(self._known, self.classes.names, [label], where)[label]
        return label


def _find_known_names(data: Path, label_feature: str, options: RecordOptions) -> tuple[str, ...] | None:
    """The names that TFDS has for its numbers; moved labels are another numbering."""
    path = data / f"{label_feature.replace('/', '-')}.labels.txt"
    return tuple(read_labels(path)) if not options.label_offset and exists(path) else None


def _find_classes(data: Path, label_feature: str, options: RecordOptions) -> ClassTable | None:
    own = read_classes(data)
    if own is not None and options.labels is not None:
        given = " ".join(option_arguments("labels", options.labels))
        raise ConfigError(f"{given}: {data} has its classes in classes.json; leave it out")
    if options.labels is not None:
        names = read_labels(options.labels)
        return ClassTable(names, names, has_background=names[0] == BACKGROUND)
    known = _find_known_names(data, label_feature, options) if own is None else None
    # TFDS numbers them from 0.
    return own if known is None else ClassTable(known, known, has_background=False)


def _unpack_all(paths: Sequence[Path]) -> Path:
    """Unpack compressed shards into a folder of the cache, unless they are there; returns the folder."""
    cache = cache_folder()
    if cache is None:
        raise ConfigError(f"{paths[0]}: is compressed and there is no cache folder to unpack it into; run gunzip")
    storage = open_storage(paths[0].parent, RecordError)
    statuses = [storage.status(path.name) for path in paths]
    described = "\n".join(
        f"{storage.describe(path.name)} {status}" for path, status in zip(paths, statuses, strict=True)
    )
    folder = cache / "unpacked" / xxhash.xxh3_128_hexdigest(described.encode(errors="surrogateescape"))
    there = open_storage(folder)

    def find_missing() -> list[Path]:
        return [path for path in paths if not there.has(path.name.removesuffix(".gz"))]

    if not find_missing():
        return folder
    with filling_cache(folder.name):
        if missing := find_missing():
            with progress(f"unpacking into {folder}", len(missing), unit="shards") as advance:
                for _ in prefetch(missing, lambda path: _unpack(path, folder), threads=2, ahead=2):
                    advance(1)
    return folder


def _unpack(path: Path, folder: Path) -> None:
    storage, name = locate(path, RecordError)
    try:
        with (
            storage.stream(name) as packed,
            gzip.GzipFile(fileobj=packed) as file,
            atomic_write(folder / name.removesuffix(".gz")) as target,
        ):
            while block := file.read(_BLOCK_BYTES):
                target.write(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RecordError(f"{path}: is not a gzip file, or was cut short: {error}; restore the shard") from error
    except TeachonceError as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(
            f"{path}: cannot be unpacked: {error}; make room, set XDG_CACHE_HOME, or run gunzip"
        ) from error
