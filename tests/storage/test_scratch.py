"""Scratch folders are gone after use, and those of killed processes with the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from teachonce.errors import TeachonceError
from teachonce.storage.scratch import scratch_folder
from tests.support.kills import dead_writer

KILLED = """
import os, signal
from teachonce.storage.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "model.onnx").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_gone_after_use(top: Path) -> None:
    with pytest.raises(KeyError), scratch_folder() as folder:
        (folder / "deep").mkdir()
        (folder / "deep/a.bin").write_bytes(b"a")
        assert folder.parent == top and folder.stat().st_mode & 0o777 == 0o700
        with scratch_folder() as other:
            assert other != folder and folder.exists(), "of a living process"
        raise KeyError
    assert not list(top.iterdir())


def test_what_a_killed_process_left_goes_with_the_next(top: Path) -> None:
    environment = os.environ | {"TMPDIR": str(top)}
    process = subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL
    (left,) = top.iterdir()
    assert list(left.iterdir())
    mine = [top / "teachonce-my-results", top / f"x-teachonce-{dead_writer()}"]
    for folder in mine:
        folder.mkdir()
    link = top / f"teachonce-{dead_writer()}"
    link.symlink_to(mine[0])
    with scratch_folder():
        pass
    assert sorted(top.iterdir()) == sorted([*mine, link])


def test_a_place_that_cannot_be_written(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(top / "nowhere"))
    with (
        pytest.raises(TeachonceError, match=r"nowhere/teachonce-.*: cannot be created: No such file.*TMPDIR"),
        scratch_folder(),
    ):
        pass


def test_a_folder_of_another_machine_in_which_something_was_written_lately_stays(top: Path) -> None:
    """A training there appends to a file for days; the folder itself changes with a new file alone."""
    machine, rest = dead_writer().split("-", 1)
    elsewhere = "".join("0" if letter != "0" else "1" for letter in machine)
    used, unused = (top / f"teachonce-{elsewhere}-{rest[:-1]}{end}" for end in "01")
    for folder in (used, unused):
        (folder / "events").mkdir(parents=True)
        (folder / "events/a.log").write_bytes(b"a")
        for path in (folder / "events/a.log", folder / "events", folder):
            os.utime(path, (0, 0))
    (used / "events/a.log").write_bytes(b"ab")
    os.utime(used, (0, 0))
    with scratch_folder():
        assert used.exists() and not unused.exists()
