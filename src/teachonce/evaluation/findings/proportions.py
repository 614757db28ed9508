"""Proportions of few images: intervals that hold at 0 of 12 too, and a test for two models on the same images.

The textbook's p +- 1.96 sqrt(p (1 - p) / n) has no width at 0 of 12, which is where a class is judged. Wilson's score
interval does: Wilson 1927, J. Am. Stat. Assoc. 22:209-212; Brown, Cai and DasGupta 2001, Statistical Science
16:101-133, recommend it for small n.

Two models on the same images differ only where one of them alone is right (the discordant pairs), so only these are
tested: McNemar 1947, Psychometrika 12:153-157. Their difference has the interval of Bonett and Price 2012, J.
Educational and Behavioral Statistics 37:479-488, which Fagerland, Lydersen and Laake 2014, Statistics in Medicine
33:2850-2875, recommend: it adds one image to either side, and so has a width where no model was right alone.

Standard library only: scipy belongs to another extra than an evaluation, and is what the tests compare with.
"""

from __future__ import annotations

from math import comb, erfc, sqrt
from statistics import NormalDist
from typing import NamedTuple

LEVEL = 0.95
EXACT_PAIRS = 1000
"""Discordant pairs up to which McNemar's test is the exact binomial one."""


class Difference(NamedTuple):
    """One proportion less another, of the same images."""

    value: float
    low: float
    high: float


def quantile(num_intervals: int = 1) -> float:
    """How many standard errors ``LEVEL`` reaches to either side; with ``num_intervals``, all hold together.

    Bonferroni: of 1000 classes 50 intervals would miss by chance.
    """
    return NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * num_intervals))


def wilson_interval(correct: int, count: int, num_intervals: int = 1) -> tuple[float, float]:
    """The score interval of ``correct`` of ``count``; 0 to 1 where nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    z = quantile(num_intervals)
    middle = (correct + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * sqrt(correct * (count - correct) / count + z * z / 4)
    # At the ends the two terms are equal, but for rounding.
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == count else middle + half)


def paired_difference(only_first: int, only_second: int, count: int) -> Difference:
    """The first model's accuracy less the second's on ``count`` images, of which one alone was right on so many."""
    z = quantile()
    first, second = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    half = z * sqrt((first + second - (first - second) ** 2) / (count + 2))
    middle = first - second
    return Difference((only_first - only_second) / count, max(-1.0, middle - half), min(1.0, middle + half))


def mcnemar_p(only_first: int, only_second: int) -> float:
    """The two-sided p value: how often models of one accuracy would differ by so many images, or more.

    Exact up to ``EXACT_PAIRS`` discordant pairs: twice the binomial tail of a fair coin, at most 1. Beyond, where the
    two agree, chi-squared of one degree of freedom with Edwards's correction, (|b - c| - 1)^2 / (b + c) (1948,
    Psychometrika 13:185-187).
    """
    num_pairs = only_first + only_second
    if num_pairs == 0:
        return 1.0
    if num_pairs > EXACT_PAIRS:
        return erfc(max(0, abs(only_first - only_second) - 1) / sqrt(2 * num_pairs))
    tail = sum(comb(num_pairs, number) for number in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**num_pairs)
