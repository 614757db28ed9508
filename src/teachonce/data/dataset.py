"""Records joined with views and teacher logits: batches that any training loop can take.

Every item is a function of (seed, epoch, record), never of worker, rank, batch size or order. Where the store's policy
draws views, epoch e replays view e mod V (or a permutation of the V views) and nothing else is random; where it is
``center`` (or the logits come from ``image/logit``), the student's own views are drawn by (seed, epoch, record key),
and the teacher's logits stay those of its centre view, as in the walkthrough.

Several stores over the same views give several rows of logits for the same pixels. For an online teacher the views are
drawn as its extraction would draw them, view e for epoch e, and the batch holds the pixels at the teacher's size too.

Each record's key is compared with the store's as it is read; a mismatch is a refusal, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.data.loader import Batch, Loader
from teachonce.data.sampler import EpochBatches
from teachonce.data.stored_logits import StoredTeachers
from teachonce.engine.buffers import Arena
from teachonce.engine.pixel_buffers import Buffers
from teachonce.errors import ConfigError, ImageError, LogitsError, RecordError, StoreError
from teachonce.pixels.decode import Interpolation
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.render import image_sizes, preprocess_images
from teachonce.pixels.render_views import DrawnViews, Look, Looker, StoredViews, render_looks
from teachonce.records.class_space import ClassSpace, map_logits
from teachonce.records.source import Record, RecordSource
from teachonce.rng import generator
from teachonce.store.checks import check_keys, check_same_data, check_same_policy
from teachonce.store.store import Store
from teachonce.views.columns import VIEW_COLUMNS
from teachonce.views.draw import sample_view
from teachonce.views.policy import CropPolicy


class KDDataset:
    """A record source for training, joined with stores' or the records' own teacher logits if wanted.

    ``policy`` is what the student's own views are drawn from, where none are replayed; ``own_views`` draws them even
    if the store has some. ``online`` is an online teacher's preprocessing: then the views are drawn from ``policy`` by
    ``view_seed`` (default: ``seed``) as an extraction would draw them. ``temperature`` is the one that the logits will
    be softened with: sparse codecs must know it. ``as_stored`` leaves decoding to ``teachers``, on the device.

    Raises StoreError where a store is of other data or views, LogitsError where the logits do not fit the class space,
    and RecordError, with the place, for whatever is wrong with a record.
    """

    def __init__(
        self,
        source: RecordSource,
        *,
        size: int,
        seed: int = 0,
        store: Store | Path | str | Sequence[Store | Path | str] | None = None,
        use_record_logits: bool = False,
        class_space: ClassSpace | None = None,
        policy: CropPolicy | None = None,
        interpolation: Interpolation = "bilinear",
        temperature: float | None = None,
        view_order: Literal["sequential", "permuted"] = "sequential",
        own_views: bool = False,
        online: Preprocessing | None = None,
        view_seed: int | None = None,
        as_stored: bool = False,
    ) -> None:
        given = [] if store is None else [store] if isinstance(store, Store | Path | str) else list(store)
        if given and use_record_logits:
            raise ConfigError("logits from a store and from the records: choose one")
        assert online is None or not (given or use_record_logits)
        self.source = source
        self.size = size
        self.seed = seed
        self.stores = [item if isinstance(item, Store) else Store(item) for item in given]
        self.use_record_logits = use_record_logits
        self.policy = policy or CropPolicy()
        self.interpolation = interpolation
        self.temperature = 1.0 if temperature is None else temperature
        self.view_order = view_order
        self.online = online
        self.view_seed = seed if view_seed is None else view_seed
        self.as_stored = as_stored
        self._buffers = Buffers()
        self._arena = Arena()
        for item in self.stores:
            check_same_data(item, source.describe())
            check_same_policy(self.stores[0], item)
            if temperature is None and item.codec.num_tail:
                raise ConfigError(
                    f"{item.path}: codec {item.codec.name} gives logits for one temperature: give temperature=, the "
                    "one of the loss"
                )
        self.num_views = min((item.num_views for item in self.stores), default=0)
        self._looker = self._build_looker(own_views)
        self._same_views: set[tuple[int, int]] = set()
        self.class_space = class_space or ClassSpace(num_classes=self._find_num_classes())
        self.teachers = StoredTeachers(self.stores, self.class_space)

    def __len__(self) -> int:
        return self.source.num_records

    @property
    def num_classes(self) -> int:
        """Classes of the student."""
        return self.class_space.num_classes

    @property
    def replays_views(self) -> bool:
        """Whether the student sees the stored views (and nothing else is random)."""
        return self._looker is not None and self.online is None

    def view_of_epoch(self, epoch: int) -> int:
        """The number of the view that every record shows in this epoch.

        ``sequential``: epoch mod V. ``permuted``: each V epochs go through the V views in an order of their own.
        """
        if self.online is not None:
            return epoch
        if not self.stores:
            return 0
        cycle, position = divmod(epoch, self.num_views)
        if self.view_order == "sequential":
            return position
        return int(generator(self.seed, "view order", cycle).permutation(self.num_views)[position])

    def read_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """Records as tensors: pixels uint8 [B, H, W, 3], labels int64 [B], indices [B], and what there is of:

        ``teacher_logits`` float32 [B, C], of M > 1 stores [B, M, C], with stores or the records' logits; classes that
        the teacher does not know are -inf. With ``as_stored`` the stores' columns instead, for ``teachers.decode``.
        ``partner_labels`` int64 [B] and ``shares`` float32 [B] (1: not mixed) where the views are mixed.
        ``teacher_pixels`` uint8 [B, h, w, 3] for an online teacher that sees another size.
        """
        number = self.view_of_epoch(epoch)
        places = self.source.locate_all(np.asarray(indices, np.int64))
        records = self.source.read_batch(places, with_logits=self.use_record_logits, arena=self._arena)
        for store in self.stores:
            check_keys(store, places, records)
        looks = self._look(places, records, epoch, number)
        batch = {
            "pixels": self._render(looks, self.size, self.interpolation),
            "labels": torch.tensor([student_label(record, self.class_space) for record in records], dtype=torch.int64),
            "indices": torch.tensor(indices, dtype=torch.int64),
        }
        if self._looker is not None and self.mixes:
            partners = [look.record if look.partner is None else look.partner.record for look in looks]
            labels = [student_label(record, self.class_space) for record in partners]
            shares = [1.0 if look.view.mix is None else look.view.mix.share for look in looks]
            batch["partner_labels"] = torch.tensor(labels, dtype=torch.int64)
            batch["shares"] = torch.tensor(shares, dtype=torch.float32)
        if self.online is not None and not self.online_sees_students_pixels:
            batch["teacher_pixels"] = self._render(looks, self.online.size_px, self.online.interpolation)
        if self.stores:
            self._check_same_views({shard for shard, _ in places}, number)
            stored = self.teachers.to_batch([store.gather_columns(places, number) for store in self.stores])
            batch |= stored if self.as_stored else {"teacher_logits": self.teachers.decode(stored, self.temperature)}
        elif self.use_record_logits:
            batch["teacher_logits"] = torch.from_numpy(np.stack([self._record_logits(record) for record in records]))
        return batch

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        # Records of one epoch, or records and their partners, which count as the epoch after (``batches``).
        parts = [
            self.read_batch([index for index, _ in part], epoch) for epoch, part in groupby(items, key=itemgetter(1))
        ]
        return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def batches(
        self,
        *,
        batch_size: int,
        epoch: int,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        first_step: int = 0,
    ) -> Loader:
        """A loader of one epoch's batches, for loops of your own; the arguments are those of ``EpochBatches``, and
        ``num_workers`` threads that make batches ahead.
        """
        sampler = EpochBatches(
            len(self),
            batch_size,
            seed=self.seed,
            epoch=epoch,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            first_step=first_step,
        )
        return Loader(self, sampler, num_workers)

    def _build_looker(self, own_views: bool) -> Looker | None:
        if self.online is not None:
            return Looker(self.source, DrawnViews(self.policy, self.view_seed, self.source))
        if self.stores and isinstance(self.stores[0].policy, CropPolicy) and not own_views:
            return Looker(self.source, StoredViews(self.stores[0]))
        if self.policy.needs_boxes:
            self.source.read_boxes()
        return None

    def _look(
        self, places: Sequence[tuple[int, int]], records: Sequence[Record], epoch: int, number: int
    ) -> list[Look]:
        if self._looker is not None:
            return self._looker.look_all(places, number, records)
        looks = []
        sizes = image_sizes([record.encoded for record in records], [record.where for record in records]).tolist()
        for record, (width, height) in zip(records, sizes, strict=True):
            rng = generator(self.seed, "student view", epoch, record.key)
            try:
                looks.append(Look(record, sample_view(rng, self.policy, width, height, boxes=record.boxes)))
            except ImageError as error:
                raise error.at(record.where) from error
        return looks

    def _render(self, looks: Sequence[Look], size_px: int, interpolation: Interpolation) -> torch.Tensor:
        pixels = self._buffers.take((len(looks), size_px, size_px, 3))
        render_looks(looks, size_px, interpolation, out=pixels)
        return torch.from_numpy(pixels)

    @property
    def online_sees_students_pixels(self) -> bool:
        """Whether an online teacher looks at the very pixels of the student: same size and filter."""
        assert self.online is not None
        return (self.online.size_px, self.online.interpolation) == (self.size, self.interpolation)

    @property
    def mixes(self) -> bool:
        """Whether the views that are replayed, or shown to an online teacher, are mixed with a partner's."""
        policy = self.policy if self.online is not None else self.stores[0].policy
        return isinstance(policy, CropPolicy) and policy.mix is not None

    def _record_logits(self, record: Record) -> NDArray[np.float32]:
        assert record.logits is not None
        self._check_width(record)
        return map_logits(record.logits, ClassSpace(num_classes=len(record.logits)), self.class_space)

    def _check_same_views(self, shards: Set[int], view: int) -> None:
        """Stores that are averaged must have looked at the same views; compared once for each shard and view."""
        if len(self.stores) == 1:
            return
        for shard in shards:
            if (shard, view) in self._same_views:
                continue
            first = self.stores[0].read_columns(shard, view)
            for store in self.stores[1:]:
                columns = store.read_columns(shard, view)
                different = [
                    name for name in VIEW_COLUMNS & first.keys() if not np.array_equal(first[name], columns[name])
                ]
                if different:
                    raise StoreError(
                        f"{store.path}: view {view} of {store.shards[shard][0]} differs from that of "
                        f"{self.stores[0].path} ({', '.join(sorted(different))}): other views; extract with --views-of"
                    )
            self._same_views.add((shard, view))

    def _check_width(self, record: Record) -> None:
        assert record.logits is not None
        expected = self.class_space.num_classes + self.class_space.offset
        if len(record.logits) != expected:
            raise LogitsError(
                f"{record.where}: image/logit has {len(record.logits)} classes, expected {expected}; "
                "the logits were made for other data, or --num-classes is wrong"
            )

    def _find_num_classes(self) -> int:
        if self.source.classes is not None:
            return len(self.source.classes.names)
        if self.stores:
            return self.stores[0].plan.data_classes
        if self.use_record_logits:
            logits = self.source.read_record(0, 0, with_logits=True).logits
            assert logits is not None
            return len(logits)
        raise ConfigError(
            "the number of classes is not known: the data has no classes.json and no logits; give --num-classes "
            "(ImageNet TFRecords: 1001)"
        )


class EvalDataset:
    """A record source seen through an evaluation preprocessing: batches of pixels and labels."""

    def __init__(self, source: RecordSource, preprocessing: Preprocessing, class_space: ClassSpace) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.class_space = class_space
        self._arena = Arena()

    def __len__(self) -> int:
        return self.source.num_records

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        indices = np.array([index for index, _ in items], np.int64)
        records = self.source.read_batch(self.source.locate_all(indices), arena=self._arena)
        encoded, places = [record.encoded for record in records], [record.where for record in records]
        return {
            "pixels": torch.from_numpy(preprocess_images(encoded, places, self.preprocessing)),
            "labels": torch.tensor([student_label(record, self.class_space) for record in records], dtype=torch.int64),
            "indices": torch.from_numpy(indices),
        }


def student_label(record: Record, class_space: ClassSpace) -> int:
    """The model's class index of a record's label; RecordError where the model has no such class."""
    label = record.label - class_space.offset
    if not 0 <= label < class_space.num_classes:
        raise RecordError(
            f"{record.where}: label {record.label}, expected {class_space.offset} to "
            f"{class_space.offset + class_space.num_classes - 1}; give --num-classes or --offset that fit the data"
        )
    return label
