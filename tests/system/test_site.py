"""The site and the README's picture: nothing that there is is left out, and the picture says what the tables say."""

from __future__ import annotations

import re
import tomllib
from html import unescape
from pathlib import Path

import pytest

import teachonce
from docs.site.build import find_broken, find_files, links_of, stage
from docs.site.commands import PLACE, fill_places, option_id
from docs.site.picture import draw_all, read_ratios, read_students, read_table
from teachonce.cli.help import describe_options
from teachonce.cli.main import COMMANDS
from tests.support.paths import DOCS, ROOT

COMMANDS_PAGE = DOCS / "reference" / "commands.md"


def test_the_picture_is_that_of_the_tables():
    """Where this fails, a table of docs/results changed: ``python -m docs.site.picture`` draws it again."""
    for path, text in draw_all():
        assert path.read_text() == text, path.name


def test_the_picture_has_every_row_of_the_tables():
    students, ratios = read_students(), read_ratios()
    accuracy, performance = ((DOCS / "results" / name).read_text() for name in ("accuracy.md", "performance.md"))
    assert len(students) == 7 and len(ratios) == 7
    for _, svg in draw_all():
        texts = re.findall(r">([^<>]+)</text>", unescape(svg))
        for student in students:
            assert f"| {student.top1:.2f} +- {student.margin:.2f} |" in accuracy
            assert any(f"{student.top1:.1f}" in text for text in texts), student.name
        for ratio in ratios:
            assert f"| {ratio.median:.2f} ({ratio.least:.2f} to {ratio.largest:.2f}) |" in performance
            assert f"{ratio.median:.2f}" in texts


def test_the_readme_says_of_the_picture_what_the_tables_say():
    readme = " ".join((ROOT / "README.md").read_text().split())
    students = {student.name: student for student in read_students()}
    views, online, labels = (students[name] for name in ("30 stored views", "online teacher", "labels only"))
    assert (
        f"30 stored views reach {views.top1:.1f} % top-1 with {views.forwards:,} teacher forwards for three students, "
        f"a teacher in the loop {online.top1:.1f} % with {round(online.forwards, -3):,}, "
        f"labels alone {labels.top1:.1f} %"
    ) in readme
    medians = [ratio.median for ratio in read_ratios()]
    assert f"loading runs at {min(medians):.1f} to {max(medians):.1f} times the speed" in readme
    assert abs(views.top1 - online.top1) < online.margin, "within the noise"
    assert round(online.forwards / 3, -3) == views.forwards, "for the forwards that one student costs there"
    *_, size = next(
        row
        for row in read_table((DOCS / "results" / "accuracy.md").read_text(), "## Stored views against")
        if row[0] == views.name
    )
    assert f"a view takes {round(int(size.replace(',', '')) / views.forwards)} bytes there" in readme


def test_a_table_ends_where_its_lines_end():
    text = "## A\n\nwords\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n| c | d |\n|---|---|\n| 3 | 4 |\n"
    assert read_table(text, "## A") == [["1", "2"]]


def test_every_command_has_its_place_under_its_name():
    text = COMMANDS_PAGE.read_text()
    assert sorted(re.findall(r"^## (\S+)\n\n<!-- options of \1 -->$", text, re.MULTILINE)) == sorted(COMMANDS)


def test_every_option_is_on_the_page_of_commands():
    page = fill_places(COMMANDS_PAGE.read_text())
    assert not PLACE.search(page)
    for name, command in COMMANDS.items():
        for option in describe_options(command.options):
            assert f'id="{name}{option_id(option.heading)}"' in page, (name, option.name)
        for example in command.examples:
            assert f"teachonce {name} {example}" in page
    assert "train--list-recipes" in page and "assemble_resnet50" in page


def test_an_option_stands_as_its_help_says():
    """As HTML: with its value, its sentence and its default, and options in the sentence marked."""
    page = fill_places("<!-- options of extract -->")
    assert "<code>--codec {" in page and "(default: int8)" in page
    assert re.search(r"<dd>[^\n]*<code>--[a-z-]+</code>", page)
    with pytest.raises(KeyError, match="nothing"):
        fill_places("<!-- options of nothing -->")


def test_the_pages_of_the_api_have_every_public_name():
    pages = "\n".join(path.read_text() for path in (DOCS / "reference" / "api").glob("*.md"))
    named = re.findall(r"^::: teachonce\.(\w+)$", pages, re.MULTILINE)
    assert sorted(named) == sorted(teachonce.__all__)
    overview = (DOCS / "reference" / "api" / "overview.md").read_text()
    for name in teachonce.__all__:
        assert name == "TeachonceError" or f"`{name}`" in overview, name


def test_the_site_leads_to_every_page():
    """But for the list of pages for code hosts, and what only other pages link to."""
    nav = (DOCS / "site" / "zensical.toml").read_text()
    linked = set(re.findall(r'"([\w/-]+\.md)"', nav))
    assert {str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md")} - linked == {"docs/README.md"}
    assert all((ROOT / name).is_file() for name in linked)
    tomllib.loads(nav)


def test_the_source_of_the_site_is_all_that_pages_link_to(tmp_path: Path):
    files = find_files()
    assert {ROOT / "README.md", ROOT / "examples" / "read_store.py", DOCS / "images" / "gains-dark.svg"} <= files
    stage(files, tmp_path)
    for path in tmp_path.rglob("*.md"):
        for link, _ in links_of(path.read_text()):
            assert not link or (path.parent / link).is_file(), (path, link)


def test_references_that_lead_nowhere_are_found(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">x</h1><a href="#top"><a href="folder/b.html#there"><a href="https://a.org"><img src="a.svg">'
    )
    (tmp_path / "a.svg").write_text("")
    (tmp_path / "folder" / "b.html").write_text('<p id="there"><a href="../index.html"><a href="..">')
    assert not find_broken(tmp_path)
    (tmp_path / "folder" / "b.html").write_text(
        '<a href="gone.py"><source srcset="no.svg"><a href="../index.html#gone">'
    )
    assert find_broken(tmp_path) == [
        "folder/b.html: ../index.html#gone",
        "folder/b.html: gone.py",
        "folder/b.html: no.svg",
        "index.html: folder/b.html#there",
    ]
