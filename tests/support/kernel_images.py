"""JPEGs of all kinds and frames to render, and how the kernel's pixels are compared with Pillow's."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image, ImageFile

from teachonce.native import addresses
from teachonce.pixels.decode import decode_image, resize_image
from teachonce.pixels.kernel import FILTERS, SOURCE, VIEW, Kernel
from tests.support.paths import ROOT

CFLAGS = os.environ.get("TEACHONCE_CFLAGS", "").split()  # `make fuzz` gives those of the sanitizers


NATIVE = sorted((ROOT / "native").glob("*.c"))


def find_compiler() -> str | None:
    return None if sys.platform == "win32" else (shutil.which("cc") or shutil.which("gcc"))


def build_library(folder: Path, *options: str) -> Path:
    """The library built anew, as setup.py builds it, with TEACHONCE_CFLAGS too; a skip without a compiler."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C compiler")
    path = folder / "native.so"
    common = ["-shared", "-fPIC", "-O2", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi", *CFLAGS]
    # A sanitizer's library is preloaded for Python, not for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [compiler, *common, *options, *map(str, NATIVE), "-lm", "-o", str(path)]
    subprocess.run(command, check=True, env=environment)
    return path


Frame = tuple[tuple[int, int, int, int], tuple[int, int], tuple[int, int, int, int], bool, str]
"""box, size that it is resized to, window (left, top, width, height) of that, flip, filter."""


def render(kernels: Sequence[Kernel], source: bytes, frames: list[Frame]) -> tuple[int, list[np.ndarray]]:
    """(status, pixels of each frame) of an image, which all kernels must agree on.

    What is compared with Pillow's pixels is then compared for all, and drawn and decoded by Pillow once.
    """
    status, pixels = _render(kernels[0], source, frames)
    for number, kernel in enumerate(kernels[1:], start=1):
        others, found = _render(kernel, source, frames)
        assert others == status, f"kernel {number} says {others}, the first {status}"
        if status == 0:
            for one, other, wanted in zip(pixels, found, frames, strict=True):
                np.testing.assert_array_equal(other, one, err_msg=f"kernel {number} {wanted}")
    return status, pixels


def _render(kernel: Kernel, source: bytes, frames: list[Frame]) -> tuple[int, list[np.ndarray]]:
    """Of one; every byte around the pixels must stay as it is."""
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


def assert_pillows(kernels: Sequence[Kernel], encoded: bytes, frames: list[Frame]) -> None:
    status, found = render(kernels, encoded, frames)
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


def scan_headers(encoded: bytes) -> list[int]:
    """Where each scan's segment begins, at its marker."""
    return [at for at in range(len(encoded) - 1) if encoded[at : at + 2] == b"\xff\xda"]


kinds = st.fixed_dictionaries(
    {"quality": st.sampled_from([30, 75, 95, 100])},
    optional={
        "progressive": st.just(True),
        "optimize": st.just(True),
        "restart_marker_blocks": st.integers(1, 5),
        "restart_marker_rows": st.integers(1, 2),
    },
)


def segment_ends(encoded: bytes) -> list[int]:
    """Where each segment ends, at its marker: restarts, and the end of the image."""
    at = scan_headers(encoded)[0]
    data_at = at + 2 + encoded[at + 3]
    return [n for n in range(data_at, len(encoded) - 1) if encoded[n] == 0xFF and encoded[n + 1] not in (0, 0xFF)]


JPEG = draw_jpeg(40, 30, 0, "4:2:0")
