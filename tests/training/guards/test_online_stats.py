"""An online teacher's guards: measured on the views of the first epoch, warned of as a store's."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from teachonce.codecs.softmax import log_softmax
from teachonce.errors import LogitsError
from teachonce.models.classifier import build_student, load_model
from teachonce.records.class_space import ClassSpace
from teachonce.records.discovery import open_records
from teachonce.training.config import TrainConfig
from teachonce.training.guards.online_stats import NUM_ONLINE_ROWS, measure_online_stats
from teachonce.training.guards.store_warnings import StoreStats, warn_of_teacher
from teachonce.training.student_module import OnlineTeacher, StudentModule
from teachonce.training.train import train
from teachonce.views.policy import CropPolicy, RandomMix
from tests.support.small_data import build_dataset, write_digits
from tests.support.small_models import write_color_shards, write_color_teacher

SETTINGS = {"student": "timm:test_resnet", "batch_size": 32, "size": 16, "validation_split": None, "device": "cpu"}


@pytest.fixture(scope="module")
def ignorant(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher that knows nothing."""
    out = tmp_path_factory.mktemp("runs") / "ignorant"
    train(TrainConfig(data=digits, out=out, epochs=1, lr=1e-6, **SETTINGS))
    return f"run:{out}"


def messages(run) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in found]


@pytest.mark.parametrize("size", [16, 24])
def test_what_is_measured(tmp_path: Path, size: int) -> None:
    """As the loss sees it: of students of the teacher's size, and of another, where it sees pixels of its own."""
    write_color_shards(tmp_path / "data")
    teacher = load_model(write_color_teacher(tmp_path / "teacher.onnx"))
    source = open_records(tmp_path / "data", "train")
    online = OnlineTeacher(teacher, ClassSpace(num_classes=4, offset=1), ClassSpace(num_classes=4, offset=1))
    space = ClassSpace(num_classes=4, offset=1)
    data = build_dataset(source, size=size, online=teacher.preprocessing, class_space=space)
    stats = measure_online_stats(data, online, temperature=2.0, batch_size=7)
    assert stats.num_rows == min(len(data), NUM_ONLINE_ROWS)
    batch = data.read_batch(list(range(len(data))), epoch=0)
    logits = teacher.logits(batch.get("teacher_pixels", batch["pixels"])).numpy()
    labels = batch["labels"].numpy()
    assert stats.top1 == pytest.approx((logits.argmax(axis=1) == labels).mean())
    nats = -log_softmax(logits)[np.arange(len(labels)), labels].mean()
    assert stats.label_nats == pytest.approx(nats, rel=1e-5)
    assert stats.non_top1_mass == pytest.approx(1 - np.exp(log_softmax(logits, 2.0)).max(axis=1).mean(), rel=1e-4)


@pytest.mark.parametrize("prob", [0.5, 1.0])
def test_mixed_views_are_not_judged_by_the_label(tmp_path: Path, prob: float) -> None:
    write_color_shards(tmp_path / "data", sizes=(40, 24))
    teacher = load_model(write_color_teacher(tmp_path / "teacher.onnx"))
    source, space = open_records(tmp_path / "data", "train"), ClassSpace(num_classes=4, offset=1)
    policy = CropPolicy(mix=RandomMix(mixup_alpha=1.0, prob=prob))
    data = build_dataset(source, size=16, online=teacher.preprocessing, class_space=space, policy=policy)
    stats = measure_online_stats(data, OnlineTeacher(teacher, space, space), 1.0, batch_size=16)
    num_plain = int((data.read_batch(list(range(64)), epoch=0)["shares"] == 1).sum())
    assert stats.num_judged == num_plain < stats.num_rows == 64
    assert np.isnan(stats.top1) if prob == 1 else stats.top1 == 1  # each image has one color


def test_a_teacher_that_gives_nan_is_named_before_the_training(digits: Path, ignorant: str, tmp_path: Path) -> None:
    """The training ended with the advice to lower the learning rate."""
    source = open_records(digits, "train")
    teacher, space = load_model(ignorant), ClassSpace(num_classes=10)
    damaged = dataclasses.replace(teacher, forward=lambda images: teacher.forward(images) * torch.nan)
    data = build_dataset(source, size=16, online=teacher.preprocessing)
    online = OnlineTeacher(damaged, space, space)
    with pytest.raises(LogitsError, match=r"ignorant: NaN or infinite logits for 16 of 16 images; check its"):
        measure_online_stats(data, online, 1.0, batch_size=16)
    module = StudentModule(
        build_student("timm:test_resnet", 10),
        TrainConfig(data=digits, student="timm:test_resnet", out=tmp_path, kd_temp=1.0, teacher=ignorant),
        teacher.preprocessing,
        10,
        online,
    )
    with pytest.raises(LogitsError, match="NaN or infinite logits"):
        raise module._not_finite("the loss is not finite")


def test_so_many_rows_at_most(tmp_path: Path, ignorant: str) -> None:
    source = open_records(write_digits(tmp_path / "digits", num_train=NUM_ONLINE_ROWS + 44, num_validation=0), "train")
    teacher, space = load_model(ignorant), ClassSpace(num_classes=10)
    data = build_dataset(source, size=16, online=teacher.preprocessing)
    stats = measure_online_stats(data, OnlineTeacher(teacher, space, space), 1.0, batch_size=64)
    assert stats.num_rows == NUM_ONLINE_ROWS


def test_a_teacher_that_knows_nothing_is_said_before_and_while_it_holds_back(
    digits: Path, ignorant: str, tmp_path: Path
) -> None:
    config = TrainConfig(
        data=digits, out=tmp_path / "run", teacher=ignorant, kd_weight=0.01, epochs=6, lr=0.05, **SETTINGS
    )
    before, *during = messages(lambda: train(config))
    assert before.startswith(f"--teacher {ignorant}: on 96 of the training views the teacher has top-1 0.")
    assert "contradicts them more often than it agrees with them" in before
    (passed,) = during
    assert "the teacher holds it back" in passed


def test_nothing_is_asked_where_there_is_no_kd(digits: Path, ignorant: str, tmp_path: Path) -> None:
    config = TrainConfig(data=digits, out=tmp_path / "run", teacher=ignorant, kd_temp=0, epochs=1, **SETTINGS)
    assert not [message for message in messages(lambda: train(config)) if "training views" in message]


def test_the_sizes_of_both_are_compared() -> None:
    sizes = {"num_classes": 10, "num_teacher": 66_000_000, "num_student": 1_000_000}
    (message,) = messages(lambda: warn_of_teacher("--teacher x", StoreStats(0.9, 0.5, 0.3, 60, 60), 1.0, **sizes))
    assert message.startswith("--teacher x: the student has 1.00 M parameters, the teacher 66.0 M, 66 times as many")
