"""A chart follows the page's colors, its description is text, and the same drawing is the same bytes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from teachonce.pages.charts import BLUE, INK, draw_svg


def draw_line(figure) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=BLUE)
    axes.set_title("title")


def test_the_description_is_escaped():
    wild = """<b a="1" c='2'>&"""
    chart = draw_svg(draw_line, size_inches=(2, 2), name="a", description=wild)
    assert wild not in chart and "&lt;b a=&quot;1&quot; c=&#x27;2&#x27;&gt;&amp;" in chart


def test_a_chart_has_the_pages_colors_and_no_ids_of_its_own():
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
