"""Stored logits on their way to the loss: columns as they are on disk in the batch, logits on the student's device.

What crosses to the device is what the store holds, some 35 bytes (topk) or 1 kB (int8) a record instead of 4 kB, and
the host does no arithmetic. ``decode`` computes there what the codec's ``decode_logits`` computes in NumPy: the same
bits for the dense codecs, within float32's rounding for topk (tests/codecs/test_on_device.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from teachonce.codecs.codec import Codec
from teachonce.errors import StoreError
from teachonce.records.class_space import ClassSpace, shared_classes
from teachonce.store.store import Store
from teachonce.views.columns import VIEW_COLUMNS


class StoredTeachers:
    """The teachers behind some stores, for a student's class space; picklable."""

    def __init__(self, stores: Sequence[Store], class_space: ClassSpace) -> None:
        self.codecs: list[Codec] = [store.codec for store in stores]
        self.spaces = [store.class_space for store in stores]
        self.paths = [store.path for store in stores]
        self.class_space = class_space

    def to_batch(self, columns: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Tensor]:
        """Entries of a batch, each [B, ...], from the gathered columns of each store."""
        for path, codec, stored in zip(self.paths, self.codecs, columns, strict=True):
            try:
                codec.check_columns(stored)
            except StoreError as error:
                raise error.at(str(path)) from error
        return {
            f"teacher{number}_{name}": torch.from_numpy(values)
            for number, stored in enumerate(columns)
            for name, values in stored.items()
            if name not in VIEW_COLUMNS
        }

    def is_in(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether a batch holds the columns."""
        return any(name.startswith("teacher0_") for name in batch)

    def decode(self, batch: Mapping[str, Tensor], temperature: float) -> Tensor:
        """Teacher logits [B, C] of a batch, of M > 1 stores [B, M, C], on the batch's device, in float32.

        For a softmax at ``temperature``, which a sparse codec must know. Classes that a teacher lacks are -inf.
        """
        teachers = []
        for number, (codec, space) in enumerate(zip(self.codecs, self.spaces, strict=True)):
            prefix = f"teacher{number}_"
            columns = {name[len(prefix) :]: values for name, values in batch.items() if name.startswith(prefix)}
            teachers.append(self._map(codec.decode_tensor(columns, temperature), space))
        return teachers[0] if len(teachers) == 1 else torch.stack(teachers, dim=1)

    def _map(self, logits: Tensor, space: ClassSpace) -> Tensor:
        if space == self.class_space:
            return logits
        mapped = logits.new_full((len(logits), self.class_space.num_classes), -torch.inf)
        of_source, of_target = shared_classes(space, self.class_space)
        mapped[:, of_target] = logits[:, of_source]
        return mapped
