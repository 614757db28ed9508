"""A ratio of two pieces of work by CPU time, measured until its interval is as narrow as the claim needs.

CPU time (user + system) of this process and not the clock: on a shared machine it leaves out what others take. What
they do to caches and clock rates remains, so the two are run in turn, A B B A, and each such round gives one ratio, in
which a drift counts for both. The result is the median of the rounds' ratios with its distribution-free 95 % interval:
the order statistics that a sign test does not reject (Conover, Practical Nonparametric Statistics, 3.2). As rounds end
when it is narrow, its true level is a little lower.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

MIN_ROUNDS = 6
"""With fewer, no two order statistics hold 95 %."""


class Interval(NamedTuple):
    """A median, and the 95 % interval of the median of what it was drawn from."""

    median: float
    low: float
    high: float
    num_rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f}, {self.num_rounds} rounds)"


def median_interval(values: Sequence[float]) -> Interval:
    """The interval of at least ``MIN_ROUNDS`` independent values."""
    n = len(values)
    if n < MIN_ROUNDS:
        raise ValueError(f"{n} values, expected at least {MIN_ROUNDS}")
    ordered = sorted(values)
    # The largest k for which fewer than k values below the median happen in 2.5 % of all cases at most.
    below, k = 1.0, 0
    while below / 2**n <= 0.025:
        k += 1
        below += math.comb(n, k)
    return Interval(statistics.median(ordered), ordered[k - 1], ordered[n - k], n)


def cpu_ratio(
    ours: Callable[[], object], other: Callable[[], object], *, half_width: float = 0.005, max_seconds: float = 300.0
) -> Interval:
    """CPU time of ``ours`` / CPU time of ``other``; rounds go on until the interval is within ``half_width`` of it.

    Ends after ``max_seconds`` by the clock, too: the interval says what was reached.
    """
    ours(), other()
    begin = time.perf_counter()
    ratios: list[float] = []
    while True:
        seconds = [cpu_seconds(work) for work in (ours, other, other, ours)]
        ratios.append((seconds[0] + seconds[3]) / (seconds[1] + seconds[2]))
        if len(ratios) < MIN_ROUNDS:
            continue
        found = median_interval(ratios)
        is_narrow = max(found.high - found.median, found.median - found.low) <= half_width * found.median
        if is_narrow or time.perf_counter() - begin > max_seconds:
            return found


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time (user + system) of this process."""
    begin = time.process_time()
    work()
    return time.process_time() - begin
