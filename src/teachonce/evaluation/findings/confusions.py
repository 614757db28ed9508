"""Which class is taken for which, and the surest examples of each: counted as images pass.

A matrix of C x C is mostly zeros where it is large (1000 classes: 8 MB; 21,000 classes: 3.5 GB). Here are the pairs
that occurred, merged every ``MERGED_AT`` mistakes: memory is bounded by the pairs that there can be, whatever the
number of images, and is a few hundred kB for 50,000 of them. A ``Confusion`` is built of those alone that are shown: as
an object a pair takes ten times the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teachonce.evaluation.findings.answers import ANSWER, Answer, AnswerRows, to_answers

MERGED_AT = 1 << 15
"""Mistakes that are kept before pairs are merged."""
NUM_EXAMPLES = 3
"""Of each pair, the ones that the model was surest of."""


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were taken for another."""

    label: int
    choice: int
    count: int
    examples: tuple[Answer, ...]
    """At most ``NUM_EXAMPLES``, the surest first."""


class Confusions:
    """Pairs of (label, choice) with their counts and examples; all labels are in 0..``num_classes`` - 1."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._codes = np.zeros(0, np.int64)
        """label * num_classes + choice, ascending."""
        self._counts = np.zeros(0, np.int64)
        self._examples = np.zeros(0, ANSWER)
        """At most NUM_EXAMPLES of each pair: by code, then the surest first."""
        self._new = [self._examples]
        self._num_new = 0

    def update(self, answers: AnswerRows) -> None:
        """Count the mistakes among some answers [N]."""
        wrong = answers[answers["label"] != answers["choice"]]
        self._new.append(wrong)
        self._num_new += len(wrong)
        if self._num_new >= MERGED_AT:
            self._merge()

    @property
    def num_pairs(self) -> int:
        """Pairs that occurred."""
        self._merge()
        return len(self._codes)

    def pairs(self, most: int | None = None) -> list[Confusion]:
        """The ``most`` frequent pairs (default: all), the most frequent first; of equal counts by label and choice."""
        self._merge()
        return self._build(np.argsort(-self._counts, kind="stable")[:most])

    def worst_of_labels(self) -> list[Confusion]:
        """Of each label that was taken for others the most frequent pair."""
        self._merge()
        labels = self._codes // self.num_classes
        order = np.lexsort((-self._counts, labels))
        return self._build(order[np.flatnonzero(np.diff(labels[order], prepend=-1))])

    def _build(self, places: NDArray[np.int64]) -> list[Confusion]:
        of_examples = self._code(self._examples)
        starts = np.searchsorted(of_examples, self._codes[places])
        ends = np.searchsorted(of_examples, self._codes[places], side="right")
        return [
            Confusion(
                label=code // self.num_classes,
                choice=code % self.num_classes,
                count=count,
                examples=to_answers(self._examples[start:end]),
            )
            for code, count, start, end in zip(
                self._codes[places].tolist(), self._counts[places].tolist(), starts.tolist(), ends.tolist(), strict=True
            )
        ]

    def _merge(self) -> None:
        new = np.concatenate(self._new)
        self._new, self._num_new = [new[:0]], 0
        codes, counts = np.unique(self._code(new), return_counts=True)
        before, weights = self._codes, np.concatenate([self._counts, counts])
        self._codes, places = np.unique(np.concatenate([before, codes]), return_inverse=True)
        self._counts = np.zeros(len(self._codes), np.int64)
        np.add.at(self._counts, places, weights)
        examples = np.concatenate([self._examples, new])
        # Of equal confidence the earlier image, so that batches make no difference.
        examples = examples[np.lexsort((examples["index"], -examples["confidence"], self._code(examples)))]
        of_examples = self._code(examples)
        rank = np.arange(len(examples)) - np.searchsorted(of_examples, of_examples)
        self._examples = examples[rank < NUM_EXAMPLES]

    def _code(self, rows: AnswerRows) -> NDArray[np.int64]:
        return rows["label"] * self.num_classes + rows["choice"]
