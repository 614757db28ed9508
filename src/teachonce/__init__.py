"""Offline knowledge distillation for image classifiers: run the teacher once, teach any number of students.

The names below are the library's public face; the command line is ``teachonce --help``. They are imported when first
asked for, so that reading a store needs no torch. Our networks are in timm's registry once timm is imported too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from teachonce.timm_import import register_with_timm

if TYPE_CHECKING:
    from teachonce.batches import EpochBatches
    from teachonce.classes import ClassSpace
    from teachonce.dataset import EvalDataset, KDDataset
    from teachonce.errors import TeachonceError
    from teachonce.losses import kd_loss
    from teachonce.models import load_model
    from teachonce.policies import CropPolicy
    from teachonce.records import open_records
    from teachonce.store import Store
    from teachonce.views import View

__version__ = "0.1.0"

_HOME = {
    "ClassSpace": "classes",
    "CropPolicy": "policies",
    "EpochBatches": "batches",
    "EvalDataset": "dataset",
    "KDDataset": "dataset",
    "Store": "store",
    "TeachonceError": "errors",
    "View": "views",
    "kd_loss": "losses",
    "load_model": "models",
    "open_records": "records",
}

__all__ = [
    "ClassSpace",
    "CropPolicy",
    "EpochBatches",
    "EvalDataset",
    "KDDataset",
    "Store",
    "TeachonceError",
    "View",
    "kd_loss",
    "load_model",
    "open_records",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'teachonce' has no attribute {name!r}")
    return getattr(import_module(f"teachonce.{_HOME[name]}"), name)


register_with_timm()
