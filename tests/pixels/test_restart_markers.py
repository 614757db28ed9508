"""JPEGs rewritten without loss: what changes of the file, what does not, and which are left alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from teachonce.errors import ConfigError
from teachonce.native import load_library
from teachonce.pixels import restart_markers
from teachonce.pixels.decode import decode_image, image_size
from teachonce.pixels.kernel import load_kernel
from teachonce.pixels.restart_markers import add_restart_markers, require_rewriter
from tests.support.kernel_images import (
    JPEG,
    SUBSAMPLINGS,
    draw_image,
    draw_jpeg,
    encode,
    frame_header,
    kinds,
    reframe,
    scan_headers,
    segment_ends,
    unit_size,
)

pytestmark = pytest.mark.skipif(load_library() is None, reason="the native library was not built")


def interval_of(encoded: bytes) -> int:
    """Units between two restart markers, as the header says."""
    at = encoded.index(b"\xff\xdd")
    return int.from_bytes(encoded[at + 4 : at + 6])


def segments_of(encoded: bytes) -> list[tuple[int, bytes]]:
    """(marker, content) of the application segments and comments in front of the scan."""
    found, at = [], 2
    while encoded[at + 1] != 0xDA:
        length = int.from_bytes(encoded[at + 2 : at + 4])
        if encoded[at + 1] >= 0xE0:
            found.append((encoded[at + 1], encoded[at + 4 : at + 2 + length]))
        at += 2 + length
    return found


@settings(max_examples=150)
@given(st.data())
def test_pixels_stay_and_markers_are_where_they_should_be(data: st.DataObject) -> None:
    subsampling = data.draw(st.sampled_from(SUBSAMPLINGS))
    width, height = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 60))
    encoded = draw_jpeg(width, height, data.draw(st.integers(0, 99)), subsampling, **data.draw(kinds))
    by_row = data.draw(st.booleans())
    rewritten = add_restart_markers(encoded, by_row=by_row)
    if rewritten is None:
        # Where blocks changed hands between components, sums of differences may be more than a file can hold.
        assert subsampling.endswith("thrice")
        return
    np.testing.assert_array_equal(np.asarray(decode_image(rewritten)), np.asarray(decode_image(encoded)))
    assert rewritten[frame_header(rewritten) + 1] == 0xC0 and len(scan_headers(rewritten)) == 1
    (width, height), (across, down) = image_size(encoded), unit_size(rewritten)
    units, rows = -(-width // across), -(-height // down)
    divisors = [d for d in range(8, 3, -1) if units % d == 0]
    interval = units if by_row or not divisors else divisors[0]
    assert interval_of(rewritten) == interval
    assert len(segment_ends(rewritten)) == units // interval * rows
    assert add_restart_markers(rewritten, by_row=by_row) == rewritten


def test_metadata_are_copied_as_they_are() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    more: dict[str, Any] = {
        "icc_profile": bytes(range(256)) * 600,
        "exif": exif.tobytes(),
        "comment": b"\xff\xd9 words",
    }
    image = draw_image(90, 50, 1)
    for options in ({}, {"progressive": True}, {"keep_rgb": True}, {"dpi": (300, 150)}):
        encoded = encode(image, quality=85, **more, **options)
        rewritten = add_restart_markers(encoded, by_row=False)
        assert rewritten is not None and len(segments_of(encoded)) >= 5
        assert segments_of(rewritten) == segments_of(encoded)
        with Image.open(io.BytesIO(rewritten)) as new, Image.open(io.BytesIO(encoded)) as old:
            assert new.info.get("dpi") == old.info.get("dpi") and new.info["icc_profile"] == old.info["icc_profile"]
            assert new.getexif() == old.getexif() and new.mode == old.mode
    plain = add_restart_markers(JPEG, by_row=False)
    assert plain is not None and segments_of(plain) == segments_of(JPEG)


def test_what_is_left_alone() -> None:
    image = draw_image(64, 48, 2)
    progressive = draw_jpeg(64, 48, 2, "4:2:0", progressive=True)
    middle = scan_headers(JPEG)[0] + 300
    for name, encoded in {
        "cmyk": encode(image.convert("CMYK")),
        "png": encode(image, "PNG"),
        "text": b"no image",
        "nothing": b"",
        "truncated": JPEG[:-100],
        "truncated with an end": JPEG[:-100] + b"\xff\xd9",
        "bytes behind the end": JPEG + b"more",
        "an image behind the end": JPEG + JPEG,
        "damaged": JPEG[:middle] + b"\xff\xd3" + JPEG[middle:],
        "scans missing": progressive[: scan_headers(progressive)[5]] + b"\xff\xd9",
        "too many pixels": reframe(JPEG, 9500, 9500, [0x22, 0x11, 0x11]),
    }.items():
        assert add_restart_markers(encoded, by_row=False) is None, name


def test_what_would_grow_much_is_left_alone() -> None:
    """A blank progressive image says in a few bytes what takes many in one scan with many markers."""
    blank = encode(Image.new("L", (2000, 2000)), progressive=True, quality=50)
    assert add_restart_markers(blank, by_row=False) is None
    rewritten = add_restart_markers(blank, by_row=True)
    assert rewritten is not None and len(rewritten) <= 2 * len(blank) + 4096


def test_the_cost_of_markers_in_photographs(imagenet_sample: Path) -> None:
    """Optimized tables pay for most of them: about 1 % where a plain transcoding takes 6.6."""
    images = [path.read_bytes() for path in sorted(imagenet_sample.rglob("*.JPEG"))[::10]]
    rewritten = [add_restart_markers(encoded, by_row=False) for encoded in images]
    kept = [(old, new) for old, new in zip(images, rewritten, strict=True) if new is not None]
    assert len(kept) >= 0.9 * len(images)
    assert sum(len(new) for _, new in kept) < 1.015 * sum(len(old) for old, _ in kept)
    for old, new in kept:
        np.testing.assert_array_equal(np.asarray(decode_image(new)), np.asarray(decode_image(old)))


def test_without_the_library_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    require_rewriter("--restart auto")
    monkeypatch.setattr(restart_markers, "load_kernel", lambda: None)
    with pytest.raises(ConfigError, match=r"--restart auto: needs the native library, found .*; install"):
        require_rewriter("--restart auto")
    kernel = load_kernel()
    assert kernel is not None
    monkeypatch.setattr(restart_markers, "load_kernel", lambda: kernel)
    monkeypatch.setattr(kernel, "can_rewrite", False)
    with pytest.raises(ConfigError, match="found Pillow's libjpeg does not give access to coefficients"):
        require_rewriter("reindex")
