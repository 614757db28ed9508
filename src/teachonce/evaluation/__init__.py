"""Evaluation and export of models: accuracy, ONNX, safetensors, int8.

Must not import Lightning.
"""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.evaluation.config import EvaluateConfig as EvaluateConfig
    from teachonce.evaluation.config import ExportOnnxConfig as ExportOnnxConfig
    from teachonce.evaluation.config import ExportWeightsConfig as ExportWeightsConfig
    from teachonce.evaluation.config import PredictConfig as PredictConfig

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "EvaluateConfig": "config",
        "ExportOnnxConfig": "config",
        "ExportWeightsConfig": "config",
        "PredictConfig": "config",
    },
)
