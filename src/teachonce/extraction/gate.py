"""The gate: is this the teacher that its owner believes it to be, before hours are spent?

The teacher is scored on labeled records through the extraction path: same reader, decoder, preprocessing, precision.
A low score is nearly always one of a few mistakes, and each leaves a mark that can be tried: labels shifted by one
(1000 against 1001 classes), another order of the classes, other mean and std, another input size.
The one that explains most is named, with the setting that fixes it.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.engine.machine import num_cores
from teachonce.engine.prefetch import prefetch
from teachonce.engine.progress import phase
from teachonce.errors import CheckError
from teachonce.models.classifier import Classifier
from teachonce.pixels.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, ValueRange
from teachonce.pixels.render import render_center
from teachonce.records.class_space import describe_low_top1
from teachonce.records.sample import sample_labeled
from teachonce.records.source import Record, RecordSource
from teachonce.rng import generator
from teachonce.terminal import print_note

HALF = (0.5, 0.5, 0.5)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SIZES_PX = (160, 192, 224, 227, 240, 256, 288, 299, 320, 331, 380, 384, 448)
LOOK_BELOW = 0.5
"""Top-1 below which the cheap trials are made unasked: few teachers of so little accuracy are worth distilling."""
MIN_RECORDS_PER_CLASS = 4
"""Records of a class, on average, below which a learned class order would be chance."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """How a teacher is scored before the work starts, and what is expected of it."""

    num_samples: int
    """Labeled records that it is scored on."""
    expect_top1: float | None
    """The least top-1, 0..1; None: only a score near chance, or a low one, is warned of."""
    batch_size: int
    seed: int
    """Of the sample."""
    data: Path
    """Where the records are, for messages."""

    def check(self, teacher: Classifier, source: RecordSource, offset: int) -> float:
        """The teacher's top-1 (NaN without labels); CheckError below ``expect_top1``, with the likely mistake.

        ``offset`` is the data label of the teacher's class 0.
        """
        records: list[Record] = []
        num_read = 0
        if source.labeled != "none":
            records, num_read = sample_labeled(source, self.num_samples, self.seed)
        if not records:
            without = f"none of {num_read:,} sampled records has a label" if num_read else "the data has no labels"
            print_note(f"gate: skipped, {without} to score the teacher by")
            return math.nan
        labels = np.array([record.label for record in records])
        with phase("gate", f"running the teacher on {len(records)} records"):
            logits = score_records(teacher, records, self.batch_size)
        top1 = _top1(logits, labels, offset)
        print_note(f"gate: top-1 {top1:.3f} on {len(records)} records")
        if self.expect_top1 is None:
            if low := describe_low_top1(top1, labels, teacher.num_classes):
                warnings.warn(
                    f"top-1 {top1:.3f} of {teacher.spec} on {len(records)} records is {low}: are --offset "
                    "and the class order right? with --expect-top1 the command stops here and looks for the cause",
                    stacklevel=2,
                )
            elif top1 < LOOK_BELOW:
                self._look_for_better(teacher, records, labels, logits, offset)
            return top1
        if top1 >= self.expect_top1:
            return top1
        found = diagnose(
            teacher, records, labels, logits, offset, expect_top1=self.expect_top1, batch_size=self.batch_size
        )
        raise CheckError(
            f"gate: top-1 {top1:.3f} of {teacher.spec} on {len(records)} records of {self.data}, expected at least "
            f"{self.expect_top1}; {found}"
        )

    def _look_for_better(
        self,
        teacher: Classifier,
        records: list[Record],
        labels: NDArray[np.int64],
        logits: NDArray[np.float32],
        offset: int,
    ) -> None:
        """Warn where another mean and std, or a shift of the labels, makes a mediocre teacher a clearly better one."""
        top1 = _top1(logits, labels, offset)
        trials = _shifted(logits, labels, offset)
        others, _ = _try_others(teacher, _other_inputs(teacher.preprocessing), records, labels, offset, self.batch_size)
        score, phrase = max(trials + others, key=lambda trial: trial[0])
        if score >= _convincing(top1, len(records)):
            warnings.warn(
                f"top-1 {top1:.3f} of {teacher.spec} on {len(records)} records may have a cause: {phrase} gives "
                f"{score:.3f}; with --expect-top1 the command stops here and looks further",
                stacklevel=3,
            )


def score_records(teacher: Classifier, records: list[Record], batch_size: int) -> NDArray[np.float32]:
    """Teacher logits [N, C] of records seen through the teacher's own preprocessing."""

    def render(record: Record) -> NDArray[Any]:
        return render_center([record], teacher.preprocessing)

    rendered = prefetch(records, render, threads=num_cores(), ahead=2 * batch_size)
    parts = []
    while batch := list(islice(rendered, batch_size)):
        # Filled up with repeats, as in an extraction: a compiled teacher is made for one batch size.
        batch += batch[-1:] * (batch_size - len(batch))
        parts.append(teacher.collect_logits(teacher.logits(torch.from_numpy(np.concatenate(batch)))))
    return np.concatenate(parts)[: len(records)]


def diagnose(
    teacher: Classifier,
    records: list[Record],
    labels: NDArray[np.int64],
    logits: NDArray[np.float32],
    offset: int,
    *,
    expect_top1: float,
    batch_size: int,
) -> str:
    """Which mistake explains the low score best, as a phrase that names the setting to change."""
    top1 = _top1(logits, labels, offset)
    trials = _shifted(logits, labels, offset)
    order = _order_score(logits, labels)
    if order is not None:
        trials.append((order, "a different class order; check the labels file, or the teacher's class list"))
    num_failed = 0
    if max(score for score, _ in trials) < expect_top1:
        # Only now the dearer trials: each of them runs the teacher again.
        print_note("gate: below --expect-top1; trying other mean, std and sizes to find the cause")
        used = teacher.preprocessing
        others = chain(_other_inputs(used), _other_sizes(used))
        found, num_failed = _try_others(teacher, others, records, labels, offset, batch_size)
        trials += found
    score, phrase = max(trials, key=lambda trial: trial[0])
    if score >= _convincing(top1, len(records)):
        still = "" if score >= expect_top1 else ": nearer, but not yet what is expected; more than that is different"
        return f"the cause is probably {phrase}, which gives {score:.3f}{still}"
    unable = f" ({num_failed} trials could not be run with this model)" if num_failed else ""
    tried = ["labels shifted by one", *(["a different class order"] if order is not None else [])]
    return (
        f"tried: {', '.join(tried)}, other mean and std, other sizes{unable}; none of them explains it; check "
        "that weights and data belong together"
    )


def _top1(logits: NDArray[np.float32], labels: NDArray[np.int64], offset: int) -> float:
    return float((logits.argmax(axis=1) + offset == labels).mean())


def _convincing(top1: float, count: int) -> float:
    # Three standard errors above the score itself, and a clear step: the best of many trials is biased upwards.
    return top1 + max(0.05, 3 * np.sqrt(max(top1, 1 / count) * (1 - top1) / count))


def _shifted(logits: NDArray[np.float32], labels: NDArray[np.int64], offset: int) -> list[tuple[float, str]]:
    return [
        (_top1(logits, labels, offset + shift), f"labels shifted by one (--offset {offset + shift})")
        for shift in (-1, 1)
    ]


def _try_others(
    teacher: Classifier,
    others: Iterable[tuple[Preprocessing, str]],
    records: list[Record],
    labels: NDArray[np.int64],
    offset: int,
    batch_size: int,
) -> tuple[list[tuple[float, str]], int]:
    """Top-1 with each other preprocessing, and with how many the model does not run."""
    trials, num_failed = [], 0
    for preprocessing, phrase in others:
        other = dataclasses.replace(teacher, preprocessing=preprocessing)
        try:
            logits = score_records(other, records, batch_size)
        except Exception:
            # A model of fixed input size refuses another with an error of its library's own, of any class; what the
            # other trials find is worth more than that.
            num_failed += 1
            continue
        trials.append((_top1(logits, labels, offset), phrase))
    return trials, num_failed


def _order_score(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float | None:
    """Top-1 on one half of the records when each predicted class is mapped to the label it had most often in the
    other."""
    if len(labels) < MIN_RECORDS_PER_CLASS * len(np.unique(labels)):
        return None
    # Halves at random: records sorted by class would put other classes into each half.
    mixed = generator(0, "gate order").permutation(len(labels))
    predicted, labels = logits.argmax(axis=1)[mixed], labels[mixed]
    met = np.zeros((logits.shape[1], int(labels.max()) + 1), np.int64)
    np.add.at(met, (predicted[::2], labels[::2]), 1)
    return float((met.argmax(axis=1)[predicted[1::2]] == labels[1::2]).mean())


def _other_inputs(used: Preprocessing) -> Iterator[tuple[Preprocessing, str]]:
    inputs: list[tuple[tuple[float, float, float], tuple[float, float, float], ValueRange, str]] = [
        (IMAGENET_MEAN, IMAGENET_STD, "unit", "ImageNet's mean and std"),
        (HALF, HALF, "unit", "values in -1..1"),
        (ZERO, ONE, "unit", "values in 0..1"),
        (ZERO, ONE, "byte", "values in 0..255"),
    ]
    for mean, std, value_range, name in inputs:
        other = dataclasses.replace(used, mean=mean, std=std, value_range=value_range)
        if other != used:
            setting = f"mean={'/'.join(map(str, mean))},std={'/'.join(map(str, std))},range={value_range}"
            yield other, f"a wrong mean/std ({name}: add ',{setting}' to --teacher)"


def _other_sizes(used: Preprocessing) -> Iterator[tuple[Preprocessing, str]]:
    for size_px in SIZES_PX:
        if size_px != used.size_px:
            yield used.with_size(size_px), f"a wrong size (add ',size={size_px}' to --teacher)"
