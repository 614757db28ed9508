"""The choices that loading a model offers, for option classes: importing them does not bring torch."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "bf16", "fp16"]
