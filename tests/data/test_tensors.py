"""Batches as tensors: class spaces on the device, the mapping of NumPy's ``map_logits``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from teachonce.data.tensors import as_tensors, map_tensor
from teachonce.records.class_space import ClassSpace, NamedClassSpace, map_logits

SPACES = [ClassSpace(num_classes=count, offset=offset) for count in (1, 3, 4) for offset in (0, 1, 5)]
SPACES += [
    NamedClassSpace(num_classes=3, output_labels=labels) for labels in ((2, 0, 1), (2, -1, 0), (-1, -1, -1), (7, 3, 1))
]


@pytest.mark.parametrize("target", SPACES)
@pytest.mark.parametrize("source", SPACES)
def test_the_same_numbers_as_on_the_host(source: ClassSpace, target: ClassSpace) -> None:
    logits = np.arange(2 * source.num_classes, dtype=np.float32).reshape(2, -1)
    mapped = map_tensor(torch.from_numpy(logits), source, target)
    np.testing.assert_array_equal(mapped.numpy(), map_logits(logits, source, target))


def test_an_array_of_a_tensor_is_over_its_storage_again() -> None:
    """By which torch knows of page-locked memory when a copy from it, or from a part of it, is over."""
    owner = torch.zeros(4, 3, dtype=torch.uint8)
    array = owner.numpy()
    tensors = as_tensors({"whole": array, "part": array[1:]})
    assert tensors["whole"].untyped_storage()._cdata == owner.untyped_storage()._cdata
    assert tensors["whole"].shape == (4, 3) and tensors["whole"].dtype == torch.uint8
    assert tensors["part"].shape == (3, 3) and tensors["part"].data_ptr() == owner[1:].data_ptr()
