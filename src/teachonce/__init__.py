"""Offline knowledge distillation for image classifiers: run the teacher once, teach any number of students.

The names below are the library's public face; the command line is ``teachonce --help``. They are imported when first
requested, so that reading a store needs no torch. ``register_models()`` puts our networks into timm's registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.data.dataset import EvalDataset as EvalDataset
    from teachonce.data.dataset import KDDataset as KDDataset
    from teachonce.data.logit_sources import RecordLogits as RecordLogits
    from teachonce.data.sampler import EpochBatches as EpochBatches
    from teachonce.data.stored_logits import StoredLogits as StoredLogits
    from teachonce.errors import CheckError as CheckError
    from teachonce.errors import ConfigError as ConfigError
    from teachonce.errors import LogitsError as LogitsError
    from teachonce.errors import ModelError as ModelError
    from teachonce.errors import RecordError as RecordError
    from teachonce.errors import StoppedError as StoppedError
    from teachonce.errors import StoreError as StoreError
    from teachonce.errors import TeachonceError as TeachonceError
    from teachonce.evaluation.config import EvaluateConfig as EvaluateConfig
    from teachonce.evaluation.evaluate import evaluate as evaluate
    from teachonce.evaluation.onnx_export import export_run as export_run
    from teachonce.extraction.config import ExtractConfig as ExtractConfig
    from teachonce.extraction.config import VerifyConfig as VerifyConfig
    from teachonce.extraction.extract import extract as extract
    from teachonce.extraction.verify import verify as verify
    from teachonce.interop.config import ImportConfig as ImportConfig
    from teachonce.interop.config import MergeConfig as MergeConfig
    from teachonce.interop.config import RecordsConfig as RecordsConfig
    from teachonce.interop.convert import convert_records as convert_records
    from teachonce.interop.csv_files import import_csv as import_csv
    from teachonce.interop.merge import merge as merge
    from teachonce.losses.losses import kd_loss as kd_loss
    from teachonce.models.assembled_resnet.registry import register_models as register_models
    from teachonce.models.classifier import load_model as load_model
    from teachonce.pixels.preprocessing import Preprocessing as Preprocessing
    from teachonce.pixels.preprocessing import normalize as normalize
    from teachonce.pixels.view_sources import DrawnViews as DrawnViews
    from teachonce.pixels.view_sources import OwnViews as OwnViews
    from teachonce.records.class_space import ClassSpace as ClassSpace
    from teachonce.records.discovery import open_records as open_records
    from teachonce.records.options import RecordOptions as RecordOptions
    from teachonce.store.store import Store as Store
    from teachonce.store.stored_views import StoredViews as StoredViews
    from teachonce.training.config import TrainConfig as TrainConfig
    from teachonce.training.train import train as train
    from teachonce.views.order import ViewOrder as ViewOrder
    from teachonce.views.policy import AutoAugment as AutoAugment
    from teachonce.views.policy import CenterPolicy as CenterPolicy
    from teachonce.views.policy import CropPolicy as CropPolicy
    from teachonce.views.policy import ObjectCrop as ObjectCrop
    from teachonce.views.policy import RandAugment as RandAugment
    from teachonce.views.policy import RandomErasing as RandomErasing
    from teachonce.views.policy import RandomMix as RandomMix
    from teachonce.views.view import View as View

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "AutoAugment": "views.policy",
        "CenterPolicy": "views.policy",
        "CheckError": "errors",
        "ClassSpace": "records.class_space",
        "ConfigError": "errors",
        "CropPolicy": "views.policy",
        "DrawnViews": "pixels.view_sources",
        "EpochBatches": "data.sampler",
        "EvalDataset": "data.dataset",
        "EvaluateConfig": "evaluation.config",
        "ExtractConfig": "extraction.config",
        "ImportConfig": "interop.config",
        "KDDataset": "data.dataset",
        "LogitsError": "errors",
        "MergeConfig": "interop.config",
        "ModelError": "errors",
        "ObjectCrop": "views.policy",
        "OwnViews": "pixels.view_sources",
        "Preprocessing": "pixels.preprocessing",
        "RandAugment": "views.policy",
        "RandomErasing": "views.policy",
        "RandomMix": "views.policy",
        "RecordError": "errors",
        "RecordLogits": "data.logit_sources",
        "RecordOptions": "records.options",
        "RecordsConfig": "interop.config",
        "StoppedError": "errors",
        "Store": "store.store",
        "StoreError": "errors",
        "StoredLogits": "data.stored_logits",
        "StoredViews": "store.stored_views",
        "TeachonceError": "errors",
        "TrainConfig": "training.config",
        "VerifyConfig": "extraction.config",
        "View": "views.view",
        "ViewOrder": "views.order",
        "convert_records": "interop.convert",
        "evaluate": "evaluation.evaluate",
        "export_run": "evaluation.onnx_export",
        "extract": "extraction.extract",
        "import_csv": "interop.csv_files",
        "kd_loss": "losses.losses",
        "load_model": "models.classifier",
        "merge": "interop.merge",
        "normalize": "pixels.preprocessing",
        "open_records": "records.discovery",
        "register_models": "models.assembled_resnet.registry",
        "train": "training.train",
        "verify": "extraction.verify",
    },
)
