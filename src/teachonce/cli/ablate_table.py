"""What an ablation found, as a table with intervals and as a picture.

Arms are compared with labels only, or where it is not there with the first one, by the differences of equal seeds; the
interval is Student's t over the seeds, and all intervals of a column hold together with 95 % (Bonferroni): of ten arms
that do nothing, one would otherwise be found to help or to hurt every other time. An arm that loses beyond its interval
gets a warning in words: distillation that hurts should not have to be found in a column.

Seeds say nothing of the images that happen to be in the validation split, which all arms and seeds share; how far the
accuracy on all such images may be from the one on these stands beside them (Wilson's interval).
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from teachonce.evaluation.findings.proportions import wilson_interval
from teachonce.pages.charts import LINE, draw_svg
from teachonce.pages.page import render_page
from teachonce.terminal import as_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = list[tuple[int, float]]
"""(epoch, validation top-1) of one student."""
_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
"""Of the arms: matplotlib's own ten, which can be told apart on light and on dark."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm, over the seeds; accuracies as fractions."""

    name: str
    top1: list[float]
    ece: list[float]
    train_seconds: list[float]
    extract_seconds: float = 0.0
    teacher_forwards: int = 0
    """For all students of the arm together: stores are shared, an online teacher is not."""
    store_bytes: int = 0
    curves: list[Curve] = field(default_factory=list)
    is_baseline: bool = False
    label_weight: float = 1.0
    kd_weight: float = 0.0
    lr: float = 0.0
    num_validation: int = 0
    """Images of the validation split; 0 where that is not known."""


def interval(values: Sequence[float], num_intervals: int = 1, num_validation: int = 0) -> float:
    """Half the width of the mean's confidence interval (Student's t); infinite for a single value.

    Of ``num_intervals`` such intervals, all hold together with 95 % or more (Bonferroni). Accuracies are counts of
    ``num_validation`` images: seeds that happen to agree leave one image's width; 0: not known.
    """
    if len(values) < 2:
        return float("inf")
    from scipy.stats import t

    half = float(t.ppf(1 - 0.025 / num_intervals, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return max(half, 1 / num_validation if num_validation else 0.0)


def difference(arm: Arm, other: Arm, num_intervals: int = 1) -> tuple[float, float]:
    """(mean, half interval) of arm - other in top-1, paired by seed; ``num_intervals`` as in ``interval``."""
    pairs = [a - b for a, b in zip(arm.top1, other.top1, strict=True)]
    return statistics.mean(pairs), interval(pairs, num_intervals, arm.num_validation)


def mean_interval(arm: Arm, num_intervals: int = 1) -> float:
    """Half the interval of an arm's mean top-1 over its seeds."""
    return interval(arm.top1, num_intervals, arm.num_validation)


def sampling_interval(arm: Arm) -> float:
    """How far from this arm's top-1 the one on all images of the validation split's kind may be (95 %).

    Half of Wilson's interval: what sampling alone leaves open, whatever the number of seeds. Another split of as many
    images has an error of its own, and differs by up to sqrt(2) of this.
    """
    if not arm.num_validation:
        return float("inf")
    low, high = wilson_interval(round(statistics.mean(arm.top1) * arm.num_validation), arm.num_validation)
    return (high - low) / 2


def count_comparisons(arms: Sequence[Arm]) -> int:
    """How many differences the table and its sentences judge together, each of them once."""
    base = find_base(arms)
    # Where stored views are the base, the table has these pairs already.
    return max(1, len(arms) - 1 + sum(arm is not base for arm, _ in _find_pairs(arms)))


def find_base(arms: Sequence[Arm]) -> Arm:
    """The arm that the others are compared with: labels only wherever it stands, else the first."""
    return next((arm for arm in arms if arm.is_baseline), arms[0])


def render_table(arms: Sequence[Arm], num_seeds: int) -> str:
    """A Markdown table in points of top-1, and below it what it allows to say."""
    base = find_base(arms)
    num_comparisons = count_comparisons(arms)
    head = ["the same student, equal steps", "label + KD weight", "lr", f"top-1, mean +- 95 % ({num_seeds} seeds)"]
    head += [
        f"against {base.name}",
        "on all such images",
        "ECE",
        "training s",
        "extraction s",
        "teacher forwards, all seeds",
        "logits, bytes",
    ]
    rows = [head, ["---"] * len(head)]
    for arm in arms:
        against = "" if arm is base else _signed(*difference(arm, base, num_comparisons))
        rows.append(
            [
                arm.name,
                f"{arm.label_weight:.3g} + {arm.kd_weight:.3g}",
                f"{arm.lr:g}",
                f"{100 * statistics.mean(arm.top1):.2f}{_plus_minus(mean_interval(arm, len(arms)))}",
                against,
                _plus_minus(sampling_interval(arm)).strip(),
                f"{statistics.mean(arm.ece):.3f}",
                f"{statistics.mean(arm.train_seconds):,.0f}",
                f"{arm.extract_seconds:,.0f}",
                f"{arm.teacher_forwards:,}",
                f"{arm.store_bytes:,}",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines[1] = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return as_text([*lines, "", *_describe_table(arms, num_comparisons), "", *find_verdicts(arms), ""])


def _describe_table(arms: Sequence[Arm], num_comparisons: int) -> list[str]:
    """What the columns mean, and what they do not say."""
    found = []
    totals = {round(arm.label_weight + arm.kd_weight, 6) for arm in arms}
    if len(totals) > 1:
        found.append(
            "WARNING: the arms' loss weights have different sums at the same learning rate, so their gradients "
            "and steps differ in size (--total-weight equal)."
        )
    else:
        found.append(
            f"Loss weights sum to {totals.pop():g} in every arm: gradients have the same size at the same "
            "learning rate."
        )
    found.append(
        f"Intervals are Student's t over the seeds, corrected for {len(arms)} arms and {num_comparisons} "
        "comparisons (Bonferroni): those of the means hold together with 95 %, and so do those of the differences."
    )
    if all(arm.num_validation for arm in arms):
        half = max(sampling_interval(arm) for arm in arms)
        found.append(
            f"These are {arms[0].num_validation:,} validation images: on all images of their kind a top-1 lies within "
            f"+- {100 * half:.2f} points (95 %), whatever the seeds, and a difference within +- "
            f"{100 * half * 2**0.5:.2f} if two arms err on unrelated images; within less if they err on the same ones."
        )
    return found


def find_verdicts(arms: Sequence[Arm]) -> list[str]:
    """Sentences that the figures carry: what hurts, and how the last arm of stored views stands to the rest."""
    if len(arms[0].top1) < 3:
        return ["Fewer than 3 seeds: no difference here is more than an impression."]
    base, num_comparisons = find_base(arms), count_comparisons(arms)
    found = []
    for arm in arms:
        mean, half = difference(arm, base, num_comparisons)
        if base.is_baseline and mean + half < 0:
            found.append(f"WARNING: {arm.name} hurts: {_signed(mean, half)} points against {base.name}.")
    for arm, other in _find_pairs(arms):
        mean, half = difference(arm, other, num_comparisons)
        word = "within the noise of" if abs(mean) <= half else "better than" if mean > 0 else "worse than"
        found.append(f"{arm.name} against {other.name}: {_signed(mean, half)} points, {word} it.")
    return found


def _find_pairs(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """The last arm of stored views beside both ends: fixed logits and an online teacher."""
    by_name = {arm.name: arm for arm in arms}
    stored = [arm for arm in arms if "stored view" in arm.name]
    ends = [by_name[name] for name in ("fixed centre logits", "online teacher") if name in by_name]
    return [(stored[-1], end) for end in ends if stored and end is not find_base(arms)]


def draw_ablation(arms: Sequence[Arm]) -> str:
    """SVG of its own: top-1 of each arm with its seeds and interval, and the mean curves where there are any."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "teachonce", "font.size": 9}):
        has_curves = _has_curves(arms)
        figure = Figure(figsize=(11 if has_curves else 6.2, _chart_inches(arms)), layout="constrained")
        panels = figure.subplots(1, 2, width_ratios=(5, 4)) if has_curves else [figure.subplots()]
        for draw, axes in zip((_draw_dots, _draw_curves), panels, strict=False):
            draw(arms, axes)
            axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def render_ablation(arms: Sequence[Arm], num_seeds: int, *, student: str, command: str, files: tuple[str, str]) -> str:
    """The page: charts, what follows, and the columns that decide; ``files`` are the names of table and numbers."""
    base, num_comparisons = find_base(arms), count_comparisons(arms)
    described = "; ".join(f"{arm.name}: {100 * statistics.mean(arm.top1):.2f} %" for arm in arms)
    drawn = [(_draw_dots, described)]
    if _has_curves(arms):
        drawn.append((_draw_curves, "Validation top-1 by epoch, mean over seeds, a line for each arm."))
    charts = [
        draw_svg(
            partial(_draw_alone, draw, arms),
            size_inches=(4.1, max(2.0, _chart_inches(arms))),
            name=f"ablation {number}",
            description=description,
        )
        for number, (draw, description) in enumerate(drawn)
    ]
    accuracies = []
    for arm in arms:
        top1 = f"{100 * statistics.mean(arm.top1):.2f}{_plus_minus(mean_interval(arm, len(arms)))}"
        against = "" if arm is base else _signed(*difference(arm, base, num_comparisons))
        accuracies.append((arm.name, top1, against))
    return render_page(
        "cli/templates/ablation.html.jinja",
        student=student,
        num_seeds=num_seeds,
        charts=charts,
        verdicts=find_verdicts(arms),
        baseline=base.name,
        accuracies=accuracies,
        costs=[
            (
                arm.name,
                f"{arm.teacher_forwards:,}",
                f"{arm.store_bytes:,}",
                f"{statistics.mean(arm.train_seconds):,.0f}",
            )
            for arm in arms
        ],
        notes=_describe_table(arms, num_comparisons),
        command=command,
        table_name=files[0],
        results_name=files[1],
    )


def _has_curves(arms: Sequence[Arm]) -> bool:
    """Whether there is more than one evaluation to join by a line."""
    return any(len(curve) > 1 for arm in arms for curve in arm.curves)


def _chart_inches(arms: Sequence[Arm]) -> float:
    return 0.9 + 0.42 * len(arms)


def _draw_alone(draw: Callable[[Sequence[Arm], Any], None], arms: Sequence[Arm], figure: Figure) -> None:
    draw(arms, figure.subplots())


def _draw_dots(arms: Sequence[Arm], axes: Any) -> None:
    for position, arm in enumerate(arms):
        color = _COLORS[position % len(_COLORS)]
        top1 = [100 * value for value in arm.top1]
        if len(top1) > 1:
            half = 100 * mean_interval(arm, len(arms))
            axes.errorbar(statistics.mean(top1), position, xerr=half, color=color, capsize=3, lw=1.2)
        axes.plot(top1, [position] * len(top1), "|", color=color, alpha=0.6, ms=9)
        axes.plot(statistics.mean(top1), position, "o", color=color, ms=6)
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel("top-1 in %, with 95 % interval")
    axes.grid(axis="x", color=LINE)


def _draw_curves(arms: Sequence[Arm], axes: Any) -> None:
    for position, arm in enumerate(arms):
        curves = [dict(curve) for curve in arm.curves]
        # A run that was killed at the wrong moment may lack its last row.
        epochs = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)] if curves else []
        means = [100 * statistics.mean(curve[epoch] for curve in curves) for epoch in epochs]
        axes.plot(epochs, means, color=_COLORS[position % len(_COLORS)], label=arm.name, lw=1.3)
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 in %, mean over seeds")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=LINE)
    axes.legend(frameon=False, loc="lower right")


def _plus_minus(half: float) -> str:
    return "" if half == float("inf") else f" +- {100 * half:.2f}"


def _signed(mean: float, half: float) -> str:
    return f"{100 * mean:+.2f}{_plus_minus(half)}"
