"""Policies: the distributions that views are drawn from.

``center`` draws nothing and stores nothing: the teacher looks through its own evaluation preprocessing (the
walkthrough's mode), and a student then trains with augmentation of its own. ``crop`` is Inception's random resized crop
(Szegedy et al. 2015, arXiv:1409.4842, section 6) with the drawing rule of the field's common libraries: ten tries, then
the largest central crop of an allowed aspect ratio. To it may be added RandAugment (Cubuk et al. 2020,
arXiv:1909.13719; then the policy is called ``crop+randaugment``) or AutoAugment's policy for ImageNet (Cubuk et al.
2018, arXiv:1805.09501; ``crop+autoaugment``, see ``autoaugment``), crops that must show enough of an object
(``object_crops``), random erasing (Zhong et al. 2017, arXiv:1708.04896)
and mixup or cutmix with a partner of the same shard, which the teacher then sees mixed.

A view is a function of (seed, record key, view number, image size), of the record's boxes where crops must cover them,
and its mix of the shard's set of record keys as well: never of worker, order, batch or machine. The mix is drawn last,
so a partner's pixels, which have no mix, need none of its shard's keys.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from teachonce.autoaugment import sample_sub_policy
from teachonce.config import MixOptions, ViewOptions
from teachonce.errors import ConfigError, ImageError, StoreError
from teachonce.object_crops import sample_object_crop
from teachonce.operations import OPERATION_NAMES, Operation
from teachonce.rng import generator
from teachonce.views import MAX_SIDE_PX, RELATIVE_ONE, Box, Erasing, Mix, View, ViewLayout


@dataclass(frozen=True, kw_only=True)
class CenterPolicy:
    """The teacher's own evaluation crop: one view, nothing drawn."""

    name: ClassVar[str] = "center"


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """``num_operations`` of RANDAUGMENT_NAMES, uniformly; their level is normal around ``magnitude`` (0..10)."""

    num_operations: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.num_operations <= 255:
            raise ConfigError(f"RandAugment with {self.num_operations} operations: expected 1 to 255")
        if not (0 <= self.magnitude <= 10 and self.magnitude_std >= 0):
            raise ConfigError(
                f"RandAugment of magnitude {self.magnitude} +- {self.magnitude_std}: expected 0 to 10, +- 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class AutoAugment:
    """Two operations of a sub-policy of the policy found for ``found_on``."""

    found_on: str = "imagenet"

    def __post_init__(self) -> None:
        if self.found_on != "imagenet":
            raise ConfigError(f"AutoAugment for {self.found_on}: expected imagenet, the one policy that is here")


@dataclass(frozen=True, kw_only=True)
class ObjectCrop:
    """The crop is drawn by TensorFlow's rule and shows at least ``covered`` of an object.

    The objects are the ``boxes`` of the record, or the whole ``image``; a record without boxes has the whole image.
    """

    covered: float = 0.1
    boxes: str = "records"
    max_attempts: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.covered <= 1 or self.max_attempts < 1:
            raise ConfigError(
                f"crops that cover {self.covered} of an object in {self.max_attempts} attempts: expected (0, 1], 1 on"
            )
        if self.boxes not in ("records", "image"):
            raise ConfigError(f"crops that cover objects of {self.boxes}: expected records or image")


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """With probability ``prob`` a box of ``scale`` of the area and ``ratio`` (height / width) gets a random colour."""

    prob: float = 0.25
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 10 / 3)

    def __post_init__(self) -> None:
        if not 0 < self.prob <= 1:
            raise ConfigError(f"erasing with probability {self.prob}: expected more than 0, up to 1")
        _check_ranges("erasing", self.scale, self.ratio)


@dataclass(frozen=True, kw_only=True)
class RandomMix:
    """With probability ``prob`` mixup, share from Beta(mixup_alpha, .), or cutmix, from Beta(cutmix_alpha, .).

    An alpha of 0 switches that kind off; where both are on, ``cutmix_prob`` of the mixes are cutmix.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0
    cutmix_prob: float = 0.5

    def __post_init__(self) -> None:
        if min(self.mixup_alpha, self.cutmix_alpha) < 0 or self.mixup_alpha == self.cutmix_alpha == 0:
            raise ConfigError(f"mixup alpha {self.mixup_alpha}, cutmix alpha {self.cutmix_alpha}: expected one above 0")
        if not (0 < self.prob <= 1 and 0 <= self.cutmix_prob <= 1):
            raise ConfigError(f"mixing probability {self.prob}, of cutmix {self.cutmix_prob}: expected (0, 1], [0, 1]")


@dataclass(frozen=True, kw_only=True)
class CropPolicy:
    """Random resized crop and horizontal flip; ``scale`` is a fraction of the area, ``ratio`` is width / height."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_prob: float = 0.5
    randaugment: RandAugment | None = None
    autoaugment: AutoAugment | None = None
    objects: ObjectCrop | None = None
    erasing: RandomErasing | None = None
    mix: RandomMix | None = None

    def __post_init__(self) -> None:
        _check_ranges("crop", self.scale, self.ratio)
        if self.randaugment is not None and self.autoaugment is not None:
            raise ConfigError("RandAugment and AutoAugment in one policy: expected one of them")
        if not 0 <= self.flip_prob <= 1:
            raise ConfigError(f"flip probability {self.flip_prob}: expected 0 to 1")

    @property
    def name(self) -> str:
        """``crop``, ``crop+randaugment`` or ``crop+autoaugment``."""
        if self.autoaugment is not None:
            return "crop+autoaugment"
        return "crop" if self.randaugment is None else "crop+randaugment"

    @property
    def needs_boxes(self) -> bool:
        """Whether its crops depend on the records' bounding boxes."""
        return self.objects is not None and self.objects.boxes == "records"

    @property
    def layout(self) -> ViewLayout:
        """The columns that its views need."""
        num_operations = 0 if self.randaugment is None else self.randaugment.num_operations
        return ViewLayout(
            num_operations=2 if self.autoaugment is not None else num_operations,
            num_erasings=0 if self.erasing is None else 1,
            has_mix=self.mix is not None,
            has_mix_box=self.mix is not None and self.mix.cutmix_alpha > 0,
        )


Policy = CenterPolicy | CropPolicy
_PARTS: dict[str, type] = {
    "randaugment": RandAugment,
    "autoaugment": AutoAugment,
    "objects": ObjectCrop,
    "erasing": RandomErasing,
    "mix": RandomMix,
}
RANDAUGMENT_NAMES = OPERATION_NAMES[:14]
"""The operations that RandAugment draws from; later ones are not of its set, and the draws must stay what they were."""


def build_policy(name: str, options: ViewOptions) -> Policy:
    """The policy that options mean; a mix is part of it only where they are ``MixOptions``."""
    if name == "center":
        return CenterPolicy()
    randaugment = objects = erasing = mix = None
    if name == "crop+randaugment":
        randaugment = RandAugment(
            num_operations=options.randaugment_ops,
            magnitude=options.randaugment_magnitude,
            magnitude_std=options.randaugment_magnitude_std,
        )
    if options.object_covered > 0:
        objects = ObjectCrop(covered=options.object_covered, boxes=options.object_boxes)
    if options.erase_prob > 0:
        erasing = RandomErasing(prob=options.erase_prob, scale=options.erase_scale, ratio=options.erase_ratio)
    if isinstance(options, MixOptions) and max(options.mixup_alpha, options.cutmix_alpha) > 0:
        mix = RandomMix(
            mixup_alpha=options.mixup_alpha,
            cutmix_alpha=options.cutmix_alpha,
            prob=options.mix_prob,
            cutmix_prob=options.cutmix_prob,
        )
    return CropPolicy(
        scale=options.crop_scale,
        ratio=options.crop_ratio,
        flip_prob=options.flip_prob,
        randaugment=randaugment,
        autoaugment=AutoAugment() if name == "crop+autoaugment" else None,
        objects=objects,
        erasing=erasing,
        mix=mix,
    )


def policy_to_json(policy: Policy) -> dict[str, Any]:
    """A policy as its entry in a plan: name and parameters; parts that it does not have are left out."""
    entry = {"name": policy.name, **dataclasses.asdict(policy)}
    return {key: _plain(value) for key, value in entry.items() if value is not None}


def policy_from_json(entry: Mapping[str, Any]) -> Policy:
    """The policy of a plan's entry; raises StoreError for one that this version does not know."""
    values: dict[str, Any] = {key: _tuples(value) for key, value in entry.items() if key != "name"}
    try:
        if entry["name"] == "center":
            return CenterPolicy(**values)
        for name, part in _PARTS.items():
            if name in values:
                values[name] = part(**values[name])
        policy = CropPolicy(**values)
        if policy.name != entry["name"]:
            raise KeyError(entry["name"])
    except (KeyError, TypeError, ConfigError) as error:
        raise StoreError(f"policy {dict(entry)} is not known here; a newer teachonce wrote it?") from error
    return policy


def draw_view(
    policy: CropPolicy,
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
    policy: CropPolicy,
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
    if max(width, height) > MAX_SIDE_PX:
        raise ImageError(
            f"an image of {width} x {height} px: views reach up to {MAX_SIDE_PX} px a side; scale it down or remove it"
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
        # Yun et al., section 3.1: a box of area 1 - lambda around a uniform centre, cut at the borders.
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


def _check_ranges(what: str, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
        raise ConfigError(f"{what} scale {scale}, ratio {ratio}: expected 0 < least <= most (scale <= 1)")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value
