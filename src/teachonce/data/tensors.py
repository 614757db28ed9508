"""Batches as tensors: what the arrays of a dataset become on their way to a model of torch, without a copy.

Torch is imported when a function is called, so that datasets yield arrays where it is not installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ConfigError
from teachonce.extras import missing_extras
from teachonce.records.class_space import ClassSpace, Outputs, shared_classes

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

Arrays = dict[str, NDArray[Any]]
"""The entries of a batch in NumPy, each with the record axis first."""
Batch = dict[str, "torch.Tensor"]
"""The same as tensors."""


def as_tensors(arrays: Arrays) -> Batch:
    """Tensors over the same memory; raises MissingExtraError where torch is not installed."""
    with missing_extras("a batch of tensors (as_numpy() has NumPy arrays)"):
        import torch

    def over(values: NDArray[Any]) -> Tensor:
        # Where the memory is a tensor's, over its storage: by that torch knows when a copy from page-locked memory to a
        # device is over. Of another storage over the same bytes it knows by their first address alone, and would hand
        # out memory of which a part is still being copied.
        owner: Any = values.base
        if isinstance(owner, torch.Tensor) and owner.shape == values.shape:
            return owner
        return torch.from_numpy(values)

    return {name: over(values) for name, values in arrays.items()}


def join_batches(parts: Sequence[Batch], order: NDArray[np.int64] | None = None) -> Batch:
    """Batches one after another, as one; with ``order`` [B], row i is then row ``order[i]`` of them."""
    import torch

    if len(parts) == 1:
        return parts[0]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return joined if order is None else {name: values[torch.from_numpy(order)] for name, values in joined.items()}


def check_page_locked() -> None:
    """Raise ConfigError where there is no CUDA device, for which alone memory is page-locked."""
    with missing_extras("page_locked"):
        import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "page_locked: PyTorch finds no CUDA device here, expected one that the batches go to; leave it out"
        )


def take_page_locked(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Page-locked bytes of torch's own, with undefined content: its allocator knows when a copy to a device is over."""
    import torch

    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def lock_pages(batch: Batch) -> Batch:
    """The batch in page-locked memory, torch's own; tensors that are already there are not copied."""
    return {name: values if values.is_pinned() else values.pin_memory() for name, values in batch.items()}


def map_tensor(logits: Float[Tensor, "B S"], source: ClassSpace, target: ClassSpace) -> Float[Tensor, "B T"]:
    """``records.class_space.map_logits`` of a tensor, on its device: classes that the source lacks are -inf."""
    import torch

    def index(outputs: Outputs) -> slice | Tensor:
        if isinstance(outputs, slice):
            return outputs
        # Where the logits are: an index from elsewhere would wait for the device.
        return torch.from_numpy(outputs).to(logits.device, non_blocking=logits.is_cuda)

    if source == target:
        return logits
    mapped = logits.new_full((len(logits), target.num_classes), -torch.inf)
    of_source, of_target = shared_classes(source, target)
    mapped[:, index(of_target)] = logits[:, index(of_source)]
    return mapped
