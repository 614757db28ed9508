"""SIGTERM and Ctrl+C in ``train`` and ``ablate``: a request to stop at a sound point, and never later than it may.

``stop_between_units`` is for work in units, which keeps no state: ``extract``, ``records`` and ``merge``.
A scheduler that wants a machine back sends SIGTERM and, some seconds later, SIGKILL. So a program that takes minutes to
redo what it has done asks ``StopSignals`` at its own sound points whether to stop. A thread of this module watches as
well, because Python's handlers wait for the main thread, which may hang in a library (a collective whose other end is
gone): the system hands the numbers of signals to a pipe at once. When the grace period is over it ends the process.

The first Ctrl+C is a request too; the second one is a KeyboardInterrupt, as usual. Signals that this process was
started to ignore stay ignored, and outside of the main thread, where Python allows no handlers, nothing happens.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

from teachonce.terminal import print_line

SECOND_INTERRUPT_SECONDS = 3.0
"""From the second Ctrl+C until the process is ended, whatever it hangs in."""
PARENT_SECONDS = 5.0
"""How much longer than its children a process waits that passes signals on to them."""
REPEAT_SECONDS = 1.0
"""Between two requests to child processes: one of them may have started its next job just after the first."""


class Interrupted(KeyboardInterrupt):
    """Ctrl+C, after the work has ended at a sound point and has said so: there is nothing left to print."""


def end_by_signal(number: int) -> BaseException:
    """What a program raises once it has done as a signal asked: exit code 143 for SIGTERM, 130 for Ctrl+C."""
    return Interrupted() if number == signal.SIGINT else SystemExit(128 + number)


class StopSignals:
    """Within a ``with`` block: which signal has asked this process to stop.

    ``grace_seconds`` after a SIGTERM the process ends, with ``late`` as its last line. ``patience`` answers the first
    Ctrl+C on a terminal. Processes that say nothing leave both empty. A block within another one begins with what that
    was asked: it came before there was anything to stop.
    """

    _entered: ClassVar[list[StopSignals]] = []

    def __init__(self, grace_seconds: float, *, late: str = "", patience: str = "") -> None:
        self.received: int | None = None
        """The first signal that asked; None: continue."""
        self._grace_seconds = grace_seconds
        self._late = late
        self._patience = patience
        self._handlers: dict[int, Any] = {}
        self._num_interrupts = 0

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        outer = self._entered[-1] if self._entered else None
        self._entered.append(self)
        self._reading_end, self._writing_end = socket.socketpair()
        self._writing_end.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writing_end.fileno(), warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watcher.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._receive)
        if outer is not None:  # which hears of nothing from here on
            self.received = self.received or outer.received
            self._num_interrupts += outer._num_interrupts
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._entered.remove(self)
        for number, handler in self._handlers.items():
            # None: it was installed by other than Python, which cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._wakeup)
        self._writing_end.close()
        self._watcher.join()
        self._reading_end.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if number == signal.SIGINT:
            self._num_interrupts += 1
            if self._num_interrupts > 1:
                raise KeyboardInterrupt

    def _watch(self) -> None:
        """End the process when it is time; returns when the block has ended."""
        deadline, code, num_interrupts = float("inf"), 0, 0
        while True:
            wait_seconds = None if deadline == float("inf") else max(deadline - time.monotonic(), 0)
            if not select.select([self._reading_end], [], [], wait_seconds)[0]:
                self._end(code)
            numbers = self._reading_end.recv(64)
            if not numbers:
                return
            now = time.monotonic()
            if signal.SIGTERM in numbers and deadline == float("inf"):
                deadline, code = now + self._grace_seconds, 128 + signal.SIGTERM
            before, num_interrupts = num_interrupts, num_interrupts + numbers.count(signal.SIGINT)
            if before == 0 < num_interrupts and self._patience and sys.stderr.isatty():
                print_line(self._patience)
            if before < 2 <= num_interrupts:
                deadline, code = min(deadline, now + SECOND_INTERRUPT_SECONDS), 128 + signal.SIGINT

    def _end(self, code: int) -> None:
        if code == 128 + signal.SIGTERM and self._late:
            print_line(self._late)
        os._exit(code)


@contextmanager
def stopping_children(signals: StopSignals, children: Callable[[], Iterable[BaseProcess]]) -> Iterator[None]:
    """For a block, ask child processes to stop, by SIGTERM, from when ``signals`` has received a signal.

    Ctrl+C on a terminal reaches the children as well, a scheduler's signal often only the parent.
    """
    has_ended = threading.Event()

    def ask() -> None:
        while not has_ended.wait(REPEAT_SECONDS if signals.received else REPEAT_SECONDS / 10):
            if signals.received:
                for process in children():
                    process.terminate()

    thread = threading.Thread(target=ask, name="stop children", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
