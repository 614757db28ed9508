"""What a model said of images: a row each, and those rows with the largest values of all that pass.

A page shows some dozen images of a data set of any size, so only so many rows are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ANSWER = np.dtype(
    [
        ("index", np.int64),
        ("label", np.int64),
        ("choice", np.int64),
        ("confidence", np.float32),
        ("label_prob", np.float32),
    ]
)
PAIR = np.dtype([("own", ANSWER), ("other", ANSWER)])
"""The answers of two models to one image."""

AnswerRows = NDArray[np.void]
"""Rows [N] of ``ANSWER`` or ``PAIR``."""


@dataclass(frozen=True)
class Answer:
    """A row of ``ANSWER``."""

    index: int
    """Of the image, counted through all shards."""
    label: int
    choice: int
    confidence: float
    """Probability of the choice."""
    label_prob: float
    """Probability of the label; 0 where the model has no such class."""


def make_answers(
    indices: NDArray[np.int64], labels: NDArray[np.int64], choices: NDArray[np.int64], probs: NDArray[np.float32]
) -> AnswerRows:
    """Rows [N] from the probabilities [N, C] of all classes."""
    rows = np.zeros(len(labels), ANSWER)
    at = np.arange(len(labels))
    rows["index"], rows["label"], rows["choice"] = indices, labels, choices
    rows["confidence"], rows["label_prob"] = probs[at, choices], probs[at, labels]
    return rows


def pair_answers(own: AnswerRows, other: AnswerRows) -> AnswerRows:
    """Rows [N] of ``PAIR``, of the same images."""
    rows = np.zeros(len(own), PAIR)
    rows["own"], rows["other"] = own, other
    return rows


class Ranked:
    """The ``most`` rows with the largest values; of equal ones the earlier image, so that batches do not matter."""

    def __init__(self, most: int, kind: np.dtype[np.void]) -> None:
        self._most = most
        self._values = np.zeros(0, np.float32)
        self._indices = np.zeros(0, np.int64)
        self._rows = np.zeros(0, kind)

    def update(self, values: NDArray[np.float32], indices: NDArray[np.int64], rows: AnswerRows) -> None:
        """Offer some images [N]."""
        if not len(values):
            return
        values, indices = np.concatenate([self._values, values]), np.concatenate([self._indices, indices])
        order = np.lexsort((indices, -values))[: self._most]
        self._values, self._indices = values[order], indices[order]
        self._rows = np.concatenate([self._rows, rows])[order]

    def rows(self) -> AnswerRows:
        """Those kept, the largest value first."""
        return self._rows.copy()


def to_answers(rows: AnswerRows) -> tuple[Answer, ...]:
    """Rows of ``ANSWER`` one by one."""
    return tuple(Answer(*row) for row in rows.tolist())


def to_pairs(rows: AnswerRows) -> tuple[tuple[Answer, Answer], ...]:
    """Rows of ``PAIR`` one by one."""
    return tuple((Answer(*own), Answer(*other)) for own, other in rows.tolist())
