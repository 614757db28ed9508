"""Checks, which hold or not, and measurements, which are what they are; and how work on a device is timed."""

from __future__ import annotations

import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Check:
    """What must hold: what was found, and what was expected."""

    part: str
    name: str
    found: str
    expected: str
    is_right: bool


@dataclass(frozen=True)
class Ratio:
    """Of two rates measured in turn: median, least and most of their ratios, and the median rates in units/s."""

    ratios: tuple[float, ...]
    rate: float
    other_rate: float

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.ratios)

    def __str__(self) -> str:
        return f"{self.median:.3f} ({min(self.ratios):.3f} to {max(self.ratios):.3f})"


@dataclass
class Report:
    """What the parts have found so far; printed as it comes."""

    checks: list[Check] = field(default_factory=list)
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    _part: str = ""

    def check(self, name: str, found: object, expected: str, is_right: bool) -> None:
        """Put down what must hold."""
        made = Check(self._part, name, str(found), expected, bool(is_right))
        self.checks.append(made)
        sign = "ok  " if made.is_right else "FAIL"
        print(f"{sign} {name}: found {made.found}, expected {expected}", file=sys.stderr, flush=True)

    def check_at_most(self, name: str, found: float, bound: float) -> None:
        """A number that must not be larger; NaN is."""
        self.check(name, f"{found:.3g}", f"at most {bound:.3g}", found <= bound)

    def measure(self, what: str, found: object) -> None:
        """Put down what was measured."""
        self.rows.append((self._part, what, str(found)))
        print(f"     {what}: {found}", file=sys.stderr, flush=True)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of the whole; what goes wrong in it is a check that does not hold, and the next part is begun."""
        self._part = name
        print(f"-- {name}", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        try:
            yield
        except Exception as error:
            # Whatever it is, the other parts are worth their table.
            traceback.print_exc()
            line = (str(error).splitlines() or [""])[0][:200]
            self.check(f"{name}: runs to its end", f"{type(error).__name__}: {line}", "no error", False)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    @property
    def failed(self) -> list[Check]:
        """The checks that do not hold."""
        return [item for item in self.checks if not item.is_right]

    def to_lines(self) -> list[str]:
        """Both tables as Markdown."""
        lines = ["## Measured", "", "| part | what | found |", "|---|---|---|"]
        lines += [f"| {part} | {what} | {found} |" for part, what, found in self.rows]
        lines += ["", "## Checked", "", "| part | what | found | expected | |", "|---|---|---|---|---|"]
        lines += [
            f"| {item.part} | {item.name} | {item.found} | {item.expected} | {'holds' if item.is_right else '**no**'} |"
            for item in self.checks
        ]
        return lines


def in_turn(
    device: torch.device, work: Callable[[], int], other: Callable[[], int], rounds: int, *, warm_up: int = 1
) -> Ratio:
    """The ratio of two rates, measured A B B A in each round; each work returns how many units it did."""
    for _ in range(warm_up):
        work(), other()
    rates: list[float] = []
    other_rates: list[float] = []
    ratios = []
    for _ in range(rounds):
        found = [_rate(device, chosen) for chosen in (work, other, other, work)]
        rates += [found[0], found[3]]
        other_rates += [found[1], found[2]]
        ratios.append((1 / found[1] + 1 / found[2]) / (1 / found[0] + 1 / found[3]))
    return Ratio(tuple(ratios), statistics.median(rates), statistics.median(other_rates))


def rates(device: torch.device, work: Callable[[], int], rounds: int) -> list[float]:
    """Units/s of several rounds after one that warms up."""
    work()
    return [_rate(device, work) for _ in range(rounds)]


def _rate(device: torch.device, work: Callable[[], int]) -> float:
    synchronize(device)
    begin = time.perf_counter()
    count = work()
    synchronize(device)
    return count / (time.perf_counter() - begin)


def synchronize(device: torch.device) -> None:
    """Wait for all that was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Inside, PyTorch raises where it would wait for the device; on a CPU nothing is different."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
