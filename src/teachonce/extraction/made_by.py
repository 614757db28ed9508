"""What decides about the last bits of logits, as a store's files say it: libraries, and the kind of device."""

from __future__ import annotations

from typing import Any

import torch

from teachonce.models.classifier import Classifier
from teachonce.pixels.frames import pixel_versions


def made_by(teacher: Classifier) -> dict[str, Any]:
    """``versions`` by library, and ``device``: cpu, or the accelerator's name."""
    return {"versions": pixel_versions(), "device": device_kind(teacher.device)}


def device_kind(device: torch.device) -> str:
    """cpu, mps, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
