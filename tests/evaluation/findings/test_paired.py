"""Two models on the same images: counts of a plain loop, and what follows from them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from teachonce.evaluation.findings.answers import to_answers
from teachonce.evaluation.findings.paired import NUM_PICTURES, PairedCounts, PairedResult, describe_p, format_p
from teachonce.evaluation.findings.proportions import mcnemar_p, paired_difference
from tests.evaluation.findings.test_answers import random_answers


def result_of(counts: list[list[int]], num_agreed: int = 0) -> PairedResult:
    """From [both, this alone, the other alone, neither] of each class."""
    return PairedResult(
        name="other",
        detail="",
        kind="model",
        counts=np.array(counts, np.int64),
        num_agreed=num_agreed,
        only_other=(),
        only_model=(),
    )


@pytest.mark.parametrize("batch_size", [1, 7, 400])
def test_counts_are_those_of_a_plain_loop(batch_size: int) -> None:
    own, other = random_answers(400), random_answers(400, seed=1)
    other["label"] = own["label"]
    counts = PairedCounts("SPEC", "model", 4)
    for start in range(0, 400, batch_size):
        counts.update(own[start : start + batch_size], other[start : start + batch_size])
    found = counts.result()
    pairs = list(zip(to_answers(own), to_answers(other), strict=True))
    only_other = [(a, b) for a, b in pairs if a.choice != a.label == b.choice]
    only_model = [(a, b) for a, b in pairs if b.choice != a.label == a.choice]
    both = sum(a.choice == b.choice == a.label for a, b in pairs)
    assert found.totals == (both, len(only_model), len(only_other), 400 - both - len(only_model) - len(only_other))
    assert found.num_records == 400 and len(only_other) > NUM_PICTURES
    assert found.top1 == sum(a.choice == a.label for a, _ in pairs) / 400
    assert found.other_top1 == sum(b.choice == a.label for a, b in pairs) / 400
    assert found.agreement == sum(a.choice == b.choice for a, b in pairs) / 400
    kept = sorted(only_other, key=lambda pair: (-pair[1].label_prob, pair[0].index))[:NUM_PICTURES]
    assert list(found.only_other) == kept
    kept = sorted(only_model, key=lambda pair: (-pair[0].label_prob, pair[0].index))[:NUM_PICTURES]
    assert list(found.only_model) == kept


def test_difference_and_test_are_of_the_images_that_one_alone_has_right() -> None:
    found = result_of([[50, 2, 10, 8], [20, 1, 9, 0]])
    assert found.difference == paired_difference(3, 19, 100) and found.difference.value == pytest.approx(-0.16)
    assert found.p_value == mcnemar_p(3, 19) and found.test == "exact binomial"
    assert result_of([[0, 600, 500, 0]]).test == "chi-squared"


def test_classes_that_change_are_judged_together() -> None:
    # Of one class alone 1 against 9 is p = 0.021; of four classes at once that happens by chance too often.
    found = result_of([[5, 1, 9, 5], [10, 0, 12, 0], [3, 8, 0, 0], [9, 2, 2, 9], [0, 0, 0, 0]])
    changes = found.changes(("a", "b", "c", "d", "e"))
    assert [(change.name, change.net, change.count) for change in changes] == [
        ("b", -12, 22),
        ("a", -8, 20),
        ("c", 8, 11),
    ]
    assert [change.is_beyond_chance for change in changes] == [True, False, True]
    assert changes[1].p_value == mcnemar_p(1, 9) < 0.05
    assert [change.label for change in found.changes(None, first_label=3)] == [4, 3, 5]
    assert found.changes(None)[0].name == "label 1"


def test_json_has_the_figures() -> None:
    value = json.loads(json.dumps(result_of([[50, 2, 10, 8], [20, 1, 9, 0]], num_agreed=75).to_json(("x", "y"))))
    assert value["model"] == "other" and value["agreement"] == 0.75 and value["top1"] == 0.89
    assert (value["both_right"], value["only_this_right"], value["only_other_right"], value["both_wrong"]) == (
        70,
        3,
        19,
        8,
    )
    assert value["difference"]["low"] < value["difference"]["value"] < value["difference"]["high"] < 0
    # Of equal losses the less likely first: 1 against 9 before 2 against 10.
    assert [change["name"] for change in value["class_changes"]] == ["y", "x"]


def test_a_p_value_is_never_zero() -> None:
    assert [format_p(value) for value in (1.0, 0.0213, 0.0001, 0.00001, 0.0)] == [
        "1", "0.021", "0.0001", "< 0.0001", "< 0.0001",
    ]  # fmt: skip
    assert [describe_p(value) for value in (0.0213, 0.00001)] == ["p = 0.021", "p < 0.0001"]
