"""The example of a loop of one's own runs, and learns."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch

from tests.support.paths import ROOT

EXAMPLE = ROOT / "examples" / "plain_pytorch_loop.py"


def test_plain_pytorch_loop(digits: Path, digits_store: Path) -> None:
    train = runpy.run_path(str(EXAMPLE))["train"]
    torch.manual_seed(0)
    model, losses = train(digits, digits_store, student="test_resnet", size=16, batch_size=32, epochs=10)
    assert len(losses) == 10 * 3
    assert sum(losses[-9:]) < 0.95 * sum(losses[:9])
    assert model.eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
