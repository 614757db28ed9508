"""The outputs of models in other formats as rows of logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def as_rows(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [B, C] of an output that has them as a map of one pixel: [B, C, 1, 1], or [B, 1, 1, C]."""
    is_one_pixel = logits.ndim > 2 and max(logits.shape[1:]) == np.prod(logits.shape[1:])
    return logits.reshape(len(logits), -1) if is_one_pixel else logits
