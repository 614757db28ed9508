"""How a row of teacher logits becomes bytes, and back.

A codec is a frozen dataclass whose JSON is its entry in a store's plan. ``encode_logits`` gives named columns, each
with the record axis first; ``decode_logits`` gives float32 logits back, which equal the teacher's within
``error_bound`` (held to it by ``tests/test_codec.py``). Values stay in log space: the temperature is chosen when a
student is trained, never here, and nothing is ever softened or renormalised.

The two lossy codecs keep the distance of each class from the row's largest logit, because that is what a softmax
sees, and because likely classes then get the finest steps. Total variation after a softmax at temperature T is at most
half of the probability-weighted sum of |error| / T, to first order; ``tests/test_real_images.py`` measures it on real
logits. Rows that are not finite are refused: a NaN stored once would be a NaN in every student.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import LogitsError, StoreError

Columns = Mapping[str, NDArray[Any]]


class Codec(Protocol):
    """What a codec can do; ``name`` is its entry in ``CODECS``."""

    name: ClassVar[str]

    def encode_logits(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Columns for logits [N, C]; raises LogitsError where one is not finite."""

    def decode_logits(self, columns: Columns) -> NDArray[np.float32]:
        """Logits [N, C] from the columns of ``encode_logits``."""

    def error_bound(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Largest |decoded - logit| for each element of logits [N, C]."""


@dataclass(frozen=True, kw_only=True)
class Float32Codec:
    """The logits as they are: 4 bytes a class, exact."""

    name: ClassVar[str] = "float32"

    def encode_logits(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """One column, ``logits`` float32 [N, C]."""
        return {"logits": check_finite(logits)}

    def decode_logits(self, columns: Columns) -> NDArray[np.float32]:
        """The column itself."""
        return np.asarray(columns["logits"], np.float32)

    def error_bound(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Zero."""
        return np.zeros(logits.shape)


@dataclass(frozen=True, kw_only=True)
class Float16Codec:
    """Distances below the row's maximum as float16, and the maximum as float32: 2 bytes a class.

    Relative error of a distance at most 2^-11 (half a unit in the last place), so likely classes are the most exact.
    A distance beyond 65504, the largest float16, is kept as 65504: no probability mass at any T below 500.
    """

    name: ClassVar[str] = "float16"

    def encode_logits(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Columns ``distances`` float16 [N, C] and ``max_logit`` float32 [N]."""
        max_logit = check_finite(logits).max(axis=1)
        distances = np.minimum(max_logit[:, None].astype(np.float64) - logits, 65504.0)
        return {"distances": distances.astype(np.float16), "max_logit": max_logit}

    def decode_logits(self, columns: Columns) -> NDArray[np.float32]:
        """``max_logit - distances`` in float32."""
        return columns["max_logit"][:, None] - columns["distances"].astype(np.float32)

    def error_bound(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """2^-11 of the distance, the float16 subnormal step, and float32's rounding of the difference."""
        distances = logits.max(axis=1, keepdims=True).astype(np.float64) - logits
        beyond = np.maximum(distances - 65504.0, 0.0)
        return distances * 2.0**-11 + 2.0**-25 + beyond + _float32_rounding(logits)


@dataclass(frozen=True, kw_only=True)
class Int8Codec:
    """Distances below the row's maximum in 256 companded steps: 1 byte a class and 8 bytes a row.

    ``distance = range * (code / 255) ** power``, where ``range`` is the row's largest distance. Power 1 spends as much
    on classes of no mass as on the likely ones; power 1.5 was the best compromise over T = 1, 2, 4 on real logits and
    on wilder synthetic ones (LOG.md), with a total variation of at most 0.008 against the dense softmax.
    """

    name: ClassVar[str] = "int8"
    power: float = 1.5

    def encode_logits(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Columns ``codes`` uint8 [N, C], ``max_logit`` and ``range`` float32 [N]."""
        max_logit = check_finite(logits).max(axis=1)
        distances = max_logit[:, None].astype(np.float64) - logits
        row_range = np.minimum(distances.max(axis=1), np.finfo(np.float32).max).astype(np.float32)
        divisor = np.where(row_range > 0, row_range, 1).astype(np.float64)[:, None]
        codes = np.rint(np.minimum(distances / divisor, 1.0) ** (1 / self.power) * 255)
        return {"codes": codes.astype(np.uint8), "max_logit": max_logit, "range": row_range}

    def decode_logits(self, columns: Columns) -> NDArray[np.float32]:
        """``max_logit - range * (codes / 255) ** power`` in float32, through a table of the 256 levels."""
        levels = ((np.arange(256) / 255) ** self.power).astype(np.float32)
        distances = levels[columns["codes"]]
        distances *= columns["range"][:, None]
        return np.subtract(columns["max_logit"][:, None], distances, out=distances)

    def error_bound(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Half a step of the companded scale at each element's distance, and float32's rounding of the result."""
        distances = logits.max(axis=1, keepdims=True).astype(np.float64) - logits
        row_range = distances.max(axis=1, keepdims=True)
        position = (distances / np.where(row_range > 0, row_range, 1)) ** (1 / self.power)
        # The code is the nearest in position, so the decoded position is at most half a step (0.5 / 255) away; the
        # scale is convex, so the larger error is upwards.
        half_step = row_range * ((position + 0.5 / 255) ** self.power - position**self.power)
        return half_step + 4 * _float32_rounding(logits)


CODECS: dict[str, type[Float32Codec] | type[Float16Codec] | type[Int8Codec]] = {
    codec.name: codec for codec in (Float32Codec, Float16Codec, Int8Codec)
}


def codec_to_json(codec: Codec) -> dict[str, Any]:
    """A codec as its entry in a plan: name and parameters."""
    return {"name": codec.name, **dataclasses.asdict(codec)}  # type: ignore[call-overload]  # Protocol, not dataclass


def codec_from_json(entry: Mapping[str, Any]) -> Codec:
    """The codec of a plan's entry; raises StoreError for one that this version does not know."""
    parameters = dict(entry)
    name = parameters.pop("name", None)
    if name not in CODECS:
        raise StoreError(f"codec {name!r} is not known here (known: {', '.join(CODECS)}); a newer teachonce wrote it?")
    try:
        return CODECS[name](**parameters)
    except TypeError as error:
        raise StoreError(f"codec {name!r} with parameters {parameters}: {error}") from error


def check_finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits [N, C] as contiguous float32; raises LogitsError with the first row and class that is not finite."""
    logits = np.ascontiguousarray(logits, np.float32)
    finite = np.isfinite(logits)
    if not finite.all():
        row, index = np.argwhere(~finite)[0]
        raise LogitsError(
            f"teacher logit of class {index} in row {row} is {logits[row, index]}: expected a finite number; "
            "check the teacher's weights, input range and precision"
        )
    return logits


def _float32_rounding(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    # max - distance is rounded to float32 once; both are at most twice the row's largest magnitude.
    return np.abs(logits).max(axis=1, keepdims=True).astype(np.float64) * 2.0**-22
