"""Views: one concrete way of rendering a record.

A ``View`` says what was done, never from which seed, so a library that changes its random stream cannot put teacher
and student out of step (``draw`` draws them, ``columns`` stores them). It is resolution-independent: the crop box is in
pixels of the source image, everything after the crop is relative to the output, so a 600 px teacher and a 160 px
student see the same region, with the same operations, erased boxes and mix. ``CENTER`` is the view that leaves the
region to the model: each sees the image through its own evaluation preprocessing.

The order is fixed: crop, antialiased resize to the output square, flip, operations, erased boxes, mix. Everything
happens in 8-bit pixels, before mean and std: teacher and student share it whatever their normalization. (Erasing or
mixing normalized values, as common loaders do, shows models of other mean and std other pixels.)

Pixels outside the box do not count: the box is cropped first and resized then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from teachonce.views.operations import Operation

RELATIVE_ONE = 65_535
"""Relative boxes are stored as uint16 in units of 1 / RELATIVE_ONE of the output's side."""
MAX_SIDE_PX = 65_535  # crop boxes are stored as uint16

Box = tuple[int, int, int, int]
"""left, top, right, bottom: a crop in pixels of the image, an erasing or a mix relative to the output."""


@dataclass(frozen=True, slots=True)
class Erasing:
    """A box relative to the output (units of 1 / RELATIVE_ONE), filled with one color (R, G, B)."""

    box: Box
    fill: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Mix:
    """Another record's view laid into this one: blended (mixup), or pasted into ``box`` (cutmix).

    Zhang et al. 2017, arXiv:1710.09412; Yun et al. 2019, arXiv:1905.04899. ``share`` is this record's effective part
    of image and label: mixup's lambda, or 1 - area of cutmix's box (relative to the output, so it does not depend on
    the resolution). The partner's pixels are those of its own view of the same number, without that one's mix.
    """

    partner: int
    """The partner's record key; it is in the same shard."""
    share: float
    box: Box | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What was done to a record; the defaults are "nothing more than the crop"."""

    box: Box | None
    """Crop in pixels of the source image; None: what the evaluation preprocessing of the model takes (``CENTER``)."""
    flip: bool = False
    operations: tuple[Operation, ...] = ()
    erasings: tuple[Erasing, ...] = ()
    mix: Mix | None = None

    @property
    def is_crop(self) -> bool:
        """Whether crop, resize and flip are all of it."""
        return not (self.operations or self.erasings or self.mix is not None)

    def without_mix(self) -> View:
        """The same view of the record alone."""
        return self if self.mix is None else replace(self, mix=None)


CENTER = View(None)
"""The full image through the evaluation preprocessing of the model, and nothing more."""
