"""The containers at addresses: an object store, and a web server that lists nothing but its files.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from teachonce.errors import TeachonceError
from teachonce.records.discovery import open_records
from teachonce.records.options import RecordOptions
from teachonce.records.source import RecordSource
from teachonce.storage.address import to_location
from teachonce.storage.files import open_storage
from teachonce.storage.remote.file_index import hash_file, put_file_index
from tests.records.containers import test_huggingface, test_webdataset
from tests.records.tfrecord import test_foreign
from tests.support.object_stores import environment, fill_bucket, list_keys, new_bucket
from tests.support.small_data import write_image_folder
from tests.support.web_server import serve

PLACES = ("tars", "tars/train-{000000..000001}.tar", "parquet", "saved", "tfds", "packed", "images", "images/t.csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("containers")
    test_webdataset.write_tars(root / "tars")
    test_huggingface.write_parquet_folder(root / "parquet")
    tables = [test_huggingface.build_table([test_huggingface.row(index, index % 3) for index in range(5)])]
    test_huggingface.write_saved(root / "saved", tables)
    test_foreign.write_tfds(root / "tfds")
    payloads = [test_foreign.tfds_example(index, 1) for index in range(3)]
    test_foreign.write_shard(root / "packed/train.tfrecord.gz", payloads, packed=True)
    for label in range(2):
        write_image_folder(root / "all", num_classes=label + 1)
    (root / "all/train").rename(root / "images")
    names = sorted(path.relative_to(root / "images").as_posix() for path in (root / "images").rglob("*.jpg"))
    (root / "images/t.csv").write_text("path,label\n" + "".join(f"{name},{name[:6]}\n" for name in names))
    return root


@pytest.fixture(scope="module")
def bucket(moto: str, folder: Path) -> str:
    name = new_bucket(moto)
    for part in folder.iterdir():
        fill_bucket(moto, name, part, part.name)
    return name


@pytest.fixture(autouse=True)
def settings(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in environment(moto).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield


def read(data: Path, place: str) -> tuple[list[bytes], list[int], list[str]]:
    options = RecordOptions(image_feature="image", label_feature="label") if place == "packed" else RecordOptions()
    source: RecordSource = open_records(data, "train", options)
    records = [record for shard in range(len(source.shards)) for record in source.iter_shard(shard)]
    last = len(source.shards) - 1, source.shards[-1].num_records - 1
    assert source.read_record(*last) == records[-1]
    return (
        [bytes(record.encoded) for record in records],
        [record.label for record in records],
        [record.filename.rpartition("/")[2] for record in records],
    )


@pytest.mark.parametrize("place", PLACES)
def test_an_object_store(folder: Path, bucket: str, place: str) -> None:
    assert read(to_location(f"s3://{bucket}/{place}"), place) == read(folder / place, place)


def test_the_index_of_a_tar_lies_beside_it(moto: str, folder: Path, bucket: str) -> None:
    read(to_location(f"s3://{bucket}/tars"), "tars")
    assert "tars/train-000000.tar.index.json" in list_keys(moto, bucket)


@pytest.mark.parametrize("place", PLACES)
def test_a_web_server(folder: Path, place: str) -> None:
    part, _, name = place.partition("/")
    with serve(folder / part) as server:
        where = to_location(f"{server.address}/{name}" if name else server.address)
        if not name.endswith(".csv"):
            with pytest.raises(TeachonceError, match=r"a web server has no listings, and there is no files\.json here"):
                read(where, place)
        storage = open_storage(folder / part)
        put_file_index(storage, {file: hash_file(storage, file) for file in storage.walk() if file != "files.json"})
        try:
            found = read(where, place)
        finally:
            (folder / part / "files.json").unlink()
    assert found[:2] == read(folder / place, place)[:2]
