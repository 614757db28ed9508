"""Batches made ahead by threads, in an order that does not depend on their number.

Threads and not processes: reading, decoding and resizing let go of Python's lock, and a batch need not cross a border
between processes, where touching fresh shared memory costs more than a tenth of the work. A batch is made by one
thread. Memory of batches that nobody holds any more is used again, which also saves a tenth: a fresh batch of 64 images
of 224 px is 9.6 MB that the system has to clear first.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.batches import EpochBatches

Batch = dict[str, torch.Tensor]

BATCHES_AHEAD = 2
"""Batches a thread, made or in the making, that nobody has asked for yet."""
MAX_KEPT = 32
"""Arrays that ``Buffers`` remembers; of batches of several sizes the oldest go first."""


class Batched(Protocol):
    """What a loader takes batches from."""

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch: ...


class Loader:
    """The batches of ``batches``; ``num_workers`` threads make them ahead, with 0 they are made when asked for.

    What goes wrong in a thread is raised where its batch would have come. Leaving an iteration early stops the threads.
    """

    def __init__(self, dataset: Batched, batches: EpochBatches, num_workers: int = 0) -> None:
        self.dataset = dataset
        self.batches = batches
        self.num_workers = num_workers

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        if self.num_workers == 0:
            for items in self.batches:
                yield self.dataset.__getitems__(items)
            return
        pending: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="load")
        try:
            for items in self.batches:
                pending.append(pool.submit(self.dataset.__getitems__, items))
                if len(pending) > self.num_workers * BATCHES_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


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
