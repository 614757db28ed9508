"""The engine of spawned processes on this machine, which take the next job when they are free.

Processes are spawned, never forked: a fork would copy the locks of threads that do not exist in the child. A worker
ends by itself when its parent is gone, so a killed command leaves no process behind.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from teachonce.engine.progress import Advance
from teachonce.engine.stop_between_units import POLL_SECONDS, check_stop, is_stopping, stop_with
from teachonce.engine.worker import BuildWorker, Job, Result
from teachonce.errors import TeachonceError
from teachonce.terminal import print_warning, show_warnings_as_lines

REPORT_SECONDS = 0.5
"""How often the parent passes on what its workers have reported."""


def run_in_processes(
    build_worker: BuildWorker[Job, Result],
    jobs: Sequence[Job],
    num_workers: int,
    report: Advance,
    grace_seconds: float = 0.0,
) -> Iterator[tuple[Job, Result]]:
    """Do ``jobs`` by ``num_workers`` processes; see ``worker`` for the contract.

    A process that gets SIGTERM has ``grace_seconds`` to end its job, as ``stop_between_units`` has it.

    Raises TeachonceError where a process was killed, or where a worker cannot be built for a reason of a library.
    """
    context = get_context("spawn")
    num_done = context.Value("q", 0)
    num_reported = 0
    # Read and written without a lock, which a killed worker could keep.
    is_asked = context.RawValue("b", 0)
    indices, messages = context.SimpleQueue(), context.SimpleQueue()
    for index in range(num_workers):
        indices.put(index)
    executor = ProcessPoolExecutor(
        num_workers,
        mp_context=context,
        initializer=_start_process,
        initargs=(build_worker, indices, num_done, messages, is_asked, grace_seconds, os.getpid()),
    )
    try:
        futures: dict[Future[Result], Job] = {executor.submit(_do_job, job): job for job in jobs}
        while futures:
            is_asked.value = is_stopping()
            ended, _ = wait(futures, timeout=REPORT_SECONDS, return_when=FIRST_COMPLETED)
            _pass_on(messages)
            # Without its lock, which a killed worker may hold.
            num_now = num_done.get_obj().value
            report(num_now - num_reported)
            num_reported = num_now
            for future in ended:
                yield futures.pop(future), future.result()
        _pass_on(messages)
    except BrokenProcessPool as error:
        # SIGTERM goes to all processes of a job, and reaches an idle one, which ends at once, before this one.
        time.sleep(POLL_SECONDS)
        check_stop()
        raise TeachonceError(
            "a worker process exited unexpectedly (killed, or out of memory?); completed work is kept: run the "
            "same command to resume, with fewer workers if memory ran out"
        ) from error
    finally:
        _shut_down(executor, messages)


def _shut_down(executor: ProcessPoolExecutor, messages: Any) -> None:
    """Drop the jobs that wait and wait for the others, whose warnings are passed on: a full pipe would hold them."""
    thread = threading.Thread(
        target=executor.shutdown, kwargs={"wait": True, "cancel_futures": True}, name="shut down", daemon=True
    )
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        _pass_on(messages)


def _pass_on(messages: Any) -> None:
    while not messages.empty():
        print_warning(messages.get())


def exit_with_parent(parent: int) -> None:
    """From now on end this process, at once, when its parent, the process ``parent``, is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="exit with parent", daemon=True).start()


class _Process:
    """What a worker process keeps from job to job: its worker, or why there is none, and the parent's counter."""

    def __init__(self, build_worker: BuildWorker[Any, Any], index: int, num_done: Any) -> None:
        self.is_busy = False
        self._num_done = num_done
        self._failure: Exception | None = None
        try:
            self._worker = build_worker(index)
        except TeachonceError as error:
            self._failure = error
        except Exception as error:
            # Out of memory on the device, say: the libraries' errors cannot all be sent between processes.
            self._failure = TeachonceError(f"a worker process could not start: {type(error).__name__}: {error}")

    def do(self, job: Any) -> Any:
        # An error in an executor's initializer would break the pool and lose its message: the first job raises it.
        if self._failure is not None:
            raise self._failure
        self.is_busy = True
        try:
            check_stop()
            result = self._worker(job, self._report)
            check_stop()
            return result
        finally:
            self.is_busy = False

    def _report(self, count: int) -> None:
        with self._num_done.get_lock():
            self._num_done.value += count


_process: _Process | None = None
"""This process, where it is a worker: an executor hands its tasks nothing that its initializer has made."""


def _start_process(
    build_worker: BuildWorker[Any, Any],
    indices: Any,
    num_done: Any,
    messages: Any,
    is_asked: Any,
    grace_seconds: float,
    parent: int,
) -> None:
    global _process
    # Ctrl-C goes to the whole group of processes: the workers end at once and silently, the parent prints the message.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    exit_with_parent(parent)
    if grace_seconds:
        stop_with(lambda: bool(is_asked.value), grace_seconds, lambda: _process is not None and _process.is_busy)
    # Every worker would say the same: the parent says it once.
    show_warnings_as_lines(messages.put)
    _process = _Process(build_worker, indices.get(), num_done)


def _do_job(job: Any) -> Any:
    assert _process is not None
    return _process.do(job)
