"""Frames read and checked by the native library, many in one call; ``framing`` does what is left, or all without it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.native import load_library

FRAME = np.dtype([("descriptor", np.int64), ("offset", np.int64), ("num_bytes", np.int64), ("bytes", np.uint64)])
"""struct frame: an open file, below 0 for none; where in it a frame is; the address that it is read to."""
GOOD, UNCHECKED, UNREAD = 0, 1, 2
"""What became of a frame: read and in order; read, and yet to be checked; not read."""


def read_good_frames(frames: NDArray[Any]) -> NDArray[np.int32]:
    """Read ``frames`` (FRAME, [n]) that have a descriptor; what became of each [n].

    The files stay open and the addresses good while this runs.
    """
    statuses = np.full(len(frames), UNREAD, np.int32)
    library = load_library()
    assert frames.dtype == FRAME and frames.flags.c_contiguous
    if library is not None:
        library.teachonce_read_frames(frames.ctypes.data, len(frames), statuses.ctypes.data)
    return statuses
