"""Logits of one class space as logits of another, on the device where they are."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from teachonce.records.class_space import ClassSpace, Outputs, shared_classes


def map_tensor(logits: Float[Tensor, "B S"], source: ClassSpace, target: ClassSpace) -> Float[Tensor, "B T"]:
    """``records.class_space.map_logits`` of a tensor: classes that the source lacks are -inf."""
    if source == target:
        return logits
    mapped = logits.new_full((len(logits), target.num_classes), -torch.inf)
    of_source, of_target = shared_classes(source, target)
    mapped[:, _index(of_target)] = logits[:, _index(of_source)]
    return mapped


def as_rows(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [B, C] of an output that has them as a map of one pixel: [B, C, 1, 1], or [B, 1, 1, C]."""
    is_one_pixel = logits.ndim > 2 and max(logits.shape[1:]) == np.prod(logits.shape[1:])
    return logits.reshape(len(logits), -1) if is_one_pixel else logits


def _index(outputs: Outputs) -> slice | Tensor:
    return outputs if isinstance(outputs, slice) else torch.from_numpy(outputs)
