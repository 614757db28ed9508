"""Reads and writes that fail: a library of C that is loaded before all others, told by its process when to begin.

``make torture`` compiles it and starts Python with it (LD_PRELOAD); without it ``fail_after`` does nothing but say so.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")


def is_loaded() -> bool:
    """Whether this process was started with the library."""
    return hasattr(ctypes.CDLL(None), "torture_arm")


def fail_after(folder: Path, count: int, error: str) -> None:
    """In this process: from the ``count``-th call that concerns a file below ``folder`` on, reads or writes fail.

    ``error``: ENOSPC (writes), EIO (writes and syncs), or "EIO on reading".
    """
    if not is_loaded():
        raise RuntimeError("started without the shim")
    number = errno.ENOSPC if error == "ENOSPC" else errno.EIO
    arm = ctypes.CDLL(None).torture_arm
    arm(os.fsencode(folder), ctypes.c_int(count), ctypes.c_int(number), ctypes.c_int(error.endswith("reading")))
