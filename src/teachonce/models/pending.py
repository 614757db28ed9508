"""Logits that are on their way from the device, so that the next batch can be requested before they are read."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class PendingLogits:
    """A copy home, started behind the work that makes the logits.

    A device works in order: a copy that begins only when it is wanted waits for whatever was asked of the device since,
    the next batch above all, and the device then waits for the host.
    """

    def __init__(self, logits: Tensor) -> None:
        # Only CUDA reports when a copy is done: elsewhere it is made at once.
        self._home = logits.to("cpu", non_blocking=logits.is_cuda)
        self._copied: torch.cuda.Event | None = None
        if logits.is_cuda:
            self._copied = torch.cuda.current_stream(logits.device).record_event()

    def wait(self) -> NDArray[np.float32]:
        """The logits [B, C] as an array, once they are here."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._home.numpy()
