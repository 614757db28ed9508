"""The parameters of the policies that draw views, as options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from teachonce.options import (
    Condition,
    InViews,
    PositiveFraction,
    Probability,
    Range,
    check_values,
    only_with,
    require,
)

PolicyName = Literal["center", "crop", "crop+randaugment", "crop+autoaugment"]
ViewOrderName = Literal["sequential", "permuted"]

_AspectRatio = Annotated[float, Range(0, 1000, "0 < least <= most <= 1000", excludes_least=True)]
_Area = Annotated[float, Range(0, 1, "0 < least <= most <= 1", excludes_least=True)]
_Alpha = Annotated[float, Range(0, 1000, "0 or more, at most 1000")]
_Operations = Annotated[int, Range(1, 255, "1 to 255")]
_Level = Annotated[float, Range(0, 10, "0 to 10")]
_LevelDeviation = Annotated[float, Range(0, 1000, "0 or more, at most 1000")]
DRAWN_VIEWS = Condition("a --policy that draws views", lambda options: not options.draws_no_views)
"""What the parameters of random views need."""
_OBJECTS = Condition("--object-covered above 0", lambda options: options.object_covered > 0)
_RANDAUGMENT = Condition("--policy crop+randaugment", lambda options: options.policy == "crop+randaugment")
_ERASING = Condition("--erase-prob above 0", lambda options: options.erase_prob > 0)
_MIXED_VIEWS = Condition(
    "--teacher and --mixup-alpha or --cutmix-alpha above 0",
    lambda options: options.teacher is not None and (options.mixup_alpha > 0 or options.cutmix_alpha > 0),
)
_BOTH_MIXES = Condition(
    "--mixup-alpha and --cutmix-alpha above 0", lambda options: options.mixup_alpha > 0 and options.cutmix_alpha > 0
)


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """The parameters of the policies that draw views; a program adds ``policy``, which chooses one of these."""

    crop_scale: InViews[tuple[_Area, _Area]] = only_with((0.08, 1.0), DRAWN_VIEWS)
    """Random resized crop: minimum and maximum area as a fraction of the image (1 1: the full image)."""
    crop_ratio: InViews[tuple[_AspectRatio, _AspectRatio]] = only_with((3 / 4, 4 / 3), DRAWN_VIEWS)
    """Random resized crop: minimum and maximum aspect ratio (width / height)."""
    object_covered: InViews[Probability] = only_with(0.0, DRAWN_VIEWS)
    """A crop must show at least this fraction of an object; crops are then drawn by TensorFlow's rule, falling back
    to the full image after 100 attempts (the walkthrough: 0.1 with --crop-scale 0.05 1). 0 is off."""
    object_boxes: InViews[Literal["records", "image"]] = only_with("records", _OBJECTS)
    """--object-covered: the objects are the bounding boxes of the records (the full image for a record without one),
    or always the full image, as in the walkthrough's own training."""
    flip_prob: InViews[Probability] = only_with(0.5, DRAWN_VIEWS)
    """Probability of a horizontal flip."""
    randaugment_ops: InViews[_Operations] = only_with(2, _RANDAUGMENT)
    """Policy crop+randaugment: operations per view."""
    randaugment_magnitude: InViews[_Level] = only_with(9.0, _RANDAUGMENT)
    """Policy crop+randaugment: mean magnitude of the operations, 0 to 10."""
    randaugment_magnitude_std: InViews[_LevelDeviation] = only_with(0.5, _RANDAUGMENT)
    """Policy crop+randaugment: standard deviation of the magnitude."""
    erase_prob: InViews[Probability] = only_with(0.0, DRAWN_VIEWS)
    """Random erasing: probability that a box of a view is filled with a random color; 0 is off."""
    erase_scale: InViews[tuple[_Area, _Area]] = only_with((0.02, 1 / 3), _ERASING)
    """Random erasing: minimum and maximum area as a fraction of the view."""
    erase_ratio: InViews[tuple[_AspectRatio, _AspectRatio]] = only_with((0.3, 10 / 3), _ERASING)
    """Random erasing: minimum and maximum aspect ratio (height / width)."""

    def __post_init__(self) -> None:
        check_values(self)
        _check_ranges("--crop-scale", self.crop_scale, "--crop-ratio", self.crop_ratio)
        _check_ranges("--erase-scale", self.erase_scale, "--erase-ratio", self.erase_ratio)

    @property
    def draws_no_views(self) -> bool:
        """Whether nothing is drawn, so that none of these options applies."""
        return False


@dataclass(frozen=True, kw_only=True)
class MixOptions(ViewOptions):
    """The same, and mixing: the ``teacher`` that a program adds sees the mixed image."""

    mixup_alpha: InViews[_Alpha] = only_with(0.0, DRAWN_VIEWS)
    """Mixup with a ratio drawn from Beta(alpha, alpha); 0 is off."""
    cutmix_alpha: InViews[_Alpha] = only_with(0.0, DRAWN_VIEWS)
    """Cutmix with an area drawn from Beta(alpha, alpha); 0 is off."""
    mix_prob: InViews[PositiveFraction] = only_with(1.0, _MIXED_VIEWS)
    """Probability that a view is mixed, if mixup or cutmix is on."""
    cutmix_prob: InViews[Probability] = only_with(0.5, _BOTH_MIXES)
    """Fraction of the mixed views that use cutmix, if both are on."""


def _check_ranges(scale_option: str, scale: tuple[float, float], ratio_option: str, ratio: tuple[float, float]) -> None:
    require(0 < scale[0] <= scale[1] <= 1, scale_option, f"{scale[0]} {scale[1]}", "0 < least <= most <= 1")
    require(0 < ratio[0] <= ratio[1], ratio_option, f"{ratio[0]} {ratio[1]}", "0 < least <= most")
