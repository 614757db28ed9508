"""Schedules: timm's to the bit, TensorFlow's to rounding, and values computed by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.scheduler import create_scheduler_v2

from teachonce.errors import ConfigError
from teachonce.training.config import TrainConfig
from teachonce.training.schedules import (
    LearningRate,
    build_schedule,
    cosine_lr,
    exponential_lr,
    fixed_lr,
    piecewise_lr,
    polynomial_lr,
    scale_lr,
    warmup_lr,
)


def options(**settings: Any) -> TrainConfig:
    return TrainConfig(data=Path("d"), student="s", out=Path("o"), **settings)


def curve(updates_per_epoch: int = 10, **settings: Any) -> list[float]:
    """The rate of each update, and of the one that would follow the last."""
    config = options(**settings)
    schedule = build_schedule(config, config.lr, updates_per_epoch)
    return [schedule(update) for update in range(config.epochs * updates_per_epoch + 1)]


@pytest.mark.parametrize("updates_per_epoch", [1, 3, 17])
@pytest.mark.parametrize("warmup_epochs", [0.0, 1.0, 1.5, 5.0])
@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "cosine"},
        {"schedule": "cosine", "min_lr": 0.003},
        {"schedule": "cosine", "warmup_prefix": True},
        {"schedule": "step", "step_epochs": 2, "step_rate": 0.3},
    ],
)
def test_timms_schedules_bit_for_bit(settings: dict, warmup_epochs: float, updates_per_epoch: int) -> None:
    """So runs that were begun with timm's own schedulers go on with the same numbers."""
    config = options(epochs=9, lr=0.37, warmup_epochs=warmup_epochs, **settings)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=config.schedule,
        # With a prefix timm counts the warm-up beyond num_epochs.
        num_epochs=config.epochs - warmup_epochs if config.warmup_prefix else config.epochs,
        warmup_epochs=warmup_epochs,  # type: ignore[arg-type]
        warmup_lr=0.0,
        warmup_prefix=config.warmup_prefix,
        min_lr=config.min_lr,
        decay_epochs=config.step_epochs,
        decay_rate=config.step_rate,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    schedule = build_schedule(config, config.lr, updates_per_epoch)
    for update in range(9 * updates_per_epoch + 1):
        scheduler.step_update(update)
        assert optimizer.param_groups[0]["lr"] == schedule(update), update


def test_the_walkthroughs_schedules_are_tensorflows(tensorflow: Any) -> None:
    """TensorFlow computes in float32: 2^-23 relative, a few roundings, and the error of its cosine (absolute)."""
    v1 = tensorflow.compat.v1.train
    total, decay, peak = 400, 50, 0.4
    boundaries, rates = [100, 250], [1.0, 0.1, 0.01]
    for update in (0, 1, 49, 50, 99, 100, 101, 200, 250, 251, 399, 400, 450):
        step = tensorflow.constant(update)

        def value(schedule: Any) -> float:
            return float(schedule() if callable(schedule) else schedule)

        pairs = [
            (cosine_lr(update, peak, 0.0, total), v1.cosine_decay(peak, step, total)),
            (exponential_lr(update, peak, 0.94, decay), v1.exponential_decay(peak, step, decay, 0.94, staircase=True)),
            (polynomial_lr(update, peak, 1e-4, total), v1.polynomial_decay(peak, step, total, 1e-4, power=1.0)),
            (
                piecewise_lr(update, peak, boundaries, rates),
                v1.piecewise_constant(step, boundaries, [peak * rate for rate in rates]),
            ),
        ]
        for ours, theirs in pairs:
            assert ours == pytest.approx(value(theirs), rel=8 * 2**-23, abs=2**-23), update


def test_values_by_hand() -> None:
    assert [warmup_lr(update, 0.4, 5) for update in range(6)] == pytest.approx([0, 0.08, 0.16, 0.24, 0.32, 0.4])
    assert [cosine_lr(update, 0.4, 0.0, 4) for update in range(6)] == pytest.approx(
        [0.4, 0.2 * (1 + math.sqrt(0.5)), 0.2, 0.2 * (1 - math.sqrt(0.5)), 0, 0]
    )
    assert [polynomial_lr(update, 0.5, 0.1, 4) for update in range(6)] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
    assert [exponential_lr(update, 0.4, 0.5, 2) for update in range(5)] == [0.4, 0.4, 0.2, 0.2, 0.1]
    assert [piecewise_lr(update, 0.5, [2, 3], [1, 0.5, 0.25]) for update in range(5)] == [0.5, 0.5, 0.5, 0.25, 0.125]
    assert fixed_lr(1000, 0.4) == 0.4


def test_the_walkthroughs_120_epochs() -> None:
    """0.4 at batch 1024, 5 epochs of warm-up, then the whole cosine."""
    rates = curve(1252, schedule="cosine", warmup_prefix=True, warmup_epochs=5, epochs=120, lr=0.4)
    warmup, total = 5 * 1252, 120 * 1252
    assert rates[0] == 0 and rates[1] == pytest.approx(0.4 / warmup)
    assert rates[warmup] == 0.4 and rates[total] == 0
    assert rates[warmup + (total - warmup) // 2] == pytest.approx(0.2)
    assert max(abs(a - b) for a, b in pairwise(rates)) <= 0.4 / warmup * (1 + 1e-12)


def test_where_each_kind_begins() -> None:
    """Exponential and polynomial after the warm-up, piecewise at the first update; each has the warm-up in front."""
    common = {"lr": 0.4, "epochs": 6, "warmup_epochs": 2}
    exponential = curve(schedule="exponential", decay_rate=0.5, **common)
    assert exponential[20:] == [0.4] * 20 + [0.2] * 20 + [0.1], "2 epochs a stair, the walkthrough's default"
    assert curve(schedule="exponential", decay_rate=0.5, decay_epochs=0.5, **common)[24:26] == [0.4, 0.2]
    polynomial = curve(schedule="polynomial", min_lr=0.1, **common)
    assert polynomial[20] == 0.4 and polynomial[40] == pytest.approx(0.25) and polynomial[60] == pytest.approx(0.1)
    assert curve(schedule="polynomial", decay_epochs=2, **common)[30:41:10] == pytest.approx([0.2, 0])
    piecewise = curve(schedule="piecewise", boundary_epochs=(3, 5), boundary_rates=(1, 0.5, 0.25), **common)
    assert piecewise[20:] == [0.4] * 11 + [0.2] * 20 + [0.1] * 10
    assert curve(schedule="fixed", **common)[20:] == [0.4] * 41
    for rates in (exponential, polynomial, piecewise):
        assert rates[:20] == [update * (0.4 / 20) for update in range(20)]


@given(
    schedule=st.sampled_from(["cosine", "exponential", "polynomial", "piecewise", "step", "fixed"]),
    warmup=st.sampled_from([0.0, 0.5, 2.0]),
    updates=st.integers(1, 9),
    prefix=st.booleans(),
)
def test_no_rate_leaves_0_to_the_peak_and_none_rises_after_the_warmup(
    schedule: Any, warmup: float, updates: int, prefix: bool
) -> None:
    prefix = prefix and schedule == "cosine"
    rates = curve(updates, schedule=schedule, epochs=8, lr=0.4, warmup_epochs=warmup, warmup_prefix=prefix)
    assert all(0 <= rate <= 0.4 for rate in rates)
    after = rates[math.ceil(warmup * updates) :]
    assert all(a >= b for a, b in pairwise(after))


def test_the_optimizer_gets_the_rate() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr_scale": 0.5}], lr=1.0)
    rate = LearningRate(optimizer, lambda update: 0.1 * (update + 1))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]
    rate.step_update(3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.4, 0.2]
    rate.load_state_dict(rate.state_dict() | {"t_initial": 9})  # what timm's schedulers kept in older checkpoints


def test_the_peak_is_that_of_the_images_of_an_update() -> None:
    config = options(lr=0.4, lr_batch=1024, batch_size=128, min_lr=0.5)  # a peak of 0.8 on 16 devices
    assert scale_lr(config, 16) == 0.8
    assert (
        scale_lr(options(lr=0.4, lr_batch=1024, batch_size=128, accumulate=8), 1) == 0.4 == scale_lr(options(lr=0.4), 9)
    )
    with pytest.raises(ConfigError, match=r"--min-lr 0\.5: expected at most 0\.4, .* is for 1024 images an update"):
        scale_lr(config, 8)
    with pytest.raises(ConfigError, match=r"--min-lr 0\.5: expected at most --lr 0\.4"):
        options(lr=0.4, min_lr=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay_rate": 0}, "--decay-rate 0: expected more than 0, up to 1"),
        ({"decay_epochs": 0}, "--decay-epochs 0: expected more than 0"),
        ({"lr_batch": 0}, "--lr-batch 0: expected at least 1"),
        ({"boundary_epochs": (30, 30), "boundary_rates": (1, 1, 1)}, "--boundary-epochs 30 30: expected epochs from 1"),
        ({"boundary_epochs": (), "boundary_rates": (1,)}, "--boundary-epochs : expected"),
        ({"boundary_epochs": (0, 3), "boundary_rates": (1, 1, 1)}, "--boundary-epochs 0 3: expected"),
        ({"boundary_epochs": (30,)}, r"--boundary-rates 1.0 0.1 0.01 0.001 0.0001: expected 2 factors of 0 or more"),
        (
            {"schedule": "polynomial", "epochs": 3, "warmup_epochs": 3},
            "--warmup-epochs 3: expected less than --epochs 3: --schedule polynomial starts after it",
        ),
    ],
)
def test_what_cannot_be_meant(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**settings)
