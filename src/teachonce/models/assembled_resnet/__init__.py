"""The walkthrough's own networks, and their names in timm's registry."""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.models.assembled_resnet.network import AssembledResNet as AssembledResNet

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "AssembledResNet": "network",
    },
)
