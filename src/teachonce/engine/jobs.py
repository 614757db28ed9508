"""Jobs on this machine: inline, or in spawned processes that take the next job when they are free.

The unit of work is one shard, and a job's result is a file that appears whole or not at all; so nothing has to be
undone when a process dies, and the same command again does what is missing. A scheduler's job array, ``torchrun`` or
several machines need no more than ``--worker i/n``, which ``take_part`` turns into a part of the jobs.

Processes are spawned, never forked: a fork would copy the locks of threads that do not exist in the child. A worker
ends by itself when its parent is gone, so a killed command leaves no process behind.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from teachonce.errors import TeachonceError

Job = TypeVar("Job")
Result = TypeVar("Result")
Worker = Callable[[Job], Result]

PROGRESS_SECONDS = 0.5
"""How often a parent asks what its workers have counted."""

_worker: Callable[[Any], Any] | None = None  # of this process, set by _start_worker
_count: Callable[[int], None] | None = None  # what count_done calls: of this process, set where jobs are run


def num_cores() -> int:
    """Cores that this process may use (a container's or scheduler's mask counts)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def take_part(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """The ``index``-th of ``count`` disjoint parts that together are ``jobs``."""
    return list(jobs[index::count])


def count_done(count: int) -> None:
    """Say from within a job that ``count`` more items are done, for the ``advance`` of ``run_jobs``."""
    if _count is not None:
        _count(count)


def run_jobs(
    build_worker: Callable[[int], Worker[Job, Result]],
    jobs: Sequence[Job],
    num_workers: int,
    advance: Callable[[int], None] | None = None,
) -> Iterator[tuple[Job, Result]]:
    """Do ``jobs`` and yield (job, result) as they end, in the order of ``jobs`` when inline.

    ``build_worker(worker_index)`` is called once in each process and gives the function that does a job; it must be
    picklable (a module's function, or a partial of one). The first error ends the work and is raised here unchanged.
    ``advance`` is called with what the jobs report by ``count_done``, while they run.
    """
    global _count  # inline, the jobs count in this process
    if num_workers <= 1 or len(jobs) <= 1:
        if jobs:
            worker = build_worker(0)
            for job in jobs:
                _count = advance
                try:
                    result = worker(job)
                finally:
                    _count = None
                yield job, result
        return
    yield from _run_in_processes(build_worker, jobs, min(num_workers, len(jobs)), advance or (lambda count: None))


def _run_in_processes(
    build_worker: Callable[[int], Worker[Job, Result]],
    jobs: Sequence[Job],
    num_workers: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[Job, Result]]:
    context = get_context("spawn")
    counter = context.Value("q", 0)
    num_seen = 0
    indices = context.SimpleQueue()
    for index in range(num_workers):
        indices.put(index)
    executor = ProcessPoolExecutor(
        num_workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(build_worker, indices, counter, os.getpid()),
    )
    try:
        futures: dict[Future[Any], Job] = {executor.submit(_do_job, job): job for job in jobs}
        while futures:
            done, _ = wait(futures, timeout=PROGRESS_SECONDS, return_when=FIRST_COMPLETED)
            num_counted = counter.value
            advance(num_counted - num_seen)
            num_seen = num_counted
            for future in done:
                yield futures.pop(future), future.result()
    except BrokenProcessPool as error:
        raise TeachonceError(
            "a worker process ended without a word (killed, or out of memory?); the shards that are whole are kept: "
            "run the same command again, with fewer workers if memory was short"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(build_worker: Callable[[int], Worker[Any, Any]], indices: Any, counter: Any, parent: int) -> None:
    global _worker, _count  # the executor's own way of keeping state in a process
    # Ctrl-C goes to the whole group of processes: the workers end at once and in silence, the parent speaks.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def count(number: int) -> None:
        with counter.get_lock():
            counter.value += number

    _count = count
    threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()
    index = indices.get()
    try:
        _worker = build_worker(index)
    except Exception as error:
        # An error in an initializer would break the pool and lose its message; the first job raises it instead.
        failure: Exception = error
        if not isinstance(error, TeachonceError):
            # Out of memory on the device, say: the libraries' errors do not all survive the way between processes.
            failure = TeachonceError(f"a worker process cannot start: {type(error).__name__}: {error}")

        def fail(job: Any) -> Any:
            raise failure

        _worker = fail


def _do_job(job: Any) -> Any:
    assert _worker is not None
    return _worker(job)


def exit_with_parent(parent: int) -> None:
    """End this process, at once, when ``parent`` is gone; for a daemon thread of a spawned process."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
