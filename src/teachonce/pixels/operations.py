"""Photometric and geometric operations by name, each with a magnitude in its own physical unit.

The set is RandAugment's (Cubuk et al. 2020, arXiv:1909.13719, section 3) and ``invert``, which AutoAugment's policy for
ImageNet needs beside them (Cubuk et al. 2018, arXiv:1805.09501, table 6). What is stored is what was done ("rotate by
-12.5 degrees"), never a level between 0 and 10 whose meaning is a table in some library: several such tables are about,
and they disagree. Every operation works on the output square and none depends on its size: translations are fractions
of the side, shears are slopes, the rest is per pixel or per histogram. One exception: ``sharpness`` is Pillow's 3 x 3
kernel, which is one output pixel wide at every size.

Magnitudes are drawn as float16, so that storing them changes nothing. Nothing is drawn here: see ``views.draw``.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

from teachonce.errors import StoreError
from teachonce.views.operations import FILL_RGB, Operation


def apply_operation(image: Image.Image, operation: Operation) -> Image.Image:
    """The RGB image after the operation; raises StoreError for a name that this version does not know."""
    function = OPERATIONS.get(operation.name)
    if function is None:
        raise StoreError(f"operation {operation.name!r} is unknown; was it written by a newer teachonce?")
    return function(image, operation.magnitude)


def _affine(image: Image.Image, coefficients: tuple[float, float, float, float, float, float]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR, fillcolor=FILL_RGB
    )


def _shear_x(image: Image.Image, slope: float) -> Image.Image:
    # About the middle row: about the top one (as in timm), half of the object would leave the square.
    return _affine(image, (1, slope, -slope * image.height / 2, 0, 1, 0))


def _shear_y(image: Image.Image, slope: float) -> Image.Image:
    return _affine(image, (1, 0, 0, slope, 1, -slope * image.width / 2))


def _translate_x(image: Image.Image, side_frac: float) -> Image.Image:
    return _affine(image, (1, 0, -side_frac * image.width, 0, 1, 0))


def _translate_y(image: Image.Image, side_frac: float) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, -side_frac * image.height))


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, resample=Image.Resampling.BILINEAR, fillcolor=FILL_RGB)


OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "rotate": _rotate,  # degrees, counter-clockwise
    "solarize": lambda image, threshold: ImageOps.solarize(image, round(threshold)),  # gray level 0..256
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "posterize": lambda image, bits: ImageOps.posterize(image, round(bits)),  # bits kept, 0..8
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "shear_x": _shear_x,  # slope
    "shear_y": _shear_y,
    "translate_x": _translate_x,  # fraction of the side, to the right
    "translate_y": _translate_y,  # downwards
    "invert": lambda image, _: ImageOps.invert(image),
}
