"""Stored logits from disk to the loss: columns as they are on disk in the batch, logits on the student's device.

What crosses to the device is what the store holds, some 35 bytes (topk) or 1 kB (int8) a record instead of 4 kB, and
the host does no arithmetic. ``decode`` computes there what ``decode_arrays``, the codec's ``decode_logits``, computes
in NumPy: the same bits for the dense codecs, within float32's rounding for topk (tests/codecs/test_on_device.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from teachonce.codecs.softmax import check_temperature
from teachonce.data.tensors import Arrays, Batch, map_tensor
from teachonce.errors import ConfigError, StoreError
from teachonce.pixels.view_sources import ViewSource
from teachonce.records.class_space import ClassSpace, map_logits
from teachonce.records.source import RecordSource
from teachonce.store.join import JoinedRecords, StoreJoin, check_same_policy
from teachonce.store.store import Store
from teachonce.store.stored_views import choose_order
from teachonce.views.columns import VIEW_COLUMNS
from teachonce.views.order import ViewOrder

if TYPE_CHECKING:
    from torch import Tensor

V = TypeVar("V")


class StoredLogits:
    """The logits of one store, or of several over the same views; picklable.

    ``order`` says which view's logits an epoch has (default: one by one). With ``temperature`` a batch has
    ``teacher_logits``, for a softmax at that temperature, which a sparse codec must know; without it the columns as
    they are stored, for ``decode`` on the device. With ``other_views`` it is meant, and not warned of, that the student
    gets other views than those that the stores have; of mixed views it cannot be meant.

    Raises StoreError where the stores are of other policies, seeds or data classes, ConfigError for none, for an
    order of views that they do not all have, and for a temperature that is not above 0.
    """

    needs_record_logits = False

    def __init__(
        self,
        stores: Store | Sequence[Store],
        order: ViewOrder | None = None,
        *,
        temperature: float | None = None,
        other_views: bool = False,
    ) -> None:
        if temperature is not None:
            check_temperature(temperature)
        self.stores = [stores] if isinstance(stores, Store) else list(stores)
        if not self.stores:
            raise ConfigError("logits of no store: expected at least one")
        for store in self.stores:
            check_same_policy(self.stores[0], store)
        self.order = choose_order(order, self.num_views, self.stores[0].path)
        self.temperature = temperature
        self.other_views = other_views
        self._joins: list[StoreJoin] = []

    @property
    def num_views(self) -> int:
        """Views that all stores have."""
        return min(store.num_views for store in self.stores)

    def join(self, records: RecordSource, known: Sequence[StoreJoin] = ()) -> list[StoreJoin]:
        """The stores with the records; raises StoreError where one does not know them."""
        if self._joins and self._joins[0].source is not records:
            # Their classes are those of the records, and decoding needs them later.
            raise ConfigError(
                f"{self.stores[0].path}: its logits are already joined with other records; create one StoredLogits per "
                "dataset"
            )
        joined = {id(join.store): join for join in (*known, *self._joins)}
        self._joins = [joined.get(id(store)) or StoreJoin(store, records) for store in self.stores]
        return list(self._joins)

    def check_views(self, views: ViewSource) -> None:
        """Raise ConfigError where replayed views are not those of these stores, or come in another order, and where
        others are given beside the logits of mixed ones, which are of two images.

        Warn where the stores have views and the student gets others.
        """
        if not views.is_replay:
            if self.stores[0].policy.mix is not None:
                # Not with other_views either: another draw of a mix has another partner, or none.
                raise ConfigError(
                    f"{self.stores[0].path}: its views are mixed with other images, and its logits are of no other "
                    "view; give StoredViews(store) as views, or a store without mixing"
                )
            if self.stores[0].policy.is_random and not self.other_views:
                warnings.warn(
                    f"{self.stores[0].path}: its logits are of the views that it has, and the student gets others; "
                    "give StoredViews(store) as views, or StoredLogits(..., other_views=True) if that is meant",
                    stacklevel=3,
                )
            return
        if not any(store is own for store in views.stores for own in self.stores):
            raise ConfigError(
                f"{views.stores[0].path}: its views with the logits of {self.stores[0].path}: open the store once "
                "and use it for views and logits"
            )
        if not _is_in_order(views, self.order):
            raise ConfigError(
                f"{self.stores[0].path}: views and logits have different view orders; give both the same ViewOrder"
            )

    def find_num_classes(self, records: RecordSource) -> int:
        """As the plan says."""
        return self.stores[0].plan.data_classes

    def number_of(self, epoch: int) -> int | None:
        """By the order."""
        return self.order.number_of(epoch)

    def read(self, joined: JoinedRecords, epoch: int, class_space: ClassSpace) -> Arrays:
        """The columns ``teacherM_NAME`` [B, ...] of each store."""
        number = self.order.number_of(epoch)
        gathered = [joined.columns_in(store, number) for store in self.stores]
        self._check_same_views(gathered, joined, number)
        return self.to_batch(gathered)

    def finish_arrays(self, batch: Arrays, class_space: ClassSpace) -> Arrays:
        """With a temperature: ``teacher_logits`` float32 [B, C], of M > 1 stores [B, M, C], instead of the columns."""
        if self.temperature is None:
            return batch
        logits = self.decode_arrays(batch, self.temperature, class_space)
        return {**self._without_columns(batch), "teacher_logits": logits}

    def finish_tensors(self, batch: Batch, class_space: ClassSpace) -> Batch:
        """The same of tensors."""
        if self.temperature is None:
            return batch
        return {**self._without_columns(batch), "teacher_logits": self.decode(batch, self.temperature, class_space)}

    def to_batch(self, columns: Sequence[Mapping[str, NDArray[Any]]]) -> Arrays:
        """Entries of a batch, each [B, ...], from the gathered columns of each store."""
        for store, stored in zip(self.stores, columns, strict=True):
            try:
                store.codec.check_columns(stored)
            except StoreError as error:
                raise error.at(str(store.path)) from error
        return {
            _prefix(number) + name: values
            for number, stored in enumerate(columns)
            for name, values in stored.items()
            if name not in VIEW_COLUMNS
        }

    def decode(self, batch: Mapping[str, Tensor], temperature: float, class_space: ClassSpace) -> Tensor:
        """Teacher logits [B, C] of a batch, of M > 1 stores [B, M, C], on the batch's device, in float32.

        For a student of ``class_space`` and a softmax at ``temperature``, which a sparse codec must know. Classes that
        a teacher lacks are -inf. Raises ConfigError before a dataset has joined them with its records, whose classes
        may be numbered otherwise than a store's: a folder's from 0, those of TFRecords from 1.
        """
        check_temperature(temperature)
        teachers = []
        for number, store in enumerate(self.stores):
            logits = store.codec.decode_tensor(_columns_of(number, batch), temperature)
            teachers.append(map_tensor(logits, self._space(number), class_space))
        if len(teachers) == 1:
            return teachers[0]
        import torch

        return torch.stack(teachers, dim=1)

    def decode_arrays(self, batch: Arrays, temperature: float, class_space: ClassSpace) -> NDArray[np.float32]:
        """``decode`` in NumPy."""
        check_temperature(temperature)
        teachers = []
        for number, store in enumerate(self.stores):
            logits = store.codec.decode_logits(_columns_of(number, batch), temperature)
            teachers.append(map_logits(logits, self._space(number), class_space))
        return teachers[0] if len(teachers) == 1 else np.stack(teachers, axis=1)

    def _without_columns(self, batch: Mapping[str, V]) -> dict[str, V]:
        prefixes = tuple(map(_prefix, range(len(self.stores))))
        return {name: values for name, values in batch.items() if not name.startswith(prefixes)}

    def _space(self, number: int) -> ClassSpace:
        """A teacher's classes in the labels of the data, where that is known."""
        if self._joins:
            return self._joins[number].class_space
        store = self.stores[number]
        if store.plan.class_names is not None:
            raise ConfigError(
                f"{store.path}: its classes are found by name among those of the records, and its logits are not "
                "joined with records yet; decode with dataset.logits, those of a KDDataset"
            )
        return store.class_space

    def _check_same_views(
        self, gathered: Sequence[Mapping[str, NDArray[Any]]], joined: JoinedRecords, number: int
    ) -> None:
        """Stores that are averaged must be of the same views."""
        first = gathered[0]
        names = sorted(VIEW_COLUMNS & first.keys())
        for store, columns in zip(self.stores[1:], gathered[1:], strict=True):
            different = [name for name in names if not np.array_equal(first[name], columns[name])]
            if different:
                raise StoreError(
                    f"{store.path}: view {number} of {joined.records[0].where} and others differs from that of "
                    f"{self.stores[0].path} ({', '.join(different)}): other views; extract with --views-of"
                )


def _is_in_order(views: ViewSource, order: ViewOrder) -> bool:
    """Whether every epoch shows the view that the order says; of a source without an order some epochs are asked."""
    own = getattr(views, "order", None)
    if isinstance(own, ViewOrder):
        return own.is_same(order)
    epochs = range(2 * order.num_views)
    return [views.number_of(epoch) for epoch in epochs] == [order.number_of(epoch) for epoch in epochs]


def _prefix(number: int) -> str:
    return f"teacher{number}_"


def _columns_of(number: int, batch: Mapping[str, V]) -> dict[str, V]:
    prefix = _prefix(number)
    return {name.removeprefix(prefix): values for name, values in batch.items() if name.startswith(prefix)}
