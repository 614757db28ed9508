"""The kernel: Pillow's pixels bit for bit whatever the JPEG, the box and the size, and nothing at all of damaged ones.

The same tests run with the inner loops for AVX2 and, where there is a C compiler, with the plain ones.
"""

from __future__ import annotations

import ctypes
import io
import itertools
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from teachonce.errors import ImageError
from teachonce.native import addresses, load_library
from teachonce.pixels.decode import MAX_PIXELS, MAX_SCANS, decode_image, image_size, resize_image
from teachonce.pixels.kernel import FILTERS, SOURCE, VIEW, Kernel, bind_kernel, describe_decoder, load_kernel
from tests.support.paths import ROOT
from tests.support.small_data import encode_jpeg, encode_scans

CFLAGS = os.environ.get("TEACHONCE_CFLAGS", "").split()  # `make fuzz` gives those of the sanitizers
NATIVE = sorted((ROOT / "native").glob("*.c"))

pytestmark = pytest.mark.skipif(load_library() is None, reason="the native library was not built")


def build_library(folder: Path, *options: str) -> Path:
    """The library built anew, as setup.py builds it, with TEACHONCE_CFLAGS too; a skip without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C compiler")
    path = folder / "native.so"
    common = ["-shared", "-fPIC", "-O2", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi", *CFLAGS]
    # A sanitizer's library is preloaded for Python, not for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [compiler, *common, *options, *map(str, NATIVE), "-lm", "-o", str(path)]
    subprocess.run(command, check=True, env=environment)
    return path


@pytest.fixture(scope="session", params=["as installed", "plain loops"])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """The plain loops decode units between restart markers as the library does; as installed they are counted."""
    if request.param == "as installed" and not CFLAGS:
        found, reason = load_kernel(), describe_decoder()
    else:
        options = ["-DTEACHONCE_NO_AVX2"] if request.param == "plain loops" else []
        path = build_library(tmp_path_factory.mktemp("native"), *options)
        found, reason = bind_kernel(ctypes.CDLL(str(path)), [request.param == "as installed"])
    assert found is not None, reason
    assert not found.counts_units, "only where it is asked for"
    return found


Frame = tuple[tuple[int, int, int, int], tuple[int, int], tuple[int, int, int, int], bool, str]
"""box, size that it is resized to, window (left, top, width, height) of that, flip, filter."""


def render(kernel: Kernel, source: bytes, frames: list[Frame]) -> tuple[int, list[np.ndarray]]:
    """(status, pixels of each frame) of an image; every byte around the pixels must stay as it is."""
    rooms = [np.full((w * h * 3 + 128,), 0xA5, np.uint8) for _, _, (_, _, w, h), _, _ in frames]
    views = np.array(
        [
            (room.ctypes.data + 64, box, resized, window, flip, FILTERS[name])
            for room, (box, resized, window, flip, name) in zip(rooms, frames, strict=True)
        ],
        VIEW,
    )
    sources = np.zeros(1, SOURCE)
    sources["bytes"], sources["num_bytes"] = addresses([source]), len(source)
    sources["num_views"], sources["status"] = len(frames), -1
    kernel.render(sources, views)
    for room in rooms:
        assert (room[:64] == 0xA5).all() and (room[-64:] == 0xA5).all()
    shapes = [(h, w, 3) for _, _, (_, _, w, h), _, _ in frames]
    return int(sources["status"][0]), [room[64:-64].reshape(s) for room, s in zip(rooms, shapes, strict=True)]


def reference(image: Image.Image, frame: Frame) -> np.ndarray:
    box, resized, (x, y, width, height), flip, name = frame
    pixels = resize_image(image, *resized, box=box, interpolation=name)[y : y + height, x : x + width]  # type: ignore[arg-type]
    return pixels[:, ::-1] if flip else pixels


def assert_pillows(kernel: Kernel, encoded: bytes, frames: list[Frame]) -> None:
    status, found = render(kernel, encoded, frames)
    assert status == 0
    image = decode_image(encoded)
    for pixels, wanted in zip(found, frames, strict=True):
        np.testing.assert_array_equal(pixels, reference(image, wanted), err_msg=str(wanted))


def draw_image(width: int, height: int, seed: int) -> Image.Image:
    """Waves with sharp edges and some noise: every coefficient and both ends of the range occur."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    phases = rng.uniform(0.02, 0.9, (3, 2))
    waves = np.stack([np.sin(a * rows + b * columns) for a, b in phases], axis=-1)
    pixels = 127 + 150 * waves + rng.normal(0, 12, waves.shape)
    pixels[rows // 7 % 3 == 0] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    # An optimized or progressive file must fit into Pillow's buffer, whose size it guesses too small for noise.
    room, ImageFile.MAXBLOCK = ImageFile.MAXBLOCK, 1 << 20
    try:
        image.save(buffer, format, **options)
    finally:
        ImageFile.MAXBLOCK = room
    return buffer.getvalue()


def frame_header(encoded: bytes) -> int:
    """Where the segment that holds size and sampling factors begins, at its marker."""
    position = 2
    while encoded[position + 1] not in (0xC0, 0xC1, 0xC2):
        position += 2 + int.from_bytes(encoded[position + 2 : position + 4])
    return position


def scan_headers(encoded: bytes) -> list[int]:
    """Where each scan's segment begins, at its marker."""
    return [at for at in range(len(encoded) - 1) if encoded[at : at + 2] == b"\xff\xda"]


def reframe(encoded: bytes, width: int, height: int, factors: list[int]) -> bytes:
    """The same coefficients said to be of another size and other sampling factors (0x21: 2 across, 1 down)."""
    at = frame_header(encoded)
    changed = bytearray(encoded)
    changed[at + 5 : at + 9] = height.to_bytes(2) + width.to_bytes(2)
    changed[at + 11 : at + 11 + 3 * len(factors) : 3] = bytes(factors)
    return bytes(changed)


# What Pillow cannot write, as other factors of as many blocks: (subsampling that it is written with, width and height
# of its units, factors, width and height of the new units).
REFRAMED = {
    "4:4:0": ("4:2:2", (16, 8), [0x12, 0x11, 0x11], (8, 16)),
    "4:1:1": ("4:2:0", (16, 16), [0x41, 0x11, 0x11], (32, 8)),
    "1 x 4": ("4:2:0", (16, 16), [0x14, 0x11, 0x11], (8, 32)),
    "2 x 1 thrice": ("rgb", (16, 8), [0x21, 0x21, 0x21], (16, 8)),
    "1 x 2 thrice": ("rgb", (16, 8), [0x12, 0x12, 0x12], (8, 16)),
    "grey of 2 x 2": ("grey", (8, 8), [0x22], (8, 8)),
    "grey of 2 x 1": ("grey", (8, 8), [0x21], (8, 8)),
    "grey of 1 x 2": ("grey", (8, 8), [0x12], (8, 8)),
}
SUBSAMPLINGS = ["grey", "rgb", "4:4:4", "4:2:2", "4:2:0", *REFRAMED]


def draw_jpeg(width: int, height: int, seed: int, subsampling: str, **options: Any) -> bytes:
    """A JPEG of any of ``SUBSAMPLINGS``; the picture of a reframed one is scrambled, and its size may be rounded up."""
    if subsampling in REFRAMED:
        subsampling, unit, factors, new_unit = REFRAMED[subsampling]
        num_across, num_down = -(-width // new_unit[0]), -(-height // new_unit[1])
        if subsampling == "rgb":
            # One table for all components, so blocks may change hands; but two units become one here.
            options = {name: value for name, value in options.items() if name in ("quality", "optimize")}
        if options.get("progressive"):
            # Scans of one component are not padded to whole units, so there must be nothing to pad.
            width, height = num_across * new_unit[0], num_down * new_unit[1]
        written = draw_jpeg(num_across * unit[0], num_down * unit[1], seed, subsampling, **options)
        return reframe(written, width, height, factors)
    image = draw_image(width, height, seed)
    if subsampling == "rgb":
        return encode(image, keep_rgb=True, **options)
    if subsampling == "grey":
        return encode(image.convert("L"), **options)
    return encode(image, subsampling=subsampling, **options)


sides = st.one_of(st.integers(1, 40), st.integers(41, 150))
kinds = st.fixed_dictionaries(
    {"quality": st.sampled_from([30, 75, 95, 100])},
    optional={
        "progressive": st.just(True),
        "optimize": st.just(True),
        "restart_marker_blocks": st.integers(1, 5),
        "restart_marker_rows": st.integers(1, 2),
    },
)


@st.composite
def draw_frame(draw: st.DrawFn, width: int, height: int) -> Frame:
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    box = left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    if draw(st.booleans()):
        box = 0, 0, width, height
    resized = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    x, y = draw(st.integers(0, resized[0] - 1)), draw(st.integers(0, resized[1] - 1))
    window = x, y, draw(st.integers(1, resized[0] - x)), draw(st.integers(1, resized[1] - y))
    if draw(st.booleans()):
        window = 0, 0, *resized
    return box, resized, window, draw(st.booleans()), draw(st.sampled_from(sorted(FILTERS)))


@settings(max_examples=300)
@given(st.data())
def test_pixels_are_pillows(kernel: Kernel, data: st.DataObject) -> None:
    subsampling = data.draw(st.sampled_from(SUBSAMPLINGS))
    encoded = draw_jpeg(
        data.draw(sides), data.draw(sides), data.draw(st.integers(0, 1000)), subsampling, **data.draw(kinds)
    )
    assert_pillows(kernel, encoded, data.draw(st.lists(draw_frame(*image_size(encoded)), min_size=1, max_size=4)))


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2, 333), (333, 3), (17, 9), (1100, 40)])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_tiny_and_thin_images(kernel: Kernel, size: tuple[int, int], subsampling: str) -> None:
    """Whole and in slivers at every edge, shrunk by up to 1100 and grown."""
    encoded = draw_jpeg(*size, 3, subsampling)
    width, height = image_size(encoded)
    boxes = {
        (0, 0, width, height),
        (width - 1, height - 1, width, height),
        (0, 0, 1, 1),
        (width // 2, 0, width // 2 + 1, height),
        (0, height // 2, width, height // 2 + 1),
        (max(width - 9, 0), max(height - 9, 0), width, height),
    }
    frames = [
        (box, resized, (0, 0, *resized), flip, name)
        for box in boxes
        for resized, flip in (((1, 1), False), ((7, 5), True), ((33, 1), False), ((1, 50), True), (size, False))
        for name in FILTERS
    ]
    assert_pillows(kernel, encoded, frames)


def test_every_box_of_a_small_image(kernel: Kernel) -> None:
    """Each edge at each position within the units of 4:2:0, which is where chroma is smoothed across."""
    encoded = draw_jpeg(37, 35, 5, "4:2:0")
    image = decode_image(encoded)
    edges = [(a, b) for a, b in itertools.combinations(range(36), 2)]
    frames: list[Frame] = [
        ((a, c, b, d), (b - a, d - c), (0, 0, b - a, d - c), False, "box")
        for (a, b), (c, d) in zip(edges, reversed(edges), strict=True)
    ]
    status, found = render(kernel, encoded, frames)
    assert status == 0
    pixels = np.asarray(image)
    for own, ((left, top, right, bottom), *_) in zip(found, frames, strict=True):
        np.testing.assert_array_equal(own, pixels[top:bottom, left:right])
    for wanted in frames[::9]:  # alone, so that nothing else makes the decoder take more than it would
        assert_pillows(kernel, encoded, [wanted])


@pytest.mark.parametrize("subsampling", ["grey", "4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1"])
def test_progressive_images_without_their_last_scans(kernel: Kernel, subsampling: str) -> None:
    """Nothing is damaged there: the decoder smooths what it has across blocks, and the box must not show."""
    encoded = draw_jpeg(96, 96, 8, subsampling, progressive=True, quality=60)
    scans = scan_headers(encoded)
    assert len(scans) >= 6
    for previous, scan in itertools.pairwise(scans):
        # The scan's own Huffman table goes with it, if it has one.
        table = encoded.find(b"\xff\xc4", previous, scan)
        cut = encoded[: scan if table < 0 else table] + b"\xff\xd9"
        for box in ((0, 0, 96, 96), (40, 41, 60, 59), (71, 0, 96, 30), (0, 80, 13, 96), (23, 0, 24, 96)):
            assert_pillows(kernel, cut, [(box, (20, 20), (0, 0, 20, 20), False, "bilinear")])


def test_images_of_many_scans_are_left(kernel: Kernel) -> None:
    """To what counts them exactly, and refuses them; up to the limit both decode."""
    frame: Frame = ((0, 0, 16, 16), (8, 8), (0, 0, 8, 8), False, "bilinear")
    assert_pillows(kernel, encode_scans(MAX_SCANS), [frame])
    for encoded in (encode_scans(MAX_SCANS + 1), encode_scans(2, comment=b"\xff\xda" * MAX_SCANS)):
        assert render(kernel, encoded, [frame])[0] != 0
    # Of one scan, nothing is counted.
    plain = encode_jpeg(1)
    commented = plain[:2] + b"\xff\xfe\x01\x92" + b"\xff\xda" * 200 + plain[2:]
    assert_pillows(kernel, commented, [frame])


def unit_size(encoded: bytes) -> tuple[int, int]:
    """(width, height) in pixels of what a scan of a baseline JPEG is made of."""
    at = frame_header(encoded)
    factors = encoded[at + 11 : at + 11 + 3 * encoded[at + 9] : 3]
    if len(factors) == 1:
        return 8, 8
    return 8 * max(factor >> 4 for factor in factors), 8 * max(factor & 15 for factor in factors)


def draw_marked_jpeg(columns: int, units: int, height: int, subsampling: str, *, short: int = 0) -> bytes:
    """A JPEG with ``columns`` segments of ``units`` units a row, ``short`` pixels less than full ones wide."""
    probe = draw_jpeg(1, 1, 0, subsampling)
    width = columns * units * unit_size(probe)[0] - short
    if subsampling in REFRAMED and REFRAMED[subsampling][0] == "rgb":
        pytest.skip("written without markers, see draw_jpeg")
    return draw_jpeg(width, height, columns, subsampling, quality=85, restart_marker_blocks=units)


def segment_ends(encoded: bytes) -> list[int]:
    """Where each segment ends, at its marker: restarts, and the end of the image."""
    at = scan_headers(encoded)[0]
    data_at = at + 2 + encoded[at + 3]
    return [n for n in range(data_at, len(encoded) - 1) if encoded[n] == 0xFF and encoded[n + 1] not in (0, 0xFF)]


MARKED = [name for name in SUBSAMPLINGS if name not in REFRAMED or REFRAMED[name][0] != "rgb"]


@settings(max_examples=300)
@given(st.data())
def test_images_with_restart_markers(kernel: Kernel, data: st.DataObject) -> None:
    """Entered at them: each frame alone, so that nothing but its own part is decoded, and several together."""
    encoded = draw_marked_jpeg(
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(1, 120)),
        data.draw(st.sampled_from(MARKED)),
        short=data.draw(st.integers(0, 7)),
    )
    frames = data.draw(st.lists(draw_frame(*image_size(encoded)), min_size=2, max_size=3))
    for wanted in frames:
        assert_pillows(kernel, encoded, [wanted])
    assert_pillows(kernel, encoded, frames)


@pytest.mark.parametrize("subsampling", MARKED)
def test_boxes_at_every_border_of_segments(kernel: Kernel, subsampling: str) -> None:
    """From a few pixels before each border to a few behind, where smooth upsampling has its neighbors."""
    encoded = draw_marked_jpeg(3, 2, 45, subsampling, short=3)
    width, height = image_size(encoded)
    across, down = unit_size(encoded)
    pixels = np.asarray(decode_image(encoded))
    lefts = [x for border in range(0, width, 2 * across) for x in range(border - 6, border + 7) if 0 <= x < width]
    tops = [y for border in range(0, height, down) for y in range(border - 6, border + 7) if 0 <= y < height]
    for index in range(max(len(lefts), len(tops))):
        left, top = lefts[index % len(lefts)], tops[index % len(tops)]
        for right, bottom in ((left + 1, top + 1), (min(left + 9, width), min(top + 5, height)), (width, height)):
            size = right - left, bottom - top
            status, found = render(kernel, encoded, [((left, top, right, bottom), size, (0, 0, *size), False, "box")])
            assert status == 0
            np.testing.assert_array_equal(found[0], pixels[top:bottom, left:right], err_msg=str((left, top)))


@pytest.mark.parametrize("subsampling", ["grey", "4:4:4", "4:2:2", "4:2:0"])
def test_segments_beside_the_box_are_not_decoded(kernel: Kernel, subsampling: str) -> None:
    """What is damaged there makes Pillow's image another one, and this one not."""
    encoded = draw_marked_jpeg(4, 2, 90, subsampling)
    across, down = unit_size(encoded)
    ends, scan = segment_ends(encoded), scan_headers(encoded)[0]
    data_at = scan + 2 + encoded[scan + 3]
    damaged = bytearray(encoded)
    # Of the segments in columns 0 and 3 and of the first rows the bytes become other ones; 1 and 2 stay.
    kept_rows = range(2, -(-90 // down) - 1)
    for segment, end in enumerate(ends):
        begin = ends[segment - 1] + 2 if segment else data_at
        if segment % 4 in (0, 3) or segment // 4 not in kept_rows:
            damaged[begin:end] = b"\x55" * (end - begin)
    box = 2 * across + 6, kept_rows[0] * down + 6, 6 * across - 6, (kept_rows[-1] + 1) * down - 6
    frame: Frame = (box, (20, 20), (0, 0, 20, 20), False, "bilinear")
    status, (pixels,) = render(kernel, bytes(damaged), [frame])
    assert status == 0
    np.testing.assert_array_equal(pixels, reference(decode_image(encoded), frame))
    assert not np.array_equal(np.asarray(decode_image(bytes(damaged))), np.asarray(decode_image(encoded)))


@pytest.mark.parametrize("kind", ["number", "left out", "twice", "other marker", "filled", "end", "interval"])
def test_markers_out_of_order_are_left_to_the_decoder(kernel: Kernel, kind: str) -> None:
    """It resynchronizes with a warning, which leaves the image to Pillow; or nothing is wrong after all."""
    encoded = draw_marked_jpeg(4, 1, 60, "4:2:0")
    ends = segment_ends(encoded)
    at = ends[5]
    changed = bytearray(encoded)
    if kind == "number":
        changed[at + 1] ^= 1
    elif kind == "left out":
        del changed[at : at + 2]
    elif kind == "twice":
        changed[at:at] = changed[at : at + 2]
    elif kind == "other marker":
        changed[at + 1] = 0xE5
    elif kind == "filled":
        changed[at:at] = b"\xff\xff"
    elif kind == "end":
        changed[at + 1] = 0xD9
    else:
        where = changed.index(b"\xff\xdd")
        changed[where + 5] = 3
    frame: Frame = ((33, 33, 60, 58), (9, 9), (0, 0, 9, 9), False, "bilinear")
    status, (pixels,) = render(kernel, bytes(changed), [frame])
    assert (status == 0) == (kind == "filled")
    if status == 0:
        np.testing.assert_array_equal(pixels, reference(decode_image(bytes(changed)), frame))


def test_headers_with_everything_in_them(kernel: Kernel) -> None:
    """Profiles and comments are left out of what is decoded; the marker that says what the colors are stays."""
    image = draw_image(128, 40, 4)
    frame: Frame = ((40, 20, 90, 38), (16, 16), (0, 0, 16, 16), False, "bilinear")
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({"keep_rgb": True}, {"subsampling": "4:2:0"}):
        more = {"icc_profile": bytes(90_000), "exif": exif.tobytes(), "comment": b"\xff\xd9 \xff\xd0"}
        encoded = encode(image, quality=80, restart_marker_blocks=2, **more, **options)
        assert_pillows(kernel, encoded, [frame])
    ycc = encode(image, quality=80, restart_marker_blocks=2, subsampling="4:4:4")
    # Instead of JFIF's marker Adobe's, which says that the colors are as they are.
    adobe = ycc[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + ycc[20:]
    assert not np.array_equal(np.asarray(decode_image(adobe)), np.asarray(decode_image(ycc)))
    assert_pillows(kernel, adobe, [frame])


def test_rewritten_images(kernel: Kernel) -> None:
    """By either kind of markers: the same pixels, and entered they give them too."""
    for number, subsampling in enumerate(MARKED):
        encoded = draw_jpeg(170, 97, number, subsampling)
        width, height = image_size(encoded)
        for by_row in (False, True):
            rewritten = kernel.rewrite(encoded, by_row=by_row)
            assert rewritten is not None
            np.testing.assert_array_equal(np.asarray(decode_image(rewritten)), np.asarray(decode_image(encoded)))
            for box in ((0, 0, width, height), (70, 40, 103, 66), (width - 3, height - 3, width, height)):
                assert_pillows(kernel, rewritten, [(box, (20, 20), (0, 0, 20, 20), False, "bilinear")])


def test_rgb_jpegs_without_a_color_transform(kernel: Kernel) -> None:
    encoded = draw_jpeg(60, 44, 1, "rgb")
    assert encoded[frame_header(encoded) + 10] == ord("R")
    assert_pillows(kernel, encoded, [((3, 5, 51, 40), (20, 30), (0, 0, 20, 30), True, "bicubic")])


def test_photographs(kernel: Kernel, imagenet_sample: Path) -> None:
    """Of one image in five: the whole, a crop, and a sliver; as timm and torchvision would look at them."""
    rng = np.random.default_rng(0)
    num_done = 0
    for path in sorted(imagenet_sample.rglob("*.JPEG"))[::5]:
        encoded = path.read_bytes()
        width, height = image_size(encoded)
        left, right = sorted(rng.choice(width + 1, 2, replace=False).tolist())
        top, bottom = sorted(rng.choice(height + 1, 2, replace=False).tolist())
        frames: list[Frame] = [
            ((0, 0, width, height), (256, 240), (16, 8, 224, 224), False, "bilinear"),
            ((left, top, right, bottom), (224, 224), (0, 0, 224, 224), True, "bicubic"),
            ((left, 0, left + 1, height), (3, 160), (0, 0, 3, 160), False, "box"),
        ]
        status, found = render(kernel, encoded, frames)
        if status == 0:
            num_done += 1
            image = decode_image(encoded)
            for pixels, wanted in zip(found, frames, strict=True):
                np.testing.assert_array_equal(pixels, reference(image, wanted))
    assert num_done >= 45, "of 50, and the rest is CMYK, PNG or damaged"


@given(st.data())
def test_pixels_as_a_source(kernel: Kernel, data: st.DataObject) -> None:
    width, height = data.draw(sides), data.draw(sides)
    image = draw_image(width, height, 2)
    frames = data.draw(st.lists(draw_frame(width, height), min_size=1, max_size=3))
    status, found = render(kernel, b"P6\n%d %d\n255\n" % image.size + image.tobytes(), frames)
    assert status == 0
    for pixels, wanted in zip(found, frames, strict=True):
        np.testing.assert_array_equal(pixels, reference(image, wanted))


WHOLE: Frame = ((0, 0, 40, 30), (16, 16), (0, 0, 16, 16), False, "bilinear")
JPEG = draw_jpeg(40, 30, 0, "4:2:0")


@pytest.mark.parametrize(
    "wanted",
    [
        ((0, 0, 41, 30), (16, 16), (0, 0, 16, 16), False, "bilinear"),
        ((0, 0, 40, 31), (16, 16), (0, 0, 16, 16), False, "bilinear"),
        ((-1, 0, 40, 30), (16, 16), (0, 0, 16, 16), False, "bilinear"),
        ((0, -1, 40, 30), (16, 16), (0, 0, 16, 16), False, "bilinear"),
        ((9, 0, 9, 30), (16, 16), (0, 0, 16, 16), False, "bilinear"),
        ((0, 9, 40, 8), (16, 16), (0, 0, 16, 16), False, "bilinear"),
        ((0, 0, 2**31 - 1, 30), (16, 16), (0, 0, 16, 16), False, "bilinear"),
        ((-(2**31), 0, 40, 30), (16, 16), (0, 0, 16, 16), False, "bilinear"),
        ((0, 0, 40, 30), (16, 16), (1, 0, 16, 16), False, "bilinear"),
        ((0, 0, 40, 30), (16, 16), (0, 1, 16, 16), False, "bilinear"),
        ((0, 0, 40, 30), (16, 16), (2**31 - 1, 0, 16, 16), False, "bilinear"),
        ((0, 0, 40, 30), (16, 16), (0, 2**31 - 1, 16, 16), False, "bilinear"),
        ((0, 0, 40, 30), (16, 16), (-1, 0, 16, 16), False, "bilinear"),
        ((0, 0, 40, 30), (0, 16), (0, 0, 16, 16), False, "bilinear"),
        ((0, 0, 40, 30), (16, -5), (0, 0, 16, 16), False, "bilinear"),
    ],
)
@pytest.mark.parametrize("is_jpeg", [True, False])
def test_a_view_that_cannot_be_is_left(kernel: Kernel, wanted: Frame, is_jpeg: bool) -> None:
    source = JPEG if is_jpeg else b"P6\n40 30\n255\n" + decode_image(JPEG).tobytes()
    assert render(kernel, source, [wanted])[0] == 1
    assert render(kernel, source, [WHOLE, wanted])[0] == 1, "one of two"
    assert render(kernel, source, [WHOLE])[0] == 0


def test_what_is_no_plain_jpeg_is_left(kernel: Kernel) -> None:
    image = decode_image(JPEG)
    deep = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40))
    others = {
        "cmyk": encode(image.convert("CMYK")),
        "png": encode(image, "PNG"),
        "16 bits": encode(deep, "PNG"),
        "webp": encode(image, "WEBP"),
        "nothing": b"",
        "an end": b"\xff\xd9",
        "start and end": b"\xff\xd8\xff\xd9",
        "text": b"no image at all",
        "header only": JPEG[:200] + b"\xff\xd9",
        "bytes behind the end": JPEG + b"more",
        "12 bits": JPEG[: frame_header(JPEG) + 4] + b"\x0c" + JPEG[frame_header(JPEG) + 5 :],
        "too many pixels": reframe(JPEG, 9500, 9500, [0x22, 0x11, 0x11]),
    }
    assert MAX_PIXELS < 9500**2
    for name, encoded in others.items():
        assert render(kernel, encoded, [WHOLE])[0] == 1, name


def test_an_end_marker_behind_other_bytes_is_an_end(kernel: Kernel) -> None:
    """As of a file with a second image behind the first, which Pillow does not look at either."""
    for encoded in (JPEG + JPEG, JPEG + b"trailer\xff\xd9", JPEG + b"\0" * 5000 + b"\xff\xd9"):
        assert_pillows(kernel, encoded, [WHOLE])


def test_sources_do_not_mind_their_neighbors(kernel: Kernel) -> None:
    """Good and bad ones in one call, with several views or none, from several threads at once."""
    encoded = [draw_jpeg(50 + n, 40 + n, n, SUBSAMPLINGS[n % len(SUBSAMPLINGS)]) for n in range(16)]
    encoded[3], encoded[7] = encoded[3][:300], b"text"
    counts = [n % 4 for n in range(16)]
    resized = 24, 18

    def run(_: int) -> tuple[list[int], bytes]:
        out = np.zeros((sum(counts), resized[1], resized[0], 3), np.uint8)
        views = np.zeros(len(out), VIEW)
        views["out"] = out.ctypes.data + np.arange(len(out)) * out[0].nbytes
        views["box"] = [(n % 5, n % 3, 40 + n % 7, 37) for n in range(len(out))]
        views["resized"], views["window"], views["filter"] = resized, (0, 0, *resized), FILTERS["bilinear"]
        sources = np.zeros(16, SOURCE)
        sources["bytes"], sources["num_bytes"] = addresses(encoded), [len(item) for item in encoded]
        sources["num_views"], sources["first_view"] = counts, np.cumsum([0, *counts[:-1]])
        kernel.render(sources, views)
        return sources["status"].tolist(), out.tobytes()

    statuses, pixels = run(0)
    assert [n for n, status in enumerate(statuses) if status] == [3, 7]
    found = np.frombuffer(pixels, np.uint8).reshape(-1, resized[1], resized[0], 3)
    first = 0
    for n, count in enumerate(counts):
        for position in range(first, first + count):
            if n not in (3, 7):
                box = position % 5, position % 3, 40 + position % 7, 37
                wanted: Frame = (box, resized, (0, 0, *resized), False, "bilinear")
                np.testing.assert_array_equal(found[position], reference(decode_image(encoded[n]), wanted))
        first += count
    with ThreadPoolExecutor(4) as threads:
        assert all(result == (statuses, pixels) for result in threads.map(run, range(24)))


def test_sizes_are_those_of_the_headers(kernel: Kernel) -> None:
    encoded = [draw_jpeg(50 + n, 40 + 2 * n, n, name) for n, name in enumerate(SUBSAMPLINGS)]
    encoded += [b"text", encoded[0][:100], encode(decode_image(JPEG).convert("CMYK"))]
    sources = np.zeros(len(encoded), SOURCE)
    sources["bytes"], sources["num_bytes"] = addresses(encoded), [len(item) for item in encoded]
    kernel.measure(sources)
    num = len(SUBSAMPLINGS)
    assert sources["status"].tolist() == [0] * num + [1, 1, 0]
    sizes = list(zip(sources["width"].tolist(), sources["height"].tolist(), strict=True))
    assert sizes[:num] == [image_size(item) for item in encoded[:num]] and sizes[-1] == (40, 30)


def test_a_kernel_that_gives_other_pixels_is_not_used(tmp_path: Path) -> None:
    path = build_library(tmp_path, "-Dfabs=floor")
    assert bind_kernel(ctypes.CDLL(str(path))) == (None, "the kernel's results differ from Pillow's on this machine")


def test_counting_units_that_does_not_hold_is_not_used(tmp_path: Path) -> None:
    """Where the library does not count as expected, markers are left to it, and pixels are right all the same."""
    library = ctypes.CDLL(str(build_library(tmp_path, "-DFIRST_COUNT=3")))
    assert bind_kernel(library, [True])[0] is None
    kernel, _ = bind_kernel(library, [True, False])
    assert kernel is not None and not kernel.counts_units
    encoded = draw_marked_jpeg(4, 4, 60, "4:2:0")
    assert_pillows(kernel, encoded, [((70, 20, 130, 50), (20, 20), (0, 0, 20, 20), False, "bilinear")])


def damage(encoded: bytes, random: Random) -> bytes:
    """One to three changes: a bit, a byte, a run left out, doubled, overwritten or put in, a marker, a cut."""
    changed = bytearray(encoded)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        # Half of the changes fall into the headers, which are a small part of the bytes.
        end = len(changed) if random.random() < 0.5 else min(700, len(changed))
        at = random.randrange(2, max(end - 2, 3))
        length = random.choice([1, 2, 3, 8, 40])
        kind = random.randrange(8)
        if kind == 0:
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            changed[at] = random.choice([0, 1, 0x11, 0x7F, 0x80, 0xD9, 0xFE, 0xFF, random.randrange(256)])
        elif kind == 2:
            del changed[at : min(at + length, len(changed) - 2)]
        elif kind == 3:
            changed[at:at] = changed[at : at + length]
        elif kind == 4:
            changed[at : at + length] = random.randbytes(length)
        elif kind == 5:
            changed[at:at] = random.randbytes(length)
        elif kind == 6:
            changed[at : at + 2] = b"\xff" + bytes([random.choice([*range(0xC0, 0xE3), 0xFE])])
        else:
            del changed[at:]
            changed += b"\xff\xd9"
        if len(changed) < 12:
            break
    return bytes(changed)


def check_rewritten(kernel: Kernel, encoded: bytes) -> None:
    """Left alone, or another file of the same pixels."""
    rewritten = kernel.rewrite(encoded, by_row=len(encoded) % 2 == 0)
    if rewritten is not None:
        np.testing.assert_array_equal(np.asarray(decode_image(rewritten)), np.asarray(decode_image(encoded)))


def check_damaged(kernel: Kernel, count: int, seed: int) -> dict[str, int]:
    """What became of ``count`` damaged JPEGs; pixels must be Pillow's wherever there are any."""
    random = Random(seed)
    options: list[dict[str, Any]] = [
        {},
        {"progressive": True},
        {"restart_marker_blocks": 2},
        {"restart_marker_rows": 1},
        {"optimize": True},
    ]
    originals = [
        draw_jpeg(random.randrange(1, 90), random.randrange(1, 90), n, name, **extra)
        for n, (name, extra) in enumerate(itertools.product(SUBSAMPLINGS, options))
    ]
    outcomes = Counter[str]()
    for number in range(count):
        encoded = damage(random.choice(originals), random)
        try:
            width, height = image_size(encoded)
        except ImageError:
            width, height = 50, 50
        left, top = random.randrange(width), random.randrange(height)
        box = left, top, random.randint(left + 1, width), random.randint(top + 1, height)
        wanted: list[Frame] = [
            (box, (9, 8), (0, 0, 9, 8), False, "bilinear"),
            ((0, 0, width, height), (11, 7), (1, 2, 9, 5), True, "bicubic"),
        ]
        wanted = wanted[: random.choice([1, 2])]
        check_rewritten(kernel, encoded)
        status, found = render(kernel, encoded, wanted)
        if status != 0:
            outcomes["left"] += 1
            continue
        try:
            image = decode_image(encoded)
        except ImageError:
            outcomes["refused"] += 1
            continue
        outcomes["equal"] += 1
        for pixels, one in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(pixels, reference(image, one), err_msg=f"seed {seed} number {number} {one}")
    return dict(outcomes)


def test_damaged_files_are_left_or_have_pillows_pixels(kernel: Kernel) -> None:
    outcomes = check_damaged(kernel, 1500, seed=1)
    assert outcomes["left"] > 300 and outcomes["equal"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_damaged_files_are_left_or_have_pillows_pixels(kernel: Kernel, seed: int) -> None:
    outcomes = check_damaged(kernel, 10_000, seed)
    assert outcomes["left"] > 2000 and outcomes["equal"] > 1000
