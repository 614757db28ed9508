"""An epoch's order that needs few shards at a time: shards permuted, records shuffled in a window of N of them.

For data that is read well only shard by shard: a rotating disk, a remote store, a page cache smaller than the data. The
epoch is a circle of as many slots as there are shards. The shard at place p of a random order spreads its records,
drawn at random and as evenly as their number allows, over the N slots p, p + 1, ..., p + N - 1; the records of a slot,
from N shards, are shuffled. So

- each record occurs once, and in a slot no more than N shards do. From one slot to the next one shard leaves and one
  comes; a batch that spans c such changes touches at most N + c shards.
- every slot is alike, the first and the last too, because they are on a circle. The price: N - 1 of S shards are read
  in two parts, at the beginning and at the end of the epoch.
- shards of unequal sizes keep their share: of a shard twice as large a batch has twice as many records.

Why the window slides: in blocks of N shards, each shuffled as a whole, a batch is mixed as well, but at a block's end
all N shards change at once, so 2 N of them are wanted at that moment (and always, if the next ones are to be read
ahead), here N + 1; there a record never meets more than N - 1 other shards in an epoch, here 2 N - 2; and the labels of
sorted shards change all at once there, here by one part in N. A buffer that is filled from N open shards and drawn from
at random slides only in name: its shards were opened together, so they run dry together.

The rows of a shard are drawn at random and not taken in the order of the file: then a shard's records would meet the
same neighbors in every epoch. So reading is sequential only for who reads a shard ahead as a whole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def windowed_order(
    shard_sizes: NDArray[np.int64], num_open: int, *, layout: np.random.Generator, draws: np.random.Generator
) -> NDArray[np.integer]:
    """Record indices [N] of an epoch, counted through all shards, that visit ``num_open`` shards at a time.

    ``layout`` draws which shards lie where on the circle, ``draws`` which of their records come when: orders of one
    layout have the same number of records of each shard in each slot, which partners of a mix need. Expects fewer open
    shards than there are: a window of all is the plain permutation.

    4 bytes per record (8 from 2^31 records on), and about a second for 14 million in 10,000 shards
    (``benchmarks/shuffling.py``); beside them a few numbers a shard.
    """
    num_shards = len(shard_sizes)
    assert 1 <= num_open < num_shards, f"{num_open} of {num_shards} shards"
    num_records = int(shard_sizes.sum())
    first_records = np.cumsum(shard_sizes) - shard_sizes
    shard_order = layout.permutation(num_shards)
    # Where a record falls between two slots: without it, a shard of a single record would always be in its first one.
    shifts = layout.random(num_shards)

    def cut(place: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The slots [num_open] of the shard at this place, and where its records are cut for them [num_open + 1]."""
        size = shard_sizes[shard_order[place]]
        edges = np.ceil(np.arange(num_open + 1) * (size / num_open) - shifts[place]).astype(np.int64)
        edges[0], edges[-1] = 0, size
        return (place + np.arange(num_open)) % num_shards, edges.clip(0, size)

    slot_sizes = np.zeros(num_shards, np.int64)
    for place in range(num_shards):
        slots, edges = cut(place)
        slot_sizes[slots] += np.diff(edges)
    ends = np.cumsum(slot_sizes)
    filled = ends - slot_sizes
    order: NDArray[np.integer] = np.empty(num_records, np.int32 if num_records < 1 << 31 else np.int64)
    for place, shard in enumerate(shard_order):
        slots, edges = cut(place)
        counts = np.diff(edges)
        rows = np.arange(edges[-1])
        order[rows + np.repeat(filled[slots] - edges[:-1], counts)] = first_records[shard] + draws.permutation(rows)
        filled[slots] += counts
    for end, size in zip(ends.tolist(), slot_sizes.tolist(), strict=True):
        draws.shuffle(order[end - size : end])
    return order
