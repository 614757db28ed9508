"""Stored logits on their way to the loss: columns as they are on disk in the batch, logits on the student's device.

What crosses to the device is what the store holds, some 35 bytes (topk) or 1 kB (int8) a record instead of 4 kB, and
the host does no arithmetic. ``decode`` computes there what the codec's ``decode_logits`` computes in NumPy: the same
bits for the dense codecs, within float32's rounding for topk (tests/data/test_stored_logits.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teachonce.codecs.codec import Codec
from teachonce.codecs.dense import Float16Codec, Float32Codec, Int8Codec
from teachonce.codecs.topk import TopKCodec, tail_weights
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
            last = stored["indices"].max(initial=0) if isinstance(codec, TopKCodec) else 0
            if isinstance(codec, TopKCodec) and last >= codec.num_classes:
                raise StoreError(
                    f"{path}: class index {last} in a store of {codec.num_classes} classes: damaged; "
                    "run teachonce verify"
                )
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
            teachers.append(self._map(decode_on_device(codec, columns, temperature), space))
        return teachers[0] if len(teachers) == 1 else torch.stack(teachers, dim=1)

    def _map(self, logits: Tensor, space: ClassSpace) -> Tensor:
        if space == self.class_space:
            return logits
        mapped = logits.new_full((len(logits), self.class_space.num_classes), -torch.inf)
        of_source, of_target = shared_classes(space, self.class_space)
        mapped[:, of_target] = logits[:, of_source]
        return mapped


def decode_on_device(codec: Codec, columns: Mapping[str, Tensor], temperature: float) -> Tensor:
    """``codec.decode_logits`` of columns that are tensors: [B, C], float32, on their device."""
    if isinstance(codec, Float32Codec):
        return columns["logits"].float()
    if isinstance(codec, Float16Codec):
        return columns["max_logit"][:, None] - columns["distances"].float()
    if isinstance(codec, Int8Codec):
        return _decode_int8(codec, columns)
    assert isinstance(codec, TopKCodec), codec
    return _decode_topk(codec, columns, temperature)


def _decode_int8(codec: Int8Codec, columns: Mapping[str, Tensor]) -> Tensor:
    codes = columns["codes"]
    levels = torch.from_numpy(codec.levels).to(codes.device, non_blocking=True)
    distances = levels[codes.int()] * columns["range"][:, None]
    return columns["max_logit"][:, None] - torch.where(codes == 255, columns["far"][:, None], distances)


def _decode_topk(codec: TopKCodec, columns: Mapping[str, Tensor], temperature: float) -> Tensor:
    row_range = columns["range"].float()[:, None]
    kept = -row_range * (columns["codes"].float() / 255) ** 2
    if codec.num_tail:
        falls = torch.cumsum(columns["drops"].float() * _on(columns["drops"], codec.drop_steps()), dim=1)
        distances = torch.cat([row_range, row_range + falls], dim=1)
        # Not as a matrix product, which mixed precision would do in 16 bits.
        tail = (distances * _on(columns["drops"], tail_weights(temperature))).sum(dim=1)
        logits = (-tail)[:, None].expand(-1, codec.num_classes).clone()
    else:
        logits = kept.new_empty(len(kept), codec.num_classes)
    return logits.scatter_(1, columns["indices"].long(), kept)


def _on(like: Tensor, values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(like.device, non_blocking=True)
