"""A store's logits as Parquet, for pandas, polars, DuckDB and Spark: a file a shard, a row a view.

Columns: ``key`` uint64, ``filename``, ``label`` int32 (null where there is none), ``view`` int32; then what the store
knows of the view, under the store's own names (``box`` and ``flip`` of every view that was drawn; none with policy
center, see docs/reference/store-format.md); then the teacher's answer, decoded, as float32. Dense: ``logits``, a list
of one number a class. With ``--top`` or codec topk: ``classes`` and ``logits``, most likely first, and ``rest``, the
probability at temperature 1 of all classes that are left out. Classes are the teacher's; ``offset`` in the metadata of
the file (key "teachonce", JSON) added gives the data's labels, which number the names in ``class_names`` there (null
where the data has none).

Rows are read, decoded and written by ``ROWS`` at a time, so that memory does not grow with shard or store. The folder
has a plan beside the files, so that the same command resumes and another is refused; its name begins with "_", which
readers of a folder of Parquet files pass over.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from teachonce.codecs.softmax import soften
from teachonce.engine.progress import Advance, phase, progress
from teachonce.errors import ConfigError, StoreError
from teachonce.records.source import NO_LABEL
from teachonce.storage.files import open_storage
from teachonce.storage.names import check_component
from teachonce.storage.resume import PlanFile
from teachonce.store.store import Store
from teachonce.views.columns import VIEW_COLUMNS

PLAN_NAME = "_teachonce_export.json"
ROWS = 4096
"""Rows of a row group: 16 MiB of 1000 dense logits."""


def export_parquet(
    source: Path, out: Path, *, view: int | None = None, top: int | None = None, trust: bool = False
) -> list[Path]:
    """Write one view of the store ``source``, or every one, into the folder ``out``; returns its files.

    Files that are there already are kept. Raises ConfigError where ``out`` holds something else, PlanMismatchError
    where it was started with other settings, StoreError for a view that does not exist.
    """
    with phase("export", "opening the store"):
        store = Store(source, trust=trust)
    if view is not None and view >= store.num_views:
        raise StoreError(f"{source}: view {view} does not exist: the store has views 0..{store.num_views - 1}")
    views = range(store.num_views) if view is None else [view]
    if top is not None and top > store.class_space.num_classes:
        raise ConfigError(f"--top {top}: the teacher has {store.class_space.num_classes} classes")
    PlanFile(
        folder=out,
        name=PLAN_NAME,
        hashes={"store": f"the store {source}"},
        foreign=ConfigError(f"{out}: exists and is not an export; choose another --out or remove it"),
    ).begin({"store": store.fingerprint, "view": view, "top": top})
    storage = open_storage(out)
    names = [f"{check_component(name, f'{source}: a shard', StoreError)}.parquet" for name, _ in store.shards]
    missing = [shard for shard, name in enumerate(names) if not storage.has(name)]
    sizes = [num_records * len(views) for _, num_records in store.shards]
    done = sum(sizes) - sum(sizes[shard] for shard in missing)
    with progress("export", sum(sizes), done=done, unit="rows") as advance:
        for shard in missing:
            with storage.put(names[shard]) as file:
                _write_shard(store, shard, views, top, file, advance)
    return [out / name for name in names]


def _write_shard(
    store: Store, shard: int, views: range | list[int], top: int | None, file: Any, advance: Advance
) -> None:
    metadata = {
        "teacher": store.plan.teacher,
        "offset": store.class_space.offset,
        "num_classes": store.class_space.num_classes,
        "class_names": store.plan.class_names,
        "codec": store.plan.codec,
        "policy": store.plan.policy,
        "fingerprint": store.fingerprint,
    }
    writer: pq.ParquetWriter | None = None
    try:
        for view in views:
            for table in _tables(store, shard, view, top):
                if writer is None:
                    schema = table.schema.with_metadata({"teachonce": json.dumps(metadata)})
                    writer = pq.ParquetWriter(file, schema, compression="zstd")
                writer.write_table(table.replace_schema_metadata(writer.schema.metadata))
                advance(table.num_rows)
    finally:
        if writer is not None:
            writer.close()


def _tables(store: Store, shard: int, view: int, top: int | None) -> Any:
    """The rows of one view of a shard, as tables of at most ``ROWS``."""
    keys, labels, filenames = store.read_keys(shard), store.read_labels(shard), store.read_filenames(shard)
    columns = store.read_columns(shard, view)
    for start in range(0, max(len(keys), 1), ROWS):
        rows = slice(start, start + ROWS)
        found = {
            "key": pa.array(keys[rows]),
            "filename": pa.array(filenames[rows], pa.string()),
            "label": pa.array(labels[rows], mask=labels[rows] == NO_LABEL),
            "view": pa.array(np.full(len(keys[rows]), view, np.int32)),
        }
        for name, values in columns.items():
            if name in VIEW_COLUMNS:
                found[name] = _as_arrow(values[rows] != 0 if name == "flip" else values[rows])
        stored = {name: values[rows] for name, values in columns.items() if name not in VIEW_COLUMNS}
        logits = store.codec.decode_logits(stored)
        kept = store.codec.kept_classes(stored)
        if top is None and kept is None:
            found["logits"] = _as_arrow(logits)
        else:
            classes = _likeliest(logits, kept, top)
            likeliest = np.take_along_axis(logits, classes, axis=1)
            shown = np.take_along_axis(soften(logits, 1.0), classes, axis=1).sum(axis=1)
            found |= {"classes": _as_arrow(classes.astype(np.int32)), "logits": _as_arrow(likeliest)}
            found["rest"] = pa.array(np.maximum(1 - shown, 0).astype(np.float32))
        yield pa.table(found)


def _likeliest(logits: NDArray[np.float32], kept: NDArray[np.intp] | None, top: int | None) -> NDArray[np.intp]:
    """Classes [N, K], most likely first; of codec topk only those that it kept, whose logits are not estimates."""
    if kept is None:
        return np.argsort(-logits, axis=1, kind="stable")[:, :top]
    order = np.argsort(-np.take_along_axis(logits, kept, axis=1), axis=1, kind="stable")
    return np.take_along_axis(kept, order, axis=1)[:, :top]


def _as_arrow(values: NDArray[Any]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
