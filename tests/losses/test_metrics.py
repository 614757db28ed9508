"""Top-1, top-5, ECE and loss against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassCalibrationError

from teachonce.losses.metrics import NUM_ECE_BINS, CalibrationError, ClassifierMetrics
from tests.support import reference


def random_logits(seed: int, num: int, classes: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, num)
    logits = rng.normal(0, scale, (num, classes)).astype(np.float32)
    logits[np.arange(num), labels] += scale
    return torch.from_numpy(logits), torch.from_numpy(labels)


def compute(logits: torch.Tensor, labels: torch.Tensor, batch_size: int = 7) -> dict[str, float]:
    metrics = ClassifierMetrics(logits.shape[1])
    for first in range(0, len(labels), batch_size):
        metrics.update(logits[first : first + batch_size], labels[first : first + batch_size])
    return metrics.compute()


@example(seed=2, num=2, classes=2, scale=8.0)  # a confidence that is 1 in float32
@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 12), st.sampled_from([0.3, 2.0, 8.0]))
def test_against_plain_loops(seed: int, num: int, classes: int, scale: float) -> None:
    logits, labels = random_logits(seed, num, classes, scale)
    found = compute(logits, labels)
    rows, indices = logits.tolist(), labels.tolist()
    assert found["top1"] == pytest.approx(reference.top_k_accuracy(rows, indices, 1))
    assert found["top5"] == pytest.approx(reference.top_k_accuracy(rows, indices, 5))
    # A confidence within a float32 rounding of a bin's border may fall to either side: of N records one moves.
    assert found["ece"] == pytest.approx(reference.calibration_error(rows, indices, NUM_ECE_BINS), abs=1e-5)
    one_hot = torch.nn.functional.one_hot(labels, classes).tolist()
    assert found["loss"] == pytest.approx(reference.label_loss(rows, one_hot, 0.0), rel=1e-5, abs=1e-6)


def test_accuracies_are_the_exact_quotients_of_counts() -> None:
    """Not 0.8999999761581421, which is 9 of 10 in float32."""
    labels = torch.arange(10)
    logits = torch.nn.functional.one_hot(labels, 10).float()
    logits[3] = torch.linspace(1, 0, 10)  # class 3 is its fourth
    logits[7, 7], logits[7, :6] = -1.0, torch.arange(6.0)  # class 7 its last
    found = compute(logits, labels)
    assert found["top1"] == 8 / 10 and found["top5"] == 9 / 10


def test_batch_size_does_not_matter() -> None:
    logits, labels = random_logits(0, 50, 10, 2.0)
    assert compute(logits, labels, 50) == pytest.approx(compute(logits, labels, 3), rel=1e-6)


def test_logits_between_0_and_1_are_still_logits() -> None:
    # Taken for probabilities, a confidence of 0.9 would be half wrong: ECE 0.4. As logits: softmax(0.9, 0) = 0.711.
    logits, labels = torch.tensor([[0.9, 0.0], [0.9, 0.0]]), torch.tensor([0, 1])
    assert compute(logits, labels)["ece"] == pytest.approx(0.7109 - 0.5, abs=1e-4)


def test_a_class_that_the_model_lacks_counts_as_wrong() -> None:
    logits = torch.tensor([[-torch.inf, 3.0, 1.0], [-torch.inf, 3.0, 1.0]])
    found = compute(logits, torch.tensor([0, 1]))
    assert found["top1"] == 0.5
    assert np.isfinite(found["ece"])


def test_low_precision_logits_and_empty_batches() -> None:
    logits, labels = random_logits(0, 50, 10, 2.0)
    metrics = ClassifierMetrics(10)
    metrics.update(logits.bfloat16(), labels)
    metrics.update(logits[:0], labels[:0])
    assert metrics.compute() == pytest.approx(compute(logits.bfloat16().float(), labels), rel=1e-5)


def test_reset_forgets() -> None:
    logits, labels = random_logits(0, 50, 10, 2.0)
    metrics = ClassifierMetrics(10)
    metrics.update(-logits, labels)
    metrics.compute()
    metrics.reset()
    metrics.update(logits, labels)
    assert metrics.compute() == pytest.approx(compute(logits, labels), rel=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 12), st.sampled_from([0.3, 2.0, 8.0]))
def test_ece_is_that_of_torchmetrics(seed: int, num: int, classes: int, scale: float) -> None:
    logits, labels = random_logits(seed, num, classes, scale)
    expected = MulticlassCalibrationError(classes, n_bins=NUM_ECE_BINS, norm="l1")
    # It gives a confidence of exactly 1 a bin of its own.
    expected.update(torch.softmax(logits, dim=1).clamp_max(1 - 2.0**-24), labels)
    # Float32 sums of at most 60 confidences there: 60 roundings of 2^-24.
    assert compute(logits, labels)["ece"] == pytest.approx(float(expected.compute()), abs=4e-6)


def test_ece_of_as_many_images_as_imagenet() -> None:
    """One bin of a million images, in which a float32 sum stops to grow by what it is given."""
    rng = np.random.default_rng(0)
    num, num_batches = 1_281_167, 40
    confidences = rng.uniform(0.94, 1, num).astype(np.float32)
    hits = rng.random(num) < confidences
    metric = CalibrationError()
    probs, labels = torch.from_numpy(np.stack([confidences, 1 - confidences], axis=1)), torch.from_numpy(1 - hits)
    for batch, of_batch in zip(probs.chunk(num_batches), labels.chunk(num_batches), strict=True):
        metric.update(batch, of_batch)
    expected = abs(confidences.astype(np.float64).mean() - hits.mean())
    # A step of a confidence is 2^-32; these all are multiples of 2^-24, so only the division rounds.
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-12)
    backward = CalibrationError()
    for batch, of_batch in zip(
        probs.flip(0).chunk(7 * num_batches), labels.flip(0).chunk(7 * num_batches), strict=True
    ):
        backward.update(batch, of_batch)
    assert torch.equal(backward.sums, metric.sums)


def test_memory_does_not_grow_with_the_images() -> None:
    logits, labels = random_logits(0, 50, 10, 2.0)
    metrics = ClassifierMetrics(10)

    def num_values() -> int:
        kept = [getattr(part, name) for part in metrics.children() for name in part.metric_state]
        return sum(value.numel() if isinstance(value, torch.Tensor) else len(value) for value in kept)

    metrics.update(logits, labels)
    num_before = num_values()
    for _ in range(5):
        metrics.update(logits, labels)
    assert num_values() == num_before


def test_calibration_that_was_reset_in_inference_mode_is_updated_outside_it():
    metric = CalibrationError()
    with torch.inference_mode():
        metric.update(torch.tensor([[0.9, 0.1]]), torch.tensor([0]))
        metric.reset()
    metric.update(torch.tensor([[0.75, 0.25]]), torch.tensor([0]))
    assert float(metric.compute()) == 0.25
