"""Pairs of classes: the same counts and examples as a plain loop, and no more memory than pairs."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from teachonce.evaluation.findings import confusions as module
from teachonce.evaluation.findings.answers import to_answers
from teachonce.evaluation.findings.confusions import NUM_EXAMPLES, Confusions
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
