"""The curve of a run: metrics.csv, one line an epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from teachonce.errors import TeachonceError
from teachonce.storage.files import atomic_write, open_storage

METRICS_NAME = "metrics.csv"


METRIC_COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "label_loss",
    "kd_loss",
    "train_top1",
    "validation_loss",
    "validation_top1",
    "validation_top5",
    "validation_ece",
    "seconds",
    "images_per_second",
)
"""Columns of metrics.csv: epochs and updates done, the learning rate of the last update, the epoch's means over its
batches (losses in nats, accuracies as fractions), seconds of the epoch with its evaluation, speed without it."""


TIME_COLUMNS = ("seconds", "images_per_second")
"""The columns that differ between two equal runs."""


Row = dict[str, float | int | None]


def write_metrics(path: Path, rows: Sequence[Row]) -> None:
    """Write metrics.csv at once; numbers as Python's shortest text that reads back the same, nothing for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, METRIC_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path / METRICS_NAME) as file:
        file.write(text.getvalue().encode())


def read_metrics(path: Path) -> list[Row]:
    """The rows of metrics.csv, [] where there is none yet; TeachonceError where it is damaged."""
    storage = open_storage(path)
    if not storage.has(METRICS_NAME):
        return []
    rows: list[Row] = []
    # A byte that is not text makes its line one without numbers.
    text = storage.read(METRICS_NAME).decode(errors="backslashreplace")
    try:
        for line in csv.DictReader(io.StringIO(text)):
            rows.append({name: _number(name, line[name]) for name in METRIC_COLUMNS})
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise TeachonceError(
            f"{path / METRICS_NAME}: line {len(rows) + 2} is not a line of metrics ({error!r})"
        ) from error
    return rows


def count_epochs(path: Path) -> int:
    """Lines of metrics.csv, one an epoch, whatever they say: the curve of another version, or a damaged one, counts."""
    content = open_storage(path).find(METRICS_NAME) or b""
    return max(0, content.count(b"\n") - 1)


def _number(name: str, text: str) -> float | int | None:
    if text == "":
        return None
    return int(text) if name in ("epoch", "step") else float(text)
