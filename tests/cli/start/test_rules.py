"""The rules of ``start``: sides, batches, views, codec, and which commands data needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from teachonce.cli.config import StartConfig
from teachonce.cli.start.findings import Findings
from teachonce.cli.start.rules import Step, choose_batch, choose_side, choose_steps, choose_views
from teachonce.errors import ConfigError

PICTURES = Findings(
    num_records=3_200,
    format="folder",
    has_validation=False,
    labeled="all",
    class_names=("cat", "dog"),
    has_background=False,
    counts=(1_500, 1_700),
    is_counted=True,
    largest_label=1,
    sides_px=(200, 375, 900),
    mean_bytes=110_000,
    num_sampled=512,
    num_odd=0,
)
HELD_OUT = {"val_fraction": 0.1}


def steps_of(found: Findings = PICTURES, **options: Any) -> list[Step]:
    return choose_steps(found, StartConfig(data=Path("pictures"), **options), Path("made"))


@pytest.mark.parametrize(
    ("median_px", "side"), [(8, 32), (32, 32), (58, 32), (64, 64), (120, 128), (178, 192), (375, 224), (4000, 224)]
)
def test_the_side_is_what_images_fill(median_px: int, side: int) -> None:
    assert choose_side(median_px) == side


@pytest.mark.parametrize(
    ("num_train", "batch_size"), [(4, 2), (9, 4), (18, 8), (96, 12), (3_000, 64), (20_000, 128), (10**6, 256)]
)
def test_batches(num_train: int, batch_size: int) -> None:
    assert choose_batch(num_train) == batch_size


@pytest.mark.parametrize(
    ("epochs", "num_train", "num_views"), [(1, 100, 1), (30, 5_000, 10), (300, 3_000, 50), (120, 10**6, 20)]
)
def test_views_are_a_third_of_the_epochs_and_a_sixth_of_many_images(
    epochs: int, num_train: int, num_views: int
) -> None:
    assert choose_views(epochs, num_train) == num_views


def test_five_commands_that_hang_together() -> None:
    teacher, plan, extract, student, export = steps_of()
    assert [step.command for step in steps_of()] == ["train", "plan", "extract", "train", "export-onnx"]
    assert teacher.config.out == Path("made/teacher")
    assert plan.config.teacher == extract.config.teacher == "run:made/teacher"
    assert student.config.store == (extract.config.out,)
    assert export.config.run == student.config.out
    for step in (teacher, plan, extract, student, export):
        assert step.config.val_fraction == 0.1, "the same images are held out of every one"
        assert step.reasons
    assert plan.config.views == extract.config.views and plan.config.codec == extract.config.codec == "int8"
    assert plan.config.epochs == student.config.epochs
    assert (student.config.size, student.config.kd_temp, student.config.label_weight) == (224, 2.0, 0.0)


def test_a_validation_split_is_used() -> None:
    assert all(step.config.val_fraction == 0.0 for step in steps_of(replace(PICTURES, has_validation=True)))


def test_small_images_are_enlarged_for_networks_that_know_imagenet() -> None:
    small = replace(PICTURES, sides_px=(32, 32, 32))
    teacher, _, _, student, _ = steps_of(small)
    assert (teacher.config.size, student.config.size) == (128, 64)
    assert all(any("enlarged" in reason for reason in step.reasons) for step in (teacher, student))
    assert (teacher.config.eval_crop_frac, student.config.eval_crop_frac) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("count", "student", "side"),
    [
        (1_500, "timm:resnet18,pretrained=1", 64),
        (1_500, "timm:resnet18,weights=w.safetensors", 64),
        (1_500, "timm:resnet18", 32),
        (1_500, "timm:resnet18,pretrained=0", 32),
        (200_000, None, 32),
    ],
)
def test_a_student_that_begins_at_random_sees_small_images_as_they_are(
    count: int, student: str | None, side: int
) -> None:
    small = replace(PICTURES, sides_px=(32, 32, 32), num_records=count)
    assert steps_of(small, student=student)[3].config.size == side


def test_what_is_given_is_taken() -> None:
    given = {"teacher": "timm:a", "student": "timm:b", "size": 16, "epochs": 4, "device": "cpu"}
    teacher, plan, extract, student, _ = steps_of(**given)
    assert (teacher.config.student, teacher.config.size, teacher.config.epochs) == ("timm:a,pretrained=1", 16, 4)
    assert (student.config.student, student.config.size, student.config.epochs) == ("timm:b", 16, 4)
    assert (plan.config.views, extract.config.views) == (1, 1)
    assert {step.config.device for step in (teacher, plan, extract, student)} == {"cpu"}


@pytest.mark.parametrize(
    ("teacher", "student", "reason"),
    [
        ("timm:resnet101", "timm:resnet101,pretrained=1", "fine-tuned from pretrained weights"),
        ("torchvision:resnet50,size=160", "torchvision:resnet50,size=160,pretrained=1", "fine-tuned from pretrained"),
        ("timm:resnet101,pretrained=1", "timm:resnet101,pretrained=1", "fine-tuned from pretrained weights"),
        ("timm:resnet101,pretrained=0", "timm:resnet101,pretrained=0", "trained from random weights"),
    ],
)
def test_a_teacher_that_is_given_is_fine_tuned(teacher: str, student: str, reason: str) -> None:
    step, *_ = steps_of(teacher=teacher)
    assert step.config.student == student
    assert f"{teacher}: as given, {reason}" in step.reasons[0]


@pytest.mark.parametrize(
    ("num_records", "teacher", "student"),
    [
        (
            20,
            "30 epochs in batches of 8: about 90 updates; 2,000 are the aim, but the bound of 30 epochs applies",
            "300 epochs in batches of 8: about 900 updates; 30,000 are the aim, but the bound of 300 epochs applies",
        ),
        (
            20_000,
            "8 epochs in batches of 64: about 2,256 updates (2,000 are the aim, in 5 to 30 epochs)",
            "214 epochs in batches of 128: about 30,174 updates (30,000 are the aim, in 30 to 300 epochs)",
        ),
    ],
)
def test_the_updates_are_those_of_the_commands(num_records: int, teacher: str, student: str) -> None:
    steps = steps_of(replace(PICTURES, num_records=num_records))
    assert any(reason.startswith(f"{teacher}.") for reason in steps[0].reasons)
    assert any(reason.startswith(f"{student}.") for reason in steps[3].reasons)


@pytest.mark.parametrize("teacher", ["run:big", "onnx:big.onnx", "timm:resnet50,weights=big.safetensors"])
def test_a_teacher_that_is_finished_is_not_trained(teacher: str) -> None:
    steps = steps_of(teacher=teacher)
    assert [step.command for step in steps] == ["plan", "extract", "train", "export-onnx"]
    assert steps[1].config.teacher == teacher


def test_images_are_held_out_of_a_split_named_train_alone() -> None:
    """The first command of the script would say so otherwise."""
    with pytest.raises(ConfigError, match=r"--split flowers: pictures has no validation split, and --val-fraction"):
        steps_of(split="flowers")
    assert steps_of(replace(PICTURES, has_validation=True), split="flowers")
    assert steps_of(split="Training")


def test_images_without_labels_need_a_teacher() -> None:
    unlabeled = replace(PICTURES, labeled="none", class_names=(), counts=(), largest_label=-1)
    with pytest.raises(ConfigError, match=r"none of its images have labels.*give --teacher SPEC"):
        steps_of(unlabeled)
    *_, student, export = steps_of(unlabeled, teacher="timm:resnet50,pretrained=1")
    assert len(steps_of(unlabeled, teacher="timm:resnet50,pretrained=1")) == 4
    assert (student.config.validation_split, student.config.val_fraction) == ("none", 0.0)
    assert not export.config.int8


def test_classes_without_names_and_background() -> None:
    teacher, _, _, student, _ = steps_of(replace(PICTURES, class_names=(), largest_label=9))
    assert teacher.config.num_classes == student.config.num_classes == 10
    unnamed = steps_of(replace(PICTURES, class_names=(), largest_label=9), teacher="onnx:big.onnx")
    assert [step.config.num_classes for step in unnamed[:3]] == [10, 10, 10]
    assert steps_of(replace(PICTURES, has_background=True))[0].config.offset == 1


def test_a_store_that_would_be_huge_is_sparse() -> None:
    names = tuple(map(str, range(21_843)))
    huge = replace(PICTURES, num_records=14_000_000, class_names=names, largest_label=21_842)
    _, plan, extract, student, _ = steps_of(huge)
    assert plan.config.codec == extract.config.codec == "topk"
    assert student.config.kd_temp == 1.0


@pytest.mark.parametrize(
    ("num_records", "codec", "size"),
    [(9_000, "int8", "plan says how much that is"), (3_000_000, "topk", "about 660 MB in all")],
)
def test_only_the_teacher_knows_the_classes_of_images_without_labels(num_records: int, codec: str, size: str) -> None:
    unlabeled = replace(PICTURES, num_records=num_records, labeled="none", class_names=(), counts=(), largest_label=-1)
    plan, extract, student, _ = steps_of(unlabeled, teacher="onnx:big.onnx")
    assert plan.config.codec == extract.config.codec == codec
    assert student.config.kd_temp == (2.0 if codec == "int8" else 1.0)
    (reason,) = (reason for reason in extract.reasons if reason.startswith("Codec"))
    assert size in reason and "only the teacher knows" in reason


def test_a_spec_that_is_none() -> None:
    with pytest.raises(ConfigError, match="model 'resnet50': expected timm:NAME"):
        steps_of(teacher="resnet50")


@pytest.mark.parametrize("given", ["savedmodel:big", "savedmodel:big,interpolation=bicubic"])
def test_a_savedmodel_is_asked_through_a_filter_that_views_can_have(given: str) -> None:
    """Its own default, TensorFlow 1's, is refused for crops."""
    for step in steps_of(teacher=given)[:2]:
        assert step.config.teacher == (given if "," in given else f"{given},interpolation=bilinear")
