"""The losses of distillation: of labels and of stored teacher logits.

The student's total loss is ``label_weight * label_loss + kd_weight * kd_loss``; the weights belong to the trainer.
Temperature is applied here, to teacher and student alike; a sparse codec gets it too, because it estimates the
logits that it did not keep for one temperature. Every function computes in float32 whatever comes in (bf16 has 8 bits
of mantissa: a log-softmax over 1000 classes in it is off by whole percents), returns the mean over the batch, and
passes no gradient to the teacher. Shapes are compared before anything is computed: torch would broadcast [B, 1], or
[B, M, C] where B = M, to a number that looks like a loss. It costs nothing on a device, whose values are not read.

Deliberately not included: losses over features, or over sparse logits that stay sparse.

Hinton et al. 2015, arXiv:1503.02531 (section 2: softened targets and T^2); Szegedy et al. 2015, arXiv:1512.00567
(section 7: label smoothing); Zhang et al. 2017, arXiv:1710.09412 (mixup). ``tests/support/reference.py`` has the same
as plain loops.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from teachonce.codecs.softmax import check_temperature
from teachonce.errors import ConfigError


def soften(logits: Float[Tensor, "B C"], temperature: float) -> Float[Tensor, "B C"]:
    """softmax(logits / T) in float32; a logit of -inf (a class that the teacher lacks) is exactly 0 at any T."""
    check_temperature(temperature)
    return torch.softmax(logits.float() / temperature, dim=1)


def average_probs(logits: Float[Tensor, "B M C"], temperature: float, weights: Sequence[float]) -> Float[Tensor, "B C"]:
    """Weighted mean of M teachers' softmax(logits / T); the weights sum to 1.

    Probabilities are averaged, not logits: the mean of logits is a geometric mean, in which the most doubtful teacher
    vetoes (You et al. 2017, "Learning from multiple teacher networks", section 3, averages softened outputs too).
    """
    check_temperature(temperature)
    if len(weights) != logits.shape[1]:
        raise ConfigError(f"weights: {len(weights)}, expected one of each of the {logits.shape[1]} teachers")
    probs = torch.softmax(logits.float() / temperature, dim=2)
    # Not as a matrix product, which mixed precision would do in 16 bits.
    shares = torch.tensor(weights, dtype=torch.float32).to(logits.device, non_blocking=logits.is_cuda)
    return (probs * shares[:, None]).sum(dim=1)


def kd_loss(
    student_logits: Float[Tensor, "B C"],
    teacher_logits: Float[Tensor, "B C"] | Float[Tensor, "B M C"],
    temperature: float,
) -> Float[Tensor, ""]:
    """T^2 * CE(softmax(teacher / T), softmax(student / T)), mean over the batch, in nats.

    Hinton et al. 2015, section 2; T^2 keeps the gradient's scale independent of T. Differs from T^2 * KL by the
    teacher's entropy, which has no gradient: at student = teacher the gradient is 0, the loss T^2 times that entropy.
    Teacher logits may be -inf (not all of a row); student logits are finite.

    Of M teachers, [B, M, C] as ``StoredLogits`` of several stores has them, the softened probabilities are averaged,
    each teacher's with the same weight.

    Raises ConfigError for other shapes, for a batch without rows, and for a temperature that is not above 0.
    """
    _check_student(student_logits)
    (num_rows, num_classes), shape = student_logits.shape, tuple(teacher_logits.shape)
    if shape == (num_rows, num_classes):
        teacher_probs = soften(teacher_logits, temperature)
    elif len(shape) == 3 and shape[1] > 0 and shape == (num_rows, shape[1], num_classes):
        teacher_probs = average_probs(teacher_logits, temperature, [1 / shape[1]] * shape[1])
    else:
        expected = f"[{num_rows}, {num_classes}] as student_logits, or [{num_rows}, M, {num_classes}] of M teachers"
        raise ConfigError(f"teacher_logits {list(shape)}: expected {expected}")
    return kd_loss_from_probs(student_logits, teacher_probs, temperature)


def kd_loss_from_probs(
    student_logits: Float[Tensor, "B C"],
    teacher_probs: Float[Tensor, "B C"],
    temperature: float,
    row_weights: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """``kd_loss`` for teacher probabilities that are softened already (``soften``), such as mixed ones.

    Mixup mixes probabilities, not logits: a linear mix of logits is a geometric mean of distributions.
    With ``row_weights`` w the mean is sum(w_i loss_i) / B: not divided by the weights of the batch (``label_loss``).
    """
    check_temperature(temperature)
    _check_student(student_logits)
    _check_shape("teacher_probs", teacher_probs, student_logits.shape)
    _check_row_weights(row_weights, student_logits)
    student_log_probs = torch.log_softmax(student_logits.float() / temperature, dim=1)
    return temperature**2 * _cross_entropy(teacher_probs.detach().float(), student_log_probs, row_weights)


def label_loss(
    student_logits: Float[Tensor, "B C"],
    labels: Int[Tensor, " B"] | Float[Tensor, "B C"],
    smoothing: float = 0.0,
    row_weights: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """CE((1 - smoothing) * label + smoothing / C, softmax(student)), mean over the batch, in nats.

    ``labels`` are class indices, or probabilities where labels are mixed (``label_probs``, ``weigh_targets``). With
    ``row_weights`` w it is sum(w_i loss_i) / B. PyTorch's own class weights divide by sum(w_i) of the batch, so that a
    record would count by who its neighbors are, and otherwise on several devices than on one.

    Raises ConfigError for other shapes, for a batch without rows, and for a smoothing outside 0 to 1.
    """
    _check_student(student_logits)
    _check_row_weights(row_weights, student_logits)
    _check_shape("labels", labels, student_logits.shape if labels.is_floating_point() else student_logits.shape[:1])
    if not 0 <= smoothing <= 1:
        raise ConfigError(f"smoothing {smoothing}: expected 0 to 1")
    if labels.is_floating_point():
        labels = labels.float()
    logits = student_logits.float()
    if row_weights is None:
        return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    losses = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    return (row_weights * losses).mean()


def label_probs(labels: Int[Tensor, " B"], num_classes: int) -> Float[Tensor, "B {num_classes}"]:
    """Labels as one-hot float32 rows."""
    return torch.nn.functional.one_hot(labels, num_classes).float()


def weigh_targets(
    probs: Float[Tensor, "A C"], row_weights: Float[Tensor, " A"], smoothing: float = 0.0
) -> Float[Tensor, "A C"]:
    """w_i ((1 - smoothing) probs_i + smoothing / C): targets that have the weights of their rows in them, to be mixed.

    Cross-entropy is linear in its target, so a mixture of such rows, given to ``label_loss`` or ``kd_loss_from_probs``
    without weights, is the mixture of the weighted losses.
    """
    smoothed = (1 - smoothing) * probs.float() + smoothing / probs.shape[1]
    return row_weights[:, None] * smoothed


def _cross_entropy(
    probs: Float[Tensor, "B C"], log_probs: Float[Tensor, "B C"], row_weights: Float[Tensor, " B"] | None
) -> Float[Tensor, ""]:
    losses = (probs * log_probs).sum(dim=1)
    return -(losses if row_weights is None else row_weights * losses).mean()


def _check_student(student_logits: Tensor) -> None:
    if student_logits.ndim != 2 or not len(student_logits):
        # The mean over no rows is NaN, which an optimizer writes into every weight.
        raise ConfigError(f"student_logits {list(student_logits.shape)}: expected [B, C] with at least one row")


def _check_row_weights(row_weights: Tensor | None, student_logits: Tensor) -> None:
    if row_weights is not None:
        _check_shape("row_weights", row_weights, student_logits.shape[:1])


def _check_shape(name: str, found: Tensor, expected: torch.Size) -> None:
    if found.shape != expected:
        raise ConfigError(f"{name} {list(found.shape)}: expected {list(expected)}, after student_logits")
