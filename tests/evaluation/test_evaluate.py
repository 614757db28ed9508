"""Evaluation: the numbers of a plain loop, in the class space of the data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from teachonce.errors import ConfigError, ImageError, LogitsError, RecordError
from teachonce.evaluation.config import EvaluateConfig
from teachonce.evaluation.evaluate import evaluate, evaluate_model
from teachonce.models.classifier import Classifier, load_model
from teachonce.pixels.decode import decode_image
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource
from teachonce.records.tfrecord.tf_example import encode_example
from tests.support.small_data import write_shards
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
    result = evaluate_model(classifier, source, 1, batch_size=batch_size, advance=done.append)
    assert result["num_records"] == sum(done) == NUM_RECORDS and result["images_per_second"] > 0
    # Means of 33 float32 numbers in 0..1, added in another order: 33 * 2^-24.
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=33 * 2**-24)


def test_entry_resolves_split_and_offset(teacher: str, data: Path) -> None:
    result = evaluate(EvaluateConfig(data=data, model=teacher, batch_size=16))
    assert (result["offset"], result["split"], result["model"]) == (1, "validation", teacher)
    assert 0.4 < result["top1"] < 0.6
    assert result["top5"] == 1.0, "four classes are all in the top 5"
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
    with pytest.raises(RecordError, match=r"record \d+ .*label 4, expected 0 to 3; give --num-classes or --offset"):
        evaluate(EvaluateConfig(data=tmp_path, model=teacher))
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
