"""The choices that the losses offer, for option classes: importing them does not bring torch."""

from __future__ import annotations

from typing import Literal

MixupType = Literal["batch", 1, 2]
