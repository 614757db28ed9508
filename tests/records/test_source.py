import ctypes
import io
import itertools
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from teachonce.engine.buffers import BufferPool
from teachonce.errors import ConfigError, LogitsError, RecordError
from teachonce.native import load_library
from teachonce.records.class_table import ClassTable, read_classes, write_classes
from teachonce.records.discovery import open_records
from teachonce.records.image_folder import FolderSource
from teachonce.records.source import (
    Record,
    RecordBatch,
    RecordSource,
    record_key,
    shard_name,
)
from teachonce.records.tfrecord.framing import TFRecordWriter
from teachonce.records.tfrecord.tf_example import FeatureValue, encode_example

CLASSES = ClassTable(("background", "cat", "dog"), ("background", "a cat", "a dog"), has_background=True)


FRAMES = [(900, 1100, 700), (1100, 900, 700), (1516, 1200), (1200, 1516), (700, 800, 600, 584)]
"""Bytes of records whose shards have the same bytes: 16 more for each."""


@pytest.mark.parametrize(("before", "now"), list(itertools.permutations(FRAMES, 2)))
def test_a_shard_that_was_replaced_by_one_of_equal_size(tmp_path: Path, before: tuple[int], now: tuple[int]) -> None:
    """Its index is of the right length, and of other records: read in order or by row, the index is named."""
    path = tmp_path / shard_name("train", 0, 1)

    def write(sizes: tuple[int]) -> int:
        with path.open("wb") as file:
            writer = TFRecordWriter(file)
            for size in sizes:
                features = {"image/encoded": b"\xff\xd8", "image/class/label": 1, "image/filename": b"a"}
                more = size - len(encode_example({**features, "other": b"x"})) + 1
                more -= len(encode_example({**features, "other": bytes(more)})) - size  # a longer varint or two
                writer.write(encode_example({**features, "other": bytes(more)}))
        assert [entry[1] - 16 for entry in writer.index] == list(sizes)
        return path.stat().st_size

    total = write(before)
    assert len(list(open_records(tmp_path, "train").iter_shard(0))) == len(before)
    assert write(now) == total
    source = open_records(tmp_path, "train")
    with pytest.raises(RecordError, match=r"the index says .*the index belongs to another shard; .*delete .*\.idx"):
        list(source.iter_shard(0))
    for buffers in (None, BufferPool()):
        with pytest.raises(RecordError, match=r"delete (its \.idx if that is outdated|train-00000-of-00001\.idx)$"):
            source.read_batch([(0, row) for row in range(source.num_records)], buffers=buffers)
    path.with_name(path.name + ".idx").unlink()
    assert len(list(open_records(tmp_path, "train").iter_shard(0))) == len(now)


def image_bytes(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (number % 256, number // 256, 7)).save(buffer, "JPEG")
    return buffer.getvalue()


def features_of(number: int, **changes: FeatureValue | None) -> dict[str, FeatureValue]:
    features: dict[str, FeatureValue | None] = {
        "image/encoded": image_bytes(number),
        "image/class/label": 1 + number % 2,
        "image/filename": f"{number}.JPEG".encode(),
        "image/logit": np.array([-np.inf, number, 0.5], np.float32),
    }
    features.update({f"image/{name.replace('_', '/')}": value for name, value in changes.items()})
    return {name: value for name, value in features.items() if value is not None}


def write_shards(data: Path, *shards: list[dict[str, FeatureValue]], split: str = "train") -> Path:
    data.mkdir(parents=True, exist_ok=True)
    for index, shard in enumerate(shards):
        with (data / shard_name(split, index, len(shards))).open("wb") as file:
            writer = TFRecordWriter(file)
            for features in shard:
                writer.write(encode_example(features))
    return data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    shards = [[features_of(number) for number in numbers] for numbers in (range(3), range(3, 5), range(5, 9))]
    write_classes(write_shards(tmp_path / "data", *shards), CLASSES)
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (split, name) in enumerate(
        itertools.product(("train", "validation"), ("cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "eel/5.png"))
    ):
        path = tmp_path / "folder" / split / name
        if (split, name) != ("validation", "cat/0.jpg") and (split, name) != ("validation", "cat/1.jpg"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(number))
    return tmp_path / "folder"


def test_tfrecords_by_row_and_in_order(data: Path) -> None:
    source = open_records(data, "train")
    assert source.num_records == 9 and source.classes == CLASSES
    streamed = [record for shard in range(3) for record in source.iter_shard(shard)]
    scanned = [record for shard in range(3) for block in source.scan_shard(shard) for record in block]
    assert scanned == streamed
    assert [record.filename for record in streamed] == [f"{number}.JPEG" for number in range(9)]
    assert [record.label for record in streamed] == [1 + number % 2 for number in range(9)]
    assert [record.encoded for record in streamed] == [image_bytes(number) for number in range(9)]
    assert all(record.key == xxhash.xxh3_64_intdigest(record.encoded) for record in streamed)
    assert all(record.logits is None for record in streamed)
    by_row = [source.read_record(shard, row) for shard, size in enumerate((3, 2, 4)) for row in range(size)]
    assert by_row == streamed
    assert streamed[4].where.startswith(f"{data}/train-00001-of-00003 record 1 (byte ")


def test_describe_has_no_path(data: Path, folder: Path) -> None:
    described = open_records(data, "train").describe()
    sizes = [path.stat().st_size for path in sorted(data.glob("train-*-of-00003"))]
    assert described == {
        "split": "train",
        "format": "tfrecord",
        "num_classes": 3,
        "shards": [[f"train-0000{index}-of-00003", (3, 2, 4)[index], sizes[index]] for index in range(3)],
    }
    described = open_records(folder, "train").describe()
    num_bytes = sum(path.stat().st_size for path in (folder / "train").rglob("*.*g"))
    shards = [["train-00000-of-00001", 4, num_bytes]]
    assert described == {"split": "train", "format": "folder", "num_classes": 3, "shards": shards}


def test_logits(data: Path) -> None:
    source = open_records(data, "train")
    expected = np.array([-np.inf, 4, 0.5], np.float32)
    logits = source.read_record(1, 1, with_logits=True).logits
    assert logits is not None and logits.dtype == np.float32
    np.testing.assert_array_equal(logits, expected)
    (_, record) = source.iter_shard(1, with_logits=True)
    np.testing.assert_array_equal(record.logits, expected)


def test_foreign_records_have_no_class_table(tmp_path: Path) -> None:
    data = write_shards(tmp_path, [features_of(0, class_label=900, filename=None)])
    source = open_records(data, "train")
    assert source.classes is None
    assert source.read_record(0, 0).label == 900 and source.read_record(0, 0).filename == ""


def with_boxes(xmin, ymin, xmax, ymax) -> dict[str, FeatureValue]:
    sides = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
    boxes = {f"image/object/bbox/{name}": np.array(side, np.float32) for name, side in sides.items()}
    return features_of(0) | boxes


def test_boxes_are_there_when_asked_for(tmp_path: Path) -> None:
    shard = [with_boxes([0.1, 0.5], [0.2, 0.6], [0.3, 0.7], [0.4, 1.0]), features_of(1), with_boxes([], [], [], [])]
    source = open_records(write_shards(tmp_path, shard), "train")
    assert all(record.boxes is None for record in source.iter_shard(0))
    source = open_records(tmp_path, "train", with_boxes=True)
    copy = pickle.loads(pickle.dumps(source))
    expected = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 1.0]], np.float32)
    for reader in (source, copy):
        first, without, empty = reader.iter_shard(0)
        np.testing.assert_array_equal(first.boxes, expected)
        assert without.boxes is None and empty.boxes is None
        np.testing.assert_array_equal(reader.read_record(0, 0).boxes, expected)


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (([0.1], [0.2], [0.3], []), "1 xmin, 1 ymin, 1 xmax and 0 ymax, expected floats, as many of each"),
        (([0.1, 0.2], [0.2], [0.3], [0.4]), "2 xmin, 1 ymin"),
        (([0.1], [0.2], [1.5], [0.4]), "a bounding box with a side at 1.5, expected 0 to 1"),
        (([-0.1], [0.2], [0.5], [0.4]), "a bounding box with a side at -0.1"),
        (([0.1], [np.nan], [0.5], [0.4]), "a bounding box with a side at nan"),
    ],
)
def test_boxes_that_cannot_be_used(tmp_path: Path, sides: tuple[list[float], ...], message: str) -> None:
    source = open_records(write_shards(tmp_path, [with_boxes(*sides)]), "train")
    assert source.read_record(0, 0).boxes is None, "nobody asked"
    source = open_records(tmp_path, "train", with_boxes=True)
    with pytest.raises(RecordError, match=rf"record 0 \(.*{message}"):
        source.read_record(0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoded": None}, "no image/encoded, found .*read it by --image-feature, else write the record again"),
        ({"encoded": np.empty(0, np.float32)}, "no image/encoded"),
        ({"encoded": 7}, "image/encoded holds 1 values of int64, expected one of bytes"),
        ({"class_label": None}, "no image/class/label, found .*read it by --label-feature, else write"),
        ({"class_label": [1, 2]}, "image/class/label holds 2 values of int64"),
        ({"class_label": b"cat"}, "image/class/label holds 1 values of bytes, expected one of int64"),
        ({"class_label": 3}, "label 3, expected 0 to 2"),
        ({"class_label": -1}, "label -1, expected 0 to 2"),
    ],
)
def test_a_record_that_lacks_what_it_must_have(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    data = write_shards(tmp_path, [features_of(0), features_of(1, **changes)])
    write_classes(data, CLASSES)
    source = open_records(data, "train")
    location = r"train-00000-of-00001 record 1 \(byte \d+\): "
    with pytest.raises(RecordError, match=location + message):
        source.read_record(0, 1)
    with pytest.raises(RecordError, match=location + message):
        list(source.iter_shard(0))


@pytest.mark.parametrize(
    ("logit", "message"),
    [
        (None, "no image/logit"),
        (np.empty(0, np.float32), "no image/logit"),
        ([1, 2, 3], "not a list of floats"),
        (np.zeros(4, np.float32), "image/logit has 4 classes, the data 3"),
        (np.array([0, np.nan, 0], np.float32), "logit 1 is nan"),
        (np.array([0, 0, np.inf], np.float32), "logit 2 is inf"),
        (np.full(3, -np.inf, np.float32), "all 3 logits are -inf"),
    ],
)
def test_logits_that_cannot_be_used(tmp_path: Path, logit: FeatureValue | None, message: str) -> None:
    data = write_shards(tmp_path, [features_of(0, logit=logit)])
    write_classes(data, CLASSES)
    source = open_records(data, "train")
    assert source.read_record(0, 0).logits is None
    with pytest.raises(LogitsError, match=rf"train-00000-of-00001 record 0 \(byte 0\): .*{message}"):
        source.read_record(0, 0, with_logits=True)


def test_a_payload_that_is_no_example(tmp_path: Path) -> None:
    data = write_shards(tmp_path, [features_of(0)])
    with (data / "train-00000-of-00001").open("wb") as file:
        TFRecordWriter(file).write(b"hello, this is no protobuf")
    with pytest.raises(RecordError, match=r"train-00000-of-00001 record 0 \(byte 0\): not a tf.train.Example"):
        open_records(data, "train").read_record(0, 0)


def outcomes(read: Callable[..., Iterable[Record]], *arguments: Any, **options: Any) -> list[Any] | tuple[type, str]:
    """Records as they can be compared, or the error."""
    try:
        found = list(read(*arguments, **options))
    except (RecordError, LogitsError) as error:
        return type(error), str(error)
    parts = ((record, record.logits, record.boxes) for record in found)
    return [
        (replace(record, logits=None, boxes=None), *(None if part is None else part.tobytes() for part in rest))
        for record, *rest in parts
    ]


def read_each(source: RecordSource, locations: list[tuple[int, int]], with_logits: bool = False) -> list[Record]:
    return [source.read_record(*location, with_logits=with_logits) for location in locations]


UNUSUAL: dict[str, dict[str, FeatureValue | None]] = {
    "plain": {},
    "no name": {"filename": None},
    "empty name": {"filename": b""},
    "two names": {"filename": [b"a", b"b"]},
    "a name that is not UTF-8": {"filename": b"\xff\xfe.jpg"},
    "a number for a name": {"filename": 7},
    "no logits": {"logit": None},
    "no logits in a list": {"logit": np.empty(0, np.float32)},
    "logits of another width": {"logit": np.zeros(4, np.float32)},
    "nan": {"logit": np.array([0, np.nan, 0], np.float32)},
    "integers": {"logit": [1, 2, 3]},
    "no image": {"encoded": None},
    "an empty image": {"encoded": b""},
    "two images": {"encoded": [b"a", b"b"]},
    "no label": {"class_label": None},
    "two labels": {"class_label": [1, 2]},
    "a label beyond": {"class_label": 3},
    "a negative label": {"class_label": -1},
    "the largest label": {"class_label": 2**63 - 1},
    "text for a label": {"class_label": b"cat"},
    "more features": {"height": 3, "object_bbox_xmin": np.array([0.1], np.float32), "class_text": b"a cat"},
}


def check_arrays(batch: Sequence[Record]) -> None:
    """They say what the records say, and where their images are."""
    if not isinstance(batch, RecordBatch):
        return
    assert batch.keys.tolist() == [record.key for record in batch]
    assert batch.labels.tolist() == [record.label for record in batch]
    for address, num_bytes, record in zip(batch.encoded.addresses, batch.encoded.num_bytes, batch, strict=True):
        assert ctypes.string_at(int(address), int(num_bytes)) == bytes(record.encoded)


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("with_classes", [True, False])
def test_a_batch_is_its_records_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_classes: bool, is_native: bool
) -> None:
    """Every kind of record, alone and between good ones, with logits and without; the same error where there is one."""
    if not is_native:
        monkeypatch.setattr("teachonce.records.tfrecord.source.find_features", lambda *_: None)
    shard = [features_of(number, **changes) for number, changes in enumerate(UNUSUAL.values())]
    data = write_shards(tmp_path, shard, [features_of(100)])
    if with_classes:
        write_classes(data, CLASSES)
    source = open_records(data, "train")
    num_good = num_batches = 0
    for with_logits, with_boxes in ((False, False), (True, False), (False, True)):
        source = open_records(data, "train", with_boxes=with_boxes)
        for row, name in enumerate(UNUSUAL):
            alone = outcomes(read_each, source, [(0, row)], with_logits)
            assert outcomes(source.read_batch, [(0, row)], with_logits=with_logits) == alone, name
            locations = [(1, 0), (0, 0), (0, row), (1, 0)]
            each = outcomes(read_each, source, locations, with_logits)
            assert outcomes(source.read_batch, locations, with_logits=with_logits) == each, name
            buffered = {"with_logits": with_logits, "buffers": BufferPool()}
            assert outcomes(source.read_batch, locations, **buffered) == each, name
            if isinstance(each, list):
                batch = source.read_batch(locations, **buffered)
                num_batches += isinstance(batch, RecordBatch)
                check_arrays(batch)
            num_good += isinstance(alone, list)
    assert 15 < num_good < 3 * len(UNUSUAL) - 15
    assert (num_batches > 5) == (is_native and load_library() is not None)
    assert source.read_batch([]) == []


@given(random=st.randoms(use_true_random=False))
def test_damaged_examples_give_the_same_record_or_error(
    tmp_path_factory: pytest.TempPathFactory, random: Random
) -> None:
    """A good checksum over a bad Example: written wrong, not damaged on the way."""
    data = tmp_path_factory.mktemp("damaged")
    with (data / "train-00000-of-00001").open("wb") as file:
        writer = TFRecordWriter(file)
        for number in range(4):
            payload = bytearray(encode_example(features_of(number)))
            for _ in range(random.randrange(4)):
                at = random.randrange(len(payload))
                payload[at] = random.choice([0, 0x0A, 0x12, 0x80, 0xFF, random.randrange(256)])
            writer.write(bytes(payload[: random.choice([len(payload), random.randrange(len(payload))])]))
    source = open_records(data, "train")
    for row, with_logits in itertools.product(range(4), (False, True)):
        alone = outcomes(read_each, source, [(0, row)], with_logits)
        assert outcomes(source.read_batch, [(0, row)], with_logits=with_logits) == alone
    streamed = outcomes(source.iter_shard, 0)
    assert streamed == outcomes(read_each, source, [(0, row) for row in range(4)])


def test_a_damaged_shard_gives_the_same_error_in_a_batch(data: Path) -> None:
    path = data / "train-00001-of-00003"
    damaged = bytearray(path.read_bytes())
    damaged[-30] ^= 1
    path.write_bytes(damaged)
    source = open_records(data, "train")
    alone = outcomes(read_each, source, [(1, 1)])
    assert isinstance(alone, tuple) and "wrong checksum of the data" in alone[1]
    assert outcomes(source.read_batch, [(0, 0), (1, 0), (1, 1), (2, 0)]) == alone
    assert len(source.read_batch([(0, 0), (1, 0), (2, 0)])) == 3


def test_folders_read_batches_too(folder: Path) -> None:
    source = open_records(folder, "train")
    assert source.read_batch([(0, 2), (0, 0)]) == [source.read_record(0, 2), source.read_record(0, 0)]
    with pytest.raises(LogitsError, match="an image file has no logits"):
        source.read_batch([(0, 0)], with_logits=True)


def test_all_shards_must_be_there_once(data: Path) -> None:
    (data / "train-00001-of-00003").rename(data / "validation-00000-of-00001")
    with pytest.raises(RecordError, match="2 of 3 train shards, train-00001-of-00003 is missing"):
        open_records(data, "train")
    write_shards(data, [features_of(0)])
    with pytest.raises(RecordError, match=r"train shards of several sets \(-of-00001 and -of-00003\)"):
        open_records(data, "train")
    assert open_records(data, "validation").num_records == 2


def test_a_record_is_found_by_its_number(data: Path) -> None:
    source = open_records(data, "train")
    expected = [(shard, row) for shard, info in enumerate(source.shards) for row in range(info.num_records)]
    assert [source.locate(index) for index in range(source.num_records)] == expected
    chosen = np.array([source.num_records - 1, 0, 0])
    assert source.locate_all(chosen) == [expected[-1], expected[0], expected[0]]
    assert pickle.loads(pickle.dumps(source)).locate(1) == expected[1]
    for wrong in (-1, source.num_records):
        message = f"record {wrong}: expected 0 to {source.num_records - 1}, by which"
        with pytest.raises(ConfigError, match=message):
            source.locate(wrong)
        with pytest.raises(ConfigError, match=message):
            source.locate_all(np.array([0, wrong, 1]))


def test_an_empty_shard_is_an_error(data: Path) -> None:
    (data / "train-00001-of-00003").write_bytes(b"")
    with pytest.raises(RecordError, match="train-00001-of-00003: is empty"):
        open_records(data, "train")


def test_what_is_not_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such folder"):
        open_records(tmp_path / "nowhere", "train")
    with pytest.raises(ConfigError, match=r"only train, expected test-NNNNN-of-NNNNN shards or test/CLASS"):
        open_records(data, "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no records at all, expected train-"):
        open_records(tmp_path / "empty", "train")


def test_class_table_round_trip_and_damage(tmp_path: Path) -> None:
    assert read_classes(tmp_path) is None
    write_classes(tmp_path, CLASSES)
    assert read_classes(tmp_path) == CLASSES
    for text in ("[]", "{}", '{"names": ["a"], "texts": [], "has_background": true}'):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(RecordError, match=r"classes.json: .*create it again"):
            read_classes(tmp_path)


def test_a_folder_is_a_source(folder: Path) -> None:
    source = open_records(folder, "train")
    assert source.classes == ClassTable(("cat", "dog", "eel"), ("cat", "dog", "eel"), has_background=False)
    found = list(source.iter_shard(0))
    assert [(record.filename, record.label) for record in found] == [
        ("cat/0.jpg", 0),
        ("cat/1.jpg", 0),
        ("dog/0.jpg", 1),
        ("eel/5.png", 2),
    ]
    assert found[2] == source.read_record(0, 2)
    assert found[2].key == record_key((folder / "train/dog/0.jpg").read_bytes())
    assert found[2].where == str(folder / "train/dog/0.jpg")
    with pytest.raises(LogitsError, match="an image file has no logits"):
        source.read_record(0, 0, with_logits=True)


def test_a_validation_folder_without_a_class_keeps_its_labels(folder: Path) -> None:
    source = open_records(folder, "validation")
    assert [(record.filename, record.label) for record in source.iter_shard(0)] == [("dog/0.jpg", 1), ("eel/5.png", 2)]
    (folder / "validation/fox").mkdir()
    with pytest.raises(RecordError, match=r"validation/fox: a class that .*/train does not have \(3 classes\)"):
        open_records(folder, "validation")


def test_bad_folders(folder: Path) -> None:
    source = open_records(folder, "train")
    (folder / "train/dog/0.jpg").unlink()
    with pytest.raises(RecordError, match=r"train/dog/0.jpg: cannot be read: No such file"):
        list(source.iter_shard(0))
    with pytest.raises(RecordError, match="train/dog: has no images"):
        open_records(folder, "train")
    (folder / "test").mkdir()
    with pytest.raises(RecordError, match="test: no class folders"):
        open_records(folder, "test")


def test_a_large_folder_is_cut_into_virtual_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teachonce.records.image_folder.FOLDER_SHARD_RECORDS", 4)
    for number in range(10):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number))
    source = FolderSource(tmp_path, "train")
    assert [(shard.name, shard.num_records) for shard in source.shards] == [
        ("train-00000-of-00003", 4),
        ("train-00001-of-00003", 4),
        ("train-00002-of-00003", 2),
    ]
    names = [record.filename for shard in range(3) for record in source.iter_shard(shard)]
    assert names == sorted(names) and len(names) == 10
    assert source.read_record(2, 1).filename == names[9]


@pytest.mark.parametrize("kind", ["tfrecord", "folder"])
def test_sources_pickle_and_serve_threads(data: Path, folder: Path, kind: str) -> None:
    source: RecordSource = open_records(data if kind == "tfrecord" else folder, "train")
    source.read_record(0, 0)
    copy = pickle.loads(pickle.dumps(source))
    locations = [(shard, row) for shard, info in enumerate(copy.shards) for row in range(info.num_records)] * 20
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda location: copy.read_record(*location), locations))
    assert found == [source.read_record(*location) for location in locations]
    assert copy.describe() == source.describe()


def test_more_shards_than_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teachonce.records.tfrecord.source.MAX_OPEN_SHARDS", 3)
    data = write_shards(tmp_path, *([features_of(number)] for number in range(60)))
    source = open_records(data, "train")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 60
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 20, hard))
    try:
        for shard in [*range(60), *range(60)]:
            assert source.read_record(shard, 0).filename == f"{shard}.JPEG"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_reading_records_imports_no_torch() -> None:
    code = "import sys, teachonce.records.discovery; "
    code += "print([name for name in ('torch', 'pyarrow', 'PIL') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_reads_what_tensorflow_wrote(tensorflow: Any, tmp_path: Path) -> None:
    train = tensorflow.train
    example = train.Example()
    feature = example.features.feature
    feature["image/encoded"].bytes_list.value.append(image_bytes(3))
    feature["image/class/label"].int64_list.value.append(2)
    feature["image/filename"].bytes_list.value.append(b"n_3.JPEG")
    feature["image/logit"].float_list.value.extend([0.1, 0.2, 0.3])
    feature["image/width"].int64_list.value.append(4)
    with tensorflow.io.TFRecordWriter(str(tmp_path / "train-00000-of-00001")) as writer:
        writer.write(example.SerializeToString())
    record = open_records(tmp_path, "train").read_record(0, 0, with_logits=True)
    assert (record.encoded, record.label, record.filename) == (image_bytes(3), 2, "n_3.JPEG")
    np.testing.assert_array_equal(record.logits, np.array([0.1, 0.2, 0.3], np.float32))
