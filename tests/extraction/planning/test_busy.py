"""Whether a machine is busy: the signs by hand, and a real process that takes a core meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from teachonce.extraction.planning.busy import CpuTicks, MachineUse, Measurement, parse_ticks, read_ticks, spread

SPIN = "import sys, time\nprint(flush=True)\nend = time.time() + 20\nwhile time.time() < end: pass"


def measurement(**changes: Any) -> Measurement:
    quiet: dict[str, Any] = {
        "seconds": 10.0,
        "num_batches": 4,
        "batch_spread": 0.05,
        "load_average": 8.0,
        "num_cores": 8,
        "machine_cores": 8,
        "other_cores": 0.2,
        "steal": 0.0,
    }
    return Measurement(**quiet | changes)


@pytest.mark.parametrize(
    ("changes", "sign"),
    [
        ({}, None),
        ({"steal": 0.2}, "20% of the CPU time was taken by other virtual machines (steal)"),
        ({"other_cores": 2.0}, "other processes used 2.0 of 8 cores"),
        # A container of 8 of 64 cores does not feel ten others at work beside it, but 60.
        ({"other_cores": 10.0, "machine_cores": 64}, None),
        ({"other_cores": 60.0, "machine_cores": 64}, "other processes used 60.0 of 64 cores"),
        ({"batch_spread": 0.5}, "the time of the teacher's batches varied by 50% of the median"),
        ({"batch_spread": None}, None),
        # Where no ticks are counted the load stands in; elsewhere this command's own start is in it.
        ({"other_cores": None, "steal": None}, "the load average was 8.0 on 8 cores before the measurement"),
        ({"other_cores": None, "steal": None, "load_average": 1.0}, None),
        ({"other_cores": None, "steal": None, "load_average": None}, None),
    ],
)
def test_signs(changes: dict[str, Any], sign: str | None) -> None:
    assert measurement(**changes).signs == ([] if sign is None else [sign])


def test_spread() -> None:
    assert spread([]) is None and spread([1.0]) is None
    assert spread([1.0, 1.0, 1.5]) == pytest.approx(0.5)


def test_the_counters_of_linux() -> None:
    text = "cpu  100 20 30 400 50 6 7 8 99 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n"
    assert parse_ticks(text) == CpuTicks(total=621, idle=450, steal=8)
    for wrong in ("", "cpu0 1 2 3 4 5 6 7 8", "cpu 1 2 3", "cpu a b c d e f g h"):
        with pytest.raises(ValueError):
            parse_ticks(wrong)


def test_a_process_that_takes_a_core_is_seen_and_our_own_work_is_not() -> None:
    if read_ticks() is None:
        pytest.skip("this system counts no ticks")
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            use, end = MachineUse(), time.monotonic() + 1.5
            while time.monotonic() < end:
                pass
            found = use.finish([0.1, 0.1])
        finally:
            other.kill()
    assert found.other_cores is not None and found.steal is not None
    # A scheduler that is fair gives it half a core at least; all but our own time is somebody else's.
    assert 0.3 < found.other_cores <= found.machine_cores
    assert found.seconds >= 1.5 and found.num_batches == 2 and found.batch_spread == 0
