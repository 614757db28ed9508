"""Mixup: convex mixtures of two images, their labels and their softened teacher probabilities, all three linearly.

Zhang et al. 2017, arXiv:1710.09412, algorithm 1: one share for the batch, the partners a permutation of it. Drawing
and applying are two functions, as everywhere here. What the teacher says of a mixed image is not known from stored
logits; the linear mix of its softened probabilities is the recipe of the walkthrough and of FKD (arXiv:2112.01528).
Deliberately not here: cutmix, and partners from outside the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor


@dataclass(frozen=True)
class Mixup:
    """``share`` of each row, and 1 - share of the row ``partners[row]``."""

    share: float
    partners: tuple[int, ...]


def sample_mixup(rng: np.random.Generator, alpha: float, batch_size: int) -> Mixup:
    """Draw a share from Beta(alpha, alpha) and a permutation of the batch; the share is folded to 0.5..1.

    The fold changes nothing in distribution (the partners are a uniform permutation) and keeps the row's own label the
    dominant one, so that a training accuracy means something.
    """
    share = float(rng.beta(alpha, alpha))
    return Mixup(max(share, 1 - share), tuple(rng.permutation(batch_size).tolist()))


def apply_mixup(mixup: Mixup, rows: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "B ..."]:
    """share * rows + (1 - share) * rows[partners], for images, label or teacher probabilities in floating point."""
    assert rows.is_floating_point()
    partners = torch.tensor(mixup.partners, device=rows.device)
    return torch.lerp(rows[partners], rows, mixup.share)
