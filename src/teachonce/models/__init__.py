"""Models by SPEC: any backend as a classifier, weights, fine-tuning.

Knows nothing of datasets and stores; must not import Lightning.
"""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.models.classifier import Classifier as Classifier
    from teachonce.models.classifier import load_model as load_model
    from teachonce.models.spec import ModelSpec as ModelSpec

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "Classifier": "classifier",
        "ModelSpec": "spec",
        "load_model": "classifier",
    },
)
