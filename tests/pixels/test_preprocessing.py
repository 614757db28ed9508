"""Preprocessing: the bits of torchvision, timm and the walkthrough's TensorFlow."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from teachonce.errors import ConfigError, ImageError
from teachonce.pixels.decode import decode_image
from teachonce.pixels.preprocessing import Preprocessing, normalize

SIZES = [(500, 375), (375, 500), (301, 300), (37, 91), (255, 256), (256, 256), (233, 1001), (1, 1), (3, 90)]


def noise_image(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 10_007 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def model_input(preprocessing: Preprocessing, image: Image.Image) -> torch.Tensor:
    return normalize(torch.from_numpy(preprocessing.apply(image))[None], preprocessing)[0]


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (227, 256), (224, 232), (21, 33), (64, 64)])
@pytest.mark.parametrize("image_size", SIZES)
def test_shorter_is_torchvision_bit_for_bit(image_size: tuple[int, int], size: int, resize: int) -> None:
    image = noise_image(*image_size)
    preprocessing = Preprocessing(size_px=size, resize_px=resize)
    reference = transforms.Compose(
        [
            transforms.Resize(resize),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )(image)
    assert preprocessing.apply(image).dtype == np.uint8
    difference = (model_input(preprocessing, image) - reference).abs()
    # Since version 13 Pillow takes the rows first where the height shrinks much more than the width: one gray level.
    levels = 1.01 if shrinks_rows_first(*image_size, resize) else 0.0
    assert (difference * torch.tensor(preprocessing.std)[:, None, None] * 255).max() <= levels


def shrinks_rows_first(width: int, height: int, resize: int) -> bool:
    """Whether Pillow 13 takes the rows first to bring the shorter side to ``resize``."""
    new_width, new_height = (int(resize * side / min(width, height)) for side in (width, height))
    return height > new_height and height - new_height > 2 * (width - new_width)


def test_grayscale_and_real_images_are_torchvision_bit_for_bit(imagenet_sample: Path) -> None:
    preprocessing = Preprocessing(size_px=227, resize_px=256)
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(227)])
    paths = sorted(imagenet_sample.glob("train/*/*"))[::10]
    for path in paths:
        with Image.open(path) as image:
            expected = np.asarray(reference(image.convert("RGB")))
        np.testing.assert_array_equal(preprocessing.apply(decode_image(path.read_bytes())), expected)


@pytest.mark.parametrize(("interpolation", "levels"), [("bilinear", 2), ("bicubic", 16)])
def test_which_pillow_has_torchvisions_bits(imagenet_sample: Path, interpolation: str, levels: int) -> None:
    """docs/reference/models.md: all up to Pillow 12; from 13 on all images but those that it shrinks rows first."""
    side = 224
    preprocessing = Preprocessing(size_px=side, geometry="squash", interpolation=interpolation)  # type: ignore[arg-type]
    reference = transforms.Resize((side, side), interpolation=transforms.InterpolationMode(interpolation))
    num_rows_first = 0
    for path in sorted(imagenet_sample.glob("train/*/*"))[::5]:
        image = decode_image(path.read_bytes())
        width, height = image.size
        is_rows_first = height > side and height - side > 2 * (width - side)
        num_rows_first += is_rows_first
        difference = np.abs(preprocessing.apply(image).astype(int) - np.asarray(reference(image)).astype(int)).max()
        # Bilinear: two roundings each way, weights that add up to 1. Bicubic overshoots, and is cut off
        # in between: no bound but 255; up to 12 levels in the sample.
        allowed = levels if is_rows_first and int(PIL.__version__.partition(".")[0]) >= 13 else 0
        assert difference <= allowed, (path.name, image.size)
    assert num_rows_first, "portraits, without which nothing is tested"


@pytest.mark.parametrize(
    ("config", "preprocessing"),
    [
        (  # vit_base_patch16_224: mean and std of a half
            {"img_size": 224, "crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3},
            Preprocessing(size_px=224, resize_px=248, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3),
        ),
        (  # a SigLIP
            {"img_size": 96, "crop_pct": 0.95, "crop_mode": "squash", "interpolation": "bicubic"},
            Preprocessing(size_px=96, resize_px=101, geometry="squash", interpolation="bicubic"),
        ),
        (
            {"img_size": 128, "crop_pct": 1.0, "interpolation": "lanczos"},
            Preprocessing(size_px=128, interpolation="lanczos"),
        ),
    ],
)
@pytest.mark.parametrize("image_size", SIZES[:5])
def test_timm_bit_for_bit(image_size: tuple[int, int], config: dict[str, Any], preprocessing: Preprocessing) -> None:
    from timm.data import create_transform

    config = dict(config)
    size = config.pop("img_size")
    reference = create_transform(input_size=(3, size, size), is_training=False, **config)
    image = noise_image(*image_size)
    assert torch.equal(model_input(preprocessing, image), reference(image))


TF1 = {"interpolation": "tf1_bilinear", "antialias": False, "mean": (0.0,) * 3, "std": (1.0,) * 3}
IMAGENET_MEAN_BYTES = (123.68, 116.78, 103.94)
WALKTHROUGH = {
    "inception": Preprocessing(size_px=64, geometry="central", crop_frac=0.875, **TF1),  # type: ignore[arg-type]
    "imagenet_crop0875": Preprocessing(
        size_px=64, resize_px=73, **TF1 | {"mean": IMAGENET_MEAN_BYTES, "value_range": "byte"}
    ),
    "imagenet_plus1": Preprocessing(
        size_px=64, resize_px=65, **TF1 | {"mean": IMAGENET_MEAN_BYTES, "value_range": "byte"}
    ),
}


@pytest.fixture(scope="session")
def walkthrough_reference(shared_data: Path) -> Any:
    path = shared_data / "reference" / "eval_preprocessing.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with np.load(path) as arrays:
        return {tuple(key.split("|")): arrays[key] for key in arrays.files}


@pytest.mark.parametrize("name", ["imagenet_crop0875", "imagenet_plus1"])
def test_walkthrough_imagenet_preprocessing_bit_for_bit(
    name: str, walkthrough_reference: Any, imagenet_sample: Path
) -> None:
    compared = 0
    for (file, kind), expected in walkthrough_reference.items():
        if kind == name:
            image = decode_image(next(imagenet_sample.glob(f"train/*/{file}")).read_bytes())
            pixels = WALKTHROUGH[name].apply(image)
            np.testing.assert_array_equal(pixels - np.array(IMAGENET_MEAN_BYTES, np.float32), expected)
            compared += 1
    assert compared == 4


def test_walkthrough_inception_preprocessing(
    walkthrough_reference: Any, imagenet_sample: Path, tensorflow: Any
) -> None:
    # The reference decoded with TensorFlow's fast DCT, Pillow decodes with the accurate one. From the same pixels the
    # two agree to a rounding or two of numbers below 1 (2 * 2^-23: they divide by 255 before the resize, we after). A
    # bilinear mix is convex, so from the same file they differ by no more than the two decoders' pixels do.
    compared = 0
    for (file, kind), expected in walkthrough_reference.items():
        if kind == "inception":
            encoded = next(imagenet_sample.glob(f"train/*/{file}")).read_bytes()
            image = decode_image(encoded)
            fast = tensorflow.io.decode_jpeg(encoded, channels=3).numpy()
            for source in (image, Image.fromarray(fast)):
                decoder_error = np.abs(np.asarray(source).astype(int) - fast).max() / 255
                ours = model_input(WALKTHROUGH["inception"], source).permute(1, 2, 0).numpy()
                np.testing.assert_allclose(ours, expected, rtol=0, atol=decoder_error + 2 * 2**-23)
            compared += 1
    assert compared == 4


@pytest.mark.parametrize("image_size", SIZES)
def test_central_takes_the_same_margin_as_tensorflow(image_size: tuple[int, int], tensorflow: Any) -> None:
    image = noise_image(*image_size)
    cropped = tensorflow.image.central_crop(np.asarray(image), 0.875).numpy()
    preprocessing = Preprocessing(size_px=40, geometry="central", crop_frac=0.875)
    # Columns first, whatever Pillow's version.
    columns = Image.fromarray(cropped).resize((40, len(cropped)), Image.Resampling.BILINEAR)
    reference = columns.resize((40, 40), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(preprocessing.apply(image), np.asarray(reference))


def test_byte_range_skips_the_division() -> None:
    image = noise_image(9, 9)
    preprocessing = Preprocessing(size_px=9, value_range="byte", mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0))
    expected = (np.asarray(image).astype(np.float32) - [1, 2, 3]) / [2, 4, 8]
    np.testing.assert_array_equal(model_input(preprocessing, image).permute(1, 2, 0), expected)


def test_with_size_keeps_the_margins_proportion() -> None:
    assert Preprocessing(size_px=224, resize_px=256).with_size(448).resize_px == 512
    assert Preprocessing(size_px=288, resize_px=288).with_size(331).resize_px == 331
    central = Preprocessing(size_px=331, geometry="central", crop_frac=0.875)
    assert central.with_size(64) == Preprocessing(size_px=64, geometry="central", crop_frac=0.875)


@settings(max_examples=50)
@given(
    size=st.integers(1, 600),
    margin=st.integers(0, 99),
    geometry=st.sampled_from(["shorter", "squash", "central"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "tf1_bilinear"]),
    mean=st.tuples(*[st.floats(-1, 256)] * 3),
    value_range=st.sampled_from(["unit", "byte"]),
)
def test_json_round_trip(size: int, margin: int, geometry: Any, interpolation: Any, **others: Any) -> None:
    preprocessing = Preprocessing(
        size_px=size,
        resize_px=size + margin,
        geometry=geometry,
        crop_frac=0.875,
        interpolation=interpolation,
        antialias=interpolation != "tf1_bilinear",
        **others,
    )
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size_px": 0}, "size=0"),
        ({"size_px": 224, "resize_px": 200}, "resize=200"),
        ({"size_px": 100_000}, "8192"),
        ({"size_px": 8, "geometry": "middle"}, "shorter, squash, central"),
        ({"size_px": 8, "interpolation": "cubic"}, "bicubic"),
        ({"size_px": 8, "interpolation": "tf1_bilinear"}, "antialias=0"),
        ({"size_px": 8, "interpolation": "bicubic", "antialias": False}, "antialias=0"),
        ({"size_px": 8, "geometry": "central", "crop_frac": 1.5}, "crop=1.5"),
        ({"size_px": 8, "std": (1.0, 0.0, 1.0)}, "std"),
        ({"size_px": 8, "mean": (float("nan"), 0.0, 1.0)}, "mean"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**fields)


@pytest.mark.parametrize("value", [None, [], {"size_px": 8, "colour": 1}, {}, {"size_px": "8"}])
def test_json_of_something_else_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError):
        Preprocessing.from_json(value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_px": "8"}, "size_px: expected `int`, got `str`"),
        ({"size_px": 8.0}, "size_px: expected `int`, got `float`"),
        ({"colour": 1}, r"colour: unknown here \(known: size_px, geometry, "),
        ({"geometry": "middle"}, "geometry: invalid enum value 'middle'"),
        ({"antialias": 0}, "antialias: expected `bool`, got `int`"),
        ({"mean": [0.5, 0.5]}, "mean: expected `array` of length 3, got 2"),
        ({"mean": [0.5, 0.5, math.nan]}, r"mean\[2\]: nan, expected a finite number"),
        ({"std": [0.5, None, 0.5]}, r"std\[1\]: expected `float`, got `null`"),
    ],
)
def test_json_of_something_else_is_refused_with_its_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^preprocessing: {message}"):
        Preprocessing.from_json(Preprocessing(size_px=8).to_json() | changes)


def test_json_of_sizes_that_do_not_fit_is_refused_in_the_same_words() -> None:
    with pytest.raises(ConfigError, match=r"^preprocessing with size=8, resize=7: expected 1 <= size <= resize"):
        Preprocessing.from_json(Preprocessing(size_px=8).to_json() | {"resize_px": 7})


def test_json_without_a_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^preprocessing: object missing required field `size_px`"):
        Preprocessing.from_json({})


def test_json_of_an_older_version_gets_the_defaults() -> None:
    assert Preprocessing.from_json({"size_px": 8}).to_json() == Preprocessing(size_px=8).to_json()


def test_sliver_is_refused_before_it_fills_the_memory() -> None:
    sliver = Image.new("RGB", (1, 1_000_000))
    with pytest.raises(ImageError, match="1 x 1000000 pixels"):
        Preprocessing(size_px=224, resize_px=256).apply(sliver)
    # Squashed, it would be read whole; a shorter one that is refused otherwise all the same is quicker.
    shorter = Image.new("RGB", (1, 20_000))
    with pytest.raises(ImageError, match="1 x 20000 pixels"):
        Preprocessing(size_px=224, resize_px=256).apply(shorter)
    assert Preprocessing(size_px=224, geometry="squash").apply(shorter).shape == (224, 224, 3)


def test_mean_and_std_are_not_made_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """That would be a copy that waits for all the work before it, at every batch."""
    make = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda values, *, dtype: make(values, dtype=dtype))
    assert normalize(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), Preprocessing(size_px=4)).shape == (1, 3, 4, 4)
