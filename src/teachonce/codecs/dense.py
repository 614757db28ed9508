"""The dense codecs: a number for every class, as float32, as float16, or as one companded byte.

The two lossy ones keep the distance of each class from the row's largest logit, because that is what a softmax sees,
and because likely classes then get the finest steps. Total variation after a softmax at temperature T is, to first
order, at most half of the probability-weighted sum of |error| / T; ``tests/system/test_real_images.py`` measures it on
real logits and ``tests/codecs/test_dense.py`` on outliers. Every class is there, so the temperature of reading changes
nothing.

Which class is the most likely is exact: only classes whose logit equals the largest have distance 0. One that is nearer
than half of the first step, and would be rounded to 0 and so tie, gets a full step. What float32 makes of
``max_logit - distance`` does not undo that: a distance is at least the step s of float32 below the largest logit, and
what is stored is more than s / 2 (of ``Int8Codec`` at least (2 / 3)^1.5 = 0.54 of the distance, where code 1 stands for
one of 1.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from teachonce.codecs.codec import Codec, Columns, check_finite, require_rows
from teachonce.codecs.on_device import decode_int8
from teachonce.errors import LogitsError

if TYPE_CHECKING:
    from torch import Tensor


class DenseCodec(Codec):
    """What the dense codecs share: they are compared logit by logit."""

    def compare_logits(
        self, columns: Columns, logits: NDArray[np.float32], tolerance: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(|decoded - fresh| [N, C], ``error_bound`` + tolerance)."""
        errors = np.abs(logits.astype(np.float64) - self.decode_logits(columns))
        return errors, self.error_bound(columns) + tolerance[:, None]


@dataclass(frozen=True, kw_only=True)
class Float32Codec(DenseCodec):
    """The logits as they are: 4 bytes a class, exact."""

    name: ClassVar[str] = "float32"

    def encode_logits(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """One column, ``logits`` float32 [N, C]."""
        return {"logits": check_finite(logits)}

    def check_values(self, columns: Columns) -> None:
        """Finite logits."""
        logits = columns["logits"]
        with np.errstate(over="ignore", invalid="ignore"):
            # A sum is finite only where all of its terms are, and takes one pass and no memory.
            is_finite = np.isfinite(logits.sum(dtype=np.float32))
        if not is_finite:
            require_rows(np.isfinite(logits), "logits", logits, "finite numbers")

    def decode_logits(self, columns: Columns, temperature: float = 1.0) -> NDArray[np.float32]:
        """The column itself."""
        return np.asarray(columns["logits"], np.float32)

    def decode_tensor(self, columns: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:
        """The column itself."""
        return columns["logits"].float()

    def error_bound(self, columns: Columns) -> NDArray[np.float64]:
        """Zero."""
        return np.zeros(columns["logits"].shape)


@dataclass(frozen=True, kw_only=True)
class Float16Codec(DenseCodec):
    """Distances below the row's maximum as float16, and the maximum as float32: 2 bytes a class.

    Relative error of a distance at most 2^-11 (half a unit in the last place), so likely classes are the most exact.
    A distance beyond 65504, the largest float16, is kept as 65504: no probability mass at any T below 500. Where the
    largest logit is so large (10^12) that float32 does not see 65504 beside it, the row is refused.
    """

    name: ClassVar[str] = "float16"

    def encode_logits(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Columns ``distances`` float16 [N, C] and ``max_logit`` float32 [N].

        Raises LogitsError for a row whose most likely class would tie with the others.
        """
        logits = check_finite(logits)
        max_logit = logits.max(axis=1)
        distances = np.minimum(max_logit[:, None].astype(np.float64) - logits, 65504.0) + 0.0  # and none of -0.0
        halves = distances.astype(np.float16)
        _part_near_ties(halves.view(np.uint16), distances)  # whose 1 is the least distance
        lost = np.flatnonzero(max_logit - np.float32(65504) == max_logit)
        lost = lost[distances[lost].any(axis=1)]
        if len(lost):
            row = int(lost[0])
            raise LogitsError(
                f"teacher logits in row {row}: the largest is {max_logit[row]:.3g}, too large for float16 to tell "
                "the classes apart; use --codec float32"
            )
        return {"distances": halves, "max_logit": max_logit}

    def check_values(self, columns: Columns) -> None:
        """A finite largest logit, and distances below it."""
        distances, max_logit = columns["distances"], columns["max_logit"]
        # As integers those that are finite and not negative are the least: NumPy has no fast float16.
        if distances.view(np.uint16).max(initial=0) >= _INFINITE_HALF:
            bits = distances.view(np.uint16)
            is_sound = (bits < _INFINITE_HALF) | (bits == _NEGATIVE_ZERO)  # 0.0 and -0.0 both largest: older stores
            require_rows(is_sound, "distances", distances, "finite numbers from 0 on")
        require_rows(np.isfinite(max_logit), "max_logit", max_logit, "a finite number")

    def decode_logits(self, columns: Columns, temperature: float = 1.0) -> NDArray[np.float32]:
        """``max_logit - distances`` in float32."""
        return columns["max_logit"][:, None] - columns["distances"].astype(np.float32)

    def decode_tensor(self, columns: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:
        """``max_logit - distances`` in float32."""
        return columns["max_logit"][:, None] - columns["distances"].float()

    def error_bound(self, columns: Columns) -> NDArray[np.float64]:
        """2^-11 of the distance, half the subnormal step, and float32's rounding; none for a distance kept as 65504.

        A full step for a near tie, which has it as its distance.
        """
        distances = columns["distances"].astype(np.float64)
        half_step = np.where(distances == _HALF_STEP, 2.0**-24, 2.0**-25)
        bound = distances * 2.0**-11 + half_step + _float32_rounding(columns["max_logit"], distances)
        return np.where(distances < 65504, bound, np.inf)


@dataclass(frozen=True, kw_only=True)
class Int8Codec(DenseCodec):
    """Distances below the row's maximum in 255 companded steps: 1 byte a class and 12 bytes a row.

    ``distance = range * (code / 254) ** power``. Power 1 spends as much on classes of no mass as on the likely ones;
    power 1.5 was the best compromise over T = 1, 2, 4 on real logits and on wilder synthetic ones (LOG.md).

    ``range`` must not be stretched by an outlier, such as the -87 that the logarithm of a probability of 0 becomes, or
    a masked class at -10,000. The farthest classes of a row that together have negligible mass (``MAX_FAR_MASS``,
    at T = 16) get code 255, which decodes to the distance of the farthest of them. Where that is not enough to keep the
    total variation against the dense softmax below ``MAX_TOTAL_VARIATION`` at T = 1, 2, 4, "no mass" is meant at T = 4.
    A row for which even that fails is refused: float16 holds it.

    A class that nearly ties with the most likely has code 1.
    """

    name: ClassVar[str] = "int8"
    power: Annotated[float, Meta(gt=0, le=1.7)] = 1.5
    """A larger one would decode the least code to less than float32 tells apart, and near ties would be lost."""

    @property
    def promised_temperatures(self) -> tuple[float, float]:
        """Between the least and the largest at which each row is checked as it is encoded.

        In between the total variation may be a little above the bound: 0.011 has been found.
        """
        return min(CHECKED_TEMPERATURES), max(CHECKED_TEMPERATURES)

    @property
    def promise(self) -> str:
        """Checked, row by row."""
        return (
            f"a total variation of at most {MAX_TOTAL_VARIATION} to the dense softmax, checked at T = 1, 2, 4 as a row "
            "is encoded"
        )

    def encode_logits(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Columns ``codes`` uint8 [N, C]; ``max_logit``, ``range`` and ``far`` (a distance) float32 [N]."""
        logits = check_finite(logits)
        max_logit = logits.max(axis=1)
        distances = np.minimum(max_logit[:, None].astype(np.float64) - logits, np.finfo(np.float32).max)
        columns = self._encode(max_logit, distances, far_temperature=16.0)
        wrong = self._total_variation(columns, distances) > MAX_TOTAL_VARIATION
        if wrong.any():
            tighter = self._encode(max_logit[wrong], distances[wrong], far_temperature=4.0)
            left = self._total_variation(tighter, distances[wrong])
            if left.max() > MAX_TOTAL_VARIATION:
                row = int(np.flatnonzero(wrong)[left.argmax()])
                raise LogitsError(
                    f"teacher logits in row {row}: int8 would change their softmax by {left.max():.4f} (total "
                    f"variation), more than {MAX_TOTAL_VARIATION}; use --codec float16"
                )
            for name, values in tighter.items():
                columns[name][wrong] = values
        return columns

    def _encode(
        self, max_logit: NDArray[np.float32], distances: NDArray[np.float64], far_temperature: float
    ) -> dict[str, NDArray[Any]]:
        row_range = _near_range(distances, far_temperature).astype(np.float32)
        divisor = np.where(row_range > 0, row_range, 1).astype(np.float64)
        codes = np.rint(np.minimum(distances / divisor, 1.0) ** (1 / self.power) * 254)
        codes[distances > row_range * (1 + 2.0**-22)] = 255  # not what float32's rounding of the range left outside
        narrow = codes.astype(np.uint8)
        _part_near_ties(narrow, distances)
        return {
            "codes": narrow,
            "max_logit": max_logit,
            "range": row_range[:, 0],
            "far": distances.max(axis=1).astype(np.float32),
        }

    def _total_variation(self, columns: Columns, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Largest over T = 1, 2, 4, for each row."""
        decoded = self._decode_distances(columns).astype(np.float64)
        worst = np.zeros(len(distances))
        for temperature in CHECKED_TEMPERATURES:
            dense, stored = np.exp(-distances / temperature), np.exp(-decoded / temperature)
            dense /= dense.sum(axis=1, keepdims=True)
            stored /= stored.sum(axis=1, keepdims=True)
            np.maximum(worst, 0.5 * np.abs(dense - stored).sum(axis=1), out=worst)
        return worst

    @cached_property
    def levels(self) -> NDArray[np.float32]:
        """The fraction of its range that each code [256] decodes to; code 255 is not included."""
        return np.append((np.arange(255) / 254) ** self.power, 0.0).astype(np.float32)

    def _decode_distances(self, columns: Columns) -> NDArray[np.float32]:
        codes = columns["codes"]
        distances = self.levels[codes]
        distances *= columns["range"][:, None]
        np.copyto(distances, columns["far"][:, None], where=codes == 255)
        return distances

    def check_values(self, columns: Columns) -> None:
        """A finite largest logit, and distances below it."""
        require_rows(np.isfinite(columns["max_logit"]), "max_logit", columns["max_logit"], "a finite number")
        for name in ("range", "far"):
            values = columns[name]
            require_rows((values >= 0) & (values < np.inf), name, values, "a finite number from 0 on")

    def decode_logits(self, columns: Columns, temperature: float = 1.0) -> NDArray[np.float32]:
        """``max_logit - range * (codes / 254) ** power`` in float32; code 255 is ``far``."""
        # The arithmetic is done once for each of 256 codes, in a table a row, and not for each class.
        max_logit = columns["max_logit"]
        tables = max_logit[:, None] - self.levels * columns["range"][:, None]
        tables[:, 255] = max_logit - columns["far"]
        logits = np.empty(columns["codes"].shape, np.float32)
        for table, codes, row in zip(tables, columns["codes"], logits, strict=True):
            table.take(codes, out=row, mode="clip")  # no code is outside; to raise for one, NumPy would copy the row
        return logits

    def decode_tensor(self, columns: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:
        """The same arithmetic on tensors."""
        return decode_int8(columns, self.levels)

    def error_bound(self, columns: Columns) -> NDArray[np.float64]:
        """Half a step of the companded scale; for a far class, how much nearer it may have been; float32's rounding.

        Code 1 has the full first step: it may encode a near tie.
        """
        codes, row_range = columns["codes"], columns["range"].astype(np.float64)[:, None]
        far = columns["far"].astype(np.float64)[:, None]
        position = codes / 254
        # The code is the nearest in position, so the true position is at most half a step (0.5 / 254) away; the scale
        # is convex, so the larger error is upwards.
        half_step = row_range * ((position + 0.5 / 254) ** self.power - position**self.power)
        half_step = np.where(codes == 1, np.maximum(half_step, row_range * position**self.power), half_step)
        bound = np.where(codes == 255, far - row_range, half_step)
        return bound + 4 * _float32_rounding(columns["max_logit"], np.where(codes == 255, far, row_range))


_INFINITE_HALF = 0x7C00
"""The bits of float16's infinity; those of NaN and of what is negative are larger."""
_NEGATIVE_ZERO = 0x8000
"""Those of float16's -0.0."""
_HALF_STEP = np.finfo(np.float16).smallest_subnormal
"""2^-24: the least distance of float16."""
CHECKED_TEMPERATURES = (1.0, 2.0, 4.0)
"""Where ``Int8Codec`` checks what it promises."""
MAX_FAR_MASS = 1e-4
"""Probability mass that ``Int8Codec`` may move to the farthest distance of a row."""
MAX_TOTAL_VARIATION = 0.01
"""Between the dense and the stored softmax at T = 1, 2, 4: what ``Int8Codec`` promises."""


def _part_near_ties(codes: NDArray[np.unsignedinteger[Any]], distances: NDArray[np.float64]) -> None:
    """Code 1, in place, instead of 0 for classes [N, C] that are less likely than the most likely."""
    assert codes.flags.c_contiguous and distances.flags.c_contiguous, "else what is written is a copy"
    # Few are 0, so this costs next to nothing compared with a pass over every distance.
    zeros = np.flatnonzero(codes.reshape(-1) == 0)
    codes.reshape(-1)[zeros[distances.reshape(-1)[zeros] > 0]] = 1


def _near_range(distances: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """The largest distance [N, 1] left when the farthest classes of mass ``MAX_FAR_MASS`` are set apart."""
    ordered = np.sort(distances, axis=1)
    mass = np.exp(-ordered / temperature)
    mass_from_here = np.cumsum(mass[:, ::-1], axis=1)[:, ::-1] / mass.sum(axis=1, keepdims=True)
    num_near = np.maximum((mass_from_here > MAX_FAR_MASS).sum(axis=1, keepdims=True), 1)
    return np.take_along_axis(ordered, num_near - 1, axis=1)


def _float32_rounding(max_logit: NDArray[np.float32], distances: NDArray[np.float64]) -> NDArray[np.float64]:
    # max - distance is rounded to float32, and so are its parts: half a unit in the last place each, below 2^-126 half
    # of the least step.
    return (np.abs(max_logit.astype(np.float64))[:, None] + distances) * 2.0**-22 + 2.0**-149
