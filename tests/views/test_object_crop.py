"""Crops that show enough of an object: TensorFlow's distribution, outcome by outcome, and the promise itself."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachonce.rng import generator
from teachonce.views.object_crop import sample_object_crop
from teachonce.views.view import Box

NUM_DRAWS = 20_000
TWO_BOXES = [[0.0, 0.0, 0.5, 0.4], [0.6, 0.5, 1.0, 1.0]]
CASES: dict[str, tuple[int, int, list[list[float]], dict[str, Any]]] = {
    "no box": (6, 5, [], {}),
    "half of one of two boxes": (6, 5, TWO_BOXES, {"covered": 0.5}),
    "a box of no pixel": (6, 5, [[0.5, 0.5, 0.6, 0.6], [0.0, 0.0, 0.4, 0.9]], {"covered": 0.9}),
    "wide, few attempts": (12, 5, [[0.3, 0.0, 0.6, 0.9]], {"covered": 1.0, "max_attempts": 2}),
    "narrow aspect": (5, 9, [[0.1, 0.1, 0.9, 0.5]], {"ratio": (0.75, 1.33), "scale": (0.3, 0.6)}),
}


def tensorflows_crops(tensorflow: Any, width: int, height: int, boxes: list, settings: dict[str, Any]) -> Counter[Box]:
    """Outcomes of ``tf.image.sample_distorted_bounding_box``."""
    wanted = {"scale": (0.05, 1.0), "ratio": (3 / 4, 4 / 3), "covered": 0.1, "max_attempts": 100, **settings}
    given_boxes = np.array(boxes, np.float32).reshape(1, -1, 4)[:, :, [1, 0, 3, 2]]  # ymin, xmin, ymax, xmax there

    def draw(_: Any) -> Any:
        begin, size, _ = tensorflow.image.sample_distorted_bounding_box(
            [height, width, 3],
            given_boxes,
            seed=1,
            min_object_covered=wanted["covered"],
            aspect_ratio_range=wanted["ratio"],
            area_range=wanted["scale"],
            max_attempts=wanted["max_attempts"],
            use_image_if_no_bounding_boxes=True,
        )
        return tensorflow.concat([begin[:2], size[:2]], 0)

    drawn = next(iter(tensorflow.data.Dataset.range(NUM_DRAWS).map(draw).batch(NUM_DRAWS))).numpy().tolist()
    return Counter((left, top, left + w, top + h) for top, left, h, w in drawn)


@pytest.mark.parametrize("case", CASES)
def test_the_distribution_is_tensorflows(case: str, tensorflow: Any) -> None:
    """Every outcome of small images, counted: two samples of one distribution differ by their noise."""
    width, height, boxes, settings = CASES[case]
    theirs = tensorflows_crops(tensorflow, width, height, boxes, settings)
    rows = np.array(boxes, np.float32).reshape(-1, 4)
    rng = generator(0, case)
    ours = Counter(sample_object_crop(rng, width, height, rows, **settings) for _ in range(NUM_DRAWS))
    outcomes = theirs.keys() | ours.keys()
    assert len(outcomes) > 5
    for outcome in outcomes:
        # The difference of two counts of mean m has a variance of 2 m; 5 deviations, and a few for rare outcomes.
        mean = (theirs[outcome] + ours[outcome]) / 2
        assert abs(theirs[outcome] - ours[outcome]) <= 5 * math.sqrt(2 * mean) + 3, (outcome, theirs, ours)


SIDES = st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)).map(sorted)
BOXES = st.lists(st.tuples(SIDES, SIDES).map(lambda b: (b[0][0], b[1][0], b[0][1], b[1][1])), max_size=3)


@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    boxes=BOXES,
    covered=st.floats(0.01, 1.0),
    least=st.floats(0.01, 1.0),
    seed=st.integers(0, 999),
)
def test_a_crop_covers_enough_or_is_the_image(
    width: int, height: int, boxes: list, covered: float, least: float, seed: int
) -> None:
    rows = np.array(boxes, np.float32).reshape(-1, 4)
    left, top, right, bottom = sample_object_crop(
        generator(seed), width, height, rows, scale=(least, 1.0), covered=covered
    )
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    if (left, top, right, bottom) == (0, 0, width, height):
        return
    assert least * width * height <= (right - left) * (bottom - top)
    inside = np.zeros((height, width), bool)
    inside[top:bottom, left:right] = True
    shares = []
    for xmin, ymin, xmax, ymax in rows * np.array([width, height, width, height], np.float32):
        part = inside[int(ymin) : int(ymax), int(xmin) : int(xmax)]
        shares.append(part.mean() if part.size else 0.0)
    assert max(shares, default=inside.mean()) >= covered


def test_without_boxes_a_tenth_of_the_image_is_the_least_area() -> None:
    """What becomes of an area from 0.05 on where the whole image is the object."""
    crops = [sample_object_crop(generator(0, index), 300, 200, None) for index in range(500)]
    areas = [(right - left) * (bottom - top) / 60_000 for left, top, right, bottom in crops]
    assert 0.1 <= min(areas) < 0.12 and 0.8 < max(areas) <= 8 / 9


def test_golden_crops() -> None:
    rows = np.array(TWO_BOXES, np.float32)
    assert [sample_object_crop(generator(3, index), 500, 375, rows) for index in range(4)] == GOLDEN


GOLDEN = [(77, 2, 337, 318), (130, 31, 375, 331), (75, 130, 329, 350), (64, 83, 367, 340)]
