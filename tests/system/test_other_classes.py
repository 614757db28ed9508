"""A run, and the ONNX file exported from it, as teachers of other data than that of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teachonce.errors import ConfigError
from teachonce.evaluation.config import EvaluateConfig, ExportOnnxConfig
from teachonce.evaluation.evaluate import evaluate
from teachonce.evaluation.int8 import export_int8
from teachonce.evaluation.onnx_export import export_run
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.models.classifier import load_model
from teachonce.records.discovery import open_records
from teachonce.runs.run import Run
from teachonce.store.store import Store
from teachonce.training.config import TrainConfig
from teachonce.training.train import train
from tests.support.small_data import write_image_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(contradicts them more|holds it back|nearly one-hot).*:UserWarning"),
    pytest.mark.usefixtures("onnx_exports"),
    pytest.mark.xdist_group("onnx"),
]

Use = Callable[[str, Path, Path], Any]


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = {"epochs": 1, "batch_size": 32, "size": 16, "validation_split": None}
    train(TrainConfig(data=digits, student="timm:test_resnet", out=out, device="cpu", **settings))
    return out


@pytest.fixture(scope="module", params=["run", "onnx"])
def teacher(request: pytest.FixtureRequest, run: Path) -> str:
    if request.param == "run":
        return f"run:{run}"
    pytest.importorskip("onnxscript")
    file = run.with_name("student.onnx")
    export_run(run, "onnx", file)
    return f"onnx:{file}"


def use_extract(teacher: str, data: Path, out: Path) -> Any:
    return extract(ExtractConfig(data=data, teacher=teacher, out=out, gate_samples=0, device="cpu"))


def use_evaluate(teacher: str, data: Path, out: Path) -> Any:
    return evaluate(EvaluateConfig(data=data, split="train", model=teacher, device="cpu"))


def use_train(teacher: str, data: Path, out: Path) -> Any:
    settings = {"epochs": 1, "batch_size": 8, "size": 16, "validation_split": None}
    return train(TrainConfig(data=data, student="timm:test_resnet", teacher=teacher, out=out, device="cpu", **settings))


USES = pytest.mark.parametrize("use", [use_extract, use_evaluate, use_train])


@pytest.fixture(scope="module")
def renamed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same ten classes as the run's, under other names."""
    folder = tmp_path_factory.mktemp("renamed")
    for index, record in enumerate(open_records(digits, "train").iter_shard(0)):
        path = folder / "train" / "abcdefghij"[record.label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record.encoded)
    return folder


def test_the_names_go_along(teacher: str, run: Path) -> None:
    assert load_model(teacher).classes_hash == Run(run).classes_hash is not None


@USES
@pytest.mark.parametrize("num_classes", [6, 12])
def test_other_classes_are_refused(teacher: str, use: Use, num_classes: int, tmp_path: Path) -> None:
    data = write_image_folder(tmp_path / "data", num_classes=num_classes)
    message = rf"its 10 classes differ in names or order from the {num_classes} of the data"
    with pytest.raises(ConfigError, match=message):
        use(teacher, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@USES
def test_as_many_other_classes_are_refused(teacher: str, use: Use, renamed: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"its 10 classes differ in names or order from the .* of the data \(a, b, c, ...\); give a"
    ):
        use(teacher, renamed, tmp_path / "out")


def test_who_says_that_they_are_the_same_is_believed(teacher: str, digits: Path, renamed: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="--offset 0: the 10 classes .* they are assumed to be the same"):
        found = evaluate(EvaluateConfig(data=renamed, split="train", model=teacher, offset=0, device="cpu"))
    expected = use_evaluate(teacher, digits, tmp_path)
    assert found["top1"] == expected["top1"]
    settings = {"epochs": 1, "batch_size": 32, "size": 16, "validation_split": None, "teacher_offset": 0}
    with pytest.warns(UserWarning, match="--teacher-offset 0: the 10 classes"):
        train(
            TrainConfig(
                data=renamed,
                student="timm:test_resnet",
                teacher=teacher,
                out=tmp_path / "run",
                device="cpu",
                **settings,
            )
        )


@USES
def test_the_same_names_are_found_behind_a_background_class(
    teacher: str, use: Use, digits: Path, tmp_path: Path
) -> None:
    """The run's own offset is 0; in this data its class 0 is label 1."""
    data = tmp_path / "data"
    for path in sorted((digits / "train").rglob("*.png")):
        copy = data / "train" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    first = data / "train" / "!" / "first.png"
    first.parent.mkdir()
    first.write_bytes(next(iter(sorted((digits / "validation").rglob("*.png")))).read_bytes())
    result = use(teacher, data, tmp_path / "out")
    if use is use_evaluate:
        assert result["offset"] == 1
    elif use is use_extract:
        assert Store(tmp_path / "out").class_space.offset == 1
    else:
        assert json.loads((tmp_path / "out" / "config.json").read_text())["num_classes"] == 11


def test_int8_is_measured_on_the_runs_own_classes(run: Path, renamed: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    config = ExportOnnxConfig(
        run=run, out=tmp_path / "student.onnx", int8=True, data=renamed, split="train",
        validation_split="train",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="its 10 classes differ in names or order"):
        export_int8(config)
    assert not list(tmp_path.iterdir())
