"""Decoding: the pixels of plain Pillow where both decode, one ImageError where none should."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from teachonce.errors import ImageError
from teachonce.pixels.decode import (
    MAX_PIXELS,
    MAX_SCANS,
    check_image,
    check_jpeg,
    count_scans,
    decode_image,
    image_size,
    resize_image,
    to_rgb_jpeg,
)
from tests.support.small_data import encode_scans


def draw_image(width: int = 37, height: int = 53, seed: int = 0) -> Image.Image:
    """A smooth picture with some noise: neither flat, nor what JPEG cannot hold."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 / height, columns * 255 / width, (rows + columns) % 256]
    pixels = np.stack(channels, axis=-1) + rng.normal(0, 8, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


PICTURE = draw_image()
SAMPLES = {
    "jpeg": encode(PICTURE, "JPEG"),
    "progressive": encode(PICTURE, "JPEG", progressive=True),
    "grey jpeg": encode(PICTURE.convert("L"), "JPEG"),
    "cmyk jpeg": encode(PICTURE.convert("CMYK"), "JPEG"),
    "png": encode(PICTURE, "PNG"),
    "grey png": encode(PICTURE.convert("L"), "PNG"),
    "palette png": encode(PICTURE.convert("P"), "PNG"),
    "black and white png": encode(PICTURE.convert("1"), "PNG"),
    "alpha png": encode(PICTURE.convert("RGBA"), "PNG"),
    "webp": encode(PICTURE, "WEBP"),
    "bmp": encode(PICTURE, "BMP"),
    "ppm": encode(PICTURE, "PPM"),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_pixels_are_those_of_pillow(kind: str) -> None:
    image = decode_image(SAMPLES[kind])
    assert image.mode == "RGB" and type(image) is Image.Image
    with Image.open(io.BytesIO(SAMPLES[kind])) as reference:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(reference.convert("RGB")))
    assert image_size(SAMPLES[kind]) == image.size == PICTURE.size
    assert pickle.loads(pickle.dumps(image)).size == image.size


def test_grayscale_becomes_three_equal_channels() -> None:
    pixels = np.asarray(decode_image(SAMPLES["grey jpeg"]))
    assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()


def test_alpha_is_dropped_not_blended() -> None:
    image = PICTURE.copy()
    image.putalpha(0)
    np.testing.assert_array_equal(np.asarray(decode_image(encode(image, "PNG"))), np.asarray(PICTURE))


def test_palette_with_an_alpha_table_warns_nobody() -> None:
    palette = PICTURE.convert("P")
    transparent = encode(palette, "PNG", transparency=bytes(range(200)))
    np.testing.assert_array_equal(np.asarray(decode_image(transparent)), np.asarray(palette.convert("RGB")))


def test_sixteen_bits_keep_the_upper_eight() -> None:
    # Pillow's own conversion would clip at 255; TensorFlow's and torchvision's decoders take the upper byte.
    values = np.array([[0, 255, 256], [32_768, 65_535, 511]], np.uint16)
    pixels = np.asarray(decode_image(encode(Image.fromarray(values), "PNG")))
    np.testing.assert_array_equal(pixels[..., 1], values >> 8)


def test_format_is_found_from_the_content_of_a_real_misnamed_file(tmp_path: Path) -> None:
    path = tmp_path / "n02105855_2933.JPEG"
    path.write_bytes(SAMPLES["png"])
    np.testing.assert_array_equal(np.asarray(decode_image(path.read_bytes())), np.asarray(PICTURE))


def test_exif_orientation_is_ignored_and_a_broken_exif_block_warns_nobody() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    turned = encode(PICTURE, "JPEG", exif=exif)
    assert decode_image(turned).size == PICTURE.size
    broken = encode(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(60)))
    plain = np.asarray(decode_image(SAMPLES["jpeg"]))
    np.testing.assert_array_equal(np.asarray(decode_image(turned)), plain)
    np.testing.assert_array_equal(np.asarray(decode_image(broken)), plain)


@pytest.mark.parametrize("kind", SAMPLES)
def test_truncated_at_any_tenth(kind: str) -> None:
    encoded = SAMPLES[kind]
    for tenth in range(10):
        with pytest.raises(ImageError):
            decode_image(encoded[: len(encoded) * tenth // 10])


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "grey jpeg"])
def test_a_checked_jpeg_holds_all_its_pixels(kind: str) -> None:
    encoded = SAMPLES[kind]
    assert check_jpeg(encoded) == (37, 53)
    for tenth in range(10):
        with pytest.raises(ImageError) as decoding:
            decode_image(encoded[: len(encoded) * tenth // 10])
        with pytest.raises(ImageError) as checking:
            check_jpeg(encoded[: len(encoded) * tenth // 10])
        assert str(checking.value).partition("(")[0] == str(decoding.value).partition("(")[0]


def test_truncated_jpeg_says_what_it_is() -> None:
    encoded = SAMPLES["jpeg"]
    with pytest.raises(
        ImageError, match=r"JPEG image of 37 x 53 pixels cannot be decoded from its \d+ bytes .*replace"
    ):
        decode_image(encoded[:-200])


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "0 bytes: expected a JPEG"),
        (b"just a text file named .JPEG\n", "29 bytes that begin with b'just a t': expected a JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "expected a JPEG"),
        (b"\xff\xd8\xff\xd9", "no readable header"),
        (b"\x89PNG\r\n\x1a\n", "no readable header"),
    ],
)
def test_no_image(encoded: bytes, message: str) -> None:
    for read in (decode_image, image_size, to_rgb_jpeg):
        with pytest.raises(ImageError, match=message):
            read(encoded)


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds almost nothing, as a decompression bomb does."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


def jpeg_of(width: int, height: int) -> bytes:
    """A sound JPEG whose frame header claims another size."""
    encoded = bytearray(SAMPLES["jpeg"])
    start = encoded.index(b"\xff\xc0")
    encoded[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(encoded)


@pytest.mark.parametrize("bomb", [png_of(30_000, 30_000), jpeg_of(30_000, 30_000), png_of(MAX_PIXELS + 1, 1)])
def test_bomb_is_refused_from_its_header(bomb: bytes) -> None:
    for read in (decode_image, image_size, to_rgb_jpeg):
        with pytest.raises(ImageError, match=r"x \d+ pixels, more than the 89,478,485 allowed"):
            read(bomb)


def test_the_largest_allowed_size_is_no_bomb() -> None:
    assert image_size(png_of(MAX_PIXELS // 5, 5)) == (MAX_PIXELS // 5, 5)


def test_zero_size() -> None:
    with pytest.raises(ImageError):
        decode_image(png_of(0, 5))


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(sorted(SAMPLES)),
    changes=st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 255)), min_size=1, max_size=5),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
)
@example(kind="jpeg", changes=[(2, 0)], kept=1.0)
def test_damage_gives_pixels_or_an_image_error(kind: str, changes: list[tuple[int, int]], kept: float) -> None:
    damaged = bytearray(SAMPLES[kind])
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        assert decode_image(bytes(damaged[: int(len(damaged) * kept)])).mode == "RGB"
    except ImageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "grey jpeg"])
def test_rgb_and_grayscale_jpegs_keep_their_bytes(kind: str) -> None:
    assert to_rgb_jpeg(SAMPLES[kind]) is SAMPLES[kind]


@pytest.mark.parametrize("kind", ["cmyk jpeg", "png", "palette png", "alpha png", "grey png", "webp", "bmp"])
def test_everything_else_becomes_an_rgb_jpeg(kind: str) -> None:
    converted = to_rgb_jpeg(SAMPLES[kind])
    with Image.open(io.BytesIO(converted)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", PICTURE.size)
        # At quality 100 every quantization step is 1: what is left is the rounding of the coefficients (half a step
        # each, 64 of them, orthonormal) and of the color transform, far below 8 gray levels.
        difference = np.asarray(image).astype(int) - np.asarray(decode_image(SAMPLES[kind]))
    assert np.abs(difference).max() < 8 and np.abs(difference).mean() < 1
    assert to_rgb_jpeg(converted) is converted


@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_resize_is_pillows_of_the_cropped_box(interpolation: Any) -> None:
    box = (3, 5, 30, 41)
    resized = resize_image(PICTURE, 16, 11, box=box, interpolation=interpolation)
    # Columns first; since version 13 Pillow takes the rows first where the height shrinks much more, as here.
    filter = getattr(Image.Resampling, interpolation.upper())
    reference = PICTURE.crop(box).resize((16, 36), filter).resize((16, 11), filter)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, np.asarray(reference))


@settings(max_examples=40, deadline=None)
@given(
    sides=st.tuples(*[st.integers(1, 24)] * 4),
    half_pixel=st.booleans(),
)
def test_plain_bilinear_is_its_plain_loop(sides: tuple[int, int, int, int], half_pixel: bool) -> None:
    width, height, new_width, new_height = sides
    image = draw_image(width, height)
    resized = resize_image(
        image, new_width, new_height, interpolation="bilinear" if half_pixel else "tf1_bilinear", antialias=False
    )
    assert resized.dtype == np.float32 and resized.shape == (new_height, new_width, 3)
    pixels = np.asarray(image).astype(np.float64)
    for row in range(new_height):
        for column in range(new_width):
            shift = 0.5 if half_pixel else 0.0
            y = min(max((row + shift) * height / new_height - shift, 0), height - 1)
            x = min(max((column + shift) * width / new_width - shift, 0), width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            upper = pixels[y0, x0] + (pixels[y0, x1] - pixels[y0, x0]) * (x - x0)
            lower = pixels[y1, x0] + (pixels[y1, x1] - pixels[y1, x0]) * (x - x0)
            # Positions below 64 are rounded to 2^-18 in float32, twice; times a slope of at most 255 a pixel in each
            # of two directions, that is 2 * 2 * 255 * 2^-18 = 0.004 gray levels.
            np.testing.assert_allclose(resized[row, column], upper + (lower - upper) * (y - y0), rtol=0, atol=0.004)


@pytest.mark.slow
def test_plain_bilinear_is_tensorflows(tensorflow: Any) -> None:
    image = draw_image(101, 75)
    for width, height in [(64, 64), (33, 75), (150, 211), (101, 75)]:
        pixels = np.asarray(image)[None]
        # The same float32 operations, but a compiler may fuse a multiplication and an addition: 2 ulp of 255.
        tolerance = 2 * 2**-16
        modern = tensorflow.image.resize(pixels, (height, width), antialias=False).numpy()[0]
        ours = resize_image(image, width, height, interpolation="bilinear", antialias=False)
        np.testing.assert_allclose(ours, modern, rtol=0, atol=tolerance)
        legacy = tensorflow.compat.v1.image.resize_bilinear(pixels, (height, width)).numpy()[0]
        ours = resize_image(image, width, height, interpolation="tf1_bilinear", antialias=False)
        np.testing.assert_allclose(ours, legacy, rtol=0, atol=tolerance)


@pytest.mark.parametrize("read", [decode_image, check_jpeg, check_image])
def test_scans_are_limited(read: Callable[[bytes], object]) -> None:
    """The marker of a scan in a comment, or behind the end, is none."""
    read(encode_scans(MAX_SCANS, comment=b"\xff\xda" * 500) + b"\xff\xda" * 500)
    expected = (
        r"a JPEG image of 16 x 16 pixels in (101|883) scans, more than the 100 allowed; save it again or remove it$"
    )
    for num_scans in (MAX_SCANS + 1, 883):
        with pytest.raises(ImageError, match=expected):
            read(encode_scans(num_scans))


def test_scans_are_counted_as_libjpeg_does() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for options, num_scans in (({}, 1), ({"progressive": True}, 10), ({"restart_marker_blocks": 1}, 1)):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", **options)
        assert count_scans(buffer.getvalue()) == num_scans, options
    for num_scans in (1, 7, 883):
        assert count_scans(encode_scans(num_scans)) == num_scans
    for damaged in (b"", b"\xff\xd8", b"\xff\xd8\xff\xda", b"\xff\xd8\xff\xc4\xff"):
        assert count_scans(damaged) <= 1
