"""Progress of long work: a bar with rate and remaining time on a terminal, occasional plain lines otherwise.

Both go to stderr, so that stdout stays what a program may read. The plain lines (a log file, a scheduler, CI) come at
most every ``LINE_SECONDS``, and one at the end says what was done and how fast. rich is imported only for the bar.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from teachonce.terminal import print_line

LINE_SECONDS = 10.0

Advance = Callable[[int], None]
"""Says that this many more items are done; may be called from any thread."""


@contextmanager
def progress(
    what: str, total: int, *, done: int = 0, unit: str = "images", stream: TextIO | None = None
) -> Iterator[Advance]:
    """Show progress while the block runs; the block calls the ``Advance`` that it is given.

    ``done`` of the ``total`` items were finished by an earlier run: they count for the share, not for the rate.
    """
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        with _bar(what, total, done, unit, stream) as advance:
            yield advance
        return
    lines = _Lines(what, total, done, unit, stream)
    try:
        yield lines.advance
    except BaseException:
        lines.finish("stopped at")
        raise
    lines.finish("done")


def format_seconds(seconds: float) -> str:
    """A duration for people: 3.2 s, 4 min 05 s, 2 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_rate(per_second: float) -> str:
    """A rate for people: 1,234/s, 0.25/s."""
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:.2g}/s"


class _Lines:
    def __init__(self, what: str, total: int, done: int, unit: str, stream: TextIO) -> None:
        self._what, self._total, self._unit, self._stream = what, total, unit, stream
        self._first, self._done = done, done
        self._start = self._last_line = time.monotonic()
        self._first_unit: tuple[float, int] | None = None
        """When the first items were done, and how many are by then: what comes before is no work, but its start."""
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if count and self._first_unit is None:
                self._first_unit = (now, self._done)
            if now - self._last_line < LINE_SECONDS:
                return
            self._last_line = now
            self._print(f"{self._done:,} of {self._total:,} {self._unit}{self._describe_rate(now)}")

    def _describe_rate(self, now: float) -> str:
        start, done = self._first_unit or (now, self._done)
        if self._done == done or now <= start:
            return ""
        rate = (self._done - done) / (now - start)
        return f", {format_rate(rate)}, {format_seconds((self._total - self._done) / rate)} left"

    def finish(self, verb: str) -> None:
        seconds = time.monotonic() - self._start
        count = self._done - self._first
        rate = f", {format_rate(count / seconds)}" if seconds > 0 and count else ""
        self._print(f"{verb} {self._done:,} of {self._total:,} {self._unit} in {format_seconds(seconds)}{rate}")

    def _print(self, text: str) -> None:
        print_line(f"{self._what}: {text}", self._stream)


@contextmanager
def _bar(what: str, total: int, done: int, unit: str, stream: TextIO) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.finished:
                return Text(f"in {format_seconds(task.finished_time or 0)}")
            if not task.speed or task.time_remaining is None:
                return Text("")
            return Text(f"{format_rate(task.speed)}, {format_seconds(task.time_remaining)} left")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}"),
        RateColumn(),
    )
    with Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count: bar.advance(task, count)
