"""Where a batch's teacher logits come from: stores, or ``image/logit`` of the records (and None for neither)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from teachonce.data.tensors import Arrays, Batch
from teachonce.errors import ConfigError, LogitsError
from teachonce.pixels.view_sources import ViewSource
from teachonce.records.class_space import ClassSpace, map_logits
from teachonce.records.source import RecordSource
from teachonce.store.join import JoinedRecords, StoreJoin
from teachonce.store.store import Store


class LogitSource(Protocol):
    """What a dataset needs of teacher logits."""

    needs_record_logits: bool
    """Whether records must be read with their ``image/logit``."""

    @property
    def stores(self) -> list[Store]:
        """The stores that the logits come from."""

    def join(self, records: RecordSource, known: Sequence[StoreJoin] = ()) -> list[StoreJoin]:
        """The stores that a record must be in, joined with the records; StoreError where they are not of them.

        ``known`` are such of stores that were joined with the records already.
        """

    def check_views(self, views: ViewSource) -> None:
        """Raise ConfigError where the logits are not of these views, and cannot stand beside them."""

    def find_num_classes(self, records: RecordSource) -> int:
        """Classes of the data, background included, for data that does not say so itself."""

    def number_of(self, epoch: int) -> int | None:
        """Which stored view's logits an epoch has; None where there is but one of a record."""

    def read(self, joined: JoinedRecords, epoch: int, class_space: ClassSpace) -> Arrays:
        """The entries of a batch as they are kept, for a student of ``class_space``; LogitsError for another width."""

    def finish_arrays(self, batch: Arrays, class_space: ClassSpace) -> Arrays:
        """The batch as a loop takes it, from one with the entries of ``read``, in NumPy."""

    def finish_tensors(self, batch: Batch, class_space: ClassSpace) -> Batch:
        """The same of tensors."""


class RecordLogits:
    """The walkthrough's: one row of logits a record, whatever the student's view of it."""

    needs_record_logits = True
    stores: list[Store] = []  # noqa: RUF012, always empty

    def join(self, records: RecordSource, known: Sequence[StoreJoin] = ()) -> list[StoreJoin]:
        """Each record is checked as it is read."""
        return []

    def check_views(self, views: ViewSource) -> None:
        """Any of one image: the logits are of the full one. ConfigError for views that are mixed with another."""
        if views.has_mix:
            where = f"{views.stores[0].path}: its" if views.stores else f"{type(views).__name__}: these"
            raise ConfigError(
                f"{where} views are mixed with other images, and the records' logits are of one image each; give views "
                "that are not mixed, or StoredLogits of the store that has these views"
            )

    def find_num_classes(self, records: RecordSource) -> int:
        """The width of the first record's."""
        logits = records.read_record(0, 0, with_logits=True).logits
        assert logits is not None
        return len(logits)

    def number_of(self, epoch: int) -> int | None:
        """They are in the record."""
        return None

    def read(self, joined: JoinedRecords, epoch: int, class_space: ClassSpace) -> Arrays:
        """``teacher_logits`` float32 [B, C]."""
        expected = class_space.num_classes + class_space.offset
        rows = []
        for record in joined.records:
            assert record.logits is not None
            if len(record.logits) != expected:
                raise LogitsError(
                    f"{record.where}: image/logit has {len(record.logits)} classes, expected {expected}; "
                    "the logits are for other data, or --num-classes is wrong"
                )
            rows.append(map_logits(record.logits, ClassSpace(num_classes=expected), class_space))
        return {"teacher_logits": np.stack(rows)}

    def finish_arrays(self, batch: Arrays, class_space: ClassSpace) -> Arrays:
        """It has the logits."""
        return batch

    def finish_tensors(self, batch: Batch, class_space: ClassSpace) -> Batch:
        """It has the logits."""
        return batch
