"""Curves without ink: the charts of a training's report are drawn, but not laid out and written, in most tests.

That takes longer than a tiny training, of which there are hundreds. Tests with the mark ``curves`` look at them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from teachonce.pages import charts

_draw_svg = charts.draw_svg
_is_blank = True


def install() -> None:
    """Before a module of the package takes the function by its name."""
    charts.draw_svg = _draw


def choose(item: pytest.Item) -> None:
    """Before the fixtures of a test are made."""
    global _is_blank
    _is_blank = item.get_closest_marker("curves") is None


def _draw(draw: Callable[..., None], **options: Any) -> str:
    if not (_is_blank and options["name"].startswith("curves ")):
        return _draw_svg(draw, **options)
    from matplotlib.figure import Figure

    def write(figure: Figure, file: Any, **_: object) -> None:
        file.write("<svg></svg>")

    with mock.patch.object(Figure, "savefig", write):
        return _draw_svg(draw, **options)
