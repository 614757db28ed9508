"""TensorFlow's variables as our weights: names, layouts, files, and what does not fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray

from teachonce.errors import ConfigError, MissingExtraError, ModelError
from teachonce.models.assembled_resnet.network import AssembledResNet
from teachonce.models.assembled_resnet.registry import register_models
from teachonce.models.assembled_resnet.tf_weights import (
    convert_tf_variables,
    is_tf_weights,
    name_tf_variables,
    read_tf_variables,
)
from teachonce.models.classifier import build_student, load_model

register_models()


def build(name: str = "tf_resnet50", *, seed: int = 0, **options: Any) -> AssembledResNet:
    torch.manual_seed(seed)
    module = timm.create_model(name, **({"num_filters": 4, "num_classes": 5} | options)).eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return module


def to_tf(module: AssembledResNet) -> dict[str, NDArray[np.float32]]:
    """The module's tensors as the original would hold them, named in full."""
    own = module.state_dict()
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
    arrays = {f"resnet_model/{theirs}": own[ours].numpy() for theirs, ours in name_tf_variables(module).items()}
    return {name: array.transpose(axes[array.ndim]) for name, array in arrays.items()}


@pytest.mark.parametrize("reference, name", [("vanilla50", "tf_resnet50"), ("assemble50", "assemble_resnet50")])
def test_names_and_their_order_are_the_originals(shared_data: Path, reference: str, name: str) -> None:
    path = shared_data / "reference" / f"{reference}.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    assert list(name_tf_variables(build(name))) == list(read_tf_variables(path))


def test_names_of_the_options_without_a_reference() -> None:
    """As TensorFlow numbers scopes and layers: by themselves within each scope."""
    se = name_tf_variables(build("tf_seresnet50"))
    assert se["se_block/seblock_dense_1/kernel"] == "stages.0.0.se.fc1.weight"
    assert se["se_block_15/seblock_dense_2/kernel"] == "stages.3.2.se.fc2.weight"
    sk = name_tf_variables(build("tf_skresnet50"))
    assert sk["sk_block_1/batch_normalization/gamma"] == "stages.0.1.conv2.attention.bn.weight"
    d = name_tf_variables(build("tf_resnet50d"))
    assert d["conv2d_2/kernel"] == "stem.convs.6.weight" and d["batch_normalization_2/beta"] == "stem.bn.bias"
    assert d["conv2d_3/kernel"] == "stages.0.0.projection.conv.weight"
    both = name_tf_variables(build("tf_blresnet50", use_resnet_d=True))
    assert both["stage0/batch_normalization_1/gamma"] == "stem.convs.4.weight"
    assert both["stage0_1/batch_normalization/gamma"] == "stem.bn.weight"
    embedded = name_tf_variables(build(embedding_size=6))
    assert embedded["embedding_dense/kernel"] == "embedding.linear.weight"
    assert embedded["embedding_dense_batch_normalization/moving_variance"] == "embedding.bn.running_var"


@pytest.mark.parametrize(
    "name, options",
    [
        ("tf_skresnet50d", {"use_se": True, "embedding_size": 6}),
        ("tf_blresnet50", {"use_resnet_d": True, "use_se": True}),
        ("assemble_resnet101", {}),
    ],
)
def test_every_tensor_comes_back(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    module, other = build(name, **options), build(name, seed=1, **options)
    slots = {"global_step": np.int64(7), "resnet_model/conv2d/kernel/Momentum": np.zeros(3, np.float32)}
    np.savez(tmp_path / "w.npz", **to_tf(module), **slots)
    weights = convert_tf_variables(other, read_tf_variables(tmp_path / "w.npz"), where="w.npz")
    own = {key: tensor for key, tensor in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[key], own[key]) for key in own)


def test_an_embedding_may_be_a_1x1_kernel() -> None:
    """The original makes it a convolution of the pooled map."""
    module = build(embedding_size=6)
    variables = {name.removeprefix("resnet_model/"): array for name, array in to_tf(module).items()}
    variables["embedding_dense/kernel"] = variables["embedding_dense/kernel"][None, None]
    weights = convert_tf_variables(module, variables, where="w.npz")
    assert torch.equal(weights["embedding.linear.weight"], module.embedding.linear.weight)


def test_what_does_not_fit_is_said_in_tensorflows_names() -> None:
    module = build()
    good = {name.removeprefix("resnet_model/"): array for name, array in to_tf(module).items()}
    cases = [
        ({**good, "extra/kernel": np.zeros(1)}, r"1 surplus \(extra/kernel\)"),
        ({k: v for k, v in good.items() if "dense/" not in k}, r"2 of 267 .*missing \(dense/kernel, dense/bias\)"),
        (
            {**good, "conv2d/kernel": np.zeros((3, 3, 3, 4))},
            r"conv2d/kernel \[3, 3, 3, 4\] instead of \[7, 7, 3, 4\]",
        ),
        ({**good, "dense/kernel": np.zeros((7, 5))}, r"dense/kernel \[7, 5\] instead of \[128, 5\]"),
    ]
    for variables, message in cases:
        with pytest.raises(ModelError, match=message) as caught:
            convert_tf_variables(module, variables, where="timm:tf_resnet50")
        assert "\n" not in str(caught.value) and str(caught.value).startswith("timm:tf_resnet50: ")
    with pytest.raises(ModelError, match="of teachonce; give safetensors"):
        convert_tf_variables(torch.nn.Linear(1, 1), good, where="timm:resnet18")


def test_files_that_hold_no_variables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_tf_variables(tmp_path / "missing.npz")
    with pytest.raises(ConfigError, match=r"model.ckpt-1.index is missing"):
        read_tf_variables(tmp_path / "model.ckpt-1")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ModelError, match=r"not an \.npz"):
        read_tf_variables(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", **{"resnet_model/a": np.array([{}], object)})
    with pytest.raises(ModelError, match=r"not an \.npz that holds only arrays"):
        read_tf_variables(tmp_path / "objects.npz")
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(ModelError, match="no variables below resnet_model/ among 1"):
        read_tf_variables(tmp_path / "other.npz")
    assert not is_tf_weights(tmp_path / "model.safetensors")


@pytest.mark.slow
def test_a_checkpoint_is_read_as_the_npz_is(tmp_path: Path, tensorflow: Any) -> None:
    arrays = to_tf(build())
    names = [*arrays, "global_step", "resnet_model/conv2d/kernel/Momentum"]
    tensors = [*map(tensorflow.constant, arrays.values()), tensorflow.constant(7), tensorflow.zeros(3)]
    prefix = tmp_path / "model.ckpt-500"
    tensorflow.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
    )
    np.savez(tmp_path / "w.npz", **arrays)
    expected = read_tf_variables(tmp_path / "w.npz")
    assert is_tf_weights(prefix)
    for path in (prefix, prefix.with_name("model.ckpt-500.index")):
        variables = read_tf_variables(path)
        assert variables.keys() == expected.keys()
        assert all(np.array_equal(variables[name], expected[name]) for name in expected)
    prefix.with_name("model.ckpt-500.index").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        read_tf_variables(prefix)


def test_without_tensorflow_a_checkpoint_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.ckpt-1.index").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'teachonce\[tensorflow\]'"):
        read_tf_variables(tmp_path / "model.ckpt-1")


def test_a_spec_loads_them_into_teacher_and_student(tmp_path: Path) -> None:
    module = build(num_filters=64, num_classes=7)
    path = tmp_path / "w.npz"
    np.savez(path, **to_tf(module))
    teacher = load_model(f"timm:tf_resnet50,weights={path},classes=7,size=64")
    assert teacher.num_classes == 7
    assert teacher.preprocessing.size_px == 64 and teacher.preprocessing.std == (1 / 255,) * 3
    images = torch.randn(1, 3, 64, 64)
    module.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(teacher.forward(images), module(images))
    with pytest.raises(ModelError, match="add classes=7"):
        load_model(f"timm:tf_resnet50,weights={path},size=64")
    with pytest.warns(UserWarning, match="the weights have 7 classes instead of 3"):
        student = build_student(f"timm:tf_resnet50,weights={path}", 3)
    assert torch.equal(student.stem.convs[0].weight, module.stem.convs[0].weight) and student.fc.out_features == 3
    with pytest.raises(ModelError, match=r"of another shape|missing"):
        build_student(f"timm:tf_resnet50d,weights={path}", 7)
    assert isinstance(build_student("timm:assemble_resnet50", 4), AssembledResNet)


@pytest.mark.parametrize(
    "name, words, options",
    [
        (
            "tf_resnet50",
            "anti_alias=proj/sconv,anti_alias_filter=5,global_pool=gem",
            {"anti_alias": ("proj", "sconv"), "anti_alias_filter": 5, "global_pool": "gem"},
        ),
        (
            "tf_resnet50",
            "use_se=1,embedding_size=12,use_last_downsample=0",
            {"use_se": True, "embedding_size": 12, "use_last_downsample": False},
        ),
        ("tf_resnet101", "big_little=1/2,use_sk=1", {"big_little": (1, 2), "use_sk": True}),
    ],
)
def test_a_spec_loads_checkpoints_of_networks_with_options(
    tmp_path: Path, name: str, words: str, options: dict[str, Any]
) -> None:
    module = build(name, **options)
    path = tmp_path / "w.npz"
    np.savez(path, **to_tf(module))
    teacher = load_model(f"timm:{name},weights={path},classes=5,size=64,num_filters=4,{words}")
    images = torch.randn(1, 3, 64, 64)
    module.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(teacher.forward(images), module(images))
