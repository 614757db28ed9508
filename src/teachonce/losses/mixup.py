"""Mixup: convex mixtures of two images, their labels and their softened teacher probabilities, all three linearly.

Zhang et al. 2017, arXiv:1710.09412. Drawing and applying are two functions, as everywhere here. What the teacher says
of a mixed image is not known from stored logits; the linear mix of its softened probabilities is the recipe of the
walkthrough and of FKD (arXiv:2112.01528). Three types, of B rows each that the student sees:

    batch  one share for the batch, the partners a permutation of it (Zhang et al., their published code)
    1      2 B rows become B: row i with row B + i, a share of its own for each pair (``sampler`` pairs the records)
    2      the halves of B rows twice: row i with row B/2 + i, and row i with row B - 1 - i, shares of their own

1 and 2 are the walkthrough's (Lee et al. 2020, arXiv:2001.06268); its code mixes labels instead of teacher
probabilities into the second half of type 2, which is a mistake and not followed here. An odd row of type 2 stays as it
is. Deliberately not included: cutmix, and partners from outside the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from teachonce.losses.options import MixupType


@dataclass(frozen=True)
class Mixup:
    """Mixed row i is ``share`` of row ``rows[i]`` and 1 - share of row ``partners[i]``.

    One share for all, or one a mixed row; without ``rows`` each row in its place.
    """

    share: float | tuple[float, ...]
    partners: tuple[int, ...]
    rows: tuple[int, ...] | None = None


def sample_mixup(rng: np.random.Generator, alpha: float, num_rows: int, mixup_type: MixupType = "batch") -> Mixup:
    """Draw shares from Beta(alpha, alpha), and for ``batch`` the partners; ``num_rows`` is even for type 1.

    Of each pair the one with the larger share is named first. That changes nothing in distribution for ``batch`` (the
    partners are a uniform permutation) and nothing at all in the mixtures of the others, and it makes the first one's
    label the dominant one, so that a training accuracy means something.
    """
    if mixup_type == "batch":
        share = float(rng.beta(alpha, alpha))
        return Mixup(max(share, 1 - share), tuple(rng.permutation(num_rows).tolist()))
    half = num_rows // 2
    first, second = np.arange(half), np.arange(half, 2 * half)
    if mixup_type == 1:
        assert num_rows == 2 * half, num_rows
        return _pairs(rng.beta(alpha, alpha, half), first, second)
    odd = np.arange(2 * half, num_rows)
    shares = np.concatenate([rng.beta(alpha, alpha, 2 * half), np.ones(len(odd))])
    return _pairs(shares, np.concatenate([first, first, odd]), np.concatenate([second, second[::-1], odd]))


def apply_mixup(mixup: Mixup, rows: Shaped[Tensor, "A ..."]) -> Shaped[Tensor, "B ..."]:
    """The mixtures of images, of label or of teacher probabilities, in floating point."""
    assert rows.is_floating_point()
    partners = rows[_beside(rows, mixup.partners)]
    own = rows if mixup.rows is None else rows[_beside(rows, mixup.rows)]
    if isinstance(mixup.share, float):
        return torch.lerp(partners, own, mixup.share)
    share = _beside(rows, mixup.share, rows.dtype)
    return torch.lerp(partners, own, share.reshape(-1, *[1] * (rows.ndim - 1)))


def dominant_rows(mixup: Mixup, rows: Shaped[Tensor, "A ..."]) -> Shaped[Tensor, "B ..."]:
    """Of each mixture the row with the larger share."""
    return rows if mixup.rows is None else rows[_beside(rows, mixup.rows)]


def _beside(rows: Tensor, values: tuple[int, ...] | tuple[float, ...], dtype: torch.dtype = torch.int64) -> Tensor:
    """A tensor where ``rows`` are; not made there, which would wait for the device."""
    return torch.tensor(values, dtype=dtype).to(rows.device, non_blocking=rows.is_cuda)


def _pairs(shares: NDArray[np.float64], first: NDArray[Any], second: NDArray[Any]) -> Mixup:
    is_swapped = shares < 0.5
    return Mixup(
        tuple(np.where(is_swapped, 1 - shares, shares).tolist()),
        tuple(np.where(is_swapped, first, second).tolist()),
        tuple(np.where(is_swapped, second, first).tolist()),
    )
