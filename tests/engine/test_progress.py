import io
import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from teachonce.engine import progress as module
from teachonce.engine.progress import format_rate, format_seconds, phase, progress
from teachonce.terminal import set_quiet


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_say_count_rate_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    monkeypatch.setattr(module, "LINE_SECONDS", 1.0)
    stream = io.StringIO()
    with progress("extract", 2000, done=500, stream=stream) as advance:
        now = 101.0
        advance(500)
        now = 103.0
        advance(500)
        now = 103.5
        advance(500)
    assert stream.getvalue().splitlines() == [
        "extract: 1,000 of 2,000 images, 1.0 s elapsed",  # the first batch has no known duration
        "extract: 1,500 of 2,000 images, 250/s, 3.0 s elapsed, 2.0 s left",
        "extract: done 2,000 of 2,000 images in 3.5 s, 429/s",
    ]


def test_plain_lines_are_occasional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "monotonic", lambda: 100.0)
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
    assert "extract" in stream.getvalue() and re.search(r"3 of 3 images in \d+\.\d s", stream.getvalue())


def test_results_do_not_go_to_the_bar() -> None:
    """Where stderr is a terminal and stdout a file: what is printed meanwhile is for the file."""
    pty = pytest.importorskip("pty")
    terminal, shown = pty.openpty()
    code = (
        "from teachonce.engine.progress import phase, progress\n"
        "with phase('predict', 'opening'):\n"
        "    print('first')\n"
        "with progress('predict', 2) as advance:\n"
        "    advance(1)\n"
        "    print('second')\n"
        "    advance(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=shown, text=True, check=True)
    os.close(shown)
    os.close(terminal)
    assert done.stdout == "first\nsecond\n"


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
    """Two minutes until the first items, then 20 in one minute: four minutes are left, not fourteen."""
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    stream = io.StringIO()
    with progress("extract", 110, stream=stream) as advance:
        for seconds, count in ((61, 0), (122, 10), (125, 20)):
            now = 100.0 + seconds
            advance(count)
        now = 100.0 + 183
        advance(0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "extract: 0 of 110 images, 1 min 01 s elapsed, starting"
    assert lines[1] == "extract: 10 of 110 images, 2 min 02 s elapsed"
    assert lines[2] == "extract: 30 of 110 images, 0.33/s, 3 min 03 s elapsed, 4 min 04 s left"


def test_waiting_is_reported_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is finished for long: a line says what is being prepared, and then that it still is."""
    monkeypatch.setattr(module, "PHASE_SECONDS", 0.05)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.2)
    stream = io.StringIO()
    with progress("extract", 10, phase="starting 2 workers", stream=stream):
        deadline = time.monotonic() + 60
        while stream.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    first, second, *_, last = stream.getvalue().splitlines()
    assert first == "extract: starting 2 workers"
    assert second.startswith("extract: 0 of 10 images, ") and second.endswith(" elapsed, starting 2 workers")
    assert last.startswith("extract: done 0 of 10 images in ")


def test_a_phase_that_takes_long_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with phase("extract", "loading the teacher", stream):
        pass
    assert not stream.getvalue(), "it took no time"
    monkeypatch.setattr(module, "PHASE_SECONDS", 0.01)
    with phase("extract", "loading the teacher", stream):
        deadline = time.monotonic() + 60
        while not stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert stream.getvalue() == "extract: loading the teacher\n"


def test_a_terminal_shows_phases_and_elapsed_time() -> None:
    stream = Terminal()
    with phase("train", "opening [the] data", stream), progress("keys", 4, phase="counting", stream=stream) as advance:
        advance(1)
    shown = stream.getvalue()
    assert "train: opening [the] data" in shown and "elapsed, counting" in shown


def test_a_bar_is_one_line_at_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with progress("extract", 18_000, unit="views", phase="starting 2 workers", stream=stream) as advance:
        for _ in range(9):
            advance(1000)
            time.sleep(0.03)
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, frames)) <= 80
    assert all(frame.startswith("extract ") for frame in frames if frame.strip())


def test_json_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.STYLE_VARIABLE, "json")
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    stream = Terminal()
    with phase("extract", "loading the teacher", stream):
        pass
    with progress("extract", 30, done=10, phase="starting 2 workers", stream=stream) as advance:
        now = 101.0
        advance(10)
        now = 103.0
        advance(10)
    with pytest.raises(KeyError), progress("merge", 3, unit="records", stream=stream):
        raise KeyError
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert events[0] == {"event": "phase", "what": "extract", "phase": "loading the teacher", "elapsed_seconds": 0.0}
    assert events[1] == {"event": "phase", "what": "extract", "phase": "starting 2 workers", "elapsed_seconds": 0.0}
    assert [event["done"] for event in events if event["event"] == "progress"] == [20, 30]
    done = next(event for event in events if event["event"] == "done")
    assert (done["done"], done["total"], done["unit"], done["remaining_seconds"]) == (30, 30, "images", 0)
    assert done["elapsed_seconds"] == 3.0 and done["per_second"] == 5.0
    assert events[-1]["event"] == "stopped" and events[-1]["what"] == "merge"
    begun = [event["phase"] for event in events if event["event"] == "phase" and event["what"] == "merge"]
    assert begun == ["starting"], "a phase before the first count, also where the caller names none"


def test_json_says_how_long_a_phase_took_and_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.STYLE_VARIABLE, "json")
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    stream = io.StringIO()
    with phase("extract", "loading the teacher", stream):
        now = 106.0
    with progress("extract", 30, phase="starting 2 workers", stream=stream) as advance:
        now = 107.0
        advance(0)
        now = 108.0
        advance(10)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["phase"] for event in events[:2]] == ["loading the teacher"] * 2
    assert events[1]["elapsed_seconds"] == 6.0
    waiting, counted = (event for event in events if event["event"] == "progress")
    assert waiting["phase"] == "starting 2 workers" and waiting["per_second"] is None
    assert "phase" not in counted and counted["done"] == 10


def test_a_long_phase_is_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PHASE_SECONDS", 0.0)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    stream = io.StringIO()
    with phase("extract", "loading the teacher", stream):
        deadline = time.monotonic() + 60
        while stream.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    first, second, *_ = stream.getvalue().splitlines()
    assert first == "extract: loading the teacher"
    assert re.fullmatch(r"extract: loading the teacher, \d+\.\d s elapsed", second)
    assert not [one for one in threading.enumerate() if one.name == "phase"], "it ends with the block"


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for style in ("auto", "json"):
        monkeypatch.setenv(module.STYLE_VARIABLE, style)
        set_quiet(True)
        try:
            stream = Terminal()
            with phase("a", "b", stream), progress("extract", 3, stream=stream) as advance:
                advance(3)
        finally:
            set_quiet(False)
        assert not stream.getvalue()


@pytest.mark.parametrize("style", ["auto", "json"])
def test_a_reader_that_has_gone_stops_no_work(monkeypatch: pytest.MonkeyPatch, style: str) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setenv(module.STYLE_VARIABLE, style)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(module, "JSON_SECONDS", 0.0)
    done = []
    with phase("extract", "loading", stream=Gone()), progress("extract", 3, stream=Gone()) as advance:
        for number in range(3):
            advance(1)
            done.append(number)
    assert done == [0, 1, 2]
