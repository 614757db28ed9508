"""Files that are whole or absent: temporary file in the same directory, fsync, rename.

Everything that this project writes under a final name goes through here, so that a kill, a full disk or a power cut
leaves either the old state or the new one. Temporary names begin with ``.tmp-`` and are never read.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from teachonce.errors import TeachonceError

TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def atomic_write(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that appears as ``path`` only when the block ends without an error.

    Without ``overwrite`` the first of several writers wins, and the others leave its file as it is.

    Raises TeachonceError with the path when the directory cannot be written or the disk is full; the temporary file is
    removed in every case but a kill.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its mode 0600 would hide the file from a colleague's job; the umask decides here.
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-{path.name}")
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            _appear_once(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise TeachonceError(
            f"{path}: cannot be written: {error.strerror or error}; free space or choose another --out"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, overwrite: bool = True) -> None:
    """Write ``value`` as indented JSON, atomically, with a newline at the end; ``overwrite`` as in ``atomic_write``."""
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises TeachonceError with the path and the position when it is missing or does not parse."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise TeachonceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise TeachonceError(f"{path}: is not JSON: {error}") from error


def remove_temporaries(directory: Path, *, older_than_seconds: float = 0.0) -> None:
    """Remove what killed writers left in ``directory``; with an age where others may be writing there now."""
    newest = time.time() - older_than_seconds
    for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime <= newest:
                path.unlink()


def _appear_once(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return
    except OSError:
        # A file system without hard links: a rename is the next best thing.
        if not path.exists():
            temporary.replace(path)


def _sync_directory(directory: Path) -> None:
    # The rename itself is durable only once the directory is; some file systems do not allow it, which is harmless.
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
