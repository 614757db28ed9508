"""The choices that options of this room have."""

from __future__ import annotations

from typing import Literal

PreprocessingPlace = Literal["outside", "inside"]
"""Where an exported model's mean, std and layout are: in the program that uses it, or in its graph."""
