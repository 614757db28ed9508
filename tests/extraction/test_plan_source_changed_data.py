"""Data that is not that of the plan: changed, shifted, or of another store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from teachonce.errors import PlanMismatchError, RecordError
from teachonce.extraction.config import VerifyConfig
from teachonce.extraction.plan_source import ExtractedData, PlanSource, open_plan_source
from teachonce.extraction.verify import verify
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource
from teachonce.records.tfrecord.framing import index_path, read_tfrecords
from teachonce.store.begin import begin_store
from teachonce.store.plan_files import read_plan
from teachonce.store.store import Store
from tests.support.grown_data import check_kept, check_same_content, check_trains, run
from tests.support.small_data import (
    change_image,
    example,
    remove_manifests,
    rewrite_shard,
    write_shards,
    write_store,
)
from tests.support.small_models import COLORS, color_example, write_color_shards
from tests.support.small_stores import read_tree


def test_data_of_an_unfinished_store_must_be_its_own(tmp_path, teacher):
    data = write_color_shards(tmp_path / "data", sizes=(9, 6))
    out = tmp_path / "store"
    run(data, teacher, out)
    remove_manifests(out)
    (out / "train-00001-of-00002.records.arrow").unlink()
    before = read_tree(out)
    other = write_color_shards(tmp_path / "other", sizes=(9, 7))
    with pytest.raises(
        PlanMismatchError, match="is unfinished and was started with other data: finish it with that data"
    ):
        run(other, teacher, out)
    assert read_tree(out) == before


def grow(path: Path, source: RecordSource):
    plan = Store(path).plan
    from dataclasses import replace

    return begin_store(path, replace(plan, data=source.describe()), 1, ExtractedData(path, source))


def test_the_source_itself_where_it_is_as_planned(tmp_path):
    source = open_records(write_shards(tmp_path / "data"), "train")
    store = write_store(tmp_path / "store", source)
    assert open_plan_source(store.path, store.plan, source) is source
    other = open_records(write_shards(tmp_path / "other", (8,)), "train")
    found = open_plan_source(store.path, store.plan, other)
    assert isinstance(found, PlanSource)
    for shard in range(2):
        assert [replace_where(record) for record in found.iter_shard(shard)] == [
            replace_where(record) for record in source.iter_shard(shard)
        ]


def replace_where(record):
    from dataclasses import replace

    return replace(record, where="", encoded=bytes(record.encoded))


def test_data_that_changes_between_plan_and_extraction(tmp_path):
    """The records of an added shard are found again when they are read; others than were planned are refused."""
    store = write_store(tmp_path / "store", write_shards(tmp_path / "data"))
    payloads = [example(index, 1 + index % 3) for index in (*range(8), 100, 101)]
    grown = open_records(write_shards(tmp_path / "grown", (8, 2), payloads=payloads), "train")
    plan = grow(store.path, grown)
    assert [record.filename for record in PlanSource(store.path, plan, grown).iter_shard(2)] == [
        "image_100.jpg",
        "image_101.jpg",
    ]
    rewrite_shard(tmp_path / "grown" / "train-00001-of-00002", lambda rows: [*rows, example(102, 1)])
    changed = open_records(tmp_path / "grown", "train")
    with pytest.raises(RecordError, match=r"\.p001: 3 records, 2 in the plan: the data changed since; start again"):
        list(PlanSource(store.path, plan, changed).iter_shard(2))
    renamed = open_records(write_shards(tmp_path / "renamed", (8, 1, 1), payloads=payloads), "train")
    with pytest.raises(RecordError, match=r"shard train-00001-of-00002\.p001 of the store is not in the data"):
        list(PlanSource(store.path, plan, renamed).iter_shard(2))
    assert read_plan(store.path) == plan


def test_grown_data_whose_shards_happen_to_have_the_store_s_numbers(tmp_path, teacher):
    """A store of 9, 6 and 5 records, and data in shards of 14, 3 and 3: positions mean nothing there."""
    first = write_color_shards(tmp_path / "first", sizes=(9, 6))
    run(first, teacher, tmp_path / "store")
    payloads = [bytes(p) for shard in sorted(first.glob("train-*-of-00002")) for _, p in read_tfrecords(shard)]
    payloads += [color_example(index, 1 + index % 4, COLORS[index % 4]) for index in range(700, 705)]
    # The new ones all lie in the first shard.
    order = [*payloads[:9], *payloads[15:], *payloads[9:15]]
    data = write_shards(tmp_path / "data", (14, 3, 3), num_classes=5, payloads=order)
    shutil.copy(first / "classes.json", data / "classes.json")
    store = run(data, teacher, tmp_path / "store")
    assert [count for _, count in store.shards] == [9, 6, 5]
    check_trains(store, data)
    assert verify(VerifyConfig(store=store.path, data=data, device="cpu")).is_sound


def test_an_image_that_changed_costs_no_store_its_further_views(tmp_path, teacher):
    """The unit is refused before anything of it is written; with the image restored the views are made."""
    data = write_color_shards(tmp_path / "data", sizes=(4, 4))
    run(data, teacher, tmp_path / "store", views=2)
    shard = data / "train-00001-of-00002"
    before, kept = shard.read_bytes(), read_tree(tmp_path / "store")
    change_image(shard, 2)
    with pytest.raises(
        RecordError, match=r"record 2 .* its earlier views are of .*: 1 images of the shard have changed"
    ):
        run(data, teacher, tmp_path / "store", views=4)
    check_kept(tmp_path / "store", kept)
    shard.write_bytes(before)
    index_path(shard).unlink(missing_ok=True)
    store = run(data, teacher, tmp_path / "store", views=4)
    assert store.num_views == 4 and store.check_files()
    check_same_content(store, run(data, teacher, tmp_path / "scratch", views=4))


def test_data_with_its_labels_shifted_does_not_grow_a_store(tmp_path, teacher):
    data = write_color_shards(tmp_path / "data", sizes=(6,))
    (data / "classes.json").unlink()
    run(data, teacher, tmp_path / "store", num_classes=6, offset=1)
    before = read_tree(tmp_path / "store")
    payloads = [color_example(index, 2 + index % 4, COLORS[index % 4]) for index in [*range(6), 900, 901]]
    other = write_shards(tmp_path / "other", (8,), num_classes=None, payloads=payloads)
    with pytest.raises(PlanMismatchError, match="the classes are numbered differently here; use the same --labels"):
        run(other, teacher, tmp_path / "store", num_classes=6, offset=1)
    assert read_tree(tmp_path / "store") == before
