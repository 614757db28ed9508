"""Jobs: inline and in processes, errors unchanged, and no process left behind by a kill."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from teachonce.engine.jobs import count_done, run_jobs, take_part
from teachonce.errors import RecordError, TeachonceError


class Squarer:
    def __init__(self, fail_at, worker_index):
        self.fail_at = fail_at
        self.worker_index = worker_index

    def __call__(self, job):
        if job == self.fail_at:
            raise RecordError(f"job {job} is bad").at("shard-7")
        if job == -9:
            os.kill(os.getpid(), signal.SIGKILL)
        count_done(10)
        return job * job, self.worker_index


def refuse(worker_index):
    raise RecordError("no teacher today")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_job_is_done_once(num_workers):
    results = dict(run_jobs(partial(Squarer, None), list(range(7)), num_workers))
    assert {job: square for job, (square, _) in results.items()} == {job: job * job for job in range(7)}
    assert {worker for _, worker in results.values()} <= set(range(num_workers))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_the_jobs_count_arrives(num_workers):
    counts = []
    assert len(list(run_jobs(partial(Squarer, None), list(range(7)), num_workers, counts.append))) == 7
    assert sum(counts) == 70


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_crosses_the_process_unchanged(num_workers):
    with pytest.raises(RecordError, match=r"^shard-7: job 3 is bad$"):
        list(run_jobs(partial(Squarer, 3), list(range(6)), num_workers))


def test_a_worker_that_cannot_start_says_why():
    with pytest.raises(RecordError, match="no teacher today"):
        list(run_jobs(refuse, [1, 2, 3], 2))


def test_a_killed_worker_is_one_line():
    with pytest.raises(TeachonceError, match="run the same command again"):
        list(run_jobs(partial(Squarer, None), [1, -9, 2], 2))


def test_parts_are_disjoint_and_whole():
    jobs = list(range(11))
    parts = [take_part(jobs, index, 4) for index in range(4)]
    assert sorted(job for part in parts for job in part) == jobs
    assert take_part(jobs, 0, 1) == jobs


SLEEPERS = """
import os, sys, time
from teachonce.engine.jobs import run_jobs
def build(index):
    return sleep
def sleep(job):
    open(os.path.join({folder!r}, str(os.getpid())), "w").close()
    time.sleep(60)
if __name__ == "__main__":
    list(run_jobs(build, [1, 2], 2))
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "sleepers.py"
    folder = tmp_path / "pids"
    folder.mkdir()
    script.write_text(SLEEPERS.format(folder=str(folder)))
    parent = subprocess.Popen([sys.executable, str(script)])
    wait_until(lambda: len(list(folder.iterdir())) == 2)
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(is_running(int(path.name)) for path in folder.iterdir()))


def wait_until(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] != "Z"  # a zombie that nobody reaped does not run
