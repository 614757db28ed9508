"""Top-1, top-5, expected calibration error and loss of a classifier, accumulated over batches and devices.

Used by the trainer at the end of an epoch and by ``teachonce evaluate``, so that both mean the same. The counting is
torchmetrics'. It decides by the values whether it was given logits or probabilities; here probabilities are passed
where they are meant, because logits that happen to be in 0..1 would be taken for probabilities.

Guo et al. 2017, arXiv:1706.04599, section 2: ECE with 15 bins of equal width, weighted by their counts.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

NUM_ECE_BINS = 15


class ClassifierMetrics(torch.nn.Module):
    """``update`` with batches, then ``compute``; moves with ``to``, and sums over the processes of a DDP group."""

    def __init__(self, num_classes: int, *, top5_classes: int | None = None) -> None:
        """``top5_classes``: how many of the classes the model knows, where it does not know all of them."""
        super().__init__()
        # validate_args would read every batch back from the device; labels are checked where they are read.
        top5 = min(5, num_classes if top5_classes is None else top5_classes)
        self.top1 = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.top5 = MulticlassAccuracy(num_classes, top_k=top5, average="micro", validate_args=False)
        self.ece = MulticlassCalibrationError(num_classes, n_bins=NUM_ECE_BINS, norm="l1", validate_args=False)
        self.loss = MeanMetric(nan_strategy="disable")

    def update(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"]) -> None:
        """Count one batch; labels are class indices in 0..C-1. A logit of -inf is a class that the model lacks."""
        if not len(labels):
            return
        logits = logits.float()
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)
        # torchmetrics gives a confidence of exactly 1 a bin of its own; by definition it belongs to the last one.
        self.ece.update(torch.softmax(logits, dim=1).clamp_max(1 - 2.0**-24), labels)
        # One value a row: torchmetrics 1.9 drops the weights of weighted ones when it does not look for NaN.
        self.loss.update(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))

    def compute(self) -> dict[str, float]:
        """``top1``, ``top5`` and ``ece`` as fractions, and ``loss``: label cross-entropy in nats."""
        return {name: float(getattr(self, name).compute()) for name in ("top1", "top5", "ece", "loss")}

    def reset(self) -> None:
        """Reset all counts."""
        for name in ("top1", "top5", "ece", "loss"):
            getattr(self, name).reset()
