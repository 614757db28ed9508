"""Paired batches, for mixup of type 1; what else an epoch is made of is held by test_dataset."""

from __future__ import annotations

import pickle

import pytest

from teachonce.data.sampler import EpochBatches
from teachonce.errors import ConfigError


def flat(batches: EpochBatches) -> list[tuple[int, int]]:
    return [item for batch in batches for item in batch]


@pytest.mark.parametrize(("num_records", "batch_size", "world_size"), [(23, 4, 1), (24, 4, 2), (7, 100, 3), (5, 1, 1)])
def test_every_record_occurs_twice_an_epoch_in_as_many_steps(
    num_records: int, batch_size: int, world_size: int
) -> None:
    ranks = [
        EpochBatches(num_records, batch_size, epoch=3, rank=rank, world_size=world_size, paired=True)
        for rank in range(world_size)
    ]
    plain = EpochBatches(num_records, batch_size, epoch=3, world_size=world_size)
    assert {len(list(rank)) for rank in ranks} == {len(plain)}
    items = [item for rank in ranks for item in flat(rank)]
    assert sorted(items) == [(index, epoch) for index in range(num_records) for epoch in (6, 7)]


def test_the_records_of_a_batch_are_those_without_pairs_and_their_partners_follow() -> None:
    plain, paired = (EpochBatches(20, 6, seed=1, epoch=2, paired=paired) for paired in (False, True))
    for records, both in zip(plain, paired, strict=True):
        half = len(records)
        assert [index for index, _ in both[:half]] == [index for index, _ in records]
        assert [epoch for _, epoch in both] == [4] * half + [5] * half


def test_partners_are_others_each_epoch() -> None:
    batches = EpochBatches(200, 50, paired=True)
    partners = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        partners.append([index for index, number in flat(batches) if number % 2])
    assert partners[0] != partners[1]
    # A uniform permutation leaves one record in its place on average, Poisson: ten would be one in ten million.
    records = [index for index, number in flat(batches) if number % 2 == 0]
    assert sum(a == b for a, b in zip(records, partners[1], strict=True)) < 10


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("num_records", "world_size", "accumulate"), [(48, 1, 3), (53, 2, 3), (6, 2, 3), (47, 3, 2)])
def test_accumulated_batches_are_those_of_the_large_batch(num_records, world_size, accumulate, paired, drop_last):
    options = {"seed": 5, "epoch": 2, "paired": paired, "drop_last": drop_last}
    large = list(EpochBatches(num_records, 4 * accumulate * world_size, **options))
    ranks = [
        EpochBatches(num_records, 4, rank=rank, world_size=world_size, accumulate=accumulate, **options)
        for rank in range(world_size)
    ]
    steps = list(zip(*ranks, strict=True))
    assert len(steps) == ranks[0].num_steps == len(large) * accumulate
    for update, whole in enumerate(large):
        mine = range(update * accumulate, (update + 1) * accumulate)
        assert sorted(item for step in mine for part in steps[step] for item in part) == sorted(whole)
        sizes = [len(part) for step in mine for part in steps[step]]
        limit = (2 if paired else 1) * (4 if num_records > 6 or drop_last else 1)
        assert min(sizes) > 0 and max(sizes) <= limit
        # The mean over batches and ranks of weighted means is the mean over the update.
        weights = [rank.loss_weight(step) for step in mine for rank in ranks]
        shares = [weight / (world_size * accumulate) for weight in weights]
        assert shares == pytest.approx([size / len(whole) for size in sizes], rel=1e-12)


def test_one_batch_an_update_weighs_exactly_1() -> None:
    batches = EpochBatches(53, 6)
    assert {batches.loss_weight(step) for step in range(len(batches))} == {1.0}


def test_fewer_records_than_batches_of_an_update() -> None:
    with pytest.raises(ConfigError, match="5 records for 2 devices, 3 batches an update: each needs at least one"):
        EpochBatches(5, 1, world_size=2, accumulate=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0: expected at least 1"),
        ({"batch_size": -1}, "batch_size -1: expected at least 1"),
        ({"world_size": 0}, "world_size 0: expected at least 1"),
        ({"accumulate": 0}, "accumulate 0: expected at least 1"),
        ({"rank": 2, "world_size": 2}, "rank 2: expected 0 to 1, of world_size 2"),
        ({"rank": 1}, "rank 1: expected 0 to 0, of world_size 1"),
        ({"rank": -1, "world_size": 2}, "rank -1: expected 0 to 1"),
        ({"first_step": -1}, "first_step -1: expected 0 or more"),
        ({"epoch": -1}, "epoch -1: expected 0 or more"),
    ],
)
def test_numbers_that_cannot_be_meant(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        EpochBatches(10, **({"batch_size": 4} | options))


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_goes_on_in_its_middle(paired, drop_last):
    options = {"seed": 5, "epoch": 2, "rank": 1, "world_size": 2, "paired": paired, "drop_last": drop_last}
    whole = list(EpochBatches(53, 6, **options))
    for first_step in (0, 1, len(whole) - 1, len(whole)):
        rest = EpochBatches(53, 6, **options, first_step=first_step)
        assert list(rest) == whole[first_step:] and len(rest) == len(whole) - first_step
    rest.set_epoch(2)
    assert list(rest) == whole, "another epoch begins at its beginning"


@pytest.mark.parametrize("paired", [False, True])
def test_a_batch_by_its_number(paired):
    batches = EpochBatches(53, 6, seed=5, epoch=2, paired=paired, first_step=2)
    rest = list(batches)
    assert [batches[step] for step in range(len(batches))] == rest
    assert batches[-1] == rest[-1] and batches[1:3] == rest[1:3]
    with pytest.raises(IndexError):
        batches[len(rest)]
    # As a DataLoader's processes get it that are spawned, also after a batch was asked for.
    assert list(pickle.loads(pickle.dumps(batches))) == rest
    batches.set_epoch(3)
    assert [batches[step] for step in range(len(batches))] == list(EpochBatches(53, 6, seed=5, epoch=3, paired=paired))
