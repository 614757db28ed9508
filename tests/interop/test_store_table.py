"""Logits of a store by record key: of records with and without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from teachonce.errors import LogitsError
from teachonce.interop.store_table import StoreTable
from teachonce.records.discovery import open_records
from teachonce.records.source import NO_LABEL
from teachonce.store.plan import records_file
from teachonce.store.store import Store
from tests.support.small_data import forge, write_shards, write_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_store(tmp_path / "store", write_shards(tmp_path / "data", sizes=(3,)))


def test_labels_agree_or_there_is_none(tmp_path: Path, store: Store) -> None:
    table = StoreTable(store, np.array([0, 1, 2, -1]))
    records = open_records(tmp_path / "data", "train").read_batch([(0, row) for row in range(3)])
    for row, (record, label) in enumerate(zip(records, (1, 2, 3), strict=True)):
        assert record.label == label
        for given in (label if row < 2 else NO_LABEL, None, NO_LABEL):
            found = table.find_logits(key=record.key, filename=record.filename, label=given)
            assert found.tolist() == store.read_logits(0, 0, [row])[0].tolist()
    with pytest.raises(LogitsError, match=r"label 2 here, 1 in .*: the classes have a different order there"):
        table.find_logits(key=records[0].key, filename="a", label=2)
    with pytest.raises(LogitsError, match="label 3 here, a class that the data does not have in "):
        table.find_logits(key=records[2].key, filename="a", label=3)


def test_a_store_without_labels_fits_any(store: Store) -> None:
    keys = store.read_keys(0).copy()
    name = store.shards[0][0]
    with forge(store.path, records_file(name)) as writer:
        writer.write_records(name, keys, list("abc"), np.full(3, NO_LABEL, np.int32))
    table = StoreTable(Store(store.path), np.arange(4))
    found = table.find_logits(key=int(keys[1]), filename="b", label=2)
    assert found.tolist() == store.read_logits(0, 0, [1])[0].tolist()
