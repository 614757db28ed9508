"""The directory that a training leaves behind: names, identity, the curve and the result.

    RUN/config.json           the resolved configuration; written first; the same command again must agree with it
        metrics.csv           one line an epoch, rewritten whole after each
        checkpoints/last.ckpt after each epoch (or every few); what an interrupted run goes on from
        checkpoints/best.ckpt the one with the best validation top-1
        tensorboard/          event files
        student.safetensors   the final weights (their moving average, where there is one)
        report.html           one page to look at
        result.json           written last: a run that has it is finished

A run is the same run wherever it is computed: paths, devices and loader processes may change between two starts.
Everything that the numbers depend on may not; data and store are compared by what they are, not by where they lie.
Nothing here needs torch.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from teachonce.config import to_json
from teachonce.config_train import TrainConfig
from teachonce.errors import PlanMismatchError, TeachonceError
from teachonce.files import atomic_write, read_json, write_json

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.csv"
RESULT_NAME = "result.json"
WEIGHTS_NAME = "student.safetensors"
REPORT_NAME = "report.html"
CHECKPOINTS_NAME = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
BEST_CHECKPOINT = "best.ckpt"
TENSORBOARD_NAME = "tensorboard"

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

_FREE = {
    "out",
    "data",
    "validation_data",
    "init",
    "classes_hash",
    "store",
    "views",
    "device",
    "devices",
    "num_nodes",
    "num_workers",
    "checkpoint_epochs",
    "recipe",
    "versions",
}
"""Entries of config.json that may differ when a run goes on: where it is computed and where things lie; the name of
the recipe, whose options are compared one by one; the hash of the classes, which older runs lack."""

Row = dict[str, float | int | None]


def check_run(path: Path, config: Mapping[str, Any]) -> None:
    """Agree with the run that ``path`` holds, if any; nothing is written.

    Raises PlanMismatchError naming each setting that differs, TeachonceError where ``path`` holds something else.
    """
    config_path = path / CONFIG_NAME
    if not config_path.exists():
        if path.exists() and (not path.is_dir() or _has_foreign_files(path)):
            raise TeachonceError(f"{path}: exists and is no run; choose another --out or remove it")
        return
    # An option that the run's version did not have yet has done what its default does.
    defaults = to_json(TrainConfig(data=Path(), student="", out=Path()))
    old = {name: value for name, value in defaults.items() if name in config} | read_json(config_path)
    differences = run_differences(old, config)
    if differences:
        raise PlanMismatchError(
            f"{path}: begun with another configuration: {'; '.join(differences)}; choose another --out, or the same "
            "settings"
        )


def begin_run(path: Path, config: Mapping[str, Any]) -> None:
    """``check_run``, then write config.json where there is none; processes of one training may do this at once."""
    check_run(path, config)
    if not (path / CONFIG_NAME).exists():
        write_json(path / CONFIG_NAME, dict(config))


def run_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One phrase for each setting in which two configurations differ, those aside that may change."""
    phrases = []
    for key in sorted((old.keys() | new.keys()) - _FREE):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            phrases += [f"{key}.{phrase}" for phrase in run_differences(before, now)]
        elif before != now:
            phrases.append(f"{key} was {_brief(before)}, now {_brief(now)}")
    return phrases


def read_begun(path: Path) -> dict[str, Any] | None:
    """The configuration of a run that was begun, None where there is none."""
    return read_json(path / CONFIG_NAME) if (path / CONFIG_NAME).exists() else None


def describe_teaching(config: Mapping[str, Any]) -> str:
    """Who taught a run's student, as a phrase: the content of config.json says."""
    if not config["kd_temp"]:
        return "labels only"
    stores = config["store"] or []
    names = [stores] if isinstance(stores, str) else stores  # runs of 0.1 have one store, as a string
    source = " and ".join(names) or config.get("teacher") or "image/logit of the records"
    views = config.get("store_views")
    return f"KD at temperature {config['kd_temp']:g} from {source}" + (f", {views} views" if views else "")


def read_result(path: Path) -> dict[str, Any] | None:
    """The result of a finished run, None for one that is not finished."""
    return read_json(path / RESULT_NAME) if (path / RESULT_NAME).exists() else None


def write_metrics(path: Path, rows: Sequence[Row]) -> None:
    """Write metrics.csv whole; numbers as Python's shortest text that reads back the same, nothing for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, METRIC_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path / METRICS_NAME) as file:
        file.write(text.getvalue().encode())


def read_metrics(path: Path) -> list[Row]:
    """The rows of metrics.csv, [] where there is none yet; TeachonceError where it is damaged."""
    file = path / METRICS_NAME
    if not file.exists():
        return []
    rows = []
    for line in csv.DictReader(io.StringIO(file.read_text())):
        try:
            rows.append({name: _number(name, line[name]) for name in METRIC_COLUMNS})
        except (KeyError, ValueError, TypeError) as error:
            raise TeachonceError(f"{file}: line {len(rows) + 2} is no line of metrics ({error!r})") from error
    return rows


def _has_foreign_files(path: Path) -> bool:
    # Another process of this training may write config.json at this moment.
    return any(file.name[0] != "." and file.name != CONFIG_NAME for file in path.iterdir())


def _number(name: str, text: str) -> float | int | None:
    if text == "":
        return None
    return int(text) if name in ("epoch", "step") else float(text)


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
