"""The warning of an evaluation on images that a run was trained on."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from teachonce.evaluation.config import EvaluateConfig, ExportOnnxConfig
from teachonce.evaluation.evaluate import evaluate
from teachonce.evaluation.int8 import export_int8
from teachonce.models.classifier import build_student
from teachonce.pixels.preprocessing import Preprocessing
from tests.support.small_data import encode_jpeg, run_config

pytestmark = [pytest.mark.usefixtures("onnx_exports"), pytest.mark.xdist_group("onnx")]

PREPROCESSING = Preprocessing(size_px=32)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of two classes, in no splits."""
    data = tmp_path_factory.mktemp("data") / "pets"
    for number in range(60):
        path = data / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(number))
    return data


def write_run(path: Path, **settings: Any) -> Path:
    torch.manual_seed(0)
    path.mkdir()
    save_file(build_student("timm:test_resnet", 2).state_dict(), path / "student.safetensors")
    config = run_config("timm:test_resnet", PREPROCESSING, num_classes=2)
    (path / "config.json").write_text(json.dumps({**config, "data": "pets", **settings}))
    return path


def warned(run: Path, data: Path, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate(EvaluateConfig(data=data, model=f"run:{run}", **options))
    return [str(one.message) for one in caught if "trained on" in str(one.message)]


def test_another_part_is_said_with_the_runs_own_values(pets: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", val_fraction=0.25, val_seed=3)
    assert warned(run, pets, val_fraction=0.25, val_seed=3) == []
    own = "was trained on pets with --val-fraction 0.25 --val-seed 3, found"
    for options, found in (
        ({"val_fraction": 0.5, "val_seed": 3}, "--val-fraction 0.5 --val-seed 3"),
        ({"val_fraction": 0.25}, "--val-fraction 0.25 --val-seed 0"),
        ({"split": "train"}, "no --val-fraction"),
        ({"split": "Train"}, "no --val-fraction"),
    ):
        (line,) = warned(run, pets, **options)
        assert f"{own} {found}: " in line and "\n" not in line


def test_a_run_without_a_held_out_part_has_seen_all(pets: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (line,) = warned(run, pets, val_fraction=0.25)
    assert "with no --val-fraction, found --val-fraction 0.25 --val-seed 0: " in line
    assert warned(run, pets, split="train") == [], "who asks for the training images knows"


def test_a_split_of_its_own_is_none_of_it(pets: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", val_fraction=0.25, val_seed=0)
    for split in ("train", "validation", "test"):
        (tmp_path / "data" / split).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / split).symlink_to(pets)
    assert warned(run, tmp_path / "data") == []
    assert warned(run, tmp_path / "data", split="test") == []


@pytest.mark.slow
def test_the_comparison_of_an_export_says_it_too(pets: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run = write_run(tmp_path / "run", val_fraction=0.25, val_seed=0)
    with pytest.warns(UserWarning, match=r"with --val-fraction 0\.25 --val-seed 0, found --val-fraction 0\.5"):
        export_int8(
            ExportOnnxConfig(
                run=run, out=tmp_path / "s.onnx", int8=True, data=pets, val_fraction=0.5, calibration_images=8
            )
        )
