"""Views: drawn as the policy says, stored in 9 bytes, applied as crop, resize, flip."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from teachonce.errors import ConfigError, StoreError
from teachonce.rng import generator
from teachonce.views import (
    CenterPolicy,
    CropPolicy,
    View,
    apply_view,
    decode_views,
    encode_views,
    policy_from_json,
    policy_to_json,
    sample_view,
)


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    seed=st.integers(0, 2**32),
    least=st.floats(0.01, 1.0),
    ratio=st.floats(0.2, 1.0),
)
def test_a_drawn_box_lies_in_the_image(width, height, seed, least, ratio):
    policy = CropPolicy(scale=(least, 1.0), ratio=(ratio, 1 / ratio))
    left, top, right, bottom = sample_view(generator(seed), policy, width, height).box
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_draws_follow_the_policy():
    policy = CropPolicy(scale=(0.2, 0.6), ratio=(0.5, 2.0), flip_prob=0.25)
    views = [sample_view(generator(0, index), policy, 400, 300) for index in range(4000)]
    sizes = np.array([(v.box[2] - v.box[0], v.box[3] - v.box[1]) for v in views], float)
    areas, ratios = sizes.prod(axis=1) / (400 * 300), sizes[:, 0] / sizes[:, 1]
    assert areas.min() > 0.19 and areas.max() < 0.61
    assert ratios.min() > 0.49 and ratios.max() < 2.02
    # 4000 draws: the mean of a uniform of width 0.4 has a standard error of 0.0018; rejected boxes bias it a little.
    assert abs(areas.mean() - 0.4) < 0.03
    assert abs(np.log(ratios).mean()) < 0.05
    assert abs(np.mean([v.flip for v in views]) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)


def test_impossible_boxes_fall_back_to_the_largest_central_one():
    box = sample_view(generator(0), CropPolicy(scale=(1.0, 1.0)), 1000, 10).box
    assert box == (493, 0, 506, 10)  # width 10 * 4 / 3 rounds to 13


def test_golden_views():
    views = [sample_view(generator(0, "view", 12345, index), CropPolicy(), 500, 375) for index in range(3)]
    assert views == GOLDEN_VIEWS


def test_apply_is_crop_resize_flip():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
    expected = np.asarray(image.crop((10, 5, 50, 45)).resize((24, 24), Image.Resampling.BILINEAR))
    pixels = apply_view(image, View((10, 5, 50, 45)), 24)
    assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(apply_view(image, View((10, 5, 50, 45), flip=True), 24), expected[:, ::-1])
    np.testing.assert_array_equal(apply_view(image, View((0, 0, 24, 24)), 24), np.asarray(image)[:24, :24])


def test_pixels_outside_the_box_do_not_count():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
    other = pixels.copy()
    other[:5], other[45:], other[:, :10], other[:, 50:] = 0, 0, 0, 0
    view = View((10, 5, 50, 45))
    a, b = (apply_view(Image.fromarray(values), view, 24) for values in (pixels, other))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("box", [(0, 0, 81, 60), (-1, 0, 10, 10), (5, 5, 5, 10), (0, 50, 10, 61)])
def test_a_box_of_another_image_is_refused(box):
    with pytest.raises(StoreError, match="does not lie in the image of 80 x 60"):
        apply_view(Image.new("RGB", (80, 60)), View(box), 8)


def test_nine_bytes_a_view_and_back():
    views = [View((0, 1, 65535, 4)), View((10, 20, 30, 40), flip=True)]
    columns = encode_views(views)
    assert sum(values.nbytes for values in columns.values()) == 2 * 9
    assert decode_views(columns) == views
    assert decode_views(encode_views([])) == []


def test_policies_are_their_json():
    for policy in (CenterPolicy(), CropPolicy(scale=(0.3, 0.9), ratio=(0.8, 1.25), flip_prob=0.0)):
        assert policy_from_json(policy_to_json(policy)) == policy
    with pytest.raises(StoreError, match="not known here"):
        policy_from_json({"name": "spiral"})
    with pytest.raises(StoreError, match="not known here"):
        policy_from_json({"name": "crop", "tilt": 3})


def test_wrong_policies_and_huge_images_are_refused():
    with pytest.raises(ConfigError, match="crop scale"):
        CropPolicy(scale=(0.5, 0.2))
    with pytest.raises(ConfigError, match="flip probability"):
        CropPolicy(flip_prob=2.0)
    with pytest.raises(ConfigError, match="65535"):
        sample_view(generator(0), CropPolicy(), 70_000, 10)


GOLDEN_VIEWS = [
    View((141, 31, 483, 338), flip=True),
    View((98, 17, 246, 145), flip=True),
    View((87, 43, 459, 370), flip=False),
]
