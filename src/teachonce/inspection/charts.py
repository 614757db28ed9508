"""The charts of a store's page, each one SVG element from counts: histograms, calibration, agreement over views."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teachonce.inspection.measures import NUM_HISTOGRAM_BINS, Measures
from teachonce.pages.charts import BLUE, ORANGE, QUIET, draw_svg
from teachonce.terminal import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZE = (3.7, 3.0)
_MAX_BARS = 20


def draw_entropies(measures: Measures) -> str:
    """Histogram of the teacher's entropy in nats, between 0 and log C."""
    most = max(log(measures.num_classes), 1e-9)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _draw_histogram(axes, measures.sums.entropies, most)
        axes.axvline(measures.entropy_nats, color=QUIET, linestyle="--", linewidth=1)
        axes.set_title(f"entropy: mean {measures.entropy_nats:.3f} nats (dashed)")
        axes.set_xlabel(f"nats; uniform is ln {measures.num_classes:,} = {most:.2f}")

    description = (
        f"Histogram of the teacher's entropy over {plural(measures.num_rows, 'view')}: mean "
        f"{measures.entropy_nats:.3f} nats."
    )
    return draw_svg(draw, size_inches=_SIZE, name="entropy", description=description)


def draw_confidences(measures: Measures) -> str:
    """Histogram of the largest probability."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _draw_histogram(axes, measures.sums.confidences, 1.0)
        axes.set_title("confidence: the largest probability")
        axes.set_xlabel("probability")

    counts = measures.sums.confidences.sum(axis=0)
    sure = counts[round(0.9 * NUM_HISTOGRAM_BINS) :].sum() / max(counts.sum(), 1)
    description = f"Histogram of the teacher's largest probability: above 0.9 in {sure:.0%} of the views."
    return draw_svg(draw, size_inches=_SIZE, name="confidence", description=description)


def draw_calibration(measures: Measures) -> str:
    """``draw_reliability`` of plain views."""
    assert measures.ece is not None, "there are views with a label"
    return draw_reliability(measures.calibration, measures.ece, unit="views")


def draw_reliability(
    bins: NDArray[np.float64], ece: float, *, unit: str, size_inches: tuple[float, float] = (_SIZE[0], 3.5)
) -> str:
    """Accuracy by confidence (reliability diagram) over the number of ``unit`` in each bin.

    ``bins`` [B, 3]: number, sum of confidences and right answers of each of B bins of equal width.
    """
    from matplotlib.ticker import MaxNLocator

    counts, confidences, hits = bins.T
    filled = counts > 0
    mean_confidence, accuracy = confidences[filled] / counts[filled], hits[filled] / counts[filled]

    def draw(figure: Figure) -> None:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        axes.plot([0, 1], [0, 1], color=QUIET, linestyle="--", linewidth=1)
        # One standard error of a proportion: a small bin says nothing.
        spread = np.sqrt(accuracy * (1 - accuracy) / counts[filled])
        axes.errorbar(mean_confidence, accuracy, spread, color=BLUE, marker="o", markersize=4, linewidth=1.3)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("accuracy")
        axes.set_title(f"calibration: ECE {ece:.4f}")
        axes.grid()
        edges = np.linspace(0, 1, len(bins) + 1)
        below.stairs(counts, edges, fill=True, color=BLUE, alpha=0.55)
        below.set_ylabel(unit)
        below.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
        below.set_xlabel("confidence")
        below.set_xlim(0, 1)

    description = f"Reliability diagram of {counts.sum():,.0f} {unit}: expected calibration error {ece:.4f}."
    return draw_svg(draw, size_inches=size_inches, name="calibration", description=description)


def draw_agreement(measures: Measures) -> str:
    """In how many of its views a record's most frequent top-1 occurs; records with at least two plain views."""
    from matplotlib.ticker import MaxNLocator

    edges, counts, label = prepare_agreement(measures)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        middles, width = (edges[:-1] + edges[1:]) / 2, 0.86 * (edges[1] - edges[0])
        axes.bar(middles, counts / max(counts.sum(), 1), width, color=BLUE, alpha=0.55)
        axes.set_title("agreement between views of a record")
        axes.set_xlabel(label)
        axes.set_ylabel("fraction of the records")
        axes.set_xlim(edges[0], edges[-1])
        axes.grid(axis="y")
        if edges[1] - edges[0] >= 1:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    whole = counts[-1] / max(counts.sum(), 1)
    description = (
        f"Histogram over {counts.sum():,} records: {whole:.0%} of them are in the last bar, of most agreement."
    )
    return draw_svg(draw, size_inches=_SIZE, name="agreement", description=description)


def prepare_agreement(measures: Measures) -> tuple[NDArray[np.floating], NDArray[Any], str]:
    """(edges of the bars, records in each, what the axis is).

    One bar a number of views where every record has the same few of them; else bars of the part of its plain views.
    """
    num_views = len(measures.views)
    by_views = measures.agreement[2:]
    if num_views <= _MAX_BARS and not by_views[:-1].any():
        edges = np.arange(num_views + 1) + 0.5
        return edges, by_views[-1, 1:], f"views of {num_views} with the teacher's most frequent top class"
    num_plain, num_same = np.nonzero(measures.agreement[2:])
    part = num_same / (num_plain + 2)
    counts, edges = np.histogram(part, 10, (0, 1), weights=by_views[num_plain, num_same])
    return edges, counts, "fraction of a record's views with the teacher's most frequent top class"


def _draw_histogram(axes: Any, counts: NDArray[np.int64], most: float) -> None:
    edges = np.linspace(0, most, NUM_HISTOGRAM_BINS + 1)
    plain, mixed = counts
    if plain.any():
        axes.stairs(plain / plain.sum(), edges, fill=True, color=BLUE, alpha=0.55, label="unmixed views")
    if mixed.any():
        axes.stairs(mixed / mixed.sum(), edges, color=ORANGE, linewidth=1.5, label="mixed views")
        axes.legend(loc="upper right")
    axes.set_xlim(0, most)
    axes.set_ylabel("fraction of the views")
    axes.grid(axis="y")
