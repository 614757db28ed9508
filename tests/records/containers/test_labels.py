"""Labels of tables and tars: numbers, texts that are numbers, and names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teachonce.errors import ConfigError, RecordError
from teachonce.records.containers.labels import as_label, number_labels
from teachonce.records.options import RecordOptions
from teachonce.records.source import NO_LABEL


def test_whole_numbers_are_numbers_however_they_are_written() -> None:
    labels, classes = number_labels(["3.0", "1", "2.00", None], RecordOptions(), "here")
    assert labels.tolist() == [3, 1, 2, -1] and classes is None


@pytest.mark.parametrize("found", [[-1, 2, None], ["-1", "2", ""], ["-1.0", "2.0", ""]])
@pytest.mark.parametrize("known", [None, ["cat", "dog", "eel", "fox"]])
def test_minus_1_is_no_label_whatever_the_offset(found: list[Any], known: list[str] | None) -> None:
    assert number_labels(found, RecordOptions(), "here", known)[0].tolist() == [NO_LABEL, 2, NO_LABEL]
    assert number_labels(found, RecordOptions(label_offset=1), "here", known)[0].tolist() == [NO_LABEL, 3, NO_LABEL]
    with pytest.raises(ConfigError, match="here: label -1, expected 0 to"):
        number_labels([0], RecordOptions(label_offset=-1), "here", known)


def test_minus_1_may_be_a_name(tmp_path: Path) -> None:
    assert number_labels(["-1", "none"], RecordOptions(), "here")[0].tolist() == [0, 1]
    (tmp_path / "labels.txt").write_text("-1\n1\n")
    assert number_labels(["1", "-1"], RecordOptions(labels=tmp_path / "labels.txt"), "here")[0].tolist() == [1, 0]


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.int64(3), np.float16(3)])
def test_a_whole_number_may_be_a_float(value: Any) -> None:
    label = as_label(value, "t.parquet: label", ConfigError)
    assert label == 3 and type(label) is int


def test_what_is_missing_may_be_nan() -> None:
    assert [as_label(value, "here", ConfigError) for value in (None, math.nan, np.float32("nan"))] == [None] * 3
    assert as_label("3.0", "here", ConfigError) == "3.0"


def test_spaces_around_a_name_are_no_part_of_it() -> None:
    assert [as_label(value, "here", ConfigError) for value in (" cat\n", "cat", "3 ", "  ")] == ["cat", "cat", "3", ""]


def test_texts_among_numbers_that_say_that_there_is_no_label(tmp_path: Path) -> None:
    """Among names they are names: a gesture may be called null."""
    options = RecordOptions()
    numbers, classes = number_labels(["3", "NaN", " null".strip(), "5", "NULL"], options, "here")
    assert numbers.tolist() == [3, NO_LABEL, NO_LABEL, 5, NO_LABEL] and classes is None
    numbers, classes = number_labels(["cat", "null", "dog"], options, "here")
    assert numbers.tolist() == [0, 2, 1] and classes is not None and classes.names == ("cat", "dog", "null")
    (tmp_path / "labels.txt").write_text("null\nnano\n")
    numbers, _ = number_labels(["null", "nano"], RecordOptions(labels=tmp_path / "labels.txt"), "here")
    assert numbers.tolist() == [0, 1]


@pytest.mark.parametrize("value", [1.5, math.inf, 1e30, True, [3], np.float32(0.5)])
def test_what_is_no_label(value: Any) -> None:
    with pytest.raises(RecordError, match=r"t.json: label is \S+, expected a name or a whole number; and so on$"):
        as_label(value, "t.json: label", RecordError, advice="; and so on")


def test_names_that_look_like_numbers_stay_names(tmp_path: Path) -> None:
    """Beside a name that is none, versions or grades are what they are, and 10 and 10.0 are two."""
    labels, classes = number_labels(["1.0", "1.5", "10.0", "10"], RecordOptions(), "here")
    assert classes is not None and classes.names == ("1.0", "1.5", "10", "10.0")
    np.testing.assert_array_equal(labels, [0, 1, 3, 2])
    (tmp_path / "labels.txt").write_text("2.0\n1.0\n")
    labels, _ = number_labels(["1.0", "2.0"], RecordOptions(labels=tmp_path / "labels.txt"), "here")
    assert labels.tolist() == [1, 0]


def test_an_offset_moves_labels_away_from_the_names() -> None:
    """Names that the data brings are of the numbers as they were."""
    labels, classes = number_labels([1, 2], RecordOptions(label_offset=-1), "here", ["unknown", "cat", "dog"])
    assert labels.tolist() == [0, 1] and classes is None
