"""Normalization inside an exported graph: the same bits behind it, pixels in front of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from teachonce.errors import CheckError, ConfigError
from teachonce.evaluation.config import PreprocessingPlace
from teachonce.evaluation.onnx_export import check_onnx, export_run
from teachonce.evaluation.onnx_pixels import INSIDE_KEY, put_normalization_inside, without_normalization
from teachonce.models.classifier import build_student, load_model
from teachonce.pixels.preprocessing import Preprocessing, normalize
from tests.evaluation.test_onnx_export import NUM_CLASSES, PREPROCESSING, noise_pixels, write_run
from tests.support.small_data import run_config

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [pytest.mark.usefixtures("onnx_exports"), pytest.mark.xdist_group("onnx")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("pixels") / "run")


@pytest.fixture(scope="module")
def files(run: Path) -> dict[str, Path]:
    for place in get_args(PreprocessingPlace):
        export_run(run, "onnx", run.parent / f"{place}.onnx", preprocessing=place)
    return {place: run.parent / f"{place}.onnx" for place in ("outside", "inside")}


def run_session(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


@pytest.mark.parametrize("num_images", [1, 2, 7])
def test_pixels_give_the_logits_of_normalized_images(files: dict[str, Path], num_images: int) -> None:
    pixels = noise_pixels(num_images)
    inside = run_session(files["inside"], pixels.numpy())
    outside = run_session(files["outside"], normalize(pixels, PREPROCESSING).numpy())
    # The same three operations in float32, one after the other; ONNX Runtime may fuse what comes behind.
    np.testing.assert_allclose(inside, outside, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value_range", ["unit", "byte"])
def test_the_graph_normalizes_bit_for_bit(tmp_path: Path, value_range: str) -> None:
    """Of a graph that does nothing, the output is the input of the student."""
    helper, TensorProto = onnx.helper, onnx.TensorProto
    preprocessing = dataclasses.replace(PREPROCESSING, size_px=16, resize_px=16, value_range=value_range)
    shape = ["batch", 3, 16, 16]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["logits"])],
        "nothing",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "a.onnx").write_bytes(put_normalization_inside(model.SerializeToString(), preprocessing))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    found = run_session(tmp_path / "a.onnx", pixels)
    assert np.array_equal(found, normalize(torch.from_numpy(pixels), preprocessing).numpy())


def test_the_file_says_what_it_takes(files: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(str(files["inside"]))
    (source,) = session.get_inputs()
    size = PREPROCESSING.size_px
    assert (source.name, source.type, source.shape[1:]) == ("images", "tensor(uint8)", [size, size, 3])
    assert isinstance(source.shape[0], str), "any batch size"
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata[INSIDE_KEY]) == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "value_range": "unit"}
    assert INSIDE_KEY not in onnxruntime.InferenceSession(str(files["outside"])).get_modelmeta().custom_metadata_map
    expected = without_normalization(PREPROCESSING)
    assert Preprocessing.from_json(json.loads(metadata["teachonce.preprocessing"])) == expected
    assert (expected.size_px, expected.resize_px) == (PREPROCESSING.size_px, PREPROCESSING.resize_px)


def test_it_is_a_model_without_options(run: Path, files: dict[str, Path]) -> None:
    inside, student = load_model(f"onnx:{files['inside']}"), load_model(f"run:{run}")
    pixels = noise_pixels(3)
    np.testing.assert_allclose(inside.logits(pixels), student.logits(pixels), rtol=0, atol=1e-4)
    assert inside.preprocessing == without_normalization(student.preprocessing)


def test_another_normalization_does_not_pass_the_check(run: Path, files: dict[str, Path], tmp_path: Path) -> None:
    student = load_model(f"run:{run}")
    check_onnx(student, files["inside"], preprocessing="inside")
    with pytest.raises(CheckError, match="reads back with preprocessing"):
        check_onnx(student, files["inside"])
    other = dataclasses.replace(student.preprocessing, mean=(0.5, 0.4, 0.31))
    (tmp_path / "other.onnx").write_bytes(put_normalization_inside(files["outside"].read_bytes(), other))
    with pytest.raises(CheckError, match="differ from PyTorch's"):
        check_onnx(student, tmp_path / "other.onnx", preprocessing="inside")


def test_pixels_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = build_student("timm:test_resnet", NUM_CLASSES, size_px=64)
    plain = Preprocessing(size_px=64, resize_px=70, interpolation="tf1_bilinear", antialias=False)
    run = tmp_path / "run"
    run.mkdir()
    save_file(student.state_dict(), run / "student.safetensors")
    config = run_config("timm:test_resnet", plain, num_classes=NUM_CLASSES, offset=1)
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"not rounded to 8 bits .*tf1_bilinear.*--preprocessing outside"):
        export_run(run, "onnx", tmp_path / "a.onnx", preprocessing="inside")
    assert not (tmp_path / "a.onnx").exists()
