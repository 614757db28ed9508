"""Raw images to records, logits into records, and the walkthrough's CSV files in and out.

Must not import torch.
"""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.interop.imagenet import imagenet_synsets as imagenet_synsets

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "imagenet_synsets": "imagenet",
    },
)
