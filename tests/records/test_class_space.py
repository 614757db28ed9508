"""Class spaces: explicit offsets, no mass for a class that the teacher does not know."""

import numpy as np
import pytest

from teachonce.errors import ConfigError
from teachonce.records.class_space import (
    ClassSpace,
    NamedClassSpace,
    describe_low_top1,
    map_logits,
    resolve_offset,
    shared_classes,
)


def test_a_missing_class_gets_no_mass_at_any_temperature():
    logits = np.array([[1.0, 2.0, 3.0]], np.float32)
    mapped = map_logits(logits, ClassSpace(num_classes=3, offset=1), ClassSpace(num_classes=4))
    np.testing.assert_array_equal(mapped, [[-np.inf, 1, 2, 3]])
    for temperature in (1.0, 10.0, 1000.0):
        probs = np.exp(mapped / temperature)
        assert probs[0, 0] == 0


def test_the_walkthroughs_padding_is_there_when_asked_for():
    mapped = map_logits(
        np.ones((1, 2), np.float32), ClassSpace(num_classes=2, offset=1), ClassSpace(num_classes=3), 0.0
    )
    assert mapped.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    "source, target, expected",
    [
        (ClassSpace(num_classes=3), ClassSpace(num_classes=3), [0, 1, 2]),
        (ClassSpace(num_classes=3), ClassSpace(num_classes=2, offset=1), [1, 2]),
        (ClassSpace(num_classes=3, offset=1), ClassSpace(num_classes=3, offset=1), [0, 1, 2]),
        (ClassSpace(num_classes=3, offset=2), ClassSpace(num_classes=4, offset=1), [-np.inf, 0, 1, 2]),
        (ClassSpace(num_classes=3), ClassSpace(num_classes=5, offset=0), [0, 1, 2, -np.inf, -np.inf]),
        (ClassSpace(num_classes=3), ClassSpace(num_classes=2, offset=5), [-np.inf, -np.inf]),
    ],
)
def test_mappings(source, target, expected):
    logits = np.arange(3, dtype=np.float32)[None]
    mapped = map_logits(logits, source, target)
    assert mapped.dtype == np.float32
    np.testing.assert_array_equal(mapped[0], np.array(expected, np.float32))


def test_offsets_are_given_or_beyond_doubt():
    assert resolve_offset(1001, 1001, None, model="m") == 0
    assert resolve_offset(1000, 1001, None, model="m") == 1
    assert resolve_offset(1000, None, 1, model="m") == 1
    assert resolve_offset(10, 1001, 5, model="m") == 5
    with pytest.raises(ConfigError, match=r"m has 10 classes, the data 1001: create the records with"):
        resolve_offset(10, 1001, None, model="m")
    with pytest.raises(ConfigError, match="without a common class"):
        resolve_offset(10, 11, 11, model="m")
    with pytest.raises(ConfigError, match="at least 1"):
        ClassSpace(num_classes=0)


def test_relabeled_outputs_are_a_run_where_they_can_be():
    space = ClassSpace(num_classes=3, offset=1)
    assert space.labels().tolist() == [1, 2, 3]
    # Labels that all move by as much: from shards, which count from 1, to a folder, which counts from 0.
    assert space.relabel(np.array([-1, 0, 1, 2])) == ClassSpace(num_classes=3)
    assert space.relabel(np.arange(4)) == space
    assert ClassSpace(num_classes=3).relabel(np.array([5, 6, 7])) == ClassSpace(num_classes=3, offset=5)
    swapped = space.relabel(np.array([0, 2, 1, 3]))
    assert swapped == NamedClassSpace(num_classes=3, output_labels=(2, 1, 3))
    assert swapped.labels().tolist() == [2, 1, 3] and swapped != ClassSpace(num_classes=3)
    # A class that the data has not, an output beyond the labels, and one before them.
    assert space.relabel(np.array([0, 1, -1, 2])).labels().tolist() == [1, -1, 2]
    assert space.relabel(np.array([0, 1])).labels().tolist() == [1, -1, -1]
    assert ClassSpace(num_classes=3, offset=-1).relabel(np.array([0, 1, 2])).labels().tolist() == [-1, 0, 1]
    # None at all is no run that begins before the labels.
    assert space.relabel(np.full(4, -1)).labels().tolist() == [-1, -1, -1]
    assert swapped.relabel(np.array([0, 3, 2, 1])) == NamedClassSpace(num_classes=3, output_labels=(2, 3, 1))


def by_hand(logits, source, target, missing):
    """One label at a time."""
    of_label = {label: at for at, label in enumerate(source.labels().tolist()) if label >= 0}
    return [
        [row[of_label[label]] if label in of_label and label >= 0 else missing for label in target.labels().tolist()]
        for row in logits.tolist()
    ]


NAMED = [
    NamedClassSpace(num_classes=3, output_labels=labels)
    for labels in ((2, 0, 1), (2, -1, 0), (-1, -1, -1), (7, 3, 1), (-1, 4, 2))
]
RUNS = [ClassSpace(num_classes=count, offset=offset) for count, offset in ((3, 0), (3, 1), (5, 0), (1, 2), (2, 6))]


@pytest.mark.parametrize("target", [*RUNS, *NAMED], ids=str)
@pytest.mark.parametrize("source", [*RUNS, *NAMED], ids=str)
def test_outputs_are_mapped_by_their_labels(source, target):
    logits = np.random.default_rng(0).normal(0, 1, (2, source.num_classes)).astype(np.float32)
    if source == target:
        assert map_logits(logits, source, target) is logits
        return
    mapped = map_logits(logits, source, target, 0.25)
    assert mapped.tolist() == by_hand(logits, source, target, 0.25)
    of_source, of_target = shared_classes(source, target)
    labels = source.labels()[of_source]
    assert (labels == target.labels()[of_target]).all()
    assert set(labels.tolist()) - {-1} == (set(source.labels().tolist()) & set(target.labels().tolist())) - {-1}


def test_what_a_low_top1_is() -> None:
    rng = np.random.default_rng(0)
    balanced, of_thousand = rng.integers(0, 4, 256), rng.integers(0, 1000, 256)
    # A quarter, and three standard errors of 256 answers: 0.25 + 3 * 0.027.
    assert describe_low_top1(0.25, balanced, 4) == describe_low_top1(0.33, balanced, 4) == "near chance"
    assert describe_low_top1(0.45, balanced, 4) is None
    # Shifted by one: of two classes every answer is wrong, or half of them.
    assert describe_low_top1(0.5, balanced // 2, 2) == "near chance"
    # Far above a thousandth.
    assert describe_low_top1(0.08, of_thousand, 1000) == "low"
    assert describe_low_top1(0.004, of_thousand, 1000) == "near chance"
    assert describe_low_top1(0.12, of_thousand, 1000) is None
    mostly_first = (np.arange(256) >= 192).astype(np.int64)
    said = "hardly above what the commonest label alone would get (0.750)"
    assert describe_low_top1(0.8, mostly_first, 2) == said and describe_low_top1(0.9, mostly_first, 2) is None
    said = "no better than what the commonest label alone would get (0.750)"
    assert describe_low_top1(0.7, mostly_first, 2) == said
    # Images of one class: what is always right for them says nothing.
    assert describe_low_top1(0.95, np.zeros(256, np.int64), 4) is None
    # Of 12 images a sixth or a half is no evidence.
    few = np.arange(12) % 6
    assert describe_low_top1(0.5, few, 6) is describe_low_top1(0.167, few, 6) is None
    assert describe_low_top1(0.0, few, 6) == "near chance"
    assert describe_low_top1(0.083, few, 1000) == "low"
