"""What may differ between an extraction and now, and what does: the arithmetic's last bits, and library versions.

The arithmetic's tolerance comes from the dtype: a network is a long chain of sums whose order changes with batch
size, threads and device, so relative to the row's largest logit a few thousand units of the last place are allowed in
float32 and a few in the half precisions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teachonce.pixels.frames import pixel_versions
from teachonce.store.store import Store

RELATIVE_TOLERANCE = {"float32": 2.0**-12, "bf16": 2.0**-5, "fp16": 2.0**-8}
DEVICE_TOLERANCE = {"mps": 2.0**-10}
"""Where a device is known to be coarser than its precision, or where this was not measured (Apple's)."""


def rounding(store: Store, logits: NDArray[np.float32], device: str = "cpu") -> NDArray[np.float64]:
    """By how much [N] the logits [N, C] of two extractions may differ: what the arithmetic's precision leaves open.

    The widest of what made the store's files, and of the ``device`` that the logits are from, counts.
    """
    tolerance = RELATIVE_TOLERANCE[store.plan.teacher.get("precision", "float32")]  # imported logits have none
    devices = [device, *(str(made.get("device")) for made in store.made_by)]
    tolerance = max(tolerance, *(DEVICE_TOLERANCE.get(device, 0.0) for device in devices))
    return tolerance * np.abs(logits).max(axis=1).astype(np.float64) + 1e-6


def describe_versions(store: Store, *names: str) -> str:
    """Library versions at extraction against those of today, as a phrase."""
    then, now = store.versions, pixel_versions()
    changed = [
        f"{name} {then.get(name, 'unknown')} at extraction, {now.get(name, 'none')} now"
        for name in names
        if then.get(name) != now.get(name)
    ]
    return "; ".join(changed) or f"the same {', '.join(name for name in names if name in now)} as at extraction"
