"""Weights that a student's SPEC names: what they were is part of the run, and where they lie is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from teachonce.errors import PlanMismatchError
from teachonce.models.classifier import build_student
from teachonce.training.train import train
from tests.training.test_train import config, curve, tensor_bytes


def write_weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_file(build_student("timm:test_resnet", 10).state_dict(), path)
    return path


class StopError(Exception):
    pass


def stop(epoch: int) -> None:
    if epoch == 2:
        raise StopError


def test_a_run_goes_on_without_the_weights_that_it_began_with(digits: Path, tmp_path: Path) -> None:
    """Its checkpoint has them all; a spot machine may have neither the file nor the hub."""
    weights = write_weights(tmp_path / "w.safetensors", seed=1)
    begun = config(digits, tmp_path / "run", student=f"timm:test_resnet,weights={weights}", epochs=2, logger="none")
    whole = config(digits, tmp_path / "whole", student=begun.student, epochs=2, logger="none")
    train(whole)
    with pytest.raises(StopError):
        train(begun, on_epoch=stop)
    weights.unlink()
    train(begun)
    assert curve(begun.out) == curve(whole.out)
    assert tensor_bytes(begun.out / "student.safetensors") == tensor_bytes(whole.out / "student.safetensors")


def test_the_file_may_be_moved_and_is_then_compared(digits: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "w.safetensors", seed=1)
    other = write_weights(tmp_path / "other.safetensors", seed=2)
    moved = tmp_path / "moved.safetensors"
    settings = {"out": tmp_path / "run", "epochs": 2, "logger": "none"}
    with pytest.raises(StopError):
        train(config(digits, student=f"timm:test_resnet,weights={weights}", **settings), on_epoch=stop)
    weights.rename(moved)
    with pytest.raises(PlanMismatchError, match=r"other inputs: the weights to start from .*: not the same then and n"):
        train(config(digits, student=f"timm:test_resnet,weights={other}", **settings))
    assert train(config(digits, student=f"timm:test_resnet,weights={moved}", **settings))["epochs"] == 2


def test_equal_paths_of_other_weights_are_other_runs(digits: Path, tmp_path: Path) -> None:
    """``diff`` called their inputs equal."""
    path, found = tmp_path / "w.safetensors", []
    for seed in (1, 2):
        write_weights(path, seed)
        out = tmp_path / f"run{seed}"
        train(config(digits, out, student=f"timm:test_resnet,weights={path}", epochs=1, logger="none"))
        found.append(json.loads((out / "config.json").read_text())["init_weights_sha256"])
    assert None not in found and found[0] != found[1]


def test_a_run_of_which_nothing_was_kept_begins_anew(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake that shows in the first step, such as too little memory, left a run that refused what mends it."""

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as broken:
        broken.setattr("teachonce.training.student_module.StudentModule.training_step", fail)
        with pytest.raises(torch.OutOfMemoryError):
            train(config(digits, tmp_path / "run", batch_size=64, epochs=1, logger="none"))
    assert (tmp_path / "run" / "config.json").exists()
    train(config(digits, tmp_path / "run", batch_size=16, epochs=1, logger="none"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["batch_size"] == 16
    assert "run: was started with other settings, of which nothing was kept: begins anew" in capsys.readouterr().err
    with pytest.raises(PlanMismatchError, match="batch_size was 16, now 32"):
        train(config(digits, tmp_path / "run", batch_size=32, epochs=1, logger="none"))
