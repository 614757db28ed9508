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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teachonce.errors import PlanMismatchError, TeachonceError
from teachonce.storage.files import read_json, write_json

CONFIG_NAME = "config.json"
RESULT_NAME = "result.json"
WEIGHTS_NAME = "student.safetensors"
REPORT_NAME = "report.html"
CHECKPOINTS_NAME = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
BEST_CHECKPOINT = "best.ckpt"
TENSORBOARD_NAME = "tensorboard"


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


def check_run(path: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Agree with the run that ``path`` holds, if any; nothing is written.

    ``defaults`` are the values of options that the run's version may not have had yet. Raises PlanMismatchError naming
    each setting that differs, TeachonceError where ``path`` holds something else.
    """
    config_path = path / CONFIG_NAME
    if not config_path.exists():
        if path.exists() and (not path.is_dir() or _has_foreign_files(path)):
            raise TeachonceError(f"{path}: exists and is no run; choose another --out or remove it")
        return
    # An option that the run's version did not have yet has done what its default does.
    old = {name: value for name, value in defaults.items() if name in config} | read_json(config_path)
    differences = run_differences(old, config)
    if differences:
        raise PlanMismatchError(
            f"{path}: begun with another configuration: {'; '.join(differences)}; choose another --out, or the same "
            "settings"
        )


def begin_run(path: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """``check_run``, then write config.json where there is none; processes of one training may do this at once."""
    check_run(path, config, defaults)
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


def _has_foreign_files(path: Path) -> bool:
    # Another process of this training may write config.json at this moment.
    return any(file.name[0] != "." and file.name != CONFIG_NAME for file in path.iterdir())


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
