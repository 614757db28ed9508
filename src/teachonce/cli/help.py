"""The texts of ``--help``, made from the option classes: groups, required options first, two lengths.

tyro's own help is one box in the order of the fields. Here an option is shown in the group that its field carries
(``options.Group``), with the sentence under the field, its default and its metavar; nothing is listed by
hand. Where a class marks some of its options ``Common``, ``--help`` shows these and the required ones, and
``--help-all`` every one. Lines are broken at the terminal's width; neither tyro nor rich is imported.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shutil
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from teachonce.options import COMMON, POSITIONAL, REPEATED, Group, Metavar, flag

LEAST_WIDTH, MOST_WIDTH = 60, 110
_INDENT, _COLUMN = 2, 24
_METAVARS = {int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT"}


class Option(NamedTuple):
    """A field of an option class, as ``--help`` shows it."""

    name: str
    group: Group | None
    value: str
    """Its metavar; "" for a flag."""
    sentence: str
    default: Any
    """``dataclasses.MISSING`` where it is required."""
    choices: tuple[str, ...]
    marks: tuple[Any, ...]

    @property
    def is_positional(self) -> bool:
        """Whether it is given by its place."""
        return POSITIONAL in self.marks

    @property
    def is_required(self) -> bool:
        """Whether a command without it is refused."""
        return self.default is dataclasses.MISSING

    @property
    def heading(self) -> str:
        """How it is typed."""
        if self.is_positional:
            return self.value
        return flag("no_" + self.name if self.default is True else self.name) + (f" {self.value}" if self.value else "")


GLOBAL_OPTIONS = (
    (
        "--config FILE",
        "Read options from a JSON or TOML file, such as a run's config.json; options on the command line override it.",
    ),
    ("--quiet", "Print no progress and no notes, only warnings, errors and results."),
    (
        "--storage-options KEY=VALUE ...",
        "Settings of object stores, such as endpoint=URL or region=REGION (docs/guide/object-stores.md). The list ends "
        "at the first word that is not KEY=VALUE or that names a local path.",
    ),
    (
        "--progress {auto,json}",
        "How progress is shown: for people (auto), or as JSON, one object per line on stderr (json). (default: auto)",
    ),
    ("--debug", "Show the traceback of an error."),
    ("--version", "Show the version and exit."),
    ("-h, --help", "Show the most common options and exit."),
    ("--help-all", "Show all options and exit."),
)
"""Options of every command."""


@cache
def describe_options(options: type) -> tuple[Option, ...]:
    """The options of a class, in the order of its fields; those in its ``COMMON_OPTIONS`` are ``Common`` too."""
    hints = get_type_hints(options, include_extras=True)
    sentences = _sentences(options)
    found = [_describe(field, hints[field.name], sentences[field.name]) for field in dataclasses.fields(options)]
    common = getattr(options, "COMMON_OPTIONS", ())
    return tuple(one._replace(marks=(*one.marks, COMMON)) if one.name in common else one for one in found)


def command_help(
    name: str,
    options: type,
    examples: Sequence[str],
    actions: Sequence[tuple[str, str]] = (),
    *,
    is_full: bool,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """The help of a command: what most calls need, or everything; ``actions`` are what it can print instead of running.

    ``defaults`` are those of a recipe or a file, in place of the options' own.
    """
    found = [option._replace(default=defaults.get(option.name, option.default)) for option in describe_options(options)]
    has_common = any(COMMON in option.marks for option in found)
    shown = [option for option in found if is_full or not has_common or COMMON in option.marks or option.is_required]
    width = terminal_width()
    parts = [_usage(name, found), *textwrap.wrap(_clean(inspect.getdoc(options) or ""), width)]
    titles = dict(getattr(options, "GROUP_TITLES", ()))
    required = [option for option in shown if option.is_required]
    parts += _section("required", [(option.heading, option.sentence) for option in required], width)
    # What most calls need comes first in its group.
    shown.sort(key=lambda option: COMMON not in option.marks)
    groups = sorted({option.group or _OTHER for option in shown if not option.is_required}, key=lambda one: one.rank)
    for group in groups:
        rows = [
            (option.heading, sentence_with_default(option))
            for option in shown
            if (option.group or _OTHER) == group and not option.is_required
        ]
        parts += _section(titles.get(group.title, group.title), rows, width)
    parts += _section("instead of running", actions, width)
    parts += _section("all commands", GLOBAL_OPTIONS if has_common else GLOBAL_OPTIONS[:-1], width)
    if len(shown) < len(found):
        parts += ["", f"{len(found) - len(shown)} more options: teachonce {name} --help-all"]
    if examples:
        parts += ["", "examples:"]
        for example in examples:
            lines = textwrap.wrap(f"teachonce {name} {example}", width - 6, **_WRAP)
            parts.append("  " + " \\\n      ".join(lines))
    return "\n".join(parts)


def overview(description: str, groups: Mapping[str, Mapping[str, type]]) -> str:
    """What ``teachonce --help`` shows: the commands of each group by its title, each with its sentence."""
    width = terminal_width()
    parts = ["usage: teachonce COMMAND [options]", "", *textwrap.wrap(description, width)]
    for title, commands in groups.items():
        rows = [(name, _clean(inspect.getdoc(options) or "")) for name, options in commands.items()]
        parts += _section(title, rows, width, column=18)
    parts += _section("all commands", GLOBAL_OPTIONS, width)
    parts += ["", "'teachonce COMMAND --help' shows the options of a command."]
    return "\n".join(parts)


def terminal_width() -> int:
    """Columns that a help text has: the terminal's, 80 where there is none, within what can be read."""
    return max(LEAST_WIDTH, min(MOST_WIDTH, shutil.get_terminal_size((80, 24)).columns)) - 1


def sentence_with_default(option: Option) -> str:
    """What an option means and, unless the sentence says so itself, its default."""
    if "efault:" in option.sentence or option.default is None or isinstance(option.default, bool):
        return option.sentence
    if option.default in ((), ""):
        return option.sentence
    values = option.default if isinstance(option.default, tuple) else (option.default,)
    shown = " ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
    return f"{option.sentence} (default: {shown})"


_OTHER = Group("other", 99)


def _usage(name: str, options: Sequence[Option]) -> str:
    places = [option.value if option.is_required else f"[{option.value}]" for option in options if option.is_positional]
    needed = [option.heading for option in options if option.is_required and not option.is_positional]
    words = ["usage: teachonce", name, *places, *needed, "[options]"]
    return textwrap.fill(" ".join(words), terminal_width(), subsequent_indent=" " * 8, **_WRAP) + "\n"


_WRAP: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def _section(title: str, rows: Sequence[tuple[str, str]], width: int, column: int = _COLUMN) -> list[str]:
    if not rows:
        return []
    lines = ["", f"{title}:"]
    for heading, sentence in rows:
        wrapped = _wrap(sentence, width - column)
        begin = " " * _INDENT + heading
        if len(begin) + 2 <= column:
            lines.append(begin.ljust(column) + (wrapped.pop(0) if wrapped else ""))
        else:
            lines.append(begin)
        lines += [" " * column + line for line in wrapped]
    return lines


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most ``width``; a word that is longer, such as a SPEC, is broken after a comma."""
    found: list[str] = []
    for line in textwrap.wrap(text, width, **_WRAP):
        rest = line
        while len(rest) > width and (end := rest.rfind(",", 0, width) + 1):
            found.append(rest[:end])
            rest = rest[end:]
        found.append(rest)
    return found


def _describe(field: dataclasses.Field[Any], hint: Any, sentence: str) -> Option:
    marks = getattr(hint, "__metadata__", ())
    value, choices = _value(hint)
    if POSITIONAL in marks:
        several = " ..." if value.endswith(" ...") else ""
        value = field.name.upper() + several if not choices else value
    group = next((mark for mark in marks if isinstance(mark, Group)), None)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if REPEATED in marks:
        value = value.removesuffix(" ...")
        sentence += " Can be given more than once." if "several" not in sentence.lower() else ""
    return Option(field.name, group, value, sentence, default, choices, marks)


def _value(hint: Any) -> tuple[str, tuple[str, ...]]:
    """The metavar of a type, and its choices if it is a Literal."""
    metavar = next((mark.text for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Metavar)), None)
    if metavar is not None:
        return metavar, ()
    origin, arguments = get_origin(hint), get_args(hint)
    if hasattr(hint, "__metadata__"):
        return _value(arguments[0])
    if origin is Literal:
        choices = tuple(map(str, arguments))
        return f"{{{','.join(choices)}}}", choices
    if origin in (Union, types.UnionType):
        found = [_value(argument) for argument in arguments if argument is not type(None)]
        return "|".join(value for value, _ in found), sum((choices for _, choices in found), ())
    if origin is tuple:
        items = [argument for argument in arguments if argument is not Ellipsis]
        value = " ".join(_value(item)[0] for item in items)
        return (f"{value} ..." if Ellipsis in arguments else value), ()
    return ("", ()) if hint is bool else (_METAVARS.get(hint, hint.__name__.upper()), ())


def _sentences(options: type) -> dict[str, str]:
    """The text under each field of a class: of the most derived class that declares it."""
    found: dict[str, str] = {}
    for owner in reversed(options.__mro__):
        if dataclasses.is_dataclass(owner):
            found |= _sentences_of(owner)
    return found


@cache
def _sentences_of(owner: type) -> dict[str, str]:
    body = _classes(owner.__module__)[owner.__name__].body
    found = {}
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            found[statement.target.id] = _clean(str(after.value.value)) if is_text else ""  # type: ignore[union-attr]
    return found


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _clean(text: str) -> str:
    return " ".join(text.split())
