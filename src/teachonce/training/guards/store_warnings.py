"""Guards: warnings, each with its measured reason, where distillation is about to cost more than it gives.

Nothing is forbidden and nothing is guessed. What can be measured before a training, from the store itself: the
teacher's accuracy on the views that the student will see, how much its targets say beyond the label, and the sizes of
the two. During it: whether the student has passed its teacher (``callbacks.TeacherPassed``). Whether KD hurts a student
is known only by training it without: that is ``teachonce ablate``.

Cho & Hariharan 2019, arXiv:1910.01348 (small students do not gain from the best teachers); Faghri et al. 2023,
arXiv:2303.08983 (MobileNetV2-0.25, 1.5 M parameters, loses 0.5 points by it). Nothing here needs torch.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from teachonce.codecs.softmax import log_softmax
from teachonce.inspection.costs import measure_variation
from teachonce.inspection.measures import read_is_mixed
from teachonce.records.source import NO_LABEL
from teachonce.rng import generator
from teachonce.store.store import Store

NUM_ROWS = 2048
"""Rows of the store that are looked at: the standard error of an accuracy is at most 1.1 points."""
LOW_TOP1 = 0.5
"""Top-1 on the training views below which a teacher contradicts more labels than it confirms."""
LITTLE_NON_TOP1_MASS = 0.02
"""Mean mass beyond the most likely class, at the training's temperature, below which targets are little but labels."""
SMALL_RATIO = 50
"""Parameters of the teacher for each of the student from which gains have been seen to turn into losses."""


NUM_BOUND_ROWS = 256
"""Rows of a store without samples whose bound is computed."""
MIN_JUDGED_ROWS = 16
"""Unmixed rows, of views that are mostly mixed, below which a teacher's accuracy on them says nothing."""


@dataclass(frozen=True)
class StoreStats:
    """What a store, or an online teacher, is about to teach, measured on a sample."""

    top1: float
    """Of the teacher, on the views that the student will see, where they have labels and no mix; NaN where none has."""
    label_nats: float
    """Cross-entropy of the labels under the teacher: how much it is surprised by them; of those of the same views whose
    class it knows."""
    non_top1_mass: float
    """Mean mass beyond the most likely class at the training's temperature."""
    num_rows: int
    num_judged: int
    """Of these the views with a label and without a mix, of which the first two are."""


def judge_labels(hits: float, nats: float, num_judged: int, num_known: int, num_mixed: int) -> tuple[float, float]:
    """(top-1, nats) of the ``num_judged`` views with a label and without a mix; NaN where they are too few to judge.

    A mixed view has no single label: a teacher that sees the partner's share in it is not wrong. The teacher has the
    label's class in ``num_known`` of them, of which ``nats`` are.
    """
    if num_judged == 0 or (num_mixed > 0 and num_judged < MIN_JUDGED_ROWS):
        return np.nan, np.nan
    return hits / num_judged, nats / num_known if num_known else np.nan


def measure_store_stats(store: Store, temperature: float) -> StoreStats:
    """Measure about ``NUM_ROWS`` (record, view), drawn over shards and views; mixed views are not judged by labels."""
    rng = generator(0, "guard")
    num_shards = len(store.shards)
    shards = np.unique(rng.integers(0, num_shards, 64)) if num_shards > 64 else np.arange(num_shards)
    per_shard = -(-NUM_ROWS // len(shards))
    hits = nats = non_top1 = 0.0
    total = num_judged = num_known = num_mixed = 0
    for shard in shards.tolist():
        num_records = store.shards[shard][1]
        view = int(rng.integers(store.num_views))
        rows = np.sort(rng.permutation(num_records)[:per_shard])
        labels = store.read_labels(shard)[rows]
        is_mixed = read_is_mixed(store, shard, view, rows)
        is_judged = (labels != NO_LABEL) & ~is_mixed
        labels = labels - store.class_space.offset
        logits = store.read_logits(shard, view, rows)
        softened = store.read_logits(shard, view, rows, temperature)
        hits += float(((logits.argmax(axis=1) == labels) & is_judged).sum())
        num_judged += int(is_judged.sum())
        num_mixed += int(is_mixed.sum())
        is_known = is_judged & (labels >= 0) & (labels < logits.shape[1])
        num_known += int(is_known.sum())
        log_probs = log_softmax(logits)[is_known]
        nats -= float(np.take_along_axis(log_probs, labels[is_known, None], axis=1).sum())
        non_top1 += float((1 - np.exp(log_softmax(softened, temperature).max(axis=1))).sum())
        total += len(rows)
    judged = judge_labels(hits, nats, num_judged, num_known, num_mixed)
    return StoreStats(*judged, non_top1 / total, total, num_judged)


def warn_of_temperature(store: Store, temperature: float) -> None:
    """Warn of a temperature outside of what the store's codec promises, with the error there.

    Measured on the store's samples of logits before the codec; in a store that has none, ``Codec.variation_bound`` of
    some of its rows.
    """
    promised = store.codec.promised_temperatures
    if promised is None or promised[0] <= temperature <= promised[1]:
        return
    num_classes = store.class_space.num_classes
    variation = measure_variation(store, temperature)
    if variation is not None:
        found = (
            f"{variation.mean():.2g} on average and {variation.max():.2g} at most, measured on {len(variation)} views"
        )
    else:
        rows = np.arange(min(store.shards[0][1], NUM_BOUND_ROWS))
        bound = store.codec.variation_bound(store.read_rows(0, 0, rows), temperature).max()
        found = (
            f"at most {bound:.2g}, proven for {len(rows)} views" if bound < 1 else "not bounded by the stored values"
        )
    warnings.warn(
        f"{store.path}: --kd-temp {temperature:g} is outside of T = {promised[0]:g} to {promised[1]:g}, for which "
        f"codec {store.codec.name} has {store.codec.promise}; at T = {temperature:g}, with {num_classes:,} "
        f"classes, the total variation is {found}; extract with --codec float16, or give a "
        f"{'smaller' if temperature > promised[1] else 'larger'} --kd-temp",
        stacklevel=2,
    )


def warn_before_training(store: Store, stats: StoreStats, temperature: float, num_student: int) -> None:
    """Warn of what the measurement shows; ``num_student`` is the student's number of parameters."""
    warn_of_temperature(store, temperature)
    warn_of_teacher(
        str(store.path),
        stats,
        temperature,
        num_classes=store.class_space.num_classes,
        num_teacher=store.plan.teacher.get("num_parameters"),
        num_student=num_student,
    )


def warn_of_teacher(
    name: str, stats: StoreStats, temperature: float, *, num_classes: int, num_teacher: int | None, num_student: int
) -> None:
    """Warn of what was measured of a store, or of an online teacher; both numbers are of parameters."""
    judged = f"{name}: on {stats.num_judged:,} of the training views the teacher has top-1 {stats.top1:.3f}"
    if np.isnan(stats.label_nats):
        judged += " and knows the class of none of the labels"
    else:
        judged += f" and gives the labels {stats.label_nats:.2f} nats (uniform: {np.log(num_classes):.2f})"
    if stats.top1 < LOW_TOP1:
        warnings.warn(
            f"{judged}: it contradicts them more often than it agrees with them; try larger crops or another teacher, "
            "and compare with labels alone (teachonce ablate)",
            stacklevel=3,
        )
    elif stats.label_nats > np.log(num_classes):
        warnings.warn(
            f"{judged}: it is mostly right, but so sure where it is wrong that it knows the labels less than one that "
            "guesses; try a larger --kd-temp, and compare with labels alone (teachonce ablate)",
            stacklevel=3,
        )
    elif stats.non_top1_mass < LITTLE_NON_TOP1_MASS:
        warnings.warn(
            f"{name}: on {stats.num_rows:,} of the training views the teacher gives only {stats.non_top1_mass:.4f} of "
            f"the probability to all other classes at temperature {temperature:g}: its targets are nearly one-hot; try "
            "a larger --kd-temp",
            stacklevel=3,
        )
    if num_teacher and num_teacher > SMALL_RATIO * num_student:
        warnings.warn(
            f"{name}: the student has {num_student / 1e6:.2f} M parameters, the teacher {num_teacher / 1e6:.1f} "
            f"M, {num_teacher / num_student:.0f} times as many: such small students have become worse with "
            "distillation; compare with labels alone and with a smaller teacher (teachonce ablate)",
            stacklevel=3,
        )
