"""Pairs of classes: the same counts and examples as a plain loop, and no more memory than pairs."""

from __future__ import annotations

import tracemalloc
from collections import defaultdict

import numpy as np
import pytest
import torch

from teachonce.evaluation.findings import confusions as module
from teachonce.evaluation.findings.answers import ANSWER, to_answers
from teachonce.evaluation.findings.confusions import NUM_EXAMPLES, Confusion, Confusions
from teachonce.evaluation.findings.tally import PAIRS_KEPT, Tally
from tests.evaluation.findings.test_answers import random_answers


@pytest.mark.parametrize("batch_size, merged_at", [(1, 4), (8, 4), (64, 1 << 15), (300, 100)])
def test_counts_and_examples_are_those_of_a_plain_loop(
    batch_size: int, merged_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MERGED_AT", merged_at)
    answers = random_answers(300, num_classes=5)
    confusions = Confusions(5)
    for start in range(0, 300, batch_size):
        confusions.update(answers[start : start + batch_size])
    expected = defaultdict(list)
    for answer in to_answers(answers):
        if answer.label != answer.choice:
            expected[answer.label, answer.choice].append(answer)
    pairs = confusions.pairs()
    assert {(pair.label, pair.choice): pair.count for pair in pairs} == {
        key: len(found) for key, found in expected.items()
    }
    for pair in pairs:
        found = sorted(expected[pair.label, pair.choice], key=lambda answer: (-answer.confidence, answer.index))
        assert list(pair.examples) == found[:NUM_EXAMPLES]
    order = [(-pair.count, pair.label, pair.choice) for pair in pairs]
    assert order == sorted(order)
    assert confusions.pairs() == pairs, "asked twice"


def test_the_worst_of_each_label_and_the_most_frequent_are_those_of_all_pairs() -> None:
    answers = random_answers(500, num_classes=9)
    confusions = Confusions(9)
    confusions.update(answers)
    pairs = confusions.pairs()
    assert confusions.num_pairs == len(pairs) > 20 and confusions.pairs(7) == pairs[:7]
    first: dict[int, Confusion] = {}
    for pair in pairs:
        first.setdefault(pair.label, pair)
    assert confusions.worst_of_labels() == [first[label] for label in sorted(first)]


def test_objects_are_built_of_the_pairs_that_are_shown() -> None:
    """Half a million random mistakes of 1000 classes are nearly as many pairs: 270 MB of objects."""
    tally = Tally(1000)
    rng = torch.Generator().manual_seed(0)
    tracemalloc.start()
    for start in range(0, 500_000, 50_000):
        labels, wrong = torch.randint(0, 1000, (2, 50_000), generator=rng)
        answers = np.zeros(50_000, ANSWER)
        answers["index"], answers["label"], answers["choice"] = start + np.arange(50_000), labels, wrong
        tally._confusions.update(answers)
    tally._counts += 500
    tally._metrics.update(torch.zeros(1, 1000), torch.zeros(1, dtype=torch.int64))
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    found = tally.findings()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert found.num_pairs > 390_000 and len(found.confusions) == PAIRS_KEPT and len(found.classes) == 1000
    assert found.classes[7].wrong_count >= 2 and peak < 100e6


def test_no_mistake_is_no_pair() -> None:
    confusions = Confusions(3)
    assert confusions.pairs() == []
    answers = random_answers(20, num_classes=3)
    confusions.update(answers[answers["label"] == answers["choice"]])
    assert confusions.pairs() == []


def test_memory_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MERGED_AT", 200)
    confusions = Confusions(4)
    sizes = []
    for seed in range(50):
        confusions.update(random_answers(400, seed=seed))
        kept = [confusions._codes, confusions._counts, confusions._examples, *confusions._new]
        sizes.append(sum(array.nbytes for array in kept))
    pairs = 4 * 3
    answer_bytes = confusions._examples.dtype.itemsize
    assert max(sizes) <= pairs * (16 + NUM_EXAMPLES * answer_bytes) + (200 + 400) * answer_bytes
    assert sum(pair.count for pair in confusions.pairs()) > 10_000
    assert np.mean(sizes[25:]) <= max(sizes[:25])
