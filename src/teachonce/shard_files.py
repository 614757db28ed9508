"""The Arrow files of a store: one with the records of a shard, one for each group of its views.

View files are view-major: one Arrow record batch a view, rows in record order. What belongs to a record (key, filename,
label) is kept once and not once a view; each view file carries the hash of the keys that it was made for, so a pair
that does not belong together is noticed when it is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from pyarrow import ipc

from teachonce.codec import Codec
from teachonce.errors import StoreError
from teachonce.files import atomic_write
from teachonce.views import View, encode_views


def records_file(shard_name: str) -> str:
    """Name of the file with a shard's keys, filenames and labels."""
    return f"{shard_name}.records.arrow"


def views_file(shard_name: str, group: tuple[int, int]) -> str:
    """Name of the file with a shard's views ``group[0]``..``group[1]``."""
    return f"{shard_name}.v{group[0]:03d}-{group[1]:03d}.arrow"


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
) -> None:
    """Write a view file from logits [V, N, C] and, where the policy draws any, the views [V][N].

    Raises LogitsError, with view and row, where a logit is not finite; then nothing is written.
    """
    batches = []
    for index, view_logits in enumerate(logits):
        columns = dict(encode_views(views[index])) if views is not None else {}
        columns |= codec.encode_logits(view_logits)
        batches.append(pa.record_batch({name: _to_arrow(values) for name, values in columns.items()}))
    schema = batches[0].schema.with_metadata({"keys_xxh3": keys_hash(keys)})
    _write_batches(path, schema, [batch.replace_schema_metadata(schema.metadata) for batch in batches])


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
    try:
        return ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(
            f"{path}: cannot be read as an Arrow file ({error}): missing or damaged; remove it and manifest.json, "
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


def file_entry(path: Path, name: str) -> dict[str, Any]:
    """Name, size and hash of a file, as the manifest keeps them."""
    digest = xxhash.xxh3_128()
    size_bytes = 0
    try:
        with (path / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size_bytes += len(block)
    except OSError as error:
        raise StoreError(f"{path / name}: cannot be read: {error.strerror or error}") from error
    return {"name": name, "bytes": size_bytes, "xxh3": digest.hexdigest()}
