"""Records joined with views and teacher logits, as batches of NumPy arrays or of tensors.

Must not import torch when it is imported, nor models.
"""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.data.dataset import EvalDataset as EvalDataset
    from teachonce.data.dataset import KDDataset as KDDataset
    from teachonce.data.loader import Loader as Loader
    from teachonce.data.sampler import EpochBatches as EpochBatches
    from teachonce.data.stored_logits import StoredLogits as StoredLogits

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "EpochBatches": "sampler",
        "EvalDataset": "dataset",
        "KDDataset": "dataset",
        "Loader": "loader",
        "StoredLogits": "stored_logits",
    },
)
