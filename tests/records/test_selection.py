"""A selection of records: those that were chosen, in their order (what every source does: test_source_contract)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from teachonce.records.discovery import open_records
from teachonce.records.selection import SelectedSource
from tests.support.small_data import write_shards

ROWS = [np.array([1, 4]), np.array([], np.int64), np.arange(3)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data", (5, 2, 3))


def test_it_has_the_records_that_were_chosen(data: Path) -> None:
    source = open_records(data, "train")
    selected = SelectedSource(source, ROWS)
    assert [(info.name, info.num_records) for info in selected.shards] == [
        ("train-00000-of-00003", 2),
        ("train-00002-of-00003", 3),
    ]
    assert selected.num_records == 5 and (selected.split, selected.classes) == (source.split, source.classes)
    expected = source.read_batch([(0, 1), (0, 4), (2, 0), (2, 1), (2, 2)])
    assert [record for shard in range(2) for record in selected.iter_shard(shard)] == expected
    assert selected.read_batch([(1, 2), (0, 0), (0, 1), (0, 0)]) == [expected[index] for index in (4, 0, 1, 0)]


def test_a_part_of_a_shard_has_another_identity(data: Path) -> None:
    """What is cached of the whole shard must not be taken for it."""
    assert all(info.identity for info in open_records(data, "train").shards)
    assert all(info.identity == "" for info in SelectedSource(open_records(data, "train"), ROWS).shards)


def test_keys_that_are_known(data: Path) -> None:
    source = open_records(data, "train")
    keys = [np.array([record.key for record in source.iter_shard(shard)], np.uint64) for shard in range(3)]
    selected = SelectedSource(source, ROWS, keys)
    for shard in range(2):
        assert selected.known_keys(shard).tolist() == [record.key for record in selected.iter_shard(shard)]
    assert SelectedSource(source, ROWS).known_keys(0) is None


def test_logits_come_along(tmp_path: Path) -> None:
    from tests.support.small_data import example

    payloads = [example(index, 1, logit=np.full(4, index, np.float32)) for index in range(8)]
    source = open_records(write_shards(tmp_path / "logits", payloads=payloads), "train")
    selected = SelectedSource(source, [np.array([3]), np.array([0, 2])])
    assert [record.logits[0] for record in selected.iter_shard(1, with_logits=True)] == [5, 7]
    assert selected.read_record(0, 0, with_logits=True).logits.tolist() == [3] * 4
