"""Random crops that show enough of an object: Inception's sampled crops, by TensorFlow's rule.

Szegedy et al. 2015, arXiv:1409.4842, section 6, as ``tf.image.sample_distorted_bounding_box`` draws them, which the
walkthrough trains with. An aspect ratio is drawn uniformly, then a height uniformly between those that the smallest and
the largest area allow, then a place; the crop is taken if it covers at least ``covered`` of one of the objects, and
after ``max_attempts`` failures the full image is. The common libraries' rule (``draw``) draws the area uniformly
instead, so its crops are smaller on average.

Without boxes the full image is the object, so ``covered`` is then a least area. What looks like an oversight in
TensorFlow is kept, so that the distribution is the same: a crop never touches the right or lower border, unless it is
as wide or as high as the image.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from teachonce.views.view import Box


def sample_object_crop(
    rng: np.random.Generator,
    width: int,
    height: int,
    boxes: NDArray[np.float32] | None,
    *,
    scale: tuple[float, float] = (0.05, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    covered: float = 0.1,
    max_attempts: int = 100,
) -> Box:
    """A crop of an image of ``width`` x ``height`` pixels.

    ``boxes`` [N, 4] are the objects, xmin, ymin, xmax, ymax as fractions of the image; ``scale`` is a range of the area
    as a fraction of the image, ``ratio`` one of width / height.
    """
    whole = (0, 0, width, height)
    objects = [whole] if boxes is None or len(boxes) == 0 else _in_pixels(boxes, width, height)
    for _ in range(max_attempts):
        crop = _sample_crop(rng, width, height, scale, rng.uniform(*ratio))
        if crop is not None and any(_covers(crop, box, covered) for box in objects):
            return crop
    return whole


def _in_pixels(boxes: NDArray[np.float32], width: int, height: int) -> list[Box]:
    # Truncated to integer pixels, in float32, as TensorFlow does it.
    sides = np.array([width, height, width, height], np.float32)
    return [(left, top, right, bottom) for left, top, right, bottom in (boxes * sides).astype(int).tolist()]


def _sample_crop(
    rng: np.random.Generator, width: int, height: int, scale: tuple[float, float], ratio: float
) -> Box | None:
    least_area, most_area = (side * width * height for side in scale)
    h = round(math.sqrt(least_area / ratio))
    most_h = round(math.sqrt(most_area / ratio))
    if round(most_h * ratio) > width:
        # The largest height whose width still fits.
        most_h = int((width + 0.5 - 1e-7) / ratio)
        if round(most_h * ratio) > width:
            most_h -= 1
    most_h = min(most_h, height)
    h = most_h if h >= most_h else h + int(rng.integers(most_h - h + 1))
    w = round(h * ratio)
    # Rounding may lead out of the range of areas; one pixel more or less leads back.
    if w * h < least_area:
        h += 1
        w = round(h * ratio)
    if w * h > most_area:
        h -= 1
        w = round(h * ratio)
    if not (least_area <= w * h <= most_area and 0 < w <= width and 0 < h <= height):
        return None
    top = int(rng.integers(height - h)) if h < height else 0
    left = int(rng.integers(width - w)) if w < width else 0
    return left, top, left + w, top + h


def _covers(crop: Box, box: Box, covered: float) -> bool:
    """Whether ``crop`` shows at least that part of ``box``; a box of less than a pixel is not an object."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    shared_w = min(crop[2], box[2]) - max(crop[0], box[0])
    shared_h = min(crop[3], box[3]) - max(crop[1], box[1])
    shared = shared_w * shared_h if shared_w > 0 and shared_h > 0 else 0
    return area >= 1 and shared / area >= covered
