"""The three commands of export: each writes its product, and says which other one is for what it was given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from teachonce.cli.main import main
from teachonce.errors import ConfigError
from teachonce.interop.config import ExportLogitsConfig
from tests.evaluation.test_onnx_export import write_run
from tests.support.small_data import write_shards, write_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_run(folder / "run")
    write_store(folder / "store", write_shards(folder / "data"))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(line.split())
    shown = capsys.readouterr()
    return end.value.code, shown.out, shown.err  # type: ignore[return-value]


def test_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "export-weights run --out a.safetensors")[:2] == (0, "a.safetensors\n")
    assert load_file(folder / "a.safetensors").keys() == load_file(folder / "run" / "student.safetensors").keys()


@pytest.mark.usefixtures("onnx_exports")
@pytest.mark.xdist_group("onnx")
def test_onnx(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    assert run(capsys, "export-onnx run --out a.onnx")[:2] == (0, "a.onnx\n")
    assert (folder / "a.onnx").stat().st_size > 1000


def test_the_labels_beside_are_named_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = folder / "run" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "class_names": ["cat", "dog"]}))
    assert run(capsys, "export-weights run --out b/a.safetensors")[:2] == (0, "b/a.safetensors\nb/labels.txt\n")


def test_logits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "export-logits store --out csv --format csv --csv-files 2")
    assert (code, out) == (0, "csv/train-0.csv\ncsv/train-1.csv\n")
    code, out, _ = run(capsys, "export-logits store --out parquet")
    assert code == 0 and out.splitlines() == [f"parquet/train-0000{i}-of-00002.parquet" for i in range(2)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("export-onnx store --out a", "store: is a store, expected a run; use export-logits for stores"),
        ("export-weights store --out a", "store: is a store, expected a run; use export-logits for stores"),
        (
            "export-logits run --out a",
            "run: is not a store; export-logits exports the logits of stores, export-onnx and",
        ),
    ],
)
def test_the_wrong_kind(folder: Path, capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    code, _, err = run(capsys, line)
    assert code == 2 and message in err and not (folder / "a").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"csv_files": 2}, "--csv-files 2: applies only with --format csv, found --format parquet"),
        ({"background_logit": 0.0}, "--background-logit 0.0: applies only with --format csv"),
        ({"format": "csv", "top": 3}, "--top 3: applies only with --format parquet, found --format csv"),
        ({"top": 0}, "--top 0: expected at least 1"),
    ],
)
def test_options_of_the_other_format(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportLogitsConfig(store=Path("s"), out=Path("o"), **options)
