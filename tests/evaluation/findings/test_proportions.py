"""Intervals and the test: published values, scipy's, and what they promise, by adding up all outcomes."""

from __future__ import annotations

from math import comb, sqrt

import pytest

from teachonce.evaluation.findings.proportions import (
    EXACT_PAIRS,
    mcnemar_p,
    paired_difference,
    quantile,
    wilson_interval,
)


@pytest.mark.parametrize(
    "correct, count, low, high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(correct: int, count: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3; printed with four digits."""
    assert wilson_interval(correct, count) == pytest.approx((low, high), abs=0.00005)


def test_wilsons_interval_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for count in (1, 2, 12, 50, 1000):
        for correct in {0, 1, count // 3, count - 1, count}:
            expected = stats.binomtest(correct, count).proportion_ci(method="wilson")
            # Rounding of some ten operations on numbers up to 1.
            assert wilson_interval(correct, count) == pytest.approx(tuple(expected), abs=1e-14)


def test_nothing_counted_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_several_intervals_at_once_are_wider() -> None:
    # A twentieth of a twentieth to either side: 3.0233 in tables of the normal distribution (p = 0.99875).
    assert quantile() == pytest.approx(1.959964, abs=1e-6) and quantile(20) == pytest.approx(3.0233, abs=1e-4)
    one, many = wilson_interval(6, 12), wilson_interval(6, 12, 20)
    assert many[0] < one[0] < 0.5 < one[1] < many[1]


def test_mcnemar_is_the_published_one() -> None:
    """Agresti, Categorical Data Analysis, section 10.1: 86 and 150 of 1,600, z = -4.17, squared 17.36, without the
    correction; p = 3.1e-5. The exact p is larger, as it counts the outcome itself."""
    assert pytest.approx(17.36, abs=0.005) == (150 - 86) ** 2 / (150 + 86)
    assert 3.1e-5 < mcnemar_p(86, 150) < 4.5e-5
    # By hand: one of six or fewer by a fair coin is 7 of 64, on both sides 14.
    assert mcnemar_p(1, 5) == mcnemar_p(5, 1) == 14 / 64
    assert mcnemar_p(0, 0) == mcnemar_p(3, 3) == 1.0
    assert mcnemar_p(0, 5) == 2 / 32


def test_mcnemar_is_scipys_binomial_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    for first, second in [(0, 1), (2, 9), (10, 10), (40, 61), (480, 520), (400, 600)]:
        assert mcnemar_p(first, second) == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-9)


def test_beyond_the_exact_test_there_is_no_step() -> None:
    stats = pytest.importorskip("scipy.stats")
    for first in (440, 470, 500):
        second = EXACT_PAIRS + 1 - first
        exact = stats.binomtest(first, first + second).pvalue
        # The normal distribution for a sum of 1001 coins: within 2 % out to 4 standard errors.
        assert mcnemar_p(first, second) == pytest.approx(exact, rel=0.02)
    assert mcnemar_p(10_000, 10_000) == 1.0 and mcnemar_p(0, 5000) == 0.0


def test_the_difference_is_paired() -> None:
    value, low, high = paired_difference(10, 40, 1000)
    assert value == -0.03
    # By hand: (11 - 41) / 1002 and 1.96 sqrt((52 - 900 / 1002) / 1002) / sqrt(1002).
    middle, half = -30 / 1002, 1.959964 * sqrt((52 - 900 / 1002) / 1002**2)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-9)
    # The same the other way round, and with a width where no model is right alone.
    assert paired_difference(40, 10, 1000) == pytest.approx((0.03, -high, -low))
    assert paired_difference(0, 0, 12).low < -0.1 and paired_difference(12, 0, 12).high == 1.0


@pytest.mark.parametrize("only_first, only_second", [(0.05, 0.1), (0.3, 0.3), (0.02, 0.02), (0.0, 0.25)])
def test_the_difference_covers(only_first: float, only_second: float) -> None:
    """The chance that the interval holds the truth, over every outcome of 40 images: 95 %, and never under 93.

    93: what Bonett and Price report as the least of an interval that is meant to be 95 % and not at least that.
    """
    count, covered = 40, 0.0
    for first in range(count + 1):
        for second in range(count + 1 - first):
            rest = count - first - second
            chance = (
                comb(count, first)
                * comb(count - first, second)
                * only_first**first
                * only_second**second
                * (1 - only_first - only_second) ** rest
            )
            _, low, high = paired_difference(first, second, count)
            covered += chance * (low <= only_first - only_second <= high)
    assert covered > 0.93
