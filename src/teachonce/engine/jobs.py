"""Jobs: done by the engine that was chosen, or split between commands.

A scheduler's job array, ``torchrun`` or several machines need no cluster engine but ``--worker i/n``. Such workers
share no state beside the files: each does its own part and then what the others' parts lack, in an order of its own, so
that few do the same; whoever puts a file first wins. So no worker waits for another one, and none must be replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from teachonce.engine.inline import run_inline
from teachonce.engine.options import Engine
from teachonce.engine.processes import run_in_processes
from teachonce.engine.progress import Advance
from teachonce.engine.worker import BuildWorker, Job, Result
from teachonce.rng import generator


def run_jobs(
    build_worker: BuildWorker[Job, Result], jobs: Sequence[Job], *, engine: Engine, report: Advance
) -> Iterator[tuple[Job, Result]]:
    """Do ``jobs`` and yield (job, result) as they end: in a cluster, in processes, or inline for one worker or job.

    ``build_worker(index)`` makes a worker, ``worker(job, report)`` does a job; see ``worker`` for the contract. While
    the jobs run, ``report`` is called in this process with the numbers of items that they report as done.
    """
    if engine.name == "ray":
        from teachonce.engine.ray_engine import run_on_ray

        return run_on_ray(build_worker, jobs, engine, report)
    num_workers = min(engine.num_workers, len(jobs))
    if num_workers <= 1:
        return run_inline(build_worker, jobs, report)
    return run_in_processes(build_worker, jobs, num_workers, report, engine.grace_seconds)


def describe_start(num_workers: int, num_jobs: int) -> str:
    """What ``run_jobs`` does until the first item is done, as a phase of the progress."""
    num_workers = min(num_workers, num_jobs)
    return f"starting {num_workers} workers" if num_workers > 1 else "starting"


def partition(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """The ``index``-th of ``count`` disjoint parts that together are ``jobs``."""
    return list(jobs[index::count])


def others_permuted(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """The jobs of the other parts, in an order that is this worker's own."""
    others = [job for number, job in enumerate(jobs) if number % count != index]
    return [others[at] for at in generator(0, "job array", index).permutation(len(others)).tolist()]


def order_for_worker(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """All jobs, as the ``index``-th of ``count`` workers does them: its own part, then the others'."""
    return partition(jobs, index, count) + others_permuted(jobs, index, count)
