"""Records as several models see them, read once, with what a store's teacher said of them.

Models have preprocessings of their own: each sees the record as its evaluation would. A store's teacher saw stored
views instead: of policy center the same complete image, of random crops several, whose probabilities are averaged.
Views that are mixed with another image say nothing of one, so such stores are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teachonce.data.dataset import EvalDataset
from teachonce.data.stored_logits import StoredLogits
from teachonce.data.tensors import Arrays, as_tensors
from teachonce.errors import ConfigError
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.render import render_center
from teachonce.records.class_space import ClassSpace
from teachonce.records.source import Location, Record, RecordSource
from teachonce.store.join import StoreJoin, join_records
from teachonce.store.store import Store

MAX_VIEWS = 8
"""Stored views of a record whose probabilities are averaged, at most: more change little, and each is read."""
TEACHER_PROBS = "teacher_probs"


def _pixels_name(number: int) -> str:
    """The entry of a batch with the pixels of the ``number``-th model."""
    return "pixels" if number == 0 else f"pixels_{number}"


class StoredTeacher:
    """What a store says of records: probabilities at temperature 1, the mean over its first views."""

    def __init__(self, store: Store, records: RecordSource, class_space: ClassSpace) -> None:
        """Raises StoreError where the store does not know the records, ConfigError where its views are mixed."""
        if store.policy.mix is not None:
            raise ConfigError(
                f"--store {store.path}: its views are mixed with other images and say nothing of one alone; give a "
                "store without mixing, or the teacher itself with --against"
            )
        self.store = store
        self.class_space = class_space
        self.num_views = min(store.num_views, MAX_VIEWS)
        self._logits = StoredLogits([store])
        self._joins: Sequence[StoreJoin] = self._logits.join(
            records,
            [StoreJoin(store, records, advice=_ADVICE)],
        )

    def probs(self, locations: Sequence[Location], records: Sequence[Record]) -> Tensor:
        """Probabilities [N, C] of records that were read, in the class space of the data."""
        found = join_records(self._joins, locations, records).locations_in(self.store)
        parts = []
        for view in range(self.num_views):
            columns = as_tensors(self._logits.to_batch([self.store.gather_columns(found, view)]))
            parts.append(torch.softmax(self._logits.decode(columns, 1.0, self.class_space), dim=1))
        return torch.stack(parts).mean(dim=0)

    def known_labels(self) -> NDArray[np.int64]:
        """Labels of the data [n] that the teacher has a class for."""
        labels = self._joins[0].class_space.labels()
        return labels[(labels >= 0) & (labels < self.class_space.num_classes)]

    def fetch(self, shard: int) -> None:
        """Read the blocks of a shard, where the store's shards are those of the records."""
        for view in range(self.num_views):
            self._joins[0].fetch(shard, view)

    def describe(self) -> str:
        """What its answers are of, as a phrase."""
        if not self.store.policy.is_random:
            return "its complete images"
        return f"the mean of its first {self.num_views} stored views" if self.num_views > 1 else "its stored view"


class ComparedRecords(EvalDataset):
    """``EvalDataset`` for several models: batches have ``pixels_names`` of each, and ``TEACHER_PROBS`` [B, C]."""

    def __init__(
        self,
        records: RecordSource,
        preprocessings: Sequence[Preprocessing],
        class_space: ClassSpace,
        teacher: StoredTeacher | None = None,
        *,
        page_locked: bool = False,
    ) -> None:
        super().__init__(
            records,
            preprocessings[0],
            class_space,
            page_locked=page_locked,
            misfit_advice="an --offset that fits the data, or a model of its classes",
        )
        self.preprocessings = preprocessings
        self.pixels_names = [_pixels_name(preprocessings.index(preprocessing)) for preprocessing in preprocessings]
        """The entry of a batch with the pixels of each model; models that see the same share one."""
        self.teacher = teacher

    def make_arrays(self, locations: Sequence[Location], records: Sequence[Record]) -> Arrays:
        """Pixels for each way to see the record, labels, and the teacher's answers."""
        batch = super().make_arrays(locations, records)
        for name, preprocessing in zip(self.pixels_names[1:], self.preprocessings[1:], strict=True):
            if name not in batch:
                batch[name] = render_center(records, preprocessing)
        if self.teacher is not None:
            batch[TEACHER_PROBS] = self.teacher.probs(locations, records).numpy()
        return batch

    def fetch(self, shard: int, epoch: int, go_on: Callable[[], bool] = lambda: True) -> None:
        """A shard of the records, and what the store has of it."""
        super().fetch(shard, epoch, go_on)
        if self.teacher is not None and go_on():
            self.teacher.fetch(shard)


_ADVICE = (
    "evaluate on the --split that the store was extracted from, extract over this split, or give the teacher itself "
    "with --against"
)
