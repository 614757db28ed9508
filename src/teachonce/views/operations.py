"""Photometric and geometric operations by name: what a view stores of them. ``pixels.operations`` applies them."""

from __future__ import annotations

from typing import NamedTuple

OPERATION_NAMES = (
    "identity",
    "autocontrast",
    "equalize",
    "rotate",
    "solarize",
    "color",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "invert",
)
"""Position is the code in a store's ``operations`` column: append only."""
FILL_RGB = (124, 116, 104)
"""Color of what a geometric operation uncovers: ImageNet's mean, for teacher and student alike."""


class Operation(NamedTuple):
    """One step on the output square: a name of ``OPERATION_NAMES`` and its magnitude in that one's unit."""

    name: str
    magnitude: float = 0.0
