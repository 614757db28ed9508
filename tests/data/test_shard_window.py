"""The order that needs few shards at a time, and what ``EpochBatches`` makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from teachonce.data.sampler import EpochBatches
from teachonce.data.shard_window import windowed_order
from teachonce.errors import ConfigError
from teachonce.rng import generator

SIZES = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=12)


def order_of(sizes: Sequence[int], num_open: int, epoch: int = 0) -> NDArray[np.integer]:
    layout, draws = generator(0, "layout", epoch), generator(0, "draws", epoch)
    return windowed_order(np.array(sizes, np.int64), num_open, layout=layout, draws=draws)


def shard_of(indices: Sequence[int] | NDArray[np.integer], sizes: Sequence[int]) -> NDArray[np.integer]:
    return np.repeat(np.arange(len(sizes)), sizes)[np.asarray(indices, np.int64)]


def build(sizes: Sequence[int], batch_size: int, shuffle_shards: int | None, **options: object) -> EpochBatches:
    options = {"shard_sizes": sizes, "shuffle_shards": shuffle_shards, **options}
    return EpochBatches(sum(sizes), batch_size, **options)  # type: ignore[arg-type]


def rows_of(batches: EpochBatches) -> list[list[int]]:
    return [[index for index, _ in batch] for batch in batches]


@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=12),
    window=st.integers(1, 11),
    epoch=st.integers(0, 9),
)
def test_in_a_slot_no_more_shards_than_the_window_has(sizes: list[int], window: int, epoch: int) -> None:
    """The slots are put under the order one after another, each record in the first one that its shard may be in."""
    num_shards = len(sizes)
    window = min(window, num_shards - 1)
    order = order_of(sizes, window, epoch)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    place_of = np.argsort(generator(0, "layout", epoch).permutation(num_shards))
    slot = 0
    for place in place_of[shard_of(order, sizes)].tolist():
        while (slot - place) % num_shards >= window:
            slot += 1
        assert slot < num_shards


def test_every_slot_is_alike_from_the_first_to_the_last() -> None:
    """Of 7 shards of 12 records in a window of 4, each slot of 12 records holds 3 of each of 4 shards."""
    for epoch in range(5):
        shards = shard_of(order_of([12] * 7, 4, epoch), [12] * 7).reshape(7, 12)
        for slot in range(7):
            _, counts = np.unique(shards[slot], return_counts=True)
            assert counts.tolist() == [3] * 4
            # One leaves and one comes, from the last slot to the first too.
            assert len(set(shards[slot]) & set(shards[slot - 1])) == 3


def test_a_batch_has_of_each_shard_what_its_size_says() -> None:
    sizes = [60, 20, 40, 20, 60, 40]
    order = shard_of(order_of(sizes, 5), sizes)
    # 5 of 6 shards are open everywhere: in each slot a fifth of each of them, rounded to whole records.
    for shard, size in enumerate(sizes):
        positions = np.flatnonzero(order == shard)
        inside = [int(((positions >= start) & (positions < start + 40)).sum()) for start in range(0, 240, 40)]
        assert max(inside) <= size // 5 * 1.6 + 2, "spread over the window, not in a lump"


def test_a_shard_of_one_record_may_come_anywhere_in_its_window() -> None:
    # Shards of one record each: without a shift of the cuts every one would come in its first slot, so the order would
    # be that of the shards. A window of 3 moves most of them.
    moved = 0
    for epoch in range(20):
        shard_order = generator(0, "layout", epoch).permutation(30)
        moved += int((order_of([1] * 30, 3, epoch) != shard_order).sum())
    assert moved > 300


def test_the_records_of_a_slot_are_in_random_order_and_others_each_epoch() -> None:
    orders = [order_of([50] * 8, 2, epoch) for epoch in range(2)]
    for order in orders:
        rows = order % 50
        # Half of all neighbors ascend, give or take 4 standard deviations of 400 fair coins.
        assert abs(int((np.diff(rows) > 0).sum()) - 200) < 40
    assert (orders[0] != orders[1]).mean() > 0.9
    pairs = [{frozenset((int(a), int(b))) for a, b in pairwise(order)} for order in orders]
    # A record has 99 neighbors to choose from in a window of 2: of 400 pairs about 4 meet again.
    assert len(pairs[0] & pairs[1]) < 30


@given(
    sizes=SIZES,
    window=st.integers(1, 14),
    batch_size=st.integers(1, 40),
    world_size=st.sampled_from([1, 2, 3]),
    epoch=st.integers(0, 3),
    drop_last=st.booleans(),
    paired=st.booleans(),
)
def test_each_record_once_an_epoch_over_all_ranks_and_resumable(
    sizes: list[int],
    window: int,
    batch_size: int,
    world_size: int,
    epoch: int,
    drop_last: bool,
    paired: bool,
) -> None:
    num_records = sum(sizes)
    assume(num_records >= world_size)
    options = {"seed": 3, "epoch": epoch, "world_size": world_size, "drop_last": drop_last, "paired": paired}
    ranks = [build(sizes, batch_size, window, rank=rank, **options) for rank in range(world_size)]
    batches = [list(rank) for rank in ranks]
    plain = [list(build(sizes, batch_size, None, rank=rank, **options)) for rank in range(world_size)]
    # The steps and the sizes of their batches are those of the plain order; what was left out there is left out here.
    assert [[len(batch) for batch in rank] for rank in batches] == [[len(batch) for batch in rank] for rank in plain]
    seen = sorted(item for rank in batches for batch in rank for item in batch)
    assert len(set(seen)) == len(seen)
    if not drop_last:
        assert seen == sorted(item for rank in plain for batch in rank for item in batch)
    for rank, whole in enumerate(batches):
        middle = len(whole) // 2
        assert list(build(sizes, batch_size, window, rank=rank, first_step=middle, **options)) == whole[middle:]


@given(
    num_shards=st.integers(2, 9),
    size=st.integers(1, 30),
    window=st.integers(1, 8),
    batch_size=st.integers(1, 50),
    paired=st.booleans(),
)
def test_a_step_touches_few_shards(num_shards: int, size: int, window: int, batch_size: int, paired: bool) -> None:
    window = min(window, num_shards - 1)
    assume(size >= window)
    sizes = [size] * num_shards
    for rows in rows_of(build(sizes, batch_size, window, epoch=1, paired=paired)):
        # A slot holds at least size // window records of each of its shards. A batch that begins with the last one of a
        # slot lies in that slot, in those that it fills, and in one more.
        num_changes = 0 if len(rows) == 1 else 1 + max(0, len(rows) - 2) // (window * (size // window))
        assert len(set(shard_of(rows, sizes))) <= window + num_changes


def test_partners_come_from_the_shards_of_their_records() -> None:
    sizes = [12] * 7
    for rows in rows_of(build(sizes, 12, 3, paired=True)):
        records, partners = rows[:12], rows[12:]
        assert set(shard_of(records, sizes)) == set(shard_of(partners, sizes))
        assert records != partners


@given(sizes=SIZES, extra=st.integers(0, 3), epoch=st.integers(0, 3), paired=st.booleans())
def test_a_window_of_all_shards_is_the_order_without_one(
    sizes: list[int], extra: int, epoch: int, paired: bool
) -> None:
    assume(sum(sizes))
    num_filled = sum(size > 0 for size in sizes)
    options = {"seed": 5, "epoch": epoch, "paired": paired}
    assert list(build(sizes, 7, num_filled + extra, **options)) == list(build(sizes, 7, None, **options))


def test_the_order_is_of_seed_and_epoch_alone() -> None:
    sizes = [9, 1, 30, 12, 7]
    batches = build(sizes, 10, 2, seed=1)
    epochs = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        epochs.append(rows_of(batches))
    assert epochs[0] == epochs[2] != epochs[1]
    assert epochs[0] == rows_of(build(sizes, 10, 2, seed=1)) != rows_of(build(sizes, 10, 2, seed=2))
    # The batch over all ranks is that of one rank, whatever their number.
    ranks = [rows_of(build(sizes, 5, 2, seed=1, rank=rank, world_size=2)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == [sorted(rows) for rows in epochs[0]]


def test_memory_is_about_four_bytes_a_record() -> None:
    import tracemalloc

    tracemalloc.start()
    order_of([1000] * 300, 16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 300_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle_shards": 0}, "shuffle_shards 0: expected at least 1"),
        ({"shuffle_shards": 2, "shuffle": False}, "shuffle_shards 2: applies only with shuffle=True"),
        ({"shuffle_shards": 2, "shard_sizes": [3, 4]}, "of 7 records in 2 shards, expected those of the 8 records"),
        ({"shuffle_shards": 2, "shard_sizes": ()}, "of 0 records in 0 shards, expected those of the 8 records"),
        ({"shuffle_shards": 2, "world_size": 9}, "8 records for 9 devices"),
    ],
)
def test_a_window_that_cannot_be_meant(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EpochBatches(8, 2, **({"shard_sizes": [4, 4]} | options))
