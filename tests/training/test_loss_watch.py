"""The watch on the loss: immediate on the CPU, one batch late on a GPU, and nothing waits for the device there."""

from __future__ import annotations

import pytest
import torch

from teachonce.training.loss_watch import LossWatch

LOSSES = [1.0, 2.0, float("nan"), float("inf"), 3.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_immediately_on_the_cpu(bad: float) -> None:
    watch = LossWatch()
    for update, loss in enumerate([1.0, 2.0, bad]):
        watch.add(torch.tensor(loss), update)
        assert watch.find_bad() == (2 if update == 2 else None)


def test_one_batch_late() -> None:
    watch = LossWatch(is_late=True)
    found = []
    for update, loss in enumerate(LOSSES):
        watch.add(torch.tensor(loss), update)
        found.append(watch.find_bad())
    assert found == [None, None, None, 2, 3]
    assert watch.find_bad(newest=True) is None


def test_the_newest_where_it_matters() -> None:
    watch = LossWatch(is_late=True)
    watch.add(torch.tensor(1.0), 7)
    watch.add(torch.tensor(float("nan")), 8)
    assert watch.find_bad() is None
    assert watch.find_bad(newest=True) == 8
    assert LossWatch().find_bad() is None and LossWatch(is_late=True).find_bad() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nothing_waits_for_the_device() -> None:
    """Work is queued behind each loss; it is not waited for."""
    watch = LossWatch()
    weights = torch.randn(4096, 4096, device="cuda") / 64
    losses = [torch.full((), loss, device="cuda") for loss in LOSSES]
    end = torch.cuda.Event()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = []
        for update, loss in enumerate(losses):
            watch.add(loss, update)
            for _ in range(200):
                weights = weights @ weights
            end.record()
            found.append(watch.find_bad())
            assert not end.query(), "the work behind the newest loss is still going on"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found == [None, None, None, 2, 3]
