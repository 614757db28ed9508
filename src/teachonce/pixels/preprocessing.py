"""A model's preprocessing: geometry, interpolation, and normalization.

Every model carries its own ``Preprocessing``, from its library's configuration, its file or its SPEC. ``apply`` is the
part on the CPU, from a decoded image to pixels; ``normalize`` is the part on the device, from a batch of pixels to the
model's input. Pixels travel as uint8 between the two (a quarter of the bytes) unless the geometry makes fractions.

Three geometries cover the field. ``shorter``: the shorter side to ``resize_px``, then the center (torchvision, most of
timm). ``squash``: the full image to a square of ``resize_px``, then the center (timm's CLIP and SigLIP). ``central``:
the middle ``crop_frac`` of each side to a square (Inception, and the walkthrough's AmoebaNet and EfficientNet-B7).

With Pillow's filters the results are the bits of torchvision's and timm's evaluation transforms. ``tf1_bilinear`` is
the resize of TensorFlow 1, without antialiasing and without half-pixel centers: it is what the walkthrough's code does,
bit for bit from the same decoded pixels. (Its "inception" preprocessing decodes with TensorFlow's fast DCT, so from the
same JPEG it differs by that decoder's error; its "imagenet" ones use the accurate DCT, and there nothing differs.)

Random crops are not here: see ``views``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teachonce.errors import ConfigError, ImageError
from teachonce.pixels.decode import MAX_PIXELS, Interpolation, resize_image
from teachonce.storage.strict_json import convert_json, json_values
from teachonce.views.view import Box

if TYPE_CHECKING:
    from torch import Tensor

Geometry = Literal["shorter", "squash", "central"]
ValueRange = Literal["unit", "byte"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MAX_SIDE_PX = 8192


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The preprocessing from a decoded image to a model's input; its JSON goes into stores, runs and exported
    models."""

    size_px: int
    """Side of the square that the model sees."""
    geometry: Geometry = "shorter"
    """How the square is taken from the image, see the module's text."""
    resize_px: int = 0
    """shorter, squash: side after resizing, before the center crop; 0 stands for ``size_px``. central: unused."""
    crop_frac: float = 1.0
    """central: the part of each side that is kept. shorter, squash: unused."""
    interpolation: Interpolation = "bilinear"
    """Filter of the resize."""
    antialias: bool = True
    """Whether the filter widens where the image shrinks; without (bilinear, tf1_bilinear) pixels are not rounded."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from each channel (R, G, B), in the unit of ``value_range``."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides each channel after that."""
    value_range: ValueRange = "unit"
    """unit: values are divided by 255 before mean and std; byte: they stay 0..255."""

    def __post_init__(self) -> None:
        if self.resize_px == 0 or self.geometry == "central":
            object.__setattr__(self, "resize_px", self.size_px)
        if self.geometry != "central":
            object.__setattr__(self, "crop_frac", 1.0)
        _require_choice("geometry", self.geometry, Geometry)
        _require_choice("interpolation", self.interpolation, Interpolation)
        _require_choice("range", self.value_range, ValueRange)
        if not 1 <= self.size_px <= self.resize_px <= _MAX_SIDE_PX:
            raise ConfigError(
                f"preprocessing with size={self.size_px}, resize={self.resize_px}: "
                f"expected 1 <= size <= resize <= {_MAX_SIDE_PX}"
            )
        if not 0 < self.crop_frac <= 1:
            raise ConfigError(f"preprocessing with crop={self.crop_frac}: expected a fraction in (0, 1]")
        if self.interpolation == "tf1_bilinear" and self.antialias:
            raise ConfigError(
                "preprocessing with interpolation=tf1_bilinear: expected antialias=0, it has no antialiasing"
            )
        if not self.antialias and self.interpolation not in ("bilinear", "tf1_bilinear", "nearest"):
            raise ConfigError(
                f"preprocessing with interpolation={self.interpolation}, antialias=0: "
                "expected bilinear or tf1_bilinear without antialiasing"
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or 0 in self.std:
            raise ConfigError(f"preprocessing with mean={self.mean}, std={self.std}: expected numbers, no std of 0")

    def apply(self, image: Image.Image) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Pixels [size_px, size_px, 3] of an RGB image: uint8, or float32 in 0..255 where nothing rounds them.

        Raises ImageError for a sliver that the geometry ``shorter`` would blow up beyond any memory.
        """
        box, resized_size, (left, top, width, height) = self.frame(*image.size)
        resized = self._resize(image, *resized_size, box)
        return resized[top : top + height, left : left + width]

    def frame(self, width: int, height: int) -> tuple[Box, tuple[int, int], tuple[int, int, int, int]]:
        """What ``apply`` does to an image of ``width`` x ``height``: the box of it (left, top, right, bottom) that is
        resized, to which (width, height), and the window (left, top, width, height) of that which is kept.

        Raises ImageError as ``apply``.
        """
        size = self.size_px
        whole = 0, 0, width, height
        if self.geometry == "central":
            # As tf.image.central_crop: the margin is cut down to a whole pixel, and is the same on both sides.
            left, top = (int((side - side * self.crop_frac) / 2) for side in (width, height))
            return (left, top, width - left, height - top), (size, size), (0, 0, size, size)
        if self.geometry == "squash":
            resized = self.resize_px, self.resize_px
        else:
            # torchvision's arithmetic: the longer side is cut down to a whole pixel.
            short, long = sorted((width, height))
            longer_px = int(self.resize_px * long / short)
            if longer_px * self.resize_px > MAX_PIXELS:
                raise ImageError(
                    f"an image of {width} x {height} pixels, whose resize to a shorter side of {self.resize_px} "
                    f"pixels exceeds {MAX_PIXELS:,}; crop it or remove it"
                )
            resized = (longer_px, self.resize_px) if width > height else (self.resize_px, longer_px)
        left, top = (self._center(side) for side in resized)
        return whole, resized, (left, top, size, size)

    def with_size(self, size_px: int) -> Preprocessing:
        """The same at another size: the margin around the center crop keeps its proportion, as in timm."""
        return dataclasses.replace(
            self, size_px=size_px, resize_px=math.floor(size_px * self.resize_px / self.size_px + 1e-9)
        )

    def to_json(self) -> dict[str, Any]:
        """Every field as a JSON value."""
        return json_values(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The inverse of ``to_json``; raises ConfigError with the field for other JSON."""
        return convert_json(value, cls, "preprocessing", ConfigError)

    def _resize(
        self, image: Image.Image, width: int, height: int, box: tuple[int, int, int, int] | None = None
    ) -> NDArray[np.uint8] | NDArray[np.float32]:
        return resize_image(image, width, height, box=box, interpolation=self.interpolation, antialias=self.antialias)

    def _center(self, side_px: int) -> int:
        """Where the center crop begins: torchvision rounds half to even, the walkthrough's code rounds down."""
        margin = side_px - self.size_px
        return margin // 2 if self.interpolation == "tf1_bilinear" else round(margin / 2)


PIXELS_AS_THEY_ARE: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "value_range": "byte"}
"""Of a ``Preprocessing`` for a model whose input is integers: what normalizing leaves would be rounded to nothing."""


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The model's input [B, 3, H, W], float32, from pixels [B, H, W, 3] (uint8, or float in 0..255), on their device.

    The operations and their order are torchvision's ``ToTensor`` and ``Normalize``, so the bits are the same. Raises
    ConfigError for other shapes.
    """
    import torch

    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ConfigError(f"pixels {list(pixels.shape)}: expected [B, H, W, 3]")
    images = pixels.permute(0, 3, 1, 2).contiguous().to(torch.float32)
    if preprocessing.value_range == "unit":
        images = images / 255
    mean, std = (
        # Not made on the device: that waits for all that was asked of it before. CUDA alone is known to put aside what
        # it copies from memory that may be gone by then (pytorch issue 189690 is of Apple's GPUs).
        torch.tensor(values, dtype=torch.float32).view(3, 1, 1).to(pixels.device, non_blocking=pixels.is_cuda)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return (images - mean) / std


def _require_choice(name: str, found: str, choices: Any) -> None:
    if found not in get_args(choices):
        raise ConfigError(f"preprocessing with {name}={found}: expected one of {', '.join(get_args(choices))}")
