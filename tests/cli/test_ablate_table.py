"""The ablation's table: intervals and paired differences by hand, and words only for what they carry."""

import statistics

import pytest

from teachonce.cli.ablate_table import (
    Arm,
    count_comparisons,
    difference,
    draw_ablation,
    find_verdicts,
    interval,
    render_ablation,
    render_table,
    sampling_interval,
)
from tests.support.chromium import measure_page


def arm(name, *top1, **more):
    return Arm(name=name, top1=list(top1), ece=[0.1] * len(top1), train_seconds=[10.0] * len(top1), **more)


LABELS = arm("labels only", 0.60, 0.62, 0.64, is_baseline=True)


def test_the_interval_is_students_t():
    values = [1.0, 2.0, 4.0]
    # t(0.975, 2) = 4.3027 (any table)
    assert interval(values) == pytest.approx(4.30265 * statistics.stdev(values) / 3**0.5, rel=1e-5)
    assert interval([1.0]) == float("inf")


def test_differences_are_paired_by_seed():
    better = arm("KD", 0.61, 0.63, 0.65)
    mean, half = difference(better, LABELS)
    assert mean == pytest.approx(0.01) and half == pytest.approx(0, abs=1e-9)  # though the seeds differ by 4 points


def test_the_table():
    table = render_table([LABELS, arm("fixed centre logits", 0.61, 0.63, 0.66, teacher_forwards=5000)], 3)
    lines = table.splitlines()
    assert lines[0].startswith("| the same student") and set(lines[1]) <= set("|-")
    # The difference is one comparison; the two means hold together: t(1 - 0.025 / 2, 2) = 6.2053 (any table).
    assert "62.00 +- 7.17" in lines[2] and "+1.33 +- 1.43" in lines[3] and "5,000" in lines[3]
    assert len({len(line) for line in lines[:4]}) == 1


def test_what_hurts_is_said():
    (verdict,) = find_verdicts([LABELS, arm("fixed centre logits", 0.58, 0.60, 0.621)])
    assert verdict.startswith("WARNING: fixed centre logits hurts: -1.97")
    assert find_verdicts([LABELS, arm("fixed centre logits", 0.55, 0.65, 0.62)]) == []  # within its interval


def test_stored_views_are_compared_with_both_ends():
    stored = arm("10 stored views", 0.66, 0.68, 0.70)
    verdicts = find_verdicts(
        [LABELS, arm("fixed centre logits", 0.63, 0.65, 0.671), stored, arm("online teacher", 0.665, 0.675, 0.70)]
    )
    assert "better than it" in verdicts[0] and "fixed centre logits: +2.97" in verdicts[0]
    assert "within the noise of it" in verdicts[1] and "online teacher: +0.00" in verdicts[1]


def test_a_difference_that_table_and_sentences_have_is_counted_once():
    """Stored views that are the base are compared with both ends in the table, and in the sentences again."""
    views, center, online = (
        arm(name, 0.6, 0.62, 0.64) for name in ("4 stored views", "fixed centre logits", "online teacher")
    )
    assert count_comparisons([views, center, online]) == 2
    assert count_comparisons([center, views, online]) == 3, "views against online is in no row"
    assert count_comparisons([LABELS, center, views, online]) == 5
    assert "3 arms and 2 comparisons" in render_table([views, center, online], 3)


def test_labels_are_the_baseline_wherever_they_stand():
    worse, views = arm("fixed centre logits", 0.50, 0.52, 0.54), arm("4 stored views", 0.70, 0.71, 0.73)
    first, last = ([LABELS, worse, views], [worse, views, LABELS])
    assert find_verdicts(last) == find_verdicts(first)
    assert "WARNING: fixed centre logits hurts: -10.00 +- 0.00 points against labels only." in find_verdicts(last)
    assert "against labels only" in render_table(last, 3)
    assert sorted(render_table(last, 3).splitlines()) == sorted(render_table(first, 3).splitlines())
    assert page_of(last).count("-10.00") == page_of(first).count("-10.00") > 0
    assert "against fixed centre logits" in render_table([worse, views], 3), "without labels the first one"


def test_two_seeds_are_no_evidence():
    assert find_verdicts([arm("labels only", 0.6, 0.7), arm("online teacher", 0.1, 0.2)]) == [
        "Fewer than 3 seeds: no difference here is more than an impression."
    ]


def test_the_picture_names_every_arm():
    picture = draw_ablation([LABELS, arm("KD", 0.6, 0.7, 0.8, curves=[[(1, 0.5), (2, 0.6)]] * 3)])
    assert picture.count("labels only") >= 2 and picture.count("KD") >= 2 and picture.lstrip().startswith("<?xml")


def test_one_evaluation_has_no_empty_panel():
    assert "mean over seeds" not in draw_ablation([LABELS, arm("KD", 0.6, 0.7, 0.8, curves=[[(2, 0.6)]] * 3)])


def test_a_curve_without_its_last_row_is_no_error():
    curves = [[(1, 0.5), (2, 0.6)], [(1, 0.5)], [(1, 0.5), (2, 0.7)]]
    assert "mean over seeds" in draw_ablation([LABELS, arm("KD", 0.6, 0.7, 0.8, curves=curves)])
    assert "mean over seeds" in draw_ablation([LABELS, arm("KD", 0.6, 0.7, 0.8, curves=[[], *curves])])


def page_of(arms):
    names = ("ablation.md", "ablation.json")
    return render_ablation(arms, 3, student="timm:a<b", command="teachonce ablate --out 'x y'", files=names)


def test_the_page_says_what_the_table_says():
    better = arm("KD <1>", 0.7, 0.72, 0.74, teacher_forwards=1234567, curves=[[(1, 0.5), (2, 0.6)]] * 3)
    page = page_of([LABELS, better])
    assert page.count("<svg") == 2 and "KD &lt;1&gt;" in page and "timm:a&lt;b" in page and "1,234,567" in page
    assert "+10.00" in page and "teachonce ablate --out" in page
    assert page_of([LABELS, arm("KD", 0.7, 0.7, 0.7)]).count("<svg") == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_fits_a_phone(tmp_path, width):
    arms = [LABELS, *(arm(f"{count} stored views", 0.6, 0.65, 0.7, store_bytes=123456789) for count in (1, 10, 30))]
    page = tmp_path / "ablation.html"
    page.write_text(page_of(arms))
    measured = measure_page(page, width, tmp_path)
    assert measured["width"] <= width and not measured["small"]


def test_intervals_are_corrected_for_the_number_of_arms():
    arms = [LABELS, *(arm(f"KD {index}", 0.61, 0.63, 0.66) for index in range(5))]
    # t(1 - 0.025 / 5, 2) = 9.9248 instead of 4.3027.
    _, single = difference(arms[1], LABELS)
    _, half = difference(arms[1], LABELS, 5)
    assert half / single == pytest.approx(9.92484 / 4.30265, rel=1e-5)
    table = render_table(arms, 3)
    assert f"+1.33 +- {100 * half:.2f}" in table and "corrected for 6 arms and 5 comparisons" in table


def test_among_many_arms_a_difference_must_be_larger_to_be_one():
    slightly = arm("KD", 0.58, 0.61, 0.62)
    others = [arm(f"other {index}", 0.60, 0.621, 0.64) for index in range(40)]
    (verdict,) = find_verdicts([LABELS, slightly])
    assert "WARNING: KD hurts: -1.67 +- 1.43" in verdict
    assert find_verdicts([LABELS, slightly, *others]) == []


def test_what_validation_sampling_alone_would_move():
    base = arm("labels only", 0.62, 0.62, 0.62, is_baseline=True, num_validation=10_000)
    # 1.96 sqrt(0.62 * 0.38 / 10000) = 0.009513 is within 2e-6 of Wilson's, though three equal seeds say +- 0.
    assert sampling_interval(base) == pytest.approx(0.009513, abs=2e-6) and interval(base.top1) == 0
    table = render_table([base, arm("KD", 0.62, 0.62, 0.62, num_validation=10_000)], 3)
    assert "+- 0.95" in table.splitlines()[2]
    assert "10,000 validation images: on all images of their kind a top-1 lies within +- 0.95 points (95 %)" in table
    assert "a difference within +- 1.35" in table
    assert sampling_interval(LABELS) == float("inf") and "images of their kind" not in render_table([LABELS], 3)


def test_all_right_on_a_hundred_images_is_no_certainty():
    # Wilson's at 100 of 100: 1 / (1 + 1.96^2 / 100) to 1.
    expected = (1 - 1 / (1 + 1.959964**2 / 100)) / 2
    assert sampling_interval(arm("KD", 1.0, 1.0, 1.0, num_validation=100)) == pytest.approx(expected, rel=1e-6)


def test_seeds_that_happen_to_agree_leave_one_image():
    labels = arm("labels only", 0.62, 0.63, 0.64, is_baseline=True, num_validation=100)
    worse = arm("KD", 0.60, 0.61, 0.62, num_validation=100)
    assert difference(worse, labels) == (pytest.approx(-0.02), pytest.approx(0.01))
    (verdict,) = find_verdicts([labels, worse])
    assert "hurts: -2.00 +- 1.00 points" in verdict


def test_what_holds_together_is_each_column():
    table = render_table([LABELS, arm("KD", 0.61, 0.63, 0.66)], 3)
    assert "those of the means hold together with 95 %, and so do those of the differences" in table


def test_the_table_says_what_the_gradients_are():
    equal = [LABELS, arm("KD", 0.6, 0.6, 0.6, label_weight=0.5, kd_weight=0.5, lr=0.1)]
    table = render_table(equal, 3)
    assert "| 0.5 + 0.5 " in table and "| 0.1 " in table and "Loss weights sum to 1 in every arm" in table
    twice = render_table([LABELS, arm("KD", 0.6, 0.6, 0.6, kd_weight=1.0)], 3)
    assert "| 1 + 1 " in twice and "WARNING: the arms' loss weights have different sums" in twice
