"""The file of the best epoch's weights, with kills between it and the checkpoint that counts the epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from teachonce.runs.best_weights import BestWeights
from teachonce.runs.run import BEST_WEIGHTS
from teachonce.storage import regular


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_what_the_checkpoint_does_not_know_is_taken_back(tmp_path: Path) -> None:
    """Two better epochs, then a kill: the training repeats both, and may find neither better."""
    best = BestWeights(tmp_path)
    best.put(b"epoch 8")
    state = best.state()
    best.put(b"epoch 11")
    best.put(b"epoch 13")
    again = BestWeights(tmp_path)
    again.resume(state, is_first=False)
    assert files(tmp_path)[BEST_WEIGHTS] == b"epoch 13", "the first process does it"
    again.resume(state, is_first=True)
    assert files(tmp_path) == {BEST_WEIGHTS: b"epoch 8"}
    # And once more.
    again.put(b"epoch 12")
    again.resume(state, is_first=True)
    assert files(tmp_path) == {BEST_WEIGHTS: b"epoch 8"}


def test_what_the_checkpoint_knows_stays(tmp_path: Path) -> None:
    best = BestWeights(tmp_path)
    best.put(b"epoch 8")
    best.state()
    best.put(b"epoch 13")
    state = best.state()
    assert len(files(tmp_path)) == 2
    BestWeights(tmp_path).resume(state, is_first=True)
    assert files(tmp_path) == {BEST_WEIGHTS: b"epoch 13"}


def test_before_the_first_checkpoint_there_was_none(tmp_path: Path) -> None:
    best = BestWeights(tmp_path)
    state = best.state()
    best.put(b"epoch 1")
    BestWeights(tmp_path).resume(state, is_first=True)
    assert files(tmp_path) == {}


def test_weights_that_are_lost_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody removed what was kept: better none than another epoch's."""
    best = BestWeights(tmp_path)
    best.put(b"epoch 8")
    state = best.state()
    (tmp_path / BEST_WEIGHTS).write_bytes(b"another")
    BestWeights(tmp_path).resume(state, is_first=True)
    assert files(tmp_path) == {}
    assert "best.safetensors: of an epoch that is repeated now; removed" in capsys.readouterr().err


def test_a_file_that_was_removed_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a user, while it is trained or before it is resumed: the next better epoch's is there again."""
    best = BestWeights(tmp_path)
    best.put(b"epoch 8")
    state = best.state()
    (tmp_path / BEST_WEIGHTS).unlink()
    best.put(b"epoch 13")
    assert files(tmp_path) == {BEST_WEIGHTS: b"epoch 13"}
    (tmp_path / BEST_WEIGHTS).unlink()
    again = BestWeights(tmp_path)
    again.resume(state, is_first=True)
    assert "best.safetensors: missing; the next better epoch's are kept" in capsys.readouterr().err
    assert again.state() == {"hash": None}, "the next start says nothing any more"
    again.put(b"epoch 12")
    assert files(tmp_path) == {BEST_WEIGHTS: b"epoch 12"}


def test_a_removed_file_is_made_of_the_kept_one(tmp_path: Path) -> None:
    best = BestWeights(tmp_path)
    best.put(b"epoch 8")
    state = best.state()
    best.put(b"epoch 13")
    (tmp_path / BEST_WEIGHTS).unlink()
    BestWeights(tmp_path).resume(state, is_first=True)
    assert files(tmp_path) == {BEST_WEIGHTS: b"epoch 8"}


def test_weights_larger_than_what_is_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of more than 537 million parameters are."""
    monkeypatch.setattr(regular, "MAX_WHOLE_BYTES", 10)
    content = bytes(range(256)) * 8_193  # more than a block
    best = BestWeights(tmp_path)
    best.put(content)
    state = best.state()
    best.put(b"another epoch's")
    BestWeights(tmp_path).resume(state, is_first=True)
    assert files(tmp_path) == {BEST_WEIGHTS: content}


def test_the_end_leaves_one_file(tmp_path: Path) -> None:
    best = BestWeights(tmp_path)
    best.put(b"epoch 8")
    best.state()
    best.put(b"epoch 13")
    best.state()
    best.finish()
    assert files(tmp_path) == {BEST_WEIGHTS: b"epoch 13"}
