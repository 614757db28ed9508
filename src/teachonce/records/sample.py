"""Some records of a source: drawn by a seed, or chosen by position, as a source of one shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from teachonce.engine.buffers import BufferPool
from teachonce.records.source import NO_LABEL, Location, Locations, Record, RecordSource, ShardInfo, shard_name
from teachonce.rng import generator

MAX_DRAWS = 16
"""Records that are read at most for each that is to have a label: 256 of them are found where one in 16 has one."""


def sample_locations(source: RecordSource, count: int, seed: int) -> Locations:
    """Where ``count`` records of the source are (all, where it has fewer), drawn by ``seed``, in their order."""
    return source.locate_all(np.sort(_draw_order(source, seed)[:count]))


def sample_labeled(source: RecordSource, count: int, seed: int) -> tuple[list[Record], int]:
    """``count`` records with a label, in their order, and how many were read for them.

    Of data that is labeled throughout they are those of ``sample_locations``. Else the next of the same order are
    drawn for those without: from the rows with labels, where these are known without reading, or until ``MAX_DRAWS``
    times ``count`` records were read. Fewer are returned where there are no more.
    """
    order = _draw_order(source, seed)
    known = [labels for shard in range(len(source.shards)) if (labels := source.known_labels(shard)) is not None]
    if len(known) == len(source.shards):
        order = order[np.concatenate(known)[order] != NO_LABEL]
    found: dict[int, Record] = {}
    num_read = 0
    while len(found) < count and num_read < min(len(order), MAX_DRAWS * count):
        drawn = order[num_read : num_read + count]
        rows = np.sort(drawn)
        records = dict(zip(rows.tolist(), source.read_batch(source.locate_all(rows)), strict=True))
        labeled = [row for row in drawn.tolist() if records[row].label != NO_LABEL]
        found |= {row: records[row] for row in labeled[: count - len(found)]}
        num_read += len(drawn)
    return [found[row] for row in sorted(found)], num_read


def _draw_order(source: RecordSource, seed: int) -> NDArray[np.int64]:
    return generator(seed, "gate").permutation(source.num_records)


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
