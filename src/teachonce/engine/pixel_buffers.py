"""Arrays that batches of pixels are rendered into, used again when nobody holds the batch any more."""

from __future__ import annotations

import sys
import threading

import numpy as np
from numpy.typing import NDArray

MAX_KEPT = 32
"""Arrays that ``Buffers`` remembers; of batches of several sizes the oldest go first."""


class Buffers:
    """Arrays for batches of pixels, handed out again once nothing else refers to them; picklable (empty), thread-safe.

    With CUDA they are page-locked and each is torch's own: its allocator knows when a copy to the device is over.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
        # What the interpreter counts for an array that only the list knows.
        self._free_count = sys.getrefcount(self._kept[0])

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of this shape, with whatever it held before."""
        import torch

        if torch.cuda.is_available():
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
        with self._lock:
            for index in range(len(self._kept)):
                # Tensors made of an array, and views of it, count as references to it.
                if self._kept[index].shape == shape and sys.getrefcount(self._kept[index]) == self._free_count:
                    return self._kept[index]
            made = np.empty(shape, np.uint8)
            self._kept = [*self._kept[1 - MAX_KEPT :], made]
            return made

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(vars(Buffers()))
