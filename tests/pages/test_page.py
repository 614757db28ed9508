"""Parts of a page: what is text stays text, a chart follows the page's colours, a picture keeps its pixels."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from teachonce.pages.page import (
    BLUE,
    INK,
    draw_svg,
    picture_uri,
    render_columns,
    render_facts,
    render_numbers,
    render_page,
)

WILD = """<b a="1" c='2'>&"""
TAME = "&lt;b a=&quot;1&quot; c=&#x27;2&#x27;&gt;&amp;"


def draw_line(figure) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=BLUE)
    axes.set_title("title")


def test_values_are_escaped_everywhere():
    for part in (
        render_page(WILD, ""),
        render_numbers([(WILD, WILD)]),
        render_facts({WILD: WILD, "inner": {WILD: WILD}}),
        render_columns([WILD], [[WILD]]),
        draw_svg(draw_line, size_inches=(2, 2), name="a", description=WILD),
    ):
        assert WILD not in part and TAME in part


def test_a_chart_has_the_pages_colours_and_no_ids_of_its_own():
    chart = draw_svg(draw_line, size_inches=(2, 2), name="a", description="a line")
    element = ElementTree.fromstring(chart)
    assert element.attrib["aria-label"] == "a line" and element.attrib["role"] == "img"
    assert "var(--blue)" in chart and "var(--ink)" in chart and BLUE not in chart and INK not in chart
    assert "<style" not in chart and "metadata" not in chart and "title</text>" in chart
    other = draw_svg(draw_line, size_inches=(2, 2), name="b", description="a line")
    ids = [set(re.findall(r'id="([^"]+)"', text)) for text in (chart, other)]
    assert ids[0] and not ids[0] & ids[1]
    # What a chart refers to is in it.
    assert set(re.findall(r"#([\w-]+)", chart)) <= ids[0]
    assert draw_svg(draw_line, size_inches=(2, 2), name="a", description="a line") == chart


@pytest.mark.parametrize("size, kind", [((7, 5), "png"), ((64, 64), "png"), ((65, 20), "jpeg"), ((200, 160), "jpeg")])
def test_few_pixels_are_kept_exactly(size, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    uri = picture_uri(pixels)
    start = f"data:image/{kind};base64,"
    assert uri.startswith(start)
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(start)))))
    assert found.shape == pixels.shape
    assert (found == pixels).all() == (kind == "png")
