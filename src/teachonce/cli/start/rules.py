"""The commands for data, by rules that a reader can check: each choice with its reason, which the script says too.

They are starting points and not the best of a search. What they rest on is named where it was measured
(docs/results/accuracy.md, on 5,000 CIFAR-10 images) or published; the rest is usual practice, and said to be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from teachonce.cli.config import StartConfig
from teachonce.cli.start.findings import Findings
from teachonce.errors import ConfigError
from teachonce.evaluation.config import ExportOnnxConfig
from teachonce.extraction.config import ExtractConfig, PlanConfig
from teachonce.models.spec import parse_model_spec
from teachonce.records.image_listing import TRAIN_NAMES
from teachonce.records.options import RecordOptions
from teachonce.training.config import TrainConfig

VAL_FRACTION = 0.1
SIDES_PX = (32, 64, 96, 128, 160, 192, 224)
TEACHER_SIDE_PX = 128
PRETRAINED_SIDE_PX = 64
"""A network with ImageNet's weights sees too little of 32 px, which it reduces 32-fold (docs/results/accuracy.md)."""
SMALL_SIDE_PX = 96
LARGE_TEACHER, PHONE_STUDENT, SMALL_IMAGE_STUDENT = "timm:resnet50", "timm:mobilenetv3_large_100", "timm:resnet18"
PRETRAINED = ",pretrained=1"
FROM_SCRATCH_IMAGES = 100_000
TEACHER_UPDATES, STUDENT_UPDATES = 2_000, 30_000
TEACHER_EPOCHS, STUDENT_EPOCHS = (5, 30), (30, 300)
LEAST_BATCH = 8
"""Batch norm has poor statistics of fewer images."""
MOST_VIEWS = 50
FEW_VIEWS_IMAGES = 500_000
MOST_INT8_BYTES = 200e9
MOST_USUAL_CLASSES = 21_843
"""Of ImageNet-21k: a store is assumed to have as many where only the teacher knows their number."""


class Step(NamedTuple):
    """One command of the script."""

    title: str
    reasons: tuple[str, ...]
    command: str
    config: Any
    """Its options."""


@dataclass(frozen=True, kw_only=True)
class _Choices:
    """What several commands have in common."""

    records: dict[str, Any]
    num_train: int
    size: int
    batch_size: int
    epochs: int
    num_views: int
    codec: str


def choose_steps(found: Findings, config: StartConfig, folder: Path) -> list[Step]:
    """The steps for data, whose products lie in ``folder``; raises ConfigError for a SPEC that is none, or missing."""
    if found.labeled != "all" and config.teacher is None:
        raise ConfigError(
            f"{config.data}: {found.labeled} of its images have labels, so no teacher can be trained on them; give "
            "--teacher SPEC, a network that knows their classes"
        )
    chosen = _choose(found, config)
    steps = []
    teacher = config.teacher or f"{LARGE_TEACHER}{PRETRAINED}"
    if teacher.startswith("savedmodel:") and "interpolation" not in parse_model_spec(teacher).options:
        teacher += ",interpolation=bilinear"  # TensorFlow 1's filter, its default, is none that views can have
    if found.labeled == "all" and not _is_finished(teacher):
        steps.append(_train_teacher(found, config, chosen, teacher, folder / "teacher"))
        teacher = f"run:{folder / 'teacher'}"
    steps += [
        _plan(found, config, chosen, teacher),
        _extract(found, config, chosen, teacher, folder / "store"),
        _train_student(found, config, chosen, folder),
        _export(found, config, chosen, folder),
    ]
    return steps


def _choose(found: Findings, config: StartConfig) -> _Choices:
    records = {field.name: getattr(config, field.name) for field in fields(RecordOptions)}
    if found.labeled == "all" and not found.has_validation:
        if config.split.lower() not in TRAIN_NAMES:
            raise ConfigError(
                f"--split {config.split}: {config.data} has no validation split, and --val-fraction holds images out "
                "of a split named train alone; rename the split, or put a validation split beside it"
            )
        records["val_fraction"] = config.val_fraction or VAL_FRACTION
    num_train = round(found.num_records * (1 - records["val_fraction"]))
    batch_size = choose_batch(num_train)
    epochs = config.epochs or _clamp(STUDENT_UPDATES * batch_size / num_train, *STUDENT_EPOCHS)
    num_views = choose_views(epochs, num_train)
    return _Choices(
        records=records,
        num_train=num_train,
        size=config.size or _student_side(found, config, num_train),
        batch_size=batch_size,
        epochs=epochs,
        num_views=num_views,
        codec="int8" if (found.num_classes or MOST_USUAL_CLASSES) * num_views * num_train < MOST_INT8_BYTES else "topk",
    )


def _student_side(found: Findings, config: StartConfig, num_train: int) -> int:
    side = choose_side(found.sides_px[1])
    if config.student is None:
        is_pretrained = num_train < FROM_SCRATCH_IMAGES
    else:
        spec = parse_model_spec(config.student)
        is_pretrained = spec.options.get("pretrained") is True or spec.weights is not None
    return max(side, PRETRAINED_SIDE_PX) if is_pretrained else side


def choose_side(median_px: int) -> int:
    """The student's side: the largest of the usual ones that a median image fills, give or take a tenth."""
    return max((side for side in SIDES_PX if side <= 1.1 * median_px), default=SIDES_PX[0])


def choose_batch(num_train: int) -> int:
    """Images per step: more where there are many; of few an eighth, but at least 8, and never more than half."""
    usual = 64 if num_train < 5_000 else 128 if num_train < 50_000 else 256
    # Half, as a split that is held out by hash takes a few more or fewer images than its part.
    return max(2, min(usual, max(num_train // 8, LEAST_BATCH), num_train // 2))


def choose_views(epochs: int, num_train: int) -> int:
    """Stored views: a third of the epochs on small data, a sixth where an epoch has many images, at most 50."""
    return max(1, min(MOST_VIEWS, epochs // (3 if num_train < FEW_VIEWS_IMAGES else 6)))


def _clamp(value: float, least: int, most: int) -> int:
    return max(least, min(most, math.ceil(value)))


def _describe_length(epochs: int, batch_size: int, num_train: int, aim: int, bounds: tuple[int, int]) -> str:
    """How long a training by rule is in updates, and why not as long as it should be."""
    num_updates = epochs * math.ceil(num_train / batch_size)
    text = f"{epochs} epochs in batches of {batch_size}: about {num_updates:,} updates"
    if math.ceil(aim * batch_size / num_train) == epochs:
        return f"{text} ({aim:,} are the aim, in {bounds[0]} to {bounds[1]} epochs)"
    return f"{text}; {aim:,} are the aim, but the bound of {epochs} epochs applies"


def _is_finished(teacher: str) -> bool:
    """Whether a SPEC is of a network that needs no training here: not of an architecture alone."""
    spec = parse_model_spec(teacher)
    return spec.kind not in ("timm", "torchvision") or spec.weights is not None


def _with_weights(teacher: str) -> tuple[str, str]:
    """The SPEC of a teacher to fine-tune, and what it begins with."""
    spec = parse_model_spec(teacher)
    if spec.options.get("pretrained") is False or spec.backbone:
        return teacher, "trained from random weights, as its SPEC says"
    if "pretrained" not in spec.options:
        teacher += PRETRAINED
    return teacher, "fine-tuned from pretrained weights, which are downloaded (pretrained=0: from random ones)"


def _train_teacher(found: Findings, config: StartConfig, chosen: _Choices, teacher: str, out: Path) -> Step:
    size = max(chosen.size, TEACHER_SIDE_PX) if config.size is None else chosen.size
    batch_size = min(chosen.batch_size, 64)
    epochs = _clamp(TEACHER_UPDATES * batch_size / chosen.num_train, *TEACHER_EPOCHS)
    length = _describe_length(epochs, batch_size, chosen.num_train, TEACHER_UPDATES, TEACHER_EPOCHS)
    if config.epochs is not None and config.epochs < epochs:
        epochs = config.epochs
        length = f"{epochs} epochs in batches of {batch_size}: no more than the student's, which are given"
    student, beginning = _with_weights(teacher)
    reasons = [
        f"{teacher}: a large network that knows ImageNet, fine-tuned; a larger one teaches better (--teacher SPEC). "
        "Its weights are downloaded, and have a license of their own."
        if config.teacher is None
        else f"{teacher}: as given, {beginning}. A network that knows your classes already needs no such step: "
        "--teacher onnx:FILE, run:DIR or timm:NAME,weights=FILE",
        f"{size} px: images of {found.sides_px[1]} px are enlarged, as networks for ImageNet reduce them 32-fold."
        if size > chosen.size
        else f"{size} px: as the student's.",
        f"{length}. The learning rate is that of the quickstart.",
    ]
    options = _training(found, config, chosen, size)
    options |= {"epochs": epochs, "batch_size": batch_size, "lr": 3e-4, "lr_batch": 64}
    return Step("A teacher of your classes", tuple(reasons), "train", TrainConfig(student=student, out=out, **options))


def _training(found: Findings, config: StartConfig, chosen: _Choices, size: int) -> dict[str, Any]:
    """What both trainings have in common."""
    return {
        **chosen.records,
        "data": config.data,
        "split": config.split,
        "validation_split": "validation" if found.labeled == "all" else "none",
        "num_classes": _unnamed_classes(found),
        "offset": int(found.has_background),
        "size": size,
        # Images that are no larger than the input have no margin to leave out.
        "eval_crop_frac": 0.875 if found.sides_px[1] > 1.1 * size else 1.0,
        "optimizer": "adamw",
        "warmup_epochs": 1.0 if config.epochs is None or config.epochs > 1 else 0.0,
        "device": config.device,
    }


def _unnamed_classes(found: Findings) -> int | None:
    """--num-classes where nothing in the data says it."""
    return None if found.class_names or found.labeled == "none" else found.largest_label + 1


def _views(found: Findings, config: StartConfig, chosen: _Choices, teacher: str) -> dict[str, Any]:
    return {
        **chosen.records,
        "data": config.data,
        "split": config.split,
        "num_classes": _unnamed_classes(found),
        "teacher": teacher,
        "policy": "crop",
        "views": chosen.num_views,
        "codec": chosen.codec,
        "device": config.device,
    }


def _plan(found: Findings, config: StartConfig, chosen: _Choices, teacher: str) -> Step:
    options = _views(found, config, chosen, teacher)
    reasons = (
        "Bytes, hours and what the codec loses, measured on a sample. Read it before the next command, and give "
        "--price and --devices for a cluster.",
    )
    return Step(
        "What it will cost", reasons, "plan", PlanConfig(epochs=chosen.epochs, students=1, devices=1, **options)
    )


def _extract(found: Findings, config: StartConfig, chosen: _Choices, teacher: str, out: Path) -> Step:
    part = "a third" if chosen.num_train < FEW_VIEWS_IMAGES else "a sixth"
    num_bytes = chosen.num_views * chosen.num_train * (found.num_classes if chosen.codec == "int8" else 44)
    size = f"about {max(num_bytes, 1e6) / 1e6:,.0f} MB" if num_bytes < 1e9 else f"about {num_bytes / 1e9:,.0f} GB"
    is_known = found.num_classes > 0
    if chosen.codec == "int8":
        total = f"{size} in all" if is_known else "plan says how much that is, as only the teacher knows its classes"
        codec = f"Codec int8: a byte a class and view, right for temperatures 1 to 4; {total}."
    else:
        classes = (
            "" if is_known else f" with {MOST_USUAL_CLASSES:,} classes, and only the teacher knows how many it has"
        )
        codec = (
            f"Codec topk: int8 would take more than {MOST_INT8_BYTES / 1e9:.0f} GB{classes}; {size} in all, for "
            "temperature 1."
        )
    reasons = (
        f"Policy crop, {chosen.num_views} views: the student replays what the teacher saw. {part.capitalize()} of "
        f"the student's epochs, at most {MOST_VIEWS} (docs/guide/views.md: one view was worse than none, more were "
        "always better).",
        codec,
        "Add --expect-top1 with what the teacher should reach, so that a wrong teacher is stopped at once.",
    )
    options = _views(found, config, chosen, teacher)
    return Step("The teacher's logits, once", reasons, "extract", ExtractConfig(out=out, **options))


def _train_student(found: Findings, config: StartConfig, chosen: _Choices, folder: Path) -> Step:
    is_small = chosen.size < SMALL_SIDE_PX
    usual = SMALL_IMAGE_STUDENT if is_small else PHONE_STUDENT
    is_pretrained = chosen.num_train < FROM_SCRATCH_IMAGES
    student = config.student or usual + (PRETRAINED if is_pretrained else "")
    reasons = [
        f"{student}: as given."
        if config.student
        else f"{student}: "
        + (
            "a plain small network, the usual one for small images"
            if is_small
            else "a network that people run on phones"
        )
        + (
            f", from pretrained weights as {chosen.num_train:,} images are few to learn from (below "
            f"{FROM_SCRATCH_IMAGES:,})."
            if is_pretrained
            else "."
        ),
        f"{chosen.size} px: as given."
        if config.size is not None
        else f"{chosen.size} px: images of {found.sides_px[1]} px are enlarged for a pretrained network."
        if chosen.size > choose_side(found.sides_px[1])
        else f"{chosen.size} px: what the median image ({found.sides_px[1]} px) fills, at most {SIDES_PX[-1]}.",
        f"{chosen.epochs} epochs in batches of {chosen.batch_size}: as given."
        if config.epochs is not None
        else _describe_length(chosen.epochs, chosen.batch_size, chosen.num_train, STUDENT_UPDATES, STUDENT_EPOCHS)
        + ". Distillation gains from long schedules (arXiv:2106.05237).",
        "The teacher alone (--label-weight 0): it has seen the labels. At temperature "
        + ("2, as in docs/results/accuracy.md." if chosen.codec == "int8" else "1, for which codec topk is."),
    ]
    options = _training(found, config, chosen, chosen.size) | {
        "student": student,
        "store": (folder / "store",),
        "out": folder / "student",
        "epochs": chosen.epochs,
        "batch_size": chosen.batch_size,
        "lr": 1e-3,
        "lr_batch": 256,
        "weight_decay": 0.05,
        "kd_temp": 2.0 if chosen.codec == "int8" else 1.0,
        "label_weight": 0.0,
    }
    return Step("The student", tuple(reasons), "train", TrainConfig(**options))


def _export(found: Findings, config: StartConfig, chosen: _Choices, folder: Path) -> Step:
    # The script is run again after changes and stops; everything before this step sees what is done already.
    options: dict[str, Any] = {"run": folder / "student", "out": folder / "student.onnx", "overwrite": True}
    if found.labeled != "all":
        reason = "ONNX, compared with PyTorch. --int8 needs labeled images to measure what it costs."
        return Step("For a phone or a server", (reason,), "export-onnx", ExportOnnxConfig(**options))
    reason = "ONNX, compared with PyTorch, and 8-bit integers beside it, with a table of what they cost in accuracy."
    options |= {**chosen.records, "int8": True, "data": config.data, "split": config.split}
    return Step("For a phone or a server", (reason,), "export-onnx", ExportOnnxConfig(**options))
