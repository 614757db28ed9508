"""Record keys in order, and where their records are: how records and stores find each other whatever their shards.

Three arrays, 16 bytes per record: the keys sorted, and the shard and the row of each. Equal images have equal keys and
are adjacent, by shard and row. The arrays may be memory-mapped; a search touches a few pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teachonce.records.source import Location

SORTED_AT_ONCE = 1 << 20
"""Keys that are looked up together: sorted, neighbors touch the same pages."""


@dataclass(frozen=True)
class KeyIndex:
    """``keys`` uint64 [N], ascending; ``shards`` and ``rows`` uint32 [N]."""

    keys: NDArray[np.uint64]
    shards: NDArray[np.uint32]
    rows: NDArray[np.uint32]

    @classmethod
    def build(cls, shard_keys: Sequence[NDArray[np.uint64]], first_shard: int = 0) -> KeyIndex:
        """The index of the keys [n] of each shard, which are counted from ``first_shard``."""
        sizes = np.array([len(keys) for keys in shard_keys], np.int64)
        keys = np.concatenate([*shard_keys, np.empty(0, np.uint64)])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        shards, rows = np.empty(len(keys), np.uint32), np.empty(len(keys), np.uint32)
        starts = np.cumsum(sizes) - sizes
        # In parts, so that what is needed between does not grow with the records.
        for first in range(0, len(keys), SORTED_AT_ONCE):
            part = slice(first, first + SORTED_AT_ONCE)
            own = np.searchsorted(starts, order[part], side="right") - 1
            shards[part], rows[part] = own + first_shard, order[part] - starts[own]
        return cls(keys, shards, rows)

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The place in this index of the first record with each of some keys [n]; -1 where there is none."""
        places = np.searchsorted(self.keys, keys)
        places[places == len(self.keys)] = 0
        if not len(self.keys):
            return np.full(len(keys), -1, np.int64)
        return np.where(self.keys[places] == keys, places, -1)

    def contains(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether there is a record with each of many keys [n]; faster than ``find``, as they are sorted first."""
        known = np.zeros(len(keys), bool)
        for first in range(0, len(keys), SORTED_AT_ONCE):
            part = keys[first : first + SORTED_AT_ONCE]
            order = np.argsort(part)
            known[first + order] = self.find(part[order]) >= 0
        return known

    def fits(self, shard_keys: Sequence[NDArray[np.uint64]], first_shard: int = 0) -> bool:
        """Whether this is the index of these keys: each record once, at its place, in order."""
        sizes = np.array([len(keys) for keys in shard_keys], np.int64)
        starts = np.cumsum(sizes) - sizes
        if len(self) != sizes.sum() or (self.keys[1:] < self.keys[:-1]).any():
            return False
        keys = np.concatenate([*shard_keys, np.empty(0, np.uint64)])
        is_named = np.zeros(len(keys), bool)
        for first in range(0, len(self), SORTED_AT_ONCE):
            part = slice(first, first + SORTED_AT_ONCE)
            shards, rows = self.shards[part].astype(np.int64) - first_shard, self.rows[part].astype(np.int64)
            if ((shards < 0) | (shards >= len(sizes))).any() or (rows >= sizes[shards]).any():
                return False
            flat = starts[shards] + rows
            if (keys[flat] != self.keys[part]).any():
                return False
            is_named[flat] = True
        return bool(is_named.all())

    def location(self, place: int) -> Location:
        """(shard, row) of a place."""
        return int(self.shards[place]), int(self.rows[place])

    def locations_of(self, key: int) -> list[Location]:
        """(shard, row) of every record with this key."""
        first, end = (int(np.searchsorted(self.keys, np.uint64(key), side)) for side in ("left", "right"))
        return [self.location(place) for place in range(first, end)]
