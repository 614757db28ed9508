"""Some records of a source: drawn by a seed, or chosen by position, as a source of one shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from teachonce.engine.buffers import BufferPool
from teachonce.records.source import Location, Locations, Record, RecordSource, ShardInfo, shard_name
from teachonce.rng import generator


def sample_records(source: RecordSource, count: int, seed: int) -> Sequence[Record]:
    """``count`` records of the source (all, where it has fewer), drawn by ``seed``, in their order."""
    return source.read_batch(sample_locations(source, count, seed))


def sample_locations(source: RecordSource, count: int, seed: int) -> Locations:
    """The locations of ``sample_records``."""
    chosen = np.sort(generator(seed, "gate").permutation(source.num_records)[:count])
    return source.locate_all(chosen)


class SubsetSource(RecordSource):
    """Some records of a source, at ``locations``, as a source of one shard."""

    def __init__(self, source: RecordSource, locations: Sequence[Location]) -> None:
        self.source = source
        self.locations = list(locations)
        self.split, self.classes, self.format = source.split, source.classes, source.format
        self.with_boxes = source.with_boxes
        self.labeled = source.labeled
        self.shards = (ShardInfo(shard_name(source.split, 0, 1), None, len(self.locations), 0),)

    def read_batch(
        self, locations: Sequence[Location], *, with_logits: bool = False, buffers: BufferPool | None = None
    ) -> Sequence[Record]:
        """The records at the rows of the one shard."""
        own = [self.locations[row] for _, row in locations]
        return self.source.read_batch(own, with_logits=with_logits, buffers=buffers)

    def iter_shard(self, shard: int, *, with_logits: bool = False) -> Iterator[Record]:
        """The records in the order of their locations."""
        for row in range(len(self.locations)):
            yield self.read_record(0, row, with_logits=with_logits)
