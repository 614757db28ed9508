"""Whose a temporary is, and whether that process still lives."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from teachonce.storage import writers
from teachonce.storage.writers import OLD_SECONDS, is_dead, is_writer_name, writer_name
from tests.support.kills import DEAD_NAME, dead_writer

NOW = time.time()


def test_no_two_names_are_equal_and_all_are_known() -> None:
    found = {writer_name() for _ in range(100)}
    assert len(found) == 100 and all(map(is_writer_name, found))
    for other in ("my-notes.txt", "0123456789ab", "", f"{found.pop()}-a", "0123456789-1-2-01234567", "x" * 40):
        assert not is_writer_name(other)


def test_a_process_is_dead_when_it_has_ended() -> None:
    assert not is_dead(writer_name(), 0.0)
    assert is_dead(dead_writer(), NOW)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        machine, _, _, random = writer_name().split("-")
        name = f"{machine}-{process.pid}-{writers._began(process.pid)}-{random}"
        assert not is_dead(name, 0.0)
        process.kill()
        # Ended, but nobody has asked how: it has its id still.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_dead(name, NOW)
    assert is_dead(name, NOW)


def test_an_id_that_was_given_again() -> None:
    machine, process, start, random = writer_name().split("-")
    assert is_dead(f"{machine}-{process}-{int(start) + 1}-{random}", NOW)
    assert not is_dead(f"{machine}-{process}-{start}-{random}", 0.0)


def test_without_proc_the_process_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "_began", lambda process: "0")
    machine, process, _, random = writer_name().split("-")
    assert not is_dead(f"{machine}-{process}-0-{random}", 0.0)
    ended = dead_writer.__wrapped__()  # one that ended just now: without its beginning an id may be another's
    assert is_dead(f"{machine}-{ended.split('-')[1]}-0-{random}", NOW)
    assert is_dead(f"{machine}-9999999999-0-{random}", NOW)


def test_of_another_machine_only_time_tells() -> None:
    name = "00000000" + writer_name()[8:]
    assert not is_dead(name, NOW) and not is_dead(name, NOW - OLD_SECONDS / 2) and not is_dead(name, NOW + 1e6)
    assert is_dead(name, NOW - OLD_SECONDS - 60)


def test_a_fork_is_a_writer_of_its_own() -> None:
    assert dead_writer().split("-")[0] == writer_name().split("-")[0]
    assert subprocess.run(DEAD_NAME, check=True, capture_output=True, text=True).stdout.split("-")[1] != str(
        os.getpid()
    )
