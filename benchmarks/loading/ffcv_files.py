"""FFCV's file for ``peers.py``: the JPEGs as they are.

Its own image field decodes every image and encodes it anew, which would give FFCV other bytes to decode than the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields import IntField, NDArrayField, RGBImageField
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.writer import DatasetWriter

from teachonce.pixels.decode import image_size


class JpegField(RGBImageField):
    """FFCV's image field in JPEG mode, written from encoded bytes."""

    @staticmethod
    def from_binary(binary: Any) -> JpegField:
        """Nothing is kept of the field itself."""
        return JpegField()

    def encode(self, destination: Any, encoded: bytes, malloc: Any) -> None:
        """Called by FFCV's writer for each sample."""
        destination["mode"] = IMAGE_MODES["jpg"]
        destination["width"], destination["height"] = image_size(encoded)
        destination["data_ptr"], storage = malloc(len(encoded))
        storage[:] = np.frombuffer(encoded, np.uint8)


def write_beton(path: Path, records: list[tuple[bytes, int, np.ndarray]], num_classes: int) -> Path:
    """The records as FFCV's file."""
    fields = {
        "image": JpegField(),
        "label": IntField(),
        "logits": NDArrayField(np.dtype("float32"), (num_classes,)),
    }
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(records)
    return path
