"""From encoded images to pixels: decoding, the renderer of views, a model's preprocessing.

Pillow from here on; must not import torch when it is imported.
"""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.pixels.decode import decode_image as decode_image
    from teachonce.pixels.preprocessing import Preprocessing as Preprocessing

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "Preprocessing": "preprocessing",
        "decode_image": "decode",
    },
)
