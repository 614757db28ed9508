"""The table of float and int8: numbers worked out by hand, and what is said of a loss."""

from __future__ import annotations

import dataclasses
import json

import pytest

from teachonce.evaluation.findings.paired import ClassChange
from teachonce.evaluation.int8_table import Comparison, Measurement, find_verdicts, render_comparison

FLOAT = Measurement(
    name="float", top1=0.75, top5=0.95, agreement_teacher=0.8, agreement_float=1.0, num_bytes=4_000_000, latency_ms=2.0
)
INT8 = Measurement(
    name="int8",
    top1=0.745,
    top5=0.95,
    agreement_teacher=0.79,
    agreement_float=0.97,
    num_bytes=1_100_000,
    latency_ms=1.0,
)
FOUND = Comparison(
    float32=FLOAT,
    int8=INT8,
    num_records=1000,
    num_classes=20,
    only_float_right=10,
    only_int8_right=5,
    class_changes=(),
    weight_bits=7,
    num_latency_runs=100,
    teacher="views",
    num_teacher_records=2048,
)


def test_the_table() -> None:
    assert render_comparison(FOUND) == (
        "| file  | top-1 | top-5 | agrees with the teacher | agrees with float | MB    | ms an image | ratio |\n"
        "|-------|-------|-------|-------------------------|-------------------|-------|-------------|-------|\n"
        "| float | 75.00 | 95.00 | 80.00                   | 100.00            | 4.000 | 2.000       | 1.00  |\n"
        "| int8  | 74.50 | 95.00 | 79.00                   | 97.00             | 1.100 | 1.000       | 0.50  |\n"
        "\n"
        "int8: -0.50 +- 0.81 points of top-1 on 1,000 records.\n"
        "Times: median of 100 single images each, alternating, one thread of this CPU, ONNX Runtime.\n"
        "Teacher: views, 2,048 records."
    )


def test_without_a_teacher_there_is_no_column_of_it() -> None:
    alone = dataclasses.replace(
        FOUND,
        float32=dataclasses.replace(FLOAT, agreement_teacher=None),
        int8=dataclasses.replace(INT8, agreement_teacher=None),
        teacher=None,
    )
    text = render_comparison(alone)
    assert "eacher" not in text and "agrees with float" in text
    assert len({line.count("|") for line in text.splitlines()[:4]}) == 1


def test_fewer_than_twenty_classes_have_no_top5() -> None:
    text = render_comparison(dataclasses.replace(FOUND, num_classes=19))
    assert "top-5" not in text and "95.00" not in text and "75.00" in text
    assert len({line.count("|") for line in text.splitlines()[:4]}) == 1
    assert json.dumps(FOUND.to_json()).count("top5") == 2


def change(name: str, only_int8: int, only_float: int, *, is_beyond_chance: bool) -> ClassChange:
    return ClassChange(0, name, 50, only_int8, only_float, 0.5, is_beyond_chance)


def test_the_classes_that_lose_most_are_named() -> None:
    gain, loss = (change("van", 9, 0, is_beyond_chance=True), change("bus", 1, 3, is_beyond_chance=False))
    within = find_verdicts(dataclasses.replace(FOUND, class_changes=(loss, gain)))
    assert within[1] == "Classes that lose most, all within chance: bus -2 of 50."
    truck = change("truck", 1, 21, is_beyond_chance=True)
    beyond = find_verdicts(dataclasses.replace(FOUND, class_changes=(truck, loss, gain)))
    assert beyond[1] == "CLASSES THAT LOSE beyond chance: truck -20 of 50."
    assert find_verdicts(dataclasses.replace(FOUND, class_changes=(gain,))) == find_verdicts(FOUND)
    value = json.loads(json.dumps(dataclasses.replace(FOUND, class_changes=(truck,)).to_json()))
    assert value["class_changes"][0]["name"] == "truck" and value["class_changes"][0]["only_other"] == 21


def test_change_and_noise_are_those_of_the_paired_hits() -> None:
    only_float, only_int8, rest = 40, 10, 950
    changes = [-1] * only_float + [1] * only_int8 + [0] * rest
    found = dataclasses.replace(FOUND, only_float_right=only_float, only_int8_right=only_int8)
    assert found.top1_change_points == pytest.approx(100 * sum(changes) / 1000)
    # Bonett and Price: one record more for each, then the textbook's interval; its middle is 0.006 points from -3.
    changes += [-1, 1]
    mean = sum(changes) / 1002
    variance = sum((change - mean) ** 2 for change in changes) / 1002
    half = 100 * 1.959964 * (variance / 1002) ** 0.5
    assert found.noise_points == pytest.approx(half + 100 * (30 / 1000 - 30 / 1002), rel=1e-6)


def test_a_hundred_equal_answers_are_no_certainty() -> None:
    same = dataclasses.replace(FOUND, num_records=100, only_float_right=0, only_int8_right=0)
    assert same.noise_points == pytest.approx(100 * 1.959964 * (2 / 102) ** 0.5 / 102**0.5, rel=1e-6)
    assert find_verdicts(same)[0] == "int8: +0.00 +- 2.72 points of top-1 on 100 records."
    assert dataclasses.replace(same, only_float_right=100).noise_points > 1


@pytest.mark.parametrize("lost, is_said", [(0, False), (10, False), (11, True), (200, True)])
def test_more_than_a_point_is_said_in_capitals(lost: int, is_said: bool) -> None:
    found = dataclasses.replace(FOUND, only_float_right=lost, only_int8_right=0)
    first = find_verdicts(found)[0]
    assert first.startswith("int8 LOSES ACCURACY: -" if is_said else "int8: ")
    assert ("--calibration percentile or --weight-bits 8 on a phone" in first) == is_said
    with_eight = find_verdicts(dataclasses.replace(found, weight_bits=8))[0]
    assert ("or 7 instead of --weight-bits 8 may help" in with_eight) == is_said


def test_a_gain_is_no_loss() -> None:
    assert find_verdicts(dataclasses.replace(FOUND, only_int8_right=90))[0].startswith("int8: +8.00 +- ")


def test_slower_is_said() -> None:
    slow = dataclasses.replace(FOUND, int8=dataclasses.replace(INT8, latency_ms=3.0))
    assert any(line.startswith("int8 IS SLOWER here, 1.50 of float's time") for line in find_verdicts(slow))
    assert not any("SLOWER" in line for line in find_verdicts(FOUND))


def test_json_has_what_follows_too() -> None:
    value = json.loads(json.dumps(FOUND.to_json()))
    assert value["int8"]["top1"] == 0.745 and value["float32"]["num_bytes"] == 4_000_000
    assert value["top1_change_points"] == -0.5 and value["latency_ratio"] == 0.5
