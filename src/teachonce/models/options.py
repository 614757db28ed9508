"""The choices that loading a model offers, for option classes: importing them does not bring torch."""

from __future__ import annotations

from typing import Annotated, Literal

from teachonce.options import Metavar

Precision = Literal["float32", "bf16", "fp16"]
EpochName = Literal["last", "best"]
"""Whose weights of a run: the last epoch's, or those with the best validation top-1."""
Spec = Annotated[str, Metavar("SPEC")]
"""A model by its text, as ``models.spec`` reads it: timm:resnet50."""
