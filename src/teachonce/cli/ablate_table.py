"""What an ablation found, as a table with intervals and as a picture.

Arms are compared with the first one (labels only, where it is there) by the differences of equal seeds; the interval is
Student's t at 95 % over the seeds. An arm that loses beyond its interval gets a warning in words: distillation that
hurts should not have to be found in a column.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from teachonce.terminal import as_text

Curve = list[tuple[int, float]]
"""(epoch, validation top-1) of one student."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to teach, over the seeds; accuracies as fractions."""

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


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean (Student's t); infinite for a single value."""
    if len(values) < 2:
        return float("inf")
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def difference(arm: Arm, other: Arm) -> tuple[float, float]:
    """(mean, half interval) of arm - other in top-1, paired by seed."""
    pairs = [a - b for a, b in zip(arm.top1, other.top1, strict=True)]
    return statistics.mean(pairs), interval(pairs)


def render_table(arms: Sequence[Arm], num_seeds: int) -> str:
    """A Markdown table in points of top-1, and below it what it allows to say."""
    base = arms[0]
    head = ["the same student, equal steps", f"top-1, mean +- 95 % ({num_seeds} seeds)", f"against {base.name}"]
    head += ["ECE", "training s", "extraction s", "teacher forwards", "logits, bytes"]
    rows = [head, ["---"] * len(head)]
    for arm in arms:
        against = "" if arm is base else _signed(*difference(arm, base))
        rows.append(
            [
                arm.name,
                f"{100 * statistics.mean(arm.top1):.2f}{_plus_minus(interval(arm.top1))}",
                against,
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
    return as_text([*lines, "", *find_verdicts(arms), ""])


def find_verdicts(arms: Sequence[Arm]) -> list[str]:
    """Sentences that the figures carry: what hurts, and how the best stored views stand to the rest."""
    if len(arms[0].top1) < 3:
        return ["Fewer than 3 seeds: no difference here is more than an impression."]
    base = arms[0]
    found = []
    for arm in arms[1:]:
        mean, half = difference(arm, base)
        if base.is_baseline and mean + half < 0:
            found.append(f"WARNING: {arm.name} hurts: {_signed(mean, half)} points against {base.name}.")
    by_name = {arm.name: arm for arm in arms}
    stored = [arm for arm in arms if "stored view" in arm.name]
    if stored:
        last = stored[-1]
        for other in ("fixed centre logits", "online teacher"):
            if other in by_name:
                mean, half = difference(last, by_name[other])
                word = "within the noise of" if abs(mean) <= half else "better than" if mean > 0 else "worse than"
                found.append(f"{last.name} against {other}: {_signed(mean, half)} points, {word} it.")
    return found


def draw_ablation(arms: Sequence[Arm]) -> str:
    """SVG: top-1 of each arm with its seeds and interval, and the mean curves."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "teachonce", "font.size": 9}):
        figure = Figure(figsize=(11, 0.9 + 0.42 * max(6, len(arms))), layout="constrained")
        dots, curves = figure.subplots(1, 2, width_ratios=(5, 4))
        colors = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
        for position, arm in enumerate(arms):
            color = colors[position % len(colors)]
            top1 = [100 * value for value in arm.top1]
            half = 100 * interval(arm.top1)
            if len(top1) > 1:
                dots.errorbar(statistics.mean(top1), position, xerr=half, color=color, capsize=3, lw=1.2)
            dots.plot(top1, [position] * len(top1), "|", color=color, alpha=0.6, ms=9)
            dots.plot(statistics.mean(top1), position, "o", color=color, ms=6)
            epochs = [epoch for epoch, _ in arm.curves[0]] if arm.curves else []
            means = [100 * statistics.mean(curve[at][1] for curve in arm.curves) for at in range(len(epochs))]
            curves.plot(epochs, means, color=color, label=arm.name, lw=1.3)
        dots.set_yticks(range(len(arms)), [arm.name for arm in arms])
        dots.invert_yaxis()
        dots.set_xlabel("top-1 in %, mean with 95 % interval; strokes are seeds")
        dots.grid(axis="x", color="#e4e8ec")
        curves.set_xlabel("epoch")
        curves.set_ylabel("validation top-1 in %, mean over seeds")
        curves.grid(axis="y", color="#e4e8ec")
        curves.legend(frameon=False, fontsize=8, loc="lower right")
        for axes in (dots, curves):
            axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _plus_minus(half: float) -> str:
    return "" if half == float("inf") else f" +- {100 * half:.2f}"


def _signed(mean: float, half: float) -> str:
    return f"{100 * mean:+.2f}{_plus_minus(half)}"
