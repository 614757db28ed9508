"""Whether other processes used the machine while a plan measured on it: then its figures are those of a slower machine.

Three signs, each where the system tells it: time that the hypervisor gave to other machines (*steal*), cores that other
processes used and this one would have had, and batches of the teacher that took unequal times, which is the only sign
of other users of a GPU. Where the system counts no ticks (not Linux), the load average before the start is used.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from teachonce.engine.machine import num_cores

MAX_STEAL = 0.05
MAX_OTHERS = 0.1
"""Of the cores that this process may use."""
MAX_LOAD = 0.5
"""A core, before the start."""
MAX_SPREAD = 0.3
"""Between the slowest and the fastest batch, of the median."""
_STAT = Path("/proc/stat")


class CpuTicks(NamedTuple):
    """Of all cores since the machine was started, in ticks of the system."""

    total: int
    idle: int
    steal: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How a plan was measured, and what else went on meanwhile; None: the system does not say."""

    seconds: float
    num_batches: int
    batch_spread: float | None
    """(slowest - fastest) / median of the teacher's batches; None with fewer than two."""
    load_average: float | None
    """Of one minute, before the start."""
    num_cores: int
    """That this process may use."""
    machine_cores: int
    other_cores: float | None
    """That other processes used, on average."""
    steal: float | None
    """Share of the time of all cores that the hypervisor gave away."""

    @property
    def signs(self) -> list[str]:
        """What says that the machine was busy, as phrases; none where nothing does."""
        found = []
        if self.steal is not None and self.steal > MAX_STEAL:
            found.append(f"{self.steal:.0%} of the CPU time was taken by other virtual machines (steal)")
        if self.other_cores is not None:
            is_felt = self.num_cores + self.other_cores > self.machine_cores
            if is_felt and self.other_cores > MAX_OTHERS * self.num_cores:
                found.append(f"other processes used {self.other_cores:.1f} of {self.machine_cores} cores")
        elif self.load_average is not None and self.load_average > MAX_LOAD * self.machine_cores:
            found.append(
                f"the load average was {self.load_average:.1f} on {self.machine_cores} cores before the measurement"
            )
        if self.batch_spread is not None and self.batch_spread > MAX_SPREAD:
            found.append(f"the time of the teacher's batches varied by {self.batch_spread:.0%} of the median")
        return found


class MachineUse:
    """Watches the machine from when it is made until ``finish``."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._before = read_ticks()
        self._own = _own_seconds()
        self._start = time.perf_counter()

    def finish(self, batch_seconds: Sequence[float]) -> Measurement:
        """What went on since, beside the teacher's batches, which took so long each."""
        seconds = time.perf_counter() - self._start
        own, after = _own_seconds() - self._own, read_ticks()
        others = steal = None
        machine_cores = os.cpu_count() or 1
        if self._before is not None and after is not None and after.total > self._before.total:
            total = after.total - self._before.total
            stolen = after.steal - self._before.steal
            busy = (total - stolen - (after.idle - self._before.idle)) / total * machine_cores
            others, steal = max(0.0, busy - own / seconds), max(0.0, stolen / total)
        return Measurement(
            seconds=seconds,
            num_batches=len(batch_seconds),
            batch_spread=spread(batch_seconds),
            load_average=self._load,
            num_cores=num_cores(),
            machine_cores=machine_cores,
            other_cores=others,
            steal=steal,
        )


def spread(seconds: Sequence[float]) -> float | None:
    """(slowest - fastest) / median; None of fewer than two."""
    return None if len(seconds) < 2 else (max(seconds) - min(seconds)) / statistics.median(seconds)


def read_ticks() -> CpuTicks | None:
    """The counters of all cores together; None where the system has none."""
    try:
        return parse_ticks(_STAT.read_text())
    except (OSError, ValueError):
        return None


def parse_ticks(text: str) -> CpuTicks:
    """The first line of /proc/stat; ValueError for another text. Time of guests is part of the time of users there."""
    name, *words = text.partition("\n")[0].split()
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = [int(word) for word in words[:8]]
    if name != "cpu" or len(ticks) < 8:
        raise ValueError(text)
    return CpuTicks(total=sum(ticks), idle=ticks[3] + ticks[4], steal=ticks[7])


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system
