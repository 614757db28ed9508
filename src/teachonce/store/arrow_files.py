"""The Arrow files of a store: one with the records of a shard, and for each group of its views the views and a sample.

View files are view-major: one Arrow record batch a view, rows in record order. What belongs to a record (key, filename,
label) is kept once and not once a view; each view file carries the hash of the keys that it was made for, so a pair
that does not belong together is noticed when it is opened.

A sample file keeps, of a few rows of its view file, what a later rendering is compared with: the hashes of the decoded
image and of the pixels that the teacher saw, and its logits as they were before any codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from pyarrow import ipc

from teachonce.codecs.codec import Codec
from teachonce.errors import StoreError, TeachonceError
from teachonce.storage.files import atomic_write, locate, open_storage
from teachonce.storage.strict_json import Count
from teachonce.views.columns import CROP_ONLY, ViewLayout, encode_views
from teachonce.views.view import View


def records_file(shard_name: str) -> str:
    """Name of the file with a shard's keys, filenames and labels."""
    return f"{shard_name}.records.arrow"


def views_file(shard_name: str, group: tuple[int, int]) -> str:
    """Name of the file with a shard's views ``group[0]``..``group[1]``."""
    return f"{shard_name}.v{group[0]:03d}-{group[1]:03d}.arrow"


def samples_file(shard_name: str, group: tuple[int, int]) -> str:
    """Name of the file with the sample of a shard's views ``group[0]``..``group[1]``."""
    return f"{shard_name}.v{group[0]:03d}-{group[1]:03d}.sample.arrow"


def keys_hash(keys: NDArray[np.uint64]) -> str:
    """Hash of a shard's record keys in order: what a view file was made for."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(keys, "<u8").tobytes())


def write_records(path: Path, keys: NDArray[np.uint64], filenames: Sequence[str], labels: NDArray[np.int32]) -> None:
    """Write a shard's record table."""
    table = pa.table({"key": pa.array(keys, pa.uint64()), "filename": filenames, "label": pa.array(labels, pa.int32())})
    _write_batches(path, table.schema, table.combine_chunks().to_batches())


def write_views(
    path: Path,
    keys: NDArray[np.uint64],
    codec: Codec,
    logits: NDArray[np.float32],
    views: Sequence[Sequence[View]] | None,
    layout: ViewLayout = CROP_ONLY,
) -> None:
    """Write a view file from logits [V, N, C] and the views [V][N], as ``layout`` stores them (None: not at all).

    Raises LogitsError, with the row, where the codec refuses a logit (not finite, say); then nothing is written.
    """
    batches = []
    for index, view_logits in enumerate(logits):
        columns = {} if views is None else encode_views(views[index], layout)
        columns |= codec.encode_logits(view_logits)
        batches.append(pa.record_batch({name: _to_arrow(values) for name, values in columns.items()}))
    schema = batches[0].schema.with_metadata({"keys_xxh3": keys_hash(keys)})
    _write_batches(path, schema, [batch.replace_schema_metadata(schema.metadata) for batch in batches])


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


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write a sample file (not empty)."""
    names = ("row", "view", "image_xxh3", "pixels_xxh3")
    types = (np.uint32, np.uint32, np.uint64, np.uint64)
    columns = {
        name: _to_arrow(np.array([getattr(sample, name) for sample in samples], kind))
        for name, kind in zip(names, types, strict=True)
    }
    columns["logits"] = _to_arrow(np.stack([sample.logits for sample in samples]))
    batch = pa.record_batch(columns)
    _write_batches(path, batch.schema, [batch])


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file; raises StoreError where it is damaged."""
    batch = _open_arrow(path).get_batch(0)
    columns = {name: to_numpy(batch.column(name)) for name in batch.schema.names}
    names = ("row", "view", "image_xxh3", "pixels_xxh3")
    return [
        Sample(**{name: int(columns[name][i]) for name in names}, logits=columns["logits"][i])
        for i in range(batch.num_rows)
    ]


def pixels_hash(pixels: NDArray[Any]) -> int:
    """Hash (xxh3, 64 bits) of pixels or of a decoded image as an array [H, W, 3]."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(pixels).data)


def _to_arrow(values: NDArray[Any]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def to_numpy(column: pa.Array) -> NDArray[Any]:
    """A column as an array [N] or [N, width], without a copy."""
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return column.to_numpy()


def _write_batches(path: Path, schema: pa.Schema, batches: Sequence[pa.RecordBatch]) -> None:
    with atomic_write(path) as file, ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _open_arrow(path: Path) -> ipc.RecordBatchFileReader:
    storage, name = locate(path)
    try:
        return ipc.open_file(pa.py_buffer(storage.map(name)))
    except (TeachonceError, pa.ArrowInvalid) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise StoreError(
            f"{path}: is no Arrow file that can be read ({reason}): missing or damaged; remove it and manifest.json, "
            "and extract again"
        ) from error


def open_records_file(path: Path, num_records: int) -> dict[str, pa.Array]:
    """Columns key, filename and label of a shard; StoreError where the file is damaged or of another length."""
    reader = _open_arrow(path)
    table = reader.read_all()
    if table.num_rows != num_records:
        raise StoreError(f"{path}: {table.num_rows} records, the plan says {num_records}; extract this shard again")
    columns = {name: table.column(name).combine_chunks() for name in ("key", "filename", "label")}
    return {name: c.chunk(0) if isinstance(c, pa.ChunkedArray) else c for name, c in columns.items()}


def open_views_file(
    path: Path, group: tuple[int, int], num_records: int, expected_keys: str
) -> ipc.RecordBatchFileReader:
    """A reader of a view file, one batch a view; StoreError where it is damaged or made for other records."""
    reader = _open_arrow(path)
    num_views = group[1] - group[0] + 1
    rows = [reader.get_batch(index).num_rows for index in range(reader.num_record_batches)]
    if rows != [num_records] * num_views:
        raise StoreError(f"{path}: views of {rows} records, expected {num_views} views of {num_records}")
    found = (reader.schema.metadata or {}).get(b"keys_xxh3", b"").decode()
    if found != expected_keys:
        raise StoreError(
            f"{path}: made for records with key hash {found or 'none'}, this shard has {expected_keys}: the data "
            "changed between two extractions; remove the file and extract again"
        )
    return reader


class FileEntry(TypedDict):
    """What a manifest says of a file."""

    name: str
    bytes: Count
    xxh3: str


def file_entry(path: Path, name: str) -> FileEntry:
    """Name, size and hash of a file, as the manifest keeps them."""
    digest = xxhash.xxh3_128()
    size_bytes = 0
    with open_storage(path, StoreError).stream(name) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size_bytes += len(block)
    return {"name": name, "bytes": size_bytes, "xxh3": digest.hexdigest()}
