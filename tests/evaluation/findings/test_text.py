"""The lines of ``evaluate``: short, with the classes that need a look, and no top-5 of a few classes."""

from __future__ import annotations

import pytest

from teachonce.evaluation.findings.paired import ClassChange
from teachonce.evaluation.findings.per_class import ClassResult
from teachonce.evaluation.findings.text import describe_changes, describe_worst, render_scores
from tests.evaluation.findings.test_paired import result_of


def scores(classes: list[ClassResult], **more: object) -> dict[str, object]:
    return {
        "model": "timm:x",
        "split": "validation",
        "offset": 0,
        "top1": 0.6,
        "top5": 0.9,
        "ece": 0.05,
        "num_records": 120,
        "top1_low": 0.51,
        "top1_high": 0.683,
        "balanced_accuracy": 0.6,
        "num_known_classes": 10,
        "num_unknown_classes": 0,
        "images_per_second": 12.0,
        "classes": [result.to_json() for result in classes],
    } | more


def ten_classes(lowest: int) -> list[ClassResult]:
    car = {"wrong_label": 0, "wrong_name": "car", "wrong_count": 9}
    rest = [ClassResult(label=label, name=f"class{label}", count=12, correct=8) for label in range(9)]
    return [*rest, ClassResult(label=9, name="truck", count=12, correct=lowest, **car)]


def test_a_class_that_fails_is_said() -> None:
    text = render_scores(scores(ten_classes(0)))
    assert text.splitlines() == [
        "model: timm:x",
        "split: validation",
        "offset: 0",
        "top1: 0.6000 (95%: 0.5100 to 0.6830)",
        "balanced_accuracy: 0.6000",
        "ece: 0.0500",
        "num_records: 120",
        "images_per_second: 12.0000",
        "classes below the rest beyond chance:",
        "  truck: 0 of 12 right (95%: 0.00 to 0.24), 9 taken for car",
    ]


def test_classes_that_the_model_does_not_know_are_said() -> None:
    line = "the model does not know 2 of the classes with images: their images count as mistakes"
    assert line in render_scores(scores([], num_unknown_classes=2)).splitlines()


def test_of_many_classes_that_fail_the_number_is_said() -> None:
    many = [
        ClassResult(label=label, name=str(label), count=100, correct=1 if label < 30 else 90) for label in range(70)
    ]
    first, *listed = describe_worst(many)
    assert first == "classes below the rest beyond chance, the 10 lowest of 30:" and len(listed) == 10
    change = ClassChange(label=0, name="a", count=9, only_model=0, only_other=9, p_value=0.0, is_beyond_chance=True)
    assert describe_changes([change] * 3, 2) == "a -9 of 9, a -9 of 9 (2 of 3 classes)"
    assert describe_changes([change], 2) == "a -9 of 9"


def test_chance_is_not_a_failure() -> None:
    (line,) = describe_worst(ten_classes(5))
    assert line.startswith("no class is below the rest beyond chance; lowest: truck: 5 of 12 right (95%: 0.19 to 0.68)")
    assert describe_worst([]) == []


@pytest.mark.parametrize("num_known, is_shown", [(19, False), (20, True)])
def test_top5_needs_twenty_classes(num_known: int, is_shown: bool) -> None:
    assert ("top5" in render_scores(scores([], num_known_classes=num_known))) == is_shown


def test_a_comparison_is_said_with_its_test() -> None:
    found = result_of([[60, 0, 12, 0], [20, 20, 3, 5]], num_agreed=85).to_json(("bus", "van"))
    text = render_scores(scores([], against=found, teacher=found | {"teacher": "store"}))
    lines = text.splitlines()[-8:]
    assert lines[0].startswith("against: other: top1 0.7917; this model +4.17 points (95%: ")
    assert lines[0].endswith("within chance (McNemar, exact binomial: p = 0.5)")
    sure = render_scores(scores([], against=found | {"p_value": 1e-7})).splitlines()
    assert any(line.endswith("beyond chance (McNemar, exact binomial: p < 0.0001)") for line in sure)
    assert lines[1] == "  same class for 0.7083 of the images; only this model is right on 20, only the other on 15"
    assert lines[2:4] == ["  worse beyond chance: bus -12 of 72", "  better beyond chance: van +17 of 48"]
    assert lines[4].startswith("teacher: store: top1 0.7917") and "only the teacher on 15" in lines[5]
