"""What a store costs: in bytes by column, and in what its codec changes of the teacher's answer.

The codec's error is measured on the samples that a store keeps of logits before the codec, so it is that of this
teacher on this data and not a bound. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teachonce.codecs.softmax import soften, total_variation
from teachonce.inspection.measures import spread_evenly
from teachonce.rng import generator
from teachonce.storage.files import open_storage
from teachonce.store.manifests import index_file
from teachonce.store.plan import records_file, samples_file, views_file
from teachonce.store.store import Store
from teachonce.views.columns import VIEW_COLUMNS

TEMPERATURES = (1, 2, 4)
"""Where the codec's error is measured: where students are usually trained."""
MAX_CODEC_SAMPLES = 4096


@dataclass(frozen=True)
class CodecError:
    """Total variation between the softmax of the teacher's own logits and of the stored ones, by temperature."""

    num_samples: int
    mean: dict[int, float]
    largest: dict[int, float]
    tail_mass: dict[int, float]
    """Mean mass of the classes that a sparse codec does not keep; empty for a dense one."""


@dataclass(frozen=True)
class ColumnBytes:
    """What one column takes a view; ``kind`` is codec, view, record, sample or file."""

    name: str
    kind: str
    bytes_per_view: float


def measure_codec(store: Store, max_samples: int = MAX_CODEC_SAMPLES) -> CodecError | None:
    """What the codec changes, by the store's own samples of logits before it; None in a store that keeps none.

    Of many samples about ``max_samples`` are taken, from sample files spread evenly over the store.
    """
    errors: dict[int, list[NDArray[np.float64]]] = {temperature: [] for temperature in TEMPERATURES}
    tails: dict[int, list[NDArray[np.float64]]] = {temperature: [] for temperature in TEMPERATURES}
    for shard, view, rows, logits in _iter_samples(store, max_samples):
        kept = store.codec.kept_classes(store.read_rows(shard, view, rows))
        for temperature in TEMPERATURES:
            decoded = store.read_logits(shard, view, rows, temperature=temperature)
            errors[temperature].append(total_variation(logits, decoded, temperature))
            if kept is not None:
                dense = soften(logits, temperature)
                tails[temperature].append(1 - np.take_along_axis(dense, kept, axis=1).sum(axis=1))
    if not errors[1]:
        return None
    found = {temperature: np.concatenate(parts) for temperature, parts in errors.items()}
    return CodecError(
        num_samples=len(found[1]),
        mean={temperature: float(values.mean()) for temperature, values in found.items()},
        largest={temperature: float(values.max()) for temperature, values in found.items()},
        # Rounding makes the mass of an empty tail a little less than nothing.
        tail_mass={t: max(float(np.concatenate(parts).mean()), 0.0) for t, parts in tails.items() if parts},
    )


def measure_variation(store: Store, temperature: float, max_samples: int = 256) -> NDArray[np.float64] | None:
    """Total variation [n] at one temperature, by the store's samples of logits before the codec; None without any."""
    parts = [
        total_variation(logits, store.read_logits(shard, view, rows, temperature=temperature), temperature)
        for shard, view, rows, logits in _iter_samples(store, max_samples)
    ]
    return np.concatenate(parts) if parts else None


def measure_bytes(store: Store) -> list[ColumnBytes]:
    """Bytes of each column a view; together they are all files of the manifest."""
    columns = store.read_columns(0, 0)
    found = [
        ColumnBytes(name, "view" if name in VIEW_COLUMNS else "codec", values.nbytes / len(values))
        for name, values in columns.items()
    ]
    names = [name for name, _ in store.shards]
    groups, storage = store.plan.view_groups, open_storage(store.path)
    records = _file_bytes(store, [records_file(name) for name in names])
    views = _file_bytes(store, [views_file(name, group) for name in names for group in groups])
    found.append(ColumnBytes("key, filename, label (once a record)", "record", records))
    if indexes := [name for part in range(len(store.plan.parts)) if storage.has(name := index_file(part))]:
        found.append(ColumnBytes("index of the keys (once a record)", "record", _file_bytes(store, indexes)))
    if store.plan.num_samples:
        samples = _file_bytes(store, [samples_file(name, group) for name in names for group in groups])
        found.append(ColumnBytes("samples for verify", "sample", samples))
    overhead = views - sum(column.bytes_per_view for column in found if column.kind in ("codec", "view"))
    found.append(ColumnBytes("overhead of the view files", "file", overhead))
    return found


def _iter_samples(store: Store, max_samples: int) -> Iterator[tuple[int, int, NDArray[np.int64], NDArray[np.float32]]]:
    """(shard, view, rows [n], logits before the codec [n, C]) of the samples, by view; one sample file at a time."""
    units = store.sample_files()
    num_units = max(1, max_samples // max(1, store.plan.num_samples))
    for at in spread_evenly(len(units), num_units, generator(0, "inspect", "samples")):
        shard, group = units[at]
        # A file's last views may be beyond those that the store is cut to.
        samples = [sample for sample in store.read_samples(shard, group) if sample.view < store.num_views]
        for view in sorted({sample.view for sample in samples}):
            chosen = [sample for sample in samples if sample.view == view]
            yield shard, view, np.array([s.row for s in chosen]), np.stack([s.logits for s in chosen])


def _file_bytes(store: Store, names: list[str]) -> float:
    """Bytes of these files a view of a record."""
    storage, sizes = open_storage(store.path), store.file_sizes()
    num_bytes = sum(sizes[name] if name in sizes else storage.status(name).num_bytes for name in names)
    return num_bytes / (store.num_records * store.num_views)
