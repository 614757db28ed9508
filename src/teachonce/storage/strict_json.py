"""JSON values to typed objects and back, strictly: what a file says is checked once, where it is read.

``json`` gives dicts, lists and numbers; ``convert_json`` makes them a dataclass, a TypedDict or whatever else msgspec
knows (https://jcristharif.com/msgspec), with the constraints of ``msgspec.Meta``. Nothing is coerced but a whole number
where a fraction is meant. msgspec passes over unknown keys of dataclasses, and NaN, which is no JSON and which ``json``
reads all the same: both are refused here, because a setting of a newer version must not be ignored by an older one.

Deliberately not here: the files (``files``), and option classes, whose messages name the option of the command line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import msgspec

from teachonce.errors import TeachonceError

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""How many there are of something: 0 or more, in 64 bits."""


def convert_json(value: Any, kind: type[T], where: object, error: type[TeachonceError], *, advice: str = "") -> T:
    """``value``, as ``json`` reads it, as a ``kind``.

    Raises ``error`` with one line, ``where`` and the field in it and ``advice`` at its end, for an unknown or a missing
    key, a value of another type or out of range, a number that is not finite, and what ``__post_init__`` refuses.
    """
    end = advice and f"; {advice}"
    try:
        found = msgspec.convert(value, kind)
    except msgspec.ValidationError as problem:
        what, _, path = str(problem).partition(" - at `$")
        raise error(_line(where, path.strip("`."), what[:1].lower() + what[1:]) + end) from problem
    except TeachonceError as problem:
        raise error(f"{where}: {problem}{end}") from problem
    for path, what in _leftovers(value, msgspec.to_builtins(found)):
        raise error(_line(where, path, what) + end)
    return found


def json_values(value: Any) -> Any:
    """A dataclass, or dicts and lists of them, as JSON values: fields in their order, tuples as lists."""
    return _with_lists(msgspec.to_builtins(value))


def _leftovers(value: Any, known: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, what is wrong) of each key in ``value`` that ``known`` lacks, and of each number that is not finite."""
    if isinstance(value, dict):
        for key, item in value.items():
            at = f"{path}.{key}" if path else key
            if key in known:
                yield from _leftovers(item, known[key], at)
            else:
                yield at, f"unknown here, expected only {', '.join(known) or 'nothing'}"
    elif isinstance(value, list):
        for index, (item, known_item) in enumerate(zip(value, known, strict=True)):
            yield from _leftovers(item, known_item, f"{path}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, f"{value}, expected a finite number"


def _with_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_lists(item) for key, item in value.items()}
    return [_with_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _line(where: object, path: str, what: str) -> str:
    return f"{where}: {path}: {what}" if path else f"{where}: {what}"
