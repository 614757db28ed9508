"""Views: stored in a few bytes, applied as crop, resize, flip, operations, erased boxes, mix; golden pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from teachonce.errors import StoreError
from teachonce.pixels.apply_view import apply_mix, apply_view
from teachonce.pixels.operations import apply_operation
from teachonce.store.tables import pixels_hash
from teachonce.views.columns import ViewLayout, decode_views, encode_views
from teachonce.views.operations import OPERATION_NAMES, Operation
from teachonce.views.view import RELATIVE_ONE, Erasing, Mix, View


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
    with pytest.raises(StoreError, match="is outside of the image of 80 x 60"):
        apply_view(Image.new("RGB", (80, 60)), View(box), 8)


def test_nine_bytes_a_view_and_back():
    views = [View((0, 1, 65535, 4)), View((10, 20, 30, 40), flip=True)]
    columns = encode_views(views)
    assert sum(values.nbytes for values in columns.values()) == 2 * 9
    assert decode_views(columns, len(views)) == views
    assert decode_views(encode_views([]), 0) == []


FULL = ViewLayout(num_operations=2, num_erasings=1, has_mix=True, has_mix_box=True)
EDGES = st.lists(st.integers(0, RELATIVE_ONE), min_size=2, max_size=2, unique=True).map(sorted)
BOXES = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), EDGES, EDGES)
VIEWS = st.builds(
    View,
    box=BOXES,
    flip=st.booleans(),
    operations=st.tuples(
        *[st.builds(Operation, st.sampled_from(OPERATION_NAMES), st.floats(-300, 300, width=16)) for _ in range(2)]
    ),
    erasings=st.just(()) | st.tuples(st.builds(Erasing, BOXES, st.tuples(*[st.integers(0, 255)] * 3))),
    mix=st.none()
    | st.builds(Mix, st.integers(0, 2**64 - 1), st.floats(0, 1, width=32, exclude_max=True), st.none() | BOXES),
)


@given(views=st.lists(VIEWS, max_size=5))
def test_whatever_was_drawn_comes_back(views):
    columns = encode_views(views, FULL)
    assert tuple(columns) == FULL.columns and all(len(values) == len(views) for values in columns.values())
    assert decode_views(columns, len(views)) == views


def test_the_bytes_of_each_part():
    view = View((0, 0, 8, 8))

    def size(**parts):
        return sum(values.nbytes for values in encode_views([view], ViewLayout(**parts)).values())

    assert size() == 9
    assert size(num_operations=2) == 9 + 6 and size(num_erasings=1) == 9 + 11
    assert size(has_mix=True) == 9 + 12 and size(has_mix=True, has_mix_box=True) == 9 + 20


def test_a_code_of_a_newer_version_is_refused():
    columns = encode_views([View((0, 0, 8, 8), operations=(Operation("rotate", 3.0),))], ViewLayout(num_operations=1))
    columns["operations"][:] = 200
    with pytest.raises(StoreError, match="operation 200 is unknown"):
        decode_views(columns, 1)


def test_operations_come_after_the_flip_and_erasing_after_them():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    box = (0, 0, RELATIVE_ONE // 2, RELATIVE_ONE // 4)
    view = View(
        (0, 0, 40, 40), True, (Operation("translate_x", 0.25), Operation("solarize", 0.0)), (Erasing(box, (1, 2, 3)),)
    )
    pixels = apply_view(image, view, 16)
    square = image.resize((16, 16), Image.Resampling.BILINEAR).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = 255 - np.asarray(apply_operation(square, Operation("translate_x", 0.25)))
    np.testing.assert_array_equal(pixels[:4, :8], np.broadcast_to((1, 2, 3), (4, 8, 3)))
    np.testing.assert_array_equal(pixels[4:], expected[4:])
    np.testing.assert_array_equal(pixels[:4, 8:], expected[:4, 8:])


def test_mixup_blends_and_cutmix_pastes():
    own, partner = np.full((10, 10, 3), 200, np.uint8), np.full((10, 10, 3), 101, np.uint8)
    assert (apply_mix(own, partner, Mix(0, 0.75)) == round(0.75 * 200 + 0.25 * 101)).all()
    half = Mix(0, 0.5, (0, 0, RELATIVE_ONE // 2, RELATIVE_ONE))
    mixed = apply_mix(own, partner, half)
    assert (mixed[:, :5] == 101).all() and (mixed[:, 5:] == 200).all() and (own == 200).all()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_blend_of_equal_pixels_changes_nothing(share):
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    np.testing.assert_array_equal(apply_mix(pixels, pixels, Mix(0, share)), pixels)


@pytest.mark.parametrize("size_px", [8, 33, 224])
def test_boxes_cover_the_same_part_at_any_size(size_px):
    box = (RELATIVE_ONE // 4, 0, RELATIVE_ONE, RELATIVE_ONE // 2)
    mixed = apply_mix(
        np.zeros((size_px,) * 2 + (3,), np.uint8), np.full((size_px,) * 2 + (3,), 255, np.uint8), Mix(0, 0, box)
    )
    # Each edge is rounded to a whole pixel.
    assert abs((mixed > 0).mean() - 0.375) <= 1.5 / size_px


def test_golden_pixels():
    """A failure means that a library upgrade changes what views look like: stores made before no longer replay."""
    y, x = np.mgrid[0:90, 0:120]
    # Triangle waves in integers: no cosine whose last bit depends on the machine.
    planes = [np.abs((9 * x + 2 * y) % 510 - 255), np.abs((7 * y) % 510 - 255), (x * y) // 48]
    image = Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))
    partner = apply_view(image, View((60, 30, 120, 90)), 48)
    view = View(
        (7, 11, 87, 71),
        True,
        (Operation("rotate", 12.5), Operation("color", 1.5)),
        (Erasing((1000, 2000, 20000, 30000), (200, 10, 90)),),
        Mix(5, 0.625),
    )
    assert pixels_hash(apply_view(image, view, 48, partner_pixels=partner)) == GOLDEN_PIXELS
    assert pixels_hash(partner) == GOLDEN_CROP


GOLDEN_PIXELS = 17544401528381603195
GOLDEN_CROP = 5371586689490942528
