"""What is suggested for a mistyped word, and that nothing is where no slip explains it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachonce.cli.help import describe_options
from teachonce.cli.main import COMMANDS
from teachonce.options import flag
from teachonce.suggestions import closest, num_edits

ALL_OPTIONS = sorted({flag(one.name) for command in COMMANDS.values() for one in describe_options(command.options)})


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("exract", "extract"),
        ("extrcat", "extract"),
        ("Extract", "extract"),
        ("extraction", "extract"),
        ("trian", "train"),
        ("training", "train"),
        ("evaluation", "evaluate"),
        ("record", "records"),
        ("compl", "completion"),
        ("export_onnx", "export-onnx"),
        ("export-wieghts", "export-weights"),
        # Other words: no slip makes a command of them.
        ("distil", None),
        ("validate", None),
        ("export-csv", None),
        ("convert", None),
        ("update", None),
        ("list", None),
        ("test", None),
        ("run", None),
        ("version", None),
        ("x", None),
    ],
)
def test_commands(word: str, expected: str | None) -> None:
    assert closest(word, COMMANDS) == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--bach-size", "--batch-size"),
        ("--batch_size", "--batch-size"),
        ("--batch", "--batch-size"),
        ("--num-worker", "--num-workers"),
        ("--out-dir", None),
        ("--epohcs", "--epochs"),
        ("--shard", "--shards"),
        ("--kd-tmep", "--kd-temp"),
        ("--expect-top", "--expect-top1"),
        ("--learning-rate", None),
        ("--num-threads", None),
        ("--num", None),
        ("--output", None),
        ("--gpu", None),
        ("--verbose", None),
        ("--dropout", None),
        ("--xyz", None),
    ],
)
def test_options(word: str, expected: str | None) -> None:
    assert closest(word, ALL_OPTIONS) == ([] if expected is None else [expected])


def test_an_option_of_another_command() -> None:
    """`--epoch` is one of the exports' options; a training that is given it is told of its own."""
    options = [flag(one.name) for one in describe_options(COMMANDS["train"].options)]
    assert "--epoch" in ALL_OPTIONS
    assert "--epoch" not in options
    assert closest("--epoch", options) == ["--epochs"]


def test_several_are_the_nearest_first() -> None:
    names = ["resnet18", "resnet101", "vgg11", "resnet10t", "resnet152"]
    assert closest("resnet10", names, 3) == ["resnet18", "resnet101", "resnet10t"]
    assert closest("resnet", names, 2) == ["resnet18", "resnet101"], "the beginning of several, where several fit"
    assert closest("efficientnet", names, 3) == []


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edits_are_counted_as_the_definition_says(first: str, second: str) -> None:
    def count(row: int, column: int) -> int:
        if 0 in (row, column):
            return row + column
        found = [
            count(row - 1, column) + 1,
            count(row, column - 1) + 1,
            count(row - 1, column - 1) + (first[row - 1] != second[column - 1]),
        ]
        if row > 1 and column > 1 and first[row - 2 : row] == second[column - 2 : column][::-1]:
            found.append(count(row - 2, column - 2) + 1)
        return min(found)

    expected = count(len(first), len(second))
    assert num_edits(first, second, 12) == expected
    assert min(num_edits(first, second, 1), 2) == min(expected, 2)
