"""The key index: every record under its key, whatever the shards, however many share one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from teachonce.records.key_index import KeyIndex

# Few different keys, so that many are equal, and those at the ends of the range.
KEYS = st.sampled_from([0, 1, 2, 3, 5, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]).map(np.uint64)
SHARDS = st.lists(hnp.arrays(np.uint64, st.integers(0, 6), elements=KEYS), max_size=5)


@given(SHARDS, st.integers(0, 3))
def test_it_lists_every_record_once_in_order(shards: list[np.ndarray], first: int) -> None:
    index = KeyIndex.build(shards, first)
    expected = sorted(
        (int(key), first + shard, row) for shard, keys in enumerate(shards) for row, key in enumerate(keys)
    )
    found = list(zip(index.keys.tolist(), index.shards.tolist(), index.rows.tolist(), strict=True))
    assert found == expected and len(index) == len(expected)
    assert (index.keys.dtype, index.shards.dtype, index.rows.dtype) == (np.uint64, np.uint32, np.uint32)


@given(SHARDS, st.lists(KEYS, max_size=9))
def test_a_key_is_found_where_it_first_lies(shards: list[np.ndarray], keys: list[np.uint64]) -> None:
    index = KeyIndex.build(shards)
    places = index.find(np.array(keys, np.uint64))
    assert places.shape == (len(keys),)
    for key, place in zip(keys, places.tolist(), strict=True):
        lies = [
            (shard, row) for shard, of_shard in enumerate(shards) for row in np.flatnonzero(of_shard == key).tolist()
        ]
        assert index.locations_of(int(key)) == lies
        assert (place >= 0) == bool(lies)
        if lies:
            assert index.location(place) == lies[0]


def test_an_empty_index_knows_nothing() -> None:
    for index in (KeyIndex.build([]), KeyIndex.build([np.empty(0, np.uint64)] * 2)):
        assert len(index) == 0 and index.find(np.array([0, 2**64 - 1], np.uint64)).tolist() == [-1, -1]
        assert index.find(np.empty(0, np.uint64)).tolist() == [] and index.locations_of(7) == []
