"""Views: one concrete way of looking at a record, and how it is applied and stored.

A ``View`` says what was done, never from which seed, so a library that changes its random stream cannot put teacher
and student out of step (``policies`` draws). It is resolution-independent: the crop box is in pixels of the source
image, everything after the crop is relative to the output, so a 600 px teacher and a 160 px student look at the same
region, with the same operations, erased boxes and mix.

The order is fixed: crop, antialiased resize to the output square, flip, operations, erased boxes, mix. Everything
happens in 8-bit pixels, before mean and std: teacher and student share it whatever their normalisation. (Erasing or
mixing normalised values, as common loaders do, shows models of other mean and std other pixels.)

Pixels outside the box do not count: the box is cropped first and resized then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teachonce.errors import StoreError
from teachonce.images import Interpolation, resize_image
from teachonce.operations import OPERATION_NAMES, Operation, apply_operation

RELATIVE_ONE = 65_535
"""Relative boxes are stored as uint16 in units of 1 / RELATIVE_ONE of the output's side."""
MAX_SIDE_PX = 65_535  # crop boxes are stored as uint16

Box = tuple[int, int, int, int]
"""left, top, right, bottom."""

_NO_BOX: Box = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Erasing:
    """A box relative to the output (units of 1 / RELATIVE_ONE), filled with one colour (R, G, B)."""

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
    """The partner's record key; it lies in the same shard."""
    share: float
    box: Box | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What was done to a record; the defaults are "nothing more than the crop"."""

    box: Box
    """Crop in pixels of the source image."""
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


@dataclass(frozen=True, kw_only=True)
class ViewLayout:
    """Which columns a policy's views need: a store has no column for what its policy never draws."""

    num_operations: int = 0
    num_erasings: int = 0
    has_mix: bool = False
    has_mix_box: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        names = ["box", "flip"]
        if self.num_operations:
            names += ["operations", "magnitudes"]
        if self.num_erasings:
            names += ["erasing_boxes", "erasing_fills"]
        if self.has_mix:
            names += ["mix_partner", "mix_share"]
        if self.has_mix_box:
            names.append("mix_box")
        return tuple(names)


CROP_ONLY = ViewLayout()
"""The layout of the policy ``crop``: box and flip."""
VIEW_COLUMNS = frozenset(ViewLayout(num_operations=1, num_erasings=1, has_mix=True, has_mix_box=True).columns)


def apply_view(
    image: Image.Image,
    view: View,
    size_px: int,
    interpolation: Interpolation = "bilinear",
    partner_pixels: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Pixels [size_px, size_px, 3] of an RGB image seen through ``view``.

    A mixed view needs ``partner_pixels``: the partner's own view, without mix, at the same size. Raises StoreError when
    the box does not lie in the image, which means that the image is not the one drawn for.
    """
    left, top, right, bottom = view.box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise StoreError(f"view box {view.box} does not lie in the image of {image.width} x {image.height} px")
    resized = resize_image(image, size_px, size_px, box=view.box, interpolation=interpolation)
    assert resized.dtype == np.uint8
    pixels = cast(NDArray[np.uint8], resized[:, ::-1] if view.flip else resized)
    return finish_view(pixels, view, partner_pixels)


def finish_view(
    pixels: NDArray[np.uint8], view: View, partner_pixels: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """The rest of ``apply_view`` on pixels [H, W, 3] that are cropped, resized and flipped already."""
    if view.operations:
        square = Image.fromarray(pixels)
        for operation in view.operations:
            square = apply_operation(square, operation)
        pixels = np.asarray(square)
    if view.erasings:
        pixels = pixels.copy()
        for erasing in view.erasings:
            pixels[_slices(erasing.box, len(pixels))] = erasing.fill
    if view.mix is not None:
        assert partner_pixels is not None, "a mixed view needs its partner's pixels"
        pixels = apply_mix(pixels, partner_pixels, view.mix)
    return pixels


def apply_mix(pixels: NDArray[np.uint8], partner_pixels: NDArray[np.uint8], mix: Mix) -> NDArray[np.uint8]:
    """Own and partner's pixels [H, W, 3] of one size, mixed; a blend is rounded to the nearest grey level."""
    if mix.box is not None:
        mixed = pixels.copy()
        where = _slices(mix.box, len(pixels))
        mixed[where] = partner_pixels[where]
        return mixed
    share = np.float32(mix.share)
    blend = share * pixels.astype(np.float32) + (1 - share) * partner_pixels.astype(np.float32)
    return np.rint(blend).astype(np.uint8)


def encode_views(views: Sequence[View], layout: ViewLayout = CROP_ONLY) -> dict[str, NDArray[Any]]:
    """The columns of ``layout``, each [N] or [N, width].

    ``box`` uint16 [N, 4], ``flip`` uint8: 9 bytes a view. Operations: uint8 code and float16 magnitude, 3 bytes each.
    Erased boxes: uint16 [4] and uint8 [3], 11 bytes each. Mix: partner uint64 and share float32, 12 bytes; 8 more for
    cutmix's box. A box of (0, 0, 0, 0) and a share of 1 mean that there is none.
    """
    count = len(views)
    columns: dict[str, NDArray[Any]] = {
        "box": np.array([view.box for view in views], np.uint16).reshape(count, 4),
        "flip": np.array([view.flip for view in views], np.uint8),
    }
    if layout.num_operations:
        operations = [_pad(view.operations, Operation("identity"), layout.num_operations) for view in views]
        columns["operations"] = np.array(
            [[OPERATION_NAMES.index(operation.name) for operation in row] for row in operations], np.uint8
        ).reshape(count, layout.num_operations)
        columns["magnitudes"] = np.array(
            [[operation.magnitude for operation in row] for row in operations], np.float16
        ).reshape(count, layout.num_operations)
    if layout.num_erasings:
        erasings = [_pad(view.erasings, Erasing(_NO_BOX, (0, 0, 0)), layout.num_erasings) for view in views]
        boxes = np.array([[erasing.box for erasing in row] for row in erasings], np.uint16)
        fills = np.array([[erasing.fill for erasing in row] for row in erasings], np.uint8)
        columns["erasing_boxes"] = boxes.reshape(count, 4 * layout.num_erasings)
        columns["erasing_fills"] = fills.reshape(count, 3 * layout.num_erasings)
    if layout.has_mix:
        mixes = [view.mix or Mix(0, 1.0) for view in views]
        columns["mix_partner"] = np.array([mix.partner for mix in mixes], np.uint64)
        columns["mix_share"] = np.array([mix.share for mix in mixes], np.float32)
        if layout.has_mix_box:
            columns["mix_box"] = np.array([mix.box or _NO_BOX for mix in mixes], np.uint16).reshape(count, 4)
    return columns


def decode_views(columns: Mapping[str, NDArray[Any]]) -> list[View]:
    """The views of the columns of ``encode_views``."""
    count = len(columns["box"])
    boxes = columns["box"].tolist()
    flips = columns["flip"].tolist()
    operations = _decode_operations(columns) if "operations" in columns else [()] * count
    erasings = _decode_erasings(columns) if "erasing_boxes" in columns else [()] * count
    mixes = _decode_mixes(columns) if "mix_partner" in columns else [None] * count
    return [
        View(tuple(boxes[row]), bool(flips[row]), operations[row], erasings[row], mixes[row]) for row in range(count)
    ]


def _slices(box: Box, size_px: int) -> tuple[slice, slice]:
    left, top, right, bottom = (round(side * size_px / RELATIVE_ONE) for side in box)
    return slice(top, bottom), slice(left, right)


def _pad(items: Sequence[Any], filler: Any, length: int) -> list[Any]:
    assert len(items) <= length
    return [*items, *[filler] * (length - len(items))]


def _decode_operations(columns: Mapping[str, NDArray[Any]]) -> list[tuple[Operation, ...]]:
    codes = columns["operations"].tolist()
    magnitudes = columns["magnitudes"].astype(np.float64).tolist()
    unknown = {code for row in codes for code in row if code >= len(OPERATION_NAMES)}
    if unknown:
        raise StoreError(f"operation {min(unknown)} is not known here; a newer teachonce wrote it, or it is damaged")
    return [
        tuple(Operation(OPERATION_NAMES[code], value) for code, value in zip(row, values, strict=True))
        for row, values in zip(codes, magnitudes, strict=True)
    ]


def _decode_erasings(columns: Mapping[str, NDArray[Any]]) -> list[tuple[Erasing, ...]]:
    count, num_erasings = len(columns["erasing_boxes"]), columns["erasing_boxes"].shape[1] // 4
    boxes = columns["erasing_boxes"].reshape(count, num_erasings, 4).tolist()
    fills = columns["erasing_fills"].reshape(count, num_erasings, 3).tolist()
    return [
        tuple(Erasing(tuple(box), tuple(fill)) for box, fill in zip(*row, strict=True) if tuple(box) != _NO_BOX)
        for row in zip(boxes, fills, strict=True)
    ]


def _decode_mixes(columns: Mapping[str, NDArray[Any]]) -> list[Mix | None]:
    partners, shares = columns["mix_partner"].tolist(), columns["mix_share"].astype(np.float64).tolist()
    boxes = columns["mix_box"].tolist() if "mix_box" in columns else [_NO_BOX] * len(partners)
    mixes: list[Mix | None] = []
    for partner, share, box in zip(partners, shares, boxes, strict=True):
        pasted = None if tuple(box) == _NO_BOX else cast(Box, tuple(box))
        mixes.append(None if share == 1 and pasted is None else Mix(partner, share, pasted))
    return mixes
