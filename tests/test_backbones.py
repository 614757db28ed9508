"""The assembled ResNet: the original's logits and parameter counts, then every option by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from teachonce.backbone_weights import convert_tf_variables, read_tf_variables
from teachonce.backbones import AssembledResNet

REFERENCES = {"vanilla50": "tf_resnet50", "assemble50": "assemble_resnet50"}


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
