"""The choices that the codecs offer, for option classes: importing them brings neither NumPy nor the codecs."""

from __future__ import annotations

from typing import Literal

from teachonce.options import Condition

CodecName = Literal["float32", "float16", "int8", "topk"]
KEPT_CLASSES = Condition("--codec topk", lambda options: options.codec == "topk")
"""What ``--topk`` needs."""
