"""Batches made ahead by threads, in an order that does not depend on their number.

Threads and not processes: reading, decoding and resizing release the GIL, and a batch need not cross a border
between processes, where touching fresh shared memory costs more than a tenth of the work. A batch is made by one
thread. Memory of batches that are no longer referenced is reused, which also saves a tenth: a fresh batch of 64 images
of 224 px is 9.6 MB that the system has to clear first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from teachonce.data.fetch_ahead import FetchAhead
from teachonce.data.sampler import EpochBatches
from teachonce.data.tensors import Arrays, Batch
from teachonce.engine.machine import local_ranks, num_cores
from teachonce.engine.prefetch import prefetch
from teachonce.errors import ConfigError
from teachonce.records.source import RecordSource

Items = Sequence[tuple[int, int]]
"""(record index, epoch) of a batch."""
B = TypeVar("B")

BATCHES_AHEAD = 2
"""Batches a thread, made or in progress, that have not been requested yet."""
MOST_THREADS = 8
"""That a loader takes unasked: each holds ``BATCHES_AHEAD`` batches, and further ones are for who has measured."""


def choose_threads(num_wanted: int | None, device_type: str) -> int:
    """Threads for a network on such a device, unless so many are wanted: none on a CPU, whose cores it uses itself.

    Else one a core, of which each process that torchrun started on this machine has its part.
    """
    if num_wanted is not None:
        return num_wanted
    return 0 if device_type == "cpu" else max(1, min(num_cores() // local_ranks(), MOST_THREADS))


class Batched(Protocol):
    """What a loader takes batches from."""

    records: RecordSource

    def __getitems__(self, items: Items) -> Batch: ...

    def read_items(self, items: Items) -> Arrays:
        """What ``__getitems__`` gives, in NumPy."""

    def fetch(self, shard: int, epoch: int, go_on: Callable[[], bool]) -> None:
        """Have a shard of the records, and what is joined with it in this epoch, near; until ``go_on()`` is False."""


class _Batches(ABC, Generic[B]):
    def __init__(self, dataset: Batched, batches: EpochBatches, num_workers: int = 0) -> None:
        if num_workers < 0:
            raise ConfigError(f"num_workers {num_workers}: expected 0 or more threads")
        self.dataset = dataset
        self.batches = batches
        self.num_workers = num_workers

    @abstractmethod
    def _make(self, items: Items) -> B:
        """The batch of these records."""

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> B:
        return self._make(self.batches[step])

    def __iter__(self) -> Iterator[B]:
        ahead = self.num_workers * BATCHES_AHEAD
        batches: Iterable[list[tuple[int, int]]] = self.batches
        if self.dataset.records.is_fetched:
            batches = FetchAhead(self.dataset.records, self.dataset.fetch, self.batches).follow()
        return prefetch(batches, self._make, threads=self.num_workers, ahead=ahead)


class Loader(_Batches[Batch]):
    """The batches of ``batches``; ``num_workers`` threads make them ahead, with 0 they are made on demand.

    What goes wrong in a thread is raised where its batch would have come. Leaving an iteration early stops the threads.
    ``loader[step]`` makes one batch by its number, for what asks for them in an order or in threads of its own, such as
    PyTorch's ``DataLoader(loader, batch_size=None)``.
    """

    def _make(self, items: Items) -> Batch:
        return self.dataset.__getitems__(items)

    def as_numpy(self) -> NumpyLoader:
        """The same batches as NumPy arrays, for other frameworks than torch, which need not be installed."""
        return NumpyLoader(self.dataset, self.batches, self.num_workers)


class NumpyLoader(_Batches[Arrays]):
    """A loader whose batches are NumPy arrays."""

    def _make(self, items: Items) -> Arrays:
        return self.dataset.read_items(items)
