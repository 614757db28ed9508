"""A view applied to a decoded image: the reference for the renderer's fast path, and its second half.

The order is fixed (see ``views.view``): crop, antialiased resize to the output square, flip, operations, erased boxes,
mix. Everything happens in 8-bit pixels, before mean and std. Pixels outside the box do not count: the box is cropped
first and resized then.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teachonce.errors import StoreError
from teachonce.pixels.decode import Interpolation, resize_image
from teachonce.pixels.operations import apply_operation
from teachonce.views.view import RELATIVE_ONE, Box, Mix, View


def apply_view(
    image: Image.Image,
    view: View,
    size_px: int,
    interpolation: Interpolation = "bilinear",
    partner_pixels: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Pixels [size_px, size_px, 3] of an RGB image seen through ``view``.

    A mixed view needs ``partner_pixels``: the partner's own view, without mix, at the same size. Raises StoreError when
    the box is outside of the image, which means that the image is not the one it was drawn for.
    """
    assert view.box is not None, "the CENTER view needs a preprocessing"
    left, top, right, bottom = view.box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise StoreError(f"view box {view.box} is outside of the image of {image.width} x {image.height} px")
    resized = resize_image(image, size_px, size_px, box=view.box, interpolation=interpolation)
    assert resized.dtype == np.uint8
    pixels = cast(NDArray[np.uint8], resized[:, ::-1] if view.flip else resized)
    return finish_view(pixels, view, partner_pixels)


def finish_view(
    pixels: NDArray[np.uint8], view: View, partner_pixels: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """The rest of ``apply_view`` on pixels [H, W, 3] that are cropped, resized and flipped already."""
    if view.operations:
        square = Image.fromarray(pixels)
        for operation in view.operations:
            square = apply_operation(square, operation)
        pixels = np.asarray(square)
    if view.erasings:
        pixels = pixels.copy()
        for erasing in view.erasings:
            pixels[_slices(erasing.box, len(pixels))] = erasing.fill
    if view.mix is not None:
        assert partner_pixels is not None, "a mixed view needs its partner's pixels"
        pixels = apply_mix(pixels, partner_pixels, view.mix)
    return pixels


def apply_mix(pixels: NDArray[np.uint8], partner_pixels: NDArray[np.uint8], mix: Mix) -> NDArray[np.uint8]:
    """Own and partner's pixels [H, W, 3] of one size, mixed; a blend is rounded to the nearest gray level."""
    if mix.box is not None:
        mixed = pixels.copy()
        region = _slices(mix.box, len(pixels))
        mixed[region] = partner_pixels[region]
        return mixed
    share = np.float32(mix.share)
    blend = share * pixels.astype(np.float32) + (1 - share) * partner_pixels.astype(np.float32)
    return np.rint(blend).astype(np.uint8)


def _slices(box: Box, size_px: int) -> tuple[slice, slice]:
    left, top, right, bottom = (round(side * size_px / RELATIVE_ONE) for side in box)
    return slice(top, bottom), slice(left, right)
