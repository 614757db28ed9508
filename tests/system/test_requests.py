"""How many requests it takes to work with what lies in an object store, counted by a proxy.

Each costs a round trip, and money: a few for what is opened, one or two for each file that must be read, none of them
in vain, and several under way at once.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from teachonce.cli.main import main
from teachonce.records.discovery import open_records
from teachonce.records.image_folder import FolderSource
from teachonce.records.tfrecord.framing import index_path, load_index
from teachonce.storage.address import Address, to_location
from teachonce.storage.files import open_storage
from teachonce.store.manifests import finalize_store
from teachonce.store.repair import remove_damaged
from teachonce.store.store import Store
from teachonce.training.config import TrainConfig
from teachonce.training.train import train
from tests.support.object_stores import environment, fill_bucket, new_bucket
from tests.support.proxy import Proxy, Request, start_proxy
from tests.support.small_data import write_image_folder, write_shards
from tests.support.small_models import write_color_shards, write_color_teacher

NUM_SHARDS = 12
CROPS = ("--gate-samples", "0", "--policy", "crop", "--views", "4", "--views-per-file", "2")
FILES_A_SHARD = 5
"""Of records one, of two groups of views two each."""


@pytest.fixture(scope="module")
def proxy(moto: str) -> Iterator[Proxy]:
    with start_proxy(moto) as found:
        yield found


@pytest.fixture(autouse=True)
def settings(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def place(moto: str, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An address with records, images and a store of them."""
    folder = tmp_path_factory.mktemp("requests")
    write_color_shards(folder / "data", sizes=(2,) * NUM_SHARDS)
    for path in sorted((folder / "data").glob("train-*")):
        index = load_index(path)  # which is written beside the shard
        assert len(index) == 3 and index_path(path).is_file()
    write_image_folder(folder / "images", num_classes=4, per_class=20)
    teacher = write_color_teacher(folder / "teacher.onnx")
    words = f"extract --data {folder / 'data'} --teacher {teacher} --out {folder / 'store'} --device cpu"
    with pytest.raises(SystemExit) as end:
        main([*words.split(), *CROPS])
    assert not end.value.code
    bucket = new_bucket(moto)
    for name in ("data", "images", "store"):
        fill_bucket(moto, bucket, folder / name, name)
    return to_location(f"s3://{bucket}")


def count(requests: list[Request]) -> Counter[str]:
    return Counter("LIST" if request.is_listing else request.method for request in requests)


def most_at_once(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list whose last entry becomes the largest number of requests that were under way together."""
    lock, under_way, most = threading.Lock(), [0], [0]
    forward = proxy.server.RequestHandlerClass._forward  # type: ignore[attr-defined]

    def counting(handler: object, body: bytes) -> object:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        try:
            return forward(handler, body)
        finally:
            with lock:
                under_way[0] -= 1

    monkeypatch.setattr(proxy.server.RequestHandlerClass, "_forward", counting)
    return most


def test_opening_records(place: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    most = most_at_once(proxy, monkeypatch)
    with proxy.counted() as requests:
        source = open_records(place / "data", "train")
    assert source.num_records == 2 * NUM_SHARDS
    found = count(requests)
    assert found["GET"] <= NUM_SHARDS + 2 and found["LIST"] <= 4 and found["HEAD"] <= 2, found
    assert most[0] >= 3
    with proxy.counted() as requests:
        assert open_storage(place / "data").requests_at_once > 1
        assert [record.label for record in source.iter_shard(3)]
    assert count(requests) == {"GET": 1}


def test_shards_without_an_index_are_read_in_blocks(
    moto: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorFlow leaves them: not a request for each record's header."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = write_shards(tmp_path / "data", sizes=(200,), payloads=[bytes([1]) * 4000] * 200)
    bucket = new_bucket(moto)
    fill_bucket(moto, bucket, data, "data")
    shard = to_location(f"s3://{bucket}") / "data" / "train-00000-of-00001"
    with proxy.counted() as requests:
        bounds = load_index(shard)
    assert len(bounds) == 201
    assert count(requests)["GET"] <= 6, count(requests)


def test_opening_image_folders(place: Path, proxy: Proxy) -> None:
    with proxy.counted() as requests:
        source = open_records(place / "images", "train")
    assert isinstance(source, FolderSource) and source.num_records == 80
    # Of the root, of each class what is in it, and its sizes.
    assert not count(requests)["HEAD"] and len(requests) <= 2 * 4 + 10, count(requests)


def test_images_are_requested_side_by_side(place: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of them, and those of a shard one after another."""
    source = open_records(place / "images", "train")
    for read in (
        lambda: source.read_batch(source.locate_all(np.arange(40))),
        lambda: list(source.iter_shard(0)),
    ):
        most = most_at_once(proxy, monkeypatch)
        with proxy.counted() as requests:
            names = [record.filename for record in read()]
        assert names == sorted(names) and count(requests) == {"GET": len(names)}
        assert 3 <= most[0] <= open_storage(place).requests_at_once


def test_image_files_far_away_are_said_to_be_requested_in_every_epoch(place: Path, tmp_path: Path) -> None:
    options = {"epochs": 1, "batch_size": 16, "size": 16, "device": "cpu", "validation_split": None, "warmup_epochs": 0}
    with pytest.warns(UserWarning, match="each image is a file, which no cache keeps: every epoch requests them all"):
        train(TrainConfig(data=place / "images", student="timm:test_resnet", out=tmp_path / "run", **options))


def test_opening_a_store(place: Path, proxy: Proxy) -> None:
    """Whatever the number of its shards: its plans and its manifests."""
    with proxy.counted() as requests:
        store = Store(place / "store")
    assert len(requests) <= 7, count(requests)
    with proxy.counted() as requests:
        for shard in range(NUM_SHARDS):
            store.read_columns(shard, 1)
    # A file is small here: its first bytes are all of it. Beside them the two manifests.
    assert count(requests) == {"GET": NUM_SHARDS + 2}


def test_a_block_is_read_once(moto: str, proxy: Proxy, tmp_path: Path) -> None:
    """To compare its hash and to use it are one request."""
    import pyarrow as pa

    from teachonce.storage.block_file import BlockFile, write_blocks

    storage = open_storage(f"s3://{new_bucket(moto)}/a")
    batch = pa.record_batch({"x": np.random.default_rng(0).integers(1 << 60, size=40_000)})
    write_blocks(storage, "b.arrow", [batch, batch, batch], {})
    with proxy.counted() as requests:
        file = BlockFile(storage, "b.arrow")
    assert count(requests) == {"GET": 1}
    with proxy.counted() as requests:
        assert file.read(1, batch.schema, None) == batch
    assert count(requests) == {"GET": 1}
    with proxy.counted() as requests:
        assert file.entry.num_bytes > 960_000
        file.check_tail()
    assert count(requests) == {"GET": 1}, "hash and footer lie in the same last bytes"


def test_finalizing_checking_and_repairing(place: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    num_files = NUM_SHARDS * FILES_A_SHARD + 1
    most = most_at_once(proxy, monkeypatch)
    storage = open_storage(place / "store")
    assert isinstance(place, Address)
    for name in storage.list_folder().files:
        if name.startswith(("manifest", "index")):
            storage.delete(name)
    for work in (finalize_store, lambda path: Store(path).check_files(), remove_damaged):
        most[0] = 0
        with proxy.counted() as requests:
            assert work(place / "store") in (4, num_files, [])
        found = count(requests)
        assert found["LIST"] <= 1 and found["HEAD"] <= 12 and found["GET"] <= num_files + 20, found
        assert most[0] >= 3


def test_an_extraction_lists_nothing_in_its_loop(place: Path, proxy: Proxy, tmp_path: Path) -> None:
    teacher = write_color_teacher(tmp_path / "teacher.onnx")
    words = f"extract --data {place / 'data'} --teacher {teacher} --out {place / 'other'} --device cpu"
    with proxy.counted() as requests, pytest.raises(SystemExit) as end:
        main([*words.split(), *CROPS])
    assert not end.value.code
    found, num_units = count(requests), 2 * NUM_SHARDS
    # Of a whole extraction; those of its heartbeats and its card among them.
    assert found["LIST"] <= 14, found
    assert found["PUT"] <= NUM_SHARDS * FILES_A_SHARD + 9
    # A unit is looked for before it is begun and before it is written: others may have made it.
    assert found["HEAD"] <= 3 * num_units + 32, found
    # The index of each shard, each shard for each group, and each file that was made, to finalize it.
    assert found["GET"] <= NUM_SHARDS + num_units + 2 * NUM_SHARDS * FILES_A_SHARD + 30
