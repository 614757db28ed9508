"""Weights as people have them: old names, parts of larger checkpoints, other input sizes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from teachonce.errors import ConfigError, ModelError
from teachonce.models.classifier import build_student, load_model


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def noise_pixels(size_px: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).integers(0, 256, (2, size_px, size_px, 3), np.uint8))


def old_densenet_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As in the files that torchvision publishes: ``denselayer1.norm.1`` for its ``denselayer1.norm1``."""
    pattern = re.compile(r"(denselayer\d+\.(?:norm|conv))([12]\.)")
    return {pattern.sub(r"\1.\2", name): tensor for name, tensor in weights.items()}


def assert_same_logits(spec: str, module: nn.Module, size_px: int) -> None:
    classifier = load_model(spec)
    pixels = noise_pixels(size_px)
    own = classifier.module
    assert own is not None
    module.eval()
    for name, tensor in module.state_dict().items():
        assert torch.equal(own.state_dict()[name], tensor), name
    assert classifier.logits(pixels).shape == (2, classifier.num_classes)


def build_small_densenet(*, weights: None = None, num_classes: int) -> nn.Module:
    """torchvision's with two blocks of two layers."""
    return torchvision.models.DenseNet(
        growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=num_classes
    )


def build_small_vit(*, weights: None = None, num_classes: int, image_size: int) -> nn.Module:
    """torchvision's with two layers of 48, where vit_b_32 has twelve of 768: 88 million numbers."""
    return torchvision.models.VisionTransformer(
        image_size, patch_size=32, num_layers=2, num_heads=2, hidden_dim=48, mlp_dim=96, num_classes=num_classes
    )


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two in torchvision's registry, which asks for a module of its own and for the weights of the architecture."""
    for name, build, weights in (
        ("densenet_small", build_small_densenet, torchvision.models.DenseNet121_Weights),
        ("vit_small", build_small_vit, torchvision.models.ViT_B_32_Weights),
    ):
        monkeypatch.setattr(build, "__module__", "torchvision.models.small")
        monkeypatch.setitem(build.__annotations__, "weights", weights)
        monkeypatch.setitem(torchvision.models._api.BUILTIN_MODELS, name, build)


@pytest.mark.parametrize(
    "spec, build",
    [
        ("torchvision:densenet_small", build_small_densenet),
        # timm has no small one.
        ("timm:densenet121", torchvision.models.densenet121),
    ],
    ids=["torchvision", "timm"],
)
def test_densenet_as_torchvision_publishes_it(
    tmp_path: Path, spec: str, build: Callable[..., nn.Module], small_networks: None
) -> None:
    module = build(num_classes=5)
    weights = old_densenet_names(module.state_dict())
    assert "features.denseblock1.denselayer1.norm.1.weight" in weights
    # Files before PyTorch 0.4.1 have no counters.
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    save_file(weights, tmp_path / "w.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_logits(f"{spec},weights={tmp_path}/w.safetensors,classes=5,size=64", module, 64)


def test_our_default_densenet_teacher_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From torchvision's own cache, under the name that it looks for, with the names that the published file has."""
    module = torchvision.models.densenet121()
    name = torchvision.models.DenseNet121_Weights.DEFAULT.url.rpartition("/")[2]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(old_densenet_names(module.state_dict()), tmp_path / "hub" / "checkpoints" / name)
    assert_same_logits("torchvision:densenet121", module, 224)
    # Its own weights are of classes that it names, weights from elsewhere are not.
    teacher = load_model("torchvision:densenet121")
    assert teacher.class_names is not None and len(teacher.class_names) == 1000 and teacher.classes_hash is None
    assert (teacher.class_name(0), teacher.class_name(281)) == ("tench", "tabby")
    save_file(old_densenet_names(module.state_dict()), tmp_path / "w.safetensors")
    assert load_model(f"torchvision:densenet121,weights={tmp_path}/w.safetensors").class_name(281) == "281"


def test_old_names_of_torchvisions_vision_transformers(tmp_path: Path, small_networks: None) -> None:
    module = build_small_vit(num_classes=5, image_size=64)
    weights = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): tensor
        for name, tensor in module.state_dict().items()
    }
    save_file(weights, tmp_path / "w.safetensors")
    assert weights.keys() != module.state_dict().keys()
    assert_same_logits(f"torchvision:vit_small,weights={tmp_path}/w.safetensors,classes=5,size=64", module, 64)


@pytest.mark.parametrize("name", ["mnasnet0_5", "mnasnet1_0"])
def test_mnasnet_from_tensors_alone(tmp_path: Path, name: str) -> None:
    """Its own loading code asks for the layout's version, which safetensors do not carry."""
    module = torchvision.models.get_model(name, num_classes=5)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    assert_same_logits(f"torchvision:{name},weights={tmp_path}/w.safetensors,classes=5,size=64", module, 64)


def lightning_checkpoint(path: Path, parts: dict[str, nn.Module], beside: dict[str, torch.Tensor]) -> str:
    state = {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state | beside, "pytorch-lightning_version": "2"}, path)
    return f"torchvision:resnet18,weights={path},classes=5"


def test_a_lightning_checkpoint_with_its_loss_beside_the_model(tmp_path: Path) -> None:
    module = build_student("torchvision:resnet18", 5)
    beside = {"criterion.weight": torch.ones(5), "metric.count": torch.zeros(1)}
    spec = lightning_checkpoint(tmp_path / "last.ckpt", {"model": module}, beside)
    with pytest.warns(UserWarning, match=r"below 'model' are loaded, 2 others are ignored \(criterion.weight, metric"):
        assert_same_logits(spec, module, 64)
    # As a student with other classes too.
    with pytest.warns(UserWarning) as warned:
        student = build_student(f"torchvision:resnet18,weights={tmp_path}/last.ckpt", 7)
    assert [
        word in str(found.message) for word, found in zip(("others are ignored", "new last layer"), warned, strict=True)
    ] == [True] * 2
    assert torch.equal(student.state_dict()["conv1.weight"], module.state_dict()["conv1.weight"])


def test_a_part_further_down(tmp_path: Path) -> None:
    module = build_student("torchvision:resnet18", 5)
    spec = lightning_checkpoint(tmp_path / "w.ckpt", {"net.backbone": module}, {"criterion.weight": torch.ones(5)})
    with pytest.warns(UserWarning, match="below 'net.backbone' are loaded"):
        assert_same_logits(spec, module, 64)


def test_two_networks_in_one_file_are_not_guessed(tmp_path: Path) -> None:
    student, teacher = build_student("torchvision:resnet18", 5), build_student("torchvision:resnet18", 5)
    spec = lightning_checkpoint(tmp_path / "w.ckpt", {"student": student, "teacher": teacher}, {})
    with pytest.raises(
        ModelError, match=r"holds this architecture 2 times; choose one with part= \(student, teacher\)"
    ):
        load_model(spec)
    for part, module in (("student", student), ("teacher", teacher)):
        with pytest.warns(UserWarning, match=f"below '{part}' are loaded"):
            assert_same_logits(f"{spec},part={part}", module, 64)
    with pytest.raises(
        ConfigError, match=r"part=model: no tensor of the file has this prefix; there are student, teacher"
    ):
        load_model(f"{spec},part=model")


def test_another_architecture_within_a_part_is_refused(tmp_path: Path) -> None:
    module = build_student("torchvision:resnet34", 5)
    spec = lightning_checkpoint(tmp_path / "w.ckpt", {"model": module}, {"criterion.weight": torch.ones(5)})
    with (
        pytest.warns(UserWarning, match="are ignored"),
        pytest.raises(ModelError, match=r"96 unexpected \(layer1\.2\..*give the architecture they were trained with"),
    ):
        load_model(spec)


def vit(size_px: int) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=size_px)


@pytest.mark.parametrize("size_px", [96, 288])
def test_position_embeddings_are_resampled_as_timm_does(tmp_path: Path, size_px: int) -> None:
    module = vit(224)
    nn.init.normal_(module.get_parameter("pos_embed"))
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    # timm's own way from a file to a model of another size.
    expected = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=5,
        img_size=size_px,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "w.safetensors"), "num_classes": 5},
    )
    spec = f"timm:vit_tiny_patch16_224,weights={tmp_path}/w.safetensors"
    with pytest.warns(UserWarning, match=r"resampled as timm does, .*: pos_embed \[1, 197, 192\] to \[1, "):
        assert_same_logits(f"{spec},classes=5,size={size_px}", expected, size_px)
    with pytest.warns(UserWarning, match="resampled as timm does"):
        student = build_student(spec, 5, size_px=size_px)
    assert torch.equal(student.state_dict()["pos_embed"], expected.state_dict()["pos_embed"])


def test_position_embeddings_of_torchvision(tmp_path: Path, small_networks: None) -> None:
    module = build_small_vit(num_classes=5, image_size=224)
    nn.init.normal_(module.get_parameter("encoder.pos_embedding"))
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match=r"encoder.pos_embedding \[1, 50, 48\] to \[1, 26, 48\]"):
        classifier = load_model(f"torchvision:vit_small,weights={tmp_path}/w.safetensors,classes=5,size=160")
    assert classifier.module is not None
    found = classifier.module.state_dict()["encoder.pos_embedding"]
    old = load_file(tmp_path / "w.safetensors")["encoder.pos_embedding"]
    assert torch.equal(found[:, 0], old[:, 0]), "the class token has no place"
    grid = old[:, 1:].reshape(1, 7, 7, 48).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, size=(5, 5), mode="bicubic", antialias=True)
    assert torch.equal(found[:, 1:], resized.permute(0, 2, 3, 1).reshape(1, 25, 48))


def test_what_is_made_for_one_size_says_so(tmp_path: Path) -> None:
    """A mixer's layers over places, which no conversion knows: no advice of classes=."""
    module = timm.create_model("mixer_s32_224", num_classes=5)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="of another shape") as error:
        load_model(f"timm:mixer_s32_224,weights={tmp_path}/w.safetensors,classes=5,size=160")
    assert "classes=" not in str(error.value).partition("do not fit")[2]
    assert "give the size or architecture they were trained with" in str(error.value)
