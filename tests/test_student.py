"""The student's loss, optimiser groups and moving average."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from teachonce.config_train import TrainConfig
from teachonce.errors import LogitsError
from teachonce.losses import kd_loss, label_loss
from teachonce.mixup import Mixup
from teachonce.models import build_student
from teachonce.preprocessing import Preprocessing
from teachonce.student import StudentModule
from teachonce.train import train


def build(**settings) -> StudentModule:
    config = TrainConfig(data=Path("data"), student="timm:test_resnet", out=Path("run"), **settings)
    student = build_student(config.student, 10)
    return StudentModule(student, config, Preprocessing(size_px=16), 10)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student_logits, teacher_logits = torch.randn(2, 8, 10, generator=generator)
    return student_logits, torch.randint(10, (8,), generator=generator), teacher_logits * 3


def test_the_whole_loss(batch) -> None:
    student_logits, labels, teacher_logits = batch
    module = build(store=Path("store"), kd_temp=3.0, kd_weight=0.5, label_weight=2.0, label_smoothing=0.1)
    loss, label_part, kd_part = module.losses(student_logits, labels, teacher_logits, None)
    assert torch.equal(label_part, label_loss(student_logits, labels, 0.1))
    assert torch.equal(kd_part, kd_loss(student_logits, teacher_logits, 3.0))
    assert torch.equal(loss, 2.0 * label_part + 0.5 * kd_part)


def test_the_walkthroughs_loss_is_the_default(batch) -> None:
    student_logits, labels, teacher_logits = batch
    loss, _, _ = build(logits="records").losses(student_logits, labels, teacher_logits, None)
    assert torch.equal(loss, label_loss(student_logits, labels) + kd_loss(student_logits, teacher_logits, 1.0))


def test_mixup_mixes_labels_and_softened_teacher_probs_linearly(batch) -> None:
    student_logits, labels, teacher_logits = batch
    partners = (3, 2, 1, 0, 7, 6, 5, 4)
    module = build(store=Path("store"), kd_temp=2.0, label_smoothing=0.1, mixup_alpha=0.2)
    mixed = module.losses(student_logits, labels, teacher_logits, Mixup(0.7, partners))
    own = module.losses(student_logits, labels, teacher_logits, None)
    other = module.losses(student_logits, labels[list(partners)], teacher_logits[list(partners)], None)
    # Every part is linear in its targets.
    for part, one, two in zip(mixed, own, other, strict=True):
        torch.testing.assert_close(part, 0.7 * one + 0.3 * two)


def test_a_class_that_the_teacher_lacks(batch) -> None:
    student_logits, labels, teacher_logits = batch
    teacher_logits = teacher_logits.clone()
    teacher_logits[:, 0] = -torch.inf
    module = build(store=Path("store"), kd_temp=2.0)
    loss, _, _ = module.losses(student_logits.requires_grad_(), labels, teacher_logits, Mixup(0.6, tuple(range(8))))
    loss.backward()
    assert torch.isfinite(loss)
    assert student_logits.grad is not None
    assert torch.isfinite(student_logits.grad).all()


def test_kd_without_teacher_logits_is_an_error(batch) -> None:
    student_logits, labels, _ = batch
    with pytest.raises(LogitsError, match="without teacher_logits"):
        build(store=Path("store")).losses(student_logits, labels, None, None)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_spares_norms_and_biases(digits: Path, tmp_path: Path, optimizer: str) -> None:
    config = TrainConfig(
        data=digits, student="timm:test_resnet", out=tmp_path / "run", epochs=1, batch_size=48, size=16, device="cpu",
        optimizer=optimizer, weight_decay=0.01, lr=0.001,
    )  # fmt: skip
    train(config)
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    spared, decayed = checkpoint["optimizer_states"][0]["param_groups"]
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0, 0.01)
    assert not spared.get("nesterov", False)
    parameters = dict(build_student("timm:test_resnet", 10).named_parameters())
    assert len(decayed["params"]) == sum(parameter.ndim > 1 for parameter in parameters.values())
    assert len(spared["params"]) == sum(parameter.ndim <= 1 for parameter in parameters.values())


def test_the_moving_average_is_kept(digits: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        data=digits, student="timm:test_resnet", out=tmp_path / "run", epochs=2, batch_size=16, size=16, device="cpu",
        ema_decay=0.9, lr=0.05,
    )  # fmt: skip
    train(config)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    kept = load_file(tmp_path / "run" / "student.safetensors")
    assert kept.keys() == build_student("timm:test_resnet", 10).state_dict().keys()
    for name, tensor in kept.items():
        assert torch.equal(tensor, state[f"ema.module.{name}"])
    assert any(not torch.equal(tensor, state[f"student.{name}"]) for name, tensor in kept.items())
