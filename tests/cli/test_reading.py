"""How words become values: all that the help shows as choices are taken."""

from __future__ import annotations

import re

import pytest

from teachonce.cli.help import Option, describe_options
from teachonce.cli.main import COMMANDS, parse_command
from teachonce.errors import ConfigError
from teachonce.training.config import TrainConfig


def required_words(name: str) -> list[str]:
    """A value for each option that the command cannot do without."""
    words: list[str] = []
    for option in describe_options(COMMANDS[name].options):
        if option.is_required:
            head = option.heading.split()[0]
            words += [head, "x"] if head.startswith("-") else ["x"]
    return words


def choices_of(option: Option) -> list[str]:
    found = re.search(r"\{(.+?)\}", option.heading)
    return found[1].split(",") if found else []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_choice_that_the_help_shows_is_taken(name: str) -> None:
    for option in describe_options(COMMANDS[name].options):
        assert "}|{" not in option.heading, "of two lists the first one's reader refuses what the second has"
        head = option.heading.split()[0]
        for choice in choices_of(option) if head.startswith("-") else ():
            try:
                parsed = parse_command([name, *required_words(name), head, choice])
            except ConfigError as error:
                # What asks for another option too was read.
                wrong = rf"{re.escape(choice)}: (expected|invalid)| missing; give|: unexpected;"
                assert not re.search(wrong, str(error)), error
            else:
                assert str(getattr(parsed, option.name)) in (choice, f"('{choice}',)")


def test_choices_of_two_kinds_are_one_list() -> None:
    words = ["train", "--data", "d", "--student", "timm:resnet18", "--out", "o", "--logger"]
    parsed = parse_command([*words, "none"])
    assert isinstance(parsed, TrainConfig) and parsed.logger == "none"
    with pytest.raises(ConfigError, match=r"^--logger nope: expected tensorboard, csv, wandb, none$"):
        parse_command([*words, "nope"])
