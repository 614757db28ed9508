"""True float32: what is on inside, and that every setting is as before afterwards, whichever way it was made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from teachonce.models.classifier import load_model
from teachonce.models.true_float32 import true_float32
from tests.models.test_classifier import noise_pixels, resnet_spec, resnet_weights  # noqa: F401, a fixture


def read_settings() -> list[Any]:
    """Each setting, or that PyTorch finds it at odds with another one."""
    readers: list[Callable[[], Any]] = [
        lambda: torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        lambda: torch.backends.cudnn.conv.fp32_precision,
        lambda: torch.backends.cudnn.rnn.fp32_precision,
        lambda: torch.backends.cuda.matmul.fp32_precision,
        lambda: torch.backends.mkldnn.matmul.fp32_precision,
        lambda: torch.backends.mkldnn.conv.fp32_precision,
    ]
    found = []
    for read in readers:
        try:
            found.append(read())
        except (RuntimeError, AttributeError) as error:
            found.append(type(error).__name__)
    return found


def set_newer(owner: Any, name: str, value: str) -> None:
    try:
        getattr(owner, name).fp32_precision  # noqa: B018
    except AttributeError:
        pytest.skip("this PyTorch has the older settings alone")
    getattr(owner, name).fp32_precision = value


SETTINGS: dict[str, Callable[[], None]] = {
    "PyTorch's own": lambda: None,
    "products high": lambda: torch.set_float32_matmul_precision("high"),
    "products medium": lambda: torch.set_float32_matmul_precision("medium"),
    "convolutions exact": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "products, newer": lambda: set_newer(torch.backends.cuda, "matmul", "tf32"),
    "convolutions exact, newer": lambda: set_newer(torch.backends.cudnn, "conv", "ieee"),
}


@pytest.fixture(params=SETTINGS)
def setting(request: pytest.FixtureRequest) -> Iterator[None]:
    SETTINGS[request.param]()
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    if hasattr(torch.backends.cudnn, "conv"):
        torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "tf32"
        torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "ieee"


def assert_exact() -> None:
    if hasattr(torch.backends.cudnn, "conv"):
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.conv.fp32_precision == "ieee"
    else:
        assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"


def test_settings_are_as_before(setting: None) -> None:
    before = read_settings()
    with true_float32():
        assert_exact()
    assert read_settings() == before


def test_settings_are_as_before_after_an_error(setting: None) -> None:
    before = read_settings()
    with pytest.raises(ValueError, match="of a model"), true_float32():
        raise ValueError("of a model")
    assert read_settings() == before


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_teacher_is_asked_in_float32(resnet_weights, precision, monkeypatch) -> None:  # noqa: F811
    """Whatever the student's training has set, which stays."""
    classifier = load_model(resnet_spec(resnet_weights), precision=precision)
    asked = []

    def forward(images: torch.Tensor) -> torch.Tensor:
        assert_exact()
        asked.append(len(images))
        return images.mean((2, 3))

    torch.set_float32_matmul_precision("high")
    try:
        object.__setattr__(classifier, "forward", forward)
        classifier.logits(noise_pixels())
        assert torch.get_float32_matmul_precision() == "high" and asked == [3]
    finally:
        torch.set_float32_matmul_precision("highest")
