"""The gate's diagnosis: the mistake is named, whatever the other trials come to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch

from teachonce.errors import CheckError
from teachonce.extraction.gate import Gate
from teachonce.models.classifier import Classifier, load_model
from teachonce.records.discovery import open_records
from tests.support.small_models import write_color_shards, write_color_teacher

WRONG_PIXELS = ",mean=0.5,std=2.5"


def fixed_onnx(path: Path) -> str:
    """The color teacher as a file for 16 x 16 pixels alone, as most exports are."""
    spec = write_color_teacher(path)
    model = onnx.load(path)
    for axis in (2, 3):
        dimension = model.graph.input[0].type.tensor_type.shape.dim[axis]
        dimension.Clear()
        dimension.dim_value = 16
    onnx.save(model, path)
    return spec


class OneSize(torch.nn.Module):
    """What vision transformers do at another size: assert, which is no RuntimeError."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        torch._assert(images.shape[-1] == 16, f"Input height ({images.shape[-1]}) doesn't match model (16).")
        return self.answer(images)


def asserting(path: Path) -> Classifier:
    teacher = load_model(write_color_teacher(path) + WRONG_PIXELS)
    return dataclasses.replace(teacher, forward=OneSize(teacher.forward))


def check(teacher: Classifier, data: Path, offset: int = 1) -> float:
    gate = Gate(num_samples=33, expect_top1=0.9, batch_size=8, seed=0, data=data)
    return gate.check(teacher, open_records(data, "train"), offset)


@pytest.mark.parametrize(
    "build", [lambda path: load_model(fixed_onnx(path) + WRONG_PIXELS), asserting], ids=["onnx", "assert"]
)
def test_a_model_of_one_size_is_diagnosed_all_the_same(tmp_path, build):
    data = write_color_shards(tmp_path / "data")
    with pytest.raises(CheckError, match=r"a wrong mean/std \(ImageNet's mean and std match: add ',mean=0.485"):
        check(build(tmp_path / "t.onnx"), data)


def test_a_model_of_one_size_that_nothing_explains(tmp_path):
    teacher = load_model(fixed_onnx(tmp_path / "t.onnx"))
    same = dataclasses.replace(teacher, forward=lambda images: 0 * teacher.forward(images))
    with pytest.raises(
        CheckError, match=r"other sizes \(13 trials could not be run with this model\); none of them explains it"
    ):
        check(same, write_color_shards(tmp_path / "data"))
