"""report.html of a run: the configuration, the curves and the result, from what the run's directory holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.pages.charts import BLUE, INK, ORANGE, PURPLE, QUIET, draw_svg
from teachonce.pages.page import render_page
from teachonce.records.class_table import brief_names
from teachonce.runs.metrics import METRICS_NAME, Row
from teachonce.runs.run import REPORT_NAME, WEIGHTS_NAME, Run
from teachonce.storage.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = "training/templates/report.html.jinja"

_LOSSES = {"train_loss": "total (train)", "label_loss": "label (train)", "kd_loss": "KD (train)",
           "validation_loss": "label (validation)"}  # fmt: skip
_ACCURACIES = {"train_top1": "top-1 (train)", "validation_top1": "top-1 (validation)",
               "validation_top5": "top-5 (validation)"}  # fmt: skip
_COLORS = {"train_loss": INK, "label_loss": BLUE, "kd_loss": ORANGE, "validation_loss": PURPLE,
           "train_top1": BLUE, "validation_top1": ORANGE, "validation_top5": PURPLE}  # fmt: skip


def write_report(run: Path, result: Mapping[str, Any]) -> Path:
    """Write RUN/report.html from config.json, metrics.csv and ``result``; returns its path."""
    opened = Run(run)
    page = render_page(
        _TEMPLATE,
        name=run.name,
        teacher=opened.describe_supervision(),
        config=_shown_config(opened),
        result=result,
        numbers=_numbers(result),
        curves=draw_curves(opened.metrics),
        weights_file=WEIGHTS_NAME,
        metrics_file=METRICS_NAME,
    )
    with atomic_write(run / REPORT_NAME) as file:
        file.write(page.encode())
    return run / REPORT_NAME


def _shown_config(run: Run) -> dict[str, Any]:
    """config.json, of many classes with some of their names."""
    config = dict(run.config)
    if run.class_names is not None:
        config["class_names"] = brief_names(run.class_names)
    return config


def draw_curves(rows: Sequence[Row]) -> str:
    """Losses, accuracies and learning rate over epochs, as one SVG element."""

    def draw(figure: Figure) -> None:
        losses, accuracies, rate = figure.subplots(1, 3, width_ratios=(4, 4, 2))
        _draw(losses, rows, _LOSSES, "loss in nats")
        _draw(accuracies, rows, _ACCURACIES, "accuracy")
        accuracies.set_ylim(0, 1)
        epochs = [row["epoch"] for row in rows]
        rate.plot(epochs, [row["lr"] for row in rows], color=QUIET, marker="." if len(rows) < 40 else "")
        rate.set_title("learning rate")
        rate.set_xlabel("epoch")
        for axes in (losses, accuracies, rate):
            axes.xaxis.get_major_locator().set_params(integer=True)

    description = (
        "Losses, accuracies and learning rate by epoch; the same numbers are in the table of the run's metrics."
    )
    return draw_svg(draw, size_inches=(11, 3.4), name="curves", description=description)


def _draw(axes: Any, rows: Sequence[Row], columns: Mapping[str, str], title: str) -> None:
    for name, label in columns.items():
        points = [(row["epoch"], row[name]) for row in rows if row[name] is not None]
        if not points or (name == "kd_loss" and not any(value for _, value in points)):
            continue
        if name == "train_loss" and all(row["train_loss"] == row["label_loss"] for row in rows):
            continue  # without KD the total loss is the label loss
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, label=label, color=_COLORS[name], marker="." if len(rows) < 40 else "")
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.grid(axis="y")
    # A fixed place (losses fall, accuracies rise): searching for the best one is slow, and matplotlib warns of it.
    # Without labels and evaluation there is no accuracy.
    if axes.lines:
        axes.legend(loc="lower right" if title == "accuracy" else "upper right")


def _numbers(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    numbers = []
    for name, label in (("top1", "top-1"), ("top5", "top-5"), ("ece", "ECE, 15 bins")):
        if result[name] is not None:
            numbers.append((f"{result[name]:.2%}" if name != "ece" else f"{result[name]:.4f}", label))
    numbers.append((f"{result['train_loss']:.4f}", "train loss"))
    numbers.append((f"{result['images_per_second']:,.0f}", "images/s"))
    numbers.append((f"{result['num_parameters'] / 1e6:,.2f} M", "parameters"))
    return numbers
