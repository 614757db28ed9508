"""Records joined with views and teacher logits: batches that any training loop can take.

Every item is a function of (seed, epoch, record), never of worker, rank, batch size or order. Where the store's policy
draws views, epoch e replays view e mod V and nothing else is random; where it is ``center`` (or the logits come from
``image/logit``), the student's own random crops are drawn by (seed, epoch, record key), and the teacher's logits stay
those of its centre view, as in the walkthrough.

Each record's key is compared with the store's as it is read; a mismatch is a refusal, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from teachonce.classes import ClassSpace, map_logits
from teachonce.errors import ConfigError, LogitsError, RecordError, TeachonceError
from teachonce.images import Interpolation
from teachonce.join import check_key, check_same_data, decode_record
from teachonce.preprocessing import Preprocessing
from teachonce.records import Record, RecordSource
from teachonce.rng import generator
from teachonce.store import Store
from teachonce.views import CropPolicy, View, apply_view, sample_view

Batch = dict[str, torch.Tensor]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (record index, epoch): a permutation by (seed, epoch), split exactly over ranks.

    Every record occurs once an epoch over all ranks together, and every rank makes the same number of steps; a rest
    too small to give each rank a record joins the last batch. ``batch_size`` is that of one rank. ``drop_last`` leaves
    the records of an incomplete last batch out (others each epoch), unless there is no other batch.
    """

    def __init__(
        self,
        num_records: int,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_records < world_size:
            raise ConfigError(f"{num_records} records for {world_size} devices: each needs at least one record")
        self.num_records = num_records
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch from the next iteration on."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.num_records, self.batch_size * self.world_size)
        return full + (full == 0 or (rest >= self.world_size and not self.drop_last))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.num_records)
        if self.shuffle:
            order = generator(self.seed, "order", self.epoch).permutation(self.num_records)
        step_records = self.batch_size * self.world_size
        num_steps = len(self)
        end = num_steps * step_records if self.drop_last else self.num_records
        for step in range(num_steps):
            last = end if step == num_steps - 1 else (step + 1) * step_records
            mine = order[step * step_records : last][self.rank :: self.world_size]
            yield [(int(index), self.epoch) for index in mine]


class KDDataset(Dataset[Any]):
    """A record source for training, joined with a store's or the records' own teacher logits if wanted.

    Raises StoreError where the store is of other data, LogitsError where the logits do not fit the class space, and
    RecordError, with the place, for whatever is wrong with a record.
    """

    def __init__(
        self,
        source: RecordSource,
        *,
        size: int,
        seed: int = 0,
        store: Store | Path | str | None = None,
        use_record_logits: bool = False,
        class_space: ClassSpace | None = None,
        crop: CropPolicy | None = None,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        if store is not None and use_record_logits:
            raise ConfigError("logits from a store and from the records: choose one")
        self.source = source
        self.size = size
        self.seed = seed
        self.store = Store(store) if isinstance(store, Path | str) else store
        self.use_record_logits = use_record_logits
        self.crop = crop or CropPolicy()
        self.interpolation = interpolation
        self._first_index = np.cumsum([0, *(shard.num_records for shard in source.shards)])
        if self.store is not None:
            check_same_data(self.store, source.describe())
        self.class_space = class_space or ClassSpace(num_classes=self._find_num_classes())

    def __len__(self) -> int:
        return int(self._first_index[-1])

    @property
    def num_classes(self) -> int:
        """Classes of the student."""
        return self.class_space.num_classes

    @property
    def replays_views(self) -> bool:
        """Whether the student sees the stored views (and nothing else is random)."""
        return self.store is not None and isinstance(self.store.policy, CropPolicy)

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, row) of a record."""
        shard = int(np.searchsorted(self._first_index, index, side="right")) - 1
        return shard, index - int(self._first_index[shard])

    def read_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """Records as tensors: pixels uint8 [B, H, W, 3], labels int64 [B], teacher_logits float32 [B, C], indices [B].

        ``teacher_logits`` is there only with a store or the records' logits; classes that the teacher does not know
        are -inf.
        """
        items = [self._read_item(index, epoch) for index in indices]
        batch = {
            "pixels": torch.from_numpy(np.stack([pixels for pixels, _, _ in items])),
            "labels": torch.tensor([label for _, label, _ in items], dtype=torch.int64),
            "indices": torch.tensor(indices, dtype=torch.int64),
        }
        if self.store is not None or self.use_record_logits:
            batch["teacher_logits"] = torch.from_numpy(
                np.stack([logits for _, _, logits in items if logits is not None])
            )
        return batch

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        return self.read_batch([index for index, _ in items], items[0][1])

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
    ) -> DataLoader[Batch]:
        """A loader of one epoch's batches, for loops of your own; the arguments are those of ``EpochBatches``."""
        sampler = EpochBatches(
            len(self),
            batch_size,
            seed=self.seed,
            epoch=epoch,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
        )
        return build_loader(self, sampler, num_workers)

    def _read_item(self, index: int, epoch: int) -> tuple[NDArray[np.uint8], int, NDArray[np.float32] | None]:
        shard, row = self.locate(index)
        record = self.source.read_record(shard, row, with_logits=self.use_record_logits)
        if self.store is not None:
            check_key(self.store, shard, row, record)
        label = student_label(record, self.class_space)
        image = decode_record(record)
        view_index = epoch % self.store.num_views if self.store is not None else 0
        view = self._view(shard, row, view_index, epoch, record, image)
        return (
            apply_view(image, view, self.size, self.interpolation),
            label,
            self._teacher_logits(shard, row, view_index, record),
        )

    def _view(self, shard: int, row: int, view_index: int, epoch: int, record: Record, image: Image.Image) -> View:
        if self.store is not None and self.replays_views:
            return self.store.read_views(shard, view_index, [row])[0]
        rng = generator(self.seed, "student view", epoch, record.key)
        return sample_view(rng, self.crop, image.width, image.height)

    def _teacher_logits(self, shard: int, row: int, view: int, record: Record) -> NDArray[np.float32] | None:
        if self.store is not None:
            logits = self.store.read_logits(shard, view, [row])[0]
            return map_logits(logits, self.store.class_space, self.class_space)
        if record.logits is None:
            return None
        self._check_width(record)
        return map_logits(record.logits, ClassSpace(num_classes=len(record.logits)), self.class_space)

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
        if self.store is not None:
            return self.store.plan.data_classes
        if self.use_record_logits:
            logits = self.source.read_record(0, 0, with_logits=True).logits
            assert logits is not None
            return len(logits)
        raise ConfigError(
            "the number of classes is not known: the data has no classes.json and no logits; give --num-classes "
            "(ImageNet TFRecords: 1001)"
        )


class EvalDataset(Dataset[Any]):
    """A record source seen through an evaluation preprocessing: batches of pixels and labels."""

    def __init__(self, source: RecordSource, preprocessing: Preprocessing, class_space: ClassSpace) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.class_space = class_space
        self._first_index = np.cumsum([0, *(shard.num_records for shard in source.shards)])

    def __len__(self) -> int:
        return int(self._first_index[-1])

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        pixels, labels = [], []
        for index, _ in items:
            shard = int(np.searchsorted(self._first_index, index, side="right")) - 1
            record = self.source.read_record(shard, index - int(self._first_index[shard]))
            labels.append(student_label(record, self.class_space))
            pixels.append(self.preprocessing.apply(decode_record(record)))
        return {
            "pixels": torch.from_numpy(np.stack(pixels)),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "indices": torch.tensor([index for index, _ in items], dtype=torch.int64),
        }


def build_loader(dataset: Dataset[Any], batches: EpochBatches, num_workers: int = 0) -> DataLoader[Batch]:
    """A DataLoader whose batches are those of ``read_batch``, in the order of ``batches`` whatever ``num_workers``."""
    return _Loader(
        _ErrorsAsItems(dataset),
        batch_sampler=batches,
        collate_fn=_as_is,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        # Forked workers would inherit the locks of threads that do not exist there.
        multiprocessing_context="forkserver" if num_workers > 0 else None,
    )


def student_label(record: Record, class_space: ClassSpace) -> int:
    """The model's class index of a record's label; RecordError where the model has no such class."""
    label = record.label - class_space.offset
    if not 0 <= label < class_space.num_classes:
        raise RecordError(
            f"{record.where}: label {record.label}, expected {class_space.offset} to "
            f"{class_space.offset + class_space.num_classes - 1}; give --num-classes or --offset that fit the data"
        )
    return label


def _as_is(batch: Any) -> Any:
    return batch


class _ErrorsAsItems(Dataset[Any]):
    """An error crosses from a loader process as an item: DataLoader would make a traceback of its message."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch | TeachonceError:
        try:
            return self.dataset.__getitems__(items)
        except TeachonceError as error:
            return error


class _Loader(DataLoader[Batch]):
    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a generator is all that loops need
        for batch in super().__iter__():
            if isinstance(batch, TeachonceError):
                raise batch
            yield batch
