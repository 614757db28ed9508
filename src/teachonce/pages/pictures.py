"""Pictures of a page, as data in its HTML."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray

_LOSSLESS_PX = 64
"""Pictures up to this side are PNG: of so few pixels each one counts, and so many blocks of JPEG's 8 x 8 show."""


def picture_uri(pixels: NDArray[np.uint8]) -> str:
    """Pixels [H, W, 3] as a data URI: PNG where they are few, else JPEG."""
    from PIL import Image

    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if max(image.size) <= _LOSSLESS_PX:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
