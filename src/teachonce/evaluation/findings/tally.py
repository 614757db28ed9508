"""Everything that is counted while the images of an evaluation pass, and what it comes to.

Top-1, top-5 and ECE are those of the trainer (``losses.metrics``); the rest is by class, by confidence, and beside
other models. The first model's answers are compared with each other's on the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from teachonce.evaluation.findings.answers import ANSWER, Answer, Ranked, make_answers, to_answers
from teachonce.evaluation.findings.confusions import Confusion, Confusions
from teachonce.evaluation.findings.paired import PairedCounts, PairedResult
from teachonce.evaluation.findings.per_class import ClassResult, balanced_accuracy, class_name, collect_classes
from teachonce.evaluation.findings.proportions import wilson_interval
from teachonce.losses.metrics import NUM_ECE_BINS, ClassifierMetrics

NUM_MISTAKES = 24
"""Most confident mistakes that are kept."""
PAIRS_IN_JSON = 100
PAIRS_KEPT = 400
"""Of the pairs of classes that were confused, with their examples: all of 20 classes, for the matrix of a page."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an evaluation found; labels are the data's."""

    top1: float
    top5: float
    ece: float
    num_records: int
    num_known_classes: int
    """Classes of the data that the model knows."""
    first_known_label: int
    """The first of them."""
    names: tuple[str, ...] | None
    classes: list[ClassResult]
    """All classes of the data, by label."""
    confusions: list[Confusion]
    """The ``PAIRS_KEPT`` most frequent, the most frequent first."""
    num_pairs: int
    """All pairs that occurred."""
    reliability: NDArray[np.float64]
    """[bins, 3]: images, sum of confidences, right answers of each bin of confidence."""
    mistakes: tuple[Answer, ...]
    """The wrong answers that the model was surest of."""
    comparisons: list[PairedResult]

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the accuracies of classes that have images."""
        found = balanced_accuracy(self.classes)
        assert found is not None, "there are images"
        return found

    @property
    def num_unknown_classes(self) -> int:
        """Classes that have images, all of them mistakes, as the model does not know the class."""
        known = range(self.first_known_label, self.first_known_label + self.num_known_classes)
        return sum(result.count > 0 and result.label not in known for result in self.classes)

    @property
    def top1_interval(self) -> tuple[float, float]:
        """Wilson's, of 95 %."""
        return wilson_interval(sum(result.correct for result in self.classes), self.num_records)

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values; of the confusions the ``PAIRS_IN_JSON`` most frequent."""
        low, high = self.top1_interval
        found: dict[str, Any] = {
            "top1": self.top1,
            "top5": self.top5,
            "ece": self.ece,
            "num_records": self.num_records,
            "top1_low": low,
            "top1_high": high,
            "balanced_accuracy": self.balanced_accuracy,
            "num_known_classes": self.num_known_classes,
            "num_unknown_classes": self.num_unknown_classes,
            "classes": [result.to_json() for result in self.classes],
            "confusions": [
                {
                    "label": pair.label,
                    "name": class_name(self.names, pair.label),
                    "choice": pair.choice,
                    "choice_name": class_name(self.names, pair.choice),
                    "count": pair.count,
                }
                for pair in self.confusions[:PAIRS_IN_JSON]
            ],
            "reliability": [
                {"count": int(count), "confidence": confidence / count, "accuracy": hits / count}
                if count
                else {"count": 0, "confidence": None, "accuracy": None}
                for count, confidence, hits in self.reliability.tolist()
            ],
        }
        for comparison in self.comparisons:
            key = "against" if comparison.kind == "model" else "teacher"
            found[key] = comparison.to_json(self.names)
        return found


class Tally:
    """``update`` with batches, then ``findings``; memory does not grow with the number of images."""

    def __init__(
        self,
        num_classes: int,
        *,
        num_known_classes: int | None = None,
        first_known_label: int = 0,
        names: Sequence[str] | None = None,
        others: Sequence[PairedCounts] = (),
    ) -> None:
        """``num_known_classes``: of the ``num_classes`` of the data those that the model knows, where not all.

        They begin at ``first_known_label``.
        """
        self.first_known_label = first_known_label
        self.num_known_classes = num_classes if num_known_classes is None else num_known_classes
        self.names = None if names is None else tuple(names)
        self.others = others
        self._metrics = ClassifierMetrics(num_classes, top5_classes=self.num_known_classes)
        self._counts, self._correct = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
        self._reliability = np.zeros((NUM_ECE_BINS, 3))
        self._confusions = Confusions(num_classes)
        self._mistakes = Ranked(NUM_MISTAKES, ANSWER)

    def update(
        self,
        logits: Float[Tensor, "B C"],
        labels: Int[Tensor, " B"],
        indices: Int[Tensor, " B"],
        other_probs: Sequence[Float[Tensor, "B C"]] = (),
    ) -> None:
        """Count one batch; ``indices`` number the images, ``other_probs`` are of each of ``others``."""
        self._metrics.update(logits, labels)
        of_labels, of_images = labels.numpy(), indices.numpy()
        # Not the largest probability: two that differ as logits may be the same there.
        choices = logits.argmax(dim=1).numpy()
        answers = make_answers(of_images, of_labels, choices, torch.softmax(logits.float(), dim=1).numpy())
        is_right, confidences = choices == of_labels, answers["confidence"]
        np.add.at(self._counts, of_labels, 1)
        np.add.at(self._correct, of_labels, is_right)
        bins = np.minimum((confidences * NUM_ECE_BINS).astype(np.int64), NUM_ECE_BINS - 1)
        np.add.at(self._reliability, bins, np.stack([np.ones(len(bins)), confidences, is_right], axis=1))
        self._confusions.update(answers)
        self._mistakes.update(confidences[~is_right], of_images[~is_right], answers[~is_right])
        for counts, probs in zip(self.others, other_probs, strict=True):
            other = make_answers(of_images, of_labels, probs.argmax(dim=1).numpy(), probs.numpy())
            counts.update(answers, other)

    def findings(self) -> Findings:
        """What was counted so far, of at least one image."""
        computed = self._metrics.compute()
        return Findings(
            top1=computed["top1"],
            top5=computed["top5"],
            ece=computed["ece"],
            num_records=int(self._counts.sum()),
            num_known_classes=self.num_known_classes,
            first_known_label=self.first_known_label,
            names=self.names,
            classes=collect_classes(self._counts, self._correct, self.names, self._confusions.worst_of_labels()),
            confusions=self._confusions.pairs(PAIRS_KEPT),
            num_pairs=self._confusions.num_pairs,
            reliability=self._reliability.copy(),
            mistakes=to_answers(self._mistakes.rows()),
            comparisons=[counts.result() for counts in self.others],
        )
