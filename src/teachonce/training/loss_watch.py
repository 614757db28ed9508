"""A watch on the loss: NaN and infinity are found one batch late at most, without waiting for the device.

On a CUDA device the loss is copied to the host behind the work that makes it, and is looked at when the next batch's
has been queued: the copy is waited for, not the device, which has the rest of one batch and the beginning of the next
to do meanwhile. Elsewhere reading a loss is how it is made, and it is looked at immediately.
"""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor


class LossWatch:
    """Losses in the order of their updates; ``is_late`` leaves the newest for later. Default: on a CUDA device."""

    def __init__(self, *, is_late: bool | None = None) -> None:
        self._is_late = is_late
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, loss: Tensor, update: int) -> None:
        """The loss of a batch of an update; nothing is waited for."""
        value, copied = loss.detach(), None
        if loss.is_cuda:
            value = torch.empty((), dtype=loss.dtype, pin_memory=True).copy_(value, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._pending.append((update, value, copied))

    def find_bad(self, *, newest: bool = False) -> int | None:
        """The first update whose loss is not finite, None where there is none; ``newest``: up to the last one added."""
        is_late = False if newest or not self._pending else self._is_late
        if is_late is None:
            is_late = self._pending[-1][2] is not None
        while len(self._pending) > is_late:
            update, value, copied = self._pending.popleft()
            if copied is not None:
                copied.synchronize()
            if not math.isfinite(float(value)):
                return update
        return None
