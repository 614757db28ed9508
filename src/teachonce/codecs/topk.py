"""The sparse codec: the k most likely classes, and the tail as one logit that knows how it softens.

A row of 1000 classes takes 35 bytes at k = 10. Which classes follow is lost, how much mass they have is not: the tail
classes share one logit, and at T = 1, 2, 4, 8 that logit is the one that gives the tail its softened mass; between
these it is interpolated, and below T = 1 it stays, with too little mass. A tail that
only has its mass at T = 1 would be far too heavy at T = 4, because a softmax of logits that differ softens toward
their mean: with n tail classes of logits z_j the shared logit at temperature T is T * log(mean(exp(z_j / T))), the
log-mean-exp at T = 1 and the plain mean at T = infinity. The mass is kept as that logit of its own, never as one minus
the sum of the kept probabilities, which rounding can make negative for a confident teacher.

Between two temperatures the tail's logit is linear in T^-1/2. Linear in 1/T is exact for normally distributed logits,
linear in log T follows a heavier upper tail; real ones are in between (LOG.md, 2026-11-24, also for what was tried and
left out: a profile of the tail's classes shared by the store, random sampling). In between the mass is
within 0.005 for normally distributed logits; of a tail of mostly masked classes it may be off by a third of itself.

Deliberately not included: which tail class is likelier. That is what ``int8`` costs a byte a class for: the total
variation against the dense softened target, mean over real rows at T = 2, is 0.23 here (k = 10) and 0.003 there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from teachonce.codecs.codec import Codec, Columns, check_finite, require_rows
from teachonce.codecs.on_device import decode_topk
from teachonce.errors import ConfigError, LogitsError, StoreError

if TYPE_CHECKING:
    from torch import Tensor

TAIL_TEMPERATURES = (1, 2, 4, 8)
"""Where the tail's mass is right, but for rounding."""
MAX_DISTANCE = 256.0
"""Below the most likely class; farther ones are kept as this. exp(-256 / 16) = 1e-7: no mass at any T up to 16."""
BLOCK_VALUES = 1 << 18
"""Logits that are worked on at once: 2 MiB in float64, which a core's cache holds."""


@dataclass(frozen=True, kw_only=True)
class TopKCodec(Codec):
    """``k`` classes with a companded byte each, and 5 bytes for scale and tail: 3 k + 5 bytes a row.

    Up to 65,536 classes; 5 k + 5 beyond, where an index takes 4 bytes. With ``k`` of C or more every class is kept.
    """

    name: ClassVar[str] = "topk"
    k: int = 10
    """Classes kept."""
    num_classes: int
    """Classes of the teacher."""

    def __post_init__(self) -> None:
        if self.k < 1 or self.num_classes < 1:
            raise ConfigError(f"codec topk with k {self.k} of {self.num_classes} classes: expected at least 1")

    @property
    def num_kept(self) -> int:
        """K: the classes that a row keeps."""
        return min(self.k, self.num_classes)

    @property
    def num_tail(self) -> int:
        """The classes that share the tail's logit."""
        return self.num_classes - self.num_kept

    @property
    def promised_temperatures(self) -> tuple[float, float] | None:
        """Between the least and the largest at which the tail's mass is right; any where every class is kept."""
        return (min(TAIL_TEMPERATURES), max(TAIL_TEMPERATURES)) if self.num_tail else None

    @property
    def promise(self) -> str:
        """Of the mass alone: which tail class is likelier is lost at every temperature."""
        return (
            "the total probability of the other classes (right at T = 1, 2, 4, 8, interpolated between), but not how "
            "it is distributed"
        )

    def encode_logits(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Columns ``indices`` uint16 or 32 [N, K], ``codes`` uint8 [N, K], ``range`` float16 [N] and ``drops``.

        Most likely class first; equal logits go by class index. ``codes`` are distances from the first in ``range``,
        the tail's distance at T = 1; ``drops`` uint8 [N, 3] how much farther the tail is at T = 2, 4, 8. Raises
        LogitsError for another number of classes than planned.
        """
        logits = check_finite(logits)
        if logits.shape[1] != self.num_classes:
            raise LogitsError(f"teacher logits of {logits.shape[1]} classes, expected {self.num_classes} as planned")
        num_rows = max(1, BLOCK_VALUES // self.num_classes)
        starts = range(0, max(len(logits), 1), num_rows)
        blocks = [self._encode_block(logits[start : start + num_rows]) for start in starts]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def _encode_block(self, logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        indices = _likeliest(logits, self.num_kept)
        distances = _kept_distances(logits, indices)
        farthest = distances[:, -1]
        tail = _tail_distances(logits, indices) if self.num_tail else None
        if tail is not None:
            # By definition the tail's logit is at most the last kept one; rounding must not turn that round.
            farthest = np.maximum(np.minimum(tail[:, 0], MAX_DISTANCE), farthest)
        row_range = farthest.astype(np.float16)
        # A range of 0 is for a row of equal logits alone: else the most likely class would be lost among its followers.
        is_level = logits.min(axis=1) == logits.max(axis=1)
        row_range[(row_range == 0) & ~is_level] = np.finfo(np.float16).smallest_subnormal
        codes = np.rint(np.sqrt(np.minimum(distances / np.where(row_range > 0, row_range, 1)[:, None], 1)) * 255)
        return {
            "indices": indices.astype(np.uint16 if self.num_classes <= 1 << 16 else np.uint32),
            "codes": np.maximum(codes, distances > 0).astype(np.uint8),
            "range": row_range,
            "drops": self._encode_drops(row_range, tail),
        }

    def _encode_drops(self, row_range: NDArray[np.float16], tail: NDArray[np.float64] | None) -> NDArray[np.uint8]:
        drops = np.zeros((len(row_range), 3), np.uint8)
        if tail is None or self.num_tail == 1:
            return drops
        so_far = row_range.astype(np.float64)
        for index, step in enumerate(self.drop_steps()):
            # Against what is decoded so far, so that the errors of the steps do not add up.
            drops[:, index] = np.clip(np.rint((tail[:, index + 1] - so_far) / step), 0, 255)
            so_far += drops[:, index] * step
        return drops

    def drop_steps(self) -> NDArray[np.float64]:
        """The value of a unit of ``drops`` [3]."""
        # From T to 2 T the log-mean-exp of n logits falls by T log(n) at most: where one logit is all of the sum.
        return np.array(TAIL_TEMPERATURES[:-1]) * np.log(max(self.num_tail, 1)) / 255

    def decode_logits(self, columns: Columns, temperature: float = 1.0) -> NDArray[np.float32]:
        """Logits up to a constant of the row: the largest is 0, the tail classes share the tail's logit at T.

        Below T = 1 the tail keeps its logit of T = 1. Raises StoreError for a class index that does not exist.
        """
        self.check_columns(columns)
        indices = columns["indices"]
        logits = np.empty((len(indices), self.num_classes), np.float32)
        if self.num_tail:
            logits[:] = -(self._decode_tail(columns) @ tail_weights(temperature))[:, None]
        logits[np.arange(len(indices))[:, None], indices] = 0 - _decode_kept(columns)
        return logits

    def decode_tensor(self, columns: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:
        """The same arithmetic in float32."""
        weights = tail_weights(temperature) if self.num_tail else None
        return decode_topk(columns, self.num_classes, self.drop_steps(), weights)

    def check_columns(self, columns: Columns) -> None:
        """Raise StoreError for a class index that does not exist: a device would write beyond its memory."""
        last = columns["indices"].max(initial=0)
        if last >= self.num_classes:
            raise StoreError(f"class index {last} in a store of {self.num_classes} classes: damaged")

    def check_values(self, columns: Columns) -> None:
        """Class indices, and a range that is one."""
        indices, row_range = columns["indices"], columns["range"]
        expected = f"one of {self.num_classes} classes"
        require_rows(indices < self.num_classes, "class index", indices.max(axis=1), expected)
        require_rows((row_range >= 0) & (row_range <= MAX_DISTANCE), "range", row_range, "0 to 256")

    def kept_classes(self, columns: Columns) -> NDArray[np.intp]:
        """The column ``indices``."""
        return columns["indices"].astype(np.intp)

    def _decode_tail(self, columns: Columns) -> NDArray[np.float64]:
        """Distances [N, 4] of the tail's logit from the row's largest, at ``TAIL_TEMPERATURES``."""
        drops = columns["drops"]
        falls = np.zeros((len(drops), len(TAIL_TEMPERATURES)))
        np.cumsum(drops * self.drop_steps(), axis=1, out=falls[:, 1:])
        return columns["range"].astype(np.float64)[:, None] + falls

    def error_bound(self, columns: Columns) -> NDArray[np.float64]:
        """Of the distance below the row's largest logit, for the kept classes; no bound for the tail's (inf).

        So |decoded - (logit - largest)|. A class beyond ``MAX_DISTANCE`` has no bound either.
        """
        distances = _decode_kept(columns)
        is_far = (columns["range"] == MAX_DISTANCE)[:, None] & (columns["codes"] == 255)
        bound = np.where(is_far, np.inf, _kept_bound(columns) + distances * 2.0**-22)  # and float32's rounding
        bounds = np.full((len(distances), self.num_classes), np.inf)
        np.put_along_axis(bounds, columns["indices"].astype(np.intp), bound, axis=1)
        return bounds

    def compare_logits(
        self, columns: Columns, logits: NDArray[np.float32], tolerance: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """K distances from the most likely kept class; the tail's at T = 1, 2, 4, 8; how far a tail class is
        overlooked.

        The last is by how much the largest fresh tail logit exceeds the least kept one: kept classes that are not the
        most likely would pass otherwise. Distances count up to ``MAX_DISTANCE``. Each is a difference of two logits, so
        twice the tolerance is allowed. Without a tail M is K, else K + 5.
        """
        indices = columns["indices"].astype(np.intp)
        errors = [np.abs(_decode_kept(columns) - _kept_distances(logits, indices))]
        bounds = [_kept_bound(columns)]
        if self.num_tail:
            stored = np.minimum(self._decode_tail(columns), MAX_DISTANCE)
            errors.append(np.abs(stored - np.minimum(_tail_distances(logits, indices), MAX_DISTANCE)))
            errors.append(_overlooked(logits, indices))
            # A drop is the nearest step from what is decoded so far, or 0 where that was too far already.
            rounding = _range_rounding(columns)[:, None]
            half_steps = np.insert(self.drop_steps() / 2, 0, 0.0)[None]
            bounds += [np.maximum(rounding, half_steps), np.zeros((len(indices), 1))]
        # 1e-9: sums of exponentials in float64, at distances up to 256.
        return np.concatenate(errors, axis=1), np.concatenate(bounds, axis=1) + 2 * tolerance[:, None] + 1e-9


def _likeliest(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Class indices [N, count] of the largest logits, in falling order, equal ones by index."""
    num_classes = logits.shape[1]
    if count == num_classes:
        return np.argsort(-logits, axis=1, kind="stable")
    chosen = np.argpartition(logits, num_classes - count, axis=1)[:, num_classes - count :]
    least = np.take_along_axis(logits, chosen, axis=1).min(axis=1, keepdims=True)
    # Which of several equal logits argpartition takes depends on the processor; a store must not.
    is_tied = (logits >= least).sum(axis=1) > count
    if is_tied.any():
        chosen[is_tied] = np.argsort(-logits[is_tied], axis=1, kind="stable")[:, :count]
    chosen.sort(axis=1)
    order = np.argsort(-np.take_along_axis(logits, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)


def _kept_distances(logits: NDArray[np.float32], indices: NDArray[np.intp]) -> NDArray[np.float64]:
    """Distances [N, K] of the classes ``indices`` from the first of them, at most ``MAX_DISTANCE``."""
    kept = np.take_along_axis(logits, indices, axis=1).astype(np.float64)
    return np.minimum(kept[:, :1] - kept, MAX_DISTANCE)


def _tail_distances(logits: NDArray[np.float32], indices: NDArray[np.intp]) -> NDArray[np.float64]:
    """Distances [N, 4] of T * log(mean(exp(z / T))) over the other classes from the first of ``indices``."""
    tail = _mask_kept(logits, indices)
    largest = tail.max(axis=1)
    num_tail = logits.shape[1] - indices.shape[1]
    powers = np.exp((tail - largest[:, None]) / TAIL_TEMPERATURES[-1])
    first = np.take_along_axis(logits, indices[:, :1], axis=1)[:, 0].astype(np.float64)
    distances = np.empty((len(logits), len(TAIL_TEMPERATURES)))
    for column in reversed(range(len(TAIL_TEMPERATURES))):
        distances[:, column] = first - largest
        distances[:, column] -= TAIL_TEMPERATURES[column] * np.log(powers.sum(axis=1) / num_tail)
        powers *= powers  # exp(z / T) is the square of exp(z / 2 T)
    return distances


def _overlooked(logits: NDArray[np.float32], indices: NDArray[np.intp]) -> NDArray[np.float64]:
    """By how much [N, 1] the largest of the other logits exceeds the least of those of ``indices``; else 0."""
    least = np.take_along_axis(logits, indices, axis=1).min(axis=1)
    return np.maximum(_mask_kept(logits, indices).max(axis=1) - least, 0)[:, None]


def _mask_kept(logits: NDArray[np.float32], indices: NDArray[np.intp]) -> NDArray[np.float64]:
    tail = logits.astype(np.float64)
    np.put_along_axis(tail, indices, -np.inf, axis=1)
    return tail


@lru_cache(64)
def tail_weights(temperature: float) -> NDArray[np.float64]:
    """Weights [4] of the tail's distances at ``TAIL_TEMPERATURES`` in that at ``temperature``.

    Linear in T^-1/2 between them; as far again beyond the last one, up to T = infinity, as from the one before it.
    """
    positions = np.array([0.0, *(known**-0.5 for known in reversed(TAIL_TEMPERATURES))])
    at_knots = np.array([[0, 0, -1, 2], [0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]], np.float64)
    weights = np.array([np.interp(temperature**-0.5, positions, weight) for weight in at_knots.T])
    weights.flags.writeable = False  # it is kept
    return weights


def _decode_kept(columns: Columns) -> NDArray[np.float64]:
    return columns["range"].astype(np.float64)[:, None] * (columns["codes"] / 255) ** 2


def _range_rounding(columns: Columns) -> NDArray[np.float64]:
    """Half a unit in float16's last place; a whole subnormal one for what was too near to 0 for any."""
    return np.maximum(columns["range"].astype(np.float64) * 2.0**-11, 2.0**-24)


def _kept_bound(columns: Columns) -> NDArray[np.float64]:
    """Of a kept distance: half a step upwards, the larger side; for the last code, what was cut off the range."""
    codes = columns["codes"].astype(np.float64)
    half_step = columns["range"].astype(np.float64)[:, None] * (codes + 0.25) / 255**2
    return np.where(codes == 255, np.maximum(half_step, _range_rounding(columns)[:, None]), half_step)
