"""From the words of a command line to a configuration, and why there is none.

What a command means is found in three steps: argparse takes out what every command takes (``--config`` among them),
tyro reads the words into an unchecked form whose defaults are those of the recipe and the file, and the command's own
option class checks the result. Where tyro refuses the words they are read again, for one line that says which ones and
what was probably meant. tyro is imported for this alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from teachonce.cli.help import Option, describe_options
from teachonce.errors import ConfigError, TeachonceError
from teachonce.options import POSITIONAL, REPEATED, Alias, flag, parse_number
from teachonce.storage.remote.settings import add_options
from teachonce.suggestions import closest
from teachonce.terminal import plural

STORAGE_OPTIONS = "--storage-options"
_PAIR = re.compile(r"[A-Za-z][A-Za-z0-9_]*=.*", re.DOTALL)


class Flags(NamedTuple):
    """What every command takes."""

    config: str | None
    quiet: bool
    progress: Literal["auto", "json"]
    debug: bool
    version: bool
    help: bool
    help_all: bool


def take_flags(arguments: Sequence[str] | None) -> tuple[Flags, list[str]]:
    """The flags that every command takes, wherever they are, and the remaining words.

    Words behind ``--`` are no options, whatever they begin with: they become names that cannot be taken for one.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = _end_of_options(words)
    # As an option of argparse -h would be taken out of -hidden.jpg.
    before = ["--help" if word == "-h" else word for word in words[:end]]
    behind = [f"./{word}" if word.startswith("-") else word for word in words[end + 1 :]]
    first = _Flags(prog="teachonce", add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.add_argument("--progress", choices=("auto", "json"), default="auto")
    for name in ("--quiet", "--debug", "--version", "--help-all"):
        first.add_argument(name, action="store_true")
    first.add_argument("--help", action="store_true")
    found, left = first.parse_known_args(before)
    return Flags(**vars(found)), left + behind


def _end_of_options(words: Sequence[str]) -> int:
    """Where ``--`` stands; the number of words where it does not."""
    return words.index("--") if "--" in words else len(words)


def take_storage_options(words: Sequence[str]) -> list[str]:
    """The words without the option and its KEY=VALUE words, which are set; raises ConfigError where there are none.

    They end at the first word that is not KEY=VALUE, or that is an existing local path: a run may be called lr=0.1.
    They are settings of object stores, for this process and those that it starts, and no part of a configuration: what
    is written down of a command must not hold a secret.
    """
    left: list[str] = []
    pairs: list[str] = []
    end = _end_of_options(words)
    rest = deque(words[:end])
    while rest:
        word = rest.popleft()
        name, equals, value = word.partition("=")
        if name != STORAGE_OPTIONS:
            left.append(word)
            continue
        found = [value] if equals else []
        while not equals and rest and _PAIR.fullmatch(rest[0]) and not _is_path(rest[0]):
            found.append(rest.popleft())
        if not found or _PAIR.fullmatch(found[0]) is None:
            raise ConfigError(f"{word}: expected KEY=VALUE pairs, such as {STORAGE_OPTIONS} region=eu-central-1")
        pairs += found
    if pairs:
        add_options(pairs)
    return left + list(words[end:])


def _is_path(word: str) -> bool:
    from teachonce.storage.files import exists

    try:
        return exists(Path(word))
    except TeachonceError:
        # Longer than a name can be, as tokens are.
        return False


class _Flags(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        line = message.removeprefix("argument ")
        # What argparse says of --quiet=1.
        raise ConfigError(line.replace("ignored explicit argument", "takes no value, found"))


def find_command(words: Sequence[str], commands: Iterable[str], gone: Mapping[str, str]) -> str:
    """The command that the words begin with; ConfigError with the nearest one where none has that name.

    ``gone`` says what came in place of commands of older versions.
    """
    name = words[0]
    if name in commands:
        return name
    if name in gone:
        raise ConfigError(f"{name}: {gone[name]}")
    if name.startswith("-"):
        raise ConfigError(f"{name}: expected a command before its options; 'teachonce --help' lists them")
    raise ConfigError(f"{name}: no such command{_suggest(name, commands)}; 'teachonce --help' lists them")


def parse_options(command: str, options: type, words: Sequence[str], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every option of a command, unchecked: the words on top of what was chosen elsewhere.

    Raises ConfigError for words that are no options of this command, and where a required one is not given.
    """
    import tyro

    # Values that are given one by one would be added to those that were chosen.
    given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    form = _unchecked_form(options)
    required = [field.name for field in dataclasses.fields(form) if field.default is dataclasses.MISSING]
    repeated = {option.name for option in describe_options(options) if REPEATED in option.marks} & given
    values = dict.fromkeys(required, tyro.MISSING) | {name: chosen[name] for name in chosen.keys() - repeated}
    try:
        parsed: Any = tyro.cli(
            form,
            prog=f"teachonce {command}",
            args=list(words),
            default=form(**values),
            console_outputs=False,
            add_help=False,
        )
    except SystemExit:
        raise ConfigError(explain_words(command, describe_options(options), words, chosen)) from None
    return {field.name: getattr(parsed, field.name) for field in dataclasses.fields(form)}


def find_value(option: str, words: Sequence[str]) -> str | None:
    """The value of an option that must be known before the others; None where it is not given."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument(option, nargs="?", dest="found")  # where its value is missing, ``explain_words`` says so
    return first.parse_known_args(words)[0].found


def explain_words(command: str, options: Sequence[Option], words: Sequence[str], chosen: Mapping[str, Any]) -> str:
    """Why the words of a command are none that it takes beside what was ``chosen`` elsewhere, as a line."""
    names = {flag(option.name): option for option in options if not option.is_positional}
    names |= {flag(mark.name): option for option in options for mark in option.marks if isinstance(mark, Alias)}
    names |= {flag("no_" + option.name): option for option in options if not option.value}
    places = [option for option in options if option.is_positional]
    left, placed, given = list(words), [], set(chosen)
    while left:
        whole = left.pop(0)
        word, equals, _ = whole.partition("=")
        if not _is_option(word):
            placed.append(word)
            continue
        option = names.get(word.replace("_", "-"))
        if option is None:
            hint = f"; a path is given as ./{whole}" if _is_path(whole) else _suggest(word, names)
            return f"{word}: not an option of {command}{hint}; 'teachonce {command} --help-all' lists them"
        given.add(option.name)
        wanted = 0 if equals or not option.value else len(option.value.split()) - ("..." in option.value)
        values = [left.pop(0) for _ in range(wanted) if left and not left[0].startswith("--")]
        if len(values) < wanted:
            return f"{option.heading}: expected {plural(wanted, 'value')}, found {len(values)}"
        while option.value.endswith("...") and left and not _is_option(left[0]):
            left.pop(0)
    if len(placed) > len(places) and not (places and places[-1].value.endswith("...")):
        return f"{placed[len(places)]}: unexpected; options of {command} are given as --NAME VALUE"
    given |= {option.name for option, _ in zip(places, placed, strict=False)}
    missing = [option.heading for option in options if option.is_required and option.name not in given]
    return (
        f"{command}: {' and '.join(missing) or 'an option'} missing; give it here or in --config FILE; 'teachonce "
        f"{command} --help' has an example"
    )


def _is_option(word: str) -> bool:
    if not word.startswith("-") or word == "-":
        return False
    try:
        parse_number(word)
    except ValueError:
        return True
    return False


def _suggest(word: str, known: Iterable[str]) -> str:
    close = closest(word, known)
    return f" (did you mean {close[0]}?)" if close else ""


@cache
def _unchecked_form(options: type) -> type:
    """An option class for tyro: with tyro's markers instead of ours, and filled in before it is checked."""
    import tyro

    from teachonce.cli.reading import with_readers

    markers = {POSITIONAL: tyro.conf.Positional, REPEATED: tyro.conf.UseAppendAction}
    marked: dict[str, Any] = {}
    for name, hint in get_type_hints(options, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        marked[name] = with_readers(name if POSITIONAL in marks else flag(name), hint)
        for marker in marks:
            if isinstance(marker, str) and marker in markers:
                marked[name] = Annotated[marked[name], markers[marker]]
            elif isinstance(marker, Alias):
                marked[name] = Annotated[marked[name], tyro.conf.arg(aliases=[flag(marker.name)])]
    namespace = {
        "__doc__": options.__doc__,
        "__module__": options.__module__,
        "__annotations__": marked,
        "__post_init__": lambda self: None,
    }
    return dataclasses.dataclass(frozen=True, kw_only=True)(type(options.__name__, (options,), namespace))
