"""Balanced weights and draws: every class counts the same, whatever its size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teachonce.data.class_balance import BalancedDraws, balanced_weights
from teachonce.data.sampler import EpochBatches
from teachonce.errors import ConfigError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.pixels.in_memory import RecordsInMemory
from teachonce.records.data_keys import read_all_labels
from teachonce.records.discovery import open_records
from teachonce.records.selection import SelectedSource
from tests.support.small_data import build_dataset, write_image_folder
from tests.support.small_models import write_color_shards, write_color_teacher

UNEQUAL = np.array([5] * 40 + [1] * 8 + [7] * 2 + [0] * 1)

labels = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(lambda found: np.array(found, np.int32))


@given(labels)
def test_weights_make_classes_count_the_same_and_have_mean_1(classes: np.ndarray) -> None:
    weights = balanced_weights(classes, 9).astype(np.float64)
    of_records = weights[classes]
    # float32's rounding of each weight.
    assert of_records.mean() == pytest.approx(1, rel=1e-6)
    totals = [of_records[classes == one].sum() for one in np.unique(classes)]
    assert totals == pytest.approx([len(classes) / len(totals)] * len(totals), rel=1e-6)
    assert not weights[np.setdiff1d(np.arange(9), classes)].any()


def test_numbers_that_are_no_class_do_not_count() -> None:
    found = balanced_weights(np.array([-1, 0, 0, 1, 2, 7]), 3)
    assert found == pytest.approx([4 / 6, 4 / 3, 4 / 3])


@given(labels, st.integers(0, 50))
def test_an_epoch_has_equally_many_draws_of_each_class(classes: np.ndarray, epoch: int) -> None:
    records, epochs = BalancedDraws(classes).draw(0, "order", epoch)
    assert len(records) == len(epochs) == len(classes)
    by_class = Counter(classes[records].tolist())
    assert set(by_class) == set(classes.tolist()) if len(classes) >= len(set(classes.tolist())) else True
    assert max(by_class.values()) - min(by_class.values()) <= 1
    for one in by_class:
        drawn = Counter(records[classes[records] == one].tolist())
        counts = [drawn.get(record, 0) for record in np.flatnonzero(classes == one).tolist()]
        assert max(counts) - min(counts) <= 2, "the end of one round and the beginning of the next"


def test_no_draw_has_the_view_of_another_and_stored_views_are_gone_through() -> None:
    draws = BalancedDraws(UNEQUAL)
    seen = Counter()
    views: dict[int, list[int]] = {}
    for epoch in range(12):
        records, epochs = draws.draw(3, "order", epoch)
        seen.update(zip(records.tolist(), epochs.tolist(), strict=True))
        for record, number in zip(records.tolist(), epochs.tolist(), strict=True):
            views.setdefault(record, []).append(number)
    assert set(seen.values()) == {1}
    assert set(views) == set(range(len(UNEQUAL))), "of a large class other records each epoch"
    # 13 draws or 12 of the one record of class 0: of 10 stored views all are seen, about equally often.
    alone = Counter(number % 10 for number in views[len(UNEQUAL) - 1])
    assert set(alone) == set(range(10)) and max(alone.values()) - min(alone.values()) <= 4


def flat(batches: EpochBatches) -> list[tuple[int, int]]:
    return [item for batch in batches for item in batch]


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (3, 2)])
def test_ranks_share_the_draws_of_one_process(world_size: int, accumulate: int, paired: bool) -> None:
    options = {"seed": 2, "epoch": 4, "classes": UNEQUAL, "paired": paired}
    whole = list(EpochBatches(len(UNEQUAL), 4 * world_size * accumulate, **options))
    ranks = [
        EpochBatches(len(UNEQUAL), 4, rank=rank, world_size=world_size, accumulate=accumulate, **options)
        for rank in range(world_size)
    ]
    steps = list(zip(*ranks, strict=True))
    for update, items in enumerate(whole):
        mine = range(update * accumulate, (update + 1) * accumulate)
        assert sorted(item for step in mine for part in steps[step] for item in part) == sorted(items)
    items = flat(EpochBatches(len(UNEQUAL), 4, **options))
    assert len(items) == len(UNEQUAL) * (2 if paired else 1) == len(set(items))


@pytest.mark.parametrize("counts", [(100, 100, 101), (110, 100, 90), (100, 60, 40), (90, 9, 1)], ids=str)
def test_every_record_sees_all_of_its_stored_views_equally_often(counts: tuple[int, ...]) -> None:
    classes = np.repeat(np.arange(len(counts)), counts)
    draws, num_views = BalancedDraws(classes), 4
    seen: dict[int, list[int]] = {}
    for epoch in range(24):
        for record, number in zip(*map(np.ndarray.tolist, draws.draw(5, "order", epoch)), strict=True):
            seen.setdefault(record, []).append(number)
    for record, numbers in seen.items():
        assert sorted(numbers) == list(range(len(numbers))), "one round after another"
        views = Counter(number % num_views for number in numbers)
        assert max(views.values()) - min(views[view] for view in range(num_views)) <= 1, record
    by_class = [[len(seen[record]) for record in np.flatnonzero(classes == one).tolist()] for one in range(len(counts))]
    for found, count in zip(by_class, counts, strict=True):
        assert max(found) - min(found) <= 1 and sum(found) == pytest.approx(24 * len(classes) / len(counts), abs=1)
        assert len(found) == count


def test_partners_are_of_any_class() -> None:
    classes = np.array([0] * 900 + [1] * 100)
    same = []
    for epoch in range(6):
        for items in EpochBatches(1000, 64, seed=1, epoch=epoch, classes=classes, paired=True):
            of_items = classes[[index for index, _ in items]]
            half = len(items) // 2
            same += (of_items[:half] == of_items[half:]).tolist()
            same += (of_items[: half // 2] == of_items[half // 2 : 2 * (half // 2)]).tolist()  # within the records
    assert np.mean(same) == pytest.approx(0.5, abs=0.03)


def test_draws_are_a_function_of_seed_and_epoch() -> None:
    batches = EpochBatches(len(UNEQUAL), 4, seed=1, classes=UNEQUAL)
    first = flat(batches)
    batches.set_epoch(1)
    second = flat(batches)
    batches.set_epoch(0)
    assert flat(batches) == first != second
    assert flat(EpochBatches(len(UNEQUAL), 4, seed=2, classes=UNEQUAL)) != first
    resumed = EpochBatches(len(UNEQUAL), 4, seed=1, classes=UNEQUAL, first_step=5)
    assert list(resumed) == list(EpochBatches(len(UNEQUAL), 4, seed=1, classes=UNEQUAL))[5:]


def test_what_does_not_go_together() -> None:
    with pytest.raises(ConfigError, match="classes: apply only with shuffle=True"):
        EpochBatches(len(UNEQUAL), 4, classes=UNEQUAL, shuffle=False)
    with pytest.raises(ConfigError, match="shuffle_shards 2: not given together with classes"):
        EpochBatches(len(UNEQUAL), 4, classes=UNEQUAL, shuffle_shards=2, shard_sizes=[51])
    with pytest.raises(ConfigError, match="classes: of 51 records, expected those of the 50 records"):
        EpochBatches(50, 4, classes=UNEQUAL)


def test_a_record_that_is_drawn_again_shows_another_stored_view(tmp_path: Path) -> None:
    """Of TFRecords, whose labels are read; the batch has each draw's view and logits, in one order."""
    data = write_color_shards(tmp_path / "data", sizes=(9, 6))
    teacher = write_color_teacher(tmp_path / "teacher.onnx")
    options = {"policy": "crop", "views": 4, "device": "cpu", "gate_samples": 0}
    extract(ExtractConfig(data=data, teacher=teacher, out=tmp_path / "store", **options))
    records = open_records(data, "train")
    classes = np.array([0] * 12 + [1] * 3)  # 15 draws: 7 or 8 of the last three records
    dataset = build_dataset(records, size=16, store=tmp_path / "store")
    views: dict[int, list[int]] = {}
    for batch in dataset.batches(batch_size=5, epoch=3, classes=classes, num_workers=2):
        for row, index in enumerate(batch["indices"].tolist()):
            found = [dataset.read_batch([index], epoch) for epoch in range(4)]
            (view,) = (
                number for number, one in enumerate(found) if torch.equal(one["pixels"][0], batch["pixels"][row])
            )
            assert torch.equal(found[view]["teacher_logits"][0], batch["teacher_logits"][row])
            assert found[view]["labels"][0] == batch["labels"][row]
            views.setdefault(index, []).append(view)
    assert {len(numbers) for index, numbers in views.items() if index >= 12} <= {2, 3}
    assert all(len(set(numbers)) == len(numbers) for numbers in views.values())


def test_labels_that_the_data_does_not_list_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_color_shards(tmp_path / "data", sizes=(9, 6))
    expected = [1 + index % 4 for index in range(15)]
    assert read_all_labels(open_records(data, "train")).tolist() == expected
    source = open_records(data, "train")
    monkeypatch.setattr(source, "iter_shard", None)
    assert read_all_labels(source).tolist() == expected, "cached"
    chosen = SelectedSource(source, [np.array([8, 0]), np.array([2])])
    assert read_all_labels(chosen).tolist() == [expected[8], expected[0], expected[11]]
    folder = open_records(write_image_folder(tmp_path / "images"), "train")
    assert read_all_labels(folder).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert read_all_labels(RecordsInMemory(folder)).tolist() == [0] * 4 + [1] * 4 + [2] * 4
