"""``--config FILE``: options of a command from JSON or TOML, a run's ``config.json`` and a store's own among them.

A file has the options by name, ``batch_size`` or ``batch-size``, each with a value of its type: lists for options of
several values, null (JSON) or nothing (TOML) where there is none. Relative paths are relative to where the command is
run, as on the command line. Unknown options are refused, except those that ``train`` itself adds to ``config.json``.
"""

from __future__ import annotations

import math
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from teachonce.errors import ConfigError
from teachonce.storage.address import to_location
from teachonce.suggestions import closest

_EXPECTED: dict[Any, str] = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
_EXPECTED |= {Path: "a path", type(None): "null"}
_LIMITS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
"""Numbers that JSON does not know, as ``options.to_json`` writes them."""


def read_config_file(path: str, command: str, options: type) -> dict[str, Any]:
    """The options of a file, each of the type that its field has; unchecked beyond that.

    Raises ConfigError for a file that cannot be read, a key that is not an option of the command, and a value of
    another type: with what was found and expected.
    """
    content = _read(to_location(path))
    from_run = getattr(options, "from_run_config", None)
    if from_run is not None:
        content = from_run(content)
    hints = get_type_hints(options, include_extras=True)
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in hints:
            close = closest(name, hints)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"{path}: {key!r} is not an option of {command}{hint}")
        if name in found:
            raise ConfigError(f"{path}: {name} is given twice")
        try:
            found[name] = convert_value(hints[name], value)
        except ValueError as error:
            raise ConfigError(f"{path}: {key} is {_shown(value)}, expected {error}") from None
    return found


def convert_value(hint: Any, value: Any) -> Any:
    """A value of JSON or TOML as the type of an option has it; ValueError says what is expected instead."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hasattr(hint, "__metadata__"):
        return convert_value(arguments[0], value)
    if origin in (Union, types.UnionType):
        return _first_that_fits(arguments, value)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise ValueError(", ".join(map(str, arguments)))
        return value
    if origin is tuple:
        return _convert_list(arguments, value)
    if hint is float and isinstance(value, str) and value in _LIMITS:
        return _LIMITS[value]
    kinds = {float: (int, float), Path: (str,), type(None): (type(None),)}.get(hint, (hint,))
    is_right = isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
    if not is_right or (hint is Path and (not value or "\0" in value)):
        raise ValueError(_EXPECTED[hint])
    return to_location(value) if hint is Path else value


def _first_that_fits(hints: tuple[Any, ...], value: Any) -> Any:
    expected = []
    for hint in hints:
        try:
            return convert_value(hint, value)
        except ValueError as error:
            expected.append(str(error))
    raise ValueError(" or ".join(expected))


def _convert_list(hints: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    items = [hint for hint in hints if hint is not Ellipsis]
    if Ellipsis in hints and isinstance(value, list):
        items = items * len(value)
    if not isinstance(value, list) or len(value) != len(items):
        raise ValueError("a list" if Ellipsis in hints else f"a list of {len(items)}")
    return tuple(convert_value(hint, item) for hint, item in zip(items, value, strict=True))


def _read(path: Path) -> Mapping[str, Any]:
    # A command without a file pays for none.
    from teachonce.storage.files import locate
    from teachonce.storage.strict_json import parse_json

    storage, name = locate(path, ConfigError)
    content = storage.read(name)
    kind = "TOML" if path.suffix.lower() == ".toml" else "JSON"
    try:
        found = tomllib.loads(content.decode()) if kind == "TOML" else parse_json(content)
    except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError are ones
        raise ConfigError(f"--config {path}: is not {kind}: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"--config {path}: expected an object of options")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
