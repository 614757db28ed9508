"""Stores of every released format stay readable: tests/golden/store-* were written once and are never written again."""

from pathlib import Path

import numpy as np
import pytest

from teachonce.policies import CropPolicy
from teachonce.store import Store
from teachonce.views import View

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("codec", ["float16", "float32", "int8"])
def test_version_1(codec):
    store = Store(GOLDEN / f"store-v1-{codec}")
    assert store.check_files() == 4
    assert store.policy == CropPolicy(scale=(0.25, 1.0)) and store.num_views == 2
    assert (store.class_space.num_classes, store.class_space.offset, store.plan.data_classes) == (3, 1, 4)
    assert store.read_keys(1).tolist() == [2**64 - 1, 7]
    assert store.read_filenames(0) == ["a.jpg", "b.jpg", "ü.jpg"] and store.read_labels(0).tolist() == [1, 2, 3]
    assert store.read_views(0, 1, [2]) == [View((1, 2, 3, 65535), flip=True)]
    expected = np.array([[0.5, -1.25, 3.0], [10.0, 0.0, -75.0], [2.0, 2.0, 2.0]], np.float32)
    logits = store.read_logits(0, 1, slice(None))
    assert (np.abs(logits - expected) <= store.codec.error_bound(store.read_rows(0, 1, slice(None)))).all()
    if codec == "int8":
        # The code of 2.5 below the largest, in a range of 4.25, is 178; the largest and the farthest are exact.
        np.testing.assert_allclose(logits[0], [3 - 4.25 * (178 / 254) ** 1.5, -1.25, 3.0], atol=1e-6)
        assert logits[1, 0] == 10.0 and logits[1, 2] == -75.0
