"""The example of a loop of one's own runs, and learns."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.inspection.test_measures import NUM_CLASSES, NUM_VIEWS, SIZES, write_mixed_store
from tests.support.paths import ROOT
from tests.support.small_data import encode_jpeg, write_shards

EXAMPLE = ROOT / "examples" / "plain_pytorch_loop.py"


def test_plain_pytorch_loop(digits: Path, digits_store: Path) -> None:
    train = runpy.run_path(str(EXAMPLE))["train"]
    torch.manual_seed(0)
    model, losses = train(digits, digits_store, student="test_resnet", size=16, batch_size=32, epochs=10)
    assert len(losses) == 10 * 3
    assert sum(losses[-9:]) < 0.95 * sum(losses[:9])
    assert model.eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


def test_a_store_of_mixed_views_is_refused(tmp_path: Path) -> None:
    """Their label is of two images, and the loops know one."""
    data = write_shards(tmp_path / "data", sizes=SIZES, num_classes=NUM_CLASSES + 1)
    shape = NUM_VIEWS, sum(SIZES)
    write_mixed_store(tmp_path / "store", data, np.zeros((*shape, NUM_CLASSES), np.float32), np.ones(shape, bool))
    with pytest.raises(SystemExit, match=r"store: views are mixed: the label loss needs batch\['partner_labels'\]"):
        runpy.run_path(str(EXAMPLE))["train"](data, tmp_path / "store", student="test_resnet", size=16)
    (refusal,) = (line for line in EXAMPLE.read_text().splitlines() if "views are mixed" in line)
    assert all(refusal in path.read_text() for path in (ROOT / "examples").glob("*_loop.py"))


def test_records_without_labels_are_refused(tmp_path: Path, digits_store: Path) -> None:
    """Their label is -1, which some frameworks take for the last class."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.jpg").write_bytes(encode_jpeg(1))
    with pytest.raises(SystemExit, match=f"^{tmp_path}: none of its images have labels: the label loss needs"):
        runpy.run_path(str(EXAMPLE))["train"](tmp_path, digits_store, student="test_resnet", size=16)
    lines = EXAMPLE.read_text().splitlines()
    (at,) = (number for number, line in enumerate(lines) if "have labels" in line)
    refusal = "\n".join(lines[at - 2 : at + 1])
    assert all(refusal in path.read_text() for path in (ROOT / "examples").glob("*_loop.py"))
