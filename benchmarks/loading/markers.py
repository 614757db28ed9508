"""Our loader on photographs with restart markers against the same photographs without: CPU time of batches in turn.

    python -m benchmarks.loading.markers (--work DIR | --images DIR_OR_TAR) [--rounds 12] [--batches 4] [--teacher SPEC]

Both read TFRecords, check them, join them with one store (made of the photographs without markers: the others are found
by the key of their original), decode and resize stored crops in batches of 64; views and pixels are the same, which is
checked. One process, one thread: a batch of the one, then a batch of the other with the same records, and of each its
CPU time (user + system). What others do on the machine at the same time touches that less than seconds on the clock,
and touches both alike. A round is some batches of each; its ratio is quoted, and so is decoding and resizing alone.

With ``--teacher``, extraction of one crop view a record too, on two threads of decoding: it gains what decoding is of
the work. And decoding alone there, as ``extract --profile`` counts it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teachonce.data.dataset import KDDataset
from teachonce.data.stored_logits import StoredLogits
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extractor import UnitExtractor
from teachonce.extraction.prepare import build_plan
from teachonce.extraction.units import all_units, bundle_units
from teachonce.models.classifier import load_model
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.render import RecordViews, ViewReader, render_views
from teachonce.records.discovery import open_records
from teachonce.store.begin import begin_store
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews

BATCH_SIZE = 64
SIZE_PX = 224
EXTRACTION, RENDERING = "extraction of one crop view", "of it decoding and resizing, seconds of its threads"
PIPELINE, DECODING = "read, checked, joined, decoded, in batches", "decoded and resized alone"


def batches_of(work: Path, folder: str) -> Iterator[dict[str, Any]]:
    """Batches of WORK/folder joined with WORK/store, for ever, in one order."""
    store = Store(work / "store")
    dataset = KDDataset(open_records(work / folder, "train"), StoredViews(store), StoredLogits([store]), size=SIZE_PX)
    epoch = 0
    while True:
        yield from dataset.batches(batch_size=BATCH_SIZE, epoch=epoch, seed=0, num_workers=0, drop_last=True)
        epoch += 1


def decoded_of(work: Path, folder: str) -> Iterator[dict[str, Any]]:
    """The pixels alone of records that are read already."""
    source, store = open_records(work / folder, "train"), Store(work / "store")
    reader = ViewReader(source, StoredViews(store))
    locations = source.locate_all(np.arange(min(source.num_records, 8 * BATCH_SIZE)))
    blocks: list[RecordViews] = [
        reader.read(locations[first : first + BATCH_SIZE], 0) for first in range(0, len(locations), BATCH_SIZE)
    ]
    preprocessing = Preprocessing(size_px=SIZE_PX)
    out = np.empty((BATCH_SIZE, SIZE_PX, SIZE_PX, 3), np.uint8)
    while True:
        for block in blocks:
            render_views(block, preprocessing, out=out[: len(block)])
            yield {"pixels": torch.from_numpy(out[: len(block)])}


def compare(
    plain: Iterator[dict[str, Any]], marked: Iterator[dict[str, Any]], rounds: int, batches: int
) -> list[float]:
    """CPU time without markers over that with them, one a round; AssertionError where pixels differ."""
    ratios = []
    for number in range(rounds + 1):
        seconds = [0.0, 0.0]
        for _ in range(batches):
            pixels = []
            for way, batch in enumerate((plain, marked)):
                start = time.process_time()
                found = next(batch)
                seconds[way] += time.process_time() - start
                pixels.append(found["pixels"])
            assert torch.equal(*pixels), "the rewritten photographs give other pixels"
        if number:  # the first one warms up
            ratios.append(seconds[0] / seconds[1])
    return ratios


def measure(work: Path, rounds: int, batches: int) -> dict[str, list[float]]:
    """The ratios of the pipeline and of decoding alone."""
    return {
        PIPELINE: compare(batches_of(work, "epoch"), batches_of(work, "marked-epoch"), rounds, batches),
        DECODING: compare(decoded_of(work, "epoch"), decoded_of(work, "marked-epoch"), rounds, batches),
    }


def compare_extractions(work: Path, stores: Path, teacher: str, rounds: int) -> dict[str, list[float]]:
    """CPU time without markers over that with them, of whole extractions of one view in turn, and of what decodes."""
    model = load_model(teacher, device="cpu")
    ratios: dict[str, list[float]] = {EXTRACTION: [], RENDERING: []}
    for number in range(rounds + 1):
        seconds: list[tuple[float, float]] = []
        for folder in ("records", "marked"):
            source, out = open_records(work / folder, "train"), stores / f"{folder}-{number}"
            config = ExtractConfig(data=work / folder, teacher=teacher, out=out, policy="crop", views=1, device="cpu")
            plan = begin_store(out, build_plan(config, source, model), config.views_per_file)
            extractor, rendering = UnitExtractor(out, plan, source, model, BATCH_SIZE, num_threads=2), 0.0
            start = time.process_time()
            for bundle in bundle_units(plan, all_units(plan), BATCH_SIZE):
                extractor(bundle)
                rendering += extractor.seconds.look
            seconds.append((time.process_time() - start, rendering))
        if number:
            for name, (plain, marked) in zip(ratios, zip(*seconds, strict=True), strict=True):
                ratios[name].append(plain / marked)
    return ratios


def describe(ratios: list[float]) -> str:
    """Median (least to most), and the 95 % interval of the mean."""
    mean, error = statistics.fmean(ratios), statistics.stdev(ratios) / len(ratios) ** 0.5
    return (
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), "
        f"mean {mean:.3f} +- {1.96 * error:.3f}"
    )


def main() -> None:
    """Measure what is in --work, or what is prepared of --images, on one core; the last line is JSON."""
    from benchmarks.loading.data import prepare_photographs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--work", type=Path, help="folder that benchmarks.loading prepared")
    group.add_argument("--images", type=Path, help="folder or tar archive of CLASS/NAME.jpg")
    parser.add_argument("--rounds", type=int, default=12, help="2 or more")
    parser.add_argument("--batches", type=int, default=4, help="of each in a round")
    parser.add_argument("--teacher", help="SPEC of a teacher: measure extraction as well")
    flags = parser.parse_args()
    if flags.rounds < 2:
        parser.error(f"--rounds {flags.rounds}: expected 2 or more, of which there is an interval")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = flags.work or Path(folder)
        if flags.work is None:
            prepare_photographs(work, None, flags.images)
        measured = measure(work, flags.rounds, flags.batches)
        if flags.teacher:
            measured |= compare_extractions(work, Path(folder) / "stores", flags.teacher, max(2, flags.rounds // 3))
    for name, ratios in measured.items():
        print(f"{name}: {describe(ratios)}", file=sys.stderr)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
