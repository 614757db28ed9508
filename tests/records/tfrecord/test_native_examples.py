"""The native library: it finds in Examples what example.py finds, and without it the speed changes and nothing else."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teachonce.data.dataset import EvalDataset
from teachonce.errors import RecordError
from teachonce.native import addresses, load_library
from teachonce.pixels.kernel import load_kernel
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.records.discovery import open_records
from teachonce.records.source import record_key
from teachonce.records.tfrecord.native_examples import FOUND, find_features
from teachonce.records.tfrecord.tf_example import (
    FeatureValue,
    decode_example,
    encode_example,
    encode_float_entries,
    replace_feature,
    splice_entry,
)
from teachonce.views.policy import CropPolicy, RandomErasing
from tests.support.paths import ROOT
from tests.support.small_data import build_dataset, example, write_shards, write_store

pytestmark = pytest.mark.skipif(load_library() is None, reason="the native library was not built")

IMAGE, LABEL, NAME, LOGITS = "image/encoded", "image/class/label", "image/filename", "image/logit"
KEYS = {"encoded_xxh3": "image/encoded_xxh3", "original_key": "image/original_key"}

images = st.binary(min_size=1, max_size=300)
labels = st.integers(0, 2000) | st.integers(-(2**63), 2**63 - 1)
others = st.dictionaries(
    st.text(max_size=8) | st.sampled_from(["image/height", "image/encode", "image/encodedd", "image/class/text"]),
    st.binary(max_size=20)
    | st.lists(st.integers(-5, 1 << 40), min_size=1, max_size=4)
    | st.lists(st.floats(width=32), max_size=4).map(lambda numbers: np.array(numbers, np.float32)),
    max_size=4,
)
records = st.builds(
    lambda image, label, optional, more: {**more, IMAGE: image, LABEL: label, **optional},
    images,
    labels,
    st.fixed_dictionaries(
        {},
        optional={
            NAME: st.binary(min_size=1, max_size=200),
            LOGITS: st.lists(st.floats(width=32), min_size=1, max_size=200).map(lambda n: np.array(n, np.float32)),
            **dict.fromkeys(KEYS.values(), labels),
        },
    ),
    others,
)
features = st.dictionaries(
    st.sampled_from([IMAGE, LABEL, NAME, LOGITS, *KEYS.values()]),
    images
    | st.lists(st.binary(max_size=9), min_size=1, max_size=2)
    | labels
    | st.lists(labels, max_size=2).map(lambda numbers: np.array(numbers, np.int64))
    | st.lists(st.floats(width=32), max_size=3).map(lambda numbers: np.array(numbers, np.float32)),
)


def find(payload: bytes, before: bytes = b"", behind: bytes = b"") -> Any:
    whole = memoryview(before + payload + behind)
    found = find_features([whole[len(before) : len(before) + len(payload)]])
    assert found is not None and found.dtype == FOUND
    return found[0]


def assert_same(payload: bytes, found: Any) -> None:
    """What was found is what ``decode_example`` reads; it then reads one image and one label, of their kinds."""
    assert found["status"] == 0 and found["has_label"] == 1
    read = decode_example(payload, (IMAGE, LABEL, NAME, LOGITS, *KEYS.values()))
    assert read[IMAGE] == [payload[slice(*found["image"])]]
    label = read[LABEL]
    assert isinstance(label, np.ndarray) and label.dtype == np.int64 and label.tolist() == [found["label"]]
    assert (NAME in read) == (found["filename"][1] != 0)
    assert read.get(NAME, [b""]) == [payload[slice(*found["filename"])]]
    for column, name in KEYS.items():
        assert (name in read) == found[f"has_{column}"]
        if name in read:
            key = read[name]
            assert isinstance(key, np.ndarray) and key.dtype == np.int64
            assert key.view(np.uint64).tolist() == [found[column]]
    logits = read.get(LOGITS)
    assert (logits is not None) == (found["logits"][1] != 0)
    if logits is not None:
        assert isinstance(logits, np.ndarray) and logits.dtype == np.float32
        assert logits.astype("<f4").tobytes() == payload[slice(*found["logits"])]


@given(records, st.binary(max_size=20), st.binary(max_size=20))
def test_records_are_found_wherever_they_lie(record: dict[str, FeatureValue], before: bytes, behind: bytes) -> None:
    payload = encode_example(record)
    assert_same(payload, find(payload, before, behind))


def length(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def field(number: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes([number << 3 | 2]) + length(len(body)) + body


def entry(name: str, *value: bytes) -> bytes:
    return field(1, field(1, name.encode()), field(2, *value))


ONE_IMAGE = entry(IMAGE, field(1, field(1, b"jpeg")))
ONE_LABEL = entry(LABEL, field(3, field(1, b"\x05")))


@pytest.mark.parametrize(
    ("entries", "is_found"),
    [
        ([ONE_IMAGE, ONE_LABEL], True),
        ([ONE_LABEL, ONE_IMAGE], True),
        ([ONE_IMAGE, entry(LABEL, field(3, b"\x08\x05"))], True),
        ([ONE_IMAGE, entry(LABEL, field(3, b"\x08" + b"\xff" * 9 + b"\x01"))], True),
        ([ONE_IMAGE, entry(LABEL, field(3, field(1, b"\x85\x80\x80\x00")))], True),
        ([ONE_IMAGE, ONE_LABEL, entry("x", b"\xff\xff")], True),
        ([ONE_IMAGE], False),
        ([ONE_LABEL], False),
        ([], False),
        ([ONE_IMAGE, ONE_LABEL, ONE_IMAGE], False),
        ([ONE_IMAGE, ONE_LABEL, ONE_LABEL], False),
        ([ONE_IMAGE, ONE_LABEL, *[entry(NAME, field(1, field(1, b"a")))] * 2], False),
        ([ONE_IMAGE, ONE_LABEL, *[entry(LOGITS, field(2, field(1, b"1234")))] * 2], False),
        ([ONE_IMAGE, ONE_LABEL, entry(LOGITS, field(2, b"\x0d1234"))], False),
        ([ONE_IMAGE, ONE_LABEL, entry(LOGITS, field(2, field(1, b"12345")))], False),
        ([ONE_IMAGE, ONE_LABEL, entry(LOGITS, field(2, field(1)))], False),
        ([ONE_IMAGE, entry(LABEL, field(3, field(1, b"\x05\x06")))], False),
        ([ONE_IMAGE, entry(LABEL, field(3, field(1)))], False),
        ([ONE_IMAGE, entry(LABEL, field(3, b"\x08\x05\x08\x06"))], False),
        ([ONE_IMAGE, entry(LABEL, field(3, field(1, b"\xff" * 11)))], False),
        ([ONE_IMAGE, entry(LABEL, field(1, field(1, b"5")))], False),
        ([entry(IMAGE, field(1, field(1, b"a"), field(1, b"b"))), ONE_LABEL], False),
        ([entry(IMAGE, field(1, field(1, b""))), ONE_LABEL], False),
        ([entry(IMAGE, field(2, field(1, b"1234"))), ONE_LABEL], False),
        ([entry(IMAGE, field(1, field(1, b"a")), field(1, field(1, b"b"))), ONE_LABEL], False),
        ([field(1, field(2, field(1, field(1, b"value first"))), field(1, IMAGE.encode())), ONE_LABEL], False),
        ([ONE_IMAGE, ONE_LABEL, b"\x10\x01"], False),
        ([ONE_IMAGE, ONE_LABEL, field(1, field(1, b"no value"))], False),
    ],
)
def test_layouts(entries: list[bytes], is_found: bool) -> None:
    payload = field(1, *entries)
    found = find(payload)
    assert (found["status"] == 0) == is_found
    if is_found:
        assert_same(payload, found)
    for longer in (payload + b"\x18\x07", field(1, *entries) * 2):
        assert find(longer)["status"] == 1, "more than the features"


def test_numbers_of_every_length() -> None:
    for label in (0, 1, 127, 128, 2**14, 2**31 - 1, 2**32, 2**56, 2**63 - 1, -1, -(2**63)):
        payload = encode_example({IMAGE: b"x" * 200, LABEL: label})
        found = find(payload)
        assert_same(payload, found)
        assert found["label"] == label


@given(features)
def test_other_kinds_and_counts(record: dict[str, FeatureValue]) -> None:
    payload = encode_example(record)
    found = find(payload)
    if found["status"] == 0:
        assert_same(payload, found)


@settings(max_examples=500)
@given(records, st.randoms(use_true_random=False), st.integers(1, 3))
def test_damaged_examples_are_left_or_the_same(record: dict[str, FeatureValue], random: Random, changes: int) -> None:
    payload = damage(encode_example(record), random, changes)
    found = find(payload, b"before", b"behind, which is not looked at")
    if found["status"] == 0:
        assert_same(payload, found)


def damage(payload: bytes, random: Random, changes: int) -> bytes:
    changed = bytearray(payload)
    for _ in range(changes):
        at = random.randrange(len(changed) + 1)
        kind = random.randrange(4)
        if kind == 0 and at < len(changed):
            changed[at] = random.choice([0, 1, 0x0A, 0x12, 0x1A, 0x7F, 0x80, 0xFF, random.randrange(256)])
        elif kind == 1:
            changed[at:at] = random.randbytes(random.choice([1, 2, 9]))
        elif kind == 2:
            del changed[at : at + random.choice([1, 2, 9])]
        elif kind == 3:
            del changed[at:]
    return bytes(changed)


@given(st.binary(max_size=80))
def test_random_bytes_are_no_record(payload: bytes) -> None:
    found = find(payload)
    if found["status"] == 0:
        assert_same(payload, found)


@pytest.mark.parametrize("at", range(1, 120, 7))
def test_truncated_examples_are_left(at: int) -> None:
    payload = encode_example({IMAGE: b"x" * 90, LABEL: 3, NAME: b"name"})
    assert len(payload) > 120
    assert find(payload[:at], behind=payload[at:])["status"] == 1
    with pytest.raises(RecordError):
        decode_example(payload[:at])


def test_many_at_once_and_none() -> None:
    payloads = [encode_example({IMAGE: bytes([n + 1]) * (n + 1), LABEL: n}) for n in range(40)]
    payloads[11] = b"text"
    found = find_features(payloads)
    assert found is not None
    assert np.flatnonzero(found["status"]).tolist() == [11]
    assert found["label"][[0, 10, 12, 39]].tolist() == [0, 10, 12, 39]
    assert [payloads[n][slice(*found["image"][n])] for n in (0, 39)] == [b"\1", b"\x28" * 40]
    empty = find_features([])
    assert empty is not None and len(empty) == 0


def test_addresses_are_those_of_the_bytes() -> None:
    buffers = [b"first", b"", b"with a \0 inside", b"x" * 1000]
    for address, buffer in zip(addresses(buffers).tolist(), buffers, strict=True):
        assert ctypes.string_at(address, len(buffer)) == buffer
    assert len(addresses([])) == 0


def describe_reading(data: Path, store: Path) -> list[str]:
    """Hashes of batches and evaluation pixels, and the records of a shard."""
    lines = []
    source = open_records(data, "train")
    policy = CropPolicy(erasing=RandomErasing(prob=0.5))
    for interpolation in ("bilinear", "bicubic", "lanczos"):
        dataset = build_dataset(source, size=20, store=store, policy=policy, interpolation=interpolation, seed=3)  # type: ignore[arg-type]
        for batch in dataset.batches(batch_size=5, epoch=1):
            lines += [f"{name} {record_key(values.numpy().tobytes())}" for name, values in sorted(batch.items())]
    evaluation = EvalDataset(source, Preprocessing(size_px=16, resize_px=19), dataset.class_space)
    pixels = evaluation.__getitems__([(index, 0) for index in range(source.num_records)])["pixels"]
    lines.append(f"evaluation {record_key(pixels.numpy().tobytes())}")
    return lines + [f"{record.key} {record.label} {record.filename} {record.where}" for record in source.iter_shard(1)]


def test_switched_off_everything_is_the_same(tmp_path: Path) -> None:
    payloads = [example(index, 1 + index % 3) for index in range(8)]
    payloads[2] = example(2, 3, filename=None)
    data = write_shards(tmp_path / "data", payloads=payloads)
    store = write_store(tmp_path / "store", data, codec="int8")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import pathlib, teachonce.pixels.kernel as kernel\n"
        "import tests.records.tfrecord.test_native_examples as test_native\n"
        "print(kernel.describe_decoder(), kernel.load_kernel(), test_native.load_library(), sep='\\n')\n"
        "print(*test_native.describe_reading(*map(pathlib.Path, sys.argv[2:])), sep='\\n')\n"
    )
    command = [sys.executable, "-c", code, str(ROOT), str(data), str(store.path)]
    environment = os.environ | {"TEACHONCE_NATIVE": "0"}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    assert output[:3] == ["pillow (switched off)", "None", "None"]
    assert load_kernel() is not None
    assert output[3:] == describe_reading(data, store.path)
    assert sum(line.startswith("pixels ") for line in output) == 6


@pytest.mark.parametrize("others", [(), ("a",), ("z",), ("a", "image/logit2", "image/lo", "z")])
@pytest.mark.parametrize("has_logits", [True, False])
def test_a_spliced_example_is_the_replaced_one(others: tuple[str, ...], has_logits: bool) -> None:
    features: dict[str, FeatureValue] = {IMAGE: b"bytes of an image" * 20, LABEL: 7}
    features |= {name: np.arange(3) for name in others}
    if has_logits:
        features["image/logit"] = np.arange(5, dtype=np.float32)
    payload = encode_example(features)
    found = find(payload)
    logits = np.linspace(-3, 3, 1001, dtype=np.float32)
    body, splice = found["body"].tolist(), found["splice"].tolist()
    spliced = b"".join(splice_entry(payload, body, splice, encode_float_entries("image/logit", logits[None])[0]))
    assert spliced == replace_feature(payload, "image/logit", logits)


def test_logits_that_a_sorted_map_has_elsewhere_are_left() -> None:
    first = encode_example({"image/logit": np.zeros(2, np.float32)})
    second = encode_example({IMAGE: b"image", "image/object/x": 1, LABEL: 1})
    # Of two messages one behind the other protobuf takes the union; of two maps in one message as well.
    payload = encode_map(entries_of(second) + entries_of(first))
    assert find(payload)["status"] == 1


def entries_of(payload: bytes) -> bytes:
    body = find_features([payload])["body"][0].tolist()  # type: ignore[index]
    return payload[slice(*body)]


def encode_map(entries: bytes) -> bytes:
    assert len(entries) < 128
    return bytes([0x0A, len(entries)]) + entries
