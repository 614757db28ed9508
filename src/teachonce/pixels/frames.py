"""From encoded images to the pixels of boxes, many at once: what ``render`` is built on.

A ``FRAME`` says which pixels: a box of the image, the size that the box is resized to, the window of the resized that
is kept, and whether it is flipped. The kernel makes them where it can, straight into the caller's array; the rest goes
through ``decode``, which is also the reference: both give the same bits (tests/pixels/test_frames.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teachonce.errors import ImageError, StoreError, TeachonceError
from teachonce.native import addresses, lengths
from teachonce.pixels.decode import MAX_PIXELS, Encoded, Interpolation, decode_image, image_size, resize_image
from teachonce.pixels.kernel import FILTERS, SOURCE, VIEW, describe_decoder, load_kernel
from teachonce.versions import library_versions

FRAME = np.dtype(
    [("box", np.int32, 4), ("resized", np.int32, 2), ("window", np.int32, 4), ("flip", np.int32)],
)
"""box: left, top, right, bottom; resized: width, height; window: left, top, width, height."""


def pixel_versions() -> dict[str, str]:
    """``library_versions``, and under ``decoder`` what makes pixels here: what a store's manifest says."""
    return library_versions() | {"decoder": describe_decoder()}


def square_frames(boxes: Any, flips: Any, size_px: int) -> NDArray[Any]:
    """Frames [N] of boxes [N, 4] resized to squares."""
    frames = np.zeros(len(boxes), FRAME)
    frames["box"], frames["flip"] = boxes, flips
    frames["resized"] = size_px
    frames["window"] = (0, 0, size_px, size_px)
    return frames


def image_sizes(encoded: Sequence[Encoded], descriptions: Sequence[str]) -> NDArray[np.int32]:
    """(width, height) [N, 2] of images, from their headers; ImageError, which says where, for the first without one."""
    sizes = np.zeros((len(encoded), 2), np.int32)
    left = list(range(len(encoded)))
    kernel = load_kernel()
    if kernel is not None:
        sources = _sources(encoded)
        kernel.measure(sources)
        sizes[:, 0], sizes[:, 1] = sources["width"], sources["height"]
        is_too_large = sizes.astype(np.int64).prod(axis=1) > MAX_PIXELS
        left = np.flatnonzero((sources["status"] != 0) | is_too_large).tolist()
    for index in left:
        try:
            sizes[index] = image_size(encoded[index])
        except ImageError as error:
            raise error.at(descriptions[index]) from error
    return sizes


def read_pixels(
    encoded: Sequence[Encoded],
    frames: NDArray[Any],
    descriptions: Sequence[str],
    out: NDArray[np.uint8],
    *,
    interpolation: Interpolation = "bilinear",
    num_frames: int = 1,
) -> None:
    """Fill ``out`` [N * num_frames, height, width, 3] with the pixels of ``num_frames`` frames of each of N images.

    Antialiased, rounded to uint8: the bits of ``decode.resize_image``. All windows have the size of ``out``. Raises
    ImageError where an image does not decode, StoreError where a box is outside of its image, with its description.
    """
    assert len(frames) == len(out) == len(encoded) * num_frames and out.dtype == np.uint8 and out.flags.c_contiguous
    # The kernel writes what the windows say, into memory of the size that ``out`` says.
    assert out.shape[3] == 3 and (frames["window"][:, 2:] == (out.shape[2], out.shape[1])).all()
    left = list(range(len(encoded)))
    kernel = load_kernel()
    if kernel is not None and interpolation in FILTERS and len(encoded):
        views = np.empty(len(frames), VIEW)
        for name in ("box", "resized", "window", "flip"):
            views[name] = frames[name]
        views["out"] = out.ctypes.data + np.arange(len(out), dtype=np.uint64) * np.uint64(out[0].nbytes)
        views["filter"] = FILTERS[interpolation]
        sources = _sources(encoded)
        sources["num_views"] = num_frames
        sources["first_view"] = np.arange(len(encoded)) * num_frames
        kernel.render(sources, views)
        left = np.flatnonzero(sources["status"]).tolist()
    for index in left:
        own = slice(index * num_frames, (index + 1) * num_frames)
        try:
            _read_with_pillow(decode_image(encoded[index]), frames[own], out[own], interpolation)
        except TeachonceError as error:
            raise error.at(descriptions[index]) from error


def _sources(encoded: Sequence[Encoded]) -> NDArray[Any]:
    sources = np.zeros(len(encoded), SOURCE)
    sources["bytes"], sources["num_bytes"] = addresses(encoded), lengths(encoded)
    return sources


def _read_with_pillow(
    image: Image.Image, frames: NDArray[Any], out: NDArray[np.uint8], interpolation: Interpolation
) -> None:
    for frame, pixels in zip(frames, out, strict=True):
        left, top, right, bottom = box = tuple(frame["box"].tolist())
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise StoreError(f"view box {box} is outside of the image of {image.width} x {image.height} px")
        resized = resize_image(image, *frame["resized"].tolist(), box=box, interpolation=interpolation)
        x, y, width, height = frame["window"].tolist()
        # The window of a flipped frame is that of the frame before it is flipped.
        window = resized[y : y + height, x : x + width]
        pixels[:] = window[:, ::-1] if frame["flip"] else window
