"""Pixels collected into full batches for the teacher, one batch in flight so that copies overlap."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.errors import LogitsError
from teachonce.extraction.unit_result import UnitResult
from teachonce.models.classifier import Classifier
from teachonce.models.pending import PendingLogits
from teachonce.records.source import Record


class _QueuedView(NamedTuple):
    pixels: NDArray[Any]
    record: Record
    result: UnitResult
    view: int
    row: int


class TeacherQueue:
    """Runs the teacher whenever a batch is full, and hands each row of logits to its unit."""

    def __init__(self, teacher: Classifier, batch_size: int) -> None:
        self.teacher = teacher
        self.batch_size = batch_size
        self._queued: list[_QueuedView] = []
        self._in_flight: tuple[PendingLogits, list[_QueuedView]] | None = None

    def put(self, pixels: NDArray[Any], record: Record, result: UnitResult, view: int, row: int) -> list[UnitResult]:
        """Add the pixels of one view; runs the teacher on a full batch. Returns the units that are complete now."""
        self._queued.append(_QueuedView(pixels, record, result, view, row))
        return self._submit() if len(self._queued) == self.batch_size else []

    def finish(self) -> list[UnitResult]:
        """Run the teacher on the rest, in a batch filled up with repeats; returns the units that are complete now."""
        complete = self._submit() if self._queued else []
        return complete + self._collect()

    def _submit(self) -> list[UnitResult]:
        pixels = [item.pixels for item in self._queued]
        pixels += pixels[-1:] * (self.batch_size - len(pixels))
        batch = torch.from_numpy(np.stack(pixels))
        if self.teacher.device.type == "cuda":
            batch = batch.pin_memory()
        submitted = PendingLogits(self.teacher.logits(batch)), self._queued
        complete = self._collect()
        self._in_flight = submitted
        self._queued = []
        return complete

    def _collect(self) -> list[UnitResult]:
        if self._in_flight is None:
            return []
        pending, items = self._in_flight
        self._in_flight = None
        logits = pending.wait()
        finite: NDArray[Any] = np.asarray(np.isfinite(logits).all(axis=1))
        complete = []
        for index, item in enumerate(items):
            if not finite[index]:
                num_bad = np.count_nonzero(~np.isfinite(logits[index]))
                raise LogitsError(
                    f"{item.record.where}: the teacher's logits are NaN or infinite for {num_bad} of "
                    f"{logits.shape[1]} classes; check its weights, its input range (mean, std, range) and "
                    "--precision"
                )
            if item.result.add_logits(item.view, item.row, logits[index]):
                complete.append(item.result)
        return complete
