from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachonce.errors import RecordError
from teachonce.records.tfrecord import tf_example as example
from teachonce.records.tfrecord.tf_example import FeatureValue, decode_example, encode_example, replace_feature

# tf.train.Example of TensorFlow 2.21 with a = [b"xy", b""], b = [1, -1, 300], c = [1.0, -0.5], d = float list of none,
# SerializeToString(deterministic=True).
TENSORFLOW_BYTES = bytes.fromhex(
    "0a430a0d0a016112080a060a0278790a000a160a016212111a0f0a0d01ffffffffffffffffff01ac02"
    "0a110a0163120c120a0a080000803f000000bf0a070a016412021200"
)
FEATURES: dict[str, FeatureValue] = {
    "d": np.empty(0, np.float32),
    "c": np.array([1.0, -0.5], np.float32),
    "b": [1, -1, 300],
    "a": [b"xy", b""],
}

names = st.text(max_size=12) | st.sampled_from(["image/encoded", "image/class/label", "image/logit", "a" * 200])
values = st.one_of(
    st.lists(st.binary(max_size=200), min_size=1, max_size=3),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40).map(lambda numbers: np.array(numbers, np.int64)),
    st.lists(st.floats(width=32), max_size=40).map(lambda numbers: np.array(numbers, np.float32)),
)
examples = st.dictionaries(names, values, max_size=6)


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
        else:
            assert found[name] == value


def test_encodes_the_bytes_that_tensorflow_encodes() -> None:
    assert encode_example(FEATURES) == TENSORFLOW_BYTES


def test_decodes_tensorflows_bytes() -> None:
    found = decode_example(TENSORFLOW_BYTES)
    assert found["a"] == [b"xy", b""]
    assert found["b"].tolist() == [1, -1, 300]
    assert found["c"].tolist() == [1.0, -0.5]
    assert found["d"].tolist() == [] and found["d"].dtype == np.float32


def test_single_values_and_other_number_types() -> None:
    payload = encode_example({"s": b"text", "i": 7, "h": np.array([0.5], np.float64), "u": np.array([3], np.uint8)})
    found = decode_example(memoryview(payload))
    assert found["s"] == [b"text"] and found["i"].tolist() == [7]
    assert found["h"].dtype == np.float32 and found["u"].dtype == np.int64


@given(examples)
def test_round_trip(features: dict) -> None:
    payload = encode_example(features)
    assert_equal(decode_example(payload), features)
    assert_equal(decode_example(memoryview(payload), {"image/encoded"}), {
        name: value for name, value in features.items() if name == "image/encoded"
    })  # fmt: skip


@given(examples, names, values)
def test_replacing_equals_encoding_again(features: dict, name: str, value: FeatureValue) -> None:
    assert replace_feature(encode_example(features), name, value) == encode_example({**features, name: value})


def has_nan(features: dict) -> bool:
    return any(np.isnan(value).any() for value in features.values() if isinstance(value, np.ndarray))


@given(examples)
def test_equals_protobuf(tensorflow: Any, features: dict) -> None:
    theirs = tensorflow.train.Example()
    theirs.features.SetInParent()
    for name, value in features.items():
        feature = theirs.features.feature[name]
        if isinstance(value, list):
            feature.bytes_list.value.extend(value)
        elif value.dtype == np.float32:
            feature.float_list.SetInParent()
            feature.float_list.value.extend(value.tolist())
        else:
            feature.int64_list.SetInParent()
            feature.int64_list.value.extend(value.tolist())
    assert tensorflow.train.Example.FromString(encode_example(features)) == theirs or has_nan(features)
    # protobuf's Python sorts a name after the names that it begins; the schema of records has no such pair.
    if not any(other.startswith(name) and other != name for name in features for other in features):
        assert encode_example(features) == theirs.SerializeToString(deterministic=True)
    assert_equal(decode_example(theirs.SerializeToString()), features)


def field(number: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    assert len(body) < 128
    return bytes([number << 3 | 2, len(body)]) + body


def long_field(number: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes([number << 3 | 2, len(body) | 0x80, 0]) + body


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        pytest.param(field(1, field(1, field(2, field(3, field(1, b"\x05"))), field(1, b"k"))), [5], id="value first"),
        pytest.param(field(1, field(1, field(1, b"k"), field(2, field(3, b"\x08\x05\x08\x06")))), [5, 6], id="loose"),
        pytest.param(
            field(1, field(1, field(1, b"k"), field(2, field(3, b"\x08\x05", field(1, b"\x06"))))), [5, 6], id="mixed"
        ),
        pytest.param(
            field(1, field(1, field(1, b"k"), field(2, field(2, b"\x0d\x00\x00\x80?")))), [1.0], id="unpacked float"
        ),
        pytest.param(
            field(1, field(1, field(1, b"k"), field(2, field(3, field(1, b"\x05"))))) * 2, [5], id="doubled: the last"
        ),
        pytest.param(
            field(1, field(1, field(1, b"k"), field(2, field(3, b"\x08\x05")), field(2, field(3, b"\x08\x06")))),
            [5, 6],
            id="value in two parts",
        ),
        pytest.param(
            field(1, field(1, field(1, b"k"), field(2, field(1, field(1, b"x")), field(3, b"\x08\x06")))),
            [6],
            id="another kind replaces",
        ),
        pytest.param(
            b"\x18\x07" + field(1, b"\x10\x01", field(1, field(1, b"k"), field(2, field(3, b"\x08\x05")))),
            [5],
            id="unknown fields",
        ),
        pytest.param(field(1, field(1, field(1, b"k"))), [], id="no value"),
        pytest.param(long_field(1), None, id="no entries"),
        pytest.param(
            long_field(1, long_field(1, long_field(1, b"k"), long_field(2, long_field(3, long_field(1, b"\x05"))))),
            [5],
            id="lengths of two bytes",
        ),
        pytest.param(
            field(1, field(1, field(1, b"k"), long_field(2, field(3, long_field(1, b"\x05"))))), [5], id="some of two"
        ),
    ],
)  # fmt: skip
def test_other_layouts_that_protobuf_allows(tensorflow: Any, payload: bytes, expected: list | None) -> None:
    found = decode_example(payload)
    assert ({} if expected is None else {"k": expected}) == {name: list(value) for name, value in found.items()}
    theirs = tensorflow.train.Example.FromString(payload).features.feature
    assert set(theirs) == set(found)
    for name, feature in theirs.items():
        kind = feature.WhichOneof("kind")
        assert list(getattr(feature, kind).value if kind else []) == list(found[name])


@given(examples, st.randoms())
def test_the_fast_walk_equals_the_plain_one(features: dict, random: Random) -> None:
    entries = []
    for name, value in features.items():
        payload = encode_example({name: value})
        ((_, _, start, end),) = example._fields(memoryview(payload), 0, len(payload))
        entries.append(payload[start:end])
    random.shuffle(entries)
    view = memoryview(b"".join(entries))
    plain = []
    position = 0
    while position < len(view):
        walk = example._next_entry(view, position, len(view))
        try:
            while True:
                plain.append(next(walk))
        except StopIteration as end:
            position = end.value
    assert list(example._map_entries(view, 0, len(view))) == plain


@given(st.binary(max_size=60) | st.tuples(examples, st.integers(0, 400), st.binary(min_size=1, max_size=3)).map(
    lambda drawn: (payload := encode_example(drawn[0]))[: drawn[1]] + drawn[2] + payload[drawn[1] + len(drawn[2]) :]
))  # fmt: skip
def test_damaged_bytes_are_a_record_error_or_an_example(payload: bytes) -> None:
    try:
        features = decode_example(payload)
    except RecordError as error:
        assert "not a tf.train.Example" in str(error)
    else:
        assert all(isinstance(name, str) for name in features)


@pytest.mark.parametrize(
    "payload", [b"not an example at all", TENSORFLOW_BYTES[:-1], TENSORFLOW_BYTES[:30], b"\xff" * 11]
)
def test_what_is_no_example_is_refused(payload: bytes) -> None:
    with pytest.raises(RecordError, match=r"not a tf\.train\.Example"):
        decode_example(payload)
