"""What every source of records must do, whatever lies behind it."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from teachonce.engine.buffers import BufferPool
from teachonce.extraction.plan_source import ExtractedData, PlanSource
from teachonce.pixels.decode import decode_image
from teachonce.pixels.in_memory import RecordsInMemory
from teachonce.records.containers.huggingface import ArrowSource
from teachonce.records.containers.webdataset import TarSource
from teachonce.records.discovery import open_records
from teachonce.records.image_folder import FolderSource, ImageFileSource
from teachonce.records.options import RecordOptions
from teachonce.records.sample import SubsetSource
from teachonce.records.selection import SelectedSource
from teachonce.records.source import (
    Locations,
    Record,
    RecordSource,
    all_keys,
    all_labels,
    record_key,
)
from teachonce.records.tfrecord.foreign import ForeignSource
from teachonce.records.tfrecord.source import TFRecordSource
from teachonce.store.begin import begin_store
from teachonce.store.store import Store
from tests.records.containers import test_huggingface, test_webdataset
from tests.records.test_source import check_arrays
from tests.records.tfrecord import test_foreign
from tests.support import small_data


def open_shards(folder: Path) -> RecordSource:
    return open_records(small_data.write_shards(folder, (5, 3, 40)), "train")


def open_folder(folder: Path) -> RecordSource:
    return open_records(small_data.write_image_folder(folder), "train")


def open_tars(folder: Path) -> RecordSource:
    (folder.parent / "labels.txt").write_text("a\nb\nc\n")
    data = folder if folder.exists() else test_webdataset.write_tars(folder, (5, 3, 7))
    return open_records(data, "train", RecordOptions(labels=folder.parent / "labels.txt"))


def open_parquet(folder: Path) -> RecordSource:
    return open_records(folder if folder.exists() else test_huggingface.write_parquet_folder(folder), "train")


def open_foreign(folder: Path) -> RecordSource:
    return open_records(folder if folder.exists() else test_foreign.write_tfds(folder), "train")


def open_table(folder: Path) -> RecordSource:
    small_data.write_image_folder(folder)
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("*.jpg"))]
    (folder / "table.csv").write_text("path,label\n" + "\n".join(rows[::-1]))
    return open_records(folder / "table.csv", "train")


def open_subset(folder: Path) -> RecordSource:
    """Of all shards, out of order, one record twice."""
    return SubsetSource(open_shards(folder), [(2, 30), (0, 4), (1, 0), (2, 30), (0, 0), (2, 39)])


def open_selected(folder: Path) -> RecordSource:
    """Some of each shard, and a shard of which nothing is left."""
    source = open_records(small_data.write_shards(folder, (5, 3, 2, 4)), "train")
    return SelectedSource(source, [np.array([1, 4]), np.array([], np.int64), np.arange(2), np.array([0, 3])])


def open_in_plan(folder: Path) -> RecordSource:
    """In the shards and the order of a store, whose data lies in others today and has grown."""
    path = folder / "store"
    if not path.exists():
        small_data.write_store(path, small_data.write_shards(folder / "old", (5, 3)))
    store = Store(path)
    payloads = [small_data.example(index, 1 + index % 3) for index in (7, 100, 2, 0, 1, 3, 4, 101, 5, 6)]
    source = open_records(small_data.write_shards(folder / "new", (4, 6), payloads=payloads), "train")
    plan = replace(store.plan, data=source.describe())
    return PlanSource(path, begin_store(path, plan, 1, ExtractedData(path, source)), source)


def open_in_memory(folder: Path) -> RecordSource:
    return RecordsInMemory(open_shards(folder))


@pytest.mark.parametrize(
    ("kind", "build"),
    [
        (TFRecordSource, open_shards),
        (FolderSource, open_folder),
        (ImageFileSource, open_table),
        (TarSource, open_tars),
        (ForeignSource, open_foreign),
        (ArrowSource, open_parquet),
        (SubsetSource, open_subset),
        (SelectedSource, open_selected),
        (PlanSource, open_in_plan),
        (RecordsInMemory, open_in_memory),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
class TestContract:
    @pytest.fixture
    def source(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        kind: type[RecordSource],
        build: Callable[[Path], RecordSource],
    ) -> RecordSource:
        monkeypatch.setattr("teachonce.records.image_folder.FOLDER_SHARD_RECORDS", 5)
        source = build(tmp_path / "contract")
        assert type(source) is kind
        return source

    @pytest.fixture
    def streamed(self, source: RecordSource) -> dict[tuple[int, int], Record]:
        """By location."""
        return {
            (shard, row): record
            for shard in range(len(source.shards))
            for row, record in enumerate(source.iter_shard(shard))
        }

    def test_shards_have_names_and_sizes(self, source: RecordSource, streamed: dict[tuple[int, int], Record]) -> None:
        names = [shard.name for shard in source.shards]
        assert len(set(names)) == len(names) and not any("/" in name or not name for name in names)
        sizes = [shard.num_records for shard in source.shards]
        assert list(streamed) == [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
        assert source.num_records == len(streamed) > 0

    @pytest.mark.parametrize("with_buffers", [False, True])
    def test_a_batch_is_what_is_streamed(
        self, source: RecordSource, streamed: dict[tuple[int, int], Record], with_buffers: bool
    ) -> None:
        locations = list(streamed) * 2
        Random(0).shuffle(locations)
        batch = source.read_batch(locations, buffers=BufferPool() if with_buffers else None)
        assert batch == [streamed[location] for location in locations]
        assert batch == source.read_batch(Locations.of(locations))
        assert all_keys(batch).tolist() == [record.key for record in batch]
        assert all_labels(batch).tolist() == [record.label for record in batch]
        check_arrays(batch)
        assert pickle.loads(pickle.dumps(Locations.of(locations))) == locations
        assert source.read_batch([]) == []
        assert source.read_record(*locations[0]) == streamed[locations[0]]

    def test_keys_are_those_of_the_images(
        self, source: RecordSource, streamed: dict[tuple[int, int], Record], tmp_path: Path
    ) -> None:
        if isinstance(source, RecordsInMemory):
            # Its images are others, with the same pixels; the key stays what logits are joined by.
            original = open_records(tmp_path / "contract", "train")
            for location, record in streamed.items():
                before = original.read_record(*location)
                assert replace(record, encoded=before.encoded) == before
                pixels = [np.asarray(decode_image(item.encoded)) for item in (record, before)]
                np.testing.assert_array_equal(*pixels)
            streamed = {location: original.read_record(*location) for location in streamed}
        assert all(record.key == record_key(record.encoded) for record in streamed.values())

    def test_labels_are_of_its_classes(self, source: RecordSource, streamed: dict[tuple[int, int], Record]) -> None:
        assert source.classes is not None
        assert {record.label for record in streamed.values()} <= set(range(len(source.classes.names)))
        assert all(record.filename and record.where for record in streamed.values())

    def test_a_copy_reads_the_same(self, source: RecordSource, streamed: dict[tuple[int, int], Record]) -> None:
        copy = pickle.loads(pickle.dumps(source))
        assert copy.read_batch(list(streamed)) == list(streamed.values())
        assert [record for shard in range(len(copy.shards)) for record in copy.iter_shard(shard)] == [
            *streamed.values()
        ]
        assert (copy.shards, copy.classes, copy.split) == (source.shards, source.classes, source.split)

    def test_its_description_is_json_and_stable(
        self, source: RecordSource, build: Callable[[Path], RecordSource], tmp_path: Path
    ) -> None:
        described = source.describe()
        assert json.loads(json.dumps(described)) == described
        assert str(tmp_path) not in json.dumps(described)
        assert [name for name, *_ in described["shards"]] == [shard.name for shard in source.shards]
        source.read_record(0, 0)
        for other in (source, pickle.loads(pickle.dumps(source)), build(tmp_path / "contract")):
            assert other.describe() == described

    def test_records_are_counted_through_all_shards(
        self, source: RecordSource, streamed: dict[tuple[int, int], Record]
    ) -> None:
        indices = np.arange(source.num_records)
        assert [source.locate(index) for index in indices.tolist()] == list(streamed)
        assert source.locate_all(indices) == list(streamed)
        assert source.locate_all(indices[::-3]) == list(streamed)[::-3]
        assert source.locate_all(indices[:0]) == []
