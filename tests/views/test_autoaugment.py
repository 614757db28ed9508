"""AutoAugment: the table, the scale of its levels, and that draws follow both; golden draws notice another stream."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from teachonce.rng import generator
from teachonce.views.autoaugment import IMAGENET_SUB_POLICIES, level_magnitude, sample_sub_policy
from teachonce.views.operations import OPERATION_NAMES, Operation


def test_the_table_is_torchvisions() -> None:
    """Another reader of table 9; its levels of operations without a magnitude are left out."""
    theirs = AutoAugment(AutoAugmentPolicy.IMAGENET).policies
    assert len(theirs) == len(IMAGENET_SUB_POLICIES) == 25
    for ours, other in zip(IMAGENET_SUB_POLICIES, theirs, strict=True):
        for (name, prob, level), (their_name, their_prob, their_level) in zip(ours, other, strict=True):
            assert (name.replace("_", ""), prob) == (their_name.lower(), their_prob)
            assert their_level in (None, level) and name in OPERATION_NAMES


def test_the_scale_by_hand() -> None:
    assert level_magnitude("rotate", 9, -1.0) == pytest.approx(-27)
    assert level_magnitude("shear_x", 5, 1.0) == pytest.approx(0.15)
    assert [level_magnitude("posterize", level, 1.0) for level in (5, 6, 7, 8)] == [2, 2, 2, 3]
    assert [level_magnitude("solarize", level, 1.0) for level in (3, 4, 5, 7, 8)] == [76, 102, 128, 179, 204]
    for name in ("color", "contrast", "sharpness"):
        for sign in (-1.0, 1.0):
            assert level_magnitude(name, 0, sign) == pytest.approx(0.1)
            assert level_magnitude(name, 5, sign) == pytest.approx(1.0), "nothing changes"
            assert level_magnitude(name, 8, sign) == pytest.approx(1.54)
    assert level_magnitude("equalize", 8, 1.0) == level_magnitude("invert", 8, 1.0) == 0


def expected_chances() -> dict[tuple[str, str], float]:
    """The probability of each pair of operations, from the table alone."""
    chances: dict[tuple[str, str], float] = {}
    for (one, p, _), (two, q, _) in IMAGENET_SUB_POLICIES:
        for first, chance in ((one, p), ("identity", 1 - p)):
            for second, other in ((two, q), ("identity", 1 - q)):
                pair = first, second
                chances[pair] = chances.get(pair, 0.0) + chance * other / 25
    return chances


def test_draws_follow_the_table() -> None:
    num_draws = 20_000
    draws = [sample_sub_policy(generator(0, index)) for index in range(num_draws)]
    chances = {pair: chance for pair, chance in expected_chances().items() if chance > 0}
    found = dict.fromkeys(chances, 0)
    for first, second in draws:
        found[first.name, second.name] += 1  # a KeyError is a pair that the table does not have
    for pair, chance in chances.items():
        deviation = math.sqrt(num_draws * chance * (1 - chance))
        assert abs(found[pair] - num_draws * chance) < 4.5 * deviation, pair
    angles = np.array([op.magnitude for pair in draws for op in pair if op.name == "rotate"])
    assert set(np.abs(angles)) == {9.0, 24.0, 27.0}
    assert abs((angles > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(len(angles))
    assert all(op.magnitude == float(np.float16(op.magnitude)) for pair in draws for op in pair)


def test_golden_draws() -> None:
    assert [sample_sub_policy(generator(7, "golden", index)) for index in range(6)] == GOLDEN


GOLDEN = [
    (Operation("identity"), Operation("equalize")),
    (Operation("equalize"), Operation("identity")),
    (Operation("color", 0.81982421875), Operation("contrast", 1.5400390625)),
    (Operation("rotate", 24.0), Operation("identity")),
    (Operation("solarize", 128.0), Operation("autocontrast")),
    (Operation("color", 1.5400390625), Operation("identity")),
]
