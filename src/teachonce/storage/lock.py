"""One process at a time, by the operating system: a locked file, which is released when its holder is killed.

The file says who holds it, for the message to the second one. It is removed on release; what a killed holder
left is taken over. An object store would have an object here that its holder renews, and that counts for nothing when
it is old.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW
_SHOWN_BYTES = 100


class LockHeldError(Exception):
    """Another process, which the argument describes, holds the lock."""


@contextmanager
def hold_lock(path: Path, *, is_needed: bool = True) -> Iterator[None]:
    """Hold the lock for a block; raises LockHeldError where another process does, OSError where no file can be.

    Where the file system has no locks a warning says so, if one ``is_needed``.
    """
    descriptor = _take(path, is_needed)
    try:
        yield
    finally:
        # While it is locked, so that a process that opened the file before sees by its missing name that it is void.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take(path: Path, is_needed: bool) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
        except PermissionError:
            if not os.access(path.parent, os.W_OK):
                raise
            _remove_leftover(path, is_needed)
            continue
        try:
            if _lock(descriptor, path, is_needed) and not _is_named(descriptor, path):
                os.close(descriptor)
                continue
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _remove_leftover(path: Path, is_needed: bool) -> None:
    """Remove another user's file, which only they can write, where nobody holds it: a killed process left it.

    Raises LockHeldError where its holder lives, PermissionError where it cannot be told or removed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        return  # released meanwhile
    try:
        if not _lock(descriptor, path, is_needed):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        if _is_named(descriptor, path):
            path.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, is_needed: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, _SHOWN_BYTES, 0).decode(errors="replace").strip()
        raise LockHeldError(holder if holder.isprintable() and holder else "another process") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if is_needed:
            warnings.warn(
                f"{path}: this file system has no locks ({error.strerror}): make sure that no other process writes "
                "here",
                stacklevel=2,
            )
        return False
    return True


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether a file has its name still; its holder removed it if not, between our opening and locking it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
