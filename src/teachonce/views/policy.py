"""Policies: the distributions that views are drawn from.

``center`` has one view, ``CENTER``, which stores nothing: the teacher sees the image through its own evaluation
preprocessing (the walkthrough's mode), and a student then trains with augmentation of its own. ``crop`` is Inception's
random resized crop (Szegedy et al. 2015, arXiv:1409.4842, section 6) with the drawing rule of the field's common
libraries: ten tries, then the largest central crop of an allowed aspect ratio. To it may be added RandAugment (Cubuk et
al. 2020, arXiv:1909.13719; then the policy is called ``crop+randaugment``) or AutoAugment's policy for ImageNet (Cubuk
et al. 2018, arXiv:1805.09501; ``crop+autoaugment``, see ``autoaugment``), crops that must show enough of an object
(``object_crop``), random erasing (Zhong et al. 2017, arXiv:1708.04896) and mixup or cutmix with a partner of the same
shard, which the teacher then sees mixed.
What is asked of a policy is asked of its properties (``is_random``, ``layout``, ``mix``, ``needs_boxes``), never of its
class: ``center`` is a policy like any other.

A view is a function of (seed, record key, view number, image size), of the record's boxes where crops must cover them,
and its mix of the shard's set of record keys as well: never of worker, order, batch or machine. The mix is drawn last,
so a partner's pixels, which have no mix, need none of its shard's keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_args

from teachonce.errors import ConfigError, StoreError
from teachonce.storage.strict_json import convert_json, json_values
from teachonce.views.columns import CENTER_ONLY, ViewLayout
from teachonce.views.options import MixOptions, PolicyName, ViewOptions


@dataclass(frozen=True, kw_only=True)
class CenterPolicy:
    """The teacher's own evaluation crop: one view, nothing drawn."""

    name: ClassVar[str] = "center"
    is_random: ClassVar[bool] = False
    """Whether there are views to draw, to store and to replay."""
    needs_boxes: ClassVar[bool] = False
    mix: ClassVar[None] = None
    layout: ClassVar[ViewLayout] = CENTER_ONLY


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
            raise ConfigError(f"AutoAugment for {self.found_on}: expected imagenet, the only policy available")


@dataclass(frozen=True, kw_only=True)
class ObjectCrop:
    """The crop is drawn by TensorFlow's rule and shows at least ``covered`` of an object.

    The objects are the ``boxes`` of the record, or the full ``image``; a record without boxes has the full image.
    """

    covered: float = 0.1
    boxes: str = "records"
    max_attempts: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.covered <= 1 or self.max_attempts < 1:
            raise ConfigError(
                f"crops that cover {self.covered} of an object in {self.max_attempts} attempts: expected (0, 1] "
                "and 1 or more"
            )
        if self.boxes not in ("records", "image"):
            raise ConfigError(f"crops that cover objects of {self.boxes}: expected records or image")


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """With probability ``prob`` a box of ``scale`` of the area and ``ratio`` (height / width) gets a random color."""

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

    is_random: ClassVar[bool] = True
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


def build_policy(name: str, options: ViewOptions) -> Policy:
    """The policy that options mean; a mix is part of it only where they are ``MixOptions``.

    Raises ConfigError for a name that is none.
    """
    if name not in get_args(PolicyName):
        raise ConfigError(f"policy {name!r}: expected {', '.join(get_args(PolicyName))}")
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


def view_options(policy: CropPolicy) -> dict[str, Any]:
    """``build_policy`` backwards: the options of a policy, its mix aside; but for --crop-scale without defaults."""
    found: dict[str, Any] = {"crop_ratio": policy.ratio, "flip_prob": policy.flip_prob}
    if policy.objects is not None:
        found |= {"object_covered": policy.objects.covered, "object_boxes": policy.objects.boxes}
    if policy.randaugment is not None:
        found["randaugment_ops"] = policy.randaugment.num_operations
        found["randaugment_magnitude"] = policy.randaugment.magnitude
        found["randaugment_magnitude_std"] = policy.randaugment.magnitude_std
    if policy.erasing is not None:
        found["erase_prob"] = policy.erasing.prob
        found |= {"erase_scale": policy.erasing.scale, "erase_ratio": policy.erasing.ratio}
    defaults = {field.name: field.default for field in fields(ViewOptions)}
    others = {name: value for name, value in found.items() if value != defaults[name]}
    return {"policy": policy.name, "crop_scale": policy.scale, **others}


def policy_to_json(policy: Policy) -> dict[str, Any]:
    """A policy as its entry in a plan: name and parameters; parts that it does not have are left out."""
    entry = {"name": policy.name, **json_values(policy)}
    return {key: value for key, value in entry.items() if value is not None}


def policy_from_json(entry: Mapping[str, Any]) -> Policy:
    """The policy of a plan's entry; raises StoreError with the field for one that this version does not know."""
    parameters = dict(entry)
    name = parameters.pop("name", None)
    unknown = f"policy {name!r} with these parameters is unknown (was it written by a newer teachonce?)"
    kind: type[Policy] = CenterPolicy if name == CenterPolicy.name else CropPolicy
    policy: Policy = convert_json(parameters, kind, unknown, StoreError, also=["seed"] if kind.is_random else [])
    if policy.name != name:
        raise StoreError(f"{unknown}: name: expected {policy.name} for them")
    return policy


def _check_ranges(what: str, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
        raise ConfigError(f"{what} scale {scale}, ratio {ratio}: expected 0 < least <= most (scale <= 1)")
