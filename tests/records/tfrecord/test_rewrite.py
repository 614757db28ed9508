"""A folder of shards written again: complete or absent, resumed by the same command alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from teachonce.errors import ConfigError, PlanMismatchError, RecordError
from teachonce.records.class_table import CLASSES_NAME, ClassTable, write_classes
from teachonce.records.discovery import open_records
from teachonce.records.tfrecord.framing import TFRecordWriter, index_path, is_whole, read_tfrecords
from teachonce.records.tfrecord.rewrite import begin_rewrite, begin_shard, rewrite_shard
from tests.support.small_data import write_shards


def copy_records(path: Path, most: int):
    def write(writer: TFRecordWriter) -> int:
        payloads = [payload for _, payload in read_tfrecords(path)][:most]
        for payload in payloads:
            writer.write(payload)
        return len(payloads)

    return write


def test_a_shard_appears_with_its_index(tmp_path: Path) -> None:
    info = open_records(write_shards(tmp_path / "data", sizes=(5,)), "train").shards[0]
    assert info.path is not None
    path = tmp_path / info.name
    index_path(path).write_text("0 1\n")
    listed = rewrite_shard(info, path, copy_records(info.path, 5))
    assert is_whole(path) and path.read_bytes() == info.path.read_bytes()
    assert sorted(listed) == sorted([info.name, index_path(path).name])


def test_a_shard_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    info = open_records(write_shards(tmp_path / "data", sizes=(5,)), "train").shards[0]
    assert info.path is not None
    path = tmp_path / info.name
    with pytest.raises(RecordError, match=rf"{info.name}: 4 records, 5 when it was opened: the shard was changed"):
        rewrite_shard(info, path, copy_records(info.path, 4))
    assert not path.exists() and not index_path(path).exists()


@pytest.mark.parametrize("has_table", [True, False])
def test_splits_of_one_folder_have_one_list_of_classes(tmp_path: Path, has_table: bool) -> None:
    """Labels are numbers: under another split's names they would be others' without a word."""
    first, second = write_shards(tmp_path / "first"), write_shards(tmp_path / "second", split="validation")
    begin_rewrite("paint", first, tmp_path / "out", open_records(first, "train"), {})
    write_classes(second, ClassTable(("background", "eel"), ("background", "eel"), has_background=True))
    if not has_table:
        (second / CLASSES_NAME).unlink()
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(
        PlanMismatchError, match=r"classes\.json: .*; of .*second: .*one list of classes; choose another"
    ):
        begin_rewrite("paint", second, tmp_path / "out", open_records(second, "validation"), {})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    third = write_shards(tmp_path / "third", split="validation")
    begin_rewrite("paint", third, tmp_path / "out", open_records(third, "validation"), {})


def test_what_a_folder_is_for_is_kept(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "data", sizes=(5,))
    source = open_records(data, "train")
    begin_rewrite("paint", data, tmp_path / "out", source, {"color": "red"})
    begin_rewrite("paint", data, tmp_path / "out", source, {"color": "red"})
    with pytest.raises(PlanMismatchError, match="color was red, now blue"):
        begin_rewrite("paint", data, tmp_path / "out", source, {"color": "blue"})
    with pytest.raises(ConfigError, match="exists and is not empty"):
        begin_rewrite("glue", data, tmp_path / "out", source, {"color": "red"})
    with pytest.raises(ConfigError, match="is the --data folder"):
        begin_rewrite("paint", data, data, source, {"color": "red"})


def test_of_two_writers_of_a_shard_the_first_stays(tmp_path: Path) -> None:
    """Somebody may read it already, and in an object store the same bytes put again are another object."""
    info = open_records(write_shards(tmp_path / "data", sizes=(5,)), "train").shards[0]
    assert info.path is not None
    path = tmp_path / info.name
    both = [begin_shard(info, path, copy_records(info.path, 5)) for _ in range(2)]
    both[0]()
    first = path.stat()
    both[1]()
    assert os.path.samestat(path.stat(), first) and is_whole(path)
