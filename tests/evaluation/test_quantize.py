"""Quantization: the arithmetic of one layer, the form of the file, and what calibration decides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from teachonce.errors import ModelError
from teachonce.evaluation.quantize import quantize_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def write_convolution(path: Path, weight: np.ndarray) -> Path:
    """logits[b, o] = weight[o] . mean pixel of image b, as a 1 x 1 convolution and a mean."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(weight)])
    constants = [numpy_helper.from_array(weight[:, :, None, None].astype(np.float32), "weight")]
    graph = helper.make_graph(nodes, "convolution", [images], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="kept", value="yes")
    onnx.save(model, path)
    return path


def ask(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


def flat_images(colors: np.ndarray) -> np.ndarray:
    return np.broadcast_to(colors.astype(np.float32)[:, :, None, None], (len(colors), 3, 4, 4)).copy()


def test_only_domains_that_are_used_are_declared(tmp_path: Path) -> None:
    float_file = write_convolution(tmp_path / "float.onnx", WEIGHT)
    quantize_onnx(float_file, tmp_path / "int8.onnx", flat_images(np.eye(3)))
    model = onnx.load(tmp_path / "int8.onnx")
    assert [opset.domain for opset in model.opset_import] == [""]
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model)
    ask(tmp_path / "int8.onnx", flat_images(np.eye(3)))


WEIGHT = np.array([[1.0, -0.5, 0.25], [100.0, 50.0, -75.0], [0.01, 0.02, -0.005]])


@pytest.mark.parametrize("color_range", [(-1, 1), (0, 1), (-2.5, 0.5)])
def test_one_layer_stays_within_the_steps_of_its_numbers(tmp_path: Path, color_range: tuple[float, float]) -> None:
    """Inputs in 255 steps of their range, weights in 64 of each channel's: the bound follows from half a step each.

    With weights of 8 bits this fails by a factor of 20 on processors that add two products in 16 bits.
    """
    rng = np.random.default_rng(0)
    colors = rng.uniform(*color_range, (64, 3))
    float_file = write_convolution(tmp_path / "float.onnx", WEIGHT)
    quantize_onnx(float_file, tmp_path / "int8.onnx", flat_images(colors))
    exact, found = colors @ WEIGHT.T, ask(tmp_path / "int8.onnx", flat_images(colors))
    input_step = np.ptp([*colors.ravel(), 0.0]) / 255
    weight_steps = np.abs(WEIGHT).max(axis=1) / 64
    largest = np.abs(colors).max()
    of_layer = np.abs(WEIGHT).sum(axis=1) * input_step / 2 + 3 * weight_steps * (largest + input_step) / 2
    # The convolution's and the pooling's outputs are integers again, in 255 steps of the range of all channels.
    of_outputs = 2 * np.ptp([*exact.ravel(), 0.0]) / 255
    assert (np.abs(found - exact).max(axis=0) <= of_layer + of_outputs).all()
    assert not np.array_equal(found, exact.astype(np.float32))


def test_weights_have_a_scale_a_channel(tmp_path: Path) -> None:
    from onnx import numpy_helper

    float_file = write_convolution(tmp_path / "float.onnx", WEIGHT)
    for weight_bits, largest in ((8, 127), (7, 64)):
        out = tmp_path / f"int8-{weight_bits}.onnx"
        quantize_onnx(float_file, out, flat_images(np.eye(3)), weight_bits=weight_bits)  # type: ignore[arg-type]
        constants = {item.name: numpy_helper.to_array(item) for item in onnx.load(out).graph.initializer}
        scales = next(value for name, value in constants.items() if name.startswith("weight") and "scale" in name)
        integers = next(value for value in constants.values() if value.dtype == np.int8 and value.ndim == 4)
        # One scale for all would leave nothing of the third channel: 0.02 is a fiftieth of a step of 100 / 127.
        np.testing.assert_allclose(scales, np.abs(WEIGHT).max(axis=1) / largest, rtol=0.02)
        assert (np.abs(integers.reshape(3, 3).astype(int)).max(axis=1) >= largest - 1).all()
        assert np.abs(integers.astype(int)).max() <= largest


def test_form_and_metadata(tmp_path: Path) -> None:
    float_file = write_convolution(tmp_path / "float.onnx", WEIGHT)
    quantize_onnx(float_file, tmp_path / "int8.onnx", flat_images(np.eye(3)))
    model = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(model)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["QuantizeLinear"] >= 1 and kinds["DequantizeLinear"] >= 2 and kinds["Conv"] == 1
    assert {entry.key: entry.value for entry in model.metadata_props}["kept"] == "yes"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float.onnx", "int8.onnx"]


def test_what_was_not_seen_is_clipped(tmp_path: Path) -> None:
    """Calibration decides: of images of half the contrast, the other half has no numbers."""
    float_file = write_convolution(tmp_path / "float.onnx", np.eye(3))
    quantize_onnx(float_file, tmp_path / "int8.onnx", flat_images(np.eye(3) / 2))
    found = ask(tmp_path / "int8.onnx", flat_images(np.eye(3)))
    np.testing.assert_allclose(np.diag(found), 0.5, atol=2 * 0.5 / 255)


def test_percentile_leaves_the_outermost_out(tmp_path: Path) -> None:
    float_file = write_convolution(tmp_path / "float.onnx", np.eye(3))
    images = np.random.default_rng(0).uniform(0, 1, (6000, 3, 4, 4)).astype(np.float32) ** 9
    images[0, 0, 0, 0] = 100  # one of 288,000 values
    grid = flat_images(np.linspace(0, 1, 64)[:, None] * np.ones(3))
    errors = {}
    for calibration in ("minmax", "percentile"):
        out = tmp_path / f"{calibration}.onnx"
        quantize_onnx(float_file, out, images, calibration=calibration)  # type: ignore[arg-type]
        errors[calibration] = np.abs(ask(out, grid) - ask(float_file, grid)).max()
    assert errors["minmax"] > 0.1, "a step of 100 / 255 is a coarse one"
    assert errors["percentile"] < errors["minmax"] / 2


def test_percentile_gives_a_negative_outlier_no_half_of_the_integers(tmp_path: Path) -> None:
    from onnx import numpy_helper

    float_file = write_convolution(tmp_path / "float.onnx", np.eye(3))
    images = np.random.default_rng(0).uniform(0, 1, (6000, 3, 4, 4)).astype(np.float32)
    images[0, 0, 0, 0] = -1  # one of 288,000 values: 0.00035 %
    quantize_onnx(float_file, tmp_path / "int8.onnx", images, calibration="percentile")
    constants = {item.name: numpy_helper.to_array(item) for item in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    # The range ends at borders of the calibrator's 2,048 bins between -1 and 1.
    assert constants["images_scale"] == pytest.approx(1 / 255, rel=3 * 2 / 2048)
    assert constants["images_zero_point"] <= 1


def test_calibration_uses_every_image(tmp_path: Path) -> None:
    float_file = write_convolution(tmp_path / "float.onnx", np.eye(3))
    for position in (0, 5, 11):
        colors = np.full((12, 3), 0.1)
        colors[position] = 1.0
        quantize_onnx(float_file, tmp_path / "int8.onnx", flat_images(colors))
        assert ask(tmp_path / "int8.onnx", flat_images(np.ones((1, 3))))[0] == pytest.approx([1, 1, 1], abs=2 / 255)


def test_nothing_is_printed_or_logged(tmp_path: Path, capsys, caplog) -> None:
    float_file = write_convolution(tmp_path / "float.onnx", WEIGHT)
    quantize_onnx(float_file, tmp_path / "int8.onnx", flat_images(np.eye(3)), calibration="percentile")
    assert capsys.readouterr() == ("", "")
    assert not caplog.records


def test_without_images_and_with_a_damaged_file(tmp_path: Path) -> None:
    float_file = write_convolution(tmp_path / "float.onnx", WEIGHT)
    with pytest.raises(ModelError, match=r"float\.onnx: cannot be quantized \(ValueError: No data"):
        quantize_onnx(float_file, tmp_path / "int8.onnx", [])
    float_file.write_bytes(b"no model")
    with pytest.raises(ModelError, match="cannot be quantized"):
        quantize_onnx(float_file, tmp_path / "int8.onnx", flat_images(np.eye(3)))
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]
