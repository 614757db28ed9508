"""Operations: named, physical, independent of the size; golden pixels notice a library that changes them."""

import numpy as np
import pytest
from PIL import Image

from teachonce.errors import StoreError
from teachonce.pixels.operations import OPERATIONS, apply_operation
from teachonce.store.tables import pixels_hash
from teachonce.views.operations import FILL_RGB, OPERATION_NAMES, Operation


def smooth_image(size=64):
    """Colors that vary smoothly, so that two resolutions of it can be compared."""
    # Triangle waves in integers: no cosine whose last bit depends on the machine.
    y, x = np.mgrid[0:size, 0:size] * 768 // size
    planes = [np.abs((x + y // 2 + 40) % 510 - 255), np.abs((y + 90) % 510 - 255), 40 + x * y // 3500]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


# A middling magnitude of each, in its own unit.
MAGNITUDES = {
    "identity": 0.0,
    "autocontrast": 0.0,
    "equalize": 0.0,
    "rotate": 20.0,
    "solarize": 96.0,
    "color": 1.75,
    "posterize": 4.0,
    "contrast": 0.25,
    "brightness": 1.5,
    "sharpness": 1.75,
    "shear_x": 0.25,
    "shear_y": -0.25,
    "translate_x": 0.25,
    "translate_y": -0.25,
    "invert": 0.0,
}


def test_the_codes_are_part_of_the_format():
    assert tuple(MAGNITUDES) == OPERATION_NAMES == tuple(OPERATIONS), "append only: a store's columns hold positions"


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_golden_pixels(name):
    """A failure means that a library upgrade changes what views look like: stores made before no longer replay."""
    pixels = np.asarray(apply_operation(smooth_image(), Operation(name, MAGNITUDES[name])))
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    assert pixels_hash(pixels) == GOLDEN[name]


@pytest.mark.parametrize("name", [name for name in OPERATION_NAMES if name != "sharpness"])
def test_the_same_operation_at_another_resolution(name):
    """At 64 and 192 px, compared at 64: rounding of 8 bits, borders and histogram bins, not another operation."""
    operation = Operation(name, MAGNITUDES[name])
    small = np.asarray(apply_operation(smooth_image(64), operation)).astype(int)
    large = apply_operation(smooth_image(192), operation).resize((64, 64), Image.Resampling.BOX)
    difference = np.abs(small - np.asarray(large).astype(int)).mean()
    other = np.abs(small - np.asarray(smooth_image(64)).astype(int)).mean()
    assert difference < 6, difference  # solarize and equalize are steep: a rounded edge is tens of gray levels
    if name not in ("identity", "autocontrast"):
        assert other > 2 * difference, (difference, other)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_what_is_uncovered_gets_the_shared_color(name):
    black = Image.new("RGB", (32, 32))
    pixels = np.asarray(apply_operation(black, Operation(name, MAGNITUDES[name]))).reshape(-1, 3)
    assert (pixels == FILL_RGB).all(axis=1).sum() > 20


def test_directions():
    marked = np.zeros((20, 20, 3), np.uint8)
    marked[10, 10] = 255

    def center(operation):
        moved = np.asarray(apply_operation(Image.fromarray(marked), operation))[:, :, 0] > 200
        return tuple(int(value) for value in np.argwhere(moved)[0])

    assert center(Operation("translate_x", 0.25)) == (10, 15)
    assert center(Operation("translate_y", 0.25)) == (15, 10)
    inverted = np.asarray(apply_operation(Image.fromarray(marked), Operation("solarize", 128.0)))
    assert inverted[10, 10].tolist() == [0, 0, 0] and inverted[0, 0].tolist() == [0, 0, 0]
    negative = np.asarray(apply_operation(Image.fromarray(marked), Operation("invert")))
    np.testing.assert_array_equal(negative, 255 - marked)


def test_an_unknown_operation_is_refused():
    with pytest.raises(StoreError, match="operation 'swirl' is unknown"):
        apply_operation(smooth_image(), Operation("swirl", 1.0))


GOLDEN = {
    "identity": 1437894315639360125,
    "autocontrast": 1097089555621849082,
    "equalize": 12898017150557359942,
    "rotate": 5496947174343970009,
    "solarize": 4240599901763672260,
    "color": 4882582877160654414,
    "posterize": 7835027556913884125,
    "contrast": 387747941455131684,
    "brightness": 11497148389014016540,
    "sharpness": 8049639028197336768,
    "shear_x": 628361113814073819,
    "shear_y": 1608784027419073411,
    "translate_x": 10071953181138257804,
    "translate_y": 8150815417827019722,
    "invert": 69031551929606795,
}
