"""Codecs: the stated bound holds, exact where exact is promised, and the softened targets stay within 0.01."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from teachonce.codecs.dense import Float16Codec, Float32Codec, Int8Codec
from teachonce.codecs.registry import CODECS, build_codec, codec_from_json, warn_of_estimates
from teachonce.errors import ConfigError, LogitsError, StoreError

LOGITS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
    elements=st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1.0, -65504.0, 1e-30]),
)


def softmax(logits, temperature):
    scaled = logits.astype(np.float64) / temperature
    exp = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def total_variation(a, b, temperature):
    return 0.5 * np.abs(softmax(a, temperature) - softmax(b, temperature)).sum(axis=1)


@pytest.mark.parametrize("codec", [Float32Codec(), Float16Codec(), Int8Codec(), Int8Codec(power=1.0)], ids=repr)
@settings(deadline=None, max_examples=200)
@given(logits=LOGITS)
def test_round_trip_stays_within_the_stated_bound(codec, logits):
    columns = codec.encode_logits(logits)
    decoded = codec.decode_logits(columns)
    assert decoded.dtype == np.float32 and decoded.shape == logits.shape
    error = np.abs(decoded.astype(np.float64) - logits)
    assert (error <= codec.error_bound(columns)).all(), (error - codec.error_bound(columns)).max()


@settings(deadline=None, max_examples=100)
@given(logits=LOGITS)
def test_the_likeliest_class_is_exact_in_every_codec(logits):
    for codec in (Float32Codec(), Float16Codec(), Int8Codec()):
        decoded = codec.decode_logits(codec.encode_logits(logits))
        row = np.arange(len(logits))
        top = logits.argmax(axis=1)
        assert (decoded[row, top] == logits[row, top]).all()


def test_float32_is_exact_and_int8_has_known_bytes():
    logits = np.array([[0.0, -1.0, -4.0, -8.0]], np.float32)
    assert (Float32Codec().encode_logits(logits)["logits"] == logits).all()
    columns = Int8Codec().encode_logits(logits)
    # (distance / 8) ** (1 / 1.5) * 254 = 0, 63.5, 160.01, 254
    assert columns["codes"].tolist() == [[0, 64, 160, 254]]
    assert columns["max_logit"].tolist() == [0.0] and columns["range"].tolist() == columns["far"].tolist() == [8.0]
    assert columns["codes"].dtype == np.uint8 and columns["range"].dtype == np.float32


def test_int8_takes_one_byte_a_class_and_twelve_a_row():
    columns = Int8Codec().encode_logits(np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32))
    assert sum(values.nbytes for values in columns.values()) == 3 * 1012


@pytest.mark.parametrize("spread, peak", [(1.0, 8.0), (1.0, 14.0), (3.0, 20.0), (3.0, 60.0), (6.0, 90.0)])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_int8_total_variation_is_below_one_percent(spread, peak, temperature):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, spread, (200, 1000)).astype(np.float32)
    logits[np.arange(200), rng.integers(0, 1000, 200)] += rng.uniform(0, peak, 200).astype(np.float32)
    codec = Int8Codec()
    decoded = codec.decode_logits(codec.encode_logits(logits))
    assert total_variation(logits, decoded, temperature).max() < 0.01


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("num_far", [1, 10, 500])
@pytest.mark.parametrize("outlier", [-87.3, -1e4, -3e38])
def test_outliers_do_not_cost_the_likely_classes(outlier, num_far, temperature):
    """A class of probability 0 (its logarithm clamped), masked classes: they must not stretch the scale."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (100, 1000)).astype(np.float32)
    logits[np.arange(100), rng.integers(0, 400, 100)] += 8
    logits[:, 1000 - num_far :] = outlier
    codec = Int8Codec()
    columns = codec.encode_logits(logits)
    decoded = codec.decode_logits(columns)
    assert total_variation(logits, decoded, temperature).max() < 0.01
    assert (np.abs(decoded.astype(np.float64) - logits) <= codec.error_bound(columns)).all()


def test_an_over_confident_teacher_keeps_its_dark_knowledge_at_high_temperatures():
    """All but one class have no mass at T = 4, and are still told apart at T = 8."""
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 3, (100, 1000)).astype(np.float32)
    logits[np.arange(100), rng.integers(0, 1000, 100)] += 90
    codec = Int8Codec()
    decoded = codec.decode_logits(codec.encode_logits(logits))
    for temperature in (8.0, 16.0):
        assert total_variation(logits, decoded, temperature).max() < 0.03


def test_a_row_that_int8_cannot_hold_is_refused():
    # Two crowds far apart and both heavy at T = 4: no range serves both.
    logits = np.concatenate([np.linspace(0, -3, 300), np.linspace(-27, -60, 50_000)])[None].astype(np.float32)
    with pytest.raises(LogitsError, match=r"row 0: int8 would change their softmax by .* use --codec float16"):
        Int8Codec(power=1.0).encode_logits(np.concatenate([logits, logits - 200], axis=1))


@pytest.mark.parametrize("codec", [Float32Codec(), Float16Codec(), Int8Codec()], ids=repr)
def test_the_temperature_of_reading_changes_no_dense_logit(codec):
    columns = codec.encode_logits(np.random.default_rng(5).normal(0, 3, (4, 30)).astype(np.float32))
    np.testing.assert_array_equal(codec.decode_logits(columns, temperature=4.0), codec.decode_logits(columns))


@pytest.mark.parametrize("codec", [Float32Codec(), Float16Codec(), Int8Codec()], ids=repr)
def test_comparison_is_logit_by_logit(codec):
    logits = np.random.default_rng(6).normal(0, 3, (4, 30)).astype(np.float32)
    columns = codec.encode_logits(logits)
    fresh = logits.copy()
    fresh[2, 7] += 1.0
    tolerance = np.array([0.0, 0.1, 0.2, 0.3])
    errors, allowed = codec.compare_logits(columns, fresh, tolerance)
    np.testing.assert_array_equal(allowed, codec.error_bound(columns) + tolerance[:, None])
    np.testing.assert_array_equal(errors, np.abs(fresh.astype(np.float64) - codec.decode_logits(columns)))
    assert np.argwhere(errors > allowed).tolist() == [[2, 7]]


@pytest.mark.parametrize("codec", [Float32Codec(), Float16Codec(), Int8Codec()], ids=repr)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_with_its_position(codec, bad):
    logits = np.zeros((3, 5), np.float32)
    logits[2, 4] = bad
    with pytest.raises(LogitsError, match=r"class 4 in row 2"):
        codec.encode_logits(logits)


@pytest.mark.parametrize("codec", [Float16Codec(), Int8Codec()], ids=repr)
def test_edges_all_equal_one_class_and_extremes(codec):
    for logits in (
        np.full((2, 7), 3.25, np.float32),
        np.array([[5.0]], np.float32),
        np.array([[0.0, -3e38]], np.float32),
        np.array([[3e38, -3e38]], np.float32),
    ):
        decoded = codec.decode_logits(codec.encode_logits(logits))
        assert np.isfinite(decoded).all()
        assert (decoded.argmax(axis=1) == logits.argmax(axis=1)).all()


def test_json_is_the_codec():
    for name in CODECS:
        codec = build_codec(name, num_classes=7)
        assert codec_from_json(codec.to_json()) == codec
        assert codec.to_json()["name"] == name
    with pytest.raises(ConfigError, match="'int3' is not known; known: float32, float16, int8, topk"):
        build_codec("int3", num_classes=7)
    with pytest.raises(StoreError, match="newer teachonce"):
        codec_from_json({"name": "int3"})
    with pytest.raises(StoreError, match="parameters"):
        codec_from_json({"name": "int8", "bits": 3})


def test_estimates_that_leave_a_store_are_said():
    with pytest.warns(UserWarning, match="out: codec topk kept 2 of 5 classes; the others get one estimated logit"):
        warn_of_estimates(build_codec("topk", num_classes=5, k=2), "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_estimates(build_codec("topk", num_classes=5, k=5), "out")
        warn_of_estimates(build_codec("int8", num_classes=5), "out")
