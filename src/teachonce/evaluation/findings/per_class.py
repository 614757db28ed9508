"""Accuracy by class: counts, Wilson's intervals, and which classes are worse than the rest beyond chance.

The lowest of many classes is low by chance too: of 100 classes alike, with 12 images each at 60 %, the worst has about
3 of 12. So ``find_worst`` names a class only where its interval, at a level that holds for all classes together
(Bonferroni), lies below the accuracy over all images.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.evaluation.findings.confusions import Confusion
from teachonce.evaluation.findings.proportions import wilson_interval

WORST_SHOWN = 10
"""Of the classes that are below the rest; pages and lines say how many there are."""
_COLUMNS = ("label", "name", "count", "correct", "accuracy", "low", "high", "wrong_label", "wrong_name", "wrong_count")


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """What became of the images of one class."""

    label: int
    name: str
    count: int
    correct: int
    wrong_label: int | None = None
    """The most frequent wrong answer; None where there was none, or where it was not counted."""
    wrong_name: str | None = None
    wrong_count: int = 0

    @property
    def accuracy(self) -> float | None:
        """None for a class without images."""
        return self.correct / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, of 95 %."""
        return wilson_interval(self.correct, self.count)

    def to_json(self) -> dict[str, float | int | str | None]:
        """The columns of the CSV; accuracy and interval are None for a class without images."""
        low, high = self.interval if self.count else (None, None)
        values = (self.label, self.name, self.count, self.correct, self.accuracy, low, high,
                  self.wrong_label, self.wrong_name, self.wrong_count)  # fmt: skip
        return dict(zip(_COLUMNS, values, strict=True))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ClassResult:
        """The result that ``to_json`` gave."""
        names = ("label", "name", "count", "correct", "wrong_label", "wrong_name", "wrong_count")
        return cls(**{name: values[name] for name in names})


def class_name(names: Sequence[str] | None, label: int) -> str:
    """The name of a label; the number where the data does not name its classes."""
    return f"label {label}" if names is None or not 0 <= label < len(names) else names[label]


def collect_classes(
    counts: NDArray[np.int64],
    correct: NDArray[np.int64],
    names: Sequence[str] | None,
    confusions: Iterable[Confusion] = (),
    first_label: int = 0,
) -> list[ClassResult]:
    """The classes by label, from images [C] and right answers [C]; ``confusions`` have the most frequent first.

    The classes counted begin at ``first_label``; ``names`` are of all labels.
    """
    wrong: dict[int, Confusion] = {}
    for confusion in confusions:
        wrong.setdefault(confusion.label, confusion)
    return [
        ClassResult(
            label=label,
            name=class_name(names, label),
            count=count,
            correct=right,
            wrong_label=None if label not in wrong else wrong[label].choice,
            wrong_name=None if label not in wrong else class_name(names, wrong[label].choice),
            wrong_count=0 if label not in wrong else wrong[label].count,
        )
        for label, count, right in zip(
            range(first_label, first_label + len(counts)), counts.tolist(), correct.tolist(), strict=True
        )
    ]


def balanced_accuracy(classes: Sequence[ClassResult]) -> float | None:
    """The mean of the classes' accuracies, each class with images counting once; None where none has any."""
    found = [result.accuracy for result in classes if result.accuracy is not None]
    return sum(found) / len(found) if found else None


def sort_worst(classes: Sequence[ClassResult]) -> list[ClassResult]:
    """The classes that have images, the least accurate first; of equals the one with more images."""
    found = [result for result in classes if result.count]
    return sorted(found, key=lambda result: (result.correct / result.count, -result.count, result.label))


def find_worst(classes: Sequence[ClassResult]) -> list[ClassResult]:
    """All classes that are below the rest beyond chance, the least accurate first."""
    judged = sort_worst(classes)
    total = sum(result.count for result in judged)
    overall = sum(result.correct for result in judged) / total if total else 0.0
    return [result for result in judged if wilson_interval(result.correct, result.count, len(judged))[1] < overall]


def encode_csv(classes: Sequence[ClassResult], *, with_wrong: bool = True) -> bytes:
    """A line a class, by label, with the column names first; empty where there is no figure.

    ``with_wrong``: with the most frequent wrong answers, where these were counted.
    """
    columns = _COLUMNS if with_wrong else [name for name in _COLUMNS if not name.startswith("wrong")]
    text = io.StringIO()
    lines = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    lines.writeheader()
    lines.writerows(result.to_json() for result in classes)
    return text.getvalue().encode()
