"""Pending logits: the values, and on a GPU that reading them waits for nothing that was asked later."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from teachonce.models.pending import PendingLogits


def test_what_was_asked_comes_home() -> None:
    logits = torch.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(PendingLogits(logits).wait(), logits.numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_later_work_is_not_waited_for() -> None:
    matrix = torch.rand(8192, 8192, device="cuda")
    expected = matrix[:4].cpu().numpy()
    pending = PendingLogits(matrix[:4])
    for _ in range(50):
        matrix = matrix @ matrix
    end = torch.cuda.current_stream().record_event()
    np.testing.assert_array_equal(pending.wait(), expected)
    assert not end.query()
