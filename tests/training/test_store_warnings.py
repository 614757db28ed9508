"""Guards: a warning where the store shows a reason for one, with the figure; silence where it does not."""

import warnings

import numpy as np
import pytest

from teachonce.records.discovery import open_records
from teachonce.training.store_warnings import StoreStats, measure_store_stats, warn_before_training
from tests.support.small_data import write_shards, write_store

NUM_CLASSES = 4


def make_store(tmp_path, sharpness, right):
    """A store whose teacher gives ``sharpness`` to its class: the label for ``right`` of the records."""
    source = open_records(write_shards(tmp_path / "data", sizes=(40, 20), num_classes=NUM_CLASSES + 1), "train")
    labels = np.array([r.label - 1 for s in range(2) for r in source.iter_shard(s)])
    chosen = np.where(np.arange(60) < 60 * right, labels, (labels + 1) % NUM_CLASSES)
    logits = np.zeros((60, NUM_CLASSES), np.float32)
    logits[np.arange(60), chosen] = sharpness
    return write_store(tmp_path / "store", source, logits)


def warned(store, stats, temperature=1.0, num_student=1_000_000):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_before_training(store, stats, temperature, num_student)
    return [str(warning.message) for warning in found]


def test_what_is_measured(tmp_path):
    store = make_store(tmp_path, sharpness=2.0, right=0.75)
    stats = measure_store_stats(store, temperature=1.0)
    mass = np.exp(2) / (np.exp(2) + 3)
    assert stats.num_rows == 60 and stats.top1 == pytest.approx(0.75)
    assert stats.non_top1_mass == pytest.approx(1 - mass, abs=1e-6)
    expected = -(0.75 * np.log(mass) + 0.25 * np.log((1 - mass) / 3))
    assert stats.label_nats == pytest.approx(expected, abs=1e-6)
    softer = np.exp(0.5) / (np.exp(0.5) + 3)
    assert measure_store_stats(store, temperature=4.0).non_top1_mass == pytest.approx(1 - softer, abs=1e-6)


def test_a_good_teacher_is_not_commented(tmp_path):
    store = make_store(tmp_path, sharpness=2.0, right=0.9)
    assert warned(store, measure_store_stats(store, 1.0)) == []


def test_a_teacher_worse_than_the_labels(tmp_path):
    store = make_store(tmp_path, sharpness=2.0, right=0.3)
    (message,) = warned(store, measure_store_stats(store, 1.0))
    assert "top-1 0.300" in message and "contradicts them more often than it confirms them" in message


def test_an_over_confident_teacher(tmp_path):
    store = make_store(tmp_path, sharpness=9.0, right=1.0)
    (message,) = warned(store, measure_store_stats(store, 1.0))
    assert "0.0004 of the mass" in message and "try a larger --kd-temp" in message
    assert warned(store, measure_store_stats(store, 4.0), temperature=4.0) == []


def test_a_student_much_smaller_than_the_teacher(tmp_path):
    store = make_store(tmp_path, sharpness=2.0, right=0.9)
    store.plan.teacher["num_parameters"] = 66_000_000
    stats = StoreStats(0.9, 0.5, 0.3, 60)
    assert warned(store, stats, num_student=2_000_000) == []
    (message,) = warned(store, stats, num_student=1_000_000)
    assert "1.00 M parameters" in message and "66 times as many" in message
