"""Where the walkthrough's teachers come from without ``weights=``: a folder, TensorFlow Hub's cache, timm, one line."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from teachonce.errors import ConfigError
from teachonce.models.classifier import load_model
from teachonce.models.spec import parse_model_spec
from teachonce.models.walkthrough_weights import HUB_MODULES, find_savedmodel
from teachonce.pixels.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

AMOEBANET, EFFICIENTNET = parse_model_spec("amoebanet"), parse_model_spec("efficientnet")


def write_stand_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"")
    return folder


@pytest.fixture(autouse=True)
def nothing_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHONCE_SAVEDMODELS", raising=False)
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setitem(sys.modules, "tensorflow_hub", None)


def test_tensorflow_hubs_cache_is_found_without_tensorflow_hub(tmp_path: Path) -> None:
    handle = HUB_MODULES["amoebanet"]
    assert handle.endswith("google/imagenet/amoebanet_a_n18_f448/classification/1")
    folder = write_stand_in(tmp_path / "hub" / hashlib.sha1(handle.encode()).hexdigest())
    assert find_savedmodel(AMOEBANET) == folder


def test_the_resolver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name that answers as the real one does where it has fetched a module, or fails."""
    monkeypatch.delitem(sys.modules, "tensorflow_hub")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    package = tmp_path / "packages" / "tensorflow_hub.py"
    package.parent.mkdir()
    package.write_text(f"def resolve(handle):\n    return {str(tmp_path)!r} + '/' + handle.split('/')[5]\n")
    assert find_savedmodel(AMOEBANET) == tmp_path / "amoebanet_a_n18_f448"
    monkeypatch.delitem(sys.modules, "tensorflow_hub")
    package.write_text("def resolve(handle):\n    raise OSError('no route to host')  # a longer file than before\n")
    with pytest.raises(ConfigError, match=r"cannot be downloaded \(https.*no route to host\); give weights=DIR"):
        find_savedmodel(AMOEBANET)


def test_a_folder_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stand_in(tmp_path / "hub" / hashlib.sha1(HUB_MODULES["amoebanet"].encode()).hexdigest())
    monkeypatch.setenv("TEACHONCE_SAVEDMODELS", str(tmp_path / "models"))
    amoebanet = write_stand_in(tmp_path / "models" / "amoebanet")
    assert find_savedmodel(AMOEBANET) == amoebanet
    # What is not in it comes from where it would without it.
    assert find_savedmodel(EFFICIENTNET) is None
    assert find_savedmodel(EFFICIENTNET) != write_stand_in(tmp_path / "models" / "efficientnet")
    assert find_savedmodel(EFFICIENTNET) == tmp_path / "models" / "efficientnet"


@pytest.mark.parametrize("name", ["amoebanet", "efficientnet"])
def test_without_a_network_one_line_says_what_to_give(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_model(name)
    assert f"model '{name}': its weights cannot be downloaded (" in str(error.value)
    assert "give weights=DIR (the walkthrough's scripts: --saved_model=DIR)" in str(error.value)
    assert f"TEACHONCE_SAVEDMODELS=FOLDER with {name}/ in it" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_options_of_a_savedmodel_are_refused_for_timms_network() -> None:
    with pytest.raises(ConfigError, match="signature= is for a SavedModel or an ONNX file"):
        load_model("efficientnet,signature=x")


@pytest.mark.slow
def test_efficientnet_is_timms_network_under_the_walkthroughs_pixels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_b7", num_classes=1000).eval()
    save_file(network.state_dict(), tmp_path / "b7.safetensors")
    classifier = load_model(f"efficientnet,weights={tmp_path / 'b7.safetensors'},size=64")
    assert (classifier.num_classes, classifier.default_offset) == (1000, 1)
    assert classifier.preprocessing == Preprocessing(
        size_px=64,
        geometry="central",
        crop_frac=0.875,
        interpolation="tf1_bilinear",
        antialias=False,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    images = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(
        IMAGENET_STD
    )[:, None, None]
    with torch.inference_mode():
        torch.testing.assert_close(classifier.logits(pixels), network(images), rtol=1e-4, atol=1e-4)
