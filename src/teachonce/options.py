"""What option classes share: how they are checked, named on a command line, and written as JSON.

The configuration of a command is a frozen dataclass beside its program, each field with the sentence that ``--help``
shows. Nothing heavy is imported for it, so that the command line answers at once, and not the command line's library
either: an option class is plain. Values are checked in ``__post_init__``; what needs the data to be judged (class
counts, sizes) is checked by the program itself. The resolved configuration is saved with every store and run by
``to_json``.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from teachonce.errors import ConfigError
from teachonce.storage.address import to_location

T = TypeVar("T")
POSITIONAL, REPEATED, COMMON = "positional", "repeated", "common"
Positional = Annotated[T, POSITIONAL]
"""Marks an option that is given by its place on the command line and not by a name."""
Repeated = Annotated[T, REPEATED]
"""Marks an option that is given once for each of its values: --store A --store B."""


class Alias(NamedTuple):
    """Marks an option that is read under another name too: one that it had before."""

    name: str
    """As a field's: ``num_devices`` for --num-devices."""


OPEN = "open"
Open = Annotated[T, OPEN]
"""Marks an option whose choices a program can add to, by a registry, which then is what refuses other names."""
Common = Annotated[T, COMMON]
"""Marks an option that most calls need: of a command that has such, ``--help`` shows these and ``--help-all`` all.
A class names inherited ones that are so for it alone in ``COMMON_OPTIONS``."""


class Group(NamedTuple):
    """Where ``--help`` shows an option; every field of an option class carries one, ``InData[Path]``."""

    title: str
    rank: int
    """Groups are shown in this order."""


class Metavar(NamedTuple):
    """The name of an option's value in ``--help``, where its type does not give it: ``--student SPEC``."""

    text: str


InArms = Annotated[T, Group("arms", 0)]
InData = Annotated[T, Group("data", 1)]
InModel = Annotated[T, Group("model", 2)]
InStudent = Annotated[T, Group("student", 3)]
InTeacher = Annotated[T, Group("teacher", 4)]
InLoss = Annotated[T, Group("loss", 5)]
InOptimization = Annotated[T, Group("optimization", 6)]
InSchedule = Annotated[T, Group("schedule", 7)]
InViews = Annotated[T, Group("views", 8)]
InStore = Annotated[T, Group("store", 9)]
InForecast = Annotated[T, Group("forecast", 10)]
InEvaluation = Annotated[T, Group("evaluation", 11)]
InInt8 = Annotated[T, Group("8-bit integers", 12)]
InOutput = Annotated[T, Group("output", 13)]
InRunning = Annotated[T, Group("running", 14)]
_CONDITION = "only with"


class Range(NamedTuple):
    """The numbers that an option takes; ``check_values`` refuses all others, NaN among them."""

    least: float
    most: float
    expected: str
    """What a message says of it."""
    excludes_least: bool = False
    excludes_most: bool = False
    also: tuple[float, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether the option takes this number."""
        is_above = self.least < value if self.excludes_least else self.least <= value
        is_below = value < self.most if self.excludes_most else value <= self.most
        return (is_above and is_below) or value in self.also


_LARGE = 2**31 - 1
Count = Annotated[int, Range(1, _LARGE, "at least 1")]
CountOrNone = Annotated[int, Range(0, _LARGE, "0 or more")]
NumClasses = Annotated[int, Range(2, _LARGE, "at least 2")]
Label = Annotated[int, Range(-_LARGE, _LARGE, "a label of the data")]
Seed = Annotated[int, Range(-(2**63), 2**63 - 1, "an integer of at most 64 bits")]
Probability = Annotated[float, Range(0, 1, "a probability from 0 to 1")]
PositiveFraction = Annotated[float, Range(0, 1, "more than 0, up to 1", excludes_least=True)]
FractionBelowOne = Annotated[float, Range(0, 1, "in [0, 1)", excludes_most=True)]
Weight = Annotated[float, Range(0, 1e6, "0 or more, at most 1000000")]
Logit = Annotated[float, Range(-1e30, 1e30, "a finite logit, or -inf", also=(-math.inf,))]


class Condition(NamedTuple):
    """What an option needs beside it: the options as they are typed, and whether a configuration has them."""

    text: str
    holds: Callable[[Any], bool]


def only_with(default: T, condition: Condition) -> T:
    """The default of an option that has an effect only under a condition."""
    return dataclasses.field(default=default, metadata={_CONDITION: condition})


def given_options(config: Any, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options that were chosen: those that differ from their defaults and from ``base``, such as a recipe's."""
    found = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    chosen = defaults | dict(base or {})
    return {name: value for name, value in found.items() if value not in (defaults[name], chosen[name])}


def check_applicable(config: Any, given: Mapping[str, Any] | None = None) -> None:
    """Raise ConfigError, naming both, for a given option whose condition does not hold; default: ``given_options``."""
    given = given_options(config) if given is None else given
    for name, condition in _broken_conditions(config).items():
        if name in given:
            found = [
                _as_found(config, option.strip(",")) for option in condition.text.split() if option.startswith("--")
            ]
            raise ConfigError(
                f"{' '.join(option_arguments(name, given[name]))}: applies only with {condition.text}, found "
                f"{', '.join(found)}"
            )


def drop_idle(options: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those that an option class would refuse beside the others, as ``check_applicable`` does."""
    # Not a configuration yet: its values are unchecked.
    draft: Any = object.__new__(options)
    for field in dataclasses.fields(options):
        object.__setattr__(draft, field.name, values.get(field.name, field.default))
    idle = _broken_conditions(draft)
    return {name: value for name, value in values.items() if name not in idle}


def _broken_conditions(config: Any) -> dict[str, Condition]:
    conditions = {field.name: field.metadata.get(_CONDITION) for field in dataclasses.fields(config)}
    return {name: condition for name, condition in conditions.items() if condition and not condition.holds(config)}


def _as_found(config: Any, option: str) -> str:
    name = option.removeprefix("--").replace("-", "_")
    value = getattr(config, name)
    is_absent = value is None or value is False or value in ((), "")
    return f"no {option}" if is_absent else " ".join(option_arguments(name, value))


def to_json(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON values: paths as strings, tuples as lists, infinities as strings."""
    return {field.name: _json_value(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _json_value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return str(value)
    return value


def command_line(config: Any) -> str:
    """The options of a configuration that differ from the defaults, as they are typed."""
    arguments: list[str] = []
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        marks = getattr(hints[field.name], "__metadata__", ())
        if POSITIONAL in marks:
            arguments += map(str, value if isinstance(value, tuple) else (value,))
        elif REPEATED in marks:
            arguments += [argument for item in value for argument in option_arguments(field.name, item)]
        else:
            arguments += option_arguments(field.name, value)
    return shlex.join(arguments)


def option_arguments(name: str, value: Any) -> list[str]:
    """A field with its value as the words of a command line."""
    if isinstance(value, bool):
        return [flag(name if value else "no_" + name)]
    return [flag(name), *[str(item) for item in (value if isinstance(value, tuple) else (value,))]]


def flag(name: str) -> str:
    """A field's name as its option."""
    return "--" + name.replace("_", "-")


def check_values(config: Any) -> None:
    """Raise ConfigError, naming option, value and expectation, for a value that its option does not take.

    That is one of another type or, of few, none of these, and a number outside of its ``Range``. Python may give a path
    as text, several values as a list and numbers of NumPy's: they become what the option's type says.
    """
    for name, hint in _hints(config.__class__).items():
        value = getattr(config, name)
        try:
            fitting = _fit(hint, value)
        except _DoesNotFitError as error:
            raise ConfigError(f"{flag(name)} {value if isinstance(value, str) else repr(value)}: {error}") from error
        if fitting is not value:
            object.__setattr__(config, name, fitting)
    for name, numbers in _ranges(config.__class__).items():
        value = getattr(config, name)
        if value is not None:
            values = value if isinstance(value, tuple) else (value,)
            holds = all(isinstance(item, int | float) and numbers.holds(item) for item in values)
            require(holds, flag(name), " ".join(map(str, values)), numbers.expected)


class _DoesNotFitError(Exception):
    """Says what was expected."""


def _fit(hint: Any, value: Any) -> Any:
    """The value as one of this type; raises _DoesNotFitError for one that is none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        if REPEATED in hint.__metadata__ and isinstance(value, str | os.PathLike):
            value = (value,)
        return _fit(str if OPEN in hint.__metadata__ else arguments[0], value)
    if origin in (Union, UnionType):
        return _fit_any(arguments, value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()  # a scalar of NumPy's or PyTorch's
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise _DoesNotFitError(f"expected {_join(map(str, arguments))}")
    elif origin is tuple:
        return _fit_all(arguments, value)
    elif hint is Path:
        if not isinstance(value, str | os.PathLike):
            raise _DoesNotFitError("expected a path")
        return to_location(value if isinstance(value, str | Path) else os.fspath(value))
    elif hint in _KINDS:
        kinds, what = _KINDS[hint]
        if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
            raise _DoesNotFitError(f"expected {what}, found {type(value).__name__}")
    return value


_KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (int, "an integer"),
    float: (int | float, "a number"),
    str: (str, "a text"),
}


def _fit_any(hints: Sequence[Any], value: Any) -> Any:
    """The value as one of the first of several types that takes it."""
    literals = [hint for hint in hints if get_origin(hint) is Literal]
    if len(literals) > 1:
        choices: Any = Literal.__getitem__(tuple(choice for hint in literals for choice in get_args(hint)))
        hints = [choices, *(hint for hint in hints if hint not in literals)]
    expected: list[str] = []
    for hint in hints:
        if hint is not NoneType:
            try:
                return _fit(hint, value)
            except _DoesNotFitError as error:
                expected.append(str(error))
        elif value is None:
            return None
    raise _DoesNotFitError("; or ".join(expected))


def _fit_all(hints: Sequence[Any], value: Any) -> tuple[Any, ...]:
    """The values as a tuple, of any length or of as many as there are types."""
    if not isinstance(value, tuple | list) and not (hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1):
        raise _DoesNotFitError("expected several values, as a tuple or a list")
    if hints[-1] is not Ellipsis and len(value) != len(hints):
        raise _DoesNotFitError(f"expected {len(hints)} values, found {len(value)}")
    kinds = [hints[0]] * len(value) if hints[-1] is Ellipsis else hints
    fitting = tuple(_fit(hint, item) for hint, item in zip(kinds, value, strict=True))
    is_same = isinstance(value, tuple) and all(item is fit for item, fit in zip(value, fitting, strict=True))
    return value if is_same else fitting


def _join(choices: Iterable[str]) -> str:
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


@cache
def _hints(options: type) -> dict[str, Any]:
    hints = get_type_hints(options, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(options)}


def find_ranges(hint: Any) -> Iterator[Range]:
    """The ranges that a type hint has, whatever is around it: ``Count | None``, ``tuple[Count, ...]``."""
    for part in (*getattr(hint, "__metadata__", ()), *get_args(hint)):
        if isinstance(part, Range):
            yield part
        elif not isinstance(part, str):
            yield from find_ranges(part)


@cache
def _ranges(options: type) -> dict[str, Range]:
    hints = get_type_hints(options, include_extras=True)
    return {name: found for name, hint in hints.items() if (found := next(find_ranges(hint), None)) is not None}


def parse_integer(text: str) -> int:
    """An integer as people write it; ValueError for other texts that Python reads as one, such as ``1_0``."""
    if not re.fullmatch(r"[+-]?[0-9]{1,1000}", text):
        raise ValueError("expected an integer")
    return int(text)


def parse_number(text: str) -> float:
    """A number as people write it, ``inf`` and ``nan`` too; ValueError for other texts that Python reads as one."""
    if not re.fullmatch(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|inf(inity)?|nan)", text, re.IGNORECASE):
        raise ValueError(f"{text!r} is not a number")
    return float(text)


_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def parse_bytes(text: str) -> int:
    """A size such as 200GB, 1.5 TB or 512MiB in bytes; ValueError, with what is expected, for other texts."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise ValueError("a size above 0 such as 200GB, 1.5TB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def require(holds: bool, option: str, found: object, expected: str) -> None:
    """Raise ConfigError, naming option, value and expectation, unless the condition holds."""
    if not holds:
        raise ConfigError(f"{option} {found}: expected {expected}")
