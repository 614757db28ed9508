"""A model beside a second one, or beside what a teacher said, on the same images: who is right where.

Everything is by four counts of each class: both right, the model alone, the other alone, neither. The rest follows:
accuracies, their difference with its interval, McNemar's test, and which classes the model gains or loses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from teachonce.evaluation.findings.answers import PAIR, Answer, AnswerRows, Ranked, pair_answers, to_pairs
from teachonce.evaluation.findings.per_class import class_name
from teachonce.evaluation.findings.proportions import (
    EXACT_PAIRS,
    LEVEL,
    Difference,
    mcnemar_p,
    paired_difference,
)

NUM_PICTURES = 12
"""Images that are kept of those where one alone is right, in each direction."""
BOTH, ONLY_MODEL, ONLY_OTHER, NEITHER = range(4)
"""Columns of the counts."""

Kind = Literal["model", "teacher"]


@dataclass(frozen=True)
class ClassChange:
    """A class in which one of the two is right more often."""

    label: int
    name: str
    count: int
    only_model: int
    only_other: int
    p_value: float
    """McNemar's, of this class alone."""
    is_beyond_chance: bool
    """Whether it would be so few times by chance that none of all classes would be (Bonferroni)."""

    @property
    def net(self) -> int:
        """Images gained."""
        return self.only_model - self.only_other


@dataclass(frozen=True, kw_only=True)
class PairedResult:
    """What ``PairedCounts`` counted."""

    name: str
    """Of the other: a SPEC, or the path of a store."""
    detail: str
    """What the other's answers are of, where that is not the images as the model sees them."""
    kind: Kind
    counts: NDArray[np.int64]
    """[C, 4]: both, the model alone, the other alone, neither."""
    num_agreed: int
    """Images for which both gave the same class, right or wrong."""
    only_other: tuple[tuple[Answer, Answer], ...]
    """Images that the other alone has right, those first of whose label it is surest: the answers of both."""
    only_model: tuple[tuple[Answer, Answer], ...]
    """The same of the model alone."""

    @property
    def totals(self) -> tuple[int, int, int, int]:
        """The counts over all classes."""
        both, model, other, neither = self.counts.sum(axis=0).tolist()
        return both, model, other, neither

    @property
    def num_records(self) -> int:
        """Images compared."""
        return sum(self.totals)

    @property
    def top1(self) -> float:
        """The model's accuracy."""
        return (self.totals[BOTH] + self.totals[ONLY_MODEL]) / self.num_records

    @property
    def other_top1(self) -> float:
        """The other's."""
        return (self.totals[BOTH] + self.totals[ONLY_OTHER]) / self.num_records

    @property
    def agreement(self) -> float:
        """The part of the images for which both gave the same class."""
        return self.num_agreed / self.num_records

    @property
    def difference(self) -> Difference:
        """The model's accuracy less the other's, with its interval."""
        return paired_difference(self.totals[ONLY_MODEL], self.totals[ONLY_OTHER], self.num_records)

    @property
    def p_value(self) -> float:
        """McNemar's."""
        return mcnemar_p(self.totals[ONLY_MODEL], self.totals[ONLY_OTHER])

    @property
    def test(self) -> str:
        """Which form of the test that is."""
        num_pairs = self.totals[ONLY_MODEL] + self.totals[ONLY_OTHER]
        return "exact binomial" if num_pairs <= EXACT_PAIRS else "chi-squared"

    def changes(self, names: Sequence[str] | None, first_label: int = 0) -> list[ClassChange]:
        """Classes whose counts differ, the largest loss of the model first, the largest gain last.

        The classes counted begin at ``first_label``; ``names`` are of all labels.
        """
        num_judged = int((self.counts.sum(axis=1) > 0).sum())
        found = []
        for label, (both, model, other, neither) in enumerate(self.counts.tolist(), first_label):
            if model == other:
                continue
            p_value = mcnemar_p(model, other)
            found.append(
                ClassChange(
                    label=label,
                    name=class_name(names, label),
                    count=both + model + other + neither,
                    only_model=model,
                    only_other=other,
                    p_value=p_value,
                    is_beyond_chance=p_value * num_judged < 1 - LEVEL,
                )
            )
        return sorted(found, key=lambda change: (change.net, change.p_value, change.label))

    def to_json(self, names: Sequence[str] | None) -> dict[str, Any]:
        """The figures, and the classes that differ."""
        both, model, other, neither = self.totals
        return {
            self.kind: self.name,
            "top1": self.other_top1,
            "agreement": self.agreement,
            "difference": self.difference._asdict(),
            "both_right": both,
            "only_this_right": model,
            "only_other_right": other,
            "both_wrong": neither,
            "p_value": self.p_value,
            "test": self.test,
            "class_changes": [asdict(change) for change in self.changes(names)],
        }


class PairedCounts:
    """Counts of two models on the same images, as they pass."""

    def __init__(self, name: str, kind: Kind, num_classes: int, detail: str = "") -> None:
        self.name, self.detail = name, detail
        self.kind: Kind = kind
        self._counts = np.zeros((num_classes, 4), np.int64)
        self._num_agreed = 0
        self._only_other, self._only_model = Ranked(NUM_PICTURES, PAIR), Ranked(NUM_PICTURES, PAIR)

    def update(self, own: AnswerRows, other: AnswerRows) -> None:
        """Count the answers of both to some images [N]."""
        labels = own["label"]
        is_right, is_other_right = own["choice"] == labels, other["choice"] == labels
        state = np.select(
            [is_right & is_other_right, is_right, is_other_right], [BOTH, ONLY_MODEL, ONLY_OTHER], NEITHER
        )
        np.add.at(self._counts, (labels, state), 1)
        self._num_agreed += int((own["choice"] == other["choice"]).sum())
        pairs = pair_answers(own, other)
        for ranked, wanted, sure in ((self._only_other, ONLY_OTHER, other), (self._only_model, ONLY_MODEL, own)):
            is_kept = state == wanted
            ranked.update(sure["label_prob"][is_kept], own["index"][is_kept], pairs[is_kept])

    def result(self) -> PairedResult:
        """What was counted so far."""
        return PairedResult(
            name=self.name,
            detail=self.detail,
            kind=self.kind,
            counts=self._counts.copy(),
            num_agreed=self._num_agreed,
            only_other=to_pairs(self._only_other.rows()),
            only_model=to_pairs(self._only_model.rows()),
        )


def format_p(value: float) -> str:
    """A p value with two digits, never as 0: 0.021, < 0.0001."""
    return f"{value:.2g}" if value >= 0.0001 else "< 0.0001"


def describe_p(value: float) -> str:
    """The same in a sentence: p = 0.021, p < 0.0001."""
    text = format_p(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"
