"""The names of the codecs, for option classes: importing them brings neither NumPy nor the codecs."""

from __future__ import annotations

from typing import Literal

CodecName = Literal["float32", "float16", "int8", "topk"]
