"""Opening files that end: regular ones, through links.

A read of a pipe without a writer hangs, and /dev/zero never ends; either may be, or be linked, where an
image is expected. What a shell passes as ``<(command)`` is a pipe too: one without a name, which the shell has just
made for this command, and which is read where a file is read in order (``allows_pipe``).
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MAX_WHOLE_BYTES = 1 << 31
"""Of a file that is read as a whole: what a protobuf may have, and eight times the pixels of the largest image that is
decoded. Others are streamed, mapped, or read by ranges."""

_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: Path | str, *, allows_pipe: bool = False) -> int:
    """A descriptor for reading; OSError (EINVAL), "is a named pipe, expected a file", for what is not a regular
    file."""
    if allows_pipe and _is_nameless_pipe(path):
        return os.open(path, _FLAGS)
    # Not waiting: who opens a pipe would otherwise wait for its writer. Regular files know no difference.
    descriptor = os.open(path, _FLAGS | os.O_NONBLOCK)
    try:
        check_regular(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(found: os.stat_result) -> None:
    """Raise OSError (EINVAL, EISDIR) for what is not a regular file."""
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"is {_KINDS.get(kind, 'something else')}, expected a regular file")


def check_size(num_bytes: int) -> None:
    """Raise OSError (EFBIG) for more than a file may have that is read as a whole."""
    if num_bytes > MAX_WHOLE_BYTES:
        raise OSError(errno.EFBIG, f"{num_bytes:,} bytes, expected at most {MAX_WHOLE_BYTES:,}")


def _is_nameless_pipe(path: Path | str) -> bool:
    try:
        is_pipe = stat.S_ISFIFO(os.stat(path).st_mode)  # noqa: PTH116
    except OSError:
        return False
    return is_pipe and os.path.realpath(path).rpartition("/")[2].startswith("pipe:[")
