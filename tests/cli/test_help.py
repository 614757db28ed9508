"""The help texts: every option in a group and with a sentence, required ones first, nothing broken at 80 columns."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from teachonce.cli.help import command_help, describe_options, terminal_width
from teachonce.cli.main import COMMANDS, DESCRIPTION, GROUPS, main, parse_command
from teachonce.options import COMMON, Common, InData, InRunning, InStore, Positional, Repeated, flag
from teachonce.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Cooking:
    """Cook a dish."""

    spoons: InRunning[tuple[int, ...]] = (1, 2)
    """How many spoons."""
    dish: InData[Positional[Path]]
    """What is
    cooked."""
    stir: InRunning[bool] = True
    """Keep it from burning."""
    heat: InStore[Literal["low", "high"] | None] = None
    """How hot. Default: as it comes."""
    minutes: InData[float] = 4 / 3
    """How long."""
    herbs: InStore[Repeated[tuple[str, ...]]] = ()
    """Several are mixed."""
    cook: InRunning[str]
    """Who does it."""


@dataclass(frozen=True, kw_only=True)
class Baking(Cooking):
    """Bake a dish."""

    GROUP_TITLES = (("store", "pantry"),)

    minutes: InData[Common[float]] = 0.0
    """How long it bakes."""


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert end.value.code == 0
    return capsys.readouterr().out


def sections(text: str) -> dict[str, str]:
    """The body of each section by its title."""
    parts = re.split(r"^([a-z0-9' -]+):\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_a_help_is_made_from_the_class() -> None:
    text = command_help("cook", Cooking, ["soup --cook me"], is_full=False)
    assert text.startswith("usage: teachonce cook DISH --cook TEXT [options]\n\nCook a dish.\n")
    found = sections(text)
    assert list(found)[:4] == ["required", "data", "store", "running"], "required ones first, groups by rank"
    assert "  DISH                  What is cooked.\n" in found["required"] and "--cook TEXT" in found["required"]
    assert "--minutes FLOAT       How long. (default: 1.333)\n" in found["data"]
    assert "--heat {low,high}     How hot. Default: as it comes.\n" in found["store"]
    assert "--herbs TEXT          Several are mixed.\n" in found["store"]
    assert "--spoons INT ...      How many spoons. (default: 1 2)\n" in found["running"]
    assert "--no-stir             Keep it from burning.\n" in found["running"]
    assert text.endswith("examples:\n  teachonce cook soup --cook me")
    assert "None" not in text


def test_common_options_make_a_help_short() -> None:
    text = command_help("bake", Baking, [], is_full=False)
    assert "How long it bakes. (default: 0)" in text and "--heat" not in text
    assert "4 more options: teachonce bake --help-all" in text
    full = command_help("bake", Baking, [], is_full=True)
    assert "--heat" in sections(full)["pantry"] and "more options" not in full
    with_chosen = command_help("bake", Baking, [], is_full=True, defaults={"cook": "me", "minutes": 3.0})
    assert "Who does it. (default: me)" in with_chosen and "bakes. (default: 3)" in with_chosen


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_group_and_a_sentence(name: str) -> None:
    """A new field without a group is found here: give it one in its annotation, as ``InData[Path]``."""
    options = describe_options(COMMANDS[name].options)
    assert [option.name for option in options] == [field.name for field in dataclasses.fields(COMMANDS[name].options)]
    assert not [option.name for option in options if option.group is None], "without a group"
    assert not [option.name for option in options if not option.sentence], "without a sentence"


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_fits(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    texts = [shown(capsys, name, "--help-all"), shown(capsys, name, "-h"), shown(capsys, "--help")]
    for line in "\n".join(texts).splitlines():
        assert len(line) < columns, line
        assert line == line.rstrip(), line
        assert not re.search(r"\{None\}|None\||\(default: None\)|\bNone\b", line), line
    for option in describe_options(COMMANDS[name].options):
        assert (option.heading if option.is_positional else flag(option.name)) in texts[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_says_a_default_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    entries = re.split(r"\n(?=  \S)", shown(capsys, name, "--help-all"))
    assert not [entry for entry in entries if "Default:" in entry and "(default:" in entry]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_a_command(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert COMMANDS[name].examples
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"data": "records", "student": "timm:resnet18"}')
    monkeypatch.chdir(tmp_path)
    for example in COMMANDS[name].examples:
        parse_command([name, *shlex.split(example.partition(" > ")[0])])


def test_the_help_of_train_shows_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    short, full = shown(capsys, "train", "--help"), shown(capsys, "train", "--help-all")
    marked = [option.name for option in describe_options(TrainConfig) if COMMON in option.marks]
    assert len(marked) == 22
    assert len(re.findall(r"^  --", short, flags=re.MULTILINE)) == 22 + 8, "and --list-recipes and the general ones"
    assert "--momentum" not in short and "--momentum" in full
    for title in ("data", "student", "teacher's signal", "loss", "optimization", "schedule", "augmentation"):
        assert title in sections(full)
    assert {"evaluation", "running", "examples"} <= set(sections(full))
    assert "--list-recipes" in short


@pytest.mark.parametrize("name", ["train", "extract", "plan", "ablate"])
def test_data_without_splits_is_in_the_short_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And in the short help alone of commands that have one: others still show all their options."""
    short = shown(capsys, name, "--help")
    assert "--val-fraction" in short and "--labels" in short and "--label-feature" not in short


def test_commands_without_marks_of_their_own_show_all(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("evaluate", "verify", "inspect"):
        assert "more options" not in shown(capsys, name, "--help")


def test_help_is_a_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "help", "extract") == shown(capsys, "extract", "--help")
    assert shown(capsys, "help") == shown(capsys, "--help")
    with pytest.raises(SystemExit) as end:
        main(["help", "exract"])
    assert end.value.code == 2 and "did you mean extract?" in capsys.readouterr().err


def test_general_options_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["extract", "--help"], ["train", "--help-all"]):
        text = shown(capsys, *words)
        for option in ("--config FILE", "--quiet", "--progress {auto,json}", "--debug", "--version", "--help-all"):
            assert option in text
    text = shown(capsys, "--help")
    assert DESCRIPTION.split(":")[0] in text.replace("\n", " ") and all(f"  {name} " in text for name in COMMANDS)


def test_every_command_is_in_one_group(capsys: pytest.CaptureFixture[str]) -> None:
    """A new command is added to GROUPS in cli/main.py, or ``teachonce --help`` does not show it."""
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    found = sections(shown(capsys, "--help"))
    assert list(found) == [*GROUPS, "all commands"]
    for title, names in GROUPS.items():
        assert re.findall(r"^  ([a-z-]+) ", found[title], flags=re.MULTILINE) == list(names)


def test_a_help_needs_no_library() -> None:
    """So that it answers at once: tyro and rich are for parsing and for bars."""
    code = "import sys\nfrom teachonce.cli.main import run_words\nrun_words(sys.argv[1:])\n"
    code += "print({'tyro', 'rich', 'numpy', 'msgspec', 'torch'} & set(sys.modules))"
    for words in (["--help"], ["train", "--help-all"]):
        done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "set()"


def test_the_width_of_a_help(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, width in ((20, 59), (80, 79), (400, 109)):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert terminal_width() == width
