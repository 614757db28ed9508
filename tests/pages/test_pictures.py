"""A picture of few pixels keeps each of them."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from teachonce.pages.pictures import picture_uri


@pytest.mark.parametrize("size, kind", [((7, 5), "png"), ((64, 64), "png"), ((65, 20), "jpeg"), ((200, 160), "jpeg")])
def test_few_pixels_are_kept_exactly(size, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    uri = picture_uri(pixels)
    start = f"data:image/{kind};base64,"
    assert uri.startswith(start)
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(start)))))
    assert found.shape == pixels.shape
    assert (found == pixels).all() == (kind == "png")
