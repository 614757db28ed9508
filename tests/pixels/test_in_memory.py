"""Records in memory: the same batches, refused where they do not fit or are damaged."""

import pickle

import numpy as np
import pytest
import torch

from teachonce.errors import ConfigError, ImageError
from teachonce.pixels import in_memory
from teachonce.pixels.decode import image_size
from teachonce.pixels.in_memory import RecordsInMemory
from teachonce.records.discovery import open_records
from tests.support.small_data import build_dataset, example, write_shards


@pytest.fixture
def source(tmp_path):
    payloads = [example(i, 1 + i % 2, logit=np.array([i, 1, -2, 0.5], np.float32)) for i in range(9)]
    return open_records(write_shards(tmp_path / "data", (5, 4), payloads=payloads), "train")


def test_batches_are_the_same(source):
    kept = RecordsInMemory(source, with_logits=True)
    assert kept.describe() == source.describe() and kept.num_records == 9
    for epoch in (0, 3):
        batches = [
            build_dataset(records, size=11, use_record_logits=True, seed=2).read_batch(range(9), epoch)
            for records in (source, kept)
        ]
        assert batches[0].keys() == batches[1].keys()
        assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])


def test_a_copy_in_another_process_has_its_own_addresses(source):
    """What travels is what is kept, not where it was."""
    kept = RecordsInMemory(source)
    copy = pickle.loads(pickle.dumps(kept))
    del kept.__dict__["_blocks"]
    expected, found = (build_dataset(records, size=9, seed=2).read_batch(range(9), 1) for records in (source, copy))
    assert torch.equal(expected["pixels"], found["pixels"])


def test_what_does_not_fit_is_refused(source, monkeypatch):
    monkeypatch.setattr(in_memory, "free_memory", lambda: 1000)
    with pytest.raises(ConfigError, match=r"--in-memory: the pixels of 9 records take about .* are free; without it"):
        RecordsInMemory(source)


def test_every_rank_of_a_machine_keeps_a_copy(source, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(10**9))
    with pytest.raises(ConfigError, match=r"of 9 records take in 1000000000 processes about .* are free"):
        RecordsInMemory(source)


def test_logits_take_room_too(source, monkeypatch):
    images = [record.encoded for shard in (0, 1) for record in source.iter_shard(shard)]
    pixels = sum(3 * width * height for width, height in map(image_size, images))
    monkeypatch.setattr(in_memory, "free_memory", lambda: pixels)
    assert RecordsInMemory(source).num_records == 9
    with pytest.raises(ConfigError, match="--in-memory: the pixels and logits of 9 records take about"):
        RecordsInMemory(source, with_logits=True)
    monkeypatch.setattr(in_memory, "free_memory", lambda: pixels + 9 * 4 * 4)
    assert RecordsInMemory(source, with_logits=True).num_records == 9


def test_a_damaged_image_says_where(tmp_path):
    payloads = [example(0, 1), example(1, 1, encoded=b"no image")]
    source = open_records(write_shards(tmp_path / "data", (2,), payloads=payloads), "train")
    with pytest.raises(ImageError, match=r"record 1 .*expected a JPEG"):
        RecordsInMemory(source)
