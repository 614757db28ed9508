"""The loader: one order whatever the threads, errors in their place, memory used again only when nobody holds it."""

from __future__ import annotations

import gc
import pickle
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from teachonce.data import dataset as dataset_module
from teachonce.data import loader as module
from teachonce.data.dataset import EvalDataset, KDDataset
from teachonce.data.loader import BATCHES_AHEAD, Batch, Loader, choose_threads
from teachonce.data.sampler import EpochBatches
from teachonce.engine.buffers import MAX_BUFFERS
from teachonce.engine.prefetch import THREAD_NAME
from teachonce.errors import ConfigError, ImageError
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.records.discovery import open_records
from tests.support.small_data import build_dataset, example, write_image_folder, write_shards


class Slow:
    """Batches of their own indices; later ones are made faster, so that threads finish in another order."""

    records = SimpleNamespace(is_fetched=False)

    def __init__(self, num_batches: int, bad: int | None = None) -> None:
        self.num_batches = num_batches
        self.bad = bad
        self.made: list[int] = []

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        first = items[0][0]
        self.made.append(first)
        time.sleep(0.002 * (3 - first % 4))
        if first == self.bad:
            raise ImageError(f"record {first} is bad")
        return {"indices": torch.tensor([index for index, _ in items])}


def batches_of_one(count: int) -> EpochBatches:
    return EpochBatches(count, 1, shuffle=False)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> KDDataset:
    data = write_image_folder(tmp_path_factory.mktemp("images"), num_classes=3, per_class=20)
    return build_dataset(open_records(data, "train"), size=12, seed=5)


def tensors_equal(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "num_wanted, device_type, cores, ranks, num_threads",
    [
        (None, "cpu", 16, 1, 0),
        (None, "cuda", 6, 1, 6),
        (None, "mps", 6, 1, 6),
        (None, "cuda", 64, 1, 8),
        (None, "cuda", 64, 16, 4),
        (None, "cuda", 2, 8, 1),
        (0, "cuda", 6, 1, 0),
        (12, "cuda", 6, 1, 12),
        (3, "cpu", 6, 1, 3),
    ],
)
def test_a_network_on_a_gpu_has_the_cores_for_its_batches(
    num_wanted, device_type, cores, ranks, num_threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setattr(module, "num_cores", lambda: cores)
    assert choose_threads(num_wanted, device_type) == num_threads


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_the_order_does_not_depend_on_the_threads(num_workers: int) -> None:
    loader = Loader(Slow(40), batches_of_one(40), num_workers)
    assert len(loader) == 40
    assert [batch["indices"].item() for batch in loader] == list(range(40))
    assert [batch["indices"].item() for batch in loader] == list(range(40)), "again"
    assert not loader_threads()


def test_batches_are_the_same_whatever_the_threads(dataset: KDDataset) -> None:
    expected = list(dataset.batches(batch_size=7, epoch=2))
    assert len(expected) == 9
    for num_workers in (1, 3):
        found = list(dataset.batches(batch_size=7, epoch=2, num_workers=num_workers))
        assert len(found) == 9
        assert all(tensors_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_an_error_comes_where_its_batch_would_have_come(num_workers: int) -> None:
    iterator = iter(Loader(Slow(20, bad=6), batches_of_one(20), num_workers))
    assert [next(iterator)["indices"].item() for _ in range(6)] == list(range(6))
    with pytest.raises(ImageError, match="record 6 is bad"):
        next(iterator)
    assert not loader_threads()
    with pytest.raises(StopIteration):
        next(iterator)


def test_an_error_of_a_record_names_it(tmp_path: Path) -> None:
    payloads = [example(index, 1) for index in range(8)]
    payloads[5] = example(5, 1, encoded=b"no image")
    source = open_records(write_shards(tmp_path, sizes=(8,), payloads=payloads), "train")
    loader = build_dataset(source, size=8).batches(batch_size=1, epoch=0, shuffle=False, num_workers=2)
    iterator = iter(loader)
    assert [next(iterator)["indices"].item() for _ in range(5)] == list(range(5))
    with pytest.raises(ImageError, match=r"record 5 \(byte \d+\): .* expected a JPEG"):
        next(iterator)


def test_leaving_early_stops_the_threads() -> None:
    num_workers = 2
    dataset = Slow(1000)
    for number, batch in enumerate(Loader(dataset, batches_of_one(1000), num_workers)):
        assert batch["indices"].item() == number
        if number == 4:
            assert loader_threads()
            break
    gc.collect()
    assert not loader_threads()
    # What was asked for, what may lie ready, and what each thread had begun.
    assert len(dataset.made) <= 5 + num_workers * BATCHES_AHEAD + 1
    num_made = len(dataset.made)
    time.sleep(0.05)
    assert len(dataset.made) == num_made


def test_no_more_is_made_ahead_than_said() -> None:
    dataset = Slow(100)
    iterator = iter(Loader(dataset, batches_of_one(100), 2))
    next(iterator)
    deadline = time.monotonic() + 30
    while len(dataset.made) < 1 + 2 * BATCHES_AHEAD and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # for one too many
    assert len(dataset.made) == 1 + 2 * BATCHES_AHEAD
    iterator.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_kept_batch_is_never_overwritten(dataset: KDDataset, num_workers: int) -> None:
    """More batches at once than the pool of buffers remembers; half of them kept by a view of theirs alone."""
    kept: list[tuple[int, int, torch.Tensor]] = []
    for epoch in range(8):
        for number, batch in enumerate(dataset.batches(batch_size=6, epoch=epoch, num_workers=num_workers)):
            pixels = batch["pixels"] if number % 2 else batch["pixels"][:, 1:].permute(0, 3, 1, 2)
            kept.append((epoch, number, pixels))
    assert len(kept) == 80 > MAX_BUFFERS
    for epoch in range(8):
        fresh = build_dataset(dataset.records, size=12, seed=5).batches(batch_size=6, epoch=epoch)
        for number, batch in enumerate(fresh):
            ((*_, pixels),) = [item for item in kept if item[:2] == (epoch, number)]
            expected = batch["pixels"] if number % 2 else batch["pixels"][:, 1:].permute(0, 3, 1, 2)
            assert torch.equal(pixels, expected), (epoch, number)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loop_needs_a_few_arrays_however_long_it_is(dataset: KDDataset, num_workers: int) -> None:
    addresses = set()
    for epoch in range(5):
        for batch in dataset.batches(batch_size=10, epoch=epoch, num_workers=num_workers):
            addresses.add(batch["pixels"].data_ptr())
            del batch
    # Made ahead, in the making, and in the loop's hands; the loader holds on to one more while it yields.
    assert len(addresses) <= num_workers * BATCHES_AHEAD + num_workers + 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_with_cuda_the_pixels_are_page_locked(dataset: KDDataset) -> None:
    assert not any(values.is_pinned() for values in dataset.__getitems__([(0, 0)]).values())
    locked = build_dataset(dataset.records, size=12, page_locked=True)
    assert all(values.is_pinned() for values in locked.__getitems__([(0, 0), (1, 1)]).values())


def test_page_locked_pixels_are_in_the_storage_that_torch_made(
    dataset: KDDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With plain memory in its place, where there is no CUDA: what counts is whose storage a batch has."""
    made: list[torch.Tensor] = []

    def take(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        made.append(torch.empty(shape, dtype=torch.uint8))
        return made[-1].numpy()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dataset_module, "take_page_locked", take)
    monkeypatch.setattr(dataset_module, "lock_pages", lambda batch: batch)
    locked = build_dataset(dataset.records, size=12, page_locked=True)
    pixels = locked.__getitems__([(0, 0), (1, 0)])["pixels"]
    assert [pixels.untyped_storage()._cdata] == [tensor.untyped_storage()._cdata for tensor in made]


def test_without_cuda_page_locked_memory_is_refused_at_once(
    dataset: KDDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^page_locked: PyTorch finds no CUDA device here, expected one"):
        build_dataset(dataset.records, size=12, page_locked=True)
    with pytest.raises(ConfigError, match=r"^page_locked: PyTorch finds no CUDA device here"):
        EvalDataset(dataset.records, Preprocessing(size_px=12), dataset.class_space, page_locked=True)


def test_a_machine_with_cuda_takes_plain_memory_for_the_cpu(
    dataset: KDDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page-locked memory is asked for: by itself it would start CUDA in a process that does not use it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", None)
    assert dataset.read_batch([0, 1], 0)["pixels"].shape == (2, 12, 12, 3)


def test_data_sets_pickle(dataset: KDDataset) -> None:
    dataset.read_batch([0, 1], 0)
    again = pickle.loads(pickle.dumps(dataset))
    assert tensors_equal(again.read_batch([3, 9], 1), dataset.read_batch([3, 9], 1))
