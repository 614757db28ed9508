"""Views: one concrete way of looking at a record, drawn once and applied by anybody.

``sample_view`` draws and ``apply_view`` draws nothing: what is stored is the crop box and the flip, never a seed, so a
library that changes its random stream cannot put teacher and student out of step. A view is resolution-independent
(the box is in pixels of the source image), so a 600 px teacher and a 160 px student look at the same region.

The policy ``center`` draws nothing and stores nothing: the teacher looks through its own evaluation preprocessing (the
walkthrough's mode), and a student then trains with augmentation of its own. The policy ``crop`` is Inception's random
resized crop (Szegedy et al. 2015, arXiv:1409.4842, section 6) with the drawing rule of the field's common libraries:
ten tries, then the largest central crop of an allowed aspect ratio.

Pixels outside the box do not count: the box is cropped first and resized then, with antialiasing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teachonce.errors import ConfigError, StoreError
from teachonce.images import Interpolation, resize_image

MAX_SIDE_PX = 65_535  # boxes are stored as uint16
VIEW_COLUMNS = ("box", "flip")


@dataclass(frozen=True, slots=True)
class View:
    """A crop box (left, top, right, bottom) in pixels of the source image, and a horizontal flip after it."""

    box: tuple[int, int, int, int]
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class CenterPolicy:
    """The teacher's own evaluation crop: one view, nothing drawn."""

    name: ClassVar[str] = "center"


@dataclass(frozen=True, kw_only=True)
class CropPolicy:
    """Random resized crop and horizontal flip; ``scale`` is a fraction of the area, ``ratio`` is width / height."""

    name: ClassVar[str] = "crop"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_prob: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            raise ConfigError(f"crop scale {self.scale}, ratio {self.ratio}: expected 0 < least <= most (scale <= 1)")
        if not 0 <= self.flip_prob <= 1:
            raise ConfigError(f"flip probability {self.flip_prob}: expected 0 to 1")


Policy = CenterPolicy | CropPolicy


def policy_to_json(policy: Policy) -> dict[str, Any]:
    """A policy as its entry in a plan: name and parameters."""
    parameters = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(policy).items()}
    return {"name": policy.name, **parameters}


def policy_from_json(entry: Mapping[str, Any]) -> Policy:
    """The policy of a plan's entry; raises StoreError for one that this version does not know."""
    parameters: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in entry.items() if key != "name"
    }
    kinds: dict[str, type[CenterPolicy] | type[CropPolicy]] = {"center": CenterPolicy, "crop": CropPolicy}
    try:
        return kinds[entry["name"]](**parameters)
    except (KeyError, TypeError) as error:
        raise StoreError(f"policy {dict(entry)} is not known here; a newer teachonce wrote it?") from error


def sample_view(rng: np.random.Generator, policy: CropPolicy, width: int, height: int) -> View:
    """Draw a view of an image of ``width`` x ``height`` pixels."""
    if max(width, height) > MAX_SIDE_PX:
        raise ConfigError(f"an image of {width} x {height} px: views reach up to {MAX_SIDE_PX} px a side")
    box = _sample_box(rng, policy, width, height)
    return View(box, bool(rng.random() < policy.flip_prob))


def apply_view(
    image: Image.Image, view: View, size_px: int, interpolation: Interpolation = "bilinear"
) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] of an RGB image seen through ``view``: crop, antialiased resize to a square, flip.

    Raises StoreError when the box does not lie in the image, which means that the image is not the one drawn for.
    """
    left, top, right, bottom = view.box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise StoreError(f"view box {view.box} does not lie in the image of {image.width} x {image.height} px")
    pixels = resize_image(image, size_px, size_px, box=view.box, interpolation=interpolation)
    assert pixels.dtype == np.uint8
    return cast(NDArray[np.uint8], pixels[:, ::-1] if view.flip else pixels)


def encode_views(views: Sequence[View]) -> dict[str, NDArray[Any]]:
    """Columns ``box`` uint16 [N, 4] and ``flip`` uint8 [N]: 9 bytes a view."""
    return {
        "box": np.array([view.box for view in views], np.uint16).reshape(len(views), 4),
        "flip": np.array([view.flip for view in views], np.uint8),
    }


def decode_views(columns: Mapping[str, NDArray[Any]]) -> list[View]:
    """The views of the columns of ``encode_views``."""
    boxes = columns["box"].tolist()
    flips = columns["flip"].tolist()
    return [View(tuple(box), bool(flip)) for box, flip in zip(boxes, flips, strict=True)]


def _sample_box(rng: np.random.Generator, policy: CropPolicy, width: int, height: int) -> tuple[int, int, int, int]:
    log_least, log_most = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*policy.scale)
        ratio = math.exp(rng.uniform(log_least, log_most))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(0, width - w + 1))
            top = int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, policy.ratio[0]), policy.ratio[1])
    w = max(1, min(width, round(height * ratio)))
    h = max(1, min(height, round(width / ratio)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
