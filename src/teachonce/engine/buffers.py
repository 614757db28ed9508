"""Memory of batches, reused when the batch is no longer referenced.

Fresh memory for a batch costs about as much as filling it: the system has to clear it first (64 images of 224 px are
9.6 MB, their JPEGs as much as reading them from the page cache takes).
"""

from __future__ import annotations

import math
import sys
import threading

import numpy as np
from numpy.typing import NDArray

MAX_BUFFERS = 64
"""Buffers that a pool remembers; of more the oldest go first."""


class BufferPool:
    """Arrays of bytes, handed out again once nothing else refers to them; thread-safe, and picklable as an empty pool.

    Views of an array, tensors and memoryviews made of it count as references. The interpreter knows of no others: what
    reads or writes memory without one (a copy to a device that is still under way) needs memory of another kind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buffers: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
        # What the interpreter counts for an array that only the list knows.
        self._free_count = sys.getrefcount(self._buffers[0])

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """A contiguous array of this shape, with undefined content."""
        num_bytes = math.prod(shape)
        with self._lock:
            for index in range(len(self._buffers)):
                # Not a much larger one: another batch will need it.
                if (
                    num_bytes <= len(self._buffers[index]) <= 2 * num_bytes
                    and sys.getrefcount(self._buffers[index]) == self._free_count
                ):
                    return self._buffers[index][:num_bytes].reshape(shape)
            # Some more than is requested, the next batch may be larger; what is not written to takes no memory.
            made = np.empty(num_bytes + num_bytes // 4, np.uint8)
            self._buffers = [*self._buffers[1 - MAX_BUFFERS :], made]
            return made[:num_bytes].reshape(shape)

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(vars(BufferPool()))
