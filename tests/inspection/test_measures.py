"""The numbers of a store against plain loops; mixed views; samples; what the codec changes; where the bytes are."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachonce.codecs.registry import build_codec
from teachonce.inspection import measures as measures_module
from teachonce.inspection.costs import measure_bytes, measure_codec, measure_variation
from teachonce.inspection.diff import _describe
from teachonce.inspection.measures import (
    RowSums,
    add_calibration,
    choose_rows,
    judge_rows,
    measure_store,
    read_is_mixed,
    spread_evenly,
    sum_rows,
    top_classes,
)
from teachonce.inspection.store import render_store, summarize_store
from teachonce.records.class_space import ClassSpace
from teachonce.records.discovery import open_records
from teachonce.records.source import NO_LABEL
from teachonce.rng import generator
from teachonce.store.begin import begin_store
from teachonce.store.card import render_card
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import Plan, describe_data, group_views
from teachonce.store.store import Store
from teachonce.store.tables import Sample, StoreWriter
from teachonce.views.policy import CropPolicy, RandomMix, policy_to_json
from teachonce.views.view import Mix, View
from tests.support.raw_images import write
from tests.support.small_data import encode_jpeg, write_image_folder, write_shards, write_store

SIZES, NUM_VIEWS, NUM_CLASSES = (11, 8), 5, 6
POLICY = CropPolicy(mix=RandomMix(cutmix_alpha=1.0, mixup_alpha=1.0))


def probs_of(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def write_mixed_store(
    path: Path, data: Path, logits: np.ndarray, is_mixed: np.ndarray, codec: str = "float32", k: int = 2
) -> Store:
    """A store of given ``logits`` [V, N, C] whose views are mixed where ``is_mixed`` [V, N], with samples of all rows.

    Mixes are mixup and cutmix by turns, and a cutmix of so small a box that its share rounds to 1.
    """
    source = open_records(data, "train")
    coded = build_codec(codec, num_classes=NUM_CLASSES, k=k)
    groups = group_views(len(logits), 2)
    plan = Plan(
        teacher={"spec": "none", "model": "test", "precision": "float32"},
        class_space=ClassSpace(num_classes=NUM_CLASSES, offset=1),
        data_classes=NUM_CLASSES + 1,
        **describe_data(source),
        policy=policy_to_json(POLICY) | {"seed": 0},
        codec=coded.to_json(),
        view_groups=groups,
        num_samples=2 * max(SIZES),
    )
    begin_store(path, plan, views_per_file=2)
    writer = StoreWriter(path, plan)
    mixes = [Mix(1, 0.5), Mix(1, 0.75, (0, 0, 32768, 32768)), Mix(1, 1.0, (5, 5, 6, 6))]
    first = 0
    for shard, (name, num_records) in enumerate(plan.shards):
        records = list(source.iter_shard(shard))
        keys = np.array([record.key for record in records], np.uint64)
        labels = np.array([record.label for record in records], np.int32)
        writer.write_records(name, keys, [record.filename for record in records], labels)
        for start, last in groups:
            numbers = range(start, last + 1)
            views = [
                [
                    View((0, 0, 9, 9), mix=mixes[row % 3] if is_mixed[v, first + row] else None)
                    for row in range(num_records)
                ]
                for v in numbers
            ]
            part = logits[start : last + 1, first : first + num_records]
            writer.write_views(name, (start, last), keys, labels, part, views)
            samples = [Sample(row, v, 0, 0, logits[v, first + row]) for v in numbers for row in range(num_records)]
            writer.write_samples(name, (start, last), keys, samples)
        first += num_records
    assert finalize_store(path)
    return Store(path)


@pytest.fixture
def data(tmp_path):
    return write_shards(tmp_path / "data", sizes=SIZES, num_classes=NUM_CLASSES + 1)


@pytest.fixture
def logits():
    return np.random.default_rng(3).normal(0, 2, (NUM_VIEWS, sum(SIZES), NUM_CLASSES)).astype(np.float32)


@pytest.fixture
def is_mixed():
    return np.random.default_rng(4).random((NUM_VIEWS, sum(SIZES))) < 0.4


def test_measures_are_those_of_a_loop_that_leaves_mixed_views_out(tmp_path, data, logits, is_mixed):
    store = write_mixed_store(tmp_path / "store", data, logits, is_mixed)
    measures = measure_store(store)
    labels = np.arange(sum(SIZES)) % NUM_CLASSES
    probs = probs_of(logits)
    agreement = np.zeros((NUM_VIEWS + 1, NUM_VIEWS + 1), int)
    hits1, hits5, suspects = [], [], []
    for record, label in enumerate(labels):
        plain = [view for view in range(NUM_VIEWS) if not is_mixed[view, record]]
        said = [int(logits[view, record].argmax()) for view in plain]
        hits1 += [choice == label for choice in said]
        hits5 += [label in np.argsort(-logits[view, record])[:5] for view in plain]
        agreement[len(plain), max(Counter(said).values(), default=0)] += 1
        if plain:
            mean_logs = np.log(probs[plain, record]).mean(axis=0)
            choice = int(mean_logs.argmax())
            if choice != label:
                suspects.append((mean_logs[label] - mean_logs[choice], record, choice + 1, len(plain)))
    assert measures.num_rows == is_mixed.size and measures.num_plain == (~is_mixed).sum()
    assert measures.top1 == pytest.approx(np.mean(hits1)) and measures.top5 == pytest.approx(np.mean(hits5))
    np.testing.assert_array_equal(measures.agreement, agreement)
    # Entropy and confidence count all views; calibration has only the plain ones.
    assert measures.entropy_nats == pytest.approx(float(-(probs * np.log(probs)).sum(axis=-1).mean()))
    assert measures.sums.entropies.sum(axis=1).tolist() == [(~is_mixed).sum(), is_mixed.sum()]
    assert measures.sums.confidences.sum(axis=1).tolist() == [(~is_mixed).sum(), is_mixed.sum()]
    above = (probs.max(axis=-1) >= 0.5)[~is_mixed].sum()
    assert measures.sums.confidences[0, measures.sums.confidences.shape[1] // 2 :].sum() == above
    assert measures.calibration[:, 0].sum() == (~is_mixed).sum()
    assert measures.calibration[:, 1].sum() == pytest.approx(probs.max(axis=-1)[~is_mixed].sum())
    suspects.sort()
    found = [
        (suspect.margin, suspect.row + suspect.shard * SIZES[0], suspect.choice, suspect.num_views)
        for suspect in measures.suspects
    ]
    assert len(found) == len(suspects) > 5
    assert measures.num_judged == (~is_mixed).any(axis=0).sum()
    assert measures.num_contradicted == sum(margin <= -np.log(10) for margin, *_ in suspects) > 0
    for ours, expected in zip(found, suspects, strict=True):
        assert ours[0] == pytest.approx(expected[0]) and ours[1:] == expected[1:]


def test_the_mean_probabilities_of_a_suspect_are_of_its_plain_views(tmp_path, data, logits, is_mixed):
    store = write_mixed_store(tmp_path / "store", data, logits, is_mixed)
    for suspect in measure_store(store).suspects:
        record = suspect.row + suspect.shard * SIZES[0]
        probs = probs_of(logits[~is_mixed[:, record], record]).mean(axis=0)
        assert suspect.label_prob == pytest.approx(probs[suspect.label - 1])
        assert suspect.choice_prob == pytest.approx(probs[suspect.choice - 1])


def test_blocks_of_records_do_not_change_what_is_counted(tmp_path, data, logits, is_mixed, monkeypatch):
    store = write_mixed_store(tmp_path / "store", data, logits, is_mixed)
    whole = measure_store(store)
    monkeypatch.setattr(measures_module, "_BLOCK_VALUES", 3 * NUM_CLASSES)
    parts = measure_store(store)
    np.testing.assert_array_equal(parts.agreement, whole.agreement)
    np.testing.assert_array_equal(parts.calibration[:, [0, 2]], whole.calibration[:, [0, 2]])
    # Sums of fractions are added in another order: at most an ulp for each of about a hundred rows.
    np.testing.assert_allclose(parts.calibration[:, 1], whole.calibration[:, 1], rtol=1e-13)
    for name in ("num_rows", "num_plain", "hits1", "hits5"):
        assert [getattr(shard.sums, name) for shard in parts.shards] == [
            getattr(shard.sums, name) for shard in whole.shards
        ]
    np.testing.assert_array_equal(parts.sums.entropies, whole.sums.entropies)
    np.testing.assert_array_equal(parts.sums.confidences, whole.sums.confidences)
    assert parts.suspects == whole.suspects and parts.entropy_nats == pytest.approx(whole.entropy_nats, rel=1e-13)


def test_measuring_leaves_what_it_is_given_as_it_was(logits, is_mixed):
    labels = np.arange(sum(SIZES)) % NUM_CLASSES
    said = judge_rows(logits[0], labels, np.ones(len(labels), bool), ~is_mixed[0], num_top=5)
    first = add_calibration(np.zeros((15, 3)), said)
    kept = first.copy()
    second = add_calibration(first, said)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_allclose(second, 2 * first)
    sums = sum_rows(said)
    twice = sums + sums
    assert sums.num_rows == sum(SIZES) and twice.num_rows == 2 * sum(SIZES) and twice.top1 == sums.top1
    np.testing.assert_array_equal(twice.entropies, 2 * sums.entropies)
    assert RowSums().top1 is None and (RowSums() + sums).entropy_nats == sums.entropy_nats


def test_which_views_are_mixed(tmp_path, data, logits, is_mixed):
    store = write_mixed_store(tmp_path / "store", data, logits, is_mixed)
    for view in range(NUM_VIEWS):
        np.testing.assert_array_equal(read_is_mixed(store, 1, view, np.arange(SIZES[1])), is_mixed[view, SIZES[0] :])
    plain = write_store(tmp_path / "center", data)
    assert not read_is_mixed(plain, 0, 0, np.arange(SIZES[0])).any()


def test_where_all_views_are_mixed_there_is_no_accuracy(tmp_path, data, logits):
    store = write_mixed_store(tmp_path / "store", data, logits, np.ones(logits.shape[:2], bool))
    measures = measure_store(store)
    assert measures.top1 is None and measures.ece is None and not measures.suspects
    assert measures.entropy_nats > 0 and measures.shards[0].sums.top1 is None


@pytest.mark.parametrize("offset", [-1, 1])
def test_records_without_a_label_are_left_out_of_what_is_right(tmp_path, logits, offset):
    source = open_records(write_image_folder(tmp_path / "data"), "train")
    read = source.iter_shard
    source.iter_shard = lambda shard: (
        dataclasses.replace(record, label=NO_LABEL if row % 3 == 0 else record.label)
        for row, record in enumerate(read(shard))
    )
    store = write_store(tmp_path / "some", source, offset=offset)
    labels = np.concatenate([store.read_labels(shard) for shard in range(len(store.shards))])
    said = np.concatenate([store.read_logits(shard, 0, slice(None)) for shard in range(len(store.shards))])
    has_label = labels != NO_LABEL
    assert has_label.sum() == 8 and len(labels) == 12
    measures = measure_store(store)
    assert measures.num_rows == measures.num_plain == 12 and measures.num_labeled == 8
    assert measures.top1 == pytest.approx((said.argmax(axis=1) + offset == labels)[has_label].mean())
    assert measures.calibration[:, 0].sum() == 8 and sum(shard.num_labeled for shard in measures.shards) == 8
    assert measures.num_judged == (has_label & (labels >= offset) & (labels < offset + 3)).sum()
    assert measures.sums.entropies.sum() == measures.agreement.sum() == 12
    assert f"{measures.top1:.4f} (without 4 unlabeled)" in render_store(summarize_store(store.path))
    card, results = render_card(store, None), _describe(store.path).results
    assert f"top-1 {measures.top1:.4f} of the stored logits of 8 labeled records, over" in card
    assert results["top1"] == pytest.approx(measures.top1)


def test_images_alone_have_no_accuracy(tmp_path):
    for number in range(6):
        write(tmp_path / "data" / f"{number}.jpg", encode_jpeg(number))
    store = write_store(tmp_path / "store", tmp_path / "data", num_classes=3, offset=-1)
    measures = measure_store(store)
    assert measures.top1 is measures.top5 is measures.ece is None and measures.entropy_nats > 0
    assert not measures.suspects and measures.num_judged == 0 and measures.sums.entropies.sum() == 6
    assert "unknown: the records have no labels" in render_store(summarize_store(store.path))
    assert "| accuracy | not known: the records have no labels |" in render_card(store, None)
    assert _describe(store.path).results["top1"] is None


@pytest.mark.parametrize("codec, k, is_known", [("topk", 3, False), ("topk", 5, True), ("float32", 5, True)])
def test_top5_of_a_codec_that_keeps_fewer_is_not_known(tmp_path, data, codec, k, is_known):
    logits = np.random.default_rng(3).normal(0, 2, (1, sum(SIZES), NUM_CLASSES)).astype(np.float32)
    store = write_mixed_store(tmp_path / "store", data, logits, np.zeros((1, sum(SIZES)), bool), codec, k=k)
    measures = measure_store(store)
    assert (measures.top5 is not None) == is_known and measures.top1 is not None
    assert (summarize_store(store.path)["top5"] is not None) == is_known


def test_a_sample_is_what_the_chosen_records_say(tmp_path, data, logits):
    store = write_mixed_store(tmp_path / "store", data, logits, np.zeros(logits.shape[:2], bool))
    selection = choose_rows(store.num_records, store.num_views, 40)
    assert selection.num_records == 8 and len(selection.views) == NUM_VIEWS and selection.records is not None
    done: list[int] = []
    measures = measure_store(store, selection, done.append)
    chosen = logits[:, selection.records]
    assert measures.num_rows == sum(done) == 40
    assert [shard.num_measured for shard in measures.shards] == [
        (selection.records < SIZES[0]).sum(), (selection.records >= SIZES[0]).sum()
    ]  # fmt: skip
    hits = chosen.argmax(axis=-1) == selection.records % NUM_CLASSES
    assert measures.top1 == pytest.approx(hits.mean())


@pytest.mark.parametrize(
    "store, max_rows, expected",
    [
        ((5_000, 50), 250_000, (5_000, 50)),
        ((5_000, 50), 200_000, (5_000, 40)),
        ((1_281_167, 50), 200_000, (20_000, 10)),
        ((1_281_167, 1), 200_000, (200_000, 1)),
        ((10, 1_000), 100, (10, 10)),
        ((1_000, 1_000), 3, (1, 3)),
    ],
)
def test_a_sample_has_many_records_rather_than_many_views(store, max_rows, expected):
    selection = choose_rows(*store, max_rows)
    assert (selection.num_records, len(selection.views)) == expected
    assert selection.num_rows <= max_rows and len(set(selection.views)) == len(selection.views)


@given(st.integers(0, 400), st.integers(0, 500), st.integers(0, 3))
def test_spread_numbers_are_different_and_even(total, count, seed):
    numbers = spread_evenly(total, count, generator(seed))
    assert len(numbers) == min(total, count)
    assert (np.diff(numbers) > 0).all() and all(0 <= number < total for number in numbers)
    if len(numbers):
        # One from each stretch of total / count: the k-th is at most one stretch away from its place.
        assert (np.abs(numbers - np.arange(len(numbers)) * total / len(numbers)) <= total / len(numbers)).all()


def test_top_classes_are_in_order():
    values = np.random.default_rng(0).normal(size=(50, 9))
    np.testing.assert_array_equal(top_classes(values, 4), np.argsort(-values, axis=1)[:, :4])
    assert top_classes(values, 20).shape == (50, 9)


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "topk"])
def test_the_codecs_error_is_total_variation_on_the_samples(tmp_path, data, logits, is_mixed, codec):
    store = write_mixed_store(tmp_path / "store", data, logits, is_mixed, codec)
    found = measure_codec(store)
    assert found is not None and found.num_samples == logits[..., 0].size
    for temperature in (1, 2, 4):
        dense = probs_of(logits / temperature)
        decoded = np.stack(
            [
                np.concatenate([store.read_logits(shard, view, slice(None), temperature) for shard in range(2)])
                for view in range(NUM_VIEWS)
            ]
        )
        variation = np.abs(dense - probs_of(decoded / temperature)).sum(axis=-1) / 2
        assert found.mean[temperature] == pytest.approx(variation.mean(), abs=1e-12)
        assert found.largest[temperature] == pytest.approx(variation.max(), abs=1e-12)
        if codec == "topk":
            tail = 1 - np.sort(dense, axis=-1)[..., -2:].sum(axis=-1)
            assert found.tail_mass[temperature] == pytest.approx(tail.mean())
    assert bool(found.tail_mass) == (codec == "topk")
    assert (found.largest[1] == 0) == (codec == "float32")


def test_samples_of_views_that_are_cut_off_are_left_out(tmp_path, data, logits, is_mixed):
    """A file of two views holds samples of both, also where only the first is used."""
    path = write_mixed_store(tmp_path / "store", data, logits, is_mixed, "int8").path
    cut = Store(path, num_views=1)
    found, variation = measure_codec(cut), measure_variation(cut, 8.0)
    assert found is not None and found.num_samples == sum(SIZES)
    assert variation is not None and len(variation) == sum(SIZES)


def test_of_many_samples_some_files_are_read(tmp_path, data, logits, is_mixed):
    store = write_mixed_store(tmp_path / "store", data, logits, is_mixed, "int8")
    found = measure_codec(store, max_samples=3 * store.plan.num_samples)
    assert found is not None and 0 < found.num_samples < logits[..., 0].size
    assert measure_codec(write_store(tmp_path / "none", data)) is None


def test_the_columns_are_all_bytes_of_the_store(tmp_path, data, logits, is_mixed):
    store = write_mixed_store(tmp_path / "store", data, logits, is_mixed, "int8")
    columns = measure_bytes(store)
    sizes = {column.name: column.bytes_per_view for column in columns}
    assert sum(sizes.values()) == pytest.approx(store.num_bytes() / (sum(SIZES) * NUM_VIEWS))
    assert sizes["codes"] == NUM_CLASSES and sizes["box"] == 8 and sizes["mix_partner"] == 8
    assert {column.kind for column in columns} == {"codec", "view", "record", "sample", "file"}
