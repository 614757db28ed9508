"""Where a batch's time goes on one core, part by part, and how far that is from decoding alone; with a picture.

    python -m benchmarks.where_time_goes --data DIR [--store STORE] [--out FILE]

DIR holds TFRecord shards of photographs (``--synthetic N`` makes some), STORE a store with crop views of them (made
with random logits if not given). Parts are timed one after the other on the same batches; "decode" is the kernel
rendering the same boxes at a single pixel, "resize" what the full rendering takes longer. Written to FILE with a
stacked bar beside it (.png).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.loading.data import write_crop_store
from benchmarks.photographs import write_photographs
from teachonce.data.dataset import KDDataset
from teachonce.data.stored_logits import StoredLogits
from teachonce.engine.buffers import BufferPool
from teachonce.engine.machine import num_cores
from teachonce.pixels.decode import decode_image
from teachonce.pixels.frames import read_pixels, square_frames
from teachonce.pixels.kernel import describe_decoder
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.render import ViewReader, render_views
from teachonce.records.discovery import open_records
from teachonce.records.tfrecord.batch_frames import read_frames
from teachonce.records.tfrecord.source import TFRecordSource
from teachonce.store.join import StoreJoin, join_records
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from teachonce.versions import library_versions

BATCH_SIZE = 64
SIZE_PX = 224
ROUNDS = 7


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of TFRecord shards")
    parser.add_argument("--synthetic", type=int, default=256, help="photographs to make where --data is not given")
    parser.add_argument("--store", type=Path, help="store with crop views of them")
    parser.add_argument("--out", type=Path, help="also write the table to this file, and a picture beside it")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = flags.data or write_photographs(Path(folder) / "data", flags.synthetic)
        source = open_records(data, "train")
        store = flags.store or Path(folder) / "store"
        if flags.store is None:
            write_crop_store(store, source)
        opened = Store(store)
        dataset = KDDataset(source, StoredViews(opened), StoredLogits([opened]), size=SIZE_PX)
        parts, decoding = measure(dataset, opened)
    whole = sum(parts.values())
    lines = [
        f"# Where a batch's time goes, {platform.machine()}, one of {num_cores()} cores",
        "",
        f"{time.strftime('%Y-%m-%d')}, `python -m benchmarks.where_time_goes`, {SIZE_PX} px, batches of {BATCH_SIZE}, "
        f"median of {ROUNDS}.",
        f"{describe_decoder()}; " + ", ".join(f"{key} {value}" for key, value in library_versions().items()),
        "",
        "| part | us an image | share |",
        "|---|---|---|",
        *(f"| {name} | {seconds * 1e6:.0f} | {seconds / whole:.1%} |" for name, seconds in parts.items()),
        f"| **all** | **{whole * 1e6:.0f}** | |",
        "",
        f"Bare full decoding with Pillow: {decoding * 1e6:.0f} us; an image in a batch takes {whole / decoding:.2f} of "
        "that.",
    ]
    table = "\n".join(lines) + "\n"
    print(table)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(table)
        draw(parts, decoding, flags.out.with_suffix(".png"))


def measure(dataset: KDDataset, store: Store) -> tuple[dict[str, float], float]:
    """Seconds an image of each part, and of decoding whole images with Pillow."""
    source, logits, student = dataset.records, StoredLogits([store]), Preprocessing(size_px=SIZE_PX)
    indices = np.random.default_rng(0).permutation(source.num_records)[: 4 * BATCH_SIZE]
    batches = [source.locate_all(indices[start : start + BATCH_SIZE]) for start in range(0, len(indices), BATCH_SIZE)]
    buffers, reader = BufferPool(), ViewReader(source, StoredViews(store))
    records = [source.read_batch(locations) for locations in batches]
    joined = [reader.join(locations, batch) for locations, batch in zip(batches, records, strict=True)]
    record_views = [reader.views_of(batch, 0) for batch in joined]
    store_join = StoreJoin(store, source)
    out = np.empty((BATCH_SIZE, SIZE_PX, SIZE_PX, 3), np.uint8)
    dot = np.empty((BATCH_SIZE, 1, 1, 3), np.uint8)
    assert isinstance(source, TFRecordSource)

    def read_bytes() -> None:
        for locations in batches:
            read_frames(source._keep_open, locations, buffers)

    def read_records() -> None:
        for locations in batches:
            source.read_batch(locations, buffers=buffers)

    def join() -> None:
        for locations, batch in zip(batches, records, strict=True):
            found = join_records([store_join], locations, batch)
            logits.to_batch([store.gather_columns(found.locations_in(store), 0)])

    def find_views() -> None:
        for batch in joined:
            reader.views_of(batch, 0)

    def decode() -> None:
        for batch in record_views:
            frames = square_frames([item.view.box for item in batch], [False] * len(batch), 1)
            encoded = [item.record.encoded for item in batch]
            read_pixels(encoded, frames, [""] * len(batch), dot[: len(batch)])

    def render() -> None:
        for batch in record_views:
            render_views(batch, student, out=out[: len(batch)])

    def whole() -> None:
        for start in range(0, len(indices), BATCH_SIZE):
            dataset.read_batch(indices[start : start + BATCH_SIZE].tolist(), 0)

    def decode_all() -> None:
        for batch in records:
            for record in batch:
                decode_image(record.encoded)

    timed = [read_bytes, read_records, join, find_views, decode, render, whole, decode_all]
    seconds = medians(timed, len(indices))
    parts = {
        "read, both checksums": seconds[read_bytes],
        "Example taken apart, key": seconds[read_records] - seconds[read_bytes],
        "joined: key checked, logits": seconds[join],
        "views": seconds[find_views],
        "decode what the box needs": seconds[decode],
        "resize, flip, into the batch": seconds[render] - seconds[decode],
    }
    parts["the rest"] = max(seconds[whole] - sum(parts.values()), 0.0)
    return {name: max(value, 0.0) for name, value in parts.items()}, seconds[decode_all]


def medians(works: list[Callable[[], None]], count: int) -> dict[Callable[[], None], float]:
    """Median seconds an image of each, measured in turn."""
    rounds: dict[Callable[[], None], list[float]] = {work: [] for work in works}
    for _ in range(ROUNDS):
        for work in works:
            begin = time.perf_counter()
            work()
            rounds[work].append((time.perf_counter() - begin) / count)
    return {work: statistics.median(values) for work, values in rounds.items()}


def draw(parts: dict[str, float], decoding: float, path: Path) -> None:
    """A stacked bar, and bare decoding below it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    start = 0.0
    for name, seconds in parts.items():
        axes.barh("ours, whole batches", seconds * 1e6, left=start * 1e6, label=f"{name} ({seconds * 1e6:.0f})")
        start += seconds
    axes.barh("bare full decode, Pillow", decoding * 1e6, color="0.7")
    axes.set_xlabel("microseconds an image, one core")
    axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
