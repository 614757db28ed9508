"""report.html of a run: the configuration, the curves, the result and its worst classes.

Confusions, calibration and pictures need the model and the images: they are on the page of ``evaluate --html``, whose
command is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from teachonce.data.dataset import EvalDataset
from teachonce.evaluation.config import EvaluateConfig
from teachonce.evaluation.findings.per_class import (
    WORST_SHOWN,
    ClassResult,
    collect_classes,
    encode_csv,
    find_worst,
    sort_worst,
)
from teachonce.evaluation.findings.proportions import LEVEL
from teachonce.models.spec import parse_model_spec, path_spec
from teachonce.options import command_line, drop_idle
from teachonce.pages.charts import BLUE, INK, ORANGE, PURPLE, QUIET, draw_svg
from teachonce.pages.page import render_page
from teachonce.records.class_space import shows_top5
from teachonce.records.class_table import brief_names, shown_names
from teachonce.records.options import RecordOptions
from teachonce.runs.metrics import METRICS_NAME, Row
from teachonce.runs.run import REPORT_NAME, VALIDATION_CLASSES_NAME, WEIGHTS_NAME, Run
from teachonce.storage.address import to_location
from teachonce.storage.files import atomic_write
from teachonce.terminal import plural
from teachonce.training.config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_NAME = "evaluation.html"
"""What the report's command calls the page of an evaluation, beside the report."""

_TEMPLATE = "training/templates/report.html.jinja"

_LOSSES = {"train_loss": "total (train)", "label_loss": "label (train)", "kd_loss": "KD (train)",
           "validation_loss": "label (validation)"}  # fmt: skip
_ACCURACIES = {"train_top1": "top-1 (train)", "validation_top1": "top-1 (validation)",
               "validation_top5": "top-5 (validation)"}  # fmt: skip
_RESULT = {
    "top1": ("top-1", "{:.2%}"),
    "top5": ("top-5", "{:.2%}"),
    "balanced_accuracy": ("balanced accuracy, the mean over classes", "{:.2%}"),
    "ece": ("expected calibration error, 15 bins", "{:.4f}"),
    "best_top1": ("best top-1 of an epoch", "{:.2%}"),
    "best_epoch": ("epoch with the best top-1", "{}"),
    "train_loss": ("training loss, last epoch", "{:.4f} nats"),
    "train_top1": ("top-1 on training views, last epoch", "{:.2%}"),
    "validation_loss": ("validation loss", "{:.4f} nats"),
    "epochs": ("epochs", "{}"),
    "steps": ("updates", "{:,}"),
    "seconds": ("training time", "{:,.0f} s"),
    "images_per_second": ("training speed", "{:,.0f} images/s"),
    "num_parameters": ("parameters", "{:,}"),
    "store_views": ("stored views", "{}"),
    "missing_records": ("records left out, as the store lacks them", "{:,}"),
    "relabeled_records": ("records with another label than in the store", "{:,}"),
    "kd_temp": ("temperature", "{:g}"),
}
"""Words and form of the entries of result.json."""
_OFF_AT_0 = ("missing_records", "relabeled_records", "kd_temp")
_COLORS = {"train_loss": INK, "label_loss": BLUE, "kd_loss": ORANGE, "validation_loss": PURPLE,
           "train_top1": BLUE, "validation_top1": ORANGE, "validation_top5": PURPLE}  # fmt: skip


def summarize_classes(class_sums: Tensor | None, validation: EvalDataset | None) -> list[ClassResult]:
    """The classes of the last evaluation by the data's labels, from images and right answers [2, C] of the student's.

    None without an evaluation, or where a run was resumed from a checkpoint of an older version.
    """
    if class_sums is None or validation is None:
        return []
    counts, correct = class_sums.long().numpy()
    names = shown_names(validation.records.classes)
    return collect_classes(counts, correct, names, first_label=validation.class_space.offset)


def describe_result(result: Mapping[str, Any], num_classes: int) -> str:
    """A result as a phrase for people."""
    phrase = plural(result["epochs"], "epoch")
    if result["top1"] is not None:
        top5 = f", top-5 {result['top5']:.4f}" if shows_top5(num_classes) else ""
        phrase += f", top-1 {result['top1']:.4f}{top5}, ECE {result['ece']:.4f}"
    return phrase


def write_report(run: Path, result: Mapping[str, Any], classes: Sequence[ClassResult] = ()) -> Path:
    """Write RUN/report.html from config.json, metrics.csv, ``result`` and the ``classes`` of the last evaluation.

    Where there are classes, RUN/validation_classes.csv has all of them. Returns the page's path.
    """
    opened = Run(run)
    has_top5 = shows_top5(opened.num_classes)
    worst = find_worst(classes)
    page = render_page(
        _TEMPLATE,
        name=run.name,
        student=parse_model_spec(opened.config["student"]).title,
        teacher=opened.describe_supervision(),
        config=_shown_config(opened),
        result=_shown_result(result, has_top5=has_top5),
        numbers=_numbers(result, has_top5=has_top5),
        curves=draw_curves(opened.metrics, has_top5=has_top5),
        num_classes=len(sort_worst(classes)),
        worst=worst[:WORST_SHOWN],
        num_worst=len(worst),
        lowest=sort_worst(classes)[:1],
        level=f"{LEVEL:.0%}",
        command=_evaluate_command(opened),
        page_name=PAGE_NAME,
        classes_file=VALIDATION_CLASSES_NAME if classes else None,
        weights_file=WEIGHTS_NAME,
        metrics_file=METRICS_NAME,
    )
    if classes:
        with atomic_write(run / VALIDATION_CLASSES_NAME) as file:
            file.write(encode_csv(classes, with_wrong=False))
    with atomic_write(run / REPORT_NAME) as file:
        file.write(page.encode())
    return run / REPORT_NAME


def _shown_config(run: Run) -> dict[str, Any]:
    """The options of config.json that were in force, and of many classes some of their names."""
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    config = {
        name: value
        for name, value in drop_idle(TrainConfig, run.config).items()
        # What is 0 by default is off: a probability, a weight, a part of the data.
        if value not in (None, "", [], ())
        and value is not False
        and (value or defaults.get(name) != value or name.endswith("seed"))
    }
    if run.class_names is not None:
        config["class_names"] = brief_names(run.class_texts or run.class_names)
        config.pop("class_texts", None)
    return config


def _shown_result(result: Mapping[str, Any], *, has_top5: bool) -> dict[str, str]:
    """result.json in words, with units."""
    shown = {}
    for name, value in result.items():
        if value is not None and (name != "top5" or has_top5) and (value or name not in _OFF_AT_0):
            label, form = _RESULT.get(name, (name.replace("_", " "), "{}"))
            shown[label] = form.format(value)
    return shown


def draw_curves(rows: Sequence[Row], *, has_top5: bool = True) -> list[str]:
    """Losses, accuracies and learning rate over epochs, an SVG element each, as wide as a phone."""
    accuracies_shown = {name: label for name, label in _ACCURACIES.items() if has_top5 or "top5" not in name}

    def draw_losses(axes: Any) -> None:
        _draw(axes, rows, _LOSSES, "loss in nats")

    def draw_accuracies(axes: Any) -> None:
        _draw(axes, rows, accuracies_shown, "accuracy")
        axes.set_ylim(0, 1)

    def draw_rate(axes: Any) -> None:
        axes.plot(
            [row["epoch"] for row in rows],
            [row["lr"] for row in rows],
            color=QUIET,
            marker="." if len(rows) < 40 else "",
        )
        axes.set_title("learning rate")
        axes.set_xlabel("epoch")

    drawn = (("Losses", draw_losses), ("Accuracies", draw_accuracies), ("Learning rate", draw_rate))
    return [
        draw_svg(
            partial(_draw_alone, draw),
            size_inches=(3.9, 3.1),
            name=f"curves {title}",
            description=f"{title} by epoch; the same numbers are in the table of the run's metrics.",
        )
        for title, draw in drawn
    ]


def _draw_alone(draw: Callable[[Any], None], figure: Figure) -> None:
    axes: Any = figure.subplots()
    draw(axes)
    axes.xaxis.get_major_locator().set_params(integer=True)


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


def _evaluate_command(run: Run) -> str | None:
    """The command of the full page; None for a run without an evaluation."""
    config = run.config
    if config.get("validation_split") in (None, "none"):
        return None
    given = {field.name: config[field.name] for field in fields(RecordOptions) if config.get(field.name) is not None}
    if "labels" in given:
        given["labels"] = to_location(given["labels"])
    evaluation = EvaluateConfig(
        data=to_location(config.get("validation_data") or config["data"]),
        model=path_spec("run", run.path).text,
        split=config["validation_split"],
        html=run.path / PAGE_NAME,
        overwrite=True,
        **given,
    )
    return f"teachonce evaluate {command_line(evaluation)}"


def _numbers(result: Mapping[str, Any], *, has_top5: bool) -> list[tuple[str, str]]:
    numbers = []
    shown = (("top1", "top-1"), ("top5", "top-5"), ("balanced_accuracy", "balanced accuracy"), ("ece", "ECE, 15 bins"))
    for name, label in shown:
        if result.get(name) is not None and (has_top5 or name != "top5"):
            numbers.append((f"{result[name]:.2%}" if name != "ece" else f"{result[name]:.4f}", label))
    numbers.append((f"{result['train_loss']:.4f}", "train loss"))
    numbers.append((f"{result['images_per_second']:,.0f}", "images/s"))
    numbers.append((f"{result['num_parameters'] / 1e6:,.2f} M", "parameters"))
    return numbers
