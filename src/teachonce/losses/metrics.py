"""Top-1, top-5, expected calibration error and loss of a classifier, accumulated over batches and devices.

Used by the trainer at the end of an epoch and by ``teachonce evaluate``, so that both mean the same. The counting is
torchmetrics', but not its division in float32, by which 9 right ones of 10 are 0.8999999761, nor its ECE, which keeps
every confidence, and adds them up in float32, one after the other, so that a bin of a million images is off by half a
point.

Guo et al. 2017, arXiv:1706.04599, section 2: ECE with 15 bins of equal width, weighted by their counts.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

NUM_ECE_BINS = 15
_CONFIDENCE_STEPS = 2.0**32
"""Of a confidence in a sum: int64 holds those of 2^31 images, each within 2^-33."""


class CalibrationError(Metric):
    """ECE from sums by bin. Integers: exact in any order of images and ranks, also on devices without float64."""

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(NUM_ECE_BINS, 3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probs: Float[Tensor, "B C"], labels: Int[Tensor, " B"]) -> None:
        """Count one batch: images, confidences and right answers of each bin, which has its lower border."""
        confidences, choices = probs.max(dim=1)
        # A NaN, which the loss tells of, has no integer.
        confidences = confidences.nan_to_num(nan=0.0)
        borders = torch.linspace(0, 1, NUM_ECE_BINS + 1, device=probs.device)
        # By definition a confidence of exactly 1 belongs to the last bin.
        bins = (torch.bucketize(confidences, borders, right=True) - 1).clamp_max(NUM_ECE_BINS - 1)
        steps = (confidences * _CONFIDENCE_STEPS).round().long()
        values = torch.stack([torch.ones_like(steps), steps, (choices == labels).long()], dim=1)
        is_in = bins[:, None] == torch.arange(NUM_ECE_BINS, device=probs.device)
        self.sums = self.sums + (is_in[:, :, None] * values[:, None, :]).sum(dim=0)

    def compute(self) -> Tensor:
        """The mean of |confidence - accuracy|, weighted by images; NaN without any."""
        counts, steps, hits = self.sums.cpu().double().T
        return (steps / _CONFIDENCE_STEPS - hits).abs().sum() / counts.sum()


class Accuracy(MulticlassAccuracy):
    """The part of the images that are right, as the exact quotient of both counts: torchmetrics' own is of float32."""

    def compute(self) -> Tensor:
        """float64, on the CPU, as Apple's GPUs have none; 0 without images."""
        right, _, _, wrong = (int(count.sum()) for count in self._final_state())
        return torch.tensor(right / max(right + wrong, 1), dtype=torch.float64)


class ClassifierMetrics(torch.nn.Module):
    """``update`` with batches, then ``compute``; moves with ``to``, and sums over the processes of a DDP group."""

    def __init__(self, num_classes: int, *, top5_classes: int | None = None) -> None:
        """``top5_classes``: how many of the classes the model knows, where it does not know all of them."""
        super().__init__()
        # validate_args would read every batch back from the device; labels are checked where they are read.
        top5 = min(5, num_classes if top5_classes is None else top5_classes)
        self.top1 = Accuracy(num_classes, average="micro", validate_args=False)
        self.top5 = Accuracy(num_classes, top_k=top5, average="micro", validate_args=False)
        self.ece = CalibrationError()
        self.loss = MeanMetric(nan_strategy="disable")

    def update(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"]) -> None:
        """Count one batch; labels are class indices in 0..C-1. A logit of -inf is a class that the model lacks."""
        if not len(labels):
            return
        logits = logits.float()
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)
        self.ece.update(torch.softmax(logits, dim=1), labels)
        # One value a row: torchmetrics 1.9 drops the weights of weighted ones when it does not look for NaN.
        self.loss.update(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))

    def compute(self) -> dict[str, float]:
        """``top1``, ``top5`` and ``ece`` as fractions, and ``loss``: label cross-entropy in nats."""
        return {name: float(getattr(self, name).compute()) for name in ("top1", "top5", "ece", "loss")}

    def reset(self) -> None:
        """Reset all counts."""
        for name in ("top1", "top5", "ece", "loss"):
            getattr(self, name).reset()
