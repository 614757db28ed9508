"""Slow references: the losses and metrics as plain loops in Python's float64, to hold the fast ones against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Rows = Sequence[Sequence[float]]


def softmax(row: Sequence[float]) -> list[float]:
    largest = max(row)
    weights = [math.exp(value - largest) for value in row]  # exp(-inf) is 0
    return [weight / sum(weights) for weight in weights]


def log_softmax(row: Sequence[float]) -> list[float]:
    largest = max(row)
    log_total = math.log(sum(math.exp(value - largest) for value in row))
    return [value - largest - log_total for value in row]


def kd_loss(student_logits: Rows, teacher_logits: Rows, temperature: float) -> float:
    """T^2 * CE(softmax(teacher / T), softmax(student / T)), mean over the batch."""
    total = 0.0
    for student, teacher in zip(student_logits, teacher_logits, strict=True):
        teacher_probs = softmax([value / temperature for value in teacher])
        student_log_probs = log_softmax([value / temperature for value in student])
        for prob, log_prob in zip(teacher_probs, student_log_probs, strict=True):
            if prob > 0:
                total -= prob * log_prob
    return temperature**2 * total / len(student_logits)


def weighted(
    loss: Callable[[Rows, Rows, float], float],
    logits: Rows,
    targets: Rows,
    setting: float,
    weights: Sequence[float],
) -> float:
    """A loss whose rows have weights: sum(w_i loss_i) / B, a row at a time."""
    alone = [loss([own], [target], setting) for own, target in zip(logits, targets, strict=True)]
    return sum(weight * value for weight, value in zip(weights, alone, strict=True)) / len(alone)


def kd_gradient(student_logits: Rows, teacher_logits: Rows, temperature: float) -> list[list[float]]:
    """d kd_loss / d student_logits = T * (softmax(student / T) - softmax(teacher / T)) / B."""
    gradient = []
    for student, teacher in zip(student_logits, teacher_logits, strict=True):
        student_probs = softmax([value / temperature for value in student])
        teacher_probs = softmax([value / temperature for value in teacher])
        row = [temperature * (s - t) for s, t in zip(student_probs, teacher_probs, strict=True)]
        gradient.append([value / len(student_logits) for value in row])
    return gradient


def label_loss(student_logits: Rows, label_probs: Rows, smoothing: float) -> float:
    """CE((1 - smoothing) * label + smoothing / C, softmax(student)), mean over the batch."""
    total = 0.0
    for student, probs in zip(student_logits, label_probs, strict=True):
        for prob, log_prob in zip(probs, log_softmax(student), strict=True):
            total -= ((1 - smoothing) * prob + smoothing / len(probs)) * log_prob
    return total / len(student_logits)


def top_k_accuracy(logits: Rows, labels: Sequence[int], k: int) -> float:
    """Share of rows whose label is among the k largest logits (no ties expected)."""
    hits = 0
    for row, label in zip(logits, labels, strict=True):
        hits += sum(value > row[label] for value in row) < k
    return hits / len(labels)


def calibration_error(logits: Rows, labels: Sequence[int], num_bins: int) -> float:
    """sum over bins of (count / N) * |accuracy - mean confidence|, bins of equal width over 0..1."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(num_bins)]
    for row, label in zip(logits, labels, strict=True):
        probs = softmax(row)
        confidence = max(probs)
        bins[min(int(confidence * num_bins), num_bins - 1)].append((confidence, probs.index(confidence) == label))
    error = 0.0
    for members in filter(None, bins):
        accuracy = sum(is_hit for _, is_hit in members) / len(members)
        confidence = sum(confidence for confidence, _ in members) / len(members)
        error += len(members) / len(labels) * abs(accuracy - confidence)
    return error
