"""Classes: their names, which are worse than the rest beyond chance, and the table of them."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from teachonce.evaluation.findings.answers import Answer
from teachonce.evaluation.findings.confusions import Confusion
from teachonce.evaluation.findings.per_class import (
    ClassResult,
    balanced_accuracy,
    collect_classes,
    encode_csv,
    find_worst,
    sort_worst,
)
from teachonce.evaluation.findings.proportions import wilson_interval
from teachonce.records.class_table import ClassTable, shown_names

NAMES = ("background", "car", "truck", 'a "van", red')


def classes_of(*counts: tuple[int, int]) -> list[ClassResult]:
    """Classes by (right, images)."""
    return [
        ClassResult(label=label, name=f"class{label}", count=count, correct=correct)
        for label, (correct, count) in enumerate(counts)
    ]


def test_texts_name_classes_unless_two_have_the_same() -> None:
    table = ClassTable(("n1", "n2", "n3", "d"), ("crane", "crane", "", "d"), has_background=False)
    assert shown_names(table) == ("crane (n1)", "crane (n2)", "n3", "d")
    assert shown_names(None) is None
    assert collect_classes(np.ones(2, np.int64), np.ones(2, np.int64), None)[1].name == "label 1"


def test_a_class_that_is_never_right_among_twelve_images_is_named() -> None:
    """What "60.3 %" hid: 0 of 12 trucks."""
    classes = classes_of(*[(8, 12)] * 9, (0, 12))
    assert [result.label for result in find_worst(classes)] == [9]
    assert balanced_accuracy(classes) == pytest.approx(0.6)


def test_the_lowest_of_many_equal_classes_are_not_named() -> None:
    """A hundred classes of 12 images at 60 %: some have 3 of 12, by chance alone."""
    rng = np.random.default_rng(0)
    named = 0
    for _ in range(40):
        correct = rng.binomial(12, 0.6, 100)
        named += bool(find_worst(classes_of(*((int(right), 12) for right in correct))))
    # Any class named is a false alarm: at most 5 % of the tries; the binomial allows 6 of 40 once in 40 tries.
    assert named <= 6
    single = [wilson_interval(int(right), 12)[1] < 0.6 for right in correct]
    assert sum(single) >= 1, "without the correction some would be"


def test_worst_are_sorted_and_all_of_them() -> None:
    classes = classes_of((900, 1000), (0, 0), (10, 100), (1, 100), (20, 100), (2, 200))
    assert [result.label for result in find_worst(classes)] == [5, 3, 2, 4]
    assert len(find_worst(classes_of(*[(90, 100)] * 40, *[(1, 100)] * 30))) == 30
    assert [result.label for result in sort_worst(classes)] == [5, 3, 2, 4, 0]
    assert find_worst(classes_of((0, 0))) == [] and balanced_accuracy(classes_of((0, 0))) is None


def test_labels_may_begin_later() -> None:
    counts = np.array([3, 5])
    found = collect_classes(counts, counts, NAMES, first_label=1)
    assert [(result.label, result.name, result.count) for result in found] == [(1, "car", 3), (2, "truck", 5)]


def test_the_table() -> None:
    example = Answer(0, 2, 1, 0.9, 0.1)
    confusions = [Confusion(2, 1, 9, (example,)), Confusion(2, 3, 2, (example,)), Confusion(1, 3, 1, (example,))]
    classes = collect_classes(np.array([0, 10, 12, 4]), np.array([0, 9, 1, 4]), NAMES, confusions)
    content = encode_csv(classes).decode()
    rows = list(csv.DictReader(io.StringIO(content)))
    assert content.splitlines()[0] == "label,name,count,correct,accuracy,low,high,wrong_label,wrong_name,wrong_count"
    assert [row["name"] for row in rows] == list(NAMES)
    truck = rows[2]
    assert (truck["count"], truck["correct"], truck["wrong_label"], truck["wrong_name"], truck["wrong_count"]) == (
        "12", "1", "1", "car", "9",
    )  # fmt: skip
    assert (float(truck["low"]), float(truck["high"])) == wilson_interval(1, 12)
    assert rows[0]["accuracy"] == rows[0]["low"] == rows[0]["wrong_name"] == "", "nothing is known of it"
    assert [ClassResult.from_json(result.to_json()) for result in classes] == classes
    short = encode_csv(classes, with_wrong=False).decode().splitlines()
    assert short[0] == "label,name,count,correct,accuracy,low,high" and len(short) == 5
