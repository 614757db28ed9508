"""ONNX teachers: the logits of a direct call, whatever layout, type and batch size the file has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from teachonce.errors import ConfigError, LogitsError, ModelError, NoGpuError
from teachonce.models.classifier import load_model
from teachonce.pixels.preprocessing import Preprocessing, normalize
from teachonce.records.class_table import hash_classes
from tests.support.web_server import serve

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZE_PX = 16
NUM_CLASSES = 5


def write_model(
    path: Path,
    *,
    batch: int | str = "batch",
    size: int | str = SIZE_PX,
    is_nhwc: bool = False,
    element: int = onnx.TensorProto.FLOAT,
    softmax: bool = False,
    outputs: tuple[str, ...] = ("scores",),
    scale: float = 1.0,
    external: bool = False,
    as_map: bool = False,
) -> Path:
    """Convolution, global average, linear layer: a classifier in a few nodes, of any layout and type."""
    rng = np.random.default_rng(0)
    helper = onnx.helper
    values = {
        "kernel": rng.normal(size=(8, 3, 3, 3)),
        "matrix": rng.normal(size=(8, NUM_CLASSES)) * scale,
        "bias": rng.normal(size=NUM_CLASSES),
    }
    shape = [batch, size, size, 3] if is_nhwc else [batch, 3, size, size]
    nodes = [helper.make_node("Cast", ["images"], ["floats"], to=onnx.TensorProto.FLOAT)]
    if is_nhwc:
        nodes.append(helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]))
    nodes += [
        helper.make_node("Conv", ["planes" if is_nhwc else "floats", "kernel"], ["features"]),
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix", "bias"], ["gemm"]),
    ]
    nodes += [helper.make_node("Softmax" if softmax else "Identity", ["gemm"], [name]) for name in outputs]
    answer = [batch, NUM_CLASSES]
    if as_map:
        nodes[-1].output[0] = "rows"
        values["axes"] = np.array([2, 3])
        nodes.append(helper.make_node("Unsqueeze", ["rows", "axes"], [outputs[-1]]))
        answer += [1, 1]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", element, shape)],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, answer) for name in outputs],
        [
            onnx.numpy_helper.from_array(value.astype(np.int64 if name == "axes" else np.float32), name)
            for name, value in values.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "preprocessing: expected `object`, got `array`"),
        ('{"size_px": 16, "colour": 1}', "preprocessing: colour: unknown here"),
        ('{"size_px": "16"}', "preprocessing: size_px: expected `int`, got `str`"),
        ('{"size_px": 16, "mean": [NaN, 0, 0]}', r"preprocessing: mean\[0\]: nan, expected a finite number"),
    ],
)
def test_metadata_that_is_no_preprocessing(tmp_path: Path, value: str, message: str) -> None:
    path = write_model(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.metadata_props.add(key="teachonce.preprocessing", value=value)
    onnx.save(model, path)
    with pytest.raises(ModelError, match=f"{path}: metadata teachonce.preprocessing is damaged: {message}"):
        load_model(f"onnx:{path}")


@pytest.mark.parametrize("value", ["abc", "", "1.5", "1_0", "9" * 5000, "[]"])
def test_metadata_that_is_no_offset(tmp_path: Path, value: str) -> None:
    path = write_model(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.metadata_props.add(key="teachonce.offset", value=value)
    onnx.save(model, path)
    with pytest.raises(ModelError, match=f"{path}: metadata teachonce.offset is damaged: .*expected an integer"):
        load_model(f"onnx:{path}")


def add_node(path: Path, domain: str, op_type: str, functions: Any = ()) -> None:
    """Put one more operator between a model and its first output."""
    model = onnx.load(path)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = [f"{name}_before" if name == output else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node(op_type, [f"{output}_before"], [output], domain=domain))
    model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    model.functions.extend(functions)
    onnx.save(model, path)


def test_custom_operators_are_refused_by_name(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    add_node(path, "my.ops", "Dial")
    with pytest.raises(ModelError, match=rf"^{path}: has operators outside of ONNX \(my.ops:Dial\); .*trust=1"):
        load_model(f"onnx:{path}")
    # Trusted, it is ONNX Runtime's to say that it has no such operator.
    with pytest.raises(ModelError, match=r"my\.ops:Dial.* is not a registered function/op"):
        load_model(f"onnx:{path},trust=1")


def test_custom_operators_within_a_function_or_a_branch(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    inner = onnx.helper.make_node("Dial", ["x"], ["y"], domain="other")
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("other", 1)]
    add_node(path, "my.ops", "Wrap", [onnx.helper.make_function("my.ops", "Wrap", ["x"], ["y"], [inner], opsets)])
    with pytest.raises(ModelError, match=r"\(other:Dial\)"):
        load_model(f"onnx:{path}")
    branch = onnx.helper.make_graph([onnx.helper.make_node("Dial", [], ["z"], domain="deep")], "branch", [], [])
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("If", ["condition"], ["z"], then_branch=branch, else_branch=branch))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"\(deep:Dial, other:Dial\)"):
        load_model(f"onnx:{path}")


def test_functions_of_the_model_itself_are_none(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    pixels = noise_pixels()
    before = load_model(f"onnx:{path}").logits(pixels)
    inner = onnx.helper.make_node("Neg", ["x"], ["y"])
    function = onnx.helper.make_function("my.ops", "Minus", ["x"], ["y"], [inner], [onnx.helper.make_opsetid("", 17)])
    add_node(path, "my.ops", "Minus", [function])
    assert torch.equal(load_model(f"onnx:{path}").logits(pixels), -before)


def test_tensors_outside_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    path = write_model(tmp_path / "inner" / "model.onnx", external=True)
    (tmp_path / "inner" / "weights.bin").rename(tmp_path / "weights.bin")
    for location in ("../weights.bin", str(tmp_path / "weights.bin")):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        onnx.save(model, path)
        with pytest.raises(ModelError, match=f"has tensors in '{location}', outside of its own folder"):
            load_model(f"onnx:{path}")


def noise_pixels(num_images: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).integers(0, 256, (num_images, SIZE_PX, SIZE_PX, 3), np.uint8))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_nhwc": True},
        {"batch": 1},
        {"batch": 4},
        {"element": onnx.TensorProto.FLOAT16},
        {"outputs": ("features_of_something", "logits")},
        {"external": True},
    ],
    ids=str,
)
def test_logits_are_those_of_a_direct_call(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_model(tmp_path / "model.onnx", **options)
    classifier = load_model(f"onnx:{path}")
    assert classifier.preprocessing == Preprocessing(size_px=SIZE_PX, resize_px=18)
    pixels = noise_pixels()
    images = normalize(pixels, classifier.preprocessing).numpy()
    if options.get("is_nhwc"):
        images = images.transpose(0, 2, 3, 1)
    if options.get("element") == onnx.TensorProto.FLOAT16:
        images = images.astype(np.float16)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    # One image at a time where the file wants so, four times the same one where it wants four.
    copies = options.get("batch", 1)
    expected = [session.run(None, {"images": image[None].repeat(copies, axis=0)})[-1][:1] for image in images]
    # Another batch size may sum in another order: 72 products a pixel, then 8 a class, each rounded to 2^-24.
    np.testing.assert_allclose(classifier.logits(pixels), np.concatenate(expected), rtol=0, atol=80 * 2**-24 * 10)
    assert classifier.num_classes == NUM_CLASSES


def test_uint8_input_takes_the_pixels_as_they_are(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", is_nhwc=True, element=onnx.TensorProto.UINT8, scale=0.01)
    classifier = load_model(f"onnx:{path}")
    assert classifier.preprocessing == load_model(f"onnx:{path},range=byte,mean=0,std=1").preprocessing
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = noise_pixels()
    np.testing.assert_array_equal(classifier.logits(pixels), session.run(None, {"images": pixels.numpy()})[0])


def test_size_that_the_file_leaves_open_comes_from_the_spec(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", size="side")
    with pytest.raises(ConfigError, match="has no fixed input size; give size="):
        load_model(f"onnx:{path}")
    assert load_model(f"onnx:{path},size=14").preprocessing == Preprocessing(size_px=14, resize_px=16)


def test_hash_covers_external_weights(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", external=True)
    first = load_model(f"onnx:{path}").weights_sha256
    path.rename(tmp_path / "renamed.onnx")
    assert load_model(f"onnx:{tmp_path / 'renamed.onnx'}").weights_sha256 == first
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    weights[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(weights)
    assert load_model(f"onnx:{tmp_path / 'renamed.onnx'}").weights_sha256 != first


def test_probabilities_are_refused_or_taken_back_to_logits(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", softmax=True)
    with pytest.raises(ModelError, match=r"outputs are probabilities, expected logits; give output=, or add probs=1"):
        load_model(f"onnx:{path}")
    logits = load_model(f"onnx:{write_model(tmp_path / 'logits.onnx')}").logits(noise_pixels())
    restored = load_model(f"onnx:{path},probs=1").logits(noise_pixels())
    # log(softmax) in float32: relative rounding of a probability, 2^-22, is an absolute one of its logarithm.
    np.testing.assert_allclose(restored, logits.log_softmax(dim=1), rtol=2**-22, atol=2**-20)


def test_logits_are_not_taken_for_probabilities(tmp_path: Path) -> None:
    """Their logarithms have the same most likely class, so neither the gate nor ``verify`` would notice."""
    path = write_model(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"outputs sum to .*, probabilities to 1; leave out probs=1"):
        load_model(f"onnx:{path},probs=1")


def test_small_logits_are_not_taken_for_rounded_probabilities(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", scale=0.01)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "bias":
            small = np.array([0.11, 0.07, -0.2, 0.313, 0.029], np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(small, "bias"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"outputs sum to .*, probabilities to 1; leave out probs=1"):
        load_model(f"onnx:{path},probs=1")


def test_probabilities_that_are_rounded_are_taken(tmp_path: Path) -> None:
    """A quantized softmax has steps of 1/256: small ones are 0, and the sum is less than 1."""
    path = write_model(tmp_path / "model.onnx", softmax=True)
    model = onnx.load(path)
    output = model.graph.output[0].name
    (last,) = (node for node in model.graph.node if output in node.output)
    last.output[0] = "exact"
    helper = onnx.helper
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(2.5), "steps"))
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["exact", "steps"], ["many"]),
            helper.make_node("Floor", ["many"], ["whole"]),
            helper.make_node("Div", ["whole", "steps"], [output]),
        ]
    )
    path.write_bytes(model.SerializeToString())
    with pytest.warns(UserWarning, match=r"its outputs sum to 0.*, probabilities to 1: rounded"):
        load_model(f"onnx:{path},probs=1")


def test_tensors_within_nodes_lie_in_the_models_folder_too(tmp_path: Path) -> None:
    """A constant, here, that names a file elsewhere."""
    path = write_model(tmp_path / "model.onnx")
    model = onnx.load(path)
    tensor = onnx.TensorProto(name="c", data_type=onnx.TensorProto.FLOAT, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="../../elsewhere")
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["unused"], value=tensor))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"has tensors in '../../elsewhere', outside of its own folder"):
        load_model(f"onnx:{path}")
    # Trusted or not, its copy would be written outside of the scratch folder.
    with serve(tmp_path) as server, pytest.raises(ModelError, match=r"outside of its own folder; from an address none"):
        load_model(f"onnx:{server.address}/model.onnx,trust=1")


def test_a_model_of_several_files_at_an_address(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    path = write_model(tmp_path / "www" / "model.onnx", external=True)
    with serve(tmp_path / "www") as server:
        there = load_model(f"onnx:{server.address}/model.onnx")
        here = load_model(f"onnx:{path}")
        assert there.weights_sha256 == here.weights_sha256
        assert torch.equal(there.logits(noise_pixels()), here.logits(noise_pixels()))


def test_vanished_probabilities_stay_finite(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", softmax=True, scale=10_000)
    classifier = load_model(f"onnx:{path},probs=1")
    assert classifier.collect_logits(classifier.logits(noise_pixels())).min() < -80


def test_walkthrough_teacher_from_an_onnx_file(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", is_nhwc=True)
    with pytest.raises(ModelError, match="has 5 classes, expected 1001"):
        load_model(f"amoebanet,weights={path},size={SIZE_PX}")
    classifier = load_model(f"efficientnet,weights={path},size={SIZE_PX},classes=5")
    assert classifier.default_offset == 1
    assert classifier.preprocessing.geometry == "central" and classifier.preprocessing.crop_frac == 0.875
    images = noise_pixels().numpy().astype(np.float32) / 255
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(classifier.logits(noise_pixels()), session.run(None, {"images": images})[0])


def test_nan(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", scale=float("nan"))
    with pytest.raises(LogitsError, match="NaN"):
        load_model(f"onnx:{path}")


def test_settings_of_pytorch_have_no_effect_and_say_so(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    with pytest.warns(UserWarning, match="--precision bf16 has no effect"):
        assert load_model(f"onnx:{path}", precision="bf16").precision == "float32"
    with pytest.warns(UserWarning, match="--compile has no effect"):
        load_model(f"onnx:{path}", compile=True)


@pytest.mark.parametrize(
    ("options", "spec", "message"),
    [
        ({"outputs": ("a", "b")}, "", "more than one output; give output= one of a, b"),
        ({"outputs": ("a", "b")}, ",output=c", "no output 'c'; give output= one of a, b"),
        ({}, ",input=x", "no input 'x'; give input= one of images"),
        ({"element": onnx.TensorProto.INT64}, "", "expected a batch of images in float or uint8"),
        ({}, ",size=12", "does not run on 12 x 12 pixels"),
        ({}, ",classes=7", "has 5 classes, expected 7"),
    ],
)
def test_model_that_does_not_fit(tmp_path: Path, options: dict[str, Any], spec: str, message: str) -> None:
    path = write_model(tmp_path / "model.onnx", **options)
    with pytest.raises((ConfigError, ModelError), match=message):
        load_model(f"onnx:{path}{spec}")


def test_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not an ONNX model that can be run"):
        load_model(f"onnx:{tmp_path / 'model.onnx'}")


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="with CUDA")
def test_without_cuda_of_its_own_auto_is_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "model.onnx")
    pretend_cuda(monkeypatch)
    with pytest.warns(match="has no CUDA; install onnxruntime-gpu or use --device cpu; the CPU is used$"):
        assert load_model(f"onnx:{path}", device="auto").device.type == "cpu"
    with pytest.warns(match="the CPU is used"):
        assert load_model(f"onnx:{path}", device="cuda", or_cpu=True).device.type == "cpu"
    with pytest.raises(NoGpuError, match="has no CUDA; install onnxruntime-gpu or use --device cpu"):
        load_model(f"onnx:{path}", device="cuda")


def test_on_cuda_float32_is_not_tf32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "model.onnx")
    asked = []

    def start(*arguments: object, providers: list[object], **options: object) -> None:
        asked.append(providers)
        raise RuntimeError("far enough")

    pretend_cuda(monkeypatch)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    with pytest.raises(ModelError, match="far enough"):
        load_model(f"onnx:{path}", device="cuda")
    assert asked == [[("CUDAExecutionProvider", {"device_id": 0, "use_tf32": 0}), "CPUExecutionProvider"]]


def test_logits_as_a_map_of_one_pixel(tmp_path: Path) -> None:
    """[B, C, 1, 1], as fully convolutional classifiers answer."""
    found = []
    for as_map in (False, True):
        path = write_model(tmp_path / f"{as_map}.onnx", as_map=as_map)
        found.append(load_model(f"onnx:{path}").logits(noise_pixels()))
    assert found[1].shape == (5, NUM_CLASSES) and torch.equal(*found)


def add_metadata(path: Path, **entries: str) -> Path:
    model = onnx.load(path)
    for key, value in entries.items():
        model.metadata_props.add(key=f"teachonce.{key}", value=value)
    onnx.save(model, path)
    return path


def test_metadata_with_class_names(tmp_path: Path) -> None:
    names = ("cat", "dög", "a b", "4", "e")
    path = add_metadata(
        write_model(tmp_path / "model.onnx"), classes=json.dumps(names), classes_hash=hash_classes(names), offset="1"
    )
    model = load_model(f"onnx:{path}")
    assert model.class_names == names
    assert [model.class_name(output) for output in range(NUM_CLASSES)] == list(names)
    # Of an older version: the hash alone.
    path = add_metadata(write_model(tmp_path / "old.onnx"), classes_hash=hash_classes(names), offset="1")
    model = load_model(f"onnx:{path}")
    assert model.class_names is None and model.classes_hash == hash_classes(names)
    assert (model.class_name(0), model.label_of(4)) == ("1", 5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[", "is damaged: Expecting value"),
        ('"cat"', "is damaged: names: expected `array`"),
        ('["cat", 1]', r"is damaged: names: \[1\]: expected `str`"),
        ('["dog", "cat"]', "has other names than those that teachonce.classes_hash is the hash of"),
    ],
)
def test_metadata_with_class_names_that_are_wrong(tmp_path: Path, value: str, message: str) -> None:
    path = add_metadata(write_model(tmp_path / "model.onnx"), classes=value, classes_hash=hash_classes(("cat", "dog")))
    with pytest.raises(ModelError, match=f"{path}: metadata teachonce.classes {message}"):
        load_model(f"onnx:{path}")
