"""The gate's diagnosis: the mistake is named, whatever the other trials come to."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path

import onnx
import pytest
import torch

from teachonce.errors import CheckError
from teachonce.extraction.gate import Gate
from teachonce.models.classifier import Classifier, load_model
from teachonce.records.discovery import open_records
from teachonce.records.options import RecordOptions
from teachonce.records.sample import sample_locations
from tests.support.small_data import write_shards
from tests.support.small_models import COLORS, color_example, write_color_shards, write_color_teacher

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
    with pytest.raises(CheckError, match=r"a wrong mean/std \(ImageNet's mean and std: add ',mean=0.485"):
        check(build(tmp_path / "t.onnx"), data)


def test_unlabeled_records_are_no_part_of_the_sample(tmp_path, capsys):
    """Of TFRecords of others, whose labels are known when they are read."""
    payloads = [color_example(i, i % 4 if i % 5 == 0 else -1, COLORS[i % 4]) for i in range(100)]
    teacher = load_model(write_color_teacher(tmp_path / "t.onnx"))
    options = RecordOptions(label_feature="image/class/label")
    gate = Gate(num_samples=8, expect_top1=0.9, batch_size=8, seed=0, data=tmp_path)
    source = open_records(write_shards(tmp_path / "a", sizes=(100,), payloads=payloads), "train", options)
    assert gate.check(teacher, source, 0) == 1.0
    assert "gate: top-1 1.000 on 8 records" in capsys.readouterr().err
    payloads = [color_example(i, -1 if i else 0, COLORS[0]) for i in range(200)]
    source = open_records(write_shards(tmp_path / "b", sizes=(200,), payloads=payloads), "train", options)
    seed = next(seed for seed in range(99) if (0, 0) not in sample_locations(source, 16, seed))
    one = dataclasses.replace(gate, num_samples=1, seed=seed)
    assert source.labeled == "some" and math.isnan(one.check(teacher, source, 0))
    assert "gate: skipped, none of 16 sampled records has a label to score" in capsys.readouterr().err


def test_a_model_of_one_size_that_nothing_explains(tmp_path):
    teacher = load_model(fixed_onnx(tmp_path / "t.onnx"))
    same = dataclasses.replace(teacher, forward=lambda images: 0 * teacher.forward(images))
    with pytest.raises(
        CheckError, match=r"other sizes \(13 trials could not be run with this model\); none of them explains it"
    ):
        check(same, write_color_shards(tmp_path / "data"))


def test_what_is_better_and_not_yet_right_is_said_to_be_that(tmp_path):
    data = write_color_shards(tmp_path / "data")
    gate = Gate(num_samples=33, expect_top1=1.5, batch_size=8, seed=0, data=data)
    teacher = load_model(write_color_teacher(tmp_path / "t.onnx") + WRONG_PIXELS)
    with pytest.raises(CheckError, match=r"which gives 1\.000: nearer, but not yet what is expected; more than that"):
        gate.check(teacher, open_records(data, "train"), 1)


@pytest.mark.parametrize(
    ("options", "offset", "phrase"),
    [
        (WRONG_PIXELS, 1, r"a wrong mean/std \(ImageNet's mean and std: add ',mean=.*\) gives 1\.000"),
        ("", 2, r"labels shifted by one \(--offset 1\) gives 1\.000"),
        ("", 1, None),
    ],
)
def test_a_mediocre_teacher_that_another_setting_makes_a_good_one(
    tmp_path, options, offset, phrase, monkeypatch, capsys
):
    """Unasked: its owner may not know what it should reach."""
    data = write_color_shards(tmp_path / "data")
    gate = Gate(num_samples=33, expect_top1=None, batch_size=8, seed=0, data=data)
    teacher = load_model(write_color_teacher(tmp_path / "t.onnx") + options)
    monkeypatch.setattr("teachonce.extraction.gate.LOOK_BELOW", 0.99)
    monkeypatch.setattr("teachonce.extraction.gate.describe_low_top1", lambda *_: "")
    expected = warnings.catch_warnings() if phrase is None else pytest.warns(UserWarning, match=phrase)
    with expected:
        top1 = gate.check(teacher, open_records(data, "train"), offset)
    assert (top1 < 0.99) == (phrase is not None), capsys.readouterr().err
