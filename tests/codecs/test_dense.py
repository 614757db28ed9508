"""Codecs: the stated bound holds, exact where exact is promised, and the softened targets stay within 0.01."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from teachonce.codecs.dense import Float16Codec, Float32Codec, Int8Codec
from teachonce.codecs.registry import CODECS, build_codec, codec_from_json, warn_of_estimates
from teachonce.codecs.topk import TopKCodec
from teachonce.errors import ConfigError, LogitsError, StoreError

SPECIAL = [0.0, 1.0, -65504.0, 1e-30]


@st.composite
def wide_logits(draw: st.DrawFn) -> np.ndarray:
    """More rows and classes than are drawn one by one, which takes its time."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    # No wider, beside what is far outside: int8 with power 1 refuses what needs both fine steps and a long range.
    scale = draw(st.sampled_from([1e-30, 1e-3, 1.0]))
    return np.where(rng.random(shape) < 0.2, rng.choice(SPECIAL, shape), rng.uniform(-scale, scale, shape)).astype("f4")


LOGITS = (
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
        elements=st.floats(-1e4, 1e4, width=32) | st.sampled_from(SPECIAL),
    )
    | wide_logits()
)


def softmax(logits, temperature):
    scaled = logits.astype(np.float64) / temperature
    exp = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def total_variation(a, b, temperature):
    return 0.5 * np.abs(softmax(a, temperature) - softmax(b, temperature)).sum(axis=1)


# In the tests of drawn logits each example is for every codec: drawing takes longer than what is tested.
@settings(deadline=None, max_examples=200)
@given(logits=LOGITS)
def test_round_trip_stays_within_the_stated_bound(logits):
    for codec in (Float32Codec(), Float16Codec(), Int8Codec(), Int8Codec(power=1.0)):
        columns = codec.encode_logits(logits)
        decoded = codec.decode_logits(columns)
        assert decoded.dtype == np.float32 and decoded.shape == logits.shape, codec
        error = np.abs(decoded.astype(np.float64) - logits)
        assert (error <= codec.error_bound(columns)).all(), (codec, (error - codec.error_bound(columns)).max())


@pytest.mark.parametrize("power", [1.0, 1.5])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1000), (70, 3), (4, 256)])
def test_int8_by_table_is_the_arithmetic_of_each_class(power, shape):
    rng = np.random.default_rng(0)
    max_logit, row_range, far = rng.normal(0, 1e3, (3, shape[0])).astype(np.float32)
    codes = rng.integers(0, 256, shape).astype(np.uint8)
    codec = Int8Codec(power=power)
    distances = np.append((np.arange(255) / 254) ** power, 0.0).astype(np.float32)[codes] * row_range[:, None]
    expected = max_logit[:, None] - np.where(codes == 255, far[:, None], distances)
    columns = {"codes": codes, "max_logit": max_logit, "range": row_range, "far": far}
    for _ in range(2):  # what is kept from the first time is the same
        assert codec.decode_logits(columns).tobytes() == expected.tobytes()
        decoded = codec.decode_tensor({name: torch.from_numpy(values) for name, values in columns.items()})
        assert decoded.numpy().tobytes() == expected.tobytes()


@settings(deadline=None, max_examples=100)
@given(logits=LOGITS)
def test_the_likeliest_class_is_exact_in_every_codec(logits):
    for codec in (Float32Codec(), Float16Codec(), Int8Codec()):
        decoded = codec.decode_logits(codec.encode_logits(logits))
        row = np.arange(len(logits))
        top = logits.argmax(axis=1)
        assert (decoded[row, top] == logits[row, top]).all()


@st.composite
def near_ties(draw: st.DrawFn) -> np.ndarray:
    """Rows with a few classes some steps of float32 below the largest, and others anywhere, at any magnitude."""
    shape = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    magnitude = draw(st.sampled_from([0.0, 1e-44, 1e-30, 1e-6, 0.25, 0.5, 1.0, 10.0, 8192.0, 1e6, 1e11, 3e37]))
    spread = draw(st.sampled_from([0.0, 1e-40, 1e-7, 1e-3, 1.0, 20.0, 1e3, 1e30]))
    top = np.float32(draw(st.floats(-1, 1, width=32)) * magnitude)
    max_steps, near_frac = draw(st.sampled_from([0, 1, 4, 40])), draw(st.sampled_from([0.2, 0.5, 0.9]))
    # The elements by a seed: drawn one by one they take ten times as long as all codecs.
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    unit = np.where(rng.random(shape) < 0.3, rng.choice([0.0, 1e-45, 2**-24, 0.5, 1.0], shape), rng.random(shape))
    far = top - unit.astype(np.float32) * np.float32(spread)
    steps = rng.integers(0, max_steps + 1, shape)
    rows = np.full(shape, top)
    for step in range(max_steps):
        rows = np.where(step < steps, np.nextafter(rows, np.float32(-np.inf)), rows)
    rows = np.where(rng.random(shape) < near_frac, rows, far)
    assert rows.dtype == np.float32
    return rows


def check_the_likeliest(codec, logits):
    """Which class is the likeliest, and that nothing ties with it that did not before."""
    try:
        columns = codec.encode_logits(logits)
    except LogitsError as error:
        is_too_large = isinstance(codec, Float16Codec) and np.abs(logits).max() > 1e11
        # The first step of power 1 is 16 times that of 1.5.
        assert is_too_large or codec == Int8Codec(power=1.0), error
        return None
    decoded = codec.decode_logits(columns)
    on_device = codec.decode_tensor({name: torch.from_numpy(values) for name, values in columns.items()}).numpy()
    for found in (decoded, on_device):
        np.testing.assert_array_equal(found.argmax(axis=1), logits.argmax(axis=1), err_msg=repr(codec))
        is_largest = logits == logits.max(axis=1, keepdims=True)
        np.testing.assert_array_equal(found == found.max(axis=1, keepdims=True), is_largest, err_msg=repr(codec))
    error = np.abs(decoded.astype(np.float64) - logits)
    assert (error <= codec.error_bound(columns)).all(), (codec, (error - codec.error_bound(columns)).max())
    return columns


@settings(deadline=None, max_examples=400)
@given(logits=near_ties() | LOGITS)
def test_near_ties_stay_apart(logits):
    for codec in (Float16Codec(), Int8Codec(), Int8Codec(power=1.0)):
        check_the_likeliest(codec, logits)


@pytest.mark.parametrize("codec", [Float16Codec(), Int8Codec()], ids=repr)
def test_a_near_tie_is_not_turned_round(codec):
    ulp = np.float32(2**-24)
    rows = [
        [0, 0.0016, -20, -1],
        [np.float32(0.5) - ulp / 2, 0.5, -20, -1],  # 2^-25: half of the least distance of float16
        [np.float32(1) - ulp, 1, 1, -65504],
        [0, 1e-45, -1e-3, -1e-3],
        [-1e-30, 0, -20, -1],
        [3, np.nextafter(np.float32(3), np.float32(4)), -3e38, -87],
        [8192 - 2**-11, 8192, 8190, 8000],
        [0, 0, 0, 0],
    ]
    columns = check_the_likeliest(codec, np.array(rows, np.float32))
    assert columns is not None


def test_a_near_tie_takes_the_first_step_and_nothing_else_changes():
    """Columns and their meaning are those of every store: code 1, or the least float16."""
    logits = np.array([[0, 0.0016, -20, -1]], np.float32)
    int8 = Int8Codec().encode_logits(logits)
    assert int8["codes"][0].tolist() == [1, 0, 254, 35] and int8["range"][0] == np.float32(20.0016)
    half = Float16Codec().encode_logits(np.array([[0.5 - 2**-25, 0.5, -1]], np.float32))
    assert half["distances"][0].tolist() == [2**-24, 0, 1.5]
    assert Float16Codec().encode_logits(logits)["distances"][0, 0] == np.float16(0.0016)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 999), spread=st.sampled_from([0.1, 3.0, 15.0]), temperature=st.sampled_from([0.5, 1, 4, 16, 64])
)
def test_the_total_variation_is_within_its_bound(seed, spread, temperature):
    logits = np.random.default_rng(seed).normal(0, spread, (8, 400)).astype(np.float32)
    for codec in (Float32Codec(), Float16Codec(), Int8Codec()):
        columns = codec.encode_logits(logits)
        bound = codec.variation_bound(columns, temperature)
        found = total_variation(logits, codec.decode_logits(columns, temperature), temperature)
        assert bound.shape == (8,) and (found <= bound + 1e-12).all() and (bound <= 1).all(), codec
        if codec.promised_temperatures is None:
            assert bound.max() < 0.05, codec  # a bound that says something


def test_no_bound_where_a_class_has_none():
    columns = TopKCodec(k=2, num_classes=5).encode_logits(np.arange(10, dtype=np.float32).reshape(2, 5))
    assert TopKCodec(k=2, num_classes=5).variation_bound(columns, 1.0).tolist() == [1.0, 1.0]


def test_float16_refuses_what_it_cannot_tell_apart():
    logits = np.array([[0, 1, 2], [-3e38, 3e38, 1e38]], np.float32)
    with pytest.raises(LogitsError, match=r"row 1: the largest is 3e\+38, too large for float16 .*use --codec float32"):
        Float16Codec().encode_logits(logits)
    equal = np.full((2, 3), 3e38, np.float32)
    np.testing.assert_array_equal(Float16Codec().decode_logits(Float16Codec().encode_logits(equal)), equal)


def test_many_near_ties_do_not_cost_the_total_variation():
    """The worst case: half of the mass is at 0, the other half just below, and all of it is moved by a whole step."""
    logits = np.zeros((3, 1000), np.float32)
    logits[:, 500:] = -1e-6
    logits[0, 900:], logits[1, 900:], logits[2, 990:] = -300, -60, -1e4
    codec = Int8Codec()
    decoded = codec.decode_logits(codec.encode_logits(logits))
    for temperature in (1.0, 2.0, 4.0):
        assert total_variation(logits, decoded, temperature).max() < 0.01


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
        np.array([[2e9, -3e38]], np.float32),
        *([] if isinstance(codec, Float16Codec) else [np.array([[3e38, -3e38]], np.float32)]),
    ):
        decoded = codec.decode_logits(codec.encode_logits(logits))
        assert np.isfinite(decoded).all()
        assert (decoded.argmax(axis=1) == logits.argmax(axis=1)).all()


def test_json_is_the_codec():
    for name in CODECS:
        codec = build_codec(name, num_classes=7)
        assert codec_from_json(codec.to_json()) == codec
        assert codec.to_json()["name"] == name
    with pytest.raises(ConfigError, match="unknown codec 'int3'; known codecs: float32, float16, int8, topk"):
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


@pytest.mark.parametrize("codec", [Float32Codec(), Float16Codec(), Int8Codec()], ids=repr)
@pytest.mark.parametrize("give", [np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2], np.float64, list])
def test_the_layout_of_the_array_changes_nothing(codec, give):
    """As of ``logits[:, class_indices]``, which NumPy lays out by column: near ties stay apart in it too."""
    logits = np.array([[1e-10, 0, -40], [1, 2, 3]], np.float32)
    wanted = codec.encode_logits(logits)
    for name, values in codec.encode_logits(give(logits)).items():
        np.testing.assert_array_equal(values, wanted[name])
    assert codec.decode_logits(wanted).argmax(axis=1).tolist() == [0, 2]


def test_a_power_that_would_lose_near_ties_is_none():
    with pytest.raises(StoreError, match="power"):
        codec_from_json({"name": "int8", "power": 3.0})


def test_two_zeros_that_are_largest_are_no_damage():
    """Of 0.0 and -0.0 the distance may be -0.0, which older versions wrote."""
    codec = Float16Codec()
    for row in ([0.0, -0.0, -1.0], [-0.0, 0.0, -1.0]):
        columns = codec.encode_logits(np.array([row], np.float32))
        assert not np.signbit(columns["distances"]).any()
        codec.check_values(columns)
    columns["distances"][0, 0] = -0.0
    codec.check_values(columns)
    columns["distances"][0, 0] = -1.0
    with pytest.raises(StoreError, match="row 0: distances"):
        codec.check_values(columns)
