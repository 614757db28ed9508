"""SIGTERM in ``extract``, ``records``, ``merge`` and on Ray: what was started is finished, or dropped.

Spot machines and schedulers send it before they end a process. ``stop_long_work`` is for ``train`` and ``ablate``.
Within the block of ``stopping_gently`` the signal is a request: work that is done in pieces asks ``is_stopping`` before
it begins the next one, and engines raise ``StoppedError`` where a job has ended so. What is not finished when the time
of grace is over is dropped with the process. Nothing has to be undone then: files are complete or absent.

A worker process of ours is asked by its parent, or by the same signal (``stop_with``).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from teachonce.errors import StoppedError
from teachonce.terminal import print_line

POLL_SECONDS = 0.1
_STOPPED = "stopped by SIGTERM; completed work is kept. Run the same command to resume"


class _Request:
    """Whether this process was asked to stop. Plain attributes: a signal handler must not wait for a lock."""

    is_made = False
    is_made_elsewhere: Callable[[], bool] | None = None


def is_stopping() -> bool:
    """Whether nothing more should be started."""
    elsewhere = _Request.is_made_elsewhere
    return _Request.is_made or (elsewhere is not None and elsewhere())


def check_stop() -> None:
    """Raise StoppedError where this process was asked to stop."""
    if is_stopping():
        raise stopped_error()


def stopped_error() -> StoppedError:
    """What is raised after SIGTERM."""
    return StoppedError(_STOPPED)


def stop_with(is_asked: Callable[[], bool], grace_seconds: float, is_busy: Callable[[], bool]) -> None:
    """From now on this process, a worker, stops where ``is_asked`` says that its parent was asked, or on SIGTERM.

    After the signal it ends as soon as it is not busy, or when the time of grace is over.
    """
    _Request.is_made_elsewhere = is_asked

    def ask(number: int, frame: Any) -> None:
        if not _Request.is_made:
            _Request.is_made = True
            threading.Thread(target=end, name="end after SIGTERM", daemon=True).start()

    def end() -> None:
        last = time.monotonic() + grace_seconds
        while is_busy() and time.monotonic() < last:
            time.sleep(POLL_SECONDS)
        os._exit(StoppedError.exit_code)

    signal.signal(signal.SIGTERM, ask)


@contextmanager
def stopping_gently(grace_seconds: float) -> Iterator[None]:
    """While the block runs, SIGTERM asks it to stop, and after ``grace_seconds`` ends the process with code 143.

    Raises StoppedError where the block ended without an error although it was asked to: the signal may have come after
    the work last asked, and its sender is notified that it was received. That all work is done is nothing to wait for:
    the same command finds it complete.

    Of a thread other than the main one, which receives no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timers: list[threading.Timer] = []

    def ask(number: int, frame: Any) -> None:
        _Request.is_made = True
        if not timers:
            timers.append(threading.Timer(grace_seconds, _end, [grace_seconds]))
            timers[0].daemon = True
            timers[0].start()

    previous = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        for timer in timers:
            timer.cancel()
        was_asked, _Request.is_made = _Request.is_made, False
    if was_asked:
        raise stopped_error()


def _end(grace_seconds: float) -> None:
    print_line(f"teachonce: {_STOPPED} (what was unfinished after {grace_seconds:g} s was dropped)")
    os._exit(StoppedError.exit_code)
