import io
import subprocess
import sys

import pytest

from teachonce.engine import progress as module
from teachonce.engine.progress import format_rate, format_seconds, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_say_count_rate_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    stream = io.StringIO()
    with progress("extract", 2000, done=500, stream=stream) as advance:
        advance(500)
        advance(1000)
    first, second, last = stream.getvalue().splitlines()
    assert first == "extract: 1,000 of 2,000 images", "of one batch nobody knows how long it took"
    assert second.startswith("extract: 2,000 of 2,000 images, ") and second.endswith(" left")
    assert last.startswith("extract: done 2,000 of 2,000 images in 0.0 s, ")


def test_plain_lines_are_occasional() -> None:
    stream = io.StringIO()
    with progress("extract", 100, stream=stream) as advance:
        for _ in range(100):
            advance(1)
    assert len(stream.getvalue().splitlines()) == 1


def test_an_error_passes_and_is_not_called_done() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError), progress("merge", 3, unit="records", stream=stream) as advance:
        advance(1)
        raise KeyError
    assert stream.getvalue().startswith("merge: stopped at 1 of 3 records in ")


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with progress("extract", 3, stream=stream) as advance:
        advance(3)
    assert "extract" in stream.getvalue() and "3 of 3 images in 0.0 s" in stream.getvalue()


def test_seconds_and_rates_for_people() -> None:
    assert [format_rate(value) for value in (0.251, 9.4, 10, 1234.5)] == ["0.25/s", "9.4/s", "10/s", "1,234/s"]
    assert [format_seconds(value) for value in (0, 3.21, 59.97, 245, 3599.8, 7620)] == [
        "0.0 s",
        "3.2 s",
        "1 min 00 s",
        "4 min 05 s",
        "1 h 00 min",
        "2 h 07 min",
    ]


def test_plain_lines_do_not_import_rich() -> None:
    code = (
        "import sys, teachonce.engine.progress as p\nwith p.progress('x', 1) as advance: advance(1)\n"
        "sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0


def test_the_start_of_workers_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute until the first items, then 10 a second: 8 seconds are left, not minutes."""
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    stream = io.StringIO()
    with progress("extract", 110, stream=stream) as advance:
        for seconds, count in ((30, 0), (60, 10), (62, 20)):
            now = 100.0 + seconds
            advance(count)
        now = 100.0 + 71
        advance(0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "extract: 0 of 110 images" and lines[1] == "extract: 10 of 110 images"
    assert lines[2] == "extract: 30 of 110 images, 1.8/s, 44.0 s left"
