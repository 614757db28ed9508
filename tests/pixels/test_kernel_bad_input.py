"""What the kernel leaves to Pillow: invalid views, files that are not plain JPEGs, damaged ones; and a wrong kernel."""

from __future__ import annotations

import ctypes
import itertools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from teachonce.errors import ImageError
from teachonce.native import addresses, load_library
from teachonce.pixels.decode import MAX_PIXELS, decode_image, image_size
from teachonce.pixels.kernel import FILTERS, SOURCE, VIEW, Kernel, bind_kernel
from tests.support.kernel_images import (
    CFLAGS,
    JPEG,
    SUBSAMPLINGS,
    Frame,
    assert_pillows,
    build_library,
    draw_jpeg,
    draw_marked_jpeg,
    encode,
    frame_header,
    reference,
    reframe,
    render,
)

pytestmark = [
    pytest.mark.skipif(load_library() is None, reason="the native library was not built"),
    pytest.mark.xdist_group("kernel"),  # whose plain loops are compiled once
]


WHOLE: Frame = ((0, 0, 40, 30), (16, 16), (0, 0, 16, 16), False, "bilinear")


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
def test_a_view_that_cannot_be_is_left(kernels: Sequence[Kernel], wanted: Frame, is_jpeg: bool) -> None:
    source = JPEG if is_jpeg else b"P6\n40 30\n255\n" + decode_image(JPEG).tobytes()
    assert render(kernels, source, [wanted])[0] == 1
    assert render(kernels, source, [WHOLE, wanted])[0] == 1, "one of two"
    assert render(kernels, source, [WHOLE])[0] == 0


def test_what_is_no_plain_jpeg_is_left(kernels: Sequence[Kernel]) -> None:
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
        "too many pixels, decoded": b"P6\n9500 9500\n255\n" + bytes(3 * 9500**2),
    }
    assert MAX_PIXELS < 9500**2
    for name, encoded in others.items():
        assert render(kernels, encoded, [WHOLE])[0] == 1, name


@pytest.mark.parametrize("width, status", [(65_500, 0), (65_504, 1)])
def test_a_side_that_libjpeg_refuses_is_left_with_restart_markers_too(
    kernels: Sequence[Kernel], width: int, status: int
) -> None:
    """A part that is cut out of it would have a side that is not too long."""
    written = draw_jpeg(65_500, 8, 0, "grey", restart_marker_blocks=4)  # as many blocks across as of 65,504
    frame: Frame = ((100, 0, 140, 8), (40, 8), (0, 0, 40, 8), False, "box")
    encoded = reframe(written, width, 8, [0x11])
    assert render(kernels, encoded, [frame])[0] == status
    if status:
        with pytest.raises(ImageError):
            decode_image(encoded)


def test_an_end_marker_behind_other_bytes_is_an_end(kernels: Sequence[Kernel]) -> None:
    """As of a file with a second image behind the first, which Pillow does not look at either."""
    for encoded in (JPEG + JPEG, JPEG + b"trailer\xff\xd9", JPEG + b"\0" * 5000 + b"\xff\xd9"):
        assert_pillows(kernels, encoded, [WHOLE])


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
    assert_pillows([kernel], encoded, [((70, 20, 130, 50), (20, 20), (0, 0, 20, 20), False, "bilinear")])


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


def check_rewritten(kernels: Sequence[Kernel], encoded: bytes) -> None:
    """Left alone, or another file of the same pixels."""
    rewritten, *others = (kernel.rewrite(encoded, by_row=len(encoded) % 2 == 0) for kernel in kernels)
    assert all(other == rewritten for other in others)
    if rewritten is not None:
        np.testing.assert_array_equal(np.asarray(decode_image(rewritten)), np.asarray(decode_image(encoded)))


def check_damaged(kernels: Sequence[Kernel], count: int, seed: int) -> dict[str, int]:
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
        check_rewritten(kernels, encoded)
        status, found = render(kernels, encoded, wanted)
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


def test_damaged_files_are_left_or_have_pillows_pixels(kernels: Sequence[Kernel]) -> None:
    outcomes = check_damaged(kernels, 1500, seed=1)
    assert outcomes["left"] > 300 and outcomes["equal"] > 100


def render_together(kernel: Kernel, encoded: list[bytes], resized: tuple[int, int]) -> tuple[list[int], np.ndarray]:
    """Statuses, and pixels of the upper left corner of each image, of one call."""
    out = np.zeros((len(encoded), resized[1], resized[0], 3), np.uint8)
    views = np.zeros(len(out), VIEW)
    views["out"] = out.ctypes.data + np.arange(len(out)) * out[0].nbytes
    views["box"], views["resized"], views["window"] = (0, 0, 9, 9), resized, (0, 0, *resized)
    sources = np.zeros(len(encoded), SOURCE)
    sources["bytes"], sources["num_bytes"] = addresses(encoded), [len(item) for item in encoded]
    sources["num_views"], sources["first_view"] = 1, np.arange(len(encoded))
    kernel.render(sources, views)
    return sources["status"].tolist(), out


def without_segments(encoded: bytes, *markers: int) -> bytes:
    """The JPEG without its segments of these kinds, up to its first scan."""
    kept, at = encoded[:2], 2
    while encoded[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        if encoded[at + 1] not in markers:
            kept += encoded[at:end]
        at = end
    return kept + encoded[at:]


@pytest.mark.parametrize("seed", range(3))
def test_images_owe_nothing_to_the_ones_before(kernel: Kernel, seed: int) -> None:
    """One decoder decodes them all: tables, boxes, progression, restarts and damage of one are none of the next."""
    random = Random(seed)
    options: list[dict[str, Any]] = [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_blocks": 2}]
    whole = [
        draw_jpeg(random.randrange(9, 60), random.randrange(9, 60), n, name, quality=30 + 3 * n, **extra)
        for n, (name, extra) in enumerate(itertools.product(SUBSAMPLINGS, options))
    ]
    abbreviated = [without_segments(item, *kinds) for item in whole for kinds in ((0xDB,), (0xC4,), (0xDB, 0xC4))]
    encoded = [*whole, *abbreviated, *(damage(random.choice(whole), random) for _ in range(100))] * 2
    random.shuffle(encoded)
    alone = [render_together(kernel, [item], (8, 8)) for item in encoded]
    statuses, pixels = render_together(kernel, encoded, (8, 8))
    assert statuses == [status for (status,), _ in alone]
    for index, (_, (expected,)) in enumerate(alone):
        if statuses[index] == 0:
            np.testing.assert_array_equal(pixels[index], expected)
    assert 150 < statuses.count(0) < len(encoded) - 50


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6) if CFLAGS else range(2, 3))
def test_many_damaged_files_are_left_or_have_pillows_pixels(kernels: Sequence[Kernel], seed: int) -> None:
    outcomes = check_damaged(kernels, 10_000 if CFLAGS else 5_000, seed)
    assert outcomes["left"] > 1000 and outcomes["equal"] > 500
