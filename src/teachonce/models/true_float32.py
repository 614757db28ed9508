"""float32 that is float32: without the reduced precisions that PyTorch may use for it, for as long as a block lasts.

On GPUs convolutions of float32 run in TF32 by default (11 bits), and matrix products do where the caller has set
``torch.set_float32_matmul_precision``. A teacher's logits would then differ from another device's by more than any
tolerance for float32 can allow. The settings are the process's own; they are set for one forward and set back, so that
a student that is trained beside an online teacher keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def true_float32() -> Iterator[None]:
    """Convolutions and matrix products of float32 in full, on every device; the settings are as before afterwards."""
    products = _read_product_precision()
    convolutions = _read_convolutions_in_tf32()
    each = [(place, place.fp32_precision) for place in _places()]
    if products is not None:
        torch.set_float32_matmul_precision("highest")
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = False
    for place, _ in each:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        # First the older settings, which set the newer ones as well.
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for place, precision in each:
            place.fp32_precision = precision


def _places() -> list[Any]:
    """Where PyTorch 2.9 and newer keep a precision of float32 for each operation; none in older ones."""
    backends = torch.backends
    owners = (
        (backends.cudnn, "conv"),
        (backends.cudnn, "rnn"),
        (backends.cuda, "matmul"),
        (backends.mkldnn, "conv"),
        (backends.mkldnn, "matmul"),
    )
    places = [getattr(owner, name, None) for owner, name in owners]
    return [place for place in places if _has_precision(place)]


def _has_precision(place: Any) -> bool:
    try:
        return isinstance(getattr(place, "fp32_precision", None), str)
    except RuntimeError:
        return False


def _read_product_precision() -> str | None:
    """The older setting of matrix products; None where only the newer ones were used, with which it is at odds."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _read_convolutions_in_tf32() -> bool | None:
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return None
