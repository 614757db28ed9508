"""Versions of the libraries that make pixels, logits and weights: kept with every store and run."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

_LIBRARIES = (
    "teachonce",
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "torchmetrics",
    "pillow",
    "numpy",
    "pyarrow",
    "onnxruntime",
    "tensorflow",
)


def library_versions() -> dict[str, str]:
    """Version by name, of those that are installed; nothing is imported for it."""
    found = {"python": sys.version.split()[0]}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
