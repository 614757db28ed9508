"""Offline knowledge distillation for image classifiers: run the teacher once, teach any number of students.

The names below are the library's public face; the command line is ``teachonce --help``. They are imported when first
asked for, so that reading a store needs no torch. ``register_models()`` puts our networks into timm's registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.data.dataset import EvalDataset as EvalDataset
    from teachonce.data.dataset import KDDataset as KDDataset
    from teachonce.data.sampler import EpochBatches as EpochBatches
    from teachonce.errors import TeachonceError as TeachonceError
    from teachonce.losses.losses import kd_loss as kd_loss
    from teachonce.models.assembled_resnet.registry import register_models as register_models
    from teachonce.models.classifier import load_model as load_model
    from teachonce.records.class_space import ClassSpace as ClassSpace
    from teachonce.records.discovery import open_records as open_records
    from teachonce.store.store import Store as Store
    from teachonce.views.policy import CropPolicy as CropPolicy
    from teachonce.views.view import View as View

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "ClassSpace": "records.class_space",
        "CropPolicy": "views.policy",
        "EpochBatches": "data.sampler",
        "EvalDataset": "data.dataset",
        "KDDataset": "data.dataset",
        "Store": "store.store",
        "TeachonceError": "errors",
        "View": "views.view",
        "kd_loss": "losses.losses",
        "load_model": "models.classifier",
        "open_records": "records.discovery",
        "register_models": "models.assembled_resnet.registry",
    },
)
