"""The moving average of a student's weights (``--ema-decay``), which is evaluated and kept in the student's place.

timm's ModelEmaV3 with its warm-up: the decay rises over the first steps (0.95 after 100, 0.99 after 1,000), because the
average of a few thousand steps at 0.9999 is mostly random initialization.

It is not part of the module that is trained: nothing flows back into it, so data-parallel training, which waits for a
gradient of every parameter it is handed, must not be handed it, and an optimizer must not find it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from timm.utils import ModelEmaV3
from torch import Tensor, nn


class WeightAverage:
    """The average of ``student``'s parameters and buffers, in evaluation mode, without gradients."""

    def __init__(self, student: nn.Module, decay: float) -> None:
        self._average = ModelEmaV3(student, decay=decay, use_warmup=True)
        self._average.requires_grad_(requires_grad=False)

    @property
    def model(self) -> nn.Module:
        """The student with the averaged weights."""
        return self._average.module

    def update(self, student: nn.Module, num_updates: int) -> None:
        """Move along after an update, the ``num_updates``-th."""
        self._average.update(student, step=num_updates)

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Change every tensor as ``nn.Module._apply`` does: another device, another memory format."""
        self._average._apply(function)

    def state_dict(self, prefix: str) -> dict[str, Any]:
        """Its tensors, under names that begin with ``prefix``."""
        return self._average.state_dict(prefix=prefix)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from exactly these tensors."""
        self._average.load_state_dict(dict(state))
