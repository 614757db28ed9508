"""Every option of every command with values that cannot be meant: it works, or ends with exit code 2 and one line."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from teachonce.cli import main as cli
from teachonce.cli import parsing
from teachonce.cli.main import COMMANDS, main, parse_command
from teachonce.errors import ConfigError
from teachonce.options import POSITIONAL, REPEATED, Range, find_ranges, flag
from tests.support.small_data import write_image_folder
from tests.support.small_models import write_color_shards, write_color_teacher

NO_NUMBERS = ("0", "-1", "inf", "nan", "1e300", "", "1_0")
NO_TEXTS = ("-1", "")
ESSENTIALS = {"data": "data", "images": "images", "out": "out", "student": "timm:test_resnet", "teacher": "teacher"}
ESSENTIALS |= {"model": "teacher", "target": "copy", "run": "run"}
ESSENTIALS |= {"source": "store", "store": "store", "csv": "csv", "path": "store"}
ESSENTIALS |= {"first": "store", "second": "store", "shell": "bash"}
CONTRADICTIONS = ["--min-lr 0.2", "--warmup-epochs 101", "--store s --store-weights inf", "--eval-size 0"]
QUICK = {"extract": ["--device", "cpu"], "verify": ["--device", "cpu"], "evaluate": ["--device", "cpu"]}
QUICK["predict"] = ["--device", "cpu"]
QUICK["plan"] = ["--device", "cpu", "--samples", "8"]
QUICK["train"] = ["--device", "cpu", "--size", "16", "--batch-size", "8", "--epochs", "1", "--validation-split", "none"]


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of an option class, as it is typed."""

    command: str
    name: str
    hint: Any
    marks: tuple[Any, ...]

    @property
    def range(self) -> Range | None:
        return next(find_ranges(self.hint), None)

    @property
    def nonsense(self) -> tuple[str, ...]:
        """What cannot be meant; to a path or a name, one number is as strange as another."""
        return NO_NUMBERS if self.is_number else NO_TEXTS

    @property
    def is_number(self) -> bool:
        return bool({int, float} & set(plain_types(self.hint)))


def plain_types(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Literal:
        return
    if not get_args(hint):
        yield hint
    for part in get_args(hint):
        yield from plain_types(part)


def all_options() -> list[Option]:
    found = []
    for command, entry in COMMANDS.items():
        for name, hint in get_type_hints(entry.options, include_extras=True).items():
            marks = getattr(hint, "__metadata__", ())
            if bool not in plain_types(hint):
                found.append(Option(command, name, hint, marks))
    return found


OPTIONS = all_options()
FIRST = {option.command: option for option in reversed(OPTIONS)}
"""Of each command the option whose words are read with the form of all options."""


def typed_fields(option: Option) -> list[str]:
    """The option's and all that its command needs, in their order."""
    kind = COMMANDS[option.command].options
    hints = get_type_hints(kind, include_extras=True)
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.name == option.name
        or POSITIONAL in getattr(hints[field.name], "__metadata__", ())
        or field.default is dataclasses.MISSING
        or (option.command, field.name) == ("ablate", "teacher")
    ]


def form_of_typed(whole: type, typed: list[str]) -> type:
    """A form without the fields that are not typed, which so have the defaults of the option class.

    tyro builds a parser for each command line, and a field of it takes milliseconds.
    """
    fields = [
        (field.name, whole.__annotations__[field.name], dataclasses.field(default=field.default))
        for field in dataclasses.fields(whole)
        if field.name in typed
    ]
    return dataclasses.make_dataclass(whole.__name__, fields, frozen=True, kw_only=True)


def words_with(option: Option, value: str) -> list[str]:
    """A command that has everything that it needs, and ``value`` for the option."""
    kind = COMMANDS[option.command].options
    hints = get_type_hints(kind, include_extras=True)
    words = [option.command]
    for name in typed_fields(option):
        if POSITIONAL in getattr(hints[name], "__metadata__", ()):
            words.append(value if name == option.name else ESSENTIALS[name])
        elif name != option.name:
            words += [flag(name), ESSENTIALS[name]]
    if POSITIONAL in option.marks:
        return words
    count = 2 if "tuple[" in str(option.hint) and REPEATED not in option.marks else 1
    return [*words, flag(option.name), *[value] * count]


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.is_number], ids=str)
def test_every_number_has_a_range(option: Option) -> None:
    assert option.range is not None


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: f"{option.command} {option.name}")
def test_what_cannot_be_meant_is_refused_in_one_line(
    option: Option, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of all commands tyro builds a parser each time; two are enough to choose one.
    chosen = {name: COMMANDS[name] for name in (option.command, "upgrade", "demo")}
    configs: list[Any] = []

    def note(config: Any) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr(cli, "COMMANDS", chosen)
    monkeypatch.setattr(cli, "run_command", note)
    if option != FIRST[option.command]:
        form = form_of_typed(parsing._unchecked_form(COMMANDS[option.command].options), typed_fields(option))
        monkeypatch.setattr(parsing, "_unchecked_form", lambda _: form)
    for value in option.nonsense:
        configs.clear()
        with pytest.raises(SystemExit) as end:
            main(words_with(option, value))
        line = capsys.readouterr().err
        if not configs:
            assert end.value.code == 2 and len(line.splitlines()) == 1, (value, line)
            assert option.name.split("_")[0] in line, (value, line)
        elif option.is_number:
            found = getattr(configs[0], option.name)
            assert option.range is not None
            for number in found if isinstance(found, tuple) else (found,):
                assert option.range.holds(number) and not math.isnan(number), (value, found)


@pytest.mark.parametrize("line", CONTRADICTIONS)
def test_options_that_contradict_each_other(line: str) -> None:
    with pytest.raises(ConfigError, match=line.split()[-2]):
        parse_command(["train", "--data", "d", "--student", "timm:a", "--out", "o", *line.split()])


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands work on, by the names of ``ESSENTIALS``."""
    folder = tmp_path_factory.mktemp("material")
    write_color_shards(folder / "data", sizes=(9, 7))
    write_color_shards(folder / "data", sizes=(8,), split="validation")
    write_image_folder(folder / "images")
    write_color_teacher(folder / "teacher.onnx")
    small = ["--size", "16", "--batch-size", "8", "--epochs", "1", "--validation-split", "none", "--device", "cpu"]
    for words in (
        ["train", "--data", "data", "--student", "timm:test_resnet", "--out", "run", *small],
        ["extract", "--data", "data", "--teacher", "onnx:teacher.onnx,size=16,resize=16", "--out", "store"],
        ["export-logits", "store", "--format", "csv", "--out", "csv"],
    ):
        with contextlib.chdir(folder), pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"ablate", "demo", "upgrade", "completion"}))
def test_what_is_accepted_works(
    command: str, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value that no option class refuses is run: a number works or is exit code 2, all else is one line."""
    wrong = []
    tried = [(option, value) for option in OPTIONS if option.command == command for value in option.nonsense]
    for number, (option, value) in enumerate(tried):
        folder = tmp_path / str(number)
        folder.mkdir()
        for path in material.iterdir():
            (folder / path.name).symlink_to(path)
        monkeypatch.chdir(folder)
        words = words_with(option, value)
        is_given = option.name in ("device", "size", "batch_size", "epochs", "samples", "validation_split")
        words += QUICK.get(command, [])[: 2 if is_given else None] if option.name != "device" else []
        words = ["onnx:teacher.onnx,size=16,resize=16" if word == "teacher" else word for word in words]
        with warnings.catch_warnings(), pytest.raises(SystemExit) as end:
            warnings.simplefilter("ignore")
            main(words)
        shown = capsys.readouterr()
        lines = [line for line in shown.err.splitlines() if line.startswith("teachonce: ")]
        # Labels that are moved are other ones than the store's, which verify finds.
        is_found = (command, option.name) == ("verify", "label_offset")
        expected = (0, 2) if option.is_number and not is_found else (0, 1, 2)
        is_told = len(lines) == 1 or (command == "verify" and len(shown.out.splitlines()) == 1)
        if end.value.code not in expected or (end.value.code and not is_told) or "--debug shows" in shown.err:
            wrong.append((option.name, value, end.value.code, lines))
    assert not wrong, wrong
