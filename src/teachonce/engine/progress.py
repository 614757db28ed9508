"""Progress of long work: a bar on a terminal, a plain line a minute otherwise, or JSON for a program.

All of it goes to stderr, so that stdout stays what a program may read, and says what is done, how fast, how long it has
taken and how long it will. Before the first item it says what is being prepared (``phase``). A line is printed at most
every ``LINE_SECONDS``, also while nothing is finished, and one at the end. ``--progress json`` (``set_style``) makes
each report one JSON object a line; ``--quiet`` leaves all of it out. rich is imported only for the bar.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, TextIO

from teachonce.terminal import is_quiet, print_json, print_line

LINE_SECONDS = 60.0
"""Between two lines where the output is not a terminal."""
JSON_SECONDS = 1.0
"""Between two objects of ``--progress json``."""
PHASE_SECONDS = 5.0
"""A phase that takes less has no line."""

Advance = Callable[[int], None]
"""Reports that this many more items are done; may be called from any thread."""
Style = Literal["auto", "json"]
STYLE_VARIABLE = "TEACHONCE_PROGRESS"
"""In the environment, which the processes that this one starts inherit."""
_spinners: list[Any] = []
"""What is on the terminal now; a bar or another phase takes its place."""


def set_style(style: Style) -> None:
    """How this process, and those that it starts, show progress from now on: for people (auto), or as JSON."""
    os.environ[STYLE_VARIABLE] = style


@contextmanager
def progress(
    what: str, total: int, *, done: int = 0, unit: str = "images", phase: str = "starting", stream: TextIO | None = None
) -> Iterator[Advance]:
    """Show progress while the block runs; the block calls the ``Advance`` that it is given.

    ``done`` of the ``total`` items were finished by an earlier run: they count for the share, not for the rate.
    ``phase`` is what happens until the first item is done.
    """
    stream = sys.stderr if stream is None else stream
    if is_quiet():
        yield lambda count: None
        return
    is_json = os.environ.get(STYLE_VARIABLE) == "json"
    if not is_json and stream.isatty():
        with _bar(what, total, done, unit, phase, stream) as advance:
            yield advance
        return
    lines = (_JsonLines if is_json else _Lines)(what, total, done, unit, phase, stream)
    try:
        with lines.reporting():
            yield lines.advance
    except BaseException:
        lines.finish("stopped at")
        raise
    lines.finish("done")


@contextmanager
def phase(what: str, text: str, stream: TextIO | None = None) -> Iterator[None]:
    """Say what is being prepared, such as "loading the teacher", while the block runs and nothing is to be counted."""
    stream = sys.stderr if stream is None else stream
    if is_quiet():
        yield
    elif os.environ.get(STYLE_VARIABLE) == "json":
        start = time.monotonic()
        _print_phase(what, text, 0.0, stream)
        yield
        # A phase that took long is reported once more, with its time: a program need not keep a clock.
        seconds = time.monotonic() - start
        if seconds >= PHASE_SECONDS:
            _print_phase(what, text, seconds, stream)
    elif stream.isatty():
        with _spinner(f"{what}: {text}", stream):
            yield
    else:
        has_ended = threading.Event()
        reporter = threading.Thread(
            target=_report_phase, args=(what, text, stream, has_ended), name="phase", daemon=True
        )
        reporter.start()
        try:
            yield
        finally:
            has_ended.set()
            reporter.join()


def _report_phase(what: str, text: str, stream: TextIO, has_ended: threading.Event) -> None:
    """A line for a phase that is not over soon, and then one every ``LINE_SECONDS`` with the elapsed time."""
    start = time.monotonic()
    if has_ended.wait(PHASE_SECONDS):
        return
    with suppress(OSError):
        print_line(f"{what}: {text}", stream)
        while not has_ended.wait(max(LINE_SECONDS, 0.5)):
            print_line(f"{what}: {text}, {format_seconds(time.monotonic() - start)} elapsed", stream)


def _print_phase(what: str, text: str, elapsed_seconds: float, stream: TextIO) -> None:
    with suppress(OSError):
        print_json(
            {"event": "phase", "what": what, "phase": text, "elapsed_seconds": round(elapsed_seconds, 3)}, stream
        )


def format_seconds(seconds: float) -> str:
    """A human-readable duration: 3.2 s, 4 min 05 s, 2 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_rate(per_second: float) -> str:
    """A human-readable rate: 1,234/s, 0.25/s."""
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:.2g}/s"


class _Lines:
    """Occasional lines for people."""

    def __init__(self, what: str, total: int, done: int, unit: str, phase: str, stream: TextIO) -> None:
        self._what, self._total, self._unit, self._phase, self._stream = what, total, unit, phase, stream
        self._first, self._done = done, done
        self._start = self._last_line = time.monotonic()
        self._first_unit: tuple[float, int] | None = None
        """When the first items were done, and how many were done by then: the time before is startup, not work."""
        self._is_announced = False
        """Whether the phase was already printed."""
        self._lock = threading.Lock()
        self._has_ended = threading.Event()

    @property
    def interval_seconds(self) -> float:
        """Between two reports."""
        return LINE_SECONDS

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Report while the block runs, also where it finishes nothing for long."""
        thread = threading.Thread(target=self._report_while_waiting, name=f"progress of {self._what}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._has_ended.set()
            thread.join()

    def advance(self, count: int) -> None:
        """Count items as done."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if count and self._first_unit is None:
                self._first_unit = (now, self._done)
            self._report_if_due(now)

    def finish(self, verb: str) -> None:
        """Print the last line."""
        seconds = time.monotonic() - self._start
        count = self._done - self._first
        rate = f", {format_rate(count / seconds)}" if seconds > 0 and count else ""
        self._print(f"{verb} {self._done:,} of {self._total:,} {self._unit} in {format_seconds(seconds)}{rate}")

    def _report_while_waiting(self) -> None:
        if not self._is_announced and not self._has_ended.wait(PHASE_SECONDS) and self._first_unit is None:
            self._print(self._phase)
        while not self._has_ended.wait(max(self.interval_seconds, 0.5)):
            with self._lock:
                self._report_if_due(time.monotonic())

    def _report_if_due(self, now: float) -> None:
        if now - self._last_line < self.interval_seconds:
            return
        self._last_line = now
        self._report(now)

    def _report(self, now: float) -> None:
        rate, left = self._measure(now)
        parts = [f"{self._done:,} of {self._total:,} {self._unit}"]
        if rate is not None:
            parts.append(format_rate(rate))
        parts.append(f"{format_seconds(now - self._start)} elapsed")
        if left is not None:
            parts.append(f"{format_seconds(left)} left")
        elif self._first_unit is None:
            parts.append(self._phase)
        self._print(", ".join(parts))

    def _measure(self, now: float) -> tuple[float | None, float | None]:
        """Items a second and seconds left; None until they can be known."""
        start, done = self._first_unit or (now, self._done)
        if self._done == done or now <= start:
            return None, None
        rate = (self._done - done) / (now - start)
        return rate, (self._total - self._done) / rate

    def _print(self, text: str) -> None:
        with suppress(OSError):  # that nobody reads it, or the log's disk is full, is no reason to stop working
            print_line(f"{self._what}: {text}", self._stream)


class _JsonLines(_Lines):
    """The same for a program: one object a report."""

    @property
    def interval_seconds(self) -> float:
        """Between two reports."""
        return JSON_SECONDS

    def finish(self, verb: str) -> None:
        """Print the last object."""
        self._write("done" if verb == "done" else "stopped", time.monotonic())

    def _report_while_waiting(self) -> None:
        _print_phase(self._what, self._phase, 0.0, self._stream)
        self._is_announced = True
        super()._report_while_waiting()

    def _report(self, now: float) -> None:
        self._write("progress", now)

    def _write(self, event: str, now: float) -> None:
        rate, left = (None if value is None else round(value, 3) for value in self._measure(now))
        report = {"event": event, "what": self._what, "done": self._done, "total": self._total, "unit": self._unit}
        if event == "progress" and self._first_unit is None:
            report["phase"] = self._phase
        report |= {"per_second": rate, "elapsed_seconds": round(now - self._start, 3), "remaining_seconds": left}
        with suppress(OSError):
            print_json(report, self._stream)


@contextmanager
def _bar(what: str, total: int, done: int, unit: str, phase: str, stream: TextIO) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.finished:
                return Text(f"in {format_seconds(task.finished_time or 0)}")
            elapsed = f"{format_seconds(task.elapsed or 0)} elapsed"
            if not task.speed or task.time_remaining is None:
                return Text(f"{elapsed}, {phase}" if task.completed == done else elapsed)
            return Text(f"{format_rate(task.speed)}, {elapsed}, {format_seconds(task.time_remaining)} left")

    # One line at any width: the bar has what the words leave.
    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}", table_column=Column(no_wrap=True)),
        RateColumn(table_column=Column(no_wrap=True)),
    )
    _stop_spinners()
    # What is printed meanwhile goes above the bar where both are on one terminal; a file gets its results itself.
    with Progress(*columns, console=Console(file=stream), expand=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _spinner(text: str, stream: TextIO) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    _stop_spinners()
    columns: Any = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    console, is_shown = Console(file=stream), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=is_shown) as shown:
        shown.add_task(text, total=None)
        _spinners.append(shown)
        try:
            yield
        finally:
            _spinners.clear()


def _stop_spinners() -> None:
    while _spinners:
        _spinners.pop().stop()
