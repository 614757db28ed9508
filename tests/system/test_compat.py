"""Stores of every released format stay readable: tests/golden/store-* were written once and are never written again."""

import numpy as np
import pytest

from teachonce.store.store import Store
from teachonce.views.operations import Operation
from teachonce.views.policy import (
    AutoAugment,
    CropPolicy,
    ObjectCrop,
    RandAugment,
    RandomErasing,
    RandomMix,
    policy_from_json,
    policy_to_json,
)
from teachonce.views.view import Erasing, Mix, View
from tests.support.paths import GOLDEN


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


def test_version_2():
    """Every column of a view, a sparse codec, samples, and the manifest."""
    store = Store(GOLDEN / "store-v2-topk")
    assert store.check_files() == 3 and store.num_views == 2 and store.seed == 3
    assert store.policy == CropPolicy(
        scale=(0.25, 1.0),
        randaugment=RandAugment(),
        erasing=RandomErasing(),
        mix=RandomMix(mixup_alpha=0.5, cutmix_alpha=1.0),
    )
    rotated = View((0, 0, 9, 8), True, (Operation("rotate", -12.5), Operation("equalize")))
    assert store.read_views(0, 0, [1]) == [rotated]
    assert store.read_views(0, 1, slice(None)) == [
        View(
            (1, 2, 3, 65535),
            False,
            (Operation("solarize", 96.0), Operation("translate_x", 0.25)),
            (Erasing((1, 2, 3, 4), (5, 6, 7)),),
            Mix(77, 0.75),
        ),
        View(
            (1, 2, 3, 4), True, (Operation("identity"), Operation("color", 1.5)), (), Mix(5, 0.75, (0, 0, 32768, 32767))
        ),
        View((0, 0, 1, 1), False, (Operation("posterize", 4.0), Operation("shear_y", -0.25))),
    ]
    assert store.locations_of(77) == [(0, 2)] and store.locations_of(2**64 - 1) == [(0, 1)]
    logits = np.array([[2, 2.5, 0, -3, -9], [0, -30, -30, -30, -31], [3, 2, 1, 0, -1]], np.float32)
    errors, allowed = store.codec.compare_logits(store.read_rows(0, 1, slice(None)), logits, np.zeros(3))
    assert (errors <= allowed).all() and store.codec.num_kept == 2
    ((shard, group),) = store.sample_files()
    samples = store.read_samples(shard, group)
    assert (shard, [(sample.row, sample.view) for sample in samples]) == (0, [(0, 0), (2, 1)])
    assert (samples[0].image_xxh3, samples[0].pixels_xxh3) == (11, 2**64 - 1)
    assert samples[1].logits.tolist() == [3, 2, 1, 0, -1]
    assert store.plan.teacher["num_parameters"] == 7


def test_a_policy_with_every_part_that_plans_hold():
    """As it stands in the plans of stores; the parts of the others are in the stores above."""
    entry = {
        "name": "crop+autoaugment",
        "scale": [0.05, 1.0],
        "ratio": [0.75, 1.33],
        "flip_prob": 0.5,
        "autoaugment": {"found_on": "imagenet"},
        "objects": {"covered": 0.1, "boxes": "records", "max_attempts": 100},
    }
    policy = CropPolicy(scale=(0.05, 1.0), ratio=(0.75, 1.33), autoaugment=AutoAugment(), objects=ObjectCrop())
    assert policy_from_json(entry) == policy and policy_to_json(policy) == entry
