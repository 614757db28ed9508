"""What follows from what was measured, by hand: hours, money, break-even, distortion, the recommended codec."""

from dataclasses import replace

import numpy as np
import pytest

from teachonce.codecs.softmax import total_variation
from teachonce.extraction.planning.costs import (
    TEMPERATURES,
    estimate_break_even,
    estimate_hours,
    first_cheaper,
    measure_tails,
    network_seconds,
    recommend,
    tail_mass,
)
from tests.support.plan_costs import TIMINGS, WORKLOAD


def test_hours_by_hand():
    # A view: read 0.01 x 2 files / 10 views, decode 0.08 x 2 / 10 / 4 threads, look 0.02 / 4, teacher 0.2, write 0.001.
    stages = {"read": 0.002, "decode": 0.004, "look": 0.005, "teacher": 0.2, "write": 0.001}
    hours = estimate_hours(TIMINGS, WORKLOAD)
    assert hours.seconds_per_view == pytest.approx(stages)
    assert hours.pipeline_seconds == pytest.approx(0.212) and hours.bottleneck == "teacher"
    assert hours.hours_here == pytest.approx(2.12)  # 36,000 views
    # Six units on four devices: two of them take two.
    assert hours.hours_on_devices == pytest.approx(2.12 * 2 / 6) and hours.devices_used == 4
    assert hours.hours_sharing_cores is None
    # Ten devices, and only six units.
    many = estimate_hours(TIMINGS, replace(WORKLOAD, num_devices=10))
    assert many.devices_used == 6 and many.hours_on_devices == pytest.approx(2.12 / 6)


def test_hours_beside_an_accelerator_are_those_of_the_slowest():
    fast = replace(TIMINGS, has_accelerator=True, teacher_seconds=0.012)
    hours = estimate_hours(fast, WORKLOAD)
    assert hours.pipeline_seconds == pytest.approx(0.012) and hours.bottleneck == "teacher"
    # Four accelerators that share the cores: decoding, 0.009 a view, becomes the slowest.
    assert hours.hours_sharing_cores == pytest.approx(0.12 * 3 * 2 / 6)
    slow = estimate_hours(replace(fast, look_seconds=0.2), WORKLOAD)
    assert slow.pipeline_seconds == pytest.approx(0.054) and slow.bottleneck == "decoding"


def test_device_hours_are_paid_until_the_last_device_is_done():
    hours = estimate_hours(TIMINGS, WORKLOAD, price=2.5)
    # Four devices for a third of 2.12 h, although two of them are done after half of that.
    assert hours.device_hours == pytest.approx(4 * 2.12 / 3) and hours.cost == pytest.approx(2.5 * 4 * 2.12 / 3)
    one = estimate_hours(TIMINGS, replace(WORKLOAD, num_devices=1), price=2.5)
    assert one.device_hours == pytest.approx(2.12) and one.cost == pytest.approx(5.3)
    assert estimate_hours(TIMINGS, WORKLOAD).cost is None


def test_the_network_goes_on_beside_the_rest():
    assert network_seconds(125e6, 1.0) == pytest.approx(1)  # a gigabit
    lanes = {"teacher": 0.2, "decoding": 0.009, "reading and writing": 0.003}
    assert estimate_hours(TIMINGS, WORKLOAD).lanes == pytest.approx(lanes)
    # Faster than all of a CPU's stages together: it costs nothing, though it takes longer than each of them.
    hours = estimate_hours(TIMINGS, WORKLOAD, network_seconds=0.205)
    assert hours.lanes == pytest.approx(lanes | {"network": 0.205})
    assert hours.pipeline_seconds == pytest.approx(0.212) and hours.bottleneck == "teacher"
    slow = estimate_hours(TIMINGS, WORKLOAD, network_seconds=0.424)
    assert slow.pipeline_seconds == pytest.approx(0.424) and slow.bottleneck == "network"
    assert slow.hours_here == pytest.approx(4.24)
    # Accelerators in one machine have one link: 4 x 0.004 a view are more than its 4 x 0.009 / 4 of decoding.
    fast = replace(TIMINGS, has_accelerator=True, teacher_seconds=0.012, look_seconds=0.0, decode_seconds=0.0)
    assert estimate_hours(fast, WORKLOAD, network_seconds=0.004).hours_sharing_cores == pytest.approx(0.16 * 2 / 6)
    assert estimate_hours(fast, WORKLOAD, network_seconds=0.004).hours_here == pytest.approx(0.12)


def test_break_even_by_hand():
    even = estimate_break_even(TIMINGS, WORKLOAD, extraction_hours=2.16)
    # An epoch of 3,600 records: online 0.2 h; offline 0.02 h for reading back. So 2.16 / 0.18 = 12 epochs.
    assert even.epochs == pytest.approx(12) and even.students == pytest.approx(12 / 50)
    assert even.offline_forwards == 36_000 and even.online_forwards == 3600 * 50 * 2
    assert even.online_hours == pytest.approx(20) and even.offline_hours == pytest.approx(2.16 + 2)
    assert even.saved_hours == pytest.approx(20 - 4.16) and even.ratio == pytest.approx(20 / 4.16)
    # At the break-even itself both have cost the same.
    at = estimate_break_even(TIMINGS, replace(WORKLOAD, epochs=12, students=1), extraction_hours=2.16)
    assert at.online_hours == pytest.approx(at.offline_hours)
    assert [first_cheaper(value) for value in (0.2, 9.9, 10.0, 10.1)] == [1, 10, 11, 11]


def test_it_never_breaks_even_where_reading_costs_more_than_asking():
    even = estimate_break_even(replace(TIMINGS, read_back_seconds=0.2), WORKLOAD, extraction_hours=1.0)
    assert even.epochs is None and even.students is None and even.saved_hours == pytest.approx(-1)


def test_tail_mass_of_known_logits():
    probs = np.array([[0.05, 0.5, 0.15, 0.3], [0.25, 0.25, 0.25, 0.25]])
    logits = np.log(probs).astype(np.float32)
    # float32 logits of up to 3: 2^-22 each, so their probabilities to 1e-6.
    np.testing.assert_allclose(tail_mass(logits, 1, 1), [0.5, 0.75], atol=1e-6)
    np.testing.assert_allclose(tail_mass(logits, 2, 1), [0.2, 0.5], atol=1e-6)
    np.testing.assert_allclose(tail_mass(logits, 3, 1), [0.05, 0.25], atol=1e-6)
    roots = np.sqrt(probs[0])
    np.testing.assert_allclose(tail_mass(logits, 2, 2)[0], (roots[0] + roots[2]) / roots.sum(), atol=1e-6)
    tails = measure_tails(logits)
    assert [entry["k"] for entry in tails] == [1, 2]  # 5 and more are all four classes
    assert tails[1]["mass"]["1"] == {"mean": pytest.approx(0.35, abs=1e-6), "worst": pytest.approx(0.5, abs=1e-6)}


def test_total_variation_of_known_logits():
    dense, stored = np.log(np.array([[0.8, 0.2], [0.5, 0.5]])), np.log(np.array([[0.6, 0.4], [0.5, 0.5]]))
    found = total_variation(dense.astype(np.float32), stored.astype(np.float32), 1)
    np.testing.assert_allclose(found, [0.2, 0], atol=1e-6)
    # A constant of the row is no distortion.
    assert total_variation(np.float32([[1, 2, 3]]), np.float32([[11, 12, 13]]), 2)[0] == 0


def entries(**worst) -> list[dict]:
    sizes = {"float32": 4000, "float16": 2000, "int8": 1000, "topk_50": 150, "topk_10": 30}
    return [
        {
            "name": label.partition("_")[0],
            "k": int(label.partition("_")[2] or 0) or None,
            "label": label.replace("_", " "),
            "refused": None,
            "bytes_per_view": sizes[label],
            "total_variation": {str(t): {"mean": value / 2, "worst": value} for t in TEMPERATURES},
        }
        for label, value in worst.items()
    ]


def test_the_smallest_faithful_codec_is_recommended_with_what_less_would_cost():
    advice = recommend(entries(float32=0, float16=1e-4, int8=0.006, topk_50=0.2, topk_10=0.5))
    assert (advice["codec"], advice["k"]) == ("int8", None)
    assert "worst 0.006" in advice["reason"] and "topk 50 takes 6.7 times fewer bytes" in advice["reason"]
    assert "0.1 / 0.1 / 0.1" in advice["reason"]
    assert recommend(entries(float32=0, float16=1e-4, int8=0.02))["codec"] == "float16"
    advice = recommend(entries(float32=0, int8=0.006, topk_50=0.009))
    assert (advice["codec"], advice["k"]) == ("topk", 50) and "trade-off" not in advice["reason"]


def test_a_codec_that_saves_next_to_nothing_is_no_trade_off():
    found = entries(float32=0, int8=0.006, topk_50=0.2, topk_10=0.5)
    found[2]["bytes_per_view"] = found[1]["bytes_per_view"] - 1  # ten classes, half of them stored
    assert "topk 10 takes" in recommend(found)["reason"]
    refusing = entries(float32=0, int8=0.006)
    refusing[1] = {"name": "int8", "label": "int8", "k": None, "refused": "too wild"}
    assert recommend(refusing)["codec"] == "float32"
