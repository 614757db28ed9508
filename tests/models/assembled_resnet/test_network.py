"""The assembled ResNet: the original's logits and parameter counts, then every option by itself."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from teachonce.errors import ConfigError
from teachonce.models.assembled_resnet.blocks import BigLittleStage
from teachonce.models.assembled_resnet.layers import DropBlock
from teachonce.models.assembled_resnet.network import AssembledResNet
from teachonce.models.assembled_resnet.options import BackboneOptions
from teachonce.models.assembled_resnet.registry import register_models
from teachonce.models.assembled_resnet.tf_weights import convert_tf_variables, read_tf_variables

REFERENCES = {"vanilla50": "tf_resnet50", "assemble50": "assemble_resnet50"}

register_models()


def build(
    name: str = "tf_resnet50", *, num_filters: int = 8, num_classes: int = 5, **options: object
) -> AssembledResNet:
    torch.manual_seed(0)
    return timm.create_model(name, num_filters=num_filters, num_classes=num_classes, **options)


@pytest.mark.parametrize("reference, name", REFERENCES.items())
def test_logits_are_the_originals(shared_data: Path, reference: str, name: str) -> None:
    path = shared_data / "reference" / f"{reference}.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    module = build(name, num_classes=11).eval()
    weights = convert_tf_variables(module, read_tf_variables(path), where=str(path))
    module.load_state_dict(weights, strict=False)
    with np.load(path) as file:
        images, expected = torch.from_numpy(file["input_nhwc"]).permute(0, 3, 1, 2), torch.from_numpy(file["logits"])
    with torch.inference_mode():
        logits = module(images)
    # float32 through 50 layers; measured 5e-6 and 6e-5 element by element, where sums are taken in another order.
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "name, num_parameters",
    [
        ("tf_resnet50", 25_559_081),
        ("tf_resnet50d", 25_578_313),
        ("tf_seresnet50", 28_074_025),
        ("tf_skresnet50", 38_773_865),
        ("tf_skresnet50d", 38_793_097),
        ("tf_blresnet50", 28_405_673),
        ("assemble_resnet50", 41_848_489),
        ("assemble_resnet152", 117_006_249),
    ],
)
def test_parameters_are_as_many_as_the_papers(name: str, num_parameters: int) -> None:
    """1001 classes, as registered; without memory, so that the large ones are quick."""
    with torch.device("meta"):
        module = timm.create_model(name)
    assert sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad) == num_parameters
    assert module.num_classes == 1001


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "resnet_d": {"use_resnet_d": True},
    "se": {"use_se": True},
    "sk": {"use_sk": True},
    "big_little": {"big_little": (2, 4)},
    "wide_big_little": {"big_little": (1, 2)},
    "sconv": {"anti_alias": ("sconv",)},
    "proj": {"anti_alias": ("proj",), "anti_alias_filter": 4},
    "drop_block": {"drop_block_keep": (0.9, 0.8)},
    "zero_gamma": {"zero_gamma": True},
    "gem": {"global_pool": "gem"},
    "embedding": {"embedding_size": 12},
    "no_last_downsample": {"use_last_downsample": False},
    "all": {
        "use_resnet_d": True,
        "use_se": True,
        "use_sk": True,
        "big_little": (2, 4),
        "anti_alias": ("sconv",),
        "anti_alias_filter": 5,
        "drop_block_keep": (1.0, 0.9),
        "zero_gamma": True,
        "global_pool": "gem",
        "embedding_size": 12,
        "use_last_downsample": False,
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_trains_all_its_parameters(options: dict[str, Any]) -> None:
    module = build(**options).train()
    if options.get("zero_gamma"):
        for name, parameter in module.named_parameters():
            if name.endswith("conv3.bn.weight"):
                assert not parameter.any()
                torch.nn.init.ones_(parameter)  # behind a 0 no gradient arrives
    module.set_progress(1.0)
    logits = module(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 5) and logits.isfinite().all()
    logits.square().sum().backward()
    dead = [name for name, parameter in module.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not dead


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_features_have_the_announced_size(options: dict[str, Any]) -> None:
    module = build(**options).eval()
    info = module.feature_info[-1]
    with torch.inference_mode():
        features = module.forward_features(torch.randn(1, 3, 64, 64))
        assert features.shape == (1, info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])
        assert module.forward_head(features, pre_logits=True).shape == (1, module.num_features)
        assert module(torch.randn(1, 3, 90, 75)).isfinite().all(), "sizes need not be multiples of 32"


@pytest.mark.parametrize("name", ["tf_skresnet50d", "assemble_resnet50"])
def test_channels_last_gives_the_same_logits(name: str) -> None:
    module, images = build(name).eval(), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = module(images)
        module.to(memory_format=torch.channels_last)
        features = module.forward_features(images.contiguous(memory_format=torch.channels_last))
        # Big-Little, selective kernels and blur must not turn the layout back on the way.
        assert features.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(module.forward_head(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_dynamo_takes_the_network_whole_and_once_for_all_progress() -> None:
    module, images = build("assemble_resnet50", num_filters=4), torch.randn(2, 3, 64, 64)
    graphs: list[Any] = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(module, backend=count, fullgraph=True)
    with torch.no_grad():
        module.eval()
        assert torch.equal(compiled(images), module(images))
        module.train()
        for frac in (0.0, 0.3, 0.7, 1.0):
            module.set_progress(frac)
            compiled(images)
    assert len(graphs) == 2, "one for evaluation, one for training"


@pytest.mark.slow
def test_compiled_code_gives_the_same_logits() -> None:
    """One stage with everything in it; the whole network takes the compiler minutes and no other operations."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    torch.manual_seed(0)
    options = BackboneOptions(num_filters=8, big_little=(2, 4), use_sk=True, use_se=True, anti_alias=("sconv",))
    stage = BigLittleStage(8, 8, 2, 2, options, DropBlock(1.0)).eval()
    images = torch.randn(2, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(stage)(images), stage(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_resnet50d", "assemble_resnet50"])
def test_onnx_gives_the_same_logits(name: str) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    module, images = build(name).eval(), torch.randn(3, 3, 64, 64)
    program = torch.onnx.export(
        module,
        (images[:2],),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = module(images).numpy()
    (logits,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_progress_lowers_the_probability_to_keep_linearly() -> None:
    module = build("assemble_resnet50").train()
    drops = [layer for layer in module.modules() if isinstance(layer, DropBlock)]
    assert [(layer.gamma_scale, layer.block_px) for layer in drops] == [(0.25, 7), (1.0, 7)]
    for frac, drop_prob in [(0.0, 0.0), (0.25, 0.025), (1.0, 0.1), (1.5, 0.1)]:
        module.set_progress(frac)
        assert [layer.drop_prob.item() for layer in drops] == pytest.approx([drop_prob] * 2)
    # The first two stages drop nothing.
    owners = [name for name, layer in module.named_modules(remove_duplicate=False) if isinstance(layer, DropBlock)]
    assert owners and all(name.startswith(("stages.2.", "stages.3.")) for name in owners)
    plain = build()
    plain.set_progress(0.5)
    assert not any(isinstance(layer, DropBlock) for layer in plain.modules())


def test_weights_start_as_the_originals_do() -> None:
    module = build(num_filters=32, zero_gamma=True)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.weight.numel() > 10_000:
            fan_in = layer.weight[0].numel()
            # 10,000 draws: the deviation is known to 1 %, and 4 of those are allowed.
            assert layer.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.04)
            assert layer.weight.abs().max() < 2.3 * fan_in**-0.5, "a normal cut at two deviations"
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert layer.eps == 1e-5 and layer.momentum == pytest.approx(0.003)
    zeros = [name for name, tensor in module.named_parameters() if name.endswith("bn.weight") and not tensor.any()]
    assert len(zeros) == 16 and all(name.endswith("conv3.bn.weight") for name in zeros)
    assert not module.fc.bias.any()


def test_the_classifier_can_be_replaced() -> None:
    module = build(embedding_size=12).eval()
    module.reset_classifier(3)
    assert module(torch.randn(1, 3, 64, 64)).shape == (1, 3) and module.get_classifier() is module.fc
    module.reset_classifier(0)
    assert module(torch.randn(1, 3, 64, 64)).shape == (1, 12)
    with pytest.raises(ConfigError, match="create the network with that option"):
        module.reset_classifier(3, "gem")
