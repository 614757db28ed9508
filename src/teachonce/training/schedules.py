"""Learning rate schedules: pure functions of the number of updates done, in Python's float64.

``cosine`` and ``step`` are timm's, to the bit (tests/training/test_schedules.py). The others, and ``--warmup-prefix``,
follow the walkthrough's training code (Lee et al. 2020, arXiv:2001.06268), whose functions are TensorFlow 1's. There
exponential, polynomial and cosine begin after the warm-up, piecewise counts from the first update; in timm the warm-up
replaces the first part of a curve that counts from the first update. An epoch here is an integer number of updates,
there it is N / batch, so boundaries may differ by a few updates.

Every function gives the rate of the update that follows ``update`` earlier ones, so the first is ``update`` 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer

from teachonce.errors import ConfigError
from teachonce.training.config import TrainingOptions

Schedule = Callable[[int], float]
"""The learning rate of an update, from the number of updates before it."""
DEFAULT_DECAY_EPOCHS = 2.0
"""Epochs between two decays of ``exponential``: the walkthrough's default."""


def warmup_lr(update: int, peak_lr: float, warmup_updates: float) -> float:
    """peak * update / warmup: linear from 0; it reaches the peak at ``warmup_updates``, where it ends."""
    return update * (peak_lr / warmup_updates)


def fixed_lr(update: int, peak_lr: float) -> float:
    """The peak, always."""
    return peak_lr


def cosine_lr(update: int, peak_lr: float, end_lr: float, num_updates: float) -> float:
    """end + (peak - end) * (1 + cos(pi * update / num_updates)) / 2, and end after that.

    Loshchilov and Hutter 2016, arXiv:1608.03983, equation 5, without restarts.
    """
    if update >= num_updates:
        return end_lr
    return end_lr + 0.5 * (peak_lr - end_lr) * (1 + math.cos(math.pi * update / num_updates))


def polynomial_lr(update: int, peak_lr: float, end_lr: float, num_updates: float) -> float:
    """end + (peak - end) * (1 - update / num_updates), and end after that: power 1, as the walkthrough has it."""
    return end_lr + (peak_lr - end_lr) * (1 - min(update / num_updates, 1.0))


def exponential_lr(update: int, peak_lr: float, decay_rate: float, decay_updates: float) -> float:
    """peak * rate ^ floor(update / decay_updates): a staircase; ``step`` is the same."""
    return peak_lr * decay_rate ** (update // decay_updates)


def piecewise_lr(update: int, peak_lr: float, boundaries: Sequence[float], rates: Sequence[float]) -> float:
    """peak * rates[i], i the number of boundaries below ``update``: at a boundary itself still the rate before it."""
    assert len(rates) == len(boundaries) + 1
    return peak_lr * rates[sum(update > boundary for boundary in boundaries)]


def scale_lr(options: TrainingOptions, world_size: int) -> float:
    """The peak: ``--lr``, scaled from ``--lr-batch`` to the images of an update on so many devices.

    ConfigError where it is below ``--min-lr``: the rate would rise to its end.
    """
    if options.lr_batch is None:
        return options.lr
    images = options.batch_size * options.accumulate * world_size
    peak_lr = options.lr * (images / options.lr_batch)
    if options.min_lr > peak_lr:
        raise ConfigError(
            f"--min-lr {options.min_lr:g}: expected at most {peak_lr:g}, which --lr {options.lr:g} for --lr-batch "
            f"{options.lr_batch} is for {images} images an update"
        )
    return peak_lr


def build_schedule(options: TrainingOptions, peak_lr: float, updates_per_epoch: int) -> Schedule:
    """The schedule that options mean, in updates: with its warm-up, and started where its kind begins."""
    warmup = options.warmup_epochs * updates_per_epoch
    total = options.epochs * updates_per_epoch
    begin = warmup if options.begins_after_warmup else 0
    stair: float
    curve: Schedule
    match options.schedule:
        case "cosine":
            curve = partial(cosine_lr, peak_lr=peak_lr, end_lr=options.min_lr, num_updates=total - begin)
        case "step":
            stair = options.step_epochs * updates_per_epoch
            curve = partial(exponential_lr, peak_lr=peak_lr, decay_rate=options.step_rate, decay_updates=stair)
        case "exponential":
            stair = (options.decay_epochs or DEFAULT_DECAY_EPOCHS) * updates_per_epoch
            curve = partial(exponential_lr, peak_lr=peak_lr, decay_rate=options.decay_rate, decay_updates=stair)
        case "polynomial":
            length = total - begin if options.decay_epochs is None else options.decay_epochs * updates_per_epoch
            curve = partial(polynomial_lr, peak_lr=peak_lr, end_lr=options.min_lr, num_updates=length)
        case "piecewise":
            boundaries = [int(epoch * updates_per_epoch) for epoch in options.boundary_epochs]
            curve = partial(piecewise_lr, peak_lr=peak_lr, boundaries=boundaries, rates=options.boundary_rates)
        case "fixed":
            curve = partial(fixed_lr, peak_lr=peak_lr)
    return lambda update: warmup_lr(update, peak_lr, warmup) if update < warmup else curve(update - begin)


class LearningRate:
    """Sets an optimizer's learning rate by a schedule; what it sets follows from the update alone, so it has no state.

    ``lr_scale`` of a parameter group, where it has one, is a factor on top (timm's layer-wise decay).
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.step_update(0)

    def step_update(self, num_updates: int) -> None:
        """Set the rate of the update that follows ``num_updates``."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(num_updates) * group.get("lr_scale", 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Nothing to restore, whatever an older version put there."""
