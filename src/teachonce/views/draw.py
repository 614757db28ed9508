"""Draws views: (seed, record key, view number, image size) to a ``View``, by a policy's parameters.

A view depends on nothing else: never on worker, order, batch or machine. Where crops must cover objects it depends on
the record's boxes too, and its mix on the shard's set of record keys as well. The mix is drawn last, so a partner's
pixels, which have no mix, need none of its shard's keys. Which numbers are drawn in which order is part of the format:
golden views hold it (tests/views/test_policy.py).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ImageError
from teachonce.rng import generator
from teachonce.views.autoaugment import sample_sub_policy
from teachonce.views.object_crop import sample_object_crop
from teachonce.views.operations import OPERATION_NAMES, Operation
from teachonce.views.policy import CenterPolicy, CropPolicy, Policy, RandAugment, RandomErasing, RandomMix
from teachonce.views.view import CENTER, MAX_SIDE_PX, RELATIVE_ONE, Box, Erasing, Mix, View

RANDAUGMENT_NAMES = OPERATION_NAMES[:14]
"""The operations that RandAugment draws from; later ones are not of its set, and the draws must stay what they were."""


def draw_view(
    policy: Policy,
    seed: int,
    key: int,
    view: int,
    width: int,
    height: int,
    shard_keys: NDArray[np.uint64] | None,
    boxes: NDArray[np.float32] | None = None,
) -> View:
    """View number ``view`` of the record with this key: the one place that says which generator a view is drawn with.

    ``shard_keys`` and ``boxes`` as in ``sample_view``.
    """
    rng = generator(seed, "view", key, view)
    return sample_view(rng, policy, width, height, key=key, shard_keys=shard_keys, boxes=boxes)


def sample_view(
    rng: np.random.Generator,
    policy: Policy,
    width: int,
    height: int,
    *,
    key: int = 0,
    shard_keys: NDArray[np.uint64] | None = None,
    boxes: NDArray[np.float32] | None = None,
) -> View:
    """Draw a view of an image of ``width`` x ``height`` pixels.

    ``boxes`` [N, 4] are the record's objects (xmin, ymin, xmax, ymax as fractions), for a policy that ``needs_boxes``.

    A mix is drawn only with ``shard_keys``: the record keys of the shard, sorted, each once. The partner is any of them
    but the record's own ``key``; a shard with no other record gives no mix.
    """
    if isinstance(policy, CenterPolicy):
        return CENTER
    if max(width, height) > MAX_SIDE_PX:
        raise ImageError(
            f"an image of {width} x {height} px: views support at most {MAX_SIDE_PX} px per side; scale it down "
            "or remove it"
        )
    if policy.objects is None:
        box = _sample_box(rng, policy, width, height)
    else:
        box = sample_object_crop(
            rng,
            width,
            height,
            boxes if policy.needs_boxes else None,
            scale=policy.scale,
            ratio=policy.ratio,
            covered=policy.objects.covered,
            max_attempts=policy.objects.max_attempts,
        )
    flip = bool(rng.random() < policy.flip_prob)
    operations: tuple[Operation, ...] = ()
    if policy.randaugment is not None:
        operations = _sample_operations(rng, policy.randaugment)
    elif policy.autoaugment is not None:
        operations = sample_sub_policy(rng)
    erasings = () if policy.erasing is None else _sample_erasings(rng, policy.erasing)
    mix = None
    if policy.mix is not None and shard_keys is not None:
        mix = _sample_mix(rng, policy.mix, key, shard_keys)
    return View(box, flip, operations, erasings, mix)


def _sample_box(rng: np.random.Generator, policy: CropPolicy, width: int, height: int) -> Box:
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


def _sample_operations(rng: np.random.Generator, policy: RandAugment) -> tuple[Operation, ...]:
    drawn = []
    for _ in range(policy.num_operations):
        name = RANDAUGMENT_NAMES[rng.integers(len(RANDAUGMENT_NAMES))]
        level = min(max(rng.normal(policy.magnitude, policy.magnitude_std), 0.0), 10.0) / 10
        sign = 1.0 if rng.random() < 0.5 else -1.0
        drawn.append(Operation(name, float(np.float16(_magnitude(name, level, sign)))))
    return tuple(drawn)


def _magnitude(name: str, level: float, sign: float) -> float:
    """The physical magnitude at ``level`` (0..1): the ranges of AutoAugment (arXiv:1805.09501, table 6), increasing."""
    if name == "rotate":
        return sign * 30 * level
    if name in ("shear_x", "shear_y"):
        return sign * 0.3 * level
    if name in ("translate_x", "translate_y"):
        return sign * 0.45 * level
    if name in ("color", "contrast", "brightness", "sharpness"):
        return 1 + sign * 0.9 * level
    if name == "solarize":
        return 256 * (1 - level)
    if name == "posterize":
        return 8 - round(4 * level)
    return 0.0


def _sample_erasings(rng: np.random.Generator, policy: RandomErasing) -> tuple[Erasing, ...]:
    if rng.random() >= policy.prob:
        return ()
    log_least, log_most = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    for _ in range(10):
        area = rng.uniform(*policy.scale)
        ratio = math.exp(rng.uniform(log_least, log_most))
        height, width = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if width <= 1 and height <= 1:
            box = _relative_box(rng.uniform(0, 1 - width), rng.uniform(0, 1 - height), width, height)
            red, green, blue = rng.integers(0, 256, 3).tolist()
            return (Erasing(box, (red, green, blue)),)
    return ()


def _sample_mix(rng: np.random.Generator, policy: RandomMix, key: int, shard_keys: NDArray[np.uint64]) -> Mix | None:
    if rng.random() >= policy.prob or len(shard_keys) < 2:
        return None
    own = int(np.searchsorted(shard_keys, np.uint64(key)))
    assert own < len(shard_keys) and int(shard_keys[own]) == key, "the record is one of its shard"
    at = int(rng.integers(len(shard_keys) - 1))
    partner = int(shard_keys[at + (at >= own)])
    both = policy.mixup_alpha > 0 and policy.cutmix_alpha > 0
    if policy.mixup_alpha == 0 or (both and rng.random() < policy.cutmix_prob):
        # Yun et al., section 3.1: a box of area 1 - lambda around a uniform center, cut at the borders.
        side = math.sqrt(1 - rng.beta(policy.cutmix_alpha, policy.cutmix_alpha))
        x, y = rng.random(2)
        left, top = max(x - side / 2, 0.0), max(y - side / 2, 0.0)
        box = _relative_box(left, top, min(x + side / 2, 1.0) - left, min(y + side / 2, 1.0) - top)
        area = (box[2] - box[0]) * (box[3] - box[1]) / RELATIVE_ONE**2
        return Mix(partner, float(np.float32(1 - area)), box) if area > 0 else None
    share = float(np.float32(rng.beta(policy.mixup_alpha, policy.mixup_alpha)))
    return Mix(partner, share) if share < 1 else None


def _relative_box(left: float, top: float, width: float, height: float) -> Box:
    edges = (left, top, left + width, top + height)
    left_unit, top_unit, right_unit, bottom_unit = (min(round(edge * RELATIVE_ONE), RELATIVE_ONE) for edge in edges)
    return left_unit, top_unit, right_unit, bottom_unit
