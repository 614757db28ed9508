"""Remote data in training: the same batches, each byte fetched once, no more of a store than the epoch's view."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from teachonce.data.dataset import KDDataset
from teachonce.data.fetch_ahead import FetchAhead, check_cache_size
from teachonce.data.sampler import EpochBatches
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.records.discovery import open_records
from teachonce.runs.run import Run
from teachonce.storage.address import to_location
from teachonce.storage.files import open_storage
from teachonce.storage.remote import cache, object_storage, reader
from teachonce.storage.remote.cache import use_cache
from teachonce.storage.remote.object_storage import ObjectStorage
from teachonce.store.plan import views_file
from teachonce.store.store import Store
from teachonce.training.config import TrainConfig
from teachonce.training.train import train
from tests.support.object_stores import environment, new_bucket
from tests.support.small_data import build_dataset
from tests.support.small_models import write_color_shards, write_color_teacher

NUM_VIEWS = 5
SMALL_HEAD_BYTES, SMALL_PAGE_BYTES = 1024, 256


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ (8 shards of 20 records) and store/ (5 crops of each, in one file a shard)."""
    folder = tmp_path_factory.mktemp("local")
    write_color_shards(folder / "data", sizes=(20,) * 8)
    spec = write_color_teacher(folder / "teacher.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert extract(
            ExtractConfig(
                data=folder / "data",
                teacher=spec,
                out=folder / "store",
                policy="crop",
                views=NUM_VIEWS,
                gate_samples=0,
                offset=1,
                codec="float32",
            )
        )
    return folder


@pytest.fixture
def bucket(moto: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a copy of ``local``, read through a cache in tmp_path/cache."""
    for name, value in environment(moto).items():
        monkeypatch.setenv(name, value)
    for name in ("TEACHONCE_CACHE", "TEACHONCE_CACHE_BYTES"):
        monkeypatch.setenv(name, "")
    address = f"s3://{new_bucket(moto)}/here"
    upload(local, address)
    use_cache(tmp_path / "cache", 10**9)
    yield address


def upload(folder: Path, address: str) -> None:
    target = open_storage(address)
    for name in open_storage(folder).walk():
        with target.put(name) as file:
            file.write((folder / name).read_bytes())


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes of each object that ranges were asked of."""
    counts: dict[str, int] = {}
    real = ObjectStorage._get_range

    def count(self: ObjectStorage, name: str, version: str, start: int, end: int) -> memoryview:
        found = real(self, name, version, start, end)
        counts[name] = counts.get(name, 0) + len(found)
        return found

    monkeypatch.setattr(ObjectStorage, "_get_range", count)
    return counts


def open_dataset(place: Path | str) -> KDDataset:
    place = to_location(place)
    return build_dataset(open_records(place / "data", "train"), size=16, store=place / "store")


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_local_data(local, bucket, fetched, window, num_workers):
    near, far = open_dataset(local), open_dataset(bucket)
    assert far.records.is_fetched and not near.records.is_fetched
    settings = {"batch_size": 7, "num_workers": num_workers, "shuffle_shards": window}
    for epoch in range(3):
        pairs = zip(near.batches(epoch=epoch, **settings), far.batches(epoch=epoch, **settings), strict=True)
        for expected, found in pairs:
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[name], found[name]) for name in expected)
    for shard in near.records.shards:
        assert 0 < fetched.get(shard.name, 0) <= shard.num_bytes, "each byte of the records once"


def test_of_a_store_one_view_is_fetched_for_one_epoch(local, bucket, fetched, monkeypatch):
    """Its block of each file, in pages, and the file's first page; both are small here, as the files are."""
    for module in (reader, object_storage):
        monkeypatch.setattr(module, "HEAD_BYTES", SMALL_HEAD_BYTES)
    monkeypatch.setattr(cache, "PAGE_BYTES", SMALL_PAGE_BYTES)
    far = open_dataset(bucket)
    for _ in far.batches(batch_size=8, epoch=2, num_workers=2):
        pass
    store = Store(local / "store")
    for shard, _ in store.shards:
        name = views_file(shard, (0, NUM_VIEWS - 1))
        size = (local / "store" / name).stat().st_size
        most = size / NUM_VIEWS + 2 * SMALL_PAGE_BYTES + SMALL_HEAD_BYTES
        assert 0 < fetched.get(name, 0) <= most < size / 2
    again = dict(fetched)
    for _ in far.batches(batch_size=8, epoch=2, num_workers=2):
        pass
    assert fetched == again, "nothing is fetched twice"


def test_shards_are_fetched_in_the_order_in_which_they_are_needed(local):
    records = open_records(local / "data", "train")
    sizes = [shard.num_records for shard in records.shards]
    batches = EpochBatches(records.num_records, 4, seed=3, shuffle_shards=2, shard_sizes=sizes)
    asked: list[tuple[int, int]] = []
    ahead = FetchAhead(records, lambda shard, epoch, go_on: asked.append((shard, epoch)), batches)
    needed: dict[int, None] = {}
    for items in ahead.follow():
        needed |= dict.fromkeys(shard for shard, _ in records.locate_all(np.array([index for index, _ in items])))
        # An epoch that ends cancels what is still to be fetched; threads need a moment.
        deadline = time.monotonic() + 60
        while not {(shard, 0) for shard in needed} <= set(asked) and time.monotonic() < deadline:
            time.sleep(0.001)
    assert sorted(asked) == [(shard, 0) for shard in range(8)] and sorted(needed) == list(range(8))


def test_leaving_an_epoch_early_ends_the_fetching(local, bucket):
    far = open_dataset(bucket)
    iterator = iter(far.batches(batch_size=4, epoch=0, num_workers=1))
    next(iterator)
    iterator.close()
    deadline = time.monotonic() + 60
    while any(thread.name == "fetch ahead" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_data_larger_than_the_cache_is_a_warning_with_a_window_that_fits(local):
    records = open_records(local / "data", "train")
    size = max(shard.num_bytes for shard in records.shards)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_cache_size(records, None, 8 * size)
        check_cache_size(records, 2, 4 * size)
    with pytest.warns(UserWarning, match="they have .* bytes, the cache .*: .* give --shuffle-shards 3, or a larger"):
        check_cache_size(records, None, 5 * size + 100)
    with pytest.warns(UserWarning, match=r"6 shards of them have .*; give a larger --cache-size"):
        check_cache_size(records, 4, 2 * size)


def test_training_from_a_bucket_is_training_from_a_folder(local, bucket, tmp_path):
    """Into a bucket too: the curve and the weights."""
    options = {"student": "timm:test_resnet", "epochs": 2, "size": 32, "batch_size": 32, "device": "cpu"}
    place = to_location(bucket)
    near = TrainConfig(
        data=local / "data", store=(local / "store",), out=tmp_path / "near", validation_split="train", **options
    )
    far = TrainConfig(
        data=place / "data",
        store=(place / "store",),
        out=place / "run",
        validation_split="train",
        cache=tmp_path / "own cache",
        cache_size="1GB",
        **options,
    )
    train(near)
    train(far)
    columns = ("epoch", "train_loss", "kd_loss", "validation_loss")
    curves = [[[row[name] for name in columns] for row in Run(path).metrics] for path in (near.out, far.out)]
    assert curves[0] == curves[1] and len(curves[0]) == 2
    storage = open_storage(far.out)
    result = json.loads(storage.read("result.json"))
    assert result["epochs"] == 2 and storage.has("student.safetensors") and storage.has("report.html")
    assert (tmp_path / "own cache").is_dir()
    train(far)  # finished: says so
