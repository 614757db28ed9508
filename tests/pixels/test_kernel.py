"""The kernel: Pillow's pixels bit for bit whatever the JPEG, the box and the size, and nothing at all of damaged ones.

Each test is of the inner loops for AVX2 and, where there is a C compiler, of the plain ones (``kernels``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from teachonce.native import load_library
from teachonce.pixels.decode import MAX_SCANS, decode_image, image_size
from teachonce.pixels.kernel import FILTERS, Kernel
from tests.support.kernel_images import (
    REFRAMED,
    SUBSAMPLINGS,
    Frame,
    assert_pillows,
    draw_image,
    draw_jpeg,
    draw_marked_jpeg,
    encode,
    frame_header,
    kinds,
    reference,
    render,
    scan_headers,
    segment_ends,
    unit_size,
)
from tests.support.small_data import encode_jpeg, encode_scans

pytestmark = [
    pytest.mark.skipif(load_library() is None, reason="the native library was not built"),
    pytest.mark.xdist_group("kernel"),  # whose plain loops are compiled once
]


sides = st.one_of(st.integers(1, 40), st.integers(41, 150))


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
def test_pixels_are_pillows(kernels: Sequence[Kernel], data: st.DataObject) -> None:
    subsampling = data.draw(st.sampled_from(SUBSAMPLINGS))
    encoded = draw_jpeg(
        data.draw(sides), data.draw(sides), data.draw(st.integers(0, 1000)), subsampling, **data.draw(kinds)
    )
    assert_pillows(kernels, encoded, data.draw(st.lists(draw_frame(*image_size(encoded)), min_size=1, max_size=4)))


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2, 333), (333, 3), (17, 9), (1100, 40)])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_tiny_and_thin_images(kernels: Sequence[Kernel], size: tuple[int, int], subsampling: str) -> None:
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
    assert_pillows(kernels, encoded, frames)


def test_every_box_of_a_small_image(kernels: Sequence[Kernel]) -> None:
    """Each edge at each position within the units of 4:2:0, which is where chroma is smoothed across."""
    encoded = draw_jpeg(37, 35, 5, "4:2:0")
    image = decode_image(encoded)
    edges = [(a, b) for a, b in itertools.combinations(range(36), 2)]
    frames: list[Frame] = [
        ((a, c, b, d), (b - a, d - c), (0, 0, b - a, d - c), False, "box")
        for (a, b), (c, d) in zip(edges, reversed(edges), strict=True)
    ]
    status, found = render(kernels, encoded, frames)
    assert status == 0
    pixels = np.asarray(image)
    for own, ((left, top, right, bottom), *_) in zip(found, frames, strict=True):
        np.testing.assert_array_equal(own, pixels[top:bottom, left:right])
    for wanted in frames[::9]:  # alone, so that nothing else makes the decoder take more than it would
        assert_pillows(kernels, encoded, [wanted])


@pytest.mark.parametrize("subsampling", ["grey", "4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1"])
def test_progressive_images_without_their_last_scans(kernels: Sequence[Kernel], subsampling: str) -> None:
    """Nothing is damaged there: the decoder smooths what it has across blocks, and the box must not show."""
    encoded = draw_jpeg(96, 96, 8, subsampling, progressive=True, quality=60)
    scans = scan_headers(encoded)
    assert len(scans) >= 6
    for previous, scan in itertools.pairwise(scans):
        # The scan's own Huffman table goes with it, if it has one.
        table = encoded.find(b"\xff\xc4", previous, scan)
        cut = encoded[: scan if table < 0 else table] + b"\xff\xd9"
        for box in ((0, 0, 96, 96), (40, 41, 60, 59), (71, 0, 96, 30), (0, 80, 13, 96), (23, 0, 24, 96)):
            assert_pillows(kernels, cut, [(box, (20, 20), (0, 0, 20, 20), False, "bilinear")])


def test_images_of_many_scans_are_left(kernels: Sequence[Kernel]) -> None:
    """To what counts them exactly, and refuses them; up to the limit both decode."""
    frame: Frame = ((0, 0, 16, 16), (8, 8), (0, 0, 8, 8), False, "bilinear")
    assert_pillows(kernels, encode_scans(MAX_SCANS), [frame])
    for encoded in (encode_scans(MAX_SCANS + 1), encode_scans(2, comment=b"\xff\xda" * MAX_SCANS)):
        assert render(kernels, encoded, [frame])[0] != 0
    # Of one scan, nothing is counted.
    plain = encode_jpeg(1)
    commented = plain[:2] + b"\xff\xfe\x01\x92" + b"\xff\xda" * 200 + plain[2:]
    assert_pillows(kernels, commented, [frame])


MARKED = [name for name in SUBSAMPLINGS if name not in REFRAMED or REFRAMED[name][0] != "rgb"]


@settings(max_examples=300)
@given(st.data())
def test_images_with_restart_markers(kernels: Sequence[Kernel], data: st.DataObject) -> None:
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
        assert_pillows(kernels, encoded, [wanted])
    assert_pillows(kernels, encoded, frames)


@pytest.mark.parametrize("subsampling", MARKED)
def test_boxes_at_every_border_of_segments(kernels: Sequence[Kernel], subsampling: str) -> None:
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
            status, found = render(kernels, encoded, [((left, top, right, bottom), size, (0, 0, *size), False, "box")])
            assert status == 0
            np.testing.assert_array_equal(found[0], pixels[top:bottom, left:right], err_msg=str((left, top)))


@pytest.mark.parametrize("subsampling", ["grey", "4:4:4", "4:2:2", "4:2:0"])
def test_segments_beside_the_box_are_not_decoded(kernels: Sequence[Kernel], subsampling: str) -> None:
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
    status, (pixels,) = render(kernels, bytes(damaged), [frame])
    assert status == 0
    np.testing.assert_array_equal(pixels, reference(decode_image(encoded), frame))
    assert not np.array_equal(np.asarray(decode_image(bytes(damaged))), np.asarray(decode_image(encoded)))


@pytest.mark.parametrize("kind", ["number", "left out", "twice", "other marker", "filled", "end", "interval"])
def test_markers_out_of_order_are_left_to_the_decoder(kernels: Sequence[Kernel], kind: str) -> None:
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
    status, (pixels,) = render(kernels, bytes(changed), [frame])
    assert (status == 0) == (kind == "filled")
    if status == 0:
        np.testing.assert_array_equal(pixels, reference(decode_image(bytes(changed)), frame))


def test_headers_with_everything_in_them(kernels: Sequence[Kernel]) -> None:
    """Profiles and comments are left out of what is decoded; the marker that says what the colors are stays."""
    image = draw_image(128, 40, 4)
    frame: Frame = ((40, 20, 90, 38), (16, 16), (0, 0, 16, 16), False, "bilinear")
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({"keep_rgb": True}, {"subsampling": "4:2:0"}):
        more = {"icc_profile": bytes(90_000), "exif": exif.tobytes(), "comment": b"\xff\xd9 \xff\xd0"}
        encoded = encode(image, quality=80, restart_marker_blocks=2, **more, **options)
        assert_pillows(kernels, encoded, [frame])
    ycc = encode(image, quality=80, restart_marker_blocks=2, subsampling="4:4:4")
    # Instead of JFIF's marker Adobe's, which says that the colors are as they are.
    adobe = ycc[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + ycc[20:]
    assert not np.array_equal(np.asarray(decode_image(adobe)), np.asarray(decode_image(ycc)))
    assert_pillows(kernels, adobe, [frame])


def test_rewritten_images(kernels: Sequence[Kernel]) -> None:
    """By either kind of markers: the same pixels, and entered they give them too."""
    for number, subsampling in enumerate(MARKED):
        encoded = draw_jpeg(170, 97, number, subsampling)
        width, height = image_size(encoded)
        for by_row in (False, True):
            rewritten, *others = (kernel.rewrite(encoded, by_row=by_row) for kernel in kernels)
            assert rewritten is not None
            assert all(other == rewritten for other in others)
            np.testing.assert_array_equal(np.asarray(decode_image(rewritten)), np.asarray(decode_image(encoded)))
            for box in ((0, 0, width, height), (70, 40, 103, 66), (width - 3, height - 3, width, height)):
                assert_pillows(kernels, rewritten, [(box, (20, 20), (0, 0, 20, 20), False, "bilinear")])


def test_rgb_jpegs_without_a_color_transform(kernels: Sequence[Kernel]) -> None:
    encoded = draw_jpeg(60, 44, 1, "rgb")
    assert encoded[frame_header(encoded) + 10] == ord("R")
    assert_pillows(kernels, encoded, [((3, 5, 51, 40), (20, 30), (0, 0, 20, 30), True, "bicubic")])


def test_photographs(kernels: Sequence[Kernel], imagenet_sample: Path) -> None:
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
        status, found = render(kernels, encoded, frames)
        if status == 0:
            num_done += 1
            image = decode_image(encoded)
            for pixels, wanted in zip(found, frames, strict=True):
                np.testing.assert_array_equal(pixels, reference(image, wanted))
    assert num_done >= 45, "of 50, and the rest is CMYK, PNG or damaged"


@given(st.data())
def test_pixels_as_a_source(kernels: Sequence[Kernel], data: st.DataObject) -> None:
    width, height = data.draw(sides), data.draw(sides)
    image = draw_image(width, height, 2)
    frames = data.draw(st.lists(draw_frame(width, height), min_size=1, max_size=3))
    status, found = render(kernels, b"P6\n%d %d\n255\n" % image.size + image.tobytes(), frames)
    assert status == 0
    for pixels, wanted in zip(found, frames, strict=True):
        np.testing.assert_array_equal(pixels, reference(image, wanted))
