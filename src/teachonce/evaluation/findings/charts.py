"""The charts of an evaluation's page that are not those of a store's too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from teachonce.evaluation.findings.per_class import ClassResult
from teachonce.pages.charts import BLUE, QUIET, draw_svg
from teachonce.terminal import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHART_INCHES = (3.7, 3.3)
"""So that text is legible where a chart is as wide as a phone."""
_NUM_BARS = 20


def draw_class_accuracies(classes: Sequence[ClassResult], balanced: float) -> str:
    """How many classes have which accuracy; of classes with images."""
    values = [result.accuracy for result in classes if result.accuracy is not None]
    counts, edges = np.histogram(values, _NUM_BARS, (0, 1))

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.55)
        axes.axvline(balanced, color=QUIET, linestyle="--", linewidth=1)
        axes.set_title(f"classes by accuracy: mean {balanced:.4f} (dashed)")
        axes.set_xlabel("accuracy of the class")
        axes.set_ylabel("classes")
        axes.set_xlim(0, 1)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")

    description = f"Histogram of the accuracies of {plural(len(values), 'class', 'classes')}: mean {balanced:.4f}."
    return draw_svg(draw, size_inches=CHART_INCHES, name="classes", description=description)
