"""Extraction against the teacher's bare forward, and the store against reading: ratios within one run.

    python -m benchmarks.extraction [--images N] [--teacher SPEC] [--seconds S] [--out FILE]

Synthetic photographs (``photographs.py``) in TFRecord shards. Extraction is compared by CPU time (``cpu_ratio.py``), on
one thread: what reading, decoding, encoding and writing cost beside the teacher's own work, which on a machine whose
cores are all busy is what they take from it. Reading is compared by the clock, in turn, several times.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.cpu_ratio import cpu_ratio
from benchmarks.photographs import write_photographs
from teachonce.codecs.dense import Float16Codec, Float32Codec, Int8Codec
from teachonce.engine.machine import num_cores
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.extraction.extractor import UnitExtractor
from teachonce.extraction.prepare import build_plan
from teachonce.extraction.units import all_units, bundle_units
from teachonce.models.classifier import load_model
from teachonce.records.discovery import open_records
from teachonce.store.begin import begin_store
from teachonce.store.store import Store
from teachonce.versions import library_versions

ROUNDS = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192, help="a multiple of the batch of 64")
    parser.add_argument("--teacher", default="torchvision:resnet18")
    parser.add_argument("--seconds", type=float, default=300, help="at most, for the comparison with the bare forward")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = measure(Path(folder), flags.images, flags.teacher, flags.seconds)
    print(table)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(table)


def measure(folder: Path, num_images: int, teacher: str, max_seconds: float) -> str:
    """The table as Markdown."""
    from safetensors.torch import save_file
    from torchvision.models import get_model

    torch.manual_seed(0)
    name = teacher.partition(":")[2]
    save_file(get_model(name).state_dict(), folder / "weights.safetensors")
    data = write_photographs(folder / "data", num_images)
    spec = f"{teacher},weights={folder / 'weights.safetensors'}"
    model = load_model(spec)
    batch = torch.zeros(64, model.preprocessing.size_px, model.preprocessing.size_px, 3, dtype=torch.uint8)
    source = open_records(data, "train")
    stores = iter(range(10_000))

    def bare_forward() -> int:
        for _ in range(num_images // 64):
            model.collect_logits(model.logits(batch))
        return num_images // 64 * 64

    def whole_extraction() -> int:
        """As a process does it that has loaded its teacher: read, decode, ask, encode, write, all units of a store."""
        config = ExtractConfig(data=data, teacher=spec, out=folder / f"store-{next(stores)}", device="cpu")
        plan = begin_store(config.out, build_plan(config, source, model), config.views_per_file)
        extractor = UnitExtractor(config.out, plan, source, model, 64, num_cores())
        for bundle in bundle_units(plan, all_units(plan), 64):
            extractor(bundle)
        return num_images

    def read_records() -> int:
        return sum(1 for shard in range(len(source.shards)) for _ in source.iter_shard(shard))

    def read_bytes() -> int:
        for shard in source.shards:
            assert shard.path is not None
            shard.path.read_bytes()
        return num_images

    # A second thread would spin while it waits for the first one, which is CPU time too.
    torch.set_num_threads(1)
    cost = cpu_ratio(bare_forward, whole_extraction, max_seconds=max_seconds)
    torch.set_num_threads(num_cores())
    lines = [
        f"# Extraction, {platform.machine()}, {num_cores()} cores",
        "",
        f"`python -m benchmarks.extraction --images {num_images} --teacher {teacher}`, {ROUNDS} pairs in turn.",
        ", ".join(f"{key} {value}" for key, value in library_versions().items()),
        "",
        f"CPU time of the bare forward / of the extraction of as many images: {cost}, aim 0.97.",
        "",
        "| what | against | ratio of images/s, median (least to most) |",
        "|---|---|---|",
        pair("records read, both CRCs and key", read_records, "reading the files' bytes", read_bytes),
    ]
    with contextlib.redirect_stderr(io.StringIO()):
        extract(ExtractConfig(data=data, teacher=spec, out=folder / "store", gate_samples=0, device="cpu"))
    store = Store(folder / "store")
    logits = store.read_logits(0, 0, slice(None))
    lines += ["", "| codec, 1000 classes | bytes a row | decode, us a row |", "|---|---|---|"]
    for codec in (Float32Codec(), Float16Codec(), Int8Codec()):
        columns = codec.encode_logits(np.repeat(logits, 64, axis=0)[:1024])
        size = sum(values.nbytes for values in columns.values()) / 1024
        seconds = median_seconds(partial(codec.decode_logits, columns))
        lines.append(f"| {codec.name} | {size:.0f} | {seconds / 1024 * 1e6:.1f} |")
    rows = np.random.default_rng(0).integers(0, len(logits), 2000)
    seconds = median_seconds(lambda: [store.read_logits(0, 0, [row]) for row in rows])
    lines.append(f"| int8 from the store, row by row |  | {seconds / 2000 * 1e6:.1f} |")
    return "\n".join(lines) + "\n"


def pair(name: str, ours: Callable[[], int], other_name: str, other: Callable[[], int]) -> str:
    """A row with the ratio of two rates, measured in turn."""
    ours(), other()
    ratios = []
    for _ in range(ROUNDS):
        ours_count, ours_seconds = timed(ours)
        other_count, other_seconds = timed(other)
        ratios.append((ours_count / ours_seconds) / (other_count / other_seconds))
    return f"| {name} | {other_name} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"


def timed(work: Callable[[], int]) -> tuple[int, float]:
    """(what it returned, seconds)."""
    start = time.perf_counter()
    count = work()
    return count, time.perf_counter() - start


def median_seconds(work: Callable[[], object], rounds: int = 9) -> float:
    """Median duration of ``work``."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
