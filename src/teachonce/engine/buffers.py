"""Memory that batches are read into, used again when nobody holds the batch any more."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_KEPT = 16  # batches that an arena remembers


class Arena:
    """Memory that batches of records are read into, used again once no record of an earlier batch lives; thread-safe.

    Fresh memory for a batch of photographs costs as much as reading them from the page cache: the system clears it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
        # What the interpreter counts for memory that only the list knows: views of it count as well.
        self._free_count = sys.getrefcount(self._kept[0])

    def take(self, num_bytes: int) -> memoryview:
        """Room for ``num_bytes``, with whatever it held before."""
        with self._lock:
            for index in range(len(self._kept)):
                if len(self._kept[index]) >= num_bytes and sys.getrefcount(self._kept[index]) == self._free_count:
                    return self._kept[index].data
            # Some more than this batch needs: the next one may be larger.
            made = np.empty(num_bytes + num_bytes // 4, np.uint8)
            self._kept = [*self._kept[1 - _MAX_KEPT :], made]
            return made.data

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(vars(Arena()))
