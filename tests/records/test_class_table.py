"""classes.json: written and read again, and whatever else stands in it is one line that names file and field."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from teachonce.errors import ConfigError, RecordError
from teachonce.records.class_table import (
    ClassTable,
    brief_names,
    check_labels_file,
    describe_other_names,
    read_classes,
    write_classes,
    write_labels_file,
)

TABLE = ClassTable(("background", "n01440764"), ("background", "tench"), True)
CONTENT = {"names": ["background", "n01440764"], "texts": ["background", "tench"], "has_background": True}


def test_there_and_back(tmp_path: Path) -> None:
    assert read_classes(tmp_path) is None
    write_classes(tmp_path, TABLE)
    assert (tmp_path / "classes.json").read_text() == json.dumps(CONTENT, indent=2) + "\n"
    assert read_classes(tmp_path) == TABLE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected `object`, got `array`"),
        ({"names": ["a"], "texts": ["a"]}, "object missing required field `has_background`"),
        (CONTENT | {"synsets": []}, "synsets: unknown here (known: names, texts, has_background)"),
        (CONTENT | {"names": "background"}, "names: expected `array`, got `str`"),
        (CONTENT | {"names": ["background", 7]}, "names[1]: expected `str`, got `int`"),
        (CONTENT | {"texts": ["background", math.nan]}, "texts[1]: nan, expected a finite number"),
        (CONTENT | {"has_background": 1}, "has_background: expected `bool`, got `int`"),
        (CONTENT | {"texts": ["background"]}, "2 names and 1 texts"),
        (CONTENT | {"names": [], "texts": []}, "0 names and 0 texts"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_field(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(RecordError) as error:
        read_classes(tmp_path)
    assert str(error.value) == f"{tmp_path / 'classes.json'}: {message}; create it again"


def test_a_labels_file_has_a_line_an_output(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    names = ("cat", "a\nb", " big  dog ", "", "käse", "x\u2028y")
    write_labels_file(path, names)
    assert path.read_text(encoding="utf-8") == "cat\na b\n big  dog \nclass 3\nkäse\nx y\n"
    assert len(path.read_text(encoding="utf-8").splitlines()) == len(names)
    write_labels_file(path, names)
    path.write_bytes("\ufeffcat\r\ndog".encode())
    write_labels_file(path, ("cat", "dog"))
    assert path.read_bytes().startswith(b"\xef\xbb\xbf"), "the same names: it stays"
    check_labels_file(tmp_path / "none.txt", names)
    for others in (("dog", "cat"), ("cat",), ("cat", "dog", "eel")):
        with pytest.raises(ConfigError, match=f"has 2 class names, expected the {len(others)} of this model"):
            check_labels_file(path, others)
        with pytest.raises(ConfigError, match="export into another folder"):
            write_labels_file(path, others)
    assert path.read_bytes().endswith(b"dog")


def test_names_for_people() -> None:
    assert brief_names("ab") == "a, b" and brief_names("abcdefgh") == "a, b, c, d, e, f, g, h"
    assert brief_names("abcdefghij", most=2) == "a, b, ... (8 more)"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["dog"], "1 classes, expected 2"),
        (["dog", "cat"], "the same classes in another order: label 0 is dog, expected cat"),
        (["cat", "eel"], "classes of other names: label 1 is eel, expected dog"),
    ],
)
def test_names_that_differ(names: list[str], expected: str) -> None:
    assert describe_other_names(names, ["cat", "dog"]) == expected
