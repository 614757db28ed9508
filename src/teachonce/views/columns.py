"""How views are stored: the columns that a policy needs, and views to arrays and back.

A store has no column for what its policy never draws. Boxes are uint16, magnitudes float16 (drawn as such), so that
storing them changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from teachonce.codecs.codec import require_rows
from teachonce.errors import StoreError
from teachonce.on_demand import OnDemand
from teachonce.views.operations import OPERATION_NAMES, Operation
from teachonce.views.view import CENTER, Box, Erasing, Mix, View

_NO_BOX: Box = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class ViewLayout:
    """Which columns a policy's views need: a store has no column for what its policy never draws."""

    has_box: bool = True
    """Crop and flip; without them a view has no columns at all, it is ``CENTER``."""
    num_operations: int = 0
    num_erasings: int = 0
    has_mix: bool = False
    has_mix_box: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        if not self.has_box:
            return ()
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
CENTER_ONLY = ViewLayout(has_box=False)
"""The layout of the policy ``center``: no columns."""

_POSTERIZE = OPERATION_NAMES.index("posterize")
VIEW_COLUMNS = frozenset(ViewLayout(num_operations=1, num_erasings=1, has_mix=True, has_mix_box=True).columns)

_MORE_COLUMNS = VIEW_COLUMNS - set(CROP_ONLY.columns)


def encode_views(views: Sequence[View], layout: ViewLayout = CROP_ONLY) -> dict[str, NDArray[Any]]:
    """The columns of ``layout``, each [N] or [N, width].

    ``box`` uint16 [N, 4], ``flip`` uint8: 9 bytes per view. Operations: uint8 code and float16 magnitude, 3 bytes each.
    Erased boxes: uint16 [4] and uint8 [3], 11 bytes each. Mix: partner uint64 and share float32, 12 bytes; 8 more for
    cutmix's box. A box of (0, 0, 0, 0) and a share of 1 mean that there is none.
    """
    if not layout.has_box:
        return {}
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


class Crops(OnDemand[View]):
    """Views that are a crop and a flip and nothing more: ``boxes`` [n, 4], ``flips`` [n]; each a ``View`` on demand."""

    def __init__(self, boxes: NDArray[np.integer], flips: NDArray[np.integer]) -> None:
        super().__init__(len(boxes))
        self.boxes = boxes
        self.flips = flips

    def _item(self, index: int) -> View:
        left, top, right, bottom = self.boxes[index].tolist()
        return View((left, top, right, bottom), bool(self.flips[index]))


def decode_views(columns: Mapping[str, NDArray[Any]], count: int) -> Sequence[View]:
    """The ``count`` views of the columns of ``encode_views``; other columns may be present."""
    if "box" not in columns:
        return [CENTER] * count
    if not columns.keys() & _MORE_COLUMNS:
        return Crops(columns["box"], columns["flip"])
    boxes = columns["box"].tolist()
    flips = columns["flip"].tolist()
    operations = _decode_operations(columns) if "operations" in columns else [()] * count
    erasings = _decode_erasings(columns) if "erasing_boxes" in columns else [()] * count
    mixes = _decode_mixes(columns) if "mix_partner" in columns else [None] * count
    return [
        View(tuple(boxes[row]), bool(flips[row]), operations[row], erasings[row], mixes[row]) for row in range(count)
    ]


def check_views(columns: Mapping[str, NDArray[Any]]) -> None:
    """Raise StoreError, with the row, for the values of a block that no view has; other columns may be present."""
    if "box" in columns:
        require_rows(_is_box(columns["box"], strictly=True), "box", columns["box"], "left < right and top < bottom")
        require_rows(columns["flip"] <= 1, "flip", columns["flip"], "0 or 1")
    if "operations" in columns:
        codes, magnitudes = columns["operations"], columns["magnitudes"]
        is_known = codes < len(OPERATION_NAMES)
        expected = f"codes below {len(OPERATION_NAMES)} (a newer teachonce may have more)"
        require_rows(is_known, "operations", codes, expected)
        bits = np.rint(magnitudes.astype(np.float32))
        is_sound = np.isfinite(bits) & ((codes != _POSTERIZE) | ((bits >= 1) & (bits <= 8)))
        require_rows(is_sound, "magnitudes", magnitudes, "finite numbers, 1 to 8 bits for posterize")
    if "erasing_boxes" in columns:
        boxes = columns["erasing_boxes"]
        is_sound = _is_box(boxes.reshape(-1, 4)).reshape(len(boxes), -1)
        require_rows(is_sound, "erasing_boxes", boxes, "left <= right and top <= bottom")
    if "mix_share" in columns:
        shares = columns["mix_share"]
        require_rows((shares >= 0) & (shares <= 1), "mix_share", shares, "0 to 1")
    if "mix_box" in columns:
        require_rows(_is_box(columns["mix_box"]), "mix_box", columns["mix_box"], "left <= right and top <= bottom")


def _is_box(boxes: NDArray[np.integer], *, strictly: bool = False) -> NDArray[np.bool_]:
    compare = np.less if strictly else np.less_equal
    return compare(boxes[:, 0], boxes[:, 2]) & compare(boxes[:, 1], boxes[:, 3])


def _pad(items: Sequence[Any], filler: Any, length: int) -> list[Any]:
    assert len(items) <= length
    return [*items, *[filler] * (length - len(items))]


def _decode_operations(columns: Mapping[str, NDArray[Any]]) -> list[tuple[Operation, ...]]:
    codes = columns["operations"].tolist()
    magnitudes = columns["magnitudes"].astype(np.float64).tolist()
    unknown = {code for row in codes for code in row if code >= len(OPERATION_NAMES)}
    if unknown:
        raise StoreError(f"operation {min(unknown)} is unknown; it was written by a newer teachonce, or it is damaged")
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
