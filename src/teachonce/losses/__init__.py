"""What a student is trained on: label and KD loss, mixup of a batch, metrics.

torch from here on; knows nothing of data or models.
"""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.losses.losses import kd_loss as kd_loss
    from teachonce.losses.losses import label_loss as label_loss

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "kd_loss": "losses",
        "label_loss": "losses",
    },
)
