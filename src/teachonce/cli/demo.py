"""The demo: all of it on real images that ship with a dependency, in a few minutes on two cores.

scikit-learn's handwritten digits (1,797 images, 8 x 8 px; Alpaydin & Kaynak 1998) become image files, TFRecords, a
teacher, two stores (the walkthrough's center view, and several stored crops), a verdict on each, merged TFRecords, and
one small student trained three ways at equal steps. Every step is the program that the command line calls, with its
command printed first, so that it can be repeated by hand.

The digits are easy and the validation split has 597 images: one more error is 0.17 points. The table therefore shows
the mean and the spread over seeds, and says nothing that the spread does not carry.
"""

from __future__ import annotations

import dataclasses
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from teachonce.cli.config import DemoConfig
from teachonce.errors import CheckError
from teachonce.extraction.config import ExtractConfig, VerifyConfig
from teachonce.extraction.extract import extract
from teachonce.extraction.verify import verify
from teachonce.interop.config import MergeConfig, RecordsConfig
from teachonce.interop.convert import convert_records
from teachonce.interop.merge import merge
from teachonce.options import command_line
from teachonce.records.discovery import open_records
from teachonce.rng import generator
from teachonce.storage.files import atomic_write, open_storage, write_json
from teachonce.store.store import Store
from teachonce.terminal import as_text, print_text
from teachonce.training.config import TrainConfig
from teachonce.training.train import train

SIDE_PX = 16
NUM_TRAIN = 1200
TEACHER = "timm:resnet10t"
STUDENT = "timm:test_resnet"
TEACHER_EPOCHS = 8
STUDENT_EPOCHS = 5
NUM_VIEWS = STUDENT_EPOCHS


@dataclass(frozen=True)
class Row:
    """One line of the table: a way to train the student, and its results over the seeds."""

    name: str
    top1: tuple[float, ...]
    num_bytes: int
    seconds: float


def demo(config: DemoConfig) -> None:
    """Run everything into ``config.out``; completed parts of an earlier, interrupted demo are kept."""
    start = time.monotonic()
    out = config.out
    images, records, teacher = out / "images", out / "records", out / "teacher"
    write_digits(images)
    for split, shards in (("train", 4), ("validation", 1)):
        _run("records", convert_records, RecordsConfig(images=images, out=records, split=split, shards=shards))
    # Digits are not mirrored, and a crop that loses half of one is another digit.
    crop: dict[str, Any] = {"crop_scale": (0.6, 1.0), "flip_prob": 0.0}
    common: dict[str, Any] = {
        "data": records,
        "offset": 1,
        "size": SIDE_PX,
        "eval_crop_frac": 1.0,
        "batch_size": 60,
        "warmup_epochs": 1.0,
        "device": "cpu",
    }
    _run("train", train, TrainConfig(student=TEACHER, out=teacher, epochs=TEACHER_EPOCHS, lr=0.05, **crop, **common))
    center, views, merged = out / "store-center", out / "store-views", out / "records-with-logits"
    extraction: dict[str, Any] = {"data": records, "teacher": f"run:{teacher}", "expect_top1": 0.9, "device": "cpu"}
    _run("extract", extract, ExtractConfig(out=center, **extraction))
    _run("extract", extract, ExtractConfig(out=views, policy="crop", views=NUM_VIEWS, **crop, **extraction))
    for store in (center, views):
        verdict = _run("verify", verify, VerifyConfig(store=store, data=records, device="cpu"))
        print_text(f"  {verdict.reason}: largest logit error {verdict.largest_error:.4g}")
        if not verdict.is_sound:
            raise CheckError(f"{store}: {verdict.reason}")
    _run("merge", merge, MergeConfig(store=center, data=records, out=merged))

    def students(name: str, folder: str, num_bytes: int, **options: Any) -> Row:
        top1, seconds = [], 0.0
        for seed in range(config.seeds):
            settings: dict[str, Any] = {**common, "lr": 0.1, "epochs": STUDENT_EPOCHS, "seed": seed, **options}
            path = out / f"student-{folder}-{seed}"
            result = _run("train", train, TrainConfig(student=STUDENT, out=path, **settings))
            top1.append(result["top1"])
            seconds += result["seconds"]
        return Row(name, tuple(top1), num_bytes, seconds / config.seeds)

    added = _folder_bytes(merged, "train") - _folder_bytes(records, "train")
    with_logits: dict[str, Any] = {"data": merged, "validation_data": records, "logits": "records"}
    rows = [
        students("labels only", "labels", 0, **crop),
        students("KD, image/logit (center view)", "records", added, **with_logits, **crop),
        students(f"KD, store ({NUM_VIEWS} stored views)", "views", Store(views).num_bytes(), store=(views,)),
    ]
    table = render_table(rows)
    with atomic_write(out / "table.txt") as file:
        file.write(table.encode())
    write_json(out / "table.json", [dataclasses.asdict(row) for row in rows])
    print_text(f"\n{table}")
    print_text(f"Everything is in {out}; the demo took {time.monotonic() - start:.0f} s. See:")
    print_text(
        f"  {out / 'student-views-0' / 'report.html'}   a student's curves; the teacher's: {teacher / 'report.html'}"
    )
    print_text(f"  {out / 'table.txt'}   this table")
    print_text(f"  teachonce inspect {views}   the teacher's logits, by shard")
    print_text(f"  teachonce inspect {merged}   the walkthrough's TFRecords")


def write_digits(folder: Path) -> None:
    """The digits as ``train`` and ``validation`` folders of grayscale JPEGs, 16 px a side; a random split by seed."""
    from sklearn.datasets import load_digits

    digits, storage = load_digits(), open_storage(folder)
    order = generator(0, "demo split").permutation(len(digits.target))
    for position, index in enumerate(order.tolist()):
        split = "train" if position < NUM_TRAIN else "validation"
        name = f"{split}/{digits.target[index]}/digit_{index:04d}.jpg"
        if storage.has(name):
            continue
        gray = Image.fromarray(np.minimum(digits.images[index] * 16, 255).astype(np.uint8))
        buffer = io.BytesIO()
        gray.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        with storage.put(name) as file:
            file.write(buffer.getvalue())


def render_table(rows: list[Row]) -> str:
    """The comparison as text, with what the spread allows to say."""
    lines = [f"{'the same student, equal steps':<32}  top-1 mean +- sd (seeds)       bytes   seconds"]
    for row in rows:
        spread = statistics.stdev(row.top1) if len(row.top1) > 1 else 0.0
        mean = f"{100 * statistics.mean(row.top1):.2f} +- {100 * spread:.2f} ({len(row.top1)})"
        lines.append(f"{row.name:<32}  {mean:<24}  {row.num_bytes:>10,}  {row.seconds:>8.1f}")
    lines += ["", _summarize(rows[0], max(rows[1:], key=lambda row: statistics.mean(row.top1))), ""]
    return as_text(lines)


def _summarize(labels: Row, best: Row) -> str:
    """Compare a row with labels only by Welch's t; no claim below 3 seeds or within the noise."""
    difference = 100 * (statistics.mean(best.top1) - statistics.mean(labels.top1))
    if min(len(best.top1), len(labels.top1)) < 3:
        return f"{best.name}: {difference:+.2f} points against labels only; too few seeds for a test."
    from scipy.stats import ttest_ind

    p_value = float(ttest_ind(best.top1, labels.top1, equal_var=False).pvalue)
    if p_value < 0.05:
        return f"{best.name}: {difference:+.2f} points against labels only (Welch's t-test, p = {p_value:.3f})."
    return (
        f"{best.name}: {difference:+.2f} points against labels only, within the noise of the seeds (p = {p_value:.2f})."
    )


def _run(command: str, program: Callable[[Any], Any], config: Any) -> Any:
    print_text(f"\n$ teachonce {command} {command_line(config)}")
    return program(config)


def _folder_bytes(folder: Path, split: str) -> int:
    return sum(shard.num_bytes for shard in open_records(folder, split).shards)
