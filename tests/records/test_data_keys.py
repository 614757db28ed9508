"""Keys of data: read once, kept by shard in the cache folder, and read again where a shard is another one."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teachonce.errors import RecordError
from teachonce.records.data_keys import ClassOrder, DataKeys, find_class_order, find_other_label, read_shard_labels
from teachonce.records.discovery import open_records
from teachonce.records.image_folder import FolderSource
from teachonce.records.sample import SubsetSource
from teachonce.records.selection import SelectedSource
from teachonce.records.source import NO_LABEL, RecordSource, record_key
from teachonce.records.tfrecord.source import TFRecordSource
from teachonce.storage.address import to_location
from teachonce.storage.local import LocalStorage
from teachonce.storage.remote.file_index import hash_file, put_file_index
from tests.support.small_data import change_image, encode_jpeg, example, write_image_folder, write_shards
from tests.support.web_server import serve


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data", (3, 4, 2))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards whose records are streamed."""
    names: list[str] = []
    for kind in (TFRecordSource, FolderSource):

        def stream(self: RecordSource, shard: int, _real: Any = kind.iter_shard, **options: Any) -> Any:
            names.append(self.shards[shard].name)
            return _real(self, shard, **options)

        monkeypatch.setattr(kind, "iter_shard", stream)
    return names


def keys_of(source: RecordSource) -> list[list[int]]:
    return [
        [source.read_record(shard, row).key for row in range(info.num_records)]
        for shard, info in enumerate(source.shards)
    ]


def check(source: RecordSource) -> DataKeys:
    keys = DataKeys(source)
    expected = keys_of(source)
    assert [found.tolist() for found in keys.shards] == expected
    assert [keys.shard(shard).tolist() for shard in range(len(expected))] == expected
    flat = sorted((key, shard, row) for shard, of_shard in enumerate(expected) for row, key in enumerate(of_shard))
    index = keys.index
    assert list(zip(index.keys.tolist(), index.shards.tolist(), index.rows.tolist(), strict=True)) == flat
    return keys


def test_they_are_read_once(data: Path, read: list[str], cache: Path) -> None:
    source = open_records(data, "train")
    check(source)
    names = [info.name for info in source.shards]
    assert read == names
    check(source)
    check(open_records(data, "train"))
    assert read == names, "now they are in the cache"
    assert sorted(path.suffix for path in (cache / "teachonce").iterdir()).count(".keys") == 3


def test_one_shard_alone(data: Path, read: list[str]) -> None:
    source = open_records(data, "train")
    keys = DataKeys(source)
    assert keys.shard(1).tolist() == keys_of(source)[1] and read == [source.shards[1].name]
    DataKeys(source).shard(1)
    assert len(read) == 1
    assert len(keys.shards) == 3 and len(read) == 3


def test_a_changed_shard_is_read_again(data: Path, read: list[str]) -> None:
    source = open_records(data, "train")
    before = keys_of(source)
    check(source)
    read.clear()
    path = data / source.shards[1].name
    stamp = path.stat().st_mtime_ns
    change_image(path, 2)  # of the same size
    os.utime(path, ns=(stamp + 1_000_000, stamp + 1_000_000))
    changed = open_records(data, "train")
    check(changed)
    assert read == [changed.shards[1].name]
    after = keys_of(changed)
    assert after[0] == before[0] and after[1][:2] == before[1][:2] and after[1][2] != before[1][2]


def test_a_folder_on_a_web_server(tmp_path: Path, read: list[str]) -> None:
    """It says no times: that a file was replaced shows in its hash alone."""
    image = tmp_path / "www/data/train/cat/1.jpg"
    image.parent.mkdir(parents=True)
    storage, keys = LocalStorage(tmp_path / "www/data"), []
    with serve(tmp_path / "www") as server:
        for content in (b"one", b"two", b"two"):
            image.write_bytes(content)
            put_file_index(storage, {"train/cat/1.jpg": hash_file(storage, "train/cat/1.jpg")})
            keys += DataKeys(open_records(to_location(f"{server.address}/data"), "train")).shard(0).tolist()
    assert keys == [record_key(b"one"), record_key(b"two"), record_key(b"two")]
    assert len(read) == 2


def test_data_that_grows_has_its_new_shards_read(data: Path, read: list[str]) -> None:
    check(open_records(data, "train"))
    read.clear()
    for index in range(3):
        (data / f"train-{index:05d}-of-00003").rename(data / f"train-{index:05d}-of-00004")
    write_shards(data.parent / "more", (2,), payloads=[example(100, 1), example(101, 2)])
    (data.parent / "more" / "train-00000-of-00001").rename(data / "train-00003-of-00004")
    # Under other names they are other files, as far as can be told without reading them.
    check(open_records(data, "train"))
    assert len(read) == 4
    read.clear()
    (data / "train-00003-of-00004.idx").unlink()
    (data / "train-00003-of-00004").write_bytes((data / "train-00000-of-00004").read_bytes())
    check(open_records(data, "train"))
    assert read == ["train-00003-of-00004"]


def test_a_folder(tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teachonce.records.image_folder.FOLDER_SHARD_RECORDS", 5)
    images = write_image_folder(tmp_path / "images")
    check(open_records(images, "train"))
    assert len(read) == 3
    read.clear()
    (images / "train" / "class2" / "zzz.jpg").write_bytes(encode_jpeg(77))
    check(open_records(images, "train"))
    assert read == ["train-00002-of-00003"], "the one that it lies in"


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer", "other", "folder"])
@pytest.mark.parametrize("suffix", [".keys", ".index"])
def test_a_damaged_cache_does_no_harm(data: Path, read: list[str], cache: Path, suffix: str, damage: str) -> None:
    source = open_records(data, "train")
    check(source)
    read.clear()
    files = sorted((cache / "teachonce").glob(f"*{suffix}"))
    assert len(files) == (3 if suffix == ".keys" else 1)
    for path in files:
        good = path.read_bytes()
        content = {
            "flip": good[:5] + bytes([good[5] ^ 1]) + good[6:],
            "cut": good[:-3],
            "empty": b"",
            "longer": good + bytes(8),
            "other": bytes(len(good)),
        }.get(damage)
        path.unlink()
        path.mkdir() if content is None else path.write_bytes(content)
    for _ in range(2):
        check(open_records(data, "train"))
    if damage != "folder":
        assert len(read) == (3 if suffix == ".keys" else 0), "and it is mended"


def test_a_cache_that_cannot_be_written(data: Path, read: list[str], cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("a file where the folder should be")
    for _ in range(2):
        check(open_records(data, "train"))
    assert len(read) == 6


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_cache_that_is_read_only(data: Path, cache: Path) -> None:
    (cache / "teachonce").mkdir(parents=True)
    (cache / "teachonce").chmod(0o500)
    check(open_records(data, "train"))


def test_a_user_without_a_home(data: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    for _ in range(2):
        check(open_records(data, "train"))
    assert len(read) == 6


def test_without_xdg_it_is_the_folder_of_the_home(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    check(open_records(data, "train"))
    assert list((tmp_path / "home" / ".cache" / "teachonce").glob("*.keys"))


def test_what_has_no_identity_is_not_kept(data: Path, cache: Path) -> None:
    """A selection of records has the names of no files."""
    source = SubsetSource(open_records(data, "train"), [(2, 1), (0, 0)])
    check(source)
    assert not list(cache.rglob("*.keys")) and not list(cache.rglob("*.index"))


def test_known_keys_are_believed(data: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known = [np.arange(3, dtype=np.uint64), None, np.arange(2, dtype=np.uint64) + np.uint64(9)]
    monkeypatch.setattr(TFRecordSource, "known_keys", lambda self, shard: known[shard])
    found = DataKeys(open_records(data, "train")).shards
    assert found[0].tolist() == [0, 1, 2] and found[2].tolist() == [9, 10] and read == ["train-00001-of-00003"]


def test_a_record_that_cannot_be_read_is_named(data: Path, cache: Path) -> None:
    path = data / "train-00001-of-00003"
    good = path.read_bytes()
    path.write_bytes(good[:-20] + bytes(20))
    with pytest.raises(RecordError, match=r"train-00001-of-00003 record 3 "):
        _ = DataKeys(open_records(data, "train")).shards
    assert len(list(cache.rglob("*.keys"))) <= 2
    path.write_bytes(good)
    check(open_records(data, "train"))


def test_threads_share_one_reading(data: Path, read: list[str]) -> None:
    keys = DataKeys(open_records(data, "train"))
    with ThreadPoolExecutor(8) as threads:
        indices = list(threads.map(lambda _: keys.index, range(16)))
    assert all(index is indices[0] for index in indices) and len(read) == 3


def test_a_copy_of_the_data_is_read_anew(data: Path, tmp_path: Path, read: list[str]) -> None:
    check(open_records(data, "train"))
    read.clear()
    check(open_records(Path(shutil.copytree(data, tmp_path / "copy")), "train"))
    assert len(read) == 3


def test_how_classes_are_spread_over_shards(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_records(data, "train")
    assert find_class_order(source) is None  # labels of TFRecords are in the records
    labels = [[1, 1, 1], [1, 2, 2, NO_LABEL], [5, 5]]
    monkeypatch.setattr(TFRecordSource, "known_labels", lambda self, shard: np.array(labels[shard], np.int32))
    own_class = (3 * 1 + (1 * 0 + 2 * 1 / 2) + 2 * 1) / 8
    shuffled = (4 * 3 + 2 * 1 + 2 * 1) / (8 * 7)
    assert find_class_order(source) == ClassOrder(3, 2, pytest.approx(own_class), pytest.approx(shuffled))
    labels = [[NO_LABEL] * 3, [NO_LABEL, NO_LABEL, 3, NO_LABEL], [NO_LABEL] * 2]
    assert find_class_order(source) is None


def test_a_label_that_is_none_of_the_classes(
    data: Path, read: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of 9 records in shards of 3, 4 and 2; the first records of each shard are read, and no more."""
    rows: list[tuple[int, int]] = []
    real = TFRecordSource.read_batch

    def noted(self: TFRecordSource, locations: Any, **options: Any) -> Any:
        rows.extend(locations)
        return real(self, locations, **options)

    monkeypatch.setattr(TFRecordSource, "read_batch", noted)
    source = open_records(data, "train")
    labels = [[record.label for record in source.iter_shard(shard)] for shard in range(3)]
    largest = max(map(max, labels))
    first = next(
        (shard, row) for shard in range(3) for row in range(len(labels[shard])) if labels[shard][row] == largest
    )
    read.clear()
    assert find_other_label(source, range(largest + 1)) is None
    assert rows == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)]
    assert find_other_label(source, range(largest)) == first
    for most, expected in ((6, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]), (2, [(0, 0), (2, 0)]), (1, [(0, 0)])):
        rows.clear()
        assert find_other_label(source, range(largest + 1), most) is None
        assert rows == expected
    rows.clear()
    # Of some of the records, and where labels are cached: nothing is read.
    chosen = SelectedSource(source, [np.array([], int), np.array([3]), np.array([0, 1])])
    for shard in range(3):
        read_shard_labels(source, shard)
    read.clear()
    assert find_other_label(source, range(largest)) == first
    assert find_other_label(chosen, range(largest + 1)) is None and find_other_label(chosen, range(0)) == (0, 0)
    assert rows == read == []
    folder = open_records(write_image_folder(data.parent / "images"), "train")
    assert find_other_label(folder, range(2)) == (0, 8) and find_other_label(folder, range(3)) is None
