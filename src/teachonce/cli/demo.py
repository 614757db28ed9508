"""The demo: all of it on real images that ship with a dependency, in a few minutes on two cores.

scikit-learn's handwritten digits (1,797 images, 8 x 8 px; Alpaydin & Kaynak 1998) become image files, TFRecords, a
teacher, two stores (the walkthrough's center view, and several stored crops), a verdict on each, merged TFRecords, and
one small student trained in two comparisons, each at equal steps. Every step is the program that the command line
calls, with its command printed first, so that it can be repeated by hand.

With all labels there is little to gain: the digits are easy, and of 597 validation images one more error is 0.17
points. With labels for 100 of the pictures there is: the student that learns from the teacher's stored views of all
1,200, without a single label, is far ahead of the one that learns from the 100. The tables show the mean and the spread
over seeds, and say nothing that the spread does not carry.
"""

from __future__ import annotations

import dataclasses
import io
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from teachonce.pages.charts import BLUE, ORANGE, draw_svg
from teachonce.pages.page import render_page
from teachonce.records.discovery import open_records
from teachonce.rng import generator
from teachonce.storage.files import atomic_write, open_storage, write_json
from teachonce.store.store import Store
from teachonce.terminal import as_text, print_text
from teachonce.training.config import TrainConfig
from teachonce.training.train import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE_PX = 16
NUM_DIGITS, NUM_CLASSES, NUM_TRAIN = 1797, 10, 1200
TEACHER = "timm:resnet10t"
STUDENT = "timm:test_resnet"
TEACHER_EPOCHS = 8
STUDENT_EPOCHS = 5
NUM_VIEWS = STUDENT_EPOCHS
NUM_LABELED, FEW_BATCH_SIZE = 100, 50
"""Of the second comparison: both sizes divide NUM_TRAIN, so that epochs of either data have equal steps."""
MIN_SEEDS = 3
"""Below, nothing is said of their spread."""
PAGE_NAME = "demo.html"


@dataclass(frozen=True)
class Row:
    """One line of the table: a way to train the student, and its results over the seeds."""

    name: str
    top1: tuple[float, ...]
    num_bytes: int
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Students of equal steps; the best of the other rows is compared with the first."""

    title: str
    rows: tuple[Row, ...]


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

    def few(name: str, folder: str, num_bytes: int, **options: Any) -> Row:
        last = {"batch_size": FEW_BATCH_SIZE, "validation_epochs": options["epochs"]}
        return students(name, folder, num_bytes, **last, **options)

    added = _folder_bytes(merged, "train") - _folder_bytes(records, "train")
    with_logits: dict[str, Any] = {"data": merged, "validation_data": records, "logits": "records"}
    num_bytes = Store(views).num_bytes()
    with_all_labels = (
        students("labels only", "labels", 0, **crop),
        students("KD, image/logit (center view)", "records", added, **with_logits, **crop),
        students(f"KD, store ({NUM_VIEWS} stored views)", "views", num_bytes, store=(views,)),
    )
    labeled, few_records = out / "images-labeled", out / "records-labeled"
    write_labeled(images, labeled)
    _run("records", convert_records, RecordsConfig(images=labeled, out=few_records, split="train", shards=1))
    on_few = {"data": few_records, "validation_data": records}
    with_few_labels = (
        few(f"{NUM_LABELED} labels", "few", 0, epochs=STUDENT_EPOCHS * NUM_TRAIN // NUM_LABELED, **on_few, **crop),
        few(
            "no labels, stored views of all", "none", num_bytes, epochs=STUDENT_EPOCHS, store=(views,), label_weight=0.0
        ),
    )
    comparisons = (
        Comparison(f"All {NUM_TRAIN:,} labels", with_all_labels),
        Comparison(f"{NUM_LABELED} labels, or none and the teacher", with_few_labels),
    )
    table = "\n".join(render_table(comparison) for comparison in comparisons)
    with atomic_write(out / "table.txt") as file:
        file.write(table.encode())
    write_json(out / "table.json", [dataclasses.asdict(comparison) for comparison in comparisons])
    with atomic_write(out / PAGE_NAME) as file:
        file.write(render(comparisons).encode())
    print_text(f"\n{table}")
    print_text(f"Everything is in {out}; the demo took {time.monotonic() - start:.0f} s. See:")
    print_text(f"  {out / PAGE_NAME}   both comparisons, drawn")
    print_text(
        f"  {out / 'student-views-0' / 'report.html'}   a student's curves; the teacher's: {teacher / 'report.html'}"
    )
    print_text(f"  {out / 'table.txt'}   these tables")
    print_text(f"  teachonce inspect {shlex.quote(str(views))}   the teacher's logits, by shard")
    print_text(f"  teachonce inspect {shlex.quote(str(merged))}   the walkthrough's TFRecords")


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


def write_labeled(images: Path, folder: Path) -> None:
    """The first training images of each class in order of their names, NUM_LABELED in all, as a folder of their own."""
    source, target = open_storage(images), open_storage(folder)
    for label in range(NUM_CLASSES):
        names = sorted(f"train/{label}/{name}" for name in source.list_folder(f"train/{label}").files)
        for name in names[: NUM_LABELED // NUM_CLASSES]:
            if not target.has(name):
                with target.put(name) as file:
                    file.write(source.read(name))


def render_table(comparison: Comparison) -> str:
    """A comparison as text, with what the spread allows to say."""
    lines = [
        f"{comparison.title}; the same student, equal steps",
        f"{'':<32}  top-1 mean +- sd (seeds)       bytes   seconds",
    ]
    for row in comparison.rows:
        top1 = f"{_mean(row)} ({len(row.top1)})"
        lines.append(f"{row.name:<32}  {top1:<24}  {row.num_bytes:>10,}  {row.seconds:>8.1f}")
    lines += ["", summarize(comparison), ""]
    return as_text(lines)


def render(comparisons: Sequence[Comparison]) -> str:
    """The page: a chart, and each table with what follows from it."""
    shown = [
        {
            "title": comparison.title,
            "rows": [
                (row.name, _mean(row), len(row.top1), f"{row.num_bytes:,}", f"{row.seconds:.1f}")
                for row in comparison.rows
            ],
            "verdict": summarize(comparison),
        }
        for comparison in comparisons
    ]
    rows = [row for comparison in comparisons for row in comparison.rows]
    described = "; ".join(f"{row.name}: {_mean(row)} %" for row in rows)
    chart = draw_svg(
        partial(_draw, comparisons), size_inches=(4.1, 0.8 + 0.36 * len(rows)), name="demo", description=described
    )
    return render_page(
        "cli/templates/demo.html.jinja",
        chart=chart,
        comparisons=shown,
        num_train=f"{NUM_TRAIN:,}",
        num_validation=NUM_DIGITS - NUM_TRAIN,
        student=STUDENT,
        teacher=TEACHER,
    )


def _draw(comparisons: Sequence[Comparison], figure: Figure) -> None:
    axes = figure.subplots()
    names: list[str] = []
    for comparison, color in zip(comparisons, (BLUE, ORANGE), strict=True):
        for row in comparison.rows:
            top1 = [100 * value for value in row.top1]
            at = len(names)
            axes.plot(top1, [at] * len(top1), "o", color=color, alpha=0.45, markersize=4, markeredgewidth=0)
            if (half := _half_interval(top1)) is not None:
                axes.errorbar(statistics.mean(top1), at, xerr=half, color=color, capsize=4, linewidth=1.6)
            names.append(row.name)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("top-1 in %")
    axes.grid(axis="x")


def _half_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean (Student's t); None for fewer than three values."""
    if len(values) < MIN_SEEDS:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def _mean(row: Row) -> str:
    spread = statistics.stdev(row.top1) if len(row.top1) > 1 else 0.0
    return f"{100 * statistics.mean(row.top1):.2f} +- {100 * spread:.2f}"


def summarize(comparison: Comparison) -> str:
    """The best row against the first one by Welch's t; no claim below 3 seeds or within the noise."""
    first, *others = comparison.rows
    best = max(others, key=lambda row: statistics.mean(row.top1))
    difference = 100 * (statistics.mean(best.top1) - statistics.mean(first.top1))
    start = f"{best.name}: {difference:+.2f} points against {first.name}"
    if min(len(best.top1), len(first.top1)) < MIN_SEEDS:
        return f"{start}; too few seeds for a test."
    from scipy.stats import ttest_ind

    found = ttest_ind(best.top1, first.top1, equal_var=False)
    low, high = (100 * float(end) for end in found.confidence_interval(0.95))
    measured = f"95 % interval {low:+.2f} to {high:+.2f}, Welch's t-test, p = {float(found.pvalue):.2g}"
    return f"{start} ({measured})." if found.pvalue < 0.05 else f"{start}, within the noise of the seeds ({measured})."


def _run(command: str, program: Callable[[Any], Any], config: Any) -> Any:
    print_text(f"\n$ teachonce {command} {command_line(config)}")
    return program(config)


def _folder_bytes(folder: Path, split: str) -> int:
    return sum(shard.num_bytes for shard in open_records(folder, split).shards)
