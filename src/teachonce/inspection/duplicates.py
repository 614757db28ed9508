"""Equal images: how many a split has more than once, and which of train are in a split that measures, too.

Images are equal whose record keys are, the hashes of their bytes: 8 bytes an image, of a reading that is done anyway.
An image that was scaled or encoded anew is another one. What cannot be read is equal to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import RecordError
from teachonce.records.image_listing import SPLIT_NAMES, TRAIN_NAMES
from teachonce.records.source import RecordSource, record_key


def key_of_unreadable(split: str, shard: int, row: int) -> int:
    """What stands for the key of a record without a readable image: the hash of its place."""
    return record_key(f"{split}/{shard}/{row}".encode(errors="surrogatepass"))


class SplitKeys:
    """The keys of all records of a split, in their order; given by shard."""

    def __init__(self, source: RecordSource, keys: Mapping[int, NDArray[np.uint64]]) -> None:
        self.source = source
        self.keys = np.concatenate([keys[shard] for shard in range(len(source.shards))])

    @property
    def num_doubled(self) -> int:
        """Records whose image an earlier one has."""
        return len(self.keys) - len(np.unique(self.keys))

    def find_in(self, other: SplitKeys) -> NDArray[np.int64]:
        """The positions here of records whose image ``other`` has too."""
        known = np.sort(other.keys)
        places = np.minimum(known.searchsorted(self.keys), len(known) - 1)
        return np.flatnonzero(known[places] == self.keys)

    def describe(self, position: int) -> str:
        """Where a record is."""
        shard, row = self.source.locate(position)
        try:
            return self.source.read_record(shard, row).where
        except RecordError:
            # It was counted, but has what training refuses, such as a label of no class.
            return f"{self.source.shards[shard].name} record {row}"


def find_shared(splits: Sequence[SplitKeys]) -> list[dict[str, Any]]:
    """Of train and each split that measures (validation, test, ...) how many images of train it has too.

    As JSON values; ``example`` is where one of these images is in either split, None where there is none.
    """
    train = [split for split in splits if split.source.split.lower() in TRAIN_NAMES]
    measuring = [split for split in splits if split.source.split.lower() in SPLIT_NAMES.difference(TRAIN_NAMES)]
    return [_compare(first, second) for first in train for second in measuring]


def _compare(first: SplitKeys, second: SplitKeys) -> dict[str, Any]:
    shared = first.find_in(second)
    example = None
    if len(shared):
        same = int(np.flatnonzero(second.keys == first.keys[shared[0]])[0])
        example = [first.describe(int(shared[0])), second.describe(same)]
    return {
        "splits": [first.source.split, second.source.split],
        "num_records": len(shared),
        "example": example,
    }
