"""Merge: every record keeps its bytes and gains its logits; what does not belong together stops with a name."""

import subprocess
import sys

import numpy as np
import pytest

from teachonce.errors import ConfigError, PlanMismatchError, RecordError, StoreError
from teachonce.interop.config import MergeConfig
from teachonce.interop.merge import merge
from teachonce.records.discovery import open_records
from teachonce.records.tfrecord.framing import read_tfrecords
from teachonce.records.tfrecord.tf_example import decode_example
from teachonce.storage.files import write_json
from teachonce.store.plan_files import CONFIG_NAME
from teachonce.store.store import Store
from tests.support.small_data import change_image, example, write_image_folder, write_shards, write_store


@pytest.fixture
def data(tmp_path):
    return write_shards(tmp_path / "data")


@pytest.fixture
def store(tmp_path, data):
    return write_store(tmp_path / "store", data)


def run(store, data, out, **options):
    merge(
        MergeConfig(
            store=store.path if isinstance(store, Store) else store, data=data, out=out, num_workers=1, **options
        )
    )


def test_records_with_the_same_images_and_other_texts_are_another_merge(tmp_path, data, store):
    run(store, data, tmp_path / "out")
    run(store, data, tmp_path / "out")
    names = {"image/class/text".removeprefix("image/"): b"a longer text"}
    other = write_shards(tmp_path / "other", payloads=[example(i, 1 + i % 3, **names) for i in range(8)])
    with pytest.raises(
        PlanMismatchError,
        match=r"the records of .*other changed since: 8 images in 2 shards \([\d,]+ bytes\) then, 8 images in 2 ",
    ):
        run(store, other, tmp_path / "out")


def test_each_record_keeps_its_features_and_gains_its_logits(tmp_path, data, store):
    run(store, data, tmp_path / "out")
    for shard, (name, num_records) in enumerate(store.shards):
        before = [decode_example(payload) for _, payload in read_tfrecords(data / name)]
        after = [decode_example(payload) for _, payload in read_tfrecords(tmp_path / "out" / name)]
        assert len(after) == num_records
        for row, (old, new) in enumerate(zip(before, after, strict=True)):
            logits = new.pop("image/logit")
            assert logits[0] == -np.inf and len(logits) == 4
            np.testing.assert_array_equal(logits[1:], store.read_logits(shard, 0, [row])[0])
            assert old.keys() == new.keys()
            assert all(np.array_equal(old[key], new[key]) for key in old)
    merged = open_records(tmp_path / "out", "train")
    assert merged.classes is not None and merged.read_record(0, 0, with_logits=True).logits is not None
    assert (tmp_path / "out" / "train-00000-of-00002.idx").exists()


def test_the_walkthroughs_background_logit(tmp_path, data, store):
    run(store, data, tmp_path / "out", background_logit=0.0)
    assert open_records(tmp_path / "out", "train").read_record(0, 0, with_logits=True).logits[0] == 0


def test_merging_again_replaces_the_logits(tmp_path, data, store):
    run(store, data, tmp_path / "out")
    other = write_store(tmp_path / "other", data, np.full((8, 3), 7, np.float32))
    # The merged shards have other sizes than the store's data, but the same records: what counts is names and keys.
    run(other, tmp_path / "out", tmp_path / "again")
    logits = open_records(tmp_path / "again", "train").read_record(1, 2, with_logits=True).logits
    assert logits.tolist() == [-np.inf, 7, 7, 7]


def test_whole_shards_are_kept_and_missing_ones_made(tmp_path, data, store):
    run(store, data, tmp_path / "out")
    first, second = (tmp_path / "out" / name for name, _ in store.shards)
    expected = second.read_bytes()
    stamp = first.stat().st_mtime_ns
    second.unlink()
    run(store, data, tmp_path / "out")
    assert second.read_bytes() == expected and first.stat().st_mtime_ns == stamp


def test_train_and_validation_may_lie_together_and_classes_come_back(tmp_path, data, store):
    write_shards(data, sizes=(4,), split="validation")
    validation = write_store(tmp_path / "validation-store", data, split="validation")
    run(store, data, tmp_path / "out")
    (tmp_path / "out" / "classes.json").unlink()  # as a kill between the two files leaves it
    run(store, data, tmp_path / "out")
    run(validation, data, tmp_path / "out")
    for split, count in (("train", 8), ("validation", 4)):
        merged = open_records(tmp_path / "out", split)
        assert merged.num_records == count and merged.classes is not None
        assert merged.read_record(0, 0, with_logits=True).logits is not None


def test_processes_give_the_same_bytes(tmp_path, data, store):
    run(store, data, tmp_path / "one")
    merge(MergeConfig(store=store.path, data=data, out=tmp_path / "two", num_workers=2))
    for name, _ in store.shards:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("order", [[0, 1, 3, 4, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0], [2, 2, 2, 5, 5, 5, 0, 0]])
def test_records_that_are_missing_doubled_or_in_another_order(tmp_path, data, store, order):
    """Each gets the logits of its own image."""
    payloads = [example(index, 1 + index % 3) for index in order]
    changed = write_shards(tmp_path / "changed", payloads=payloads)
    run(store, changed, tmp_path / "out")
    merged = open_records(tmp_path / "out", "train")
    assert merged.num_records == 8
    for index, original in enumerate(order):
        record = merged.read_record(*merged.locate(index), with_logits=True)
        assert record.filename == f"image_{original}.jpg"
        shard, row = (0, original) if original < 5 else (1, original - 5)
        np.testing.assert_array_equal(record.logits[1:], store.read_logits(shard, 0, [row])[0])


def test_an_unknown_image_stops_with_its_name(tmp_path, store):
    payloads = [example(index, 1 + index % 3) for index in (0, 1, 9, 3, 4, 5, 6, 7)]
    changed = write_shards(tmp_path / "changed", payloads=payloads)
    with pytest.raises(StoreError, match=r"7 of 8 records are in the store; 1 are not \(first: image_9\.jpg\)"):
        run(store, changed, tmp_path / "out")
    assert not (tmp_path / "out" / "train-00000-of-00002").exists()
    assert not list((tmp_path / "out").glob(".tmp-*"))


def test_an_image_that_changed_in_place_stops_with_its_place(tmp_path, data, store):
    change_image(data / "train-00000-of-00002", 2)
    with pytest.raises(StoreError, match=r"train-00000-of-00002 record 2 .*changed since extraction"):
        run(store, data, tmp_path / "out")
    assert not (tmp_path / "out" / "train-00000-of-00002").exists()


def test_a_shortened_shard_is_merged(tmp_path, store):
    run(store, write_shards(tmp_path / "short", sizes=(4, 3)), tmp_path / "out")
    assert open_records(tmp_path / "out", "train").num_records == 7


def test_wrong_commands(tmp_path, data, store):
    with pytest.raises(ConfigError, match="is the --data folder"):
        run(store, data, data)
    with pytest.raises(ConfigError, match="exists and is not empty"):
        run(store, data, store.path)
    with pytest.raises(ConfigError, match="--view 1: expected 0 to 0"):
        run(store, data, tmp_path / "out", view=1)
    images = write_image_folder(tmp_path / "images")
    with pytest.raises(ConfigError, match=r"use records --logits"):
        run(write_store(tmp_path / "s2", images, offset=0), images, tmp_path / "out")
    run(store, data, tmp_path / "out")
    with pytest.raises(PlanMismatchError, match=r"background_logit was -inf, now 0\.0"):
        run(store, data, tmp_path / "out", background_logit=0.0)


def test_records_that_were_held_out_are_said_to_be(tmp_path, store):
    """The store is of this very data: to extract over it would not be what --val-fraction was given for."""
    more = write_shards(tmp_path / "more", sizes=(5, 4))
    write_json((store.path if isinstance(store, Store) else store) / CONFIG_NAME, {"val_fraction": 0.1})
    with pytest.raises(StoreError, match=r"extracted with --val-fraction 0\.1, and merge copies whole splits"):
        run(store, more, tmp_path / "out")


def test_a_damaged_record_stops_it(tmp_path, data, store):
    shard = data / "train-00001-of-00002"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 4
    shard.write_bytes(raw)
    with pytest.raises(RecordError, match=r"train-00001-of-00002 record 1 .*checksum"):
        run(store, data, tmp_path / "out")
    assert not (tmp_path / "out" / "train-00001-of-00002").exists()


PEAK = """
import sys
from pathlib import Path
from teachonce.interop.config import MergeConfig
from teachonce.interop.merge import merge
if __name__ == "__main__":
    merge(MergeConfig(store=Path(sys.argv[1]), data=Path(sys.argv[2]), out=Path(sys.argv[3]), num_workers=1))
    assert "torch" not in sys.modules
    # Not getrusage: its peak counts the process before exec too, which was a copy of the test runner.
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path):
    # 4 shards of 80 MB with 1000 classes: ImageNet's are of 140 MB, and there are 1024 of them.
    payloads = [example(index, 1, padding=[bytes(400_000)]) for index in range(800)]
    data = write_shards(tmp_path / "data", sizes=(200,) * 4, num_classes=1001, payloads=payloads)
    store = write_store(tmp_path / "store", data, num_classes=1000, codec="int8")
    peak_kb = int(
        subprocess.run(
            [sys.executable, "-c", PEAK, store.path, data, tmp_path / "out"], check=True, capture_output=True, text=True
        ).stdout
    )
    assert peak_kb < 400_000, f"peak memory {peak_kb} kB, at most 400 MB promised"
