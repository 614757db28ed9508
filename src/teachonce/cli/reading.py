"""How words of the command line become values, each that cannot be one per line that names its option.

tyro's own readers take what Python takes (``1_0`` is a number, an empty path the current folder), and tell of the rest
in a box of several lines. These are put in their place, by the type that an option has.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tyro.constructors import PrimitiveConstructorSpec

from teachonce.errors import ConfigError
from teachonce.options import parse_integer, parse_number
from teachonce.storage.address import READ_ONLY, Address, read_only_error, to_location


def with_readers(option: str, hint: Any) -> Any:
    """The type of an option as tyro is to read it; messages name it as ``option``, the words that it is typed as."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *metadata = get_args(hint)
        return Annotated[(with_readers(option, inner), *metadata)]
    if origin is tuple:
        items = tuple(item if item is Ellipsis else with_readers(option, item) for item in get_args(hint))
        return types.GenericAlias(tuple, items)
    if origin in (Union, types.UnionType):
        return Union[tuple(with_readers(option, item) for item in get_args(hint))]  # noqa: UP007, of what a tuple holds
    if origin is Literal:
        return Annotated[hint, _choice_reader(option, get_args(hint))]
    if hint in _READERS:
        return Annotated[hint, _reader(option, hint, *_READERS[hint])]
    return hint


def _read_path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(text)
    return to_location(text)


_OUTPUTS = ("--out", "--html", "--csv")
"""Options of files and folders that are written; of a positional argument the name has no dashes."""
_READERS: dict[type, tuple[Callable[[str], Any], str, str]] = {
    int: (parse_integer, "INT", "an integer"),
    float: (parse_number, "FLOAT", "a number"),
    Path: (_read_path, "PATH", "a path"),
}


def _reader(
    option: str, kind: type, parse: Callable[[str], Any], metavar: str, expected: str
) -> PrimitiveConstructorSpec[Any]:
    def read(words: list[str]) -> Any:
        try:
            value = parse(words[0])
        except ValueError:
            raise ConfigError(f"{option} {words[0] or repr(words[0])}: expected {expected}") from None
        if option in _OUTPUTS and isinstance(value, Address) and value.scheme in READ_ONLY:
            raise read_only_error(value, option)
        return value

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, kind) or (kind is float and isinstance(value, int)),
        str_from_instance=lambda value: [str(value)],
    )


def _choice_reader(option: str, choices: tuple[Any, ...]) -> PrimitiveConstructorSpec[Any]:
    words_of = {str(choice): choice for choice in choices}

    def read(words: list[str]) -> Any:
        if words[0] not in words_of:
            found = words[0] or repr(words[0])
            raise ConfigError(f"{option} {found}: expected {', '.join(words_of)}")
        return words_of[words[0]]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(words_of)}}}",
        instance_from_str=read,
        is_instance=lambda value: value in choices,
        str_from_instance=lambda value: [str(value)],
    )
