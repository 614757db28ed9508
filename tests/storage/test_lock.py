"""A lock is held by one process, and a killed one holds nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from teachonce.errors import TeachonceError
from teachonce.storage.local import LocalStorage
from teachonce.storage.lock import LockHeldError, hold_lock

HOLD = """
import sys
from pathlib import Path
from teachonce.storage.lock import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_another_process_is_named_and_its_death_sets_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(LockHeldError, match=rf"^process {process.pid} on \S+$"), hold_lock(path):
            pass
        process.kill()
        process.wait()
        assert path.exists(), "what a kill leaves"
        with hold_lock(path):
            assert path.read_text().startswith(f"process {os.getpid()} on ")
    assert not path.exists()


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    """In a folder of somebody else's it could lead anywhere, and what it led to would be overwritten."""
    (tmp_path / "precious").write_text("keys")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), hold_lock(tmp_path / "lock"):
        pass
    assert (tmp_path / "precious").read_text() == "keys"


def test_a_lock_that_was_let_go_of_between_opening_and_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was opened has lost its name: who locks it holds nothing that a third one would meet."""
    path, flock, files = tmp_path / "lock", fcntl.flock, []

    def remove_first(descriptor: int, operation: int) -> None:
        if not files:
            path.unlink()
        files.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with hold_lock(path), pytest.raises(LockHeldError), hold_lock(path):
        pass
    assert len(files) == 3


def test_what_the_file_says_is_shown_only_where_it_can_be(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold_lock(path):
        path.write_bytes(b"\x1b[2J")
        with pytest.raises(LockHeldError, match=r"^another process$"), hold_lock(path):
            pass


def test_a_file_system_without_locks_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"lock: this file system has no locks"), hold_lock(tmp_path / "lock"):
        pass
    assert not list(tmp_path.iterdir())
    # Where several may write, as in the cache, there is nothing to make sure of.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with hold_lock(tmp_path / "lock", is_needed=False):
            pass


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    expected = pytest.raises(TeachonceError, match=r"file/lock: cannot be written: .*choose another --out")
    with expected, LocalStorage(tmp_path / "file").lock("lock", "trained"):
        pass


OTHER_USER = """
import os, sys
from pathlib import Path
from teachonce.storage.lock import LockHeldError, hold_lock
os.setuid(65534)
try:
    with hold_lock(Path(sys.argv[1])):
        print("held")
except LockHeldError as error:
    print("by", error)
except PermissionError as error:
    print(error.strerror, error.filename)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
def test_what_another_user_left_is_taken_over_where_the_folder_is_shared(tmp_path: Path) -> None:
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    path = tmp_path / "lock"

    def try_it() -> str:
        return subprocess.run(
            [sys.executable, "-c", OTHER_USER, path], capture_output=True, text=True, check=True
        ).stdout

    assert try_it() == f"Permission denied {path}\n"
    path.write_text("process 1 on here\n")
    assert try_it() == f"Permission denied {path}\n" and path.exists()
    tmp_path.chmod(0o777)
    with hold_lock(path):
        assert try_it() == f"by process {os.getpid()} on {socket.gethostname()}\n"
    path.write_text("process 1 on here\n")
    assert try_it() == "held\n" and not path.exists()
