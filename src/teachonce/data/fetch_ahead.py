"""What the next batches need of remote data, fetched into the cache before they ask for it.

The order of an epoch is known, so the shards of the batches that come are fetched whole, in the order in which they are
first needed, while a batch that cannot wait fetches the part that it needs. With a window of shards
(``--shuffle-shards``) these are the window's next ones; without one they are soon all shards, so data that is larger
than the cache needs a window.

A failed fetch is not an error here: the read that needs the data reports it.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue

import numpy as np

from teachonce.data.sampler import EpochBatches
from teachonce.errors import TeachonceError
from teachonce.records.source import RecordSource

THREADS = 4
"""Shards that are fetched at once."""
BATCHES = 32
"""Batches that are looked ahead at least."""
WAIT_SECONDS = 0.2
"""Between two checks of an idle thread whether the epoch has ended."""
SHARDS = 2
"""With a window: so many shards' worth of records are looked ahead, in each of which one shard is new."""

Items = list[tuple[int, int]]
"""(record index, epoch) of a batch."""


Fetch = Callable[[int, int, Callable[[], bool]], None]
"""``fetch(shard, epoch, go_on)`` brings a shard, and what is joined with it, near, until ``go_on()`` is False."""


class FetchAhead:
    """Follows the batches of an epoch and fetches what they need."""

    def __init__(self, records: RecordSource, fetch: Fetch, batches: EpochBatches) -> None:
        self._records = records
        self._fetch = fetch
        self._batches = batches

    def follow(self) -> Iterator[Items]:
        """The batches, in their order; what is not fetched by their end is left."""
        ended = threading.Event()
        wanted: SimpleQueue[tuple[int, int]] = SimpleQueue()
        # Daemons: who leaves the process does not wait for a server.
        for _ in range(THREADS):
            threading.Thread(target=self._work, args=(wanted, ended), name="fetch ahead", daemon=True).start()
        asked: set[tuple[int, int]] = set()
        coming = iter(self._batches)
        waiting: deque[Items] = deque()
        try:
            for items in self._look_ahead(coming):
                self._ask(wanted, asked, items)
                waiting.append(items)
            while waiting:
                yield waiting.popleft()
                for items in islice(coming, 1):
                    self._ask(wanted, asked, items)
                    waiting.append(items)
        finally:
            ended.set()

    def _work(self, wanted: SimpleQueue[tuple[int, int]], ended: threading.Event) -> None:
        while not ended.is_set():
            with suppress(Empty, TeachonceError):
                self._fetch(*wanted.get(timeout=WAIT_SECONDS), lambda: not ended.is_set())

    def _look_ahead(self, coming: Iterator[Items]) -> Iterable[Items]:
        count = BATCHES
        if self._batches.shuffle_shards is not None:
            sizes = [shard.num_records for shard in self._records.shards]
            update = self._batches.batch_size * self._batches.world_size
            count = max(count, -(-SHARDS * max(sizes) // update))
        return islice(coming, count)

    def _ask(self, wanted: SimpleQueue[tuple[int, int]], asked: set[tuple[int, int]], items: Items) -> None:
        indices, epochs = np.array(items, np.int64).reshape(-1, 2).T
        shards = [shard for shard, _ in self._records.locate_all(indices)]
        for needed in dict.fromkeys(zip(shards, epochs.tolist(), strict=True)):
            if needed not in asked:
                asked.add(needed)
                wanted.put(needed)


def check_cache_size(records: RecordSource, shuffle_shards: int | None, cache_bytes: int) -> None:
    """Warn where the records that an epoch reads at a time do not fit into the cache."""
    sizes = sorted((shard.num_bytes for shard in records.shards), reverse=True)
    at_once = sizes if shuffle_shards is None else sizes[: shuffle_shards + SHARDS]
    if sum(at_once) <= cache_bytes:
        return
    what = "they" if shuffle_shards is None else f"{len(at_once)} shards of them"
    num_fitting = _count_fitting(sizes, cache_bytes) - SHARDS
    advice = f"--shuffle-shards {num_fitting}, or " if num_fitting > 0 else ""
    warnings.warn(
        f"the {records.split} records: {what} have {sum(at_once):,} bytes, the cache {cache_bytes:,}: data will "
        f"be fetched repeatedly; give {advice}a larger --cache-size",
        stacklevel=2,
    )


def _count_fitting(sizes: Sequence[int], num_bytes: int) -> int:
    return int(np.searchsorted(np.cumsum(sizes), num_bytes, side="right"))
