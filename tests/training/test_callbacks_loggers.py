"""What ``--logger`` leaves: each logger has the curve, a resumed training continues it, none leaves nothing."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from teachonce import extras
from teachonce.errors import MissingExtraError
from teachonce.runs.metrics import METRIC_COLUMNS, read_metrics
from teachonce.storage.files import open_storage
from teachonce.training import callbacks
from teachonce.training.callbacks import LOGGERS, Beginning
from teachonce.training.config import LoggerName, TrainConfig
from teachonce.training.student_module import StudentModule
from teachonce.training.train import train

EPOCHS, STEPS = 3, 3
BLOCK = 32 * 1024


def config(digits: Path, out: Path, **options: Any) -> TrainConfig:
    common: dict[str, Any] = {"student": "timm:test_resnet", "size": 16, "batch_size": 32, "lr": 0.02, "device": "cpu"}
    return TrainConfig(data=digits, out=out, epochs=EPOCHS, **common, **options)


@pytest.fixture(autouse=True)
def every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "EVENT_STEPS", 1)


def stop_at(monkeypatch: pytest.MonkeyPatch, update: int, run: TrainConfig) -> None:
    """Train until SIGTERM before this update."""
    step, calls = StudentModule.training_step, []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == update:
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(StudentModule, "training_step", counted)
        train(run)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def logged_epochs(rows: list[dict[str, str]]) -> list[dict[str, float]]:
    found = [row for row in rows if row["epoch/train_loss"]]
    return [
        {name: float(row[f"epoch/{name}"]) for name in METRIC_COLUMNS[2:] if row.get(f"epoch/{name}")} for row in found
    ]


def curve_of(run: Path) -> list[dict[str, float]]:
    rows = read_metrics(run)
    return [{name: float(row[name]) for name in METRIC_COLUMNS[2:] if row[name] is not None} for row in rows]


@pytest.mark.slow
def test_csv(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = config(digits, tmp_path / "run", logger="csv")
    stop_at(monkeypatch, 5, run)
    train(run)
    first, second = (rows_of(tmp_path / "run" / "csv" / f"from_{step}" / "metrics.csv") for step in (0, 5))
    assert [int(row["step"]) for row in first if row["step/loss"]] == [1, 2, 3, 4, 5]
    assert [int(row["step"]) for row in second if row["step/loss"]] == [6, 7, 8, 9]
    assert all(float(row["step/loss"]) > 0 for row in (*first, *second) if row["step/loss"])
    assert [int(row["step"]) for row in second if row["epoch/train_loss"]] == [6, 9]
    assert [*logged_epochs(first), *logged_epochs(second)] == [pytest.approx(row) for row in curve_of(run.out)]
    assert "timm:test_resnet" in (tmp_path / "run" / "csv" / "from_0" / "hparams.yaml").read_text()
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.slow
def test_a_killed_training_has_what_it_logged(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the files are in the second epoch: each update's row, and that of the epoch before."""
    run, step, calls = config(digits, tmp_path / "run", logger="csv"), StudentModule.training_step, []

    def copied(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            shutil.copytree(run.out / "csv", tmp_path / "killed")
        return step(*arguments)

    monkeypatch.setattr(StudentModule, "training_step", copied)
    train(run)
    rows = rows_of(tmp_path / "killed" / "from_0" / "metrics.csv")
    assert [int(row["step"]) for row in rows if row["step/loss"]] == [1, 2, 3, 4, 5]
    assert logged_epochs(rows) == [pytest.approx(curve_of(run.out)[0])]


@pytest.mark.filterwarnings("error:Experiment logs directory")
def test_a_start_from_the_same_update_has_a_table_of_its_own(tmp_path: Path) -> None:
    """Lightning would delete the one before."""
    for number in range(3):
        logger = LOGGERS["csv"](Beginning(tmp_path, "run", {}, 5, "", open_storage(tmp_path)))
        logger.log_metrics({"step/loss": number}, 6)
    tables = {path.name: rows_of(path / "metrics.csv") for path in (tmp_path / "csv").iterdir()}
    assert {name: float(row["step/loss"]) for name, (row,) in tables.items()} == {
        "from_5": 0,
        "from_5.2": 1,
        "from_5.3": 2,
    }


@pytest.mark.slow
def test_tensorboard_has_what_it_had(digits: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config(digits, tmp_path / "run"))
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents.")
    found = EventAccumulator(str(events)).Reload()
    assert len(found.Scalars("step/loss")) == len(found.Scalars("step/lr")) == EPOCHS * STEPS
    losses = [event.value for event in found.Scalars("epoch/train_loss")]
    assert losses == pytest.approx([row["train_loss"] for row in curve_of(tmp_path / "run")])
    assert [event.step for event in found.Scalars("epoch/validation_top1")] == [3, 6, 9]


@pytest.mark.slow
def test_none_leaves_nothing_and_a_run_is_resumed_with_another(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    stop_at(monkeypatch, 5, config(digits, run, logger="none"))
    assert not {"tensorboard", "csv", "wandb"} & {path.name for path in run.iterdir()}
    train(config(digits, run, logger="csv"))
    assert [path.name for path in (run / "csv").iterdir()] == ["from_5"]


def test_a_logger_that_is_not_installed(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(MissingExtraError, match=r"^--logger wandb needs wandb, .*: pip install wandb$"):
        train(config(digits, tmp_path / "run", logger="wandb"))
    assert not (tmp_path / "run").exists()


def test_every_name_has_a_logger() -> None:
    assert set(LOGGERS) == set(LoggerName.__args__)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb not installed")
    for name, value in {"MODE": "offline", "SILENT": "true", "CONFIG_DIR": "settings", "CACHE_DIR": "cache"}.items():
        is_path = name.endswith("DIR")
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / value) if is_path else value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_wandb_offline(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes' worth of files, one run of wandb: its name, the options, the curve."""
    run = config(digits, tmp_path / "run", logger="wandb")
    stop_at(monkeypatch, 5, run)
    checkpoint = torch.load(run.out / "checkpoints" / "last.ckpt", weights_only=True)
    (identity,) = (state["identity"] for state in checkpoint["callbacks"].values() if "identity" in state)
    train(run)
    folders = sorted((run.out / "wandb").glob("offline-run-*"))
    assert [folder.name.rpartition("-")[2] for folder in folders] == [identity, identity]
    logged = [line for folder in folders for line in read_wandb(folder)]
    losses = [line["epoch/train_loss"] for line in logged if "epoch/train_loss" in line]
    assert losses == pytest.approx([row["train_loss"] for row in curve_of(run.out)])
    assert len([line for line in logged if "step/loss" in line]) == EPOCHS * STEPS


def read_wandb(folder: Path) -> list[dict[str, Any]]:
    """What a run of wandb that was written offline has logged: records in LevelDB's log format behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("run-*.wandb")
    data, at, parts, found = path.read_bytes(), 7, b"", []
    assert data.startswith(b":W&B")
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # complete, or the last part of one
            record, parts = wandb_internal_pb2.Record.FromString(parts), b""
            items = record.history.item
            found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_wandb_without_a_login(digits: Path, tmp_path: Path) -> None:
    """In a process of its own: wandb keeps the mode that it has begun with."""
    words = f"train --data {digits} --student timm:test_resnet --out {tmp_path / 'run'} --logger wandb --size 16"
    words += " --batch-size 32 --epochs 1 --device cpu"
    changed = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_MODE": "online"}
    command = [sys.executable, "-m", "teachonce", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | changed)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"teachonce: --logger wandb: cannot start \(.+\); log in with 'wandb login', or set WANDB_MODE=offline", last
    )
