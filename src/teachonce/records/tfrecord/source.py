"""TFRecord shards of ``tf.train.Example`` as a source of records, read in order or by row, checksums checked both ways.

The schema is TF-slim's ImageNet builder's: ``image/encoded``, ``image/class/label`` (0 is background),
``image/filename``, and if requested ``image/logit`` and the bounding boxes.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.engine.buffers import BufferPool
from teachonce.engine.chunked import chunked
from teachonce.engine.prefetch import overlap
from teachonce.errors import LogitsError, RecordError
from teachonce.native import Parts, addresses
from teachonce.on_demand import OnDemand
from teachonce.records.class_table import read_classes
from teachonce.records.source import (
    SCANNED_RECORDS,
    Buffer,
    Location,
    Locations,
    Record,
    RecordBatch,
    RecordSource,
    ShardInfo,
    parse_shard_name,
    record_key,
    rewritten_keys,
    shard_name,
)
from teachonce.records.tfrecord.batch_frames import read_frames
from teachonce.records.tfrecord.framing import (
    TFRecordFile,
    describe_record,
    describe_records,
    index_path,
    load_index,
    read_blocks,
)
from teachonce.records.tfrecord.native_examples import find_features
from teachonce.records.tfrecord.tf_example import Feature, decode_example
from teachonce.storage.files import open_storage
from teachonce.storage.storage import FileStatus, Storage

MAX_OPEN_SHARDS = 128
"""Shards that a source keeps open in a process; ImageNet has 1024, which is the usual limit of open files."""


ENCODED_XXH3 = "image/encoded_xxh3"
"""Feature of a record whose image was rewritten without loss: the hash of the bytes that it has now (int64)."""
ORIGINAL_KEY = "image/original_key"
"""Beside it the key of the image that it was rewritten from, which is the record's."""

IMAGE_FEATURE, LABEL_FEATURE = "image/encoded", "image/class/label"
FEATURES = (IMAGE_FEATURE, LABEL_FEATURE, "image/filename", ENCODED_XXH3, ORIGINAL_KEY)
"""What is read of every record."""


BOX_FEATURES = tuple(f"image/object/bbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax"))


def find_shards(data: Path, split: str, names: Sequence[str] | None = None) -> list[Path]:
    """The TFRecord shards of a split in order, [] where there are none; ``names`` are the files of ``data``, if known.

    Raises RecordError where some are missing or there are shards of two different counts.
    """
    found: dict[int, dict[int, Path]] = {}
    for name in open_storage(data).list_folder().files if names is None else names:
        shard = parse_shard_name(name)
        if shard and shard[0] == split:
            found.setdefault(shard[2], {})[shard[1]] = data / name
    if not found:
        return []
    if len(found) > 1:
        counts = " and ".join(f"-of-{count:05d}" for count in sorted(found))
        raise RecordError(f"{data}: {split} shards of several sets ({counts}), expected one; remove the leftovers")
    ((count, paths),) = found.items()
    missing = [index for index in range(count) if index not in paths]
    if missing or len(paths) != count:
        raise RecordError(
            f"{data}: {len(paths)} of {count} {split} shards"
            + (f", {shard_name(split, missing[0], count)} is missing" if missing else "")
            + "; finish the conversion or copy again"
        )
    return [paths[index] for index in range(count)]


def _describe_shard(storage: Storage, path: Path, num_records: int, status: FileStatus) -> ShardInfo:
    identity = f"{storage.describe(path.name)}\n{status.num_bytes} {status.modified_ns}{status.version}"
    return ShardInfo(path.name, path, num_records, status.num_bytes, xxhash.xxh3_128_hexdigest(os.fsencode(identity)))


def decode_tfrecord(
    payload: Buffer, where: str, *, with_logits: bool = False, with_boxes: bool = False, num_classes: int | None = None
) -> Record:
    """The record that a serialized Example holds.

    Raises RecordError without image or label or with a label outside ``num_classes``, LogitsError where logits are
    requested and missing, of another width, NaN or +inf (-inf is a class without mass), RecordError where boxes are
    requested and are none.
    """
    names = (*FEATURES, *(("image/logit",) if with_logits else ()), *(BOX_FEATURES if with_boxes else ()))
    try:
        features = decode_example(payload, names)
    except RecordError as error:
        raise error.at(where) from error
    encoded, label = image_and_label(payload, features, where, num_classes)
    filename = features.get("image/filename")
    name = filename[0].decode(errors="replace") if isinstance(filename, list) and filename else ""
    logits = check_logits(features.get("image/logit"), where, num_classes) if with_logits else None
    boxes = check_boxes([features.get(name) for name in BOX_FEATURES], where) if with_boxes else None
    key, own_key = keys_of(features, encoded, where)
    return Record(encoded, label, name, key, where, logits, boxes, own_key)


def take_apart(
    payloads: Sequence[Buffer],
    descriptions: Sequence[str],
    found: NDArray[Any] | None,
    decode: Callable[[Buffer, str], Record],
    *,
    num_classes: int | None,
    with_logits: bool = False,
    copy: bool = False,
) -> list[Record]:
    """The records of serialized Examples, from what the native library ``found`` in them (None: there is none).

    ``decode`` is for those that were left to Python, and refuses what is wrong with a label; ``copy``: images of their
    own.
    """
    if found is None:
        return list(map(decode, payloads, descriptions))
    spans = np.concatenate([found["image"], found["filename"], found["logits"]], axis=1).tolist()
    labels = found["label"].tolist()
    is_rewritten = (found["has_encoded_xxh3"] | found["has_original_key"]).tolist()
    end_label = num_classes or 1 << 63
    records = []
    for index, is_left in enumerate(found["status"].tolist()):
        label, payload, where = labels[index], payloads[index], descriptions[index]
        if is_left or not 0 <= label < end_label:
            records.append(decode(payload, where))  # or raises
            continue
        image, image_end, name, name_end, logits, logits_end = spans[index]
        encoded = bytes(payload[image:image_end]) if copy else payload[image:image_end]
        filename = str(payload[name:name_end], errors="replace")
        values = None
        if with_logits:
            values = np.frombuffer(payload[logits:logits_end], "<f4").astype(np.float32)
            values = check_logits(values, where, num_classes)
        if is_rewritten[index]:
            key, own_key = found_keys(found[index], encoded, where)
            records.append(Record(encoded, label, filename, key, where, values, own_key=own_key))
        else:
            records.append(Record(encoded, label, filename, record_key(encoded), where, values))
    return records


def keys_of(features: Mapping[str, Feature], encoded: Buffer, where: str) -> tuple[int, int | None]:
    """The key of a record with these features, and its own key if it was rewritten; raises as ``rewritten_keys``."""
    if ENCODED_XXH3 not in features and ORIGINAL_KEY not in features:
        return record_key(encoded), None
    own_key, original_key = (_key(features.get(name)) for name in (ENCODED_XXH3, ORIGINAL_KEY))
    return rewritten_keys(encoded, own_key, original_key, where)


def found_keys(found: Any, encoded: Buffer, where: str) -> tuple[int, int | None]:
    """The same of what the native library found (one of ``FOUND``)."""
    has_own, has_original = int(found["has_encoded_xxh3"]), int(found["has_original_key"])
    if not has_own and not has_original:
        return record_key(encoded), None
    own_key = int(found["encoded_xxh3"]) if has_own else None
    return rewritten_keys(encoded, own_key, int(found["original_key"]) if has_original else None, where)


def key_feature(key: int) -> NDArray[np.int64]:
    """A key as a feature: the int64 of the same 64 bits."""
    return np.array([key], np.uint64).view(np.int64)


def _key(values: Feature | None) -> int | None:
    """A key that is kept as an int64; None where it is not a single one."""
    if not isinstance(values, np.ndarray) or values.dtype != np.int64 or len(values) != 1:
        return None
    return int(values.view(np.uint64)[0])


def image_and_label(
    payload: Buffer, features: Mapping[str, Feature], where: str, num_classes: int | None
) -> tuple[Buffer, int]:
    """Image and label of a record with these features; raises as ``decode_tfrecord``."""
    encoded = _single(payload, features, IMAGE_FEATURE, bytes, where)
    label = int(_single(payload, features, LABEL_FEATURE, np.int64, where))
    if label < 0 or (num_classes is not None and label >= num_classes):
        expected = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        raise RecordError(f"{where}: label {label}, expected {expected}; the record is damaged or has other classes")
    return encoded, label


def _single(payload: Buffer, features: Mapping[str, Feature], name: str, kind: type, where: str) -> Any:
    option = "--image-feature" if name == IMAGE_FEATURE else "--label-feature"
    values = features.get(name)
    if values is None or len(values) == 0:
        found = ", ".join(sorted(decode_example(payload))) or "nothing"
        raise RecordError(
            f"{where}: no {name}, found {found}; if one of these is meant, extract, train and evaluate read it by "
            f"{option}, else write the record again"
        )
    if len(values) > 1 or not isinstance(values[0], kind):
        found = f"{len(values)} values of {type(values[0]).__name__}"
        # What others write, names or whole numbers as floats, is read where the options say that others did.
        is_readable = len(values) == 1 and name == LABEL_FEATURE
        advice = f"extract, train and evaluate read it by {option} {name}, or " if is_readable else ""
        raise RecordError(
            f"{where}: {name} holds {found}, expected one of {kind.__name__}; {advice}write the record again"
        )
    return values[0]


def check_logits(logits: Any, where: str, num_classes: int | None) -> NDArray[np.float32]:
    """``image/logit`` as it may be; raises LogitsError."""
    if logits is None or len(logits) == 0:
        raise LogitsError(f"{where}: no image/logit; insert logits with merge, or give --store")
    if not isinstance(logits, np.ndarray) or logits.dtype != np.float32:
        raise LogitsError(f"{where}: image/logit is not a list of floats; insert the logits again")
    if num_classes is not None and len(logits) != num_classes:
        raise LogitsError(
            f"{where}: image/logit has {len(logits)} classes, the data {num_classes}; insert logits of this data"
        )
    bad = np.flatnonzero(np.isnan(logits) | np.isposinf(logits))
    if len(bad):
        raise LogitsError(f"{where}: logit {bad[0]} is {logits[bad[0]]}, expected a number; insert the logits again")
    if np.isneginf(logits).all():
        raise LogitsError(
            f"{where}: all {len(logits)} logits are -inf: no class has any probability; insert the logits again"
        )
    return logits


def check_boxes(sides: list[Any], where: str) -> NDArray[np.float32] | None:
    """Boxes [N, 4] of their four features; raises RecordError for what are none."""
    counts = [0 if side is None else len(side) for side in sides]
    if not any(counts):
        return None
    if len(set(counts)) > 1 or not all(isinstance(side, np.ndarray) and side.dtype == np.float32 for side in sides):
        raise RecordError(
            f"{where}: {counts[0]} xmin, {counts[1]} ymin, {counts[2]} xmax and {counts[3]} ymax, expected floats, as "
            "many of each; write the bounding boxes again, or draw crops without them (--object-boxes image)"
        )
    boxes = np.stack(sides, axis=1)
    bad = boxes[~((boxes >= 0) & (boxes <= 1))]
    if len(bad):
        raise RecordError(
            f"{where}: a bounding box with a side at {bad[0]}, expected 0 to 1 (fractions of the image); write the "
            "bounding boxes again, or draw crops without them (--object-boxes image)"
        )
    return boxes


def _other_index(file: TFRecordFile, row: int, offset: int) -> RecordError:
    expected = f"at byte {file.offset(row)}" if row < len(file) else f"no more than {len(file)} records"
    return RecordError(
        f"{describe_record(file.path, row, offset)}: the index says {expected}: the index belongs to another "
        f"shard; restore the shard, or delete {index_path(file.path)} if the shard is right"
    )


class TFRecordSource(RecordSource):
    """TFRecord shards of ``tf.train.Example``."""

    format = "tfrecord"

    def __init__(self, data: Path, split: str, paths: list[Path], *, with_boxes: bool = False) -> None:
        self.split = split
        self.with_boxes = with_boxes
        self.classes = read_classes(data)
        storage = open_storage(data, RecordError)
        found = storage.statuses()
        indices = overlap(storage, paths, lambda path: load_index(path, found))
        self._files = [TFRecordFile(path, bounds) for path, bounds in zip(paths, indices, strict=True)]
        self.shards = tuple(
            _describe_shard(storage, path, len(file), found.get(path.name) or storage.status(path.name))
            for path, file in zip(paths, self._files, strict=True)
        )
        self.is_fetched = storage.is_cached
        self._num_classes = None if self.classes is None else len(self.classes.names)
        self._prepare()

    def _prepare(self) -> None:
        self._open: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()
        self._buffers = BufferPool()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_lock", "_buffers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def read_batch(
        self, locations: Sequence[Location], *, with_logits: bool = False, buffers: BufferPool | None = None
    ) -> Sequence[Record]:
        """The records at several locations, where it can be into memory of ``buffers``."""
        found = Locations.of(locations)
        descriptions = OnDemand(len(found), lambda index: self._describe(*found[index]))
        if buffers is None:
            payloads = [self._keep_open(shard).read(row) for shard, row in found]
            return self._take_apart(payloads, descriptions, with_logits)
        read = read_frames(self._keep_open, found, buffers)
        features = None if self.with_boxes or with_logits else self._find(read)
        if features is None:
            return self._take_apart(read, descriptions, with_logits)
        return self._as_batch(read, descriptions, features)

    def _describe(self, shard: int, row: int) -> str:
        file = self._files[shard]
        return describe_record(file.path, row, file.offset(row))

    def _as_batch(self, payloads: Parts, descriptions: Sequence[str], found: NDArray[Any]) -> RecordBatch:
        """Records of Examples in which the native library has found what they hold; the others one by one."""
        images = payloads.within(*found["image"].T)
        labels = found["label"].copy()
        is_plain = (found["status"] == 0) & (labels >= 0) & (labels < (self._num_classes or np.iinfo(np.int64).max))
        own_keys = np.fromiter(map(record_key, images), np.uint64, len(images))
        is_rewritten = (found["has_encoded_xxh3"] | found["has_original_key"]) != 0
        # Of which image it is a rewriting, a record says beside the hash of its own bytes; else it is refused below.
        has_both = (found["has_encoded_xxh3"] & found["has_original_key"]) != 0
        is_plain &= ~is_rewritten | (has_both & (found["encoded_xxh3"] == own_keys))
        keys = np.where(is_rewritten, found["original_key"], own_keys)

        others = {
            index: self._take_apart([payloads[index]], [descriptions[index]], False)[0]
            for index in np.flatnonzero(~is_plain).tolist()
        }
        pointers, sizes = images.addresses, images.num_bytes
        for index, record in others.items():
            keys[index], labels[index] = record.key, record.label
            pointers[index], sizes[index] = addresses([record.encoded])[0], len(record.encoded)

        def make(index: int) -> Record:
            if index in others:
                return others[index]
            name, name_end = found["filename"][index].tolist()
            filename = str(payloads[index][name:name_end], errors="replace")
            key, own_key = int(keys[index]), int(own_keys[index]) if is_rewritten[index] else None
            return Record(images[index], int(labels[index]), filename, key, descriptions[index], own_key=own_key)

        return RecordBatch(keys, labels, pointers, sizes, make)

    def _take_apart(
        self, payloads: Sequence[Buffer], descriptions: Sequence[str], with_logits: bool, *, copy: bool = False
    ) -> list[Record]:
        found = None if self.with_boxes else self._find(payloads)
        decode = partial(self._decode, with_logits=with_logits)
        return take_apart(
            payloads, descriptions, found, decode, num_classes=self._num_classes, with_logits=with_logits, copy=copy
        )

    def fetch(self, shard: int, go_on: Callable[[], bool] = lambda: True) -> None:
        """All of the file of a shard."""
        self._keep_open(shard).fetch(go_on)

    def _keep_open(self, shard: int) -> TFRecordFile:
        if len(self._files) > MAX_OPEN_SHARDS:
            with self._lock:
                self._open[shard] = None
                self._open.move_to_end(shard)
                if len(self._open) > MAX_OPEN_SHARDS:
                    self._files[self._open.popitem(last=False)[0]].close()
        return self._files[shard]

    def iter_shard(self, shard: int, *, with_logits: bool = False) -> Iterator[Record]:
        """The records of a shard in order, streaming; raises as ``read_batch``."""
        for payloads, descriptions in self._read_blocks(shard):
            yield from self._take_apart(payloads, descriptions, with_logits, copy=True)

    def scan_shard(self, shard: int) -> Iterator[list[Record]]:
        """The same in lists, without a copy of the images."""
        for payloads, descriptions in self._read_blocks(shard):
            yield self._take_apart(payloads, descriptions, with_logits=False)

    def _read_blocks(self, shard: int) -> Iterator[tuple[list[memoryview], list[str]]]:
        """(payloads, how messages name them) of a shard, in order; RecordError where its index has others.

        A shard that was replaced by one of equal size has other rows than its index, by which others read.
        """
        file = self._files[shard]
        first = 0
        frames = (frame for block in read_blocks(file.path, self._buffers) for frame in block)
        for block in chunked(frames, SCANNED_RECORDS):
            offsets, payloads = [offset for offset, _ in block], [payload for _, payload in block]
            expected = file.offsets(first, len(block))
            if offsets != expected:
                pairs = zip(offsets, expected, strict=False)
                at = next((at for at, (offset, known) in enumerate(pairs) if offset != known), len(expected))
                raise _other_index(file, first + at, offsets[at])
            yield payloads, describe_records(file.path, first, offsets)
            first += len(block)
        if first != len(file):
            raise _other_index(file, first, file.offset(first))

    def _find(self, payloads: Sequence[Buffer]) -> NDArray[Any] | None:
        return find_features(payloads)

    def _decode(self, payload: Buffer, where: str, with_logits: bool) -> Record:
        return decode_tfrecord(
            payload, where, with_logits=with_logits, with_boxes=self.with_boxes, num_classes=self._num_classes
        )
