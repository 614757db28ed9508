"""Guards: a warning where the store shows a reason for one, with the figure; silence where it does not."""

import warnings

import numpy as np
import pytest

from teachonce.codecs.softmax import total_variation
from teachonce.records.discovery import open_records
from teachonce.training.guards.store_warnings import (
    StoreStats,
    judge_labels,
    measure_store_stats,
    warn_before_training,
    warn_of_temperature,
)
from tests.inspection.test_measures import NUM_VIEWS, SIZES, write_mixed_store
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
    assert "top-1 0.300" in message and "contradicts them more often than it agrees with them" in message


def test_a_teacher_that_is_mostly_right_but_too_sure(tmp_path):
    store = make_store(tmp_path, sharpness=2.0, right=0.9)
    (message,) = warned(store, StoreStats(0.85, 1.5, 0.1, 60, 60))
    assert "top-1 0.850 and gives the labels 1.50 nats (uniform: 1.39)" in message
    assert "contradicts" not in message and "try a larger --kd-temp" in message


def test_labels_that_the_teacher_lacks_have_no_nats(tmp_path):
    """Class 4 of the data is none of the teacher's four: it is wrong there, and its surprise is not defined."""
    source = open_records(write_shards(tmp_path / "data", sizes=(40, 20), num_classes=NUM_CLASSES + 2), "train")
    labels = np.array([r.label - 1 for s in range(2) for r in source.iter_shard(s)])
    is_known = labels < NUM_CLASSES
    logits = 2 * np.eye(NUM_CLASSES, dtype=np.float32)[np.minimum(labels, NUM_CLASSES - 1)]
    stats = measure_store_stats(write_store(tmp_path / "store", source, logits), 1.0)
    assert 0 < is_known.sum() < 60 and stats.num_judged == 60
    assert stats.top1 == pytest.approx(is_known.mean())
    assert stats.label_nats == pytest.approx(np.log(np.exp(2) + 3) - 2, abs=1e-6)
    assert np.isnan(judge_labels(0.0, 0.0, num_judged=60, num_known=0, num_mixed=0)[1])
    store = make_store(tmp_path / "other", sharpness=2.0, right=0.9)
    (message,) = warned(store, StoreStats(0.0, float("nan"), 0.1, 60, 60))
    assert "top-1 0.000 and knows the class of none of the labels: it contradicts them" in message


def mixed_store(tmp_path, is_mixed, right, sharpness=2.0):
    """Views of which ``is_mixed`` [V, N] are mixed and have the teacher answer the partner's class."""
    num_classes = 6
    data = write_shards(tmp_path / "data", sizes=SIZES, num_classes=num_classes + 1)
    labels = np.array([r.label - 1 for s in range(len(SIZES)) for r in open_records(data, "train").iter_shard(s)])
    chosen = np.where(right & ~is_mixed, labels, (labels + 1) % num_classes)
    logits = sharpness * np.eye(num_classes, dtype=np.float32)[chosen]
    return write_mixed_store(tmp_path / "store", data, logits, is_mixed)


def test_views_that_are_mixed_are_not_judged_by_the_label(tmp_path):
    """At half of all shares the partner's is the larger: a good teacher answers the partner's class."""
    is_mixed = np.ones((NUM_VIEWS, sum(SIZES)), bool)
    store = mixed_store(tmp_path, is_mixed, right=True)
    stats = measure_store_stats(store, 1.0)
    assert np.isnan(stats.top1) and np.isnan(stats.label_nats) and stats.num_judged == 0
    assert stats.num_rows == sum(SIZES) and warned(store, stats) == []
    sure = mixed_store(tmp_path / "sure", is_mixed, right=True, sharpness=9.0)
    (message,) = warned(sure, measure_store_stats(sure, 1.0))
    assert "its targets are nearly one-hot" in message and f"on {sum(SIZES)} of the training views" in message


@pytest.mark.parametrize("right", [True, False])
def test_views_without_a_mix_are_judged(tmp_path, right):
    is_mixed = np.arange(sum(SIZES)) % 8 == np.full((NUM_VIEWS, 1), 7)
    store = mixed_store(tmp_path, is_mixed, right)
    stats = measure_store_stats(store, 1.0)
    assert stats.top1 == right and stats.num_judged == sum(SIZES) - 2 == stats.num_rows - 2
    assert len(warned(store, stats)) == (not right)
    few = is_mixed | (np.arange(sum(SIZES)) < 8)
    assert np.isnan(measure_store_stats(mixed_store(tmp_path / "few", few, right), 1.0).top1)


def test_an_over_confident_teacher(tmp_path):
    store = make_store(tmp_path, sharpness=9.0, right=1.0)
    (message,) = warned(store, measure_store_stats(store, 1.0))
    assert "0.0004 of the probability" in message and "try a larger --kd-temp" in message
    assert warned(store, measure_store_stats(store, 4.0), temperature=4.0) == []


def test_a_student_much_smaller_than_the_teacher(tmp_path):
    store = make_store(tmp_path, sharpness=2.0, right=0.9)
    store.plan.teacher["num_parameters"] = 66_000_000
    stats = StoreStats(0.9, 0.5, 0.3, 60, 60)
    assert warned(store, stats, num_student=2_000_000) == []
    (message,) = warned(store, stats, num_student=1_000_000)
    assert "1.00 M parameters" in message and "66 times as many" in message


def wide_logits(num_rows, num_classes):
    """A crowd of likely classes, and one that has no mass at T = 4 and much of it at T = 16, as int8's scale ends."""
    rows = np.concatenate([np.linspace(0, -3, num_classes // 20), np.linspace(-60, -200, num_classes * 19 // 20)])
    return np.tile(rows.astype(np.float32), (num_rows, 1))


def warned_of_temperature(store, temperature):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_of_temperature(store, temperature)
    return [str(warning.message) for warning in found]


@pytest.fixture
def source(tmp_path):
    return open_records(write_shards(tmp_path / "data", sizes=(8,), num_classes=None), "train")


def test_a_temperature_outside_of_what_the_codec_promises(tmp_path, source):
    logits = wide_logits(8, 5000)
    store = write_store(tmp_path / "int8", source, logits, codec="int8", offset=0)
    for temperature in (1.0, 2.0, 3.0, 4.0):
        assert warned_of_temperature(store, temperature) == []
    (message,) = warned_of_temperature(store, 16.0)
    assert "--kd-temp 16 is outside of T = 1 to 4, for which codec int8 has a total variation of at" in message
    assert "with 5,000 classes, the total variation is not bounded by the stored values" in message
    assert "extract with --codec float16, or give a smaller --kd-temp" in message and "\n" not in message
    (message,) = warned_of_temperature(store, 0.5)
    assert "give a larger --kd-temp" in message


def test_the_error_is_measured_where_the_store_has_samples(tmp_path, source):
    logits = wide_logits(8, 5000)
    store = write_store(tmp_path / "int8", source, logits, codec="int8", offset=0, sample_rows=(2, 5))
    expected = total_variation(logits[[2, 5]], store.read_logits(0, 0, [2, 5]), 16.0)
    assert expected.max() > 0.01  # the promise does not reach so far
    (message,) = warned_of_temperature(store, 16.0)
    assert f"{expected.mean():.2g} on average and {expected.max():.2g} at most, measured on 2 views" in message


@pytest.mark.parametrize("codec", ["float32", "float16"])
def test_codecs_that_are_for_any_temperature(tmp_path, source, codec):
    store = write_store(tmp_path / codec, source, wide_logits(8, 50), codec=codec, offset=0)
    assert [warned_of_temperature(store, temperature) for temperature in (0.1, 1.0, 100.0)] == [[], [], []]


def test_topk_is_for_the_temperatures_of_its_tail(tmp_path, source):
    store = write_store(tmp_path / "topk", source, wide_logits(8, 50), codec="topk", offset=0)
    assert warned_of_temperature(store, 1.0) == warned_of_temperature(store, 8.0) == []
    (message,) = warned_of_temperature(store, 9.0)
    assert (
        "outside of T = 1 to 8, for which codec topk has the total probability of the other classes (right at T = 1, "
        "2, 4, 8, interpolated between), but not" in message
    )
    whole = write_store(tmp_path / "whole", source, wide_logits(8, 10), codec="topk", offset=0)
    assert warned_of_temperature(whole, 9.0) == []


def test_it_is_said_before_the_training(tmp_path, source):
    store = write_store(tmp_path / "store", source, np.eye(8, 4, dtype=np.float32), codec="int8", offset=0)
    stats = StoreStats(0.9, 0.5, 0.3, 60, 60)
    assert warned(store, stats, temperature=4.0) == []
    (message,) = warned(store, stats, temperature=5.0)
    assert "--kd-temp 5 is outside" in message
    columns = store.read_rows(0, 0, slice(None))
    bound = store.codec.variation_bound(columns, 5.0).max()
    assert bound < 1 and f"at most {bound:.2g}, proven for 8 views" in message
