"""Mixup: what is drawn, and that applying is linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from teachonce.mixup import Mixup, apply_mixup, sample_mixup
from teachonce.rng import generator


def test_draws_are_a_function_of_the_generator() -> None:
    first = sample_mixup(generator(1, "mixup", 2, 3, 0), 0.2, 16)
    assert first == sample_mixup(generator(1, "mixup", 2, 3, 0), 0.2, 16)
    assert first != sample_mixup(generator(1, "mixup", 2, 3, 1), 0.2, 16)
    assert sorted(first.partners) == list(range(16))


def test_shares_are_beta_folded() -> None:
    shares = np.array([sample_mixup(generator(0, index), 0.4, 2).share for index in range(4000)])
    assert (shares >= 0.5).all() and (shares <= 1).all()
    # E|X - 1/2| for Beta(a, a) by its definition; the mean of 4000 draws of deviation below 0.15 is off by 0.0024.
    draws = np.random.default_rng(0).beta(0.4, 0.4, 400_000)
    assert shares.mean() == pytest.approx(0.5 + np.abs(draws - 0.5).mean(), abs=4 * 0.0024)


def test_apply_is_the_plain_loop() -> None:
    mixup = Mixup(0.7, (2, 0, 1))
    rows = torch.arange(24, dtype=torch.float32).reshape(3, 2, 2, 2)
    mixed = apply_mixup(mixup, rows)
    for row, partner in enumerate(mixup.partners):
        torch.testing.assert_close(mixed[row], 0.7 * rows[row] + 0.3 * rows[partner])


def test_probabilities_stay_probabilities() -> None:
    probs = torch.softmax(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    mixed = apply_mixup(sample_mixup(generator(0), 1.0, 8), probs)
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(8))
    assert (mixed >= 0).all()


def test_a_share_of_1_changes_nothing() -> None:
    rows = torch.randn(4, 3)
    assert torch.equal(apply_mixup(Mixup(1.0, (3, 2, 1, 0)), rows), rows)
