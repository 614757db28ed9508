"""Logits of a store by record key: of records with and without labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from teachonce.errors import ConfigError, LogitsError
from teachonce.interop.config import MergeConfig
from teachonce.interop.csv_files import export_csv
from teachonce.interop.logit_table import open_logit_table
from teachonce.interop.merge import merge
from teachonce.interop.store_table import StoreTable, check_one_logit
from teachonce.records.discovery import open_records
from teachonce.records.source import NO_LABEL
from teachonce.store.plan import records_file
from teachonce.store.store import Store
from tests.support.paths import GOLDEN
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


def merge_golden(store: Path, out: Path, view: int | None) -> None:
    merge(MergeConfig(store=store, data=GOLDEN / "records", out=out, view=view, num_workers=1))


def records_logits(store: Path, out: Path, view: int | None) -> None:
    open_logit_table(store, split="train", num_classes=4, background_logit=0.0)


def csv_of(store: Path, out: Path, view: int | None) -> None:
    export_csv(store, out, view=view)


@pytest.mark.parametrize("enter", [merge_golden, records_logits, csv_of])
def test_what_has_one_logit_an_image_refuses_random_and_mixed_views(tmp_path: Path, enter: Callable[..., None]) -> None:
    """``merge`` and the CSV took them: whoever reads these would believe that they are of the image."""
    out = tmp_path / "out"
    for store, message in (
        (
            "store-v1-float32",
            r"holds logits of random views \(policy crop\), which do not belong to full images; give a ",
        ),
        (
            "store-v2-crop",
            "its views are mixed with other images, so its logits are of no image alone; give a store of",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            enter(GOLDEN / store, out, None)
    assert not out.exists()


def test_a_random_view_is_taken_when_it_is_asked_for(tmp_path: Path) -> None:
    """For ``merge`` see system/test_compat."""
    with pytest.warns(UserWarning, match="view 1 is a random crop, which readers of its logits alone cannot reproduce"):
        csv_of(GOLDEN / "store-v1-float32", tmp_path / "out", 1)
    for enter in (merge_golden, csv_of):
        with pytest.raises(ConfigError, match="--view 2: expected 0 to 1"):
            enter(GOLDEN / "store-v1-float32", tmp_path / "more", 2)
        with pytest.raises(ConfigError, match="mixed with other images"):
            enter(GOLDEN / "store-v2-crop", tmp_path / "more", 1)


def test_the_only_view_of_policy_center_needs_no_number(store: Store) -> None:
    assert check_one_logit(store) == check_one_logit(store, 0) == 0
    with pytest.raises(ConfigError, match="or --view 0 to 1 for those of one random view"):
        check_one_logit(Store(GOLDEN / "store-v1-float32"))
    with pytest.raises(ConfigError, match=r"give a store of policy center$"):
        check_one_logit(Store(GOLDEN / "store-v1-float32"), has_view=False)
