"""Ratios of benchmarks: the interval is that of the tables of order statistics, and holds what it should."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.cpu_ratio import MIN_ROUNDS, cpu_ratio, median_interval


@pytest.mark.parametrize(
    ("count", "low", "high"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (20, 6, 15), (50, 18, 33), (100, 40, 61)]
)
def test_the_interval_of_a_median_by_order_statistics(count: int, low: int, high: int) -> None:
    """The ranks that tables give (Conover, table A3; of n = 100: the usual normal approximation gives the same)."""
    found = median_interval(list(range(count, 0, -1)))
    assert (found.low, found.high, found.num_rounds) == (low, high, count)
    assert found.median == (count + 1) / 2


def test_it_holds_the_median_of_skewed_values() -> None:
    rng = np.random.default_rng(0)
    values = rng.exponential(1, (2000, 30))
    held = [found.low <= np.log(2) <= found.high for found in map(median_interval, values.tolist())]
    assert 0.94 <= np.mean(held) <= 0.98


def test_too_few_values() -> None:
    with pytest.raises(ValueError, match="5 values, expected at least 6"):
        median_interval([1.0] * 5)


def test_work_is_done_in_turn_until_time_is_over() -> None:
    calls: list[str] = []
    ratio = cpu_ratio(lambda: calls.append("a"), lambda: calls.append("b"), half_width=-1, max_seconds=0)
    assert "".join(calls) == "ab" + "abba" * MIN_ROUNDS and ratio.num_rounds == MIN_ROUNDS


def test_more_work_takes_more() -> None:
    ratio = cpu_ratio(lambda: sum(range(400_000)), lambda: sum(range(100_000)), half_width=0.1, max_seconds=5)
    assert ratio.low > 1
