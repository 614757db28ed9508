"""Mixup: what is drawn, and that applying is linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from teachonce.losses.mixup import Mixup, apply_mixup, dominant_rows, sample_mixup
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


def walkthroughs_mix(rows: np.ndarray, shares: np.ndarray, mixup_type: int) -> list[np.ndarray]:
    """The mixed rows as a plain loop over the walkthrough's formulas; its halves are x1 and x2."""
    half = len(rows) // 2
    x1, x2 = rows[:half], rows[half:]
    mixed = [shares[i] * x1[i] + (1 - shares[i]) * x2[i] for i in range(half)]
    if mixup_type == 2:
        mixed += [shares[half + i] * x1[i] + (1 - shares[half + i]) * x2[half - 1 - i] for i in range(half)]
    return mixed


@pytest.mark.parametrize("mixup_type", [1, 2])
@pytest.mark.parametrize("num_rows", [2, 8, 10])
def test_the_walkthroughs_types_are_its_formulas(mixup_type, num_rows: int) -> None:
    """Images, labels and teacher probabilities alike: one set of shares and one set of pairs for all three."""
    mixup = sample_mixup(generator(3), 0.2, num_rows, mixup_type)
    shares = generator(3).beta(0.2, 0.2, num_rows // 2 * mixup_type)
    for rows in (torch.randn(num_rows, 4, 4, 3), torch.softmax(torch.randn(num_rows, 7), dim=1)):
        mixed = apply_mixup(mixup, rows)
        assert mixed.shape == (num_rows // 2 * mixup_type, *rows.shape[1:])
        expected = torch.tensor(np.stack(walkthroughs_mix(rows.double().numpy(), shares, mixup_type)))
        torch.testing.assert_close(mixed.double(), expected, atol=1e-6, rtol=0)  # float32 shares of values below 5


@pytest.mark.parametrize("mixup_type", [1, 2])
def test_the_dominant_row_is_named_first(mixup_type) -> None:
    mixup = sample_mixup(generator(0), 0.2, 64, mixup_type)
    assert isinstance(mixup.share, tuple) and all(0.5 <= share <= 1 for share in mixup.share)
    labels = torch.arange(64)
    mixed = apply_mixup(mixup, torch.nn.functional.one_hot(labels, 64).float())
    assert torch.equal(dominant_rows(mixup, labels), mixed.argmax(dim=1))
    counts = np.bincount([*(mixup.rows or ()), *mixup.partners], minlength=64)
    assert (counts == mixup_type).all(), "each record is part of as many mixtures"


def test_an_odd_row_of_type_2_stays_as_it_is() -> None:
    rows = torch.randn(7, 3)
    mixed = apply_mixup(sample_mixup(generator(0), 0.2, 7, 2), rows)
    assert mixed.shape == rows.shape and torch.equal(mixed[6], rows[6])


def test_shares_of_pairs_are_beta() -> None:
    mixup = sample_mixup(generator(1), 0.4, 8000, 1)
    shares = np.array(mixup.share)
    draws = np.random.default_rng(0).beta(0.4, 0.4, 400_000)
    assert shares.mean() == pytest.approx(0.5 + np.abs(draws - 0.5).mean(), abs=4 * 0.0024)
    first = np.array(mixup.rows) < 4000
    assert abs(first.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000), "either half of the batch is dominant as often"


@pytest.mark.parametrize("mixup_type", ["batch", 1, 2])
def test_nothing_is_made_on_the_device(mixup_type, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor made there from numbers is a copy that waits for all the work before it."""
    mixup, make = sample_mixup(generator(0), 0.2, 8, mixup_type), torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda values, *, dtype: make(values, dtype=dtype))
    assert apply_mixup(mixup, torch.randn(8, 3)).shape[1] == 3
    assert len(dominant_rows(mixup, torch.arange(8))) in (4, 8)
