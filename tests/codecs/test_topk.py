"""The sparse codec: known bytes, the stated bounds, and a tail that has its mass at its temperatures."""

import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from teachonce.codecs.registry import build_codec, codec_from_json
from teachonce.codecs.topk import MAX_DISTANCE, TAIL_TEMPERATURES, TopKCodec
from teachonce.errors import ConfigError, LogitsError, StoreError
from tests.support.paths import DOCS

LOGITS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
    elements=st.floats(-1e4, 1e4, width=32)
    | st.floats(-8, 8, width=16)
    | st.sampled_from([0.0, 1.0, -65504.0, 1e-30, 3e38, -3e38]),
)


def softmax(logits, temperature):
    scaled = logits.astype(np.float64) / temperature
    exp = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def total_variation(a, b):
    return 0.5 * np.abs(a - b).sum(axis=1)


def teacher_like_logits(num_rows, num_classes, spread=3.0, peak=14.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (num_rows, num_classes)).astype(np.float32)
    logits[np.arange(num_rows), rng.integers(0, num_classes, num_rows)] += rng.uniform(0, peak, num_rows)
    return logits


def tail_mass(probs, columns):
    kept = np.take_along_axis(probs, columns["indices"].astype(np.intp), axis=1)
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, rtol=1e-12)
    probs = probs.copy()
    np.put_along_axis(probs, columns["indices"].astype(np.intp), 0.0, axis=1)
    assert kept.min() >= 0
    return probs.sum(axis=1)


def check_round_trip(codec, logits):
    """What must hold for any finite logits."""
    columns = codec.encode_logits(logits)
    for temperature in (0.5, 1.0, 1.7, 4.0, 100.0):
        decoded = codec.decode_logits(columns, temperature)
        assert decoded.dtype == np.float32 and decoded.shape == logits.shape and np.isfinite(decoded).all()
        assert (decoded.argmax(axis=1) == logits.argmax(axis=1)).all()
        kept = np.take_along_axis(decoded, columns["indices"].astype(np.intp), axis=1)
        assert (kept[:, 0] == 0).all() and (np.diff(kept, axis=1) <= 0).all()
        if codec.num_tail:
            masked = decoded.copy()
            np.put_along_axis(masked, columns["indices"].astype(np.intp), -np.inf, axis=1)
            assert (masked.max(axis=1) <= kept[:, -1]).all()
        np.testing.assert_allclose(softmax(decoded, temperature).sum(axis=1), 1.0, rtol=1e-12)
    by_value = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, : codec.num_kept]
    np.testing.assert_array_equal(columns["indices"], by_value)
    error = np.abs(decoded - (logits.astype(np.float64) - logits.max(axis=1, keepdims=True)))
    bound = codec.error_bound(columns)
    assert (error <= bound).all(), (error - bound).max()
    assert np.isinf(bound).sum() >= len(logits) * codec.num_tail
    assert np.isfinite(bound).sum(axis=1).min() >= 1  # the likeliest class at least
    errors, allowed = codec.compare_logits(columns, logits, np.zeros(len(logits)))
    assert errors.shape == allowed.shape == (len(logits), codec.num_kept + (5 if codec.num_tail else 0))
    assert (errors <= allowed).all(), (errors - allowed).max()
    return columns


def test_a_row_has_known_bytes():
    # Two kept; the tail is three equal logits, so it is exact at every temperature and nothing drops.
    logits = np.array([[-4.0, 1.0, -4.0, 2.0, -4.0]], np.float32)
    columns = TopKCodec(k=2, num_classes=5).encode_logits(logits)
    assert {name: values.tolist() for name, values in columns.items()} == {
        "indices": [[3, 1]],
        "codes": [[0, 104]],  # sqrt(1 / 6) * 255 = 104.1
        "range": [6.0],
        "drops": [[0, 0, 0]],
    }
    assert b"".join(values.tobytes() for values in columns.values()).hex() == "0300010000680046000000"
    decoded = TopKCodec(k=2, num_classes=5).decode_logits(columns)
    np.testing.assert_array_equal(decoded, np.array([[-6, -6 * (104 / 255) ** 2, -6, 0, -6]], np.float32))


def test_a_tail_that_softens_has_known_bytes():
    # One kept; tail logits 0 and -12 beside it: T log((1 + e^(-12 / T)) / 2) at T = 1, 2, 4, 8, so that the tail lies
    # 5.6931, 6.3813, 7.5782 and 8.9339 below the likeliest class.
    logits = np.array([[0.0, 5.0, -12.0]], np.float32)
    falls = [-temperature * np.log((1 + np.exp(-12 / temperature)) / 2) for temperature in (1, 2, 4, 8)]
    columns = TopKCodec(k=1, num_classes=3).encode_logits(logits)
    assert columns["range"].tolist() == [float(np.float16(5 + falls[0]))] == [5.69140625]
    # In steps of T log(2) / 255: (6.3813 - 5.6914) / 0.002718 = 253.8, (7.5782 - 6.3818) / 0.005437 = 220.1,
    # (8.9339 - 7.5779) / 0.010873 = 124.7. 255 would be a tail that is all one class.
    assert columns["drops"].tolist() == [[254, 220, 125]]
    tail = {temperature: 5 + fall for temperature, fall in zip((1, 2, 4, 8), falls, strict=True)}
    for temperature, distance in tail.items():
        # Half a step at T = 8 is 4 log(2) / 255 / 2 = 0.0054.
        decoded = TopKCodec(k=1, num_classes=3).decode_logits(columns, temperature)[0]
        np.testing.assert_allclose(decoded, [-distance, 0, -distance], atol=0.006)


def test_between_two_temperatures_the_tail_is_linear_in_their_root():
    codec = TopKCodec(k=1, num_classes=3)
    columns = codec.encode_logits(np.array([[0.0, 5.0, -12.0]], np.float32))
    at = {t: float(codec.decode_logits(columns, t)[0, 0]) for t in (0.5, 1, 2, 2.56, 4, 8, 1e12)}
    # 2.56^-1/2 = 0.625 lies between 2^-1/2 = 0.7071 and 4^-1/2 = 0.5.
    share = (0.625 - 0.5) / (0.5**0.5 - 0.5)
    assert at[2.56] == pytest.approx(share * at[2] + (1 - share) * at[4], abs=1e-5)
    assert at[1e12] == pytest.approx(2 * at[8] - at[4], abs=1e-4)
    assert at[0.5] == at[1]


@pytest.mark.parametrize(
    "num_classes, k, num_bytes",
    [(1000, 10, 35), (1000, 50, 155), (10, 10, 35), (10, 20, 35), (65_536, 10, 35), (65_537, 10, 55)],
)
def test_bytes_of_a_row(num_classes, k, num_bytes):
    columns = TopKCodec(k=k, num_classes=num_classes).encode_logits(teacher_like_logits(3, num_classes))
    assert sum(values.nbytes for values in columns.values()) == 3 * num_bytes


@given(logits=LOGITS, k=st.integers(1, 45))
def test_round_trip_stays_within_the_stated_bound(logits, k):
    check_round_trip(TopKCodec(k=k, num_classes=logits.shape[1]), logits)


@pytest.mark.parametrize("num_classes", [22_000, 70_000])
def test_many_classes(num_classes):
    logits = teacher_like_logits(20, num_classes)
    logits[:, -1] = 40.0  # an index that float16 and int16 cannot hold
    logits[3] = -2.5
    logits[4, 100:] = -1e4
    columns = check_round_trip(TopKCodec(k=10, num_classes=num_classes), logits)
    assert columns["indices"][:3, 0].tolist() == [num_classes - 1] * 3
    assert columns["indices"].dtype == (np.uint16 if num_classes == 22_000 else np.uint32)


def test_equal_logits_go_by_class_index():
    logits = np.zeros((2, 500), np.float32)
    logits[1, [400, 30, 7]] = 1.0
    columns = check_round_trip(TopKCodec(k=5, num_classes=500), logits)
    assert columns["indices"].tolist() == [[0, 1, 2, 3, 4], [7, 30, 400, 0, 1]]
    decoded = TopKCodec(k=5, num_classes=500).decode_logits(columns)
    assert (decoded[0] == 0).all()


def test_a_constant_of_the_row_changes_nothing():
    logits = np.round(teacher_like_logits(50, 300) * 64) / 64  # so that adding 16 is exact
    codec = TopKCodec(k=10, num_classes=300)
    shifted = codec.encode_logits(logits + 16)
    for name, values in codec.encode_logits(logits).items():
        np.testing.assert_array_equal(values, shifted[name])


def test_rows_do_not_depend_on_their_neighbors():
    """Rows are worked on in blocks (262 of 1000 classes); a row's bytes must not depend on its block."""
    logits = teacher_like_logits(600, 1000)
    codec = TopKCodec(k=10, num_classes=1000)
    whole = codec.encode_logits(logits)
    for row in (0, 261, 262, 599):
        for name, values in codec.encode_logits(logits[row : row + 1]).items():
            np.testing.assert_array_equal(values, whole[name][row : row + 1])
    assert all(len(values) == 0 for values in codec.encode_logits(logits[:0]).values())


@pytest.mark.parametrize("k", [1, 2, 10, 50])
@pytest.mark.parametrize("spread, peak", [(1.0, 8.0), (3.0, 14.0), (3.0, 40.0), (6.0, 30.0)])
def test_the_tail_has_its_mass_where_it_is_fitted(spread, peak, k):
    """At T = 1, 2, 4, 8.

    The log-odds m of the tail are off by at most half a step of the tail's logit, log(n) / 255 / 4 = 0.0068 after the
    division by T, by float16's half unit (2^-11 of the range, at most 30 in these rows after T: 0.015), and by what the
    kept classes' codes change in their sum; a probability changes by at most a quarter of that.
    """
    logits = teacher_like_logits(200, 1000, spread, peak)
    codec = TopKCodec(k=k, num_classes=1000)
    columns = codec.encode_logits(logits)
    for temperature in (1.0, 2.0, 4.0, 8.0):
        dense = tail_mass(softmax(logits, temperature), columns)
        stored = tail_mass(softmax(codec.decode_logits(columns, temperature), temperature), columns)
        assert np.abs(dense - stored).max() < 0.008
        # Relative to a small mass too: it is a number of its own, not one minus a rounded sum.
        np.testing.assert_allclose(stored, dense, rtol=0.035, atol=1e-30)


@pytest.mark.parametrize("temperature", [1.25, 1.5, 3.0, 6.0, 16.0])
def test_the_tail_has_about_its_mass_in_between(temperature):
    """Interpolated: no bound, but near for logits like a teacher's; LOG.md has the figures for real ones."""
    logits = teacher_like_logits(200, 1000)
    codec = TopKCodec(k=10, num_classes=1000)
    columns = codec.encode_logits(logits)
    dense = tail_mass(softmax(logits, temperature), columns)
    stored = tail_mass(softmax(codec.decode_logits(columns, temperature), temperature), columns)
    assert np.abs(dense - stored).max() < 0.02
    assert abs((dense - stored).mean()) < 0.012


def test_an_overconfident_row_keeps_its_little_mass():
    logits = np.full((1, 1000), -100.0, np.float32)
    logits[0, 5] = 0.0
    logits[0, 6] = -20.0
    codec = TopKCodec(k=2, num_classes=1000)
    columns = codec.encode_logits(logits)
    probs = softmax(codec.decode_logits(columns), 1.0)
    assert tail_mass(probs, columns)[0] == pytest.approx(998 * np.exp(-100.0), rel=0.05)
    assert probs[0, 6] == pytest.approx(np.exp(-20.0), rel=0.1)


def test_masked_classes_have_no_mass():
    logits = teacher_like_logits(50, 1000)
    logits[:, 6:] = -1e4
    codec = TopKCodec(k=10, num_classes=1000)
    columns = check_round_trip(codec, logits)
    assert (columns["range"] == MAX_DISTANCE).all()
    for temperature in (1.0, 4.0, 16.0):
        stored = softmax(codec.decode_logits(columns, temperature), temperature)
        assert stored[:, 6:].sum(axis=1).max() < 1e-3
        # A step of the codes is coarse in so large a range: 256 * 2 sqrt(d / 256) / 510 = 0.06 at d = 1.
        assert total_variation(stored, softmax(logits, temperature)).max() < 0.03


@pytest.mark.parametrize("num_classes", [1, 2, 9])
def test_without_a_tail_every_class_is_kept(num_classes):
    logits = teacher_like_logits(30, num_classes, peak=5.0)
    codec = TopKCodec(k=10, num_classes=num_classes)
    columns = check_round_trip(codec, logits)
    assert (columns["drops"] == 0).all() and columns["indices"].shape == (30, num_classes)
    for temperature in (1.0, 4.0):
        stored = softmax(codec.decode_logits(columns, temperature), temperature)
        assert total_variation(stored, softmax(logits, temperature)).max() < 0.01


def test_a_tail_of_one_class_is_that_class():
    logits = np.array([[3.0, 0.0, 1.0]], np.float32)
    codec = TopKCodec(k=2, num_classes=3)
    columns = check_round_trip(codec, logits)
    assert columns["drops"].tolist() == [[0, 0, 0]]
    for temperature in (1.0, 4.0):
        assert codec.decode_logits(columns, temperature)[0, 1] == -3.0


def test_comparison_allows_twice_the_tolerance_and_finds_more():
    logits = teacher_like_logits(6, 100, seed=3)
    codec = TopKCodec(k=10, num_classes=100)
    columns = codec.encode_logits(logits)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, logits.shape).astype(np.float32)
    errors, allowed = codec.compare_logits(columns, logits + noise, np.full(6, 0.3))
    assert (errors <= allowed).all()
    kept = columns["indices"].astype(int)

    def found(change):
        fresh = logits.copy()
        change(fresh)
        errors, allowed = codec.compare_logits(columns, fresh, np.full(6, 0.01))
        return [tuple(place) for place in np.argwhere(errors > allowed).tolist()]

    assert found(lambda fresh: None) == []

    def change_a_kept_class(fresh):
        fresh[2, kept[2, 4]] -= 0.5

    assert (2, 4) in found(change_a_kept_class)

    def change_the_likeliest_class(fresh):
        fresh[1, kept[1, 0]] += 0.5

    assert {(1, place) for place in range(1, 14)} <= set(found(change_the_likeliest_class))

    def change_the_tails_mass(fresh):
        fresh[3, np.setdiff1d(np.arange(100), kept[3])] -= 0.5

    assert found(change_the_tails_mass) == [(3, 10), (3, 11), (3, 12), (3, 13)]

    def forget_the_tails_likeliest(fresh):
        fresh[4, np.setdiff1d(np.arange(100), kept[4])[0]] = fresh[4, kept[4, 9]] + 1

    assert (4, 14) in found(forget_the_tails_likeliest)


@pytest.mark.parametrize("place", [0, 99])
def test_a_nan_in_the_comparison_is_seen(place):
    logits = np.arange(100, dtype=np.float32)[None]
    codec = TopKCodec(k=10, num_classes=100)
    columns = codec.encode_logits(logits)
    logits[0, place] = np.nan
    errors, _ = codec.compare_logits(columns, logits, np.zeros(1))
    assert np.isnan(errors).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_with_its_position(bad):
    logits = np.zeros((3, 5), np.float32)
    logits[2, 4] = bad
    with pytest.raises(LogitsError, match=r"class 4 in row 2"):
        TopKCodec(k=2, num_classes=5).encode_logits(logits)


def test_what_does_not_fit_is_refused():
    with pytest.raises(LogitsError, match="of 5 classes, expected 6 as planned"):
        TopKCodec(k=2, num_classes=6).encode_logits(np.zeros((1, 5), np.float32))
    columns = TopKCodec(k=2, num_classes=5).encode_logits(np.arange(5, dtype=np.float32)[None])
    with pytest.raises(StoreError, match="class index 4 in a store of 4 classes"):
        TopKCodec(k=2, num_classes=4).decode_logits(columns)
    for k, num_classes in ((0, 5), (2, 0)):
        with pytest.raises(ConfigError, match="expected at least 1"):
            TopKCodec(k=k, num_classes=num_classes)
    with pytest.raises(StoreError, match="expected at least 1"):
        codec_from_json({"name": "topk", "k": 0, "num_classes": 5})
    with pytest.raises(StoreError, match="num_classes"):
        codec_from_json({"name": "topk", "k": 3})


@pytest.mark.parametrize("k, num_classes", [(10, 1000), (1, 3), (7, 7)])
def test_the_text_of_the_format_is_enough_to_decode(k, num_classes):
    """The numpy of docs/reference/store-format.md, as printed there, gives the probabilities of ``decode_logits``."""
    text = (DOCS / "reference" / "store-format.md").read_text()
    (snippet,) = [part.partition("```")[0] for part in text.split("```python\n") if part.startswith("steps = ")]
    codec = TopKCodec(k=k, num_classes=num_classes)
    columns = codec.encode_logits(teacher_like_logits(20, num_classes))
    for temperature in (0.7, 1.0, 1.5, 3.0, 8.0, 20.0):
        expected = softmax(codec.decode_logits(columns, temperature), temperature)
        for row in range(20):
            names = {name: values[row] for name, values in columns.items()}
            names |= {"np": np, "T": temperature, "C": num_classes, "K": codec.num_kept, "range_": names.pop("range")}
            exec(snippet, names)
            np.testing.assert_allclose(names["probs"], expected[row], rtol=1e-4)  # float32 logits down to -40


def test_json_is_the_codec():
    codec = build_codec("topk", num_classes=1000, k=7)
    assert codec.to_json() == {"name": "topk", "k": 7, "num_classes": 1000}
    assert codec_from_json(codec.to_json()) == TopKCodec(k=7, num_classes=1000)
    assert build_codec("topk", num_classes=1000) == TopKCodec(k=10, num_classes=1000)


def test_topk_on_real_logits(shared_data, tmp_path):
    """On 25 real images: total variation from the dense softened target, and the tail's mass.

    The figures of LOG.md (2026-11-24) are means over random crops; these are a center crop's (0.052, 0.161 and 0.238;
    the mass within 0.002), with some room.
    """
    torch = pytest.importorskip("torch")
    from teachonce.models.classifier import load_model

    weights, archive = shared_data / "squeezenet1_0-imagenet.safetensors", shared_data / "imagenet-sample.tar"
    if not (weights.exists() and archive.exists()):
        pytest.skip("no weights, no images")
    from teachonce.pixels.decode import decode_image

    teacher = load_model(f"torchvision:squeezenet1_0,weights={weights},size=227,resize=256", device="cpu")
    with tarfile.open(archive) as file:
        members = sorted((m for m in file.getmembers() if m.name.endswith(".JPEG")), key=lambda m: m.name)[::10]
        images = [decode_image(file.extractfile(member).read()) for member in members]
    pixels = np.stack([teacher.preprocessing.apply(image) for image in images])
    logits = teacher.collect_logits(teacher.logits(torch.from_numpy(pixels)))
    assert len(logits) == 25
    codec = TopKCodec(k=10, num_classes=1000)
    columns = codec.encode_logits(logits)
    for temperature, limit in ((1.0, 0.06), (2.0, 0.18), (4.0, 0.25)):
        dense, stored = softmax(logits, temperature), softmax(codec.decode_logits(columns, temperature), temperature)
        assert total_variation(dense, stored).mean() <= limit
        assert np.abs(tail_mass(dense, columns) - tail_mass(stored, columns)).max() <= 0.003


def test_the_tails_mass_is_right_at_its_temperatures_alone() -> None:
    """What the promise says: between them it is interpolated, which a tail with masked classes shows."""
    logits = np.random.default_rng(0).normal(0, 2, (32, 1000)).astype(np.float32)
    logits[:, 20:] -= 100
    codec = TopKCodec(k=10, num_classes=1000)
    columns = codec.encode_logits(logits)
    kept = np.argsort(-logits, axis=1)[:, :10]

    def worst(temperature: float) -> float:
        masses = [
            1 - np.take_along_axis(softmax(rows, temperature), kept, axis=1).sum(axis=1)
            for rows in (logits, codec.decode_logits(columns, temperature))
        ]
        return float(np.abs(masses[0] - masses[1]).max())

    # Half a step of a drop is 0.014 T nats at most, so 0.014 of the logit / T, and moves a mass by a quarter of that.
    assert max(map(worst, TAIL_TEMPERATURES)) < 0.005
    assert 0.02 < worst(1.4) < 0.15 and 0.02 < worst(2.8) < 0.15
    assert "right at T = 1, 2, 4, 8, interpolated between" in codec.promise
