"""Predictions: those of a direct call, in order, whatever else is in a folder; text, CSV and JSON say the same."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from teachonce.cli.main import main
from teachonce.errors import ConfigError
from teachonce.evaluation.config import EvaluateConfig, PredictConfig, PreprocessingPlace
from teachonce.evaluation.evaluate import evaluate
from teachonce.evaluation.image_files import ImageFiles
from teachonce.evaluation.predict import Prediction, _print_found, describe, predict, predict_images
from teachonce.models.classifier import load_model
from teachonce.records.class_table import ClassTable, write_classes
from teachonce.records.discovery import open_records
from teachonce.training.train import train
from tests.evaluation.test_onnx_export import write_run
from tests.support.small_data import encode_jpeg, write_as_folder
from tests.support.small_models import write_color_shards, write_color_teacher
from tests.training.test_train import config

pytestmark = [pytest.mark.usefixtures("onnx_exports"), pytest.mark.xdist_group("onnx")]


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predict") / "run"
    train(config(digits, out, epochs=2, validation_split=None))
    return out


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven images of several sizes, in two folders."""
    folder = tmp_path / "pictures"
    for index, (width, height) in enumerate([(40, 30), (30, 40), (64, 64), (200, 33), (33, 20), (17, 90), (40, 30)]):
        path = folder / ("ab" if index < 3 else "cd") / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(index, width, height))
    return folder


def run_words(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str], list[str]]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["predict", *map(str, words), "--device", "cpu"])
    shown = capsys.readouterr()
    return (
        int(str(end.value.code)),
        shown.out.splitlines(),
        [line for line in shown.err.splitlines() if line.startswith("teachonce: ")],
    )


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("num_threads", [0, 3])
def test_predictions_are_those_of_a_direct_call(run: Path, pictures: Path, batch_size: int, num_threads: int) -> None:
    classifier = load_model(f"run:{run}")
    files = ImageFiles([pictures])
    found = list(predict_images(classifier, files, top=3, batch_size=batch_size, num_threads=num_threads))
    paths = sorted(pictures.rglob("*.jpg"))
    assert [one.path for one in found] == list(map(str, paths))
    for one, path in zip(found, paths, strict=True):
        pixels = torch.from_numpy(classifier.preprocessing.apply(Image.open(path).convert("RGB")))
        probs = torch.softmax(classifier.logits(pixels[None])[0].double(), dim=0)
        expected = probs.topk(3)
        assert one.outputs == tuple(expected.indices.tolist())
        # Another batch size takes other kernels: float32's rounding of the logits.
        np.testing.assert_allclose(one.probs, expected.values, rtol=1e-4)


def test_text_csv_and_json_say_the_same(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, errors = run_words(capsys, run, pictures, "--top", 2)
    assert (code, len(lines), errors) == (0, 7, [])
    code, objects, _ = run_words(capsys, f"run:{run}", pictures, "--top", 2, "--json")
    found = [json.loads(line) for line in objects]
    code, shown, _ = run_words(capsys, run, pictures, "--top", 2, "--csv", tmp_path / "p.csv")
    assert (code, shown) == (0, [str(tmp_path / "p.csv")])
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "label", "class", "probability", "label_2", "class_2", "probability_2"]
    for line, one, row in zip(lines, found, rows, strict=True):
        first, second = one["top"]
        assert line == (
            f"{one['image']}: {first['class']} {first['probability']:.4f}, "
            f"{second['class']} {second['probability']:.4f}"
        )
        assert (row["image"], int(row["label"]), row["class"]) == (one["image"], first["label"], first["class"])
        assert float(row["probability_2"]) == second["probability"] <= first["probability"] <= 1
        assert first["class"] == str(first["label"]), "digits are called what they are"


def test_classes_are_called_as_evaluate_calls_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data with WordNet ids and texts: both commands show the texts."""
    data = write_color_shards(tmp_path / "data", sizes=(8,))
    texts = ("background", "crane", "crane", "eel, electric", "fox")
    write_classes(data, ClassTable(("background", "n1", "n2", "n3", "n4"), texts, has_background=True))
    train(config(data, tmp_path / "run", epochs=1, batch_size=8, validation_split=None, num_workers=1))
    evaluated = evaluate(EvaluateConfig(data=data, model=f"run:{tmp_path / 'run'}", split="train", device="cpu"))
    called = {entry["label"]: entry["name"] for entry in evaluated["classes"]}
    assert list(called.values()) == ["background", "crane (n1)", "crane (n2)", "eel, electric", "fox"]
    image = tmp_path / "image.jpg"
    image.write_bytes(encode_jpeg(1))
    _, objects, _ = run_words(capsys, tmp_path / "run", image, "--json", "--top", 9)
    predicted = {entry["label"]: entry["class"] for entry in json.loads(objects[0])["top"]}
    assert predicted == {label: called[label] for label in predicted} and len(predicted) >= 4


def test_both_at_once(run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = run_words(capsys, run, pictures, "--json", "--csv", tmp_path / "p.csv", "--top", 99)
    assert code == 0 and len(shown) == 7 and all(len(json.loads(line)["top"]) == 10 for line in shown)
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 8


def test_the_table_is_complete_though_nobody_reads_the_lines(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind `| head`."""

    def gone(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("teachonce.evaluation.predict.print_text", gone)
    with pytest.raises(BrokenPipeError):
        predict(PredictConfig(model=str(run), images=(pictures,), json=True, csv=tmp_path / "p.csv"))
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 8
    with pytest.raises(BrokenPipeError):
        predict(PredictConfig(model=str(run), images=(pictures,), json=True))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_odd_files_cost_their_own_result_alone(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], batch_size: int
) -> None:
    whole = run_words(capsys, run, pictures)[1]
    (pictures / "ab" / "0b.jpg").write_text("no image")
    (pictures / "cd" / "4b.png").write_bytes(encode_jpeg(3)[:300])
    (pictures / "cd" / "7.jpg").symlink_to(tmp_path / "gone.jpg")
    code, lines, errors = run_words(capsys, run, pictures, "--batch-size", batch_size)
    assert code == 1 and lines == whole
    *odd, last = errors
    assert [line.split(": ")[1] for line in odd] == [
        f"{pictures}/ab/0b.jpg",
        f"{pictures}/cd/4b.png",
        f"{pictures}/cd/7.jpg",
    ]
    assert last == (
        "teachonce: 3 images of 10 without a result, each named above; the results of the others are complete"
    )
    code, objects, _ = run_words(capsys, run, pictures, "--json", "--csv", tmp_path / "p.csv")
    found = [json.loads(line) for line in objects]
    assert code == 1 and [("error" in one, "top" in one) for one in found].count((True, False)) == 3
    assert [Path(one["image"]).name for one in found][:2] == ["0.jpg", "0b.jpg"], "in their places"
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 8
    # All of them.
    code, lines, errors = run_words(capsys, run, pictures / "ab" / "0b.jpg")
    assert code == 1 and lines == [] and len(errors) == 2


def test_logits_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = write_color_teacher(tmp_path / "teacher.onnx", nan_above=0.7)
    for index, color in enumerate([(20, 200, 20), (230, 20, 20), (20, 20, 230)]):
        Image.new("RGB", (20, 20), color).save(tmp_path / f"{index}.png")
    # Above 0.7, as a model that is NaN for the noise of ``load_model`` is refused there.
    code, lines, errors = run_words(capsys, teacher, *sorted(tmp_path.glob("*.png")), "--top", 1)
    assert code == 1 and [Path(line.split(": ")[0]).name for line in lines] == ["0.png", "2.png"]
    assert errors[0].startswith(f"teachonce: {tmp_path / '1.png'}: NaN or infinite logits of {teacher}")


def test_names_of_classes_or_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model without names says the data's labels, by its SPEC's offset where it has one."""
    teacher = write_color_teacher(tmp_path / "teacher.onnx")
    Image.new("RGB", (20, 20), (20, 20, 230)).save(tmp_path / "blue.png")
    for spec, label in ((teacher, 2), (f"{teacher},offset=1", 3)):
        _, (line,), _ = run_words(capsys, spec, tmp_path / "blue.png", "--top", 1)
        assert line.startswith(f"{tmp_path / 'blue.png'}: {label} 0.9")


def test_a_run_of_records_with_a_background_knows_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_color_shards(tmp_path / "data", sizes=(16,))
    out = tmp_path / "run"
    train(config(data, out, epochs=1, offset=1, validation_split=None, batch_size=8))
    images = write_as_folder(open_records(data, "train"), tmp_path / "images")
    _, lines, _ = run_words(capsys, out, images, "--json", "--top", 4)
    for line in lines:
        assert {(one["label"], one["class"]) for one in json.loads(line)["top"]} == {
            (label, f"class{label - 1}") for label in range(1, 5)
        }


def test_a_csv_that_exists_is_kept(run: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("mine")
    with pytest.raises(SystemExit) as end:
        main(["predict", str(run), str(pictures), "--csv", str(tmp_path / "p.csv")])
    assert end.value.code == 2 and (tmp_path / "p.csv").read_text() == "mine"
    with pytest.raises(SystemExit) as end:
        main(["predict", str(run), str(pictures), "--csv", str(tmp_path / "p.csv"), "--overwrite"])
    assert end.value.code == 0 and (tmp_path / "p.csv").read_text().startswith("image,")


def test_a_csv_that_another_makes_meanwhile_is_kept_and_said(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(*_: object, **__: object) -> Iterator[Prediction]:
        (tmp_path / "p.csv").write_text("another's")
        yield Prediction(path="a.jpg", outputs=(0,), probs=(1.0,))

    monkeypatch.setattr("teachonce.evaluation.predict.predict_images", say)
    with pytest.raises(ConfigError, match="another command made this file meanwhile"):
        predict(PredictConfig(model=str(run), images=(pictures,), csv=tmp_path / "p.csv", device="cpu"))
    assert (tmp_path / "p.csv").read_text() == "another's"
    with pytest.raises(ConfigError, match=r"p\.csv: exists"):
        predict(PredictConfig(model=str(run), images=(pictures,), csv=tmp_path / "p.csv", device="cpu"))


def test_a_line_has_all_classes_and_the_whole_path(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"class number {number}" for number in range(1000)]
    classifier = SimpleNamespace(class_name=names.__getitem__)
    path = "/".join(["folder" * 20] * 10) + "/a\nb.jpg"
    _print_found(Prediction(path=path, outputs=tuple(range(1000)), probs=(0.001,) * 1000), classifier)  # type: ignore[arg-type]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(path.replace("\n", "\\n") + ": class number 0 0.0010, ")
    assert line.endswith("class number 999 0.0010") and line.count("class number") == 1000


def test_names_that_are_no_text(run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file name may be any bytes; one given by name, or in a folder, is read, and shown with escapes."""
    odd = tmp_path / "caf\udce9\n.jpg"
    shutil.copy(pictures / "ab" / "0.jpg", odd)
    code, lines, errors = run_words(capsys, run, odd, "--top", 1)
    assert (code, len(lines), errors) == (0, 1, []) and "\\n.jpg: " in lines[0]
    code, _, _ = run_words(capsys, run, odd, "--json", "--csv", tmp_path / "p.csv")
    assert code == 0
    (row,) = csv.DictReader((tmp_path / "p.csv").read_text().splitlines(keepends=True))
    assert row["image"].endswith("caf\\udce9\n.jpg")
    whole = run_words(capsys, run, pictures)[1]
    odd.rename(pictures / "ab" / odd.name)
    code, lines, errors = run_words(capsys, run, pictures)
    assert (code, len(lines), errors) == (0, 8, [])
    (line,) = set(lines) - set(whole)
    assert line.startswith(f"{pictures}/ab/caf") and "\\n.jpg: " in line and set(whole) < set(lines)
    code, objects, _ = run_words(capsys, run, pictures, "--json")
    assert code == 0 and f"{pictures / 'ab' / odd.name}" in {json.loads(line)["image"] for line in objects}


def test_from_python(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = predict(PredictConfig(model=str(run), images=(pictures,), device="cpu"))
    assert (found.num_images, found.num_failed) == (7, 0)
    classifier = load_model(f"run:{run}")
    (one, *_) = predict_images(classifier, ImageFiles([pictures]), top=1)
    assert describe(one, classifier)["top"][0]["class"] == classifier.class_name(one.outputs[0])


def test_exported_files_say_the_same(run: Path, pictures: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("onnxscript")
    from teachonce.evaluation.onnx_export import export_run

    expected = [json.loads(line) for line in run_words(capsys, run, pictures, "--json")[1]]
    for place in get_args(PreprocessingPlace):
        export_run(run, "onnx", tmp_path / f"{place}.onnx", preprocessing=place)
        code, lines, _ = run_words(capsys, tmp_path / f"{place}.onnx", pictures, "--json")
        assert code == 0
        for line, one in zip(lines, expected, strict=True):
            found = json.loads(line)
            assert [top["class"] for top in found["top"]] == [top["class"] for top in one["top"]]
            probs = [top["probability"] for top in found["top"]]
            assert probs == pytest.approx([top["probability"] for top in one["top"]], rel=1e-4)


def test_a_run_of_an_older_version_has_no_names(tmp_path: Path, pictures: Path, capsys) -> None:
    old = write_run(tmp_path / "old")
    _, lines, _ = run_words(capsys, old, pictures, "--json", "--top", 99)
    assert {top["class"] for top in json.loads(lines[0])["top"]} == {"1", "2", "3", "4", "5"}, "its labels"
