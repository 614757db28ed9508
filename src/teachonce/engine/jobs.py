"""Jobs: done by the engine that fits the number of workers, or split between commands.

A scheduler's job array, ``torchrun`` or several machines need no more than ``--worker i/n``, which ``partition`` turns
into a part of the jobs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from teachonce.engine.inline import run_inline
from teachonce.engine.processes import run_in_processes
from teachonce.engine.progress import Advance
from teachonce.engine.worker import BuildWorker, Job, Result


def run_jobs(
    build_worker: BuildWorker[Job, Result], jobs: Sequence[Job], *, num_workers: int, report: Advance
) -> Iterator[tuple[Job, Result]]:
    """Do ``jobs`` and yield (job, result) as they end: inline for one worker or job, else in processes.

    ``build_worker(index)`` makes a worker, ``worker(job, report)`` does a job; see ``worker`` for the contract. While
    the jobs run, ``report`` is called in this process with the numbers of items that they report as done.
    """
    num_workers = min(num_workers, len(jobs))
    if num_workers <= 1:
        return run_inline(build_worker, jobs, report)
    return run_in_processes(build_worker, jobs, num_workers, report)


def describe_start(num_workers: int, num_jobs: int) -> str:
    """What ``run_jobs`` does until the first item is done, as a phase of the progress."""
    num_workers = min(num_workers, num_jobs)
    return f"starting {num_workers} workers" if num_workers > 1 else ""


def partition(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """The ``index``-th of ``count`` disjoint parts that together are ``jobs``."""
    return list(jobs[index::count])
