"""Checkpoints that are whole or absent, the line of an epoch, and TensorBoard without TensorFlow."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from teachonce.errors import ModelError, TeachonceError
from teachonce.runs.metrics import METRIC_COLUMNS
from teachonce.training.callbacks import AtomicCheckpointIO, EpochRecorder, describe_row


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


def test_checkpoints_come_back(tmp_path: Path) -> None:
    checkpoint = {"state_dict": {"a": torch.arange(3)}, "epoch": 2, "rows": [{"lr": 0.1, "kd_loss": None}]}
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert loaded["rows"] == checkpoint["rows"]
    assert torch.equal(loaded["state_dict"]["a"], torch.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(TeachonceError, match=r"last.ckpt: cannot be written: File too large; free space"):
            AtomicCheckpointIO().save_checkpoint({"epoch": 2, "a": torch.zeros(10**6)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_executes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"epoch": Malicious()}, tmp_path / "last.ckpt")
    with pytest.raises(ModelError, match=r"last.ckpt: not a readable checkpoint .*; remove it to start over"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert "executed" not in capsys.readouterr().out


def test_the_best_epoch_is_the_first_of_equals(tmp_path: Path) -> None:
    recorder = EpochRecorder(tmp_path, num_epochs=4, checkpoint_epochs=1)
    assert recorder.best_row is None
    for epoch, top1 in enumerate([0.1, 0.7, 0.7, 0.3], start=1):
        recorder.rows.append(dict.fromkeys(METRIC_COLUMNS, 0.0) | {"epoch": epoch, "validation_top1": top1})
    assert recorder.best_row is not None
    assert recorder.best_row["epoch"] == 2
    again = EpochRecorder(tmp_path, num_epochs=4, checkpoint_epochs=1)
    again.load_state_dict(recorder.state_dict())
    assert again.best_row == recorder.best_row


def test_the_line_of_an_epoch() -> None:
    row = dict.fromkeys(METRIC_COLUMNS, 0.5) | {"epoch": 3, "seconds": 75.0, "images_per_second": 1234.5}
    assert describe_row(row, 90) == (
        "epoch 3/90: loss 0.5000, label 0.5000, kd 0.5000, train top-1 0.5000, validation top-1 0.5000, "
        "1,234 images/s, 1 min 15 s"
    )
    labels_only = describe_row(row | {"kd_loss": 0.0, "validation_top1": None}, 90)
    assert "kd" not in labels_only and "validation" not in labels_only


@pytest.mark.slow
def test_tensorboard_imports_no_tensorflow() -> None:
    program = (
        "import sys; from teachonce.training.callbacks import _without_tensorflow\n"
        "with _without_tensorflow():\n    from torch.utils.tensorboard import SummaryWriter\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
