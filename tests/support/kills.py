"""What kills leave: files up to a certain one, and temporaries of processes that live no more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import pytest

from teachonce.engine.heartbeat import WORKERS_FOLDER
from teachonce.storage.local import TEMPORARY_PREFIX, LocalStorage
from teachonce.storage.writers import writer_name

DEAD_NAME = [sys.executable, "-c", "from teachonce.storage.writers import writer_name; print(writer_name())"]


@cache
def dead_writer() -> str:
    """The name of a process that has ended; its id may be another's by now, and the time when it began is not."""
    return subprocess.run(DEAD_NAME, check=True, capture_output=True, text=True).stdout.strip()


def temporary(folder: Path, writer: str | None = None, name: str = "a.bin") -> Path:
    """A half-written file of a writer (default: this process, which lives)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{TEMPORARY_PREFIX}{writer or writer_name()}-{name}"
    path.write_bytes(b"half")
    return path


class Killed(BaseException):
    """Like SIGKILL: nothing catches it."""


@contextmanager
def killed_after(num_files: int | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Killed where the next file of ``folder`` behind ``num_files`` would begin (None: never); gives what was written.

    What is kept beside the data, such as an index, does not count, nor do heartbeats, which come from another thread.
    """
    done: list[str] = []

    def counting(put: Callable[[LocalStorage, str], object]) -> Callable[[LocalStorage, str], object]:
        @contextmanager
        def count(storage: LocalStorage, name: str) -> Iterator[BinaryIO]:
            is_counted = (storage.root / name).is_relative_to(folder) and not name.startswith(WORKERS_FOLDER)
            # Two may be written at once, so the count may pass by this number; and whoever is dead begins no more.
            if is_counted and num_files is not None and len(done) >= num_files:
                raise Killed
            with put(storage, name) as file:  # type: ignore[attr-defined]
                yield file
            if is_counted:
                done.append(name)

        return count

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "put", counting(LocalStorage.put))
        patch.setattr(LocalStorage, "put_if_absent", counting(LocalStorage.put_if_absent))
        yield done


def everything(folder: Path) -> dict[str, bytes]:
    """All files anywhere below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
