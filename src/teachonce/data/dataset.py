"""Records joined with views and teacher logits: batches that any training loop can take.

Batches are made in NumPy and become tensors of torch over the same memory; ``read_arrays``, and ``as_numpy()`` of a
loader, give them to other frameworks, and torch is not imported then.

Every item is a function of (seed, epoch, record), never of worker, rank, batch size or order. Three sources say what a
batch holds: records (``records.discovery.open_records``); views (``StoredViews`` replays a store's, ``OwnViews`` is the
student's own augmentation, ``DrawnViews`` draws them as an extraction would, for an online teacher); and logits
(``StoredLogits``, ``RecordLogits``, or None). With a store of policy ``center`` the student's views are its own and the
logits stay those of the teacher's center view, as in the walkthrough.

Each record's key is compared with the stores' as it is read; a mismatch is a refusal, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from numbers import Integral
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from teachonce.data.loader import Items, Loader
from teachonce.data.logit_sources import LogitSource
from teachonce.data.sampler import EpochBatches
from teachonce.data.tensors import (
    Arrays,
    Batch,
    as_tensors,
    check_page_locked,
    join_batches,
    lock_pages,
    take_page_locked,
)
from teachonce.engine.buffers import BufferPool
from teachonce.errors import ConfigError
from teachonce.pixels.decode import Interpolation
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.render import RecordViews, ViewReader, render_center, render_views
from teachonce.pixels.view_sources import ViewSource
from teachonce.records.class_space import ClassSpace
from teachonce.records.data_keys import find_other_label
from teachonce.records.source import (
    MISFIT_ADVICE,
    NO_LABEL,
    Location,
    Record,
    RecordSource,
    all_labels,
    label_error,
)


class KDDataset:
    """Records as batches for training: pixels of side ``size`` through ``views``, and teacher logits by ``logits``.

    ``online`` is the preprocessing of a teacher that runs at every step: batches then hold its pixels too, where
    they are not the student's.

    ``page_locked`` is for batches that go to a CUDA device: they are copied there while it works.
    ``misfit_advice`` ends the error of a label that is no class of the student: it says what to give.

    Raises StoreError where a store is of other data or views, LogitsError where the logits do not fit the class space,
    ConfigError where nothing says how many classes there are, and RecordError, with the place, for whatever is wrong
    with a record.
    """

    def __init__(
        self,
        records: RecordSource,
        views: ViewSource,
        logits: LogitSource | None = None,
        *,
        size: int,
        interpolation: Interpolation = "bilinear",
        class_space: ClassSpace | None = None,
        online: Preprocessing | None = None,
        page_locked: bool = False,
        misfit_advice: str = MISFIT_ADVICE,
    ) -> None:
        self.records = records
        if page_locked:
            check_page_locked()
        self.page_locked = page_locked
        self.misfit_advice = misfit_advice
        self.views = views
        self.logits = logits
        self.preprocessing = Preprocessing(size_px=size, interpolation=interpolation)
        self.online = online
        joins = [] if logits is None else logits.join(records, views.join(records))
        self._reader = ViewReader(records, views, joins)
        if logits is not None:
            logits.check_views(views)
        self.class_space = class_space or ClassSpace(num_classes=find_num_classes(records, logits))
        self.relabeled_before: frozenset[int] = frozenset()
        """``relabeled`` of an interrupted training that is resumed."""
        self._may_lack_labels = records.labeled != "all"
        self._buffers = BufferPool()

    def __len__(self) -> int:
        return self.records.num_records

    @property
    def relabeled(self) -> frozenset[int]:
        """Keys of records that were read so far and have another label than in a store, by the classes' names."""
        return self.relabeled_before.union(*(join.relabeled for join in self._reader.joins))

    @property
    def num_relabeled(self) -> int:
        """How many those are."""
        return len(self.relabeled)

    @property
    def num_classes(self) -> int:
        """Classes of the student."""
        return self.class_space.num_classes

    def read_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """Records as tensors: pixels uint8 [B, H, W, 3], labels int64 [B] (-1: none), indices [B], and of these:

        the entries of ``logits.read``; ``partner_labels`` int64 [B] and ``shares`` float32 [B] (1: not mixed) where the
        views are mixed; ``teacher_pixels`` uint8 [B, h, w, 3] for an online teacher that sees other pixels.
        """
        batch = as_tensors(self._read(indices, epoch))
        return batch if self.logits is None else self.logits.finish_tensors(batch, self.class_space)

    def read_arrays(self, indices: Sequence[int], epoch: int) -> Arrays:
        """``read_batch`` in NumPy: the same entries, of which logits of codec topk may differ by float32's rounding."""
        batch = self._read(indices, epoch)
        return batch if self.logits is None else self.logits.finish_arrays(batch, self.class_space)

    def _read(self, indices: Sequence[int], epoch: int) -> Arrays:
        if not len(indices):
            raise ConfigError("a batch of no records: expected at least one")
        locations = self.records.locate_all(np.asarray(indices))
        with_logits = self.logits is not None and self.logits.needs_record_logits
        records = self.records.read_batch(locations, with_logits=with_logits, buffers=self._buffers)
        joined = self._reader.join(locations, records)
        record_views = self._reader.views_of(joined, self.views.number_of(epoch))
        batch: Arrays = {
            "pixels": self._render(record_views, self.preprocessing),
            "labels": self._read_labels(records),
            "indices": np.array(indices, np.int64),
        }
        if self.views.has_mix:
            batch |= self._read_mixes(record_views, batch["labels"])
        if self.online is not None and not self.online_sees_students_pixels:
            batch["teacher_pixels"] = self._render(record_views, self.online)
        if self.logits is not None:
            batch |= self.logits.read(joined, epoch, self.class_space)
        return batch

    def _read_mixes(self, record_views: RecordViews, labels: NDArray[np.int64]) -> Arrays:
        """The partner's label, and the record's share, of each; of one that is not mixed its own label, and 1."""
        partner_labels = labels.copy()
        mixed = list(record_views.partners)
        partners = [record_views.partners[index].record for index in mixed]
        partner_labels[mixed] = self._read_labels(partners)
        shares = [1.0 if view.mix is None else view.mix.share for view in record_views.views]
        return {"partner_labels": partner_labels, "shares": np.array(shares, np.float32)}

    def _read_labels(self, records: Sequence[Record]) -> NDArray[np.int64]:
        return _read_labels(
            records,
            self.class_space,
            self.misfit_advice,
            has_names=self.records.classes is not None,
            may_lack=self._may_lack_labels,
        )

    def __getitems__(self, items: Items) -> Batch:
        parts, order = _by_epoch(items)
        batch = join_batches([self.read_batch(indices, epoch) for indices, epoch in parts], order)
        return lock_pages(batch) if self.page_locked else batch

    def read_items(self, items: Items) -> Arrays:
        """``read_arrays`` of (index, epoch), one after another."""
        groups, order = _by_epoch(items)
        parts = [self.read_arrays(indices, epoch) for indices, epoch in groups]
        if len(parts) == 1:
            return parts[0]
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return batch if order is None else {name: values[order] for name, values in batch.items()}

    def fetch(self, shard: int, epoch: int, go_on: Callable[[], bool] = lambda: True) -> None:
        """The blocks of the stores that go with a shard of the records, and the shard."""
        number = None if self.logits is None else self.logits.number_of(epoch)
        self._reader.fetch(shard, self.views.number_of(epoch) if number is None else number)
        self.records.fetch(shard, go_on)

    def batches(
        self,
        *,
        batch_size: int,
        epoch: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        first_step: int = 0,
        shuffle_shards: int | None = None,
        classes: NDArray[np.integer] | None = None,
    ) -> Loader:
        """A loader of one epoch's batches, for loops of your own; the arguments are those of ``EpochBatches``, and
        ``num_workers`` threads that make batches ahead. Of tensors, or, by its ``as_numpy()``, of arrays.
        """
        sampler = EpochBatches(
            len(self),
            batch_size,
            seed=seed,
            epoch=epoch,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            first_step=first_step,
            shuffle_shards=shuffle_shards,
            shard_sizes=[shard.num_records for shard in self.records.shards],
            classes=classes,
        )
        return Loader(self, sampler, num_workers)

    @property
    def online_sees_students_pixels(self) -> bool:
        """Whether an online teacher sees the very pixels of the student: same size and filter."""
        own, online = self.preprocessing, self.online
        assert online is not None
        return (online.size_px, online.interpolation) == (own.size_px, own.interpolation)

    def _render(self, record_views: RecordViews, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        pixels = self._take_pixels((len(record_views), preprocessing.size_px, preprocessing.size_px, 3))
        render_views(record_views, preprocessing, out=pixels)
        return pixels

    def _take_pixels(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        return take_page_locked(shape) if self.page_locked else self._buffers.take(shape)


class EvalDataset:
    """Records as a model's evaluation sees them, in their order: batches of pixels, labels and indices.

    ``preprocessing`` is the model's: ``load_model(...).preprocessing``; of a student in training a ``Preprocessing`` of
    its size, with the margin that it will have, such as ``resize_px=256`` of 224.
    """

    def __init__(
        self,
        records: RecordSource,
        preprocessing: Preprocessing,
        class_space: ClassSpace,
        *,
        page_locked: bool = False,
        misfit_advice: str = MISFIT_ADVICE,
    ) -> None:
        self.records = records
        if page_locked:
            check_page_locked()
        self.page_locked = page_locked
        self.misfit_advice = misfit_advice
        self.preprocessing = preprocessing
        self.class_space = class_space
        self._buffers = BufferPool()

    def __len__(self) -> int:
        return self.records.num_records

    def check_labels(self) -> None:
        """Raise RecordError for a record whose label is no class of the model, where that is found without reading all
        of them (``find_other_label``).
        """
        space = self.class_space
        location = find_other_label(self.records, range(space.offset, space.offset + space.num_classes))
        if location is not None:
            self._read_labels(self.records.read_batch([location]))

    def batches(self, *, batch_size: int, rank: int = 0, world_size: int = 1, num_workers: int = 0) -> Loader:
        """A loader of all records in their order; the arguments are those of ``KDDataset.batches``."""
        order = EpochBatches(len(self), batch_size, shuffle=False, rank=rank, world_size=world_size)
        return Loader(self, order, num_workers)

    def fetch(self, shard: int, epoch: int, go_on: Callable[[], bool] = lambda: True) -> None:
        """A shard of the records."""
        self.records.fetch(shard, go_on)

    def __getitems__(self, items: Items) -> Batch:
        batch = as_tensors(self.read_items(items))
        return lock_pages(batch) if self.page_locked else batch

    def read_items(self, items: Items) -> Arrays:
        """The records of (index, epoch), the same in every epoch."""
        _check_items(items)
        indices = np.array([index for index, _ in items])
        locations = self.records.locate_all(indices)
        records = self.records.read_batch(locations, buffers=self._buffers)
        return {**self.make_arrays(locations, records), "indices": indices.astype(np.int64, copy=False)}

    def make_arrays(self, locations: Sequence[Location], records: Sequence[Record]) -> Arrays:
        """Pixels and labels of records that were read; a subclass adds what else it wants of them."""
        return {
            "pixels": render_center(records, self.preprocessing),
            "labels": self._read_labels(records),
        }

    def _read_labels(self, records: Sequence[Record]) -> NDArray[np.int64]:
        return _read_labels(records, self.class_space, self.misfit_advice, has_names=self.records.classes is not None)


def _check_items(items: Items) -> None:
    """Refuse what a DataLoader asks for that was given the dataset itself: numbers of records, without their epoch."""
    if not items:
        raise ConfigError("a batch of no records: expected at least one")
    if isinstance(items[0], Integral):
        raise ConfigError(
            f"record {items[0]} without an epoch: expected (record, epoch), by which it has its view; use "
            "dataset.batches(...), which makes batches in threads, or DataLoader(dataset.batches(...), batch_size=None)"
        )


def _by_epoch(items: Items) -> tuple[list[tuple[list[int], int]], NDArray[np.int64] | None]:
    """The records of each epoch, whose views are read together, and where each row is then; None: in its place.

    A batch is of one epoch; with partners (``sampler``) of two, one behind the other; of balanced draws of several.
    """
    _check_items(items)
    epochs = [epoch for _, epoch in items]
    if epochs.count(epochs[0]) == len(epochs):
        return [([index for index, _ in items], epochs[0])], None
    order = np.argsort(epochs, kind="stable")
    grouped = [items[at] for at in order.tolist()]
    parts = [([index for index, _ in part], epoch) for epoch, part in groupby(grouped, key=itemgetter(1))]
    is_sorted = bool((np.diff(order) > 0).all())
    return parts, None if is_sorted else np.argsort(order)


def find_num_classes(records: RecordSource, logits: LogitSource | None) -> int:
    """Classes of the data, background included, as data or logits say; ConfigError where neither does."""
    if records.classes is not None:
        return len(records.classes.names)
    if logits is not None:
        return logits.find_num_classes(records)
    raise ConfigError(
        "the number of classes is unknown: the data has no classes.json and no logits; give --num-classes "
        "(ImageNet TFRecords: 1001)"
    )


def _read_labels(
    records: Sequence[Record], class_space: ClassSpace, advice: str, *, has_names: bool, may_lack: bool = False
) -> NDArray[np.int64]:
    """The model's class index of each record's label; RecordError where the model has no such class."""
    found = all_labels(records)
    labels = found - class_space.offset
    is_outside = (labels < 0) | (labels >= class_space.num_classes)
    if may_lack:
        is_outside &= found != NO_LABEL
        labels[found == NO_LABEL] = NO_LABEL
    for index in np.flatnonzero(is_outside).tolist():
        expected = range(class_space.offset, class_space.offset + class_space.num_classes)
        raise label_error(records[index], expected, advice, has_names=has_names)
    return labels
