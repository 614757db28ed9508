"""Policies: views are drawn as they say, from (seed, key, view) alone; golden views notice a changed random stream."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teachonce.errors import ConfigError, ImageError, StoreError
from teachonce.extraction.config import ExtractConfig
from teachonce.rng import generator
from teachonce.views.columns import decode_views, encode_views
from teachonce.views.draw import RANDAUGMENT_NAMES, draw_view, sample_view
from teachonce.views.operations import Operation
from teachonce.views.policy import (
    AutoAugment,
    CenterPolicy,
    CropPolicy,
    ObjectCrop,
    RandAugment,
    RandomErasing,
    RandomMix,
    build_policy,
    policy_from_json,
    policy_to_json,
)
from teachonce.views.view import RELATIVE_ONE, Erasing, Mix, View
from tests.support.paths import ROOT

KEYS = np.array([3, 77, 1000, 2**63 + 5, 2**64 - 1], np.uint64)
EVERYTHING = CropPolicy(
    randaugment=RandAugment(), erasing=RandomErasing(prob=0.5), mix=RandomMix(mixup_alpha=0.8, cutmix_alpha=1.0)
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


def test_policies_are_their_json():
    for policy in (CenterPolicy(), CropPolicy(scale=(0.3, 0.9), ratio=(0.8, 1.25), flip_prob=0.0)):
        assert policy_from_json(policy_to_json(policy)) == policy
    with pytest.raises(StoreError, match="is unknown"):
        policy_from_json({"name": "spiral"})
    with pytest.raises(StoreError, match="is unknown"):
        policy_from_json({"name": "crop", "tilt": 3})


def test_wrong_policies_and_huge_images_are_refused():
    with pytest.raises(ConfigError, match="crop scale"):
        CropPolicy(scale=(0.5, 0.2))
    with pytest.raises(ConfigError, match="flip probability"):
        CropPolicy(flip_prob=2.0)
    with pytest.raises(ImageError, match="65535"):
        sample_view(generator(0), CropPolicy(), 70_000, 10)


def test_golden_views_of_autoaugment():
    views = [draw_view(AUTOAUGMENT, 7, 1000, number, 500, 375, None, LEFT_HALF) for number in range(3)]
    assert views == GOLDEN_AUTOAUGMENT


def test_golden_views_with_everything():
    views = [draw_view(EVERYTHING, 7, 1000, number, 500, 375, KEYS) for number in range(3)]
    assert views == GOLDEN_EVERYTHING


def test_draws_depend_on_seed_key_and_number_alone():
    program = (
        "import numpy as np; from tests.views.test_policy import EVERYTHING, KEYS; "
        "from teachonce.views.draw import draw_view; "
        "print([draw_view(EVERYTHING, 7, 77, n, 500, 375, KEYS) for n in (2, 0)])"
    )
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    here = [draw_view(EVERYTHING, 7, 77, number, 500, 375, KEYS) for number in (2, 0)]
    assert elsewhere.stdout.strip() == str(here)
    others = [
        draw_view(EVERYTHING, 8, 77, 0, 500, 375, KEYS),
        draw_view(EVERYTHING, 7, 1000, 0, 500, 375, KEYS),
        draw_view(EVERYTHING, 7, 77, 1, 500, 375, KEYS),
    ]
    assert all(other.box != here[1].box for other in others)


def test_what_is_added_to_a_policy_leaves_the_crop_as_it_is():
    """So a plain crop store and one with operations show the same regions."""
    for number in range(20):
        plain = draw_view(CropPolicy(), 0, 77, number, 300, 200, None)
        full = draw_view(EVERYTHING, 0, 77, number, 300, 200, KEYS)
        assert (plain.box, plain.flip) == (full.box, full.flip)
        assert draw_view(EVERYTHING, 0, 77, number, 300, 200, None) == full.without_mix()


def test_operations_are_uniform_and_their_magnitudes_in_range():
    policy = CropPolicy(randaugment=RandAugment(num_operations=3, magnitude=10, magnitude_std=0))
    drawn = [op for i in range(2000) for op in sample_view(generator(1, i), policy, 64, 64).operations]
    assert len(RANDAUGMENT_NAMES) == 14 and "invert" not in RANDAUGMENT_NAMES, "a longer list draws other views"
    counts = np.array([sum(op.name == name for op in drawn) for name in RANDAUGMENT_NAMES])
    # 6000 draws of 14: the standard deviation of a count is 20.
    assert (np.abs(counts - 6000 / 14) < 4.5 * 20).all(), counts
    full = {name: sorted({op.magnitude for op in drawn if op.name == name}) for name in RANDAUGMENT_NAMES}
    assert full["rotate"] == [-30.0, 30.0] and full["posterize"] == [4.0] and full["solarize"] == [0.0]
    assert full["shear_x"] == [-float(np.float16(0.3)), float(np.float16(0.3))]
    assert full["color"] == [float(np.float16(0.1)), float(np.float16(1.9))] and full["equalize"] == [0.0]


def test_magnitudes_are_what_float16_stores():
    for index in range(300):
        for op in sample_view(generator(2, index), EVERYTHING, 64, 64).operations:
            assert op.magnitude == float(np.float16(op.magnitude))


AUTOAUGMENT = CropPolicy(
    scale=(0.05, 1.0), autoaugment=AutoAugment(), objects=ObjectCrop(), erasing=RandomErasing(prob=0.5)
)
LEFT_HALF = np.array([[0.0, 0.0, 0.5, 1.0]], np.float32)


def test_autoaugment_draws_two_operations_that_are_stored_and_come_back():
    views = [draw_view(AUTOAUGMENT, 0, 77, number, 300, 200, None, LEFT_HALF) for number in range(200)]
    assert AUTOAUGMENT.name == "crop+autoaugment" and AUTOAUGMENT.layout.num_operations == 2
    assert all(len(view.operations) == 2 for view in views)
    assert decode_views(encode_views(views, AUTOAUGMENT.layout), len(views)) == views
    names = {operation.name for view in views for operation in view.operations}
    assert {"identity", "invert", "equalize", "posterize"} < names
    assert not names & {"brightness", "translate_x", "translate_y", "shear_y"}, "not in the policy for ImageNet"


def test_crops_show_enough_of_the_object():
    policy = CropPolicy(scale=(0.05, 1.0), objects=ObjectCrop(covered=0.6))
    boxes = [draw_view(policy, 0, 77, number, 300, 200, None, LEFT_HALF).box for number in range(300)]
    assert min((min(r, 150) - max(x, 0)) * (b - t) / 30_000 for x, t, r, b in boxes) >= 0.6
    anywhere = [draw_view(policy, 0, 77, number, 300, 200, None).box for number in range(300)]
    assert min((r - x) * (b - t) / 60_000 for x, t, r, b in anywhere) >= 0.6, "without boxes the image is the object"
    image = CropPolicy(scale=(0.05, 1.0), objects=ObjectCrop(covered=0.6, boxes="image"))
    assert policy.needs_boxes and not image.needs_boxes and not CropPolicy().needs_boxes
    assert [draw_view(image, 0, 77, number, 300, 200, None, LEFT_HALF).box for number in range(300)] == anywhere


def test_boxes_of_a_policy_that_does_not_ask_for_them_change_nothing():
    for number in range(20):
        plain, given_boxes = (draw_view(EVERYTHING, 7, 77, number, 300, 200, KEYS, b) for b in (None, LEFT_HALF))
        assert plain == given_boxes


def test_erased_boxes_follow_the_policy():
    policy = CropPolicy(erasing=RandomErasing(prob=0.3, scale=(0.05, 0.2), ratio=(0.5, 2.0)))
    views = [sample_view(generator(3, i), policy, 64, 64) for i in range(3000)]
    erased = [view.erasings[0].box for view in views if view.erasings]
    assert abs(len(erased) / 3000 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 3000)
    sides = np.array([(b[2] - b[0], b[3] - b[1]) for b in erased]) / RELATIVE_ONE
    areas, ratios = sides.prod(axis=1), sides[:, 1] / sides[:, 0]
    assert areas.min() > 0.049 and areas.max() < 0.201 and ratios.min() > 0.49 and ratios.max() < 2.02
    assert len({view.erasings[0].fill for view in views if view.erasings}) > 100


def test_mixes_follow_the_policy():
    policy = CropPolicy(mix=RandomMix(mixup_alpha=1.0, cutmix_alpha=1.0, prob=0.8, cutmix_prob=0.25))
    mixes = [draw_view(policy, 0, 77, number, 64, 64, KEYS).mix for number in range(4000)]
    found = [mix for mix in mixes if mix is not None]
    assert abs(len(found) / 4000 - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 4000)
    pasted = [mix for mix in found if mix.box is not None]
    assert abs(len(pasted) / len(found) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(found))
    partners = {mix.partner for mix in found}
    assert partners == {3, 1000, 2**63 + 5, 2**64 - 1}, "any record of the shard but the own one"
    shares = np.array([mix.share for mix in found if mix.box is None])
    assert abs(shares.mean() - 0.5) < 0.03 and shares.min() < 0.05 and shares.max() > 0.95  # Beta(1, 1) is uniform
    for mix in pasted:
        left, top, right, bottom = mix.box
        assert mix.share == float(np.float32(1 - (right - left) * (bottom - top) / RELATIVE_ONE**2))


def test_a_shard_of_one_record_has_nobody_to_mix_with():
    assert draw_view(EVERYTHING, 0, 3, 0, 64, 64, KEYS[:1]).mix is None


def test_options_mean_policies():
    base = {"data": "d", "teacher": "t", "out": "o"}
    assert build_policy("center", ExtractConfig(**base)) == CenterPolicy()
    assert build_policy("crop", ExtractConfig(**base, policy="crop")) == CropPolicy()
    config = ExtractConfig(**base, policy="crop+randaugment", randaugment_ops=3, erase_prob=0.1, cutmix_alpha=0.5)
    policy = build_policy(config.policy, config)
    assert policy.name == "crop+randaugment" and policy.randaugment == RandAugment(num_operations=3)
    assert policy.erasing.prob == 0.1 and policy.mix == RandomMix(cutmix_alpha=0.5)
    config = ExtractConfig(**base, policy="crop+autoaugment", object_covered=0.1, object_boxes="image")
    assert build_policy(config.policy, config) == CropPolicy(
        autoaugment=AutoAugment(), objects=ObjectCrop(covered=0.1, boxes="image")
    )


def test_full_policies_are_their_json():
    assert policy_from_json(policy_to_json(EVERYTHING)) == EVERYTHING
    assert policy_to_json(CropPolicy()) == {
        "name": "crop",
        "scale": [0.08, 1.0],
        "ratio": [3 / 4, 4 / 3],
        "flip_prob": 0.5,
    }, "a plain crop store is named as in format 1"
    assert policy_from_json(policy_to_json(AUTOAUGMENT)) == AUTOAUGMENT
    assert policy_to_json(AUTOAUGMENT)["objects"] == {"covered": 0.1, "boxes": "records", "max_attempts": 100}
    assert "objects" not in policy_to_json(EVERYTHING) and "autoaugment" not in policy_to_json(EVERYTHING)
    entry = policy_to_json(EVERYTHING)
    newer = {**policy_to_json(AUTOAUGMENT), "autoaugment": {"found_on": "cifar10"}}
    for wrong in ({**entry, "name": "crop"}, {**entry, "mix": {"alpha": 1}}, {"name": "crop+swirl"}, newer):
        with pytest.raises(StoreError, match="is unknown"):
            policy_from_json(wrong)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": None}, "policy None .*: name: expected crop"),
        ({"name": ["crop"]}, r"policy \['crop'\] .*: name: expected crop"),
        ({"tilt": 3}, r"policy 'crop\+randaugment' .*: tilt: unknown here \(known: scale, ratio, "),
        ({"mix": {"mixup_alpha": 1.0, "alpha": 1}}, r": mix\.alpha: unknown here \(known: mixup_alpha, "),
        ({"scale": [0.5]}, ": scale: expected `array` of length 2, got 1"),
        ({"scale": [0.5, "1"]}, r": scale\[1\]: expected `float`, got `str`"),
        ({"scale": [0.5, 0.2]}, r": crop scale \(0\.5, 0\.2\), ratio .*: expected 0 < least <= most"),
        ({"flip_prob": math.nan}, ": flip_prob: nan, expected a finite number"),
        ({"flip_prob": None}, ": flip_prob: expected `float`, got `null`"),
        ({"randaugment": 2}, ": randaugment: expected `object"),
        ({"randaugment": {"num_operations": 2.0}}, r": randaugment\.num_operations: expected `int`, got `float`"),
        ({"erasing": {"prob": True}}, r": erasing\.prob: expected `float`, got `bool`"),
    ],
)
def test_an_entry_that_means_no_policy_is_refused_with_its_field(changes, message):
    with pytest.raises(StoreError, match=message):
        policy_from_json(policy_to_json(EVERYTHING) | changes)


def test_an_entry_without_a_name_and_center_with_parameters():
    with pytest.raises(StoreError, match=r"policy None .*: name: expected crop"):
        policy_from_json({})
    with pytest.raises(StoreError, match=r"policy 'center' .*: scale: unknown here \(known: "):
        policy_from_json({"name": "center", "scale": [0.5, 1.0]})


@pytest.mark.parametrize(
    "part, values",
    [
        (RandAugment, {"num_operations": 0}),
        (RandAugment, {"magnitude": 11}),
        (RandomErasing, {"prob": 0}),
        (RandomErasing, {"scale": (0.5, 0.1)}),
        (AutoAugment, {"found_on": "svhn"}),
        (ObjectCrop, {"covered": 0}),
        (ObjectCrop, {"max_attempts": 0}),
        (ObjectCrop, {"boxes": "masks"}),
        (CropPolicy, {"randaugment": RandAugment(), "autoaugment": AutoAugment()}),
        (RandomMix, {}),
        (RandomMix, {"mixup_alpha": -1, "cutmix_alpha": 1}),
        (RandomMix, {"mixup_alpha": 1, "prob": 0}),
    ],
)
def test_parts_that_cannot_be_meant(part, values):
    with pytest.raises(ConfigError):
        part(**values)


GOLDEN_VIEWS = [
    View((141, 31, 483, 338), flip=True),
    View((98, 17, 246, 145), flip=True),
    View((87, 43, 459, 370), flip=False),
]

GOLDEN_EVERYTHING = [
    View(
        box=(26, 212, 213, 359),
        flip=True,
        operations=(
            Operation(name="shear_y", magnitude=-0.294189453125),
            Operation(name="brightness", magnitude=1.728515625),
        ),
        erasings=(Erasing(box=(12880, 30815, 28192, 64440), fill=(6, 30, 103)),),
        mix=Mix(partner=18446744073709551615, share=0.6300106644630432, box=(0, 20393, 35201, 65535)),
    ),
    View(
        box=(23, 15, 480, 372),
        flip=False,
        operations=(Operation(name="equalize", magnitude=0.0), Operation(name="brightness", magnitude=0.220947265625)),
        erasings=(),
        mix=Mix(partner=77, share=0.4694935381412506, box=(0, 0, 52864, 43100)),
    ),
    View(
        box=(182, 74, 437, 330),
        flip=True,
        operations=(Operation(name="equalize", magnitude=0.0), Operation(name="contrast", magnitude=0.2342529296875)),
        erasings=(),
        mix=Mix(partner=77, share=0.9029545187950134, box=None),
    ),
]

GOLDEN_AUTOAUGMENT = [
    View(
        (28, 161, 186, 360),
        True,
        (Operation("identity"), Operation("contrast", 1.5400390625)),
        (Erasing((32816, 12524, 58657, 29226), (213, 247, 6)),),
    ),
    View((192, 110, 392, 273), True, (Operation("identity"), Operation("identity"))),
    View((131, 12, 453, 362), True, (Operation("rotate", -24.0), Operation("color", 0.4599609375))),
]
