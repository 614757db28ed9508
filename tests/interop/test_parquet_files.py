"""A store as Parquet: every row with its view, logits as decoded; streamed, resumed, and read as a folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from teachonce.codecs.registry import build_codec
from teachonce.codecs.softmax import soften
from teachonce.errors import ConfigError, PlanMismatchError, StoreError, TeachonceError
from teachonce.interop import parquet_files
from teachonce.interop.parquet_files import PLAN_NAME, export_parquet
from teachonce.records.source import NO_LABEL
from teachonce.store.begin import begin_store
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import records_file
from teachonce.store.store import Store
from tests.support.small_data import forge, write_shards, write_store
from tests.support.small_stores import NUM_CLASSES, fill, make_plan


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    """Crops, three views of two shards; as int8 or by the codec of the test's parameter."""
    codec = build_codec(getattr(request, "param", "int8"), num_classes=NUM_CLASSES, k=3)
    plan = begin_store(tmp_path / "store", make_plan(3, codec=codec.to_json()), views_per_file=2)
    fill(tmp_path / "store", plan)
    finalize_store(tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.mark.parametrize("rows", [2, 4096])
def test_every_view_of_every_record(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(parquet_files, "ROWS", rows)
    paths = export_parquet(store.path, tmp_path / "out")
    assert [path.name for path in paths] == [f"{name}.parquet" for name, _ in store.shards]
    for shard, path in enumerate(paths):
        table = pq.read_table(path)
        count = store.shards[shard][1]
        assert table.column_names == ["key", "filename", "label", "view", "box", "flip", "logits"]
        assert table["view"].to_pylist() == [view for view in range(3) for _ in range(count)]
        assert table["key"].to_pylist() == store.read_keys(shard).tolist() * 3
        assert table["label"].to_pylist() == store.read_labels(shard).tolist() * 3
        assert table["filename"].to_pylist() == store.read_filenames(shard) * 3
        views = [view for number in range(3) for view in store.read_views(shard, number, slice(None))]
        assert [tuple(box) for box in table["box"].to_pylist()] == [view.box for view in views]
        assert table["flip"].to_pylist() == [view.flip for view in views]
        logits = np.concatenate([store.read_logits(shard, view, slice(None)) for view in range(3)])
        assert np.array_equal(np.array(table["logits"].to_pylist(), np.float32), logits)
        metadata = json.loads(table.schema.metadata[b"teachonce"])
        assert (metadata["offset"], metadata["teacher"]["spec"]) == (1, "timm:x")
        assert metadata["class_names"] is None, "the plan has none"
        assert pq.ParquetFile(path).num_row_groups == 3 * -(-count // rows), "written as it is read"


def test_the_folder_is_one_table(store: Store, tmp_path: Path) -> None:
    export_parquet(store.path, tmp_path / "out", view=1)
    table = pq.read_table(tmp_path / "out")
    assert table.num_rows == store.num_records and set(table["view"].to_pylist()) == {1}


@pytest.mark.parametrize("store", ["float32"], indirect=True)
def test_the_likeliest_classes_alone(store: Store, tmp_path: Path) -> None:
    (path, _) = export_parquet(store.path, tmp_path / "out", view=0, top=2)
    table = pq.read_table(path)
    logits = store.read_logits(0, 0, slice(None))
    order = np.argsort(-logits, axis=1)[:, :2]
    assert table["classes"].to_pylist() == order.tolist()
    assert np.array_equal(np.array(table["logits"].to_pylist()), np.take_along_axis(logits, order, axis=1))
    rest = 1 - np.take_along_axis(soften(logits, 1.0), order, axis=1).sum(axis=1)
    # float32 of a sum of 7 probabilities in float64.
    np.testing.assert_allclose(table["rest"].to_pylist(), rest, atol=1e-7)


@pytest.mark.parametrize("store", ["topk"], indirect=True)
def test_codec_topk_has_what_it_kept(store: Store, tmp_path: Path) -> None:
    (path, _) = export_parquet(store.path, tmp_path / "out", view=2)
    table = pq.read_table(path)
    kept = store.codec.kept_classes(store.read_rows(0, 2, slice(None)))
    logits = store.read_logits(0, 2, slice(None))
    assert kept is not None
    classes = np.array(table["classes"].to_pylist())
    assert np.array_equal(np.sort(classes), np.sort(kept)) and classes.shape[1] == 3
    assert np.array_equal(np.array(table["logits"].to_pylist()), np.take_along_axis(logits, classes, axis=1))
    assert (np.diff(np.array(table["logits"].to_pylist())) <= 0).all(), "likeliest first"
    assert all(0 < rest < 1 for rest in table["rest"].to_pylist())
    (path, _) = export_parquet(store.path, tmp_path / "two", view=2, top=2)
    assert np.array(pq.read_table(path)["classes"].to_pylist()).tolist() == classes[:, :2].tolist()


def test_a_center_store_has_no_boxes_and_may_have_no_labels(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", write_shards(tmp_path / "data", sizes=(3,))).path
    store = Store(path)
    name, keys, filenames = store.shards[0][0], store.read_keys(0).copy(), store.read_filenames(0)
    with forge(path, records_file(name)) as writer:
        writer.write_records(name, keys, filenames, np.full(3, NO_LABEL, np.int32))
    (file,) = export_parquet(path, tmp_path / "out")
    table = pq.read_table(file)
    assert table.column_names == ["key", "filename", "label", "view", "logits"]
    assert table["label"].to_pylist() == [None, None, None]


def test_what_is_complete_is_kept(store: Store, tmp_path: Path) -> None:
    first, second = export_parquet(store.path, tmp_path / "out")
    whole = second.read_bytes()
    second.unlink()
    first.write_bytes(b"not looked at")
    export_parquet(store.path, tmp_path / "out")
    assert second.read_bytes() == whole and first.read_bytes() == b"not looked at"
    with pytest.raises(
        PlanMismatchError, match=r"was started with a different plan: view was None, now 1; choose another --out"
    ):
        export_parquet(store.path, tmp_path / "out", view=1)


def test_what_cannot_be_meant(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"view 3 does not exist: the store has views 0\.\.2"):
        export_parquet(store.path, tmp_path / "out", view=3)
    with pytest.raises(ConfigError, match="--top 8: the teacher has 7 classes"):
        export_parquet(store.path, tmp_path / "out", top=8)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("")
    with pytest.raises(ConfigError, match="exists and is not an export"):
        export_parquet(store.path, tmp_path / "other")
    assert not (tmp_path / "out").exists()


def test_a_damaged_block_leaves_no_file(store: Store, tmp_path: Path) -> None:
    file = next(store.path.glob("*.v002-002.arrow"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(TeachonceError, match=file.name):
        export_parquet(store.path, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == [PLAN_NAME]


def test_a_shard_without_records(tmp_path: Path) -> None:
    plan = make_plan(1)
    empty = dataclasses.replace(plan, shards=((plan.shards[0][0], 3), (plan.shards[1][0], 0)))
    begin_store(tmp_path / "store", empty, views_per_file=1)
    fill(tmp_path / "store", empty)
    finalize_store(tmp_path / "store")
    paths = export_parquet(tmp_path / "store", tmp_path / "out")
    assert [pq.read_table(path).num_rows for path in paths] == [3, 0]


def test_the_names_of_the_classes_are_in_the_metadata(tmp_path: Path) -> None:
    """By label of the data: a class of the teacher and its offset."""
    write_store(tmp_path / "store", write_shards(tmp_path / "data"))
    for path in export_parquet(tmp_path / "store", tmp_path / "out", top=1):
        table = pq.read_table(path)
        metadata = json.loads(table.schema.metadata[b"teachonce"])
        assert metadata["class_names"] == ["background", "class0", "class1", "class2"]
        for label, classes in zip(table["label"].to_pylist(), table["classes"].to_pylist(), strict=True):
            assert metadata["class_names"][label] == f"class{label - 1}"
            assert metadata["class_names"][classes[0] + metadata["offset"]].startswith("class")
