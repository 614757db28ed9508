"""JSON as typed objects: nothing is coerced, ignored or made up, and what is wrong is said with its field."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from teachonce.errors import ConfigError, RecordError
from teachonce.storage.strict_json import Count, convert_json, json_values, parse_json, parse_strict_json


@dataclass(frozen=True, kw_only=True)
class Crop:
    scale: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        if self.scale[0] > self.scale[1]:
            raise ConfigError(f"scale {self.scale}: expected least <= most")


class Shard(TypedDict):
    name: str
    records: Count
    note: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class Description:
    kind: Literal["a", "b"]
    shards: list[Shard]
    crop: Crop | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def value(**changes: Any) -> dict[str, Any]:
    return {"kind": "a", "shards": [{"name": "x", "records": 3}], **changes}


def convert(entry: Any) -> Description:
    return convert_json(entry, Description, "FILE", RecordError, advice="create it again")


def test_there_and_back() -> None:
    entry = value(crop={"scale": [0, 1.5]}, extra={"x": [1, {"y": None}]})
    found = convert(entry)
    assert found == Description(
        kind="a", shards=[{"name": "x", "records": 3}], crop=Crop(scale=(0.0, 1.5)), extra={"x": [1, {"y": None}]}
    )
    assert json_values(found) == entry and list(json_values(found)) == ["kind", "shards", "crop", "extra"]
    assert json_values({"a": ((1, 2), [(3,)])}) == {"a": [[1, 2], [[3]]]}


def test_defaults_are_written_too() -> None:
    entry = {"kind": "a", "shards": []}
    assert json_values(convert(entry)) == {**entry, "crop": None, "extra": {}}
    assert json_values(convert_json({}, Crop, "FILE", RecordError)) == {"scale": [0.5, 1.0]}


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (None, "FILE: expected `object`, got `null`"),
        ([], "FILE: expected `object`, got `array`"),
        ({"kind": "a"}, "FILE: object missing required field `shards`"),
        (value(kind="c"), "FILE: kind: invalid enum value 'c'"),
        (value(other=1), "FILE: other: unknown here (known: kind, shards, crop, extra)"),
        (value(shards=[{"name": "x"}]), "FILE: shards[0]: object missing required field `records`"),
        (value(shards=[{"name": "x", "records": -1}]), "FILE: shards[0].records: expected `int` >= 0"),
        (
            value(shards=[{"name": "x", "records": 2**63}]),
            "FILE: shards[0].records: expected `int` <= 9223372036854775807",
        ),
        (value(shards=[{"name": "x", "records": True}]), "FILE: shards[0].records: expected `int`, got `bool`"),
        (value(shards=[{"name": "x", "records": 3.0}]), "FILE: shards[0].records: expected `int`, got `float`"),
        (value(shards=[{"name": "x", "records": "3"}]), "FILE: shards[0].records: expected `int`, got `str`"),
        (
            value(shards=[{"name": "x", "records": 3, "bytes": 1}]),
            "FILE: shards[0].bytes: unknown here (known: name, records, note)",
        ),
        (value(crop={"scale": [1]}), "FILE: crop.scale: expected `array` of length 2, got 1"),
        (value(crop={"scale": [0, math.nan]}), "FILE: crop.scale[1]: nan, expected a finite number"),
        (value(crop={"tilt": 1}), "FILE: crop.tilt: unknown here (known: scale)"),
        (value(extra={"x": [0, -math.inf]}), "FILE: extra.x[1]: -inf, expected a finite number"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_field(entry: Any, line: str) -> None:
    with pytest.raises(RecordError) as error:
        convert(entry)
    assert str(error.value) == f"{line}; create it again"


def test_what_a_class_refuses_keeps_its_words() -> None:
    with pytest.raises(RecordError) as error:
        convert(value(crop={"scale": [2, 1]}))
    assert str(error.value) == "FILE: scale (2.0, 1.0): expected least <= most"


@pytest.mark.parametrize("depth", [65, 900, 200_000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_what_is_nested_too_deep_is_no_json(depth, begin, end):
    """Whatever a stack would hold of it: json's reading, a comparison or a message."""
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        parse_json(begin * depth + "1" + end * depth)
    assert parse_json(begin * 64 + "1" + end * 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "d": 2, "c": 1}}', "the key 'c' occurs twice in one object"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ('{"a": 1}'.encode("utf-16"), "utf-8"),
        (b"[" * 200_000, "nested more than 64 deep"),
    ],
)
def test_what_is_hashed_has_one_meaning(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_strict_json(content)
    assert parse_strict_json(b'{"a": [1, {"a": 2}]}') == {"a": [1, {"a": 2}]}
