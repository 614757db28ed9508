"""Evaluation: the numbers of a plain loop, in the class space of the data."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from teachonce.cli.main import main
from teachonce.data.dataset import EvalDataset
from teachonce.errors import ConfigError, ImageError, LogitsError, RecordError, StoreError
from teachonce.evaluation.compared_records import MAX_VIEWS, ComparedRecords, StoredTeacher
from teachonce.evaluation.config import EvaluateConfig
from teachonce.evaluation.evaluate import evaluate, evaluate_model, to_probabilities
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.models.classifier import Classifier, load_model
from teachonce.pixels.decode import decode_image
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.records.class_space import ClassSpace
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource
from teachonce.records.tfrecord.tf_example import encode_example
from teachonce.store.store import Store
from tests.support.small_data import write_as_folder, write_shards
from tests.support.small_models import COLORS, color_example, write_color_shards, write_color_teacher

pytest.importorskip("onnxruntime")

NUM_RECORDS = 33


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher that confuses two of its four classes."""
    return write_color_teacher(tmp_path_factory.mktemp("teacher") / "teacher.onnx", order=[1, 0, 2, 3])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 records in two shards, labels 1..4 of five classes, background first."""
    return write_color_shards(tmp_path_factory.mktemp("data") / "records", split="validation")


def plain_numbers(classifier: Classifier, source: RecordSource, offset: int, k: int) -> dict[str, float]:
    """The same by a loop over single records: accuracies by sorting, ECE by its definition."""
    hits, hits_k, confidences = [], [], []
    for shard in range(len(source.shards)):
        for record in source.iter_shard(shard):
            pixels = classifier.preprocessing.apply(decode_image(record.encoded))
            probs = classifier.logits(torch.from_numpy(pixels)[None]).softmax(dim=1)[0].numpy()
            order = np.argsort(-probs) + offset
            hits.append(order[0] == record.label)
            hits_k.append(record.label in order[:k])
            confidences.append(probs.max())
    right, confidence = np.array(hits), np.array(confidences)
    ece = 0.0
    for lower in np.arange(15) / 15:
        inside = (confidence > lower) & (confidence <= lower + 1 / 15)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return {"top1": right.mean(), "top5": np.mean(hits_k), "ece": ece}


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_numbers_are_those_of_a_plain_loop(teacher: str, data: Path, batch_size: int) -> None:
    classifier = load_model(teacher)
    source = open_records(data, "validation")
    expected = plain_numbers(classifier, source, 1, 4)
    assert 0.4 < expected["top1"] < 0.6 and expected["ece"] > 0.1
    done: list[int] = []
    found = evaluate_model(classifier, source, 1, batch_size=batch_size, advance=done.append)
    assert found.num_records == sum(done) == NUM_RECORDS
    # Means of 33 float32 numbers in 0..1, added in another order: 33 * 2^-24.
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=33 * 2**-24)


def test_the_largest_logit_has_the_largest_probability() -> None:
    """In float32 both of these have one probability, and a model did not agree with itself."""
    logits = torch.tensor([[0.25, np.nextafter(np.float32(0.25), np.float32(1)), -3.0], [0.25, 0.25, -30.0]])
    assert torch.equal(to_probabilities(logits).argmax(dim=1), logits.argmax(dim=1))
    assert torch.softmax(logits, dim=1)[0].argmax() != logits[0].argmax()


def test_entry_resolves_split_and_offset(teacher: str, data: Path) -> None:
    result = evaluate(EvaluateConfig(data=data, model=teacher, batch_size=16))
    assert (result["offset"], result["split"], result["model"]) == (1, "validation", teacher)
    assert 0.4 < result["top1"] < 0.6 and result["num_records"] == NUM_RECORDS and result["images_per_second"] > 0
    assert result["top5"] == 1.0, "four classes are all in the top 5"
    assert result["top1"] == round(result["top1"] * NUM_RECORDS) / NUM_RECORDS, "not a float32"
    assert evaluate(EvaluateConfig(data=data, model=teacher, split="val"))["split"] == "val"
    shifted = evaluate(EvaluateConfig(data=data, model=teacher, offset=0))
    assert shifted["top1"] != result["top1"] and shifted["offset"] == 0


def test_spec_offset_is_used_unless_another_is_given(teacher: str, data: Path) -> None:
    assert evaluate(EvaluateConfig(data=data, model=f"{teacher},offset=0"))["offset"] == 0
    assert evaluate(EvaluateConfig(data=data, model=f"{teacher},offset=0", offset=1))["offset"] == 1


def test_class_that_the_model_does_not_know_counts_as_wrong(teacher: str, tmp_path: Path) -> None:
    # Ten classes in the data, of which the model knows the labels 1 to 4; half of the records are of the others.
    payloads = [color_example(i, 1 + i % 8, COLORS[[1, 0, 2, 3][i % 4]]) for i in range(16)]
    folder = write_shards(tmp_path / "records", sizes=(16,), split="validation", num_classes=10, payloads=payloads)
    result = evaluate(EvaluateConfig(data=folder, model=teacher, offset=1))
    assert result["top1"] == 0.5 and result["top5"] == 0.5


def test_classes_that_cannot_be_aligned(teacher: str, tmp_path: Path) -> None:
    payloads = [color_example(0, 1, COLORS[0])]
    folder = write_shards(tmp_path / "records", sizes=(1,), split="validation", num_classes=10, payloads=payloads)
    with pytest.raises(ConfigError, match="has 4 classes, the data 10"):
        evaluate(EvaluateConfig(data=folder, model=teacher))
    with pytest.raises(ConfigError, match="without a common class"):
        evaluate(EvaluateConfig(data=folder, model=teacher, offset=10))


def test_foreign_records_without_a_class_table(teacher: str, data: Path, tmp_path: Path) -> None:
    for path in data.glob("validation-*-of-*"):
        if not path.name.endswith(".idx"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    advice = "if labels count from 1, give --label-offset -1, else an --offset that fits the data"
    with pytest.raises(RecordError, match=rf"record \d+ .*label 4, expected 0 to 3; {advice}"):
        evaluate(EvaluateConfig(data=tmp_path, model=teacher, offset=0))
    with pytest.raises(ConfigError, match=r"the number of classes is unknown .*: give --offset, the data label"):
        evaluate(EvaluateConfig(data=tmp_path, model=teacher))
    with pytest.raises(ConfigError, match="give offset= in its SPEC"):
        evaluate(EvaluateConfig(data=tmp_path, model=teacher, offset=1, against=teacher))
    own = evaluate(EvaluateConfig(data=data, model=teacher))
    foreign = evaluate(EvaluateConfig(data=tmp_path, model=teacher, offset=1))
    assert foreign["top1"] == own["top1"] and foreign["ece"] == pytest.approx(own["ece"])


def test_folder_of_images(teacher: str, tmp_path: Path) -> None:
    for index, name in enumerate("abcd"):
        folder = tmp_path / "validation" / name
        folder.mkdir(parents=True)
        color = (COLORS[[1, 0, 2, 3][index]] * 255).astype(np.uint8)
        Image.new("RGB", (30, 20), tuple(int(value) for value in color)).save(folder / "image.png")
    result = evaluate(EvaluateConfig(data=tmp_path, model=teacher))
    assert (result["top1"], result["num_records"], result["offset"]) == (1.0, 4, 0)


def broken_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200)).save(buffer, "JPEG")
    return buffer.getvalue()[:-300]


@pytest.mark.parametrize("encoded", [broken_jpeg(), b"text"], ids=["truncated", "text"])
def test_damaged_image_is_named(teacher: str, tmp_path: Path, encoded: bytes) -> None:
    broken: Any = {"image/encoded": encoded, "image/class/label": 1, "image/filename": b"broken.jpg"}
    payloads = [color_example(i, 1, COLORS[0]) for i in range(5)]
    payloads.insert(3, encode_example(broken))
    folder = write_shards(tmp_path / "records", sizes=(6,), split="validation", num_classes=5, payloads=payloads)
    with pytest.raises(ImageError, match=r"validation-00000-of-00001 record 3 "):
        evaluate(EvaluateConfig(data=folder, model=teacher, batch_size=2))


def test_nan_is_named(data: Path, tmp_path: Path) -> None:
    spec = write_color_teacher(tmp_path / "nan.onnx", nan_above=0.8)
    with pytest.raises(LogitsError, match=r"validation-00000-of-00002 record 0 .*NaN or infinite logits"):
        evaluate(EvaluateConfig(data=data, model=spec, batch_size=4))


def test_classes_and_confusions_are_those_of_the_data(teacher: str, data: Path) -> None:
    """The teacher takes colors 0 and 1, labels 1 and 2, for each other."""
    result = evaluate(EvaluateConfig(data=data, model=teacher))
    shown = [(row["name"], row["count"], row["correct"], row["wrong_name"]) for row in result["classes"]]
    assert shown == [
        ("background", 0, 0, None),
        ("class0", 9, 0, "class1"),
        ("class1", 8, 0, "class0"),
        ("class2", 8, 8, None),
        ("class3", 8, 8, None),
    ]
    assert [(pair["name"], pair["choice_name"], pair["count"]) for pair in result["confusions"]] == [
        ("class0", "class1", 9), ("class1", "class0", 8),
    ]  # fmt: skip
    assert result["balanced_accuracy"] == 0.5


def test_a_second_model_runs_on_the_same_images(teacher: str, right: str, data: Path) -> None:
    alone = [evaluate(EvaluateConfig(data=data, model=model)) for model in (teacher, right)]
    both = evaluate(EvaluateConfig(data=data, model=teacher, against=right))
    for name in ("top1", "ece", "classes", "confusions"):
        assert both[name] == alone[0][name]
    assert both["against"]["model"] == right
    # One is a mean in float32.
    assert both["against"]["top1"] == pytest.approx(alone[1]["top1"], abs=2**-24)
    swapped = evaluate(EvaluateConfig(data=data, model=right, against=teacher))["against"]
    assert swapped["difference"]["value"] == -both["against"]["difference"]["value"] == pytest.approx(17 / 33)


def test_each_model_sees_its_own_pixels(data: Path) -> None:
    source, space = open_records(data, "validation"), ClassSpace(num_classes=5)
    seen = [
        Preprocessing(size_px=16, resize_px=16),
        Preprocessing(size_px=8, resize_px=11, interpolation="bicubic"),
        Preprocessing(size_px=16, resize_px=16),
        Preprocessing(size_px=16, resize_px=16, antialias=False),
    ]
    items = [(index, 0) for index in (3, 30, 8)]
    dataset = ComparedRecords(source, seen, space)
    batch = dataset.__getitems__(items)
    for number, preprocessing in enumerate(seen):
        alone = EvalDataset(source, preprocessing, space).__getitems__(items)
        assert torch.equal(batch[dataset.pixels_names[number]], alone["pixels"])
        assert torch.equal(batch["labels"], alone["labels"]) and torch.equal(batch["indices"], alone["indices"])


def test_a_second_models_classes_are_aligned_by_its_spec(teacher: str, data: Path) -> None:
    shifted = evaluate(EvaluateConfig(data=data, model=teacher, against=f"{teacher},offset=0"))["against"]
    alone = evaluate(EvaluateConfig(data=data, model=teacher, offset=0))
    assert shifted["top1"] == pytest.approx(alone["top1"], abs=2**-24)
    with pytest.raises(ConfigError, match="without a common class"):
        evaluate(EvaluateConfig(data=data, model=teacher, against=f"{teacher},offset=10"))


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher that knows all four colors."""
    return write_color_teacher(tmp_path_factory.mktemp("right") / "right.onnx")


def make_store(out: Path, data: Path, teacher: str, **options: Any) -> Path:
    extract(ExtractConfig(data=data, split="validation", teacher=teacher, out=out, device="cpu", **options))
    return out


@pytest.mark.parametrize("codec", ["float32", "topk"])
def test_a_stored_teacher_says_what_it_would_say_now(
    teacher: str, right: str, data: Path, tmp_path: Path, codec: Any
) -> None:
    store = make_store(tmp_path / "store", data, right, codec=codec, **({"topk": 2} if codec == "topk" else {}))
    result = evaluate(EvaluateConfig(data=data, model=teacher, store=store, against=right))
    stored, asked = result["teacher"], result["against"]
    assert stored.pop("teacher") == str(store) and asked.pop("model") == right
    assert stored == asked and stored["top1"] == 1.0 and stored["only_other_right"] == 17


def test_a_store_of_other_classes_and_shards_is_joined_by_key(
    teacher: str, right: str, data: Path, tmp_path: Path
) -> None:
    """The same images as a folder, whose labels count from 0 where those of the shards count from 1."""
    store = make_store(tmp_path / "store", data, right)
    folder = write_as_folder(open_records(data, "validation"), tmp_path / "images")
    result = evaluate(EvaluateConfig(data=folder, model=teacher, store=store))
    assert result["teacher"]["top1"] == 1.0 and result["teacher"]["only_other_right"] == 17


def test_of_random_crops_the_teachers_probabilities_are_averaged(right: str, data: Path, tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", data, right, policy="crop", views=11, codec="float32")
    store, source = Store(path), open_records(data, "validation")
    taught = StoredTeacher(store, source, ClassSpace(num_classes=5))
    locations = source.locate_all(np.array([0, 25, 3]))
    found = taught.probs(locations, source.read_batch(locations)).numpy()
    assert taught.num_views == MAX_VIEWS == 8 and found[:, 0].max() == 0, "the teacher has no background"
    # Stored log-probabilities are up to a constant, and float32.
    views = [
        np.concatenate([store.read_logits(shard, view, [row]) for shard, row in locations]) for view in range(MAX_VIEWS)
    ]
    softmaxes = [np.exp(rows - rows.max(1, keepdims=True)) for rows in views]
    expected = np.mean([rows / rows.sum(1, keepdims=True) for rows in softmaxes], axis=0)
    np.testing.assert_allclose(found[:, 1:], expected, atol=1e-6)


def test_a_store_of_other_images_or_mixed_views_is_refused(
    teacher: str, right: str, data: Path, tmp_path: Path
) -> None:
    other = write_color_shards(tmp_path / "other", split="validation", first_index=100)
    with pytest.raises(StoreError, match="evaluate on the --split that the store was extracted from"):
        evaluate(EvaluateConfig(data=other, model=teacher, store=make_store(tmp_path / "store", data, right)))
    mixed = make_store(tmp_path / "mixed", data, right, policy="crop", views=2, mix_prob=1.0, mixup_alpha=1.0)
    with pytest.raises(ConfigError, match=r"--store .*: its views are mixed with other images"):
        evaluate(EvaluateConfig(data=data, model=teacher, store=mixed))


def test_a_store_whose_teacher_shares_no_class_is_refused(
    teacher: str, right: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the data, and with the model: a softmax over nothing is NaN, and no agreement would say nothing."""
    images = write_as_folder(open_records(data, "validation"), tmp_path / "images")
    # The teacher's four classes are labels 3 and 4, and two that the data does not have.
    store = make_store(tmp_path / "store", data, right, offset=3, gate_samples=0)
    for name in ("class2", "class3"):
        shutil.rmtree(images / "validation" / name)
    assert end("--data", images, "--model", f"{right},offset=0", "--store", store, "--device", "cpu") == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("teachonce: "))
    assert line.startswith(f"teachonce: {store}: none of the 4 classes of its teacher is, by name, among the 2 of")
    with pytest.raises(ConfigError, match=r"--store .*: its teacher knows 2 of the data's 5 classes, .* none of these"):
        evaluate(EvaluateConfig(data=data, model=right, store=store, offset=-1))
    found = evaluate(EvaluateConfig(data=data, model=right, store=store, offset=0))
    # The two can agree on label 3 alone, and that is what the model says of the images of label 4.
    source = open_records(data, "validation")
    labels = [record.label for shard in range(len(source.shards)) for record in source.iter_shard(shard)]
    assert 0 <= found["teacher"]["agreement"] <= labels.count(4) / len(labels) < 0.5


def end(*words: Any) -> int:
    with pytest.raises(SystemExit) as error:
        main(["evaluate", *[str(word) for word in words]])
    return int(error.value.code or 0)


def test_the_command_writes_table_and_page(
    teacher: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, table = tmp_path / "deep" / "page.html", tmp_path / "classes.csv"
    words = ["--data", data, "--model", teacher, "--html", page, "--csv", table, "--device", "cpu"]
    assert end(*words) == 0
    shown = capsys.readouterr()
    assert "classes below the rest beyond chance:\n  class0: 0 of 9 right" in shown.out and "top5" not in shown.out
    assert shown.out.endswith(f"\n{page}\n{table}\n") and str(page) not in shown.err
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [(row["label"], row["name"], row["correct"]) for row in rows][1:3] == [
        ("1", "class0", "0"),
        ("2", "class1", "0"),
    ]
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["classes.csv", "page.html"]
    assert end(*words, "--json", "--overwrite") == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert [result["classes"][label]["correct"] for label in range(5)] == [0, 0, 0, 8, 8]
    assert shown.err.endswith(f"\n{page}\n{table}\n")


def test_files_that_cannot_be_written_are_refused_first(
    teacher: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("years of work")
    words = ["--data", data, "--model", teacher]
    for more, phrase in (
        (["--html", notes], f"{notes}: exists; remove it, choose another --html, or give --overwrite"),
        (["--csv", notes], f"{notes}: exists; remove it, choose another --csv, or give --overwrite"),
        (["--csv", tmp_path], f"{tmp_path}: is a folder; give a file with --csv"),
        (["--csv", tmp_path / "a", "--html", tmp_path / "a"], f"--csv {tmp_path / 'a'}: is the file of --html"),
        (["--overwrite"], "--overwrite: applies only with --html or --csv, found no --html, no --csv"),
    ):
        assert end(*words, *more) == 2, more
        line = capsys.readouterr().err
        assert phrase in line and line.count("\n") == 1, line
    assert notes.read_text() == "years of work"
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert end(*words, "--html", tmp_path / "page.html") == 2
    assert "--html needs jinja2, which is not installed: pip install 'teachonce[pages]'" in capsys.readouterr().err
