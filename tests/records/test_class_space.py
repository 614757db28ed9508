"""Class spaces: explicit offsets, no mass for a class that the teacher does not know."""

import numpy as np
import pytest

from teachonce.errors import ConfigError
from teachonce.records.class_space import ClassSpace, map_logits, resolve_offset


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
    with pytest.raises(ConfigError, match=r"m has 10 classes, the data 1001: make the records with"):
        resolve_offset(10, 1001, None, model="m")
    with pytest.raises(ConfigError, match="no class in common"):
        resolve_offset(10, 11, 11, model="m")
    with pytest.raises(ConfigError, match="at least 1"):
        ClassSpace(num_classes=0)
