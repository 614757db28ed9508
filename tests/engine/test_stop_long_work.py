"""Requests to stop: one is answered, a second Ctrl+C is an interrupt, and time is limited."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from teachonce.engine.stop_long_work import Interrupted, StopSignals, end_by_signal

HANG = """
import ctypes, signal, sys, time
from teachonce.engine.stop_long_work import StopSignals
with StopSignals({grace}, late="too late", patience="wait") as signals:
    print("started", flush=True)
    mutex, library = ctypes.create_string_buffer(128), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
"""


def hanging(grace: float) -> subprocess.Popen:
    """A process whose main thread hangs where no handler of Python's runs."""
    program = [sys.executable, "-c", HANG.format(grace=grace)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request(number: int) -> None:
    before = signal.getsignal(number)
    with StopSignals(60) as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received == number
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == number
    assert signal.getsignal(number) is before
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]


def test_a_second_interrupt_is_one() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals(60):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_raised() -> None:
    assert isinstance(end_by_signal(signal.SIGINT), Interrupted)
    ended = end_by_signal(signal.SIGTERM)
    assert isinstance(ended, SystemExit) and ended.code == 143


def test_the_process_ends_with_the_grace_period() -> None:
    process = hanging(0.5)
    begin = time.monotonic()
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and said == "too late\n"
    assert 0.4 < time.monotonic() - begin < 30


def test_two_interrupts_end_a_process_that_hangs() -> None:
    process = hanging(60)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    # Of two that arrive before the process gets to either, the system delivers one.
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
    _, said = process.communicate(timeout=30)
    # No terminal: nobody is told to wait.
    assert process.returncode == 130 and said == ""


def test_what_is_ignored_stays_ignored() -> None:
    """As of a command in the background of a script, which Ctrl+C is not for."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals(60) as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received is None
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_of_the_main_thread_there_are_no_signals() -> None:
    found = []

    def work() -> None:
        with StopSignals(60) as signals:
            found.append(signals.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
