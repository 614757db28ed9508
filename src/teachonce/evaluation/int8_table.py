"""What quantization costs and brings, as one table and in words.

A loss of accuracy is compared with two things: a point, which is what 8 bits usually stay within, and the noise of the
images that it was measured on (the records that only one of the two gets right, as in McNemar's test; the interval is
Bonett and Price's, which has a width where there are none). A loss is said
where it is one, in capitals, because a table of six columns is looked at for its last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from teachonce.evaluation.findings.paired import ClassChange
from teachonce.evaluation.findings.proportions import paired_difference
from teachonce.evaluation.findings.text import describe_changes
from teachonce.records.class_space import shows_top5
from teachonce.terminal import as_text

MAX_LOSS_POINTS = 1.0
"""Points of top-1 beyond which the verdict is a warning."""
CLASSES_SHOWN = 5
"""Classes that lose most."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One file, measured; accuracies and agreements as fractions."""

    name: str
    top1: float
    top5: float
    agreement_teacher: float | None
    """How often it has the teacher's most likely class; None without a teacher."""
    agreement_float: float
    """How often it has the float file's."""
    num_bytes: int
    latency_ms: float
    """Median of single images, one thread, without decoding."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Float and int8, on the same images."""

    float32: Measurement
    int8: Measurement
    num_records: int
    """Validation records that accuracies and the agreement with the float file are of."""
    num_classes: int
    only_float_right: int
    only_int8_right: int
    class_changes: tuple[ClassChange, ...]
    """Classes in which int8 (``only_model``) or float (``only_other``) is right more often, the largest loss first."""
    weight_bits: int
    num_latency_runs: int
    teacher: str | None
    """Whose logits the agreement is with."""
    num_teacher_records: int

    @property
    def top1_change_points(self) -> float:
        """int8's top-1 less float's, in points."""
        return 100 * (self.only_int8_right - self.only_float_right) / self.num_records

    @property
    def noise_points(self) -> float:
        """How far the 95 % interval of that change reaches, to its farther side."""
        found = paired_difference(self.only_int8_right, self.only_float_right, self.num_records)
        return 100 * max(found.high - found.value, found.value - found.low)

    @property
    def latency_ratio(self) -> float:
        """int8's time over float's."""
        return self.int8.latency_ms / self.float32.latency_ms

    def to_json(self) -> dict[str, Any]:
        """Everything, with what follows from it."""
        return {
            **asdict(self),
            "top1_change_points": self.top1_change_points,
            "noise_points": self.noise_points,
            "latency_ratio": self.latency_ratio,
        }


def render_comparison(found: Comparison) -> str:
    """A Markdown table, and below it what it says."""
    head = ["file", "top-1", "top-5", "agrees with the teacher", "agrees with float", "MB", "ms an image", "ratio"]
    has_top5 = shows_top5(found.num_classes)
    if not has_top5:
        head.remove("top-5")
    if found.teacher is None:
        head.remove("agrees with the teacher")
    rows = [head]
    for row in (found.float32, found.int8):
        teacher = [] if row.agreement_teacher is None else [f"{100 * row.agreement_teacher:.2f}"]
        rows.append(
            [
                row.name,
                f"{100 * row.top1:.2f}",
                *([f"{100 * row.top5:.2f}"] if has_top5 else []),
                *teacher,
                f"{100 * row.agreement_float:.2f}",
                f"{row.num_bytes / 1e6:.3f}",
                f"{row.latency_ms:.3f}",
                f"{row.latency_ms / found.float32.latency_ms:.2f}",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return as_text([*lines, "", *find_verdicts(found)])


def find_verdicts(found: Comparison) -> list[str]:
    """The table in sentences, losses first."""
    change = f"{found.top1_change_points:+.2f} +- {found.noise_points:.2f} points of top-1"
    verdicts = [f"int8: {change} on {found.num_records:,} records."]
    if found.top1_change_points < -MAX_LOSS_POINTS:
        bits = "7 instead of --weight-bits 8" if found.weight_bits == 8 else "--weight-bits 8 on a phone or with VNNI"
        verdicts = [
            f"int8 LOSES ACCURACY: {change} on {found.num_records:,} records, more than {MAX_LOSS_POINTS:g}; "
            f"check it before you ship it. More --calibration-images, --calibration percentile or {bits} may help."
        ]
    verdicts += _describe_classes(found.class_changes)
    if found.latency_ratio > 1:
        verdicts.append(f"int8 IS SLOWER here, {found.latency_ratio:.2f} of float's time; a phone's CPU may differ.")
    verdicts.append(
        f"Times: median of {found.num_latency_runs} single images each, alternating, one thread of this CPU, ONNX "
        "Runtime."
    )
    if found.teacher is not None:
        verdicts.append(f"Teacher: {found.teacher}, {found.num_teacher_records:,} records.")
    return verdicts


def _describe_classes(changes: Sequence[ClassChange]) -> list[str]:
    """Which classes lose most, those beyond chance in capitals; nothing where none loses."""
    lost = [change for change in changes if change.net < 0]
    beyond = [change for change in lost if change.is_beyond_chance]
    if beyond:
        return [f"CLASSES THAT LOSE beyond chance: {describe_changes(beyond, CLASSES_SHOWN)}."]
    if lost:
        return [f"Classes that lose most, all within chance: {describe_changes(lost, CLASSES_SHOWN)}."]
    return []
