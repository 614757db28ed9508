"""Scratch folders in TMPDIR, for libraries that read and write files themselves.

A killed process leaves its folder; the next one that makes a scratch folder removes those of this user's dead
processes (``writers``), and nothing else.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from teachonce.errors import TeachonceError
from teachonce.storage.writers import is_dead, is_writer_name, writer_name

_PREFIX = "teachonce-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder for this process alone, removed after the block with all that is in it."""
    top = Path(tempfile.gettempdir())
    _remove_dead(top)
    folder = top / f"{_PREFIX}{writer_name()}"
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise TeachonceError(
            f"{folder}: cannot be created: {error.strerror}; free space, or set TMPDIR to another folder"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _last_change(folder: Path) -> float:
    """When anything in it was last written: another machine's process may append to a file for days."""
    return max(path.lstat().st_mtime for path in [folder, *folder.rglob("*")])


def _remove_dead(top: Path) -> None:
    with suppress(OSError):
        for path in top.glob(f"{_PREFIX}*"):
            name = path.name.removeprefix(_PREFIX)
            # Another process may remove it at the same time.
            with suppress(OSError):
                found = path.lstat()
                is_ours = is_writer_name(name) and stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
                if is_ours and is_dead(name, found.st_mtime) and is_dead(name, _last_change(path)):
                    shutil.rmtree(path, ignore_errors=True)
