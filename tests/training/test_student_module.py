"""The student's loss, optimizer groups and moving average."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import register_model
from timm.optim import create_optimizer_v2

from teachonce.errors import ConfigError, LogitsError, TeachonceError
from teachonce.losses.losses import kd_loss, label_loss
from teachonce.losses.mixup import Mixup, sample_mixup
from teachonce.models.classifier import build_student
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.records.class_space import ClassSpace
from teachonce.rng import generator
from teachonce.runs.metrics import read_metrics
from teachonce.training import student_module
from teachonce.training.config import TrainConfig
from teachonce.training.loss_watch import LossWatch
from teachonce.training.student_module import OnlineTeacher, StudentModule
from teachonce.training.train import train


def build(**settings) -> StudentModule:
    config = TrainConfig(data=Path("data"), student="timm:test_resnet", out=Path("run"), **settings)
    student = build_student(config.student, 10)
    return StudentModule(student, config, Preprocessing(size_px=16), 10)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    student_logits, teacher_logits = torch.randn(2, 8, 10, generator=random)
    return student_logits, torch.randint(10, (8,), generator=random), teacher_logits * 3


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


@pytest.mark.parametrize("mixup_type", [1, 2])
def test_a_share_for_each_image_mixes_labels_and_teacher_alike(batch, mixup_type) -> None:
    student_logits, labels, teacher_logits = batch
    module = build(store=Path("store"), kd_temp=2.0, label_smoothing=0.1, mixup_alpha=0.2, mixup_type=mixup_type)
    mixup = sample_mixup(generator(5), 0.2, 8, mixup_type)
    student_logits = student_logits[: len(mixup.partners)]
    mixed = module.losses(student_logits, labels, teacher_logits, mixup)
    expected = torch.zeros(3)
    for row, (own, other, share) in enumerate(zip(mixup.rows, mixup.partners, mixup.share, strict=True)):
        for index, part in ((own, share), (other, 1 - share)):
            one = slice(index, index + 1)
            alone = module.losses(student_logits[row : row + 1], labels[one], teacher_logits[one], None)
            expected += part / len(student_logits) * torch.stack(alone)
    torch.testing.assert_close(torch.stack(mixed), expected)


def test_weights_of_classes_count_in_both_losses(batch) -> None:
    student_logits, labels, teacher_logits = batch
    module = build(store=Path("store"), kd_temp=2.0, kd_weight=0.5, label_smoothing=0.1)
    module.class_weights = torch.rand(10, generator=torch.Generator().manual_seed(1))
    row_weights = module._row_weights({"labels": labels})
    assert row_weights is not None and torch.equal(row_weights, module.class_weights[labels])
    found = module.losses(student_logits, labels, teacher_logits, None, row_weights)
    expected = torch.zeros(3)
    for row, weight in enumerate(row_weights):
        one = slice(row, row + 1)
        alone = module.losses(student_logits[one], labels[one], teacher_logits[one], None)
        expected += weight * torch.stack(alone) / len(labels)
    torch.testing.assert_close(torch.stack(found), expected)


@pytest.mark.parametrize("mixup_type", ["batch", 1, 2])
def test_each_part_of_a_mixed_row_has_its_own_weight(batch, mixup_type) -> None:
    """Not the mixture of both, by which a common partner would count for part of a rare record."""
    student_logits, labels, teacher_logits = batch
    module = build(store=Path("store"), kd_temp=2.0, mixup_alpha=0.2, mixup_type=mixup_type, label_smoothing=0.1)
    mixup = sample_mixup(generator(5), 0.2, 8, mixup_type)
    student_logits = student_logits[: len(mixup.partners)]
    weights = torch.arange(8, dtype=torch.float32) / 4
    found = module.losses(student_logits, labels, teacher_logits, mixup, weights)
    rows = range(8) if mixup.rows is None else mixup.rows
    shares = [mixup.share] * len(mixup.partners) if isinstance(mixup.share, float) else mixup.share
    expected = torch.zeros(3)
    for row, (own, other, share) in enumerate(zip(rows, mixup.partners, shares, strict=True)):
        for index, part in ((own, share), (other, 1 - share)):
            one = slice(index, index + 1)
            alone = module.losses(student_logits[row : row + 1], labels[one], teacher_logits[one], None)
            expected += part * weights[index] * torch.stack(alone) / len(student_logits)
    torch.testing.assert_close(torch.stack(found), expected)


def test_labels_of_a_stored_mixture_have_their_own_weights(batch) -> None:
    student_logits, _, teacher_logits = batch
    module = build(store=Path("store"), kd_temp=2.0, label_smoothing=0.1)
    module.class_weights = torch.tensor([0.5, 4.0, *[1.0] * 8])
    parts = {
        "labels": torch.tensor([1, 1, 2]),
        "partner_labels": torch.tensor([1, 0, 1]),
        "shares": torch.tensor([1.0, 0.75, 0.25]),
    }
    three, answers = student_logits[:3], teacher_logits[:3]
    found = module.losses(three, module._mixed_labels(parts), answers, None, module._row_weights(parts))
    expected = torch.zeros(())
    for row in range(3):
        for name, share in (("labels", parts["shares"][row]), ("partner_labels", 1 - parts["shares"][row])):
            label = parts[name][row : row + 1]
            _, alone, _ = module.losses(three[row : row + 1], label, answers[row : row + 1], None)
            expected += share * module.class_weights[label[0]] * alone / 3
    torch.testing.assert_close(found[1], expected)


def test_classes_count_the_same_however_they_are_mixed() -> None:
    """What a batch of them asks for: as much of the class of one record as of that of nine."""
    module = build(label_weight=1.0)
    module.class_weights = torch.tensor([10 / 18, 10 / 2, *[0.0] * 8])
    labels = torch.tensor([0] * 9 + [1])
    for seed in range(20):
        mixup = sample_mixup(generator(seed), 1.0, 10)
        logits = torch.zeros(10, 10, requires_grad=True)
        module.losses(logits, labels, None, mixup, module.class_weights[labels])[0].backward()
        # All classes have the same softmax: their gradients differ by what the targets ask for.
        assert logits.grad is not None
        assert abs(logits.grad[:, 0].sum() - logits.grad[:, 1].sum()) < 1e-5


def test_a_view_that_is_mixed_has_the_weight_of_both() -> None:
    module = build(store=Path("store"))
    assert module._row_weights({"labels": torch.tensor([1])}) is None
    module.class_weights = torch.tensor([0.0, 4.0, 1.0])
    batch = {
        "labels": torch.tensor([1, 1, 2]),
        "partner_labels": torch.tensor([1, 2, 1]),
        "shares": torch.tensor([1.0, 0.75, 0.5]),
    }
    assert module._row_weights(batch).tolist() == [4.0, 3.25, 2.5]


def test_hits_are_counted_by_the_label_with_the_larger_share() -> None:
    batch = {
        "labels": torch.tensor([1, 1, 2, 5]),
        "partner_labels": torch.tensor([1, 2, 1, 6]),
        "shares": torch.tensor([1.0, 0.05, 0.5, 0.75]),
    }
    assert student_module._larger_labels(batch).tolist() == [1, 2, 2, 5]


def test_the_momentum_of_batch_norms() -> None:
    norms = [part for part in build(bn_momentum=0.003).student.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert len(norms) > 3 and {norm.momentum for norm in norms} == {0.003}
    module = build(bn_momentum=0.003, ema_decay=0.9)
    assert {p.momentum for p in module.eval_model.modules() if isinstance(p, torch.nn.BatchNorm2d)} == {0.003}
    assert {p.momentum for p in build().student.modules() if isinstance(p, torch.nn.BatchNorm2d)} == {0.1}
    with pytest.raises(ConfigError, match="--bn-momentum 0: expected more than 0, up to 1"):
        build(bn_momentum=0)


def test_momentum_and_weight_decay_are_tensorflows() -> None:
    """accum = momentum * accum + (gradient + decay * weight), weight -= lr * accum: no Nesterov, no dampening."""
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    optimizer = create_optimizer_v2([weight], opt="momentum", lr=0.1, weight_decay=0.01, momentum=0.9)
    expected, accum = weight.detach().clone(), torch.zeros(1, 2, dtype=torch.float64)
    for step in range(4):
        gradient = torch.tensor([[0.5 * step, 1.0]], dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        accum = 0.9 * accum + gradient + 0.01 * expected
        expected = expected - 0.1 * accum
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-14, atol=0)


SEEN_PROGRESS: list[float] = []


@register_model
def teachonce_test_progress(pretrained: bool = False, **options) -> torch.nn.Module:
    """A network that wants to know how far the training is."""
    model = timm.create_model("test_resnet", pretrained=pretrained, **options)
    model.set_progress = SEEN_PROGRESS.append
    return model


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_student_that_asks_is_told_how_far_the_training_is(digits: Path, tmp_path: Path, accumulate: int) -> None:
    SEEN_PROGRESS.clear()
    config = TrainConfig(
        data=digits, student="timm:teachonce_test_progress", out=tmp_path / "run", epochs=2, size=16, device="cpu",
        validation_split=None, batch_size=48 // accumulate, accumulate=accumulate,
    )  # fmt: skip
    train(config)
    assert SEEN_PROGRESS == [0, 0.25, 0.5, 0.75]


NUM_FORWARD: list[int] = []
BAD_BATCH = 0


class Breaking(torch.nn.Module):
    """A network whose logits are NaN in one batch of the training."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.inner(images)
        if not self.training:
            return logits
        NUM_FORWARD.append(len(images))
        return logits * torch.nan if len(NUM_FORWARD) == BAD_BATCH else logits


@register_model
def teachonce_test_breaking(pretrained: bool = False, **options) -> torch.nn.Module:
    return Breaking(timm.create_model("test_resnet", pretrained=pretrained, **options))


# 96 images in batches of 16: six of them an epoch; the eighth is in the middle, the twelfth ends the second epoch.
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(("bad_batch", "accumulate"), [(1, 1), (8, 1), (12, 1), (8, 3), (12, 3)])
def test_a_loss_that_is_not_finite_ends_the_training_within_an_update(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_late: bool, bad_batch: int, accumulate: int
) -> None:
    """``is_late`` is how a GPU's losses are looked at."""
    NUM_FORWARD.clear()
    monkeypatch.setattr(sys.modules[__name__], "BAD_BATCH", bad_batch)
    monkeypatch.setattr(student_module, "LossWatch", partial(LossWatch, is_late=is_late))
    config = TrainConfig(
        data=digits, student="timm:teachonce_test_breaking", out=tmp_path / "run", epochs=3, batch_size=16, size=16,
        device="cpu", validation_split=None, accumulate=accumulate, ema_decay=0.9,
    )  # fmt: skip
    update, epoch = (bad_batch - 1) // accumulate + 1, (bad_batch - 1) // 6 + 1
    with pytest.raises(TeachonceError, match=rf"the loss is not finite in update {update} \(epoch {epoch}\); lower"):
        train(config)
    assert len(NUM_FORWARD) == bad_batch + (is_late and bad_batch != 12)
    assert [row["epoch"] for row in read_metrics(config.out)] == [1][: epoch - 1]
    checkpoints = list((config.out / "checkpoints").glob("*.ckpt"))
    assert len(checkpoints) == (epoch > 1) and not (config.out / "student.safetensors").exists()
    for checkpoint in checkpoints:
        found = torch.load(checkpoint, weights_only=True)
        assert found["global_step"] == 6 // accumulate
        assert all(torch.isfinite(tensor).all() for tensor in found["state_dict"].values())


def test_all_that_is_kept_is_looked_at() -> None:
    module = build(ema_decay=0.9)
    assert module.average is not None
    module.student.register_buffer("mask", torch.tensor([0.0, -torch.inf]))  # what no update makes
    module.check_weights(with_statistics=True)
    for model in (module.student, module.average.model):
        for value, has_statistics in ((next(model.parameters()), False), (model.get_buffer("bn1.running_var"), True)):
            for bad in (torch.nan, torch.inf, -torch.inf):
                kept = value.detach().clone()
                with torch.no_grad():
                    value[0] = bad
                with pytest.raises(TeachonceError, match="the weights are not finite"):
                    module.check_weights(with_statistics=True)
                if has_statistics:
                    module.check_weights()
                with torch.no_grad():
                    value.copy_(kept)
    module.check_weights(with_statistics=True)


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
    weights = load_file(tmp_path / "run" / "student.safetensors")
    assert weights.keys() == build_student("timm:test_resnet", 10).state_dict().keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, state[f"ema.module.{name}"])
    assert any(not torch.equal(tensor, state[f"student.{name}"]) for name, tensor in weights.items())


def test_compiled_for_each_batch_size() -> None:
    """Batches of an epoch differ by one image: code for any size, which PyTorch makes at the second one, is slower."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    config = TrainConfig(data=Path("data"), student="timm:test_resnet", out=Path("run"), compile=True)
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    module = StudentModule(student, config, Preprocessing(size_px=2, resize_px=2), 4)
    for num_images in (5, 6, 7, 5, 6, 7):
        assert module(torch.zeros(num_images, 2, 2, 3, dtype=torch.uint8)).shape == (num_images, 4)
    assert counters["stats"]["unique_graphs"] == 3


def test_an_online_teacher_answers_beside_the_student() -> None:
    """Also one whose backend leaves its logits on the CPU, as those of ONNX do."""
    space = ClassSpace(num_classes=4)
    teacher = SimpleNamespace(logits=lambda pixels: torch.zeros(len(pixels), 4))
    pixels = torch.zeros(2, 8, 8, 3, dtype=torch.uint8, device="meta")
    assert OnlineTeacher(teacher, space, space)(pixels).device.type == "meta"
