"""What the names of shards say of their set, in every container that has such names."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from teachonce.errors import ConfigError, RecordError
from teachonce.records.containers.shard_files import check_shard_set
from teachonce.records.discovery import find_splits, open_records
from teachonce.records.tfrecord.framing import TFRecordWriter
from tests.support.small_data import encode_jpeg, example

SUFFIXES = (".tar", ".parquet", ".tfrecord")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_shard(path: Path, index: int) -> None:
    """One record in the container of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"image": [encode_jpeg(index)], "label": [index]}), path)
    elif path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            for suffix, content in (("jpg", encode_jpeg(index)), ("cls", b"%d" % index)):
                member = tarfile.TarInfo(f"{index}.{suffix}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    else:
        with path.open("wb") as file:
            TFRecordWriter(file).write(example(index, index))


def write_set(folder: Path, suffix: str, count: int) -> Path:
    for index in range(count):
        write_shard(folder / f"train-{index:05d}-of-{count:05d}{suffix}", index)
    return folder


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_shard_that_is_missing_is_named(tmp_path: Path, suffix: str) -> None:
    data = write_set(tmp_path / "d", suffix, 3)
    write_shard(data / f"validation-00001-of-00009{suffix}", 1)
    assert open_records(data, "train").num_records == 3  # whatever the other split lacks
    (data / f"train-00001-of-00003{suffix}").unlink()
    missing = rf"/d: train-00001-of-00003{suffix} is missing, of 3 shards"
    if "tfrecord" in suffix:
        with pytest.raises(RecordError, match=f"{missing}; copy it again"):
            open_records(data, "train")
    else:  # of these people take a part on purpose
        with pytest.warns(UserWarning, match=f"{missing}, 2 are there: only these are read; copy it again if"):
            assert open_records(data, "train").num_records == 2


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shards_of_two_sets_are_refused(tmp_path: Path, suffix: str) -> None:
    """Each is complete: every image would be there twice."""
    data = write_set(write_set(tmp_path / "d", suffix, 2), suffix, 1)
    with pytest.raises(
        RecordError, match=r"of several sets \(train-00000-of-00001.* and train-00000-of-00002.*\), exp"
    ):
        open_records(data, "train")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_part_on_purpose(tmp_path: Path, suffix: str) -> None:
    data = write_set(tmp_path / "d", suffix, 4)
    assert open_records(data / f"train-00002-of-00004{suffix}", "train").num_records == 1
    if suffix == ".tar":
        assert open_records(data / "train-{00001..00002}-of-00004.tar", "train").num_records == 2


@pytest.mark.parametrize("suffix", (*SUFFIXES, ""))
def test_shards_in_folders_of_splits(tmp_path: Path, suffix: str) -> None:
    write_set(tmp_path / "d/train", suffix, 3)
    for index in range(2):
        write_shard(tmp_path / f"d/val/validation-{index:05d}-of-00002{suffix}", 5 + index)
    (tmp_path / "d/train/.hidden").touch()
    assert find_splits(tmp_path / "d") == ["train", "val"]
    train, validation = (open_records(tmp_path / "d", split) for split in ("train", "validation"))
    assert [record.label for shard in range(3) for record in train.iter_shard(shard)] == [0, 1, 2]
    assert [validation.read_record(shard, 0).label for shard in range(2)] == [5, 6]
    assert type(train) is type(open_records(tmp_path / "d/train", "train"))
    assert all("/" not in info.name for source in (train, validation) for info in source.shards)
    (tmp_path / f"d/train/train-00001-of-00003{suffix}").unlink()
    missing = rf"/d: train/train-00001-of-00003{suffix} is missing"
    is_part = suffix in (".tar", ".parquet")
    with pytest.warns(UserWarning, match=missing) if is_part else pytest.raises(RecordError, match=missing):
        open_records(tmp_path / "d", "train")


@pytest.mark.parametrize("suffix", (*SUFFIXES, ""))
def test_shards_in_a_folder_called_data(tmp_path: Path, suffix: str) -> None:
    for split in ("train", "test"):
        write_shard(tmp_path / f"data/{split}-00000-of-00001{suffix}", 1)
    assert find_splits(tmp_path) == ["test", "train"] and open_records(tmp_path, "test").num_records == 1
    write_shard(tmp_path / f"train/train-00000-of-00001{suffix}", 2)
    if suffix in (".tar", ".parquet"):
        assert open_records(tmp_path, "train").num_records == 2
    else:
        with pytest.raises(ConfigError, match="train shards in data and train, expected one folder; move them"):
            open_records(tmp_path, "train")


def test_tars_beside_the_images_that_came_out_of_them(tmp_path: Path) -> None:
    """As ImageNet's: a tar a class, which was unpacked where it lies."""
    for name in ("cat", "dog"):
        write_shard(tmp_path / f"train/{name}.tar", 0)
        (tmp_path / f"train/{name}").mkdir()
        (tmp_path / f"train/{name}/0.jpg").write_bytes(encode_jpeg(0))
    assert open_records(tmp_path, "train").format != "webdataset"


@pytest.mark.parametrize("name", ["images.tar.gz", "train/0.tgz"])
def test_compressed_tars_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"no records at all, but a compressed tar, {name}; .* unpack it to NAME.tar"):
        open_records(tmp_path, "train")


@pytest.mark.parametrize("suffix", (*SUFFIXES, ""))
def test_hidden_files_are_no_shards(tmp_path: Path, suffix: str) -> None:
    """A Mac leaves ._NAME of every file, Spark a checksum."""
    data = write_set(tmp_path / "d", suffix, 2)
    for index in range(2):
        name = f"train-{index:05d}-of-00002{suffix}"
        (data / f"._{name}").write_bytes(b"\0\5\26\7")
        (data / f".{name}.crc").write_bytes(b"crc")
    (data / "_SUCCESS").touch()
    assert find_splits(data) == ["train"] and open_records(data, "train").num_records == 2
    below = data.rename(tmp_path / "data")
    if suffix == ".parquet":
        assert find_splits(below.parent) == ["train"] and open_records(below.parent, "train").num_records == 2


def test_checksums_are_no_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "train.tfrecord", 0)
    for ending in ("md5", "crc", "SHA256", "json"):
        (tmp_path / f"train.tfrecord.{ending}").write_text("d41d8cd98f00b204e9800998ecf8427e  train.tfrecord\n")
    assert open_records(tmp_path, "train").num_records == 1


@pytest.mark.parametrize(
    "names",
    [
        ["a.tar", "part-3.tar", "train-000007.tar"],
        ["train-0-of-2.tar", "train-1-of-2.tar", "00000-of-00001.tar"],
        ["train-00001-of-00002.tar", "train-00002-of-00002.tar"],  # numbers from 1
        [f"train-{index:05d}-of-00002-{index}a775f407cee45abc.parquet" for index in range(2)],
        ["data/train-00000-of-00001.parquet", "train/train-00000-of-00001.parquet"],
        ["x-train.tfrecord-00000-of-00001", "y-train.tfrecord-00000-of-00001.gz"],
        ["fold-1-of-5-000.tar", "fold-1-of-5-001.tar"],
    ],
)
def test_sets_that_are_complete(names: list[str]) -> None:
    check_shard_set(Path("d"), names)
    check_shard_set(Path("d"), names[::-1])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00001-of-00004.tar"], "d: train-00000-of-00004.tar is missing, of 4 shards"),
        (["a-1-of-3.tar", "a-3-of-3.tar"], "d: a-2-of-3.tar is missing, of 3 shards"),
        (["a.tfrecord-00001-of-00002.gz"], "d: a.tfrecord-00000-of-00002 is missing"),
        (["data/train-00000-of-00002-42a775f407cee45a.parquet"], r"data/train-00001-of-00002-\*.parquet is missing"),
        ([f"train-00000-of-00001-{hash * 16}.parquet" for hash in "ab"], "several sets .*-a{16}.* and .*-b{16}"),
        (["a-0-of-1.tar", "a-7-of-1.tar"], "d: a-7-of-1.tar is none of 1 shards"),
    ],
)
def test_sets_that_are_not(names: list[str], message: str) -> None:
    for order in (names, names[::-1]):
        with pytest.raises(RecordError, match=message):
            check_shard_set(Path("d"), order)
