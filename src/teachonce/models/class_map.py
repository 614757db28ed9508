"""Logits of one class space as logits of another, on the device where they are."""

from __future__ import annotations

import torch
from jaxtyping import Float
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


def _index(outputs: Outputs) -> slice | Tensor:
    return outputs if isinstance(outputs, slice) else torch.from_numpy(outputs)
