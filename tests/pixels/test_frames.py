"""Pixels of many frames: the same bits by the kernel, by Pillow and by the reference; what is wrong has its place."""

from __future__ import annotations

import io
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from teachonce.errors import ImageError, StoreError
from teachonce.pixels.decode import MAX_PIXELS, Interpolation, decode_image, image_size, resize_image
from teachonce.pixels.frames import FRAME, image_sizes, read_pixels, square_frames
from teachonce.pixels.kernel import FILTERS, load_kernel
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.render import render_center
from teachonce.records.source import Record
from tests.pixels.test_decode import SAMPLES, png_of
from tests.support.kernel_images import draw_image, draw_jpeg

INTERPOLATIONS = [name for name in get_args(Interpolation) if name != "tf1_bilinear"]


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# What the kernel does and what it leaves, side by side.
IMAGES = {
    "4:2:0": draw_jpeg(61, 47, 0, "4:2:0"),
    "png": encode(draw_image(50, 40, 1), "PNG"),
    "grey": draw_jpeg(33, 70, 2, "grey"),
    "cmyk": encode(draw_image(45, 44, 3).convert("CMYK"), "JPEG"),
    "progressive": draw_jpeg(90, 35, 4, "4:2:2", progressive=True),
    "no end": draw_jpeg(40, 40, 5, "4:4:4") + b"\0",
    "16 bits": encode(Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40), "PNG"),
    "webp": encode(draw_image(42, 43, 6), "WEBP", lossless=True),
}
ENCODED = list(IMAGES.values())
DESCRIPTIONS = [f"the {name} one" for name in IMAGES]


def reference(encoded: bytes, frame: Any, interpolation: Any) -> np.ndarray:
    """One frame of one image by ``decode`` alone."""
    width, height = frame["resized"].tolist()
    resized = resize_image(
        decode_image(encoded), width, height, box=tuple(frame["box"].tolist()), interpolation=interpolation
    )
    x, y, width, height = frame["window"].tolist()
    window = resized[y : y + height, x : x + width]
    return window[:, ::-1] if frame["flip"] else window


@pytest.fixture(params=["with the kernel", "without"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the kernel may be used."""
    if request.param == "without":
        monkeypatch.setattr("teachonce.pixels.frames.load_kernel", lambda: None)
    elif load_kernel() is None:
        pytest.skip("the kernel was not built")
    return request.param != "without"


@settings(max_examples=60)
@given(st.data(), st.sampled_from(INTERPOLATIONS), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_frames_are_the_references(data: st.DataObject, interpolation: Any, num_frames: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    indices = data.draw(st.lists(st.integers(0, len(ENCODED) - 1), min_size=1, max_size=5))
    width, height = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    frames = np.zeros(len(indices) * num_frames, FRAME)
    for position, frame in enumerate(frames):
        image_width, image_height = image_size(ENCODED[indices[position // num_frames]])
        left, right = np.sort(rng.choice(image_width + 1, 2, replace=False))
        top, bottom = np.sort(rng.choice(image_height + 1, 2, replace=False))
        more = rng.integers(0, 9, 4)
        frame["box"] = left, top, right, bottom
        frame["resized"] = width + more[0] + more[2], height + more[1] + more[3]
        frame["window"] = more[0], more[1], width, height
        frame["flip"] = rng.integers(2)
    out = np.full((len(frames), height, width, 3), 7, np.uint8)
    encoded, descriptions = [ENCODED[index] for index in indices], [DESCRIPTIONS[index] for index in indices]
    read_pixels(encoded, frames, descriptions, out, interpolation=interpolation, num_frames=num_frames)
    for position, frame in enumerate(frames):
        np.testing.assert_array_equal(out[position], reference(encoded[position // num_frames], frame, interpolation))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_format_and_filter_with_and_without(native: bool, interpolation: Any) -> None:
    boxes = [(3, 2, image_size(item)[0] - 4, image_size(item)[1] - 1) for item in ENCODED]
    frames = square_frames(boxes, [index % 2 for index in range(len(boxes))], 19)
    out = np.empty((len(frames), 19, 19, 3), np.uint8)
    read_pixels(ENCODED, frames, DESCRIPTIONS, out, interpolation=interpolation)
    for encoded, frame, pixels in zip(ENCODED, frames, out, strict=True):
        np.testing.assert_array_equal(pixels, reference(encoded, frame, interpolation))


def test_filters_of_the_kernel_are_known_by_name() -> None:
    assert FILTERS.keys() <= set(get_args(Interpolation))


def test_square_frames() -> None:
    frames = square_frames([(1, 2, 3, 4), (5, 6, 7, 8)], [True, False], 9)
    assert frames["box"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]] and frames["flip"].tolist() == [1, 0]
    assert frames["resized"].tolist() == [[9, 9]] * 2 and frames["window"].tolist() == [[0, 0, 9, 9]] * 2


def test_sizes(native: bool) -> None:
    encoded = [*ENCODED, *SAMPLES.values()]
    expected = [image_size(item) for item in encoded]
    assert image_sizes(encoded, ["?"] * len(encoded)).tolist() == [list(size) for size in expected]
    assert image_sizes([], []).shape == (0, 2)


def test_sizes_of_what_has_none(native: bool) -> None:
    tall = bytearray(IMAGES["4:2:0"])
    at = tall.index(b"\xff\xc0")
    tall[at + 5 : at + 9] = (9500).to_bytes(2) * 2
    assert MAX_PIXELS < 9500**2
    for bad, message in (
        (b"text", "expected a JPEG"),
        (b"", "0 bytes"),
        (IMAGES["4:2:0"][:30], "no readable header"),
        (bytes(tall), "more than the"),
        (png_of(20_000, 20_000), "more than the"),
    ):
        with pytest.raises(ImageError, match=f"^the bad one: .*{message}"):
            image_sizes([ENCODED[0], bad, b"another"], ["the first", "the bad one", "a later one"])


def frames_for(encoded: list[bytes], size_px: int = 8) -> np.ndarray:
    return square_frames([(0, 0, 30, 30) for _ in encoded], [False for _ in encoded], size_px)


def test_the_first_bad_image_is_named(native: bool) -> None:
    damaged = IMAGES["4:2:0"][:-400]
    encoded = [ENCODED[0], ENCODED[1], damaged, b"text"]
    out = np.empty((4, 8, 8, 3), np.uint8)
    descriptions = ["zero", "one", "shard 3 record 2", "three"]
    with pytest.raises(ImageError, match=r"^shard 3 record 2: a JPEG image of 61 x 47 pixels cannot be decoded"):
        read_pixels(encoded, frames_for(encoded), descriptions, out)
    with pytest.raises(ImageError, match=r"^three: 4 bytes that begin with b'text'"):
        read_pixels([encoded[0], encoded[3]], frames_for(encoded[:2]), ["zero", "three"], out[:2])


@pytest.mark.parametrize("box", [(0, 0, 62, 47), (-1, 0, 61, 47), (9, 9, 9, 10), (0, 10, 61, 9), (0, 0, 61, 48)])
def test_a_box_outside_is_a_store_error(native: bool, box: tuple[int, int, int, int]) -> None:
    frames = square_frames([(0, 0, 40, 40), box], [False, False], 8)
    out = np.empty((2, 8, 8, 3), np.uint8)
    with pytest.raises(StoreError, match=r"^second: view box \(.*is outside of the image of 61 x 47 px"):
        read_pixels([ENCODED[0], ENCODED[0]], frames, ["first", "second"], out)
    with pytest.raises(StoreError, match=r"^only: view box"):
        read_pixels([ENCODED[0]], frames, ["only"], out, num_frames=2)


def test_windows_must_have_the_size_of_the_memory() -> None:
    out = np.empty((1, 8, 8, 3), np.uint8)
    frames = frames_for(ENCODED[:1])
    for window in ((0, 0, 8, 7), (0, 0, 7, 8)):
        frames["window"] = window
        with pytest.raises(AssertionError):
            read_pixels(ENCODED[:1], frames, DESCRIPTIONS[:1], out)
    with pytest.raises(AssertionError):
        read_pixels(
            ENCODED[:1], frames_for(ENCODED[:1]), DESCRIPTIONS[:1], np.empty((1, 8, 16, 3), np.uint8)[:, :, ::2]
        )


def render(encoded: list[bytes], names: list[str], preprocessing: Preprocessing) -> np.ndarray:
    records = [Record(item, 0, name, 0, name) for item, name in zip(encoded, names, strict=True)]
    return render_center(records, preprocessing)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(size_px=16, resize_px=18),
        Preprocessing(size_px=24, interpolation="bicubic"),
        Preprocessing(size_px=13, resize_px=20, geometry="squash", interpolation="lanczos"),
        Preprocessing(size_px=15, geometry="central", crop_frac=0.875, interpolation="box"),
        Preprocessing(size_px=16, resize_px=18, antialias=False),
        Preprocessing(size_px=12, geometry="central", crop_frac=0.9, interpolation="tf1_bilinear", antialias=False),
        Preprocessing(size_px=12, interpolation="nearest"),
    ],
    ids=str,
)
def test_preprocessing_many_is_preprocessing_each(native: bool, preprocessing: Preprocessing) -> None:
    found = render(ENCODED, DESCRIPTIONS, preprocessing)
    expected = np.stack([preprocessing.apply(decode_image(item)) for item in ENCODED])
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("antialias", [True, False])
def test_preprocessing_names_the_bad_one(native: bool, antialias: bool) -> None:
    preprocessing = Preprocessing(size_px=2048, antialias=antialias)
    sliver = encode(Image.new("RGB", (1, 30_000)), "JPEG")
    with pytest.raises(ImageError, match=r"^sliver: an image of 1 x 30000 pixels"):
        render([sliver], ["sliver"], preprocessing)
    with pytest.raises(ImageError, match=r"^the bad one: 4 bytes"):
        render([ENCODED[0], b"text"], ["good", "the bad one"], Preprocessing(size_px=8, antialias=antialias))
