"""files.json of records: hashed as they are written, renewed by each command, never of what is not there."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from teachonce.cli.main import main
from teachonce.records.discovery import open_records
from teachonce.records.written_files import belongs_to, list_written
from teachonce.storage.local import LocalStorage
from teachonce.storage.remote import file_index
from teachonce.storage.remote.file_index import INDEX_NAME, ListedFile, hash_file, read_file_index
from tests.support.small_data import write_image_folder, write_shards, write_store


def run(*words: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0


def listed(folder: Path) -> dict[str, ListedFile]:
    found = read_file_index(LocalStorage(folder))
    assert found is not None
    return found


def assert_true(folder: Path) -> None:
    """Whatever is listed is so, and all is listed."""
    storage, found = LocalStorage(folder), listed(folder)
    assert found.keys() == set(storage.walk()) - {INDEX_NAME}
    for name, entry in found.items():
        assert entry[:2] == hash_file(storage, name)[:2], name


def write(folder: Path, sizes: tuple[int, ...] = (5, 3), split: str = "train") -> Path:
    """Shards with their indices, without a list."""
    write_shards(folder, sizes, split)
    open_records(folder, split)
    return folder


def test_which_files_are_of_a_split() -> None:
    ours = [
        "train-00000-of-00002",
        "train-00000-of-00002.idx",
        "classes.json",
        "records.train.json",
        "merge.train.json",
    ]
    assert all(belongs_to(name, "train") for name in ours)
    others = ["validation-00000-of-00001", "records.validation.json", "README.md", "files.json", "plan.json"]
    assert not any(belongs_to(name, "train") for name in others)


def test_records_and_merge_list_what_they_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_image_folder(write_image_folder(tmp_path / "images"), "validation")
    read: list[str] = []
    hash_really = file_index.hash_file

    def note(storage: LocalStorage, name: str) -> ListedFile:
        read.append(name)
        return hash_really(storage, name)

    monkeypatch.setattr("teachonce.records.written_files.hash_file", note)
    run("records", "--images", images, "--shards", 3, "--out", tmp_path / "records")
    assert_true(tmp_path / "records")
    counts = [listed(tmp_path / "records")[f"train-{shard:05d}-of-00003"].num_records for shard in range(3)]
    assert counts == [4, 4, 4] and sorted(read) == ["classes.json", "records.train.json"]
    run("records", "--images", images, "--split", "validation", "--out", tmp_path / "records")
    assert_true(tmp_path / "records")
    before = (tmp_path / "records" / INDEX_NAME).stat().st_mtime_ns
    read.clear()
    run("records", "--images", images, "--shards", 3, "--out", tmp_path / "records")
    assert (tmp_path / "records" / INDEX_NAME).stat().st_mtime_ns == before and read == []
    write_store(tmp_path / "store", tmp_path / "records")
    run("merge", tmp_path / "store", "--data", tmp_path / "records", "--out", tmp_path / "merged")
    assert_true(tmp_path / "merged")
    assert [listed(tmp_path / "merged")[f"train-{shard:05d}-of-00003"].num_records for shard in range(3)] == [4, 4, 4]


def test_what_a_killed_command_wrote_is_read_by_the_next(tmp_path: Path) -> None:
    images = write_image_folder(tmp_path / "images")
    run("records", "--images", images, "--shards", 3, "--out", tmp_path / "records")
    expected = (tmp_path / "records" / INDEX_NAME).read_bytes()
    (tmp_path / "records" / INDEX_NAME).unlink()
    (tmp_path / "records" / "train-00001-of-00003").unlink()
    run("records", "--images", images, "--shards", 3, "--out", tmp_path / "records")
    assert (tmp_path / "records" / INDEX_NAME).read_bytes() == expected


def test_entries_of_what_is_gone_go(tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    list_written(data, "train", {"train-00007-of-00008": ListedFile(5, "0" * 32, 1)})
    assert_true(data)
    assert [listed(data)[name].num_records for name in ("train-00000-of-00002", "train-00001-of-00002")] == [5, 3]
    write(data, (2,), "validation")
    for name in ("train-00001-of-00002", "train-00001-of-00002.idx"):
        (data / name).unlink()
    list_written(data, "validation", {})
    assert listed(data).keys() == set(LocalStorage(data).walk()) - {INDEX_NAME}


def test_several_who_renew_it_at_once_lose_nothing(tmp_path: Path) -> None:
    splits = [f"split{number}" for number in range(6)]
    for split in splits:
        write(tmp_path / "data", (1,), split)
    threads = [threading.Thread(target=list_written, args=(tmp_path / "data", split, {})) for split in splits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_true(tmp_path / "data")
