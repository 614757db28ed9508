"""What a run is: the same said in other words goes on, anything else is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from teachonce.errors import PlanMismatchError
from teachonce.records.discovery import open_records
from teachonce.training.train import train
from tests.support.small_data import teacher_logits, write_store
from tests.training.test_train import config


def test_weights_that_say_the_same_go_on(digits: Path, digits_store: Path, tmp_path: Path) -> None:
    """A run begun with 7,3 is that of 0.7,0.3, and not that of 3,7."""
    other = tmp_path / "other"
    source = open_records(digits, "train")
    write_store(other, source, teacher_logits(source) * np.float32(0.9), num_classes=10, offset=0)
    settings = {"store": (digits_store, other), "epochs": 1}
    first = train(config(digits, tmp_path / "run", store_weights="7,3", **settings))
    assert train(config(digits, tmp_path / "run", store_weights="0.7,0.3", **settings)) == first
    with pytest.raises(PlanMismatchError, match="store_weights was 7,3, now 3,7"):
        train(config(digits, tmp_path / "run", store_weights="3,7", **settings))


@pytest.mark.filterwarnings("ignore:--teacher .* contradicts them")
def test_an_online_teacher_may_be_moved(digits: Path, tmp_path: Path) -> None:
    settings = {"epochs": 1, "validation_split": "none", "logger": "none", "kd_temp": 1.0}
    train(config(digits, tmp_path / "teacher", **settings | {"kd_temp": None}))
    first = train(config(digits, tmp_path / "run", teacher=f"run:{tmp_path / 'teacher'}", **settings))
    (tmp_path / "teacher").rename(tmp_path / "moved")
    assert train(config(digits, tmp_path / "run", teacher=f"run:{tmp_path / 'moved'}", **settings)) == first
    other = f"run:{tmp_path / 'moved'},mean=0"
    with pytest.raises(PlanMismatchError, match=r"teacher was run:.*, now run:"):
        train(config(digits, tmp_path / "run", teacher=other, **settings))
