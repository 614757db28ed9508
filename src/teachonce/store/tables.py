"""The tables of a store: the records of a shard, and for each group of its views the views and a sample of them.

View files are view-major: one block (an Arrow record batch) a view, rows in record order. What belongs to a record
(key, filename, label) is kept once and not once a view. A sample file keeps, of a few rows of its view file, what a
later rendering is compared with: the hashes of the decoded image and of the pixels that the teacher saw, and its logits
as they were before any codec.

Each file says in its metadata which plan it was made for, of which shard, for which keys, and by what; a file that is
in the wrong place is noticed when it is opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from teachonce.codecs.codec import Codec
from teachonce.codecs.registry import codec_from_json
from teachonce.errors import StoreError
from teachonce.records.key_index import SORTED_AT_ONCE, KeyIndex
from teachonce.records.source import NO_LABEL
from teachonce.storage.block_file import BlockFile, write_blocks
from teachonce.storage.files import open_storage
from teachonce.storage.strict_json import Count, convert_json
from teachonce.store.plan import FORMAT_VERSION, RESTORE, Group, Plan, records_file, samples_file, views_file
from teachonce.views.columns import ViewLayout, encode_views
from teachonce.views.view import View

RECORDS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("filename", pa.string(), nullable=False),
        pa.field("label", pa.int32()),
    ]
)
"""``label`` is null where a record has none."""
ALIAS_FIELD = pa.field("alias", pa.uint64())
"""Key of the original of a record whose image was rewritten without loss."""
INDEX_SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (("key", pa.uint64()), ("shard", pa.uint32()), ("row", pa.uint32()))
    ]
)


@dataclass(frozen=True)
class Sample:
    """One (row, view) of a shard as the teacher met it."""

    row: int
    view: int
    image_xxh3: int
    """Hash of the decoded image's RGB bytes: says whether the decoder is the same."""
    pixels_xxh3: int
    """Hash of the pixels at the teacher's size: says whether crop, resize and operations are the same."""
    logits: NDArray[np.float32]
    """[C], before the codec."""


_SAMPLE_COLUMNS = {"row": np.uint32, "view": np.uint32, "image_xxh3": np.uint64, "pixels_xxh3": np.uint64}


class StoreWriter:
    """Writes the files of a plan's shards, each complete under its name or not at all; what is there already stays.

    ``made_by`` says what made the numbers: ``versions`` of libraries, ``device`` and what else decides about their last
    bits.
    """

    def __init__(self, path: Path, plan: Plan, made_by: Mapping[str, Any] | None = None) -> None:
        assert plan.format_version == FORMAT_VERSION
        self._storage = open_storage(path)
        self._plan = plan
        self._identity = plan.identity
        self._made_by = dict(made_by or {})
        self._codec = codec_from_json(plan.codec)
        self._layout = plan.read_policy()[0].layout

    def write_records(
        self, shard: str, keys: NDArray[np.uint64], filenames: Sequence[str], labels: NDArray[np.int32]
    ) -> None:
        """Keys, filenames and labels (``NO_LABEL``: none) [N] of a shard."""
        labels = np.asarray(labels, np.int32)
        columns = [
            pa.array(keys, pa.uint64()),
            pa.array(filenames, pa.string()),
            pa.array(labels, mask=labels == NO_LABEL),
        ]
        self._write(records_file(shard), "records", shard, keys, [pa.record_batch(columns, RECORDS_SCHEMA)])

    def write_views(
        self,
        shard: str,
        group: Group,
        keys: NDArray[np.uint64],
        labels: NDArray[np.int32],
        logits: NDArray[np.float32],
        views: Sequence[Sequence[View]] | None,
    ) -> None:
        """Logits [V, N, C] and views [V][N] of a group (None: the policy stores none).

        Raises LogitsError, with the row, where the codec refuses a logit (not finite, say); then nothing is written.
        """
        batches, hits = [], []
        for index, of_view in enumerate(logits):
            columns = {} if views is None else encode_views(views[index], self._layout)
            columns |= self._codec.encode_logits(of_view)
            batches.append(to_batch(columns))
            # Of what is read, so that any reader counts the same, whatever a codec makes of near ties.
            hits.append(count_hits(self._codec.decode_logits(columns), labels, self._plan.class_space.offset))
        more = {"views": list(group), "hits": hits, "made_by": self._made_by}
        self._write(views_file(shard, group), "views", shard, keys, batches, more)

    def write_columns(
        self, shard: str, group: Group, keys: NDArray[np.uint64], batches: Sequence[pa.RecordBatch], hits: Sequence[int]
    ) -> None:
        """Views that are encoded already."""
        more = {"views": list(group), "hits": list(hits), "made_by": self._made_by}
        self._write(views_file(shard, group), "views", shard, keys, batches, more)

    def write_samples(self, shard: str, group: Group, keys: NDArray[np.uint64], samples: Sequence[Sample]) -> None:
        """The sample of a group (not empty)."""
        columns: dict[str, NDArray[Any]] = {
            name: np.array([getattr(sample, name) for sample in samples], kind)
            for name, kind in _SAMPLE_COLUMNS.items()
        }
        columns["logits"] = np.stack([sample.logits for sample in samples])
        more = {"views": list(group), "made_by": self._made_by}
        self._write(samples_file(shard, group), "sample", shard, keys, [to_batch(columns)], more)

    def _write(
        self,
        name: str,
        kind: str,
        shard: str,
        keys: NDArray[np.uint64],
        batches: Sequence[pa.RecordBatch],
        more: Mapping[str, Any] | None = None,
    ) -> None:
        metadata = {
            "format": FORMAT_VERSION,
            "kind": kind,
            "plan": self._identity,
            "shard": shard,
            "num_records": len(keys),
            "keys_xxh3": keys_hash(keys),
            **(more or {}),
        }
        write_blocks(self._storage, name, batches, metadata)


def write_index(path: Path, name: str, index: KeyIndex, identity: str) -> None:
    """Write a key index as an Arrow file of one block."""
    columns = [pa.array(values) for values in (index.keys, index.shards, index.rows)]
    metadata = {"format": FORMAT_VERSION, "kind": "index", "plan": identity, "num_records": len(index)}
    write_blocks(open_storage(path), name, [pa.record_batch(columns, INDEX_SCHEMA)], metadata)


def read_index(file: BlockFile, shards: range, sizes: Sequence[int]) -> KeyIndex:
    """The index of some shards, which are of ``sizes``, memory-mapped; StoreError where it is damaged.

    That each entry is a record that there is, is checked whatever its hash says.
    """
    batch = file.read(0, INDEX_SCHEMA, sum(sizes))
    index = KeyIndex(*(to_numpy(column) for column in batch.columns))
    ends = np.array(sizes, np.int64)
    for first in range(0, len(index), SORTED_AT_ONCE):
        part = slice(first, first + SORTED_AT_ONCE)
        own = index.shards[part].astype(np.int64) - shards.start
        is_inside = (own >= 0) & (own < len(ends))
        is_inside &= index.rows[part] < ends[np.where(is_inside, own, 0)]
        if not is_inside.all():
            shard, row = index.location(first + int(np.flatnonzero(~is_inside)[0]))
            raise file.error(f"shard {shard} row {row}: there is no such record: damaged")
    return index


class MadeBy(TypedDict, total=False):
    """What the format says of ``made_by``; other entries are allowed."""

    versions: dict[str, str]
    device: str


class _About(TypedDict):
    """What the metadata of an index says; of the others more."""

    format: int
    kind: str
    plan: str
    num_records: Count


class _AboutRecords(_About):
    shard: str
    keys_xxh3: str


class _AboutSample(_AboutRecords):
    views: Group
    made_by: dict[str, Any]


class _AboutViews(_AboutSample):
    hits: list[Count]


_ABOUT = {"index": _About, "records": _AboutRecords, "sample": _AboutSample, "views": _AboutViews}
_INDEX_NAME = re.compile(r"index(\.\d{3,})?\.arrow")


def check_file(file: BlockFile, name: str, where: str, expected: Mapping[str, Any], advice: str) -> None:
    """Raise StoreError where a file's metadata are not what the format says for its name, or not as expected."""
    kind = "index" if _INDEX_NAME.fullmatch(name) else "views"
    kind = next((end for end in ("records", "sample") if name.endswith(f".{end}.arrow")), kind)
    check_metadata(file.metadata, where, {"format": FORMAT_VERSION, "kind": kind, **expected}, advice)
    about: Any = convert_json(file.metadata, _ABOUT[kind], where, StoreError, advice=advice, also=("blocks",))
    if "made_by" in about:
        check_made_by(about["made_by"], where, advice)
    num_views = about["views"][1] - about["views"][0] + 1 if kind == "views" else 1
    if file.num_blocks != num_views:
        raise StoreError(f"{where}: {file.num_blocks} blocks, expected {num_views}: damaged; {advice}")
    hits = about.get("hits", [0])
    if len(hits) != num_views or max(hits, default=0) > about["num_records"]:
        raise StoreError(
            f"{where}: hits {str(hits)[:80]}, expected {num_views} numbers up to {about['num_records']}: damaged; "
            f"{advice}"
        )


def check_made_by(made_by: Mapping[str, Any], where: str, advice: str) -> None:
    """Raise StoreError where what made a file's numbers is not said as the format has it."""
    known = {name: made_by[name] for name in MadeBy.__annotations__ if name in made_by}
    convert_json(known, MadeBy, f"{where}: made_by", StoreError, advice=advice)


def check_metadata(metadata: Mapping[str, Any], where: str, expected: Mapping[str, Any], advice: str) -> None:
    """Raise StoreError where a file is another one than its name says."""
    for name, value in expected.items():
        found = metadata.get(name)
        if found != value:
            what = {
                "plan": "belongs to another plan: a file of another store",
                "keys_xxh3": "belongs to other records: the data changed between two extractions",
            }.get(name, "its content does not match its name")
            raise StoreError(f"{where}: {name} {found}, expected {value}: {what}; {advice}")


class ShardRecords(NamedTuple):
    """The records of a shard, in their order."""

    keys: NDArray[np.uint64]
    labels: NDArray[np.int32]
    """``NO_LABEL`` where there is none."""
    filenames: pa.Array


def read_records(path: Path, plan: Plan, shard: int) -> ShardRecords:
    """The records file of a shard that no manifest may have yet; StoreError where it is damaged."""
    name, num_records = plan.shards[shard]
    file = BlockFile(open_storage(path), records_file(name))
    expected = {"plan": plan.identity, "shard": name, "num_records": num_records}
    check_file(file, records_file(name), str(path / records_file(name)), expected, "extract again")
    return to_records(file.read(0, records_schema(file.schema), num_records))


def records_schema(found: pa.Schema) -> pa.Schema:
    """The columns of a records file, with or without an alias."""
    return RECORDS_SCHEMA.append(ALIAS_FIELD) if "alias" in found.names else RECORDS_SCHEMA


def to_records(batch: pa.RecordBatch) -> ShardRecords:
    """The columns of a records file."""
    return ShardRecords(to_numpy(batch["key"]), batch["label"].fill_null(NO_LABEL).to_numpy(), batch["filename"])


def read_samples(batch: pa.RecordBatch, num_records: int, group: Group, where: str) -> list[Sample]:
    """The samples of a block; StoreError for one of a row or a view that the shard and the group do not have."""
    columns = {name: to_numpy(batch.column(name)) for name in batch.schema.names}
    views = columns["view"]
    is_inside = (columns["row"] < num_records) & (views >= group[0]) & (views <= group[1])
    if not is_inside.all():
        at = int(np.flatnonzero(~is_inside)[0])
        raise StoreError(
            f"{where}: a sample of row {columns['row'][at]}, view {views[at]}, expected rows below {num_records} and "
            f"views {group[0]} to {group[1]}: damaged; {RESTORE}"
        )
    return [
        Sample(**{name: int(columns[name][row]) for name in _SAMPLE_COLUMNS}, logits=columns["logits"][row])
        for row in range(batch.num_rows)
    ]


@lru_cache(64)
def views_schema(layout: ViewLayout, codec: Codec, num_classes: int) -> pa.Schema:
    """The columns of a view file: those of the views, then the codec's."""
    columns = encode_views([View((0, 0, 1, 1), False)], layout)
    return _without_nulls(to_batch(columns | codec.encode_logits(np.zeros((1, num_classes), np.float32))).schema)


def samples_schema(num_classes: int) -> pa.Schema:
    """The columns of a sample file."""
    columns: dict[str, NDArray[Any]] = {name: np.zeros(1, kind) for name, kind in _SAMPLE_COLUMNS.items()}
    return _without_nulls(to_batch(columns | {"logits": np.zeros((1, num_classes), np.float32)}).schema)


def _without_nulls(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(False) for field in schema])


def keys_hash(keys: NDArray[np.uint64]) -> str:
    """Hash (xxh3, 64 bits) of a shard's record keys in order: what a view file was made for."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(keys, "<u8").tobytes())


def pixels_hash(pixels: NDArray[Any]) -> int:
    """Hash (xxh3, 64 bits) of pixels or of a decoded image as an array [H, W, 3]."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(pixels).data)


def count_hits(logits: NDArray[np.float32], labels: NDArray[np.int32], offset: int) -> int:
    """Rows of logits [N, C] whose most likely class is the label [N]; a record without label is none."""
    labels = np.asarray(labels)
    return int(((logits.argmax(axis=1) + offset == labels) & (labels != NO_LABEL)).sum())


def to_batch(columns: Mapping[str, NDArray[Any]]) -> pa.RecordBatch:
    """Arrays [N] or [N, width] as an Arrow record batch."""
    return pa.record_batch({name: _to_arrow(values) for name, values in columns.items()})


def _to_arrow(values: NDArray[Any]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def to_numpy(column: pa.Array) -> NDArray[Any]:
    """A column as an array [N] or [N, width], without a copy."""
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return column.to_numpy()
