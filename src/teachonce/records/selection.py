"""Some records of a source, shard by shard, as a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from teachonce.engine.buffers import BufferPool
from teachonce.records.source import Location, Record, RecordSource


class SelectedSource(RecordSource):
    """The records at some ``rows`` [n] of each shard of a source, in their order; shards keep their names.

    A shard of which no record is left is not there. ``keys`` [n] of each shard of the source, where they are known.
    """

    def __init__(
        self,
        source: RecordSource,
        rows: Sequence[NDArray[np.integer]],
        keys: Sequence[NDArray[np.uint64]] | None = None,
    ) -> None:
        assert len(rows) == len(source.shards)
        self.source = source
        self.split, self.classes, self.format = source.split, source.classes, source.format
        self.with_boxes = source.with_boxes
        self.is_fetched = source.is_fetched
        self.labeled = source.labeled
        kept = [shard for shard, chosen in enumerate(rows) if len(chosen)]
        self._shards = kept
        self._rows = [np.asarray(rows[shard], np.int64) for shard in kept]
        self._keys = None if keys is None else [keys[shard][rows[shard]] for shard in kept]
        # The bytes are of the whole shard, and a shard of fewer records is not what was cached for all of them.
        self.shards = tuple(
            replace(source.shards[shard], num_records=len(chosen), identity="")
            for shard, chosen in zip(kept, self._rows, strict=True)
        )

    def read_batch(
        self, locations: Sequence[Location], *, with_logits: bool = False, buffers: BufferPool | None = None
    ) -> Sequence[Record]:
        """The records at several locations; raises as the source."""
        own = [(self._shards[shard], int(self._rows[shard][row])) for shard, row in locations]
        return self.source.read_batch(own, with_logits=with_logits, buffers=buffers)

    def fetch(self, shard: int, go_on: Callable[[], bool] = lambda: True) -> None:
        """The shard that the records are of."""
        self.source.fetch(self._shards[shard], go_on)

    def known_keys(self, shard: int) -> NDArray[np.uint64] | None:
        """Those that were given."""
        return None if self._keys is None else self._keys[shard]

    def known_labels(self, shard: int) -> NDArray[np.int32] | None:
        """Those that the source knows."""
        found = self.source.known_labels(self._shards[shard])
        return None if found is None else found[self._rows[shard]]

    def shard_of(self, shard: int) -> int:
        """The shard of the source that a shard is of."""
        return self._shards[shard]

    def choose_rows(self, shard: int, read: Callable[[int], NDArray[np.int32]]) -> NDArray[np.int32]:
        """Of what ``read`` knows of all records of a shard of the source, what it knows of those here."""
        return read(self._shards[shard])[self._rows[shard]]

    def iter_shard(self, shard: int, *, with_logits: bool = False) -> Iterator[Record]:
        """The records of a shard in order; of a file that holds many the others are read and passed over."""
        if self.source.shards[self._shards[shard]].path is None:
            for row in range(len(self._rows[shard])):
                yield self.read_record(shard, row, with_logits=with_logits)
            return
        wanted = iter(self._rows[shard].tolist())
        next_row = next(wanted, -1)
        for row, record in enumerate(self.source.iter_shard(self._shards[shard], with_logits=with_logits)):
            if row == next_row:
                yield record
                next_row = next(wanted, -1)
