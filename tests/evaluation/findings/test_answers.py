"""Rows of answers, and those that are kept."""

from __future__ import annotations

import numpy as np
import pytest

from teachonce.evaluation.findings.answers import (
    ANSWER,
    Answer,
    Ranked,
    make_answers,
    pair_answers,
    to_answers,
    to_pairs,
)


def random_answers(count: int, num_classes: int = 4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    # Halves, quarters, ...: many confidences are the same.
    probs = rng.choice([0.25, 0.5, 1.0], (count, num_classes)).astype(np.float32)
    labels = rng.integers(0, num_classes, count)
    return make_answers(np.arange(count), labels, probs.argmax(axis=1), probs)


def test_a_row_has_the_probabilities_of_choice_and_label() -> None:
    probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], np.float32)
    rows = make_answers(np.array([5, 9]), np.array([1, 2]), np.array([0, 2]), probs)
    first, second = to_answers(rows)
    assert first == Answer(5, 1, 0, pytest.approx(0.7), pytest.approx(0.2))
    assert second.choice == second.label == 2 and second.confidence == second.label_prob
    ((own, other),) = to_pairs(pair_answers(rows[:1], rows[1:]))
    assert (own, other) == (first, second)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_largest_are_kept_whatever_the_batches(batch_size: int) -> None:
    answers = random_answers(100)
    ranked = Ranked(7, ANSWER)
    for start in range(0, 100, batch_size):
        rows = answers[start : start + batch_size]
        ranked.update(rows["confidence"], rows["index"], rows)
    expected = sorted(to_answers(answers), key=lambda answer: (-answer.confidence, answer.index))[:7]
    assert list(to_answers(ranked.rows())) == expected
    assert len(Ranked(3, ANSWER).rows()) == 0
