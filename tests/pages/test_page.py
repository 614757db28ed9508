"""Templates: what is text stays text, what was not given is an error, and each of them can be read."""

from __future__ import annotations

import html
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import UndefinedError

import teachonce
from teachonce.pages.charts import COLORS
from teachonce.pages.page import environment, render_page

WILD = """<b a="1" c='2'>&"""
PARTS = '{% import "pages/templates/parts.html.jinja" as parts %}'
REPORT = "training/templates/report.html.jinja"


def render(source: str, **values) -> str:
    return environment().from_string(PARTS + source).render(values)


def report_values(**values) -> dict:
    names = ("name", "student", "teacher", "curves", "weights_file", "metrics_file", "level", "page_name")
    config = {"student": "student", "data": "data", "seed": 0, "kd_temp": None}
    absent: dict = {"num_classes": 0, "worst": [], "lowest": [], "command": None, "classes_file": None}
    return dict.fromkeys(names, "") | absent | {"config": config, "result": {}, "numbers": []} | values


def test_values_are_escaped_everywhere():
    for part in (
        render_page(REPORT, **report_values(name=WILD)),
        render("{{ parts.numbers([(wild, wild)]) }}", wild=WILD),
        render("{{ parts.facts({wild: wild, 'inner': {wild: wild}}) }}", wild=WILD),
        render("{{ parts.columns([wild], [[wild]]) }}", wild=WILD),
    ):
        assert WILD not in part and "<b a" not in part and WILD in html.unescape(part)


def test_values_are_shown_as_people_read_them():
    facts = render("{{ parts.facts(values) }}", values={"a": None, "b": 0.123456789, "c": {"x": 1, "y": 2.5}, "d": [1]})
    for name, text in (("a", ""), ("b", "0.123457"), ("c", "x 1, y 2.5"), ("d", "[1]")):
        assert f"<tr><td>{name}</td><td>{text}</td></tr>" in facts
    table = render("{{ parts.columns(['a', 'b', 'c'], [['1', '2', '3']], num_texts=2) }}")
    assert '<th>a</th><th>b</th><th class="number">c</th>' in table
    assert '<td>1</td><td>2</td><td class="number">3</td>' in table
    assert render("{{ 1234567 | formatted(',') }}") == "1,234,567"


def test_what_was_not_given_is_an_error():
    with pytest.raises(UndefinedError, match="curves"):
        values = report_values()
        del values["curves"]
        render_page(REPORT, **values)


def test_every_page_has_the_shared_style():
    page = render_page(REPORT, **report_values(name="run"))
    assert page.startswith("<!doctype html>") and page.endswith("</html>\n")
    assert "<title>run: teachonce run</title>" in page and "prefers-color-scheme: dark" in page
    for name, color in COLORS.items():
        assert f"--{name}: {color};" in page


def test_every_template_can_be_read():
    found = environment().list_templates(extensions=["jinja"])
    package = Path(teachonce.__file__).parent
    assert found == sorted(path.relative_to(package).as_posix() for path in package.rglob("*.jinja"))
    assert {"pages/templates/page.html.jinja", "inspection/templates/store.html.jinja", REPORT} <= set(found)
    for name in found:
        assert environment().get_template(name).name == name


def test_jinja_is_imported_for_a_page_and_not_before():
    code = "import sys, teachonce.pages.page as page; before = 'jinja2' in sys.modules; page.environment(); "
    code += "print(before, 'jinja2' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.split() == ["False", "True"]
