"""Softmax in float64 on arrays, to measure stored logits: nothing here needs torch.

The losses of students are in ``losses``; the error bounds that a codec checks while it encodes are in the codec.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ConfigError


def check_temperature(temperature: float) -> None:
    """Raise ConfigError for a temperature that no softmax has: of 0, below it, infinite or NaN."""
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature {temperature}: expected a finite number above 0")


def log_softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """log(softmax(logits / T)) [N, C], in nats."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    scaled -= np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return scaled


def soften(logits: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """softmax(logits / T) [N, C]."""
    return np.exp(log_softmax(logits, temperature))


def total_variation(
    dense_logits: NDArray[np.floating], stored_logits: NDArray[np.floating], temperature: float
) -> NDArray[np.float64]:
    """Total variation [N] between the softened distributions: the probability mass that is on other classes, 0..1."""
    return 0.5 * np.abs(soften(dense_logits, temperature) - soften(stored_logits, temperature)).sum(axis=1)
