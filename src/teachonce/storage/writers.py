"""Whose a temporary file is: names that carry their writer, and whether that writer still lives.

Several commands may write into one folder, and any of them may be killed. What a killed one leaves is removed by the
next, and what a living one is writing must not be; nor may anything be that another program put there under a similar
name. So a temporary is named ``MACHINE-PROCESS-START-RANDOM``: a hash of host name, boot and process namespace (two
containers of one host name count their processes apart), the process id, when that process began, as ids are given
again, and a random part. On the same machine the process is checked; of another one nothing can be known, and its
writers count as dead when they have not written for ``OLD_SECONDS``.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import time
from functools import lru_cache
from pathlib import Path

OLD_SECONDS = 86_400.0
"""Without a write for so long, a writer of another machine counts as dead."""

_WRITER = re.compile(r"(?P<machine>[0-9a-f]{8})-(?P<process>[0-9]{1,10})-(?P<start>[0-9]{1,20})-[0-9a-f]{8}")
_PROC = Path("/proc")


def writer_name() -> str:
    """A new name for something temporary of this process."""
    process = os.getpid()  # asked each time: a fork is another process
    return f"{_machine()}-{process}-{_began(process)}-{secrets.token_hex(4)}"


def is_writer_name(name: str) -> bool:
    """Whether ``writer_name`` could have made it."""
    return _WRITER.fullmatch(name) is not None


def is_of_this_machine(name: str) -> bool:
    """Whether a process of this machine, since it was started, made a name."""
    match = _WRITER.fullmatch(name)
    return match is not None and match["machine"] == _machine()


def is_dead(name: str, modified_seconds: float) -> bool:
    """Whether the process that made a name lives no more; ``modified_seconds`` (since 1970): when it last wrote."""
    match = _WRITER.fullmatch(name)
    if match is None or match["machine"] != _machine():
        return is_old(modified_seconds)
    return not _lives(int(match["process"]), match["start"])


def is_old(modified_seconds: float) -> bool:
    """Whether no writer can be alive, judged by a time."""
    return modified_seconds < time.time() - OLD_SECONDS


@lru_cache(1)
def _machine() -> str:
    parts = [socket.gethostname()]
    for read in (
        lambda: (_PROC / "sys/kernel/random/boot_id").read_text(),
        lambda: str((_PROC / "self/ns/pid").readlink()),
    ):
        try:
            parts.append(read())
        except OSError:  # no Linux
            parts.append("")
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:8]


def _lives(process: int, start: str) -> bool:
    began = _began(process)
    if began != "0" and start != "0":
        return began == start
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # another user's process
    return True


def _began(process: int) -> str:
    """When a process began, in ticks of the system; "0" where it does not say, "-" for one that has ended."""
    try:
        fields = (_PROC / str(process) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        # State and start are fields 3 and 22; Z and X: it has ended, and was not waited for.
        return "-" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return "0"
