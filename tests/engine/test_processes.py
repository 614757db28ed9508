"""Worker processes: what goes wrong with one is a message, and none is left behind by a kill."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from teachonce.engine.processes import run_in_processes
from teachonce.errors import TeachonceError
from teachonce.terminal import show_warnings_as_lines

SHOW_WARNING = warnings.showwarning


def ignore(count):
    pass


def build_mortal(worker_index):
    return die_at_nine


def die_at_nine(job, report):
    if job == 9:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line():
    expected = r"^a worker process exited unexpectedly \(killed, or out of memory\?\); .* the same command to resume"
    with pytest.raises(TeachonceError, match=expected):
        list(run_in_processes(build_mortal, [1, 9, 2], 2, ignore))


def run_out_of_memory(worker_index):
    raise MemoryError("no 9 GB on this device")


def test_a_library_error_at_the_start_is_one_line():
    expected = "^a worker process could not start: MemoryError: no 9 GB on this device$"
    with pytest.raises(TeachonceError, match=expected):
        list(run_in_processes(run_out_of_memory, [1, 2], 2, ignore))


def build_warner(worker_index):
    return warn_of_everything


def warn_of_everything(job, report):
    warnings.warn("this worker's library is old", stacklevel=1)
    warnings.warn(f"job {job} is strange", stacklevel=1)
    return job


def test_what_all_workers_warn_of_is_shown_once(capfd):
    show_warnings_as_lines()
    try:
        assert sorted(job for job, _ in run_in_processes(build_warner, [1, 2, 3], 2, ignore)) == [1, 2, 3]
    finally:
        warnings.showwarning = SHOW_WARNING
    shown = sorted(capfd.readouterr().err.splitlines())
    assert shown == [f"teachonce: warning: job {job} is strange" for job in (1, 2, 3)] + [
        "teachonce: warning: this worker's library is old"
    ]


def build_locker(worker_index):
    return die_with_the_lock


def die_with_the_lock(job, report):
    # As one that is killed while it counts.
    report.__self__._num_done.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_while_it_counts():
    with pytest.raises(TeachonceError, match="exited unexpectedly"):
        list(run_in_processes(build_locker, [1], 1, ignore))


def build_complainer(worker_index):
    return complain


def complain(job, report):
    if job == 0:
        raise TeachonceError("the first job fails")
    time.sleep(1)
    for number in range(2000):
        warnings.warn(f"{number} {'x' * 100}", stacklevel=1)


def test_warnings_after_an_error_hold_nothing_up(capfd):
    """More than a pipe holds."""
    show_warnings_as_lines()
    try:
        with pytest.raises(TeachonceError, match="the first job fails"):
            list(run_in_processes(build_complainer, [0, 1], 2, ignore))
    finally:
        warnings.showwarning = SHOW_WARNING
    assert len(capfd.readouterr().err.splitlines()) == 2000


SLEEPERS = """
import os, sys, time
from teachonce.engine.processes import run_in_processes
def build(index):
    return sleep
def sleep(job, report):
    open(os.path.join({folder!r}, str(os.getpid())), "w").close()
    time.sleep(60)
if __name__ == "__main__":
    list(run_in_processes(build, [1, 2], 2, print))
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "sleepers.py"
    folder = tmp_path / "pids"
    folder.mkdir()
    script.write_text(SLEEPERS.format(folder=str(folder)))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL)
    wait_until(lambda: len(list(folder.iterdir())) == 2)
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(is_running(int(path.name)) for path in folder.iterdir()))


def wait_until(holds, seconds=120):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def is_running(pid):
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):  # the latter of one that ends between the two
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"  # a zombie that nobody reaped does not run
