"""JSON values to typed objects and back, strictly: what a file says is checked once, where it is read.

``json`` gives dicts, lists and numbers; ``convert_json`` makes them a dataclass, a TypedDict or whatever else msgspec
knows (https://jcristharif.com/msgspec), with the constraints of ``msgspec.Meta``. Nothing is coerced except an integer
where a fraction is meant. msgspec passes over unknown keys of dataclasses, and NaN, which is not JSON and which
``json`` reads all the same: both are refused here, because a setting of a newer version must not be ignored by an older
one.

Deliberately not included: the files (``files``), and option classes, whose messages name the option of the command
line.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import msgspec.inspect

from teachonce.errors import TeachonceError

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""How many there are of something: 0 or more, in 64 bits."""


MAX_DEPTH = 64
"""Objects and arrays in one another; what is written here has a tenth of that."""


def parse_json(text: str | bytes) -> Any:
    """``json.loads``, but what is nested too deep for recursion is a ValueError too, as is all that is not JSON."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from error
    return _check_depth(value)


def parse_strict_json(content: bytes) -> Any:
    """As ``parse_json``, but UTF-8 without a byte order mark, and a key occurs once in its object.

    Of two equal keys readers take different ones; what people write by hand may have them, what is hashed may not.
    """
    try:
        value = json.loads(content.decode(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from error
    return _check_depth(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice in one object")
    return found


def _check_depth(value: Any) -> Any:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for inner in level for item in _inner(inner) if isinstance(item, dict | list)]
        if not level:
            return value
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def convert_json(
    value: Any,
    kind: type[T],
    where: object,
    error: type[TeachonceError],
    *,
    advice: str = "",
    also: Sequence[str] = (),
) -> T:
    """``value``, as ``json`` reads it, as a ``kind``; ``also`` are fields that the caller took out of it before.

    Raises ``error`` with one line, ``where`` and the field in it and ``advice`` at its end, for an unknown or a missing
    key, a value of another type or out of range, and a number that is not finite; what a ``__post_init__`` refuses in
    words of its own gets ``where`` alone, and keeps its class where that is an ``error`` too.
    """
    end = advice and f"; {advice}"
    for path, number in _not_finite(value):
        raise error(_line(where, path, f"{number}, expected a finite number") + end)
    try:
        found = msgspec.convert(value, kind)
    except msgspec.ValidationError as problem:
        what, _, path = str(problem).partition(" - at `$")
        raise error(_line(where, path.strip("`."), what[:1].lower() + what[1:]) + end) from problem
    except TeachonceError as problem:
        if isinstance(problem, error):
            raise problem.at(str(where)) from problem
        raise error(f"{where}: {problem}") from problem
    for path, keys in _unknown(value, json_values(found)):
        known = list(_fields(msgspec.inspect.type_info(kind), keys) or ())
        if len(keys) == 1:
            known = [*known, *(name for name in also if name not in known)]
        raise error(_line(where, path, f"unknown here (known: {', '.join(known) or 'none'})") + end)
    return found


def json_values(value: Any) -> Any:
    """A dataclass, or dicts and lists of them, as JSON values: fields in their order, tuples as lists."""
    if isinstance(value, str | int | float):
        return value  # first, because nearly all are
    if dataclasses.is_dataclass(value):
        # Not msgspec's: it leaves out the fields that it did not set itself because they have a default.
        return {field.name: json_values(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: json_values(item) for key, item in value.items()}
    return [json_values(item) for item in value] if isinstance(value, list | tuple) else value


def _not_finite(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """(path, number) of each number in ``value`` that is not finite."""
    for key in _keys(value):
        # A table has thousands of names and counts, and their paths would be the most work.
        if isinstance(value[key], float | dict | list):
            yield from _not_finite(value[key], _below(path, key))
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value


def _unknown(
    value: Any, known: Any, path: str = "", keys: tuple[str | int, ...] = ()
) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """(path, its keys) of each key in ``value`` that ``known``, what was made of it, lacks."""
    for key in _keys(value):
        if isinstance(key, str) and key not in known:
            yield _below(path, key), (*keys, key)
        elif isinstance(value[key], dict | list):
            yield from _unknown(value[key], known[key], _below(path, key), (*keys, key))


def _fields(kind: msgspec.inspect.Type, keys: Sequence[str | int]) -> Iterable[str] | None:
    """The fields that a ``kind`` can have where the last of ``keys`` leads to, those that are optional too."""
    if isinstance(kind, msgspec.inspect.Metadata):
        return _fields(kind.type, keys)
    if isinstance(kind, msgspec.inspect.UnionType):
        return next((found for item in kind.types if (found := _fields(item, keys)) is not None), None)
    inner: msgspec.inspect.Type | None = None
    if isinstance(kind, msgspec.inspect.TypedDictType | msgspec.inspect.DataclassType | msgspec.inspect.NamedTupleType):
        if len(keys) == 1:
            # msgspec sorts those of a TypedDict.
            own = {field.encode_name for field in kind.fields}
            return [name for name in getattr(kind.cls, "__annotations__", {}) if name in own] or sorted(own)
        names = {field.encode_name: field.type for field in kind.fields}
        inner = list(names.values())[keys[0]] if isinstance(keys[0], int) else names.get(keys[0])
    elif isinstance(kind, msgspec.inspect.DictType):
        inner = kind.value_type
    elif isinstance(kind, msgspec.inspect.TupleType):
        inner = kind.item_types[int(keys[0])]
    elif isinstance(kind, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
        inner = kind.item_type
    return None if inner is None or len(keys) == 1 else _fields(inner, keys[1:])


def _keys(value: Any) -> Iterable[str | int]:
    return value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()


def _below(path: str, key: str | int) -> str:
    return f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else key


def _line(where: object, path: str, what: str) -> str:
    return f"{where}: {path}: {what}" if path else f"{where}: {what}"
