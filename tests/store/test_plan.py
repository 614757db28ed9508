"""plan.json and manifest.json, whatever stands in them: a store, or one line that names file and field."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from teachonce.errors import StoreError
from teachonce.store.plan import Plan, read_plan
from teachonce.store.store import Store
from tests.support.paths import GOLDEN

STORES = ["store-v1-int8", "store-v2-topk"]
FILES = ["plan.json", "manifest.json"]
OTHER_VALUES = [None, True, False, -1, 0, 3, 10**30, 1.5, math.nan, math.inf, "", "text", [], [0], [[]], {}, {"a": 1}]
FREE = ("preprocessing", "versions")
"""Dicts of any keys."""


def nodes(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    yield path, value
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from nodes(item, (*path, key))


def edited(value: Any, path: tuple[str | int, ...], edit: Any) -> Any:
    """A copy in which ``edit(container, key)`` was done at ``path``."""
    root = {"": copy.deepcopy(value)}
    container: Any = root
    for key in ("", *path)[:-1]:
        container = container[key]
    edit(container, ("", *path)[-1])
    return root[""]


def open_with(folder: Path, name: str, content: Any) -> Store:
    """A store of which only this file is there, used as far as its files do not matter."""
    (folder / name).write_text(json.dumps(content))
    store = Store(folder, is_partial=name == "plan.json")
    assert store.shards and store.fingerprint and store.num_bytes() >= 0
    assert store.class_space.num_classes > 0 and store.num_views > 0 and store.codec and store.policy
    return store


def refused(folder: Path, name: str, content: Any) -> str:
    with pytest.raises(StoreError) as error:
        open_with(folder, name, content)
    line = str(error.value)
    assert line.startswith(f"{folder / name}: ") and "\n" not in line
    return line


def is_named(key: str, line: str) -> bool:
    words = {"format_version": "store format version", "name": "codec "}
    return key in line or (key in words and words[key] in line)


def content_of(store: str, name: str) -> Any:
    return json.loads((GOLDEN / store / name).read_text())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("store", STORES)
def test_any_other_value_anywhere_gives_a_store_or_one_line(tmp_path: Path, store: str, name: str) -> None:
    content = content_of(store, name)
    assert open_with(tmp_path, name, content).plan == read_plan(GOLDEN / store)
    for path, _ in nodes(content):
        for other in OTHER_VALUES:
            changed = edited(content, path, lambda container, key, other=other: container.__setitem__(key, other))
            try:
                open_with(tmp_path, name, changed)
            except StoreError as error:
                assert str(error).startswith(f"{tmp_path / name}: ") and "\n" not in str(error), (path, other)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("store", STORES)
def test_values_of_another_type_are_refused_with_their_field(tmp_path: Path, store: str, name: str) -> None:
    """A truth, an array or an object where a number or a text is meant; a text for a number, a number for a text."""
    content = content_of(store, name)
    for path, value in nodes(content):
        if not path or any(key in FREE for key in path[:-1]):
            continue
        key = next(key for key in reversed(path) if isinstance(key, str))
        wrong = (
            [{}, [], "text"] if isinstance(value, int | float) else [1, 1.5] if isinstance(value, str) else ["text", 1]
        )
        wrong += [[]] if isinstance(value, dict) else [{}]
        wrong += [] if isinstance(value, bool) else [True]
        for other in wrong:
            changed = edited(content, path, lambda container, key, other=other: container.__setitem__(key, other))
            assert is_named(key, refused(tmp_path, name, changed)), (path, other)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("store", STORES)
def test_nan_is_refused_wherever_it_stands(tmp_path: Path, store: str, name: str) -> None:
    content = content_of(store, name)
    for path, value in nodes(content):
        if path and isinstance(value, int | float | dict):
            key = next(key for key in reversed(path) if isinstance(key, str))
            for other in (math.nan, -math.inf):
                changed = edited(content, path, lambda container, key, other=other: container.__setitem__(key, other))
                assert is_named(key, refused(tmp_path, name, changed)), path
    changed = edited(content, (), lambda container, key: None)
    plan = changed.get("plan", changed)
    plan["teacher"]["preprocessing"] = {"mean": [0.5, math.nan]}
    assert "teacher.preprocessing.mean[1]: nan" in refused(tmp_path, name, changed)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("store", STORES)
def test_an_unknown_key_is_refused_in_every_object(tmp_path: Path, store: str, name: str) -> None:
    content = content_of(store, name)
    for path, value in nodes(content):
        if isinstance(value, dict) and not (path and path[-1] in FREE):
            changed = edited(content, path, lambda container, key: container[key].update(newest=1))
            assert "newest: unknown here" in refused(tmp_path, name, changed), path


OPTIONAL = {
    # A plan may lack them: what the golden stores of format 1 lack, and what has a default since the first version.
    *("weights_sha256", "precision", "num_parameters", "preprocessing", "keys_xxh3", "seed", "offset", "k", "power"),
    # Of a policy; a plan always has them.
    *("scale", "ratio", "flip_prob", "erasing", "mix", "num_operations", "magnitude", "magnitude_std", "prob"),
    *("mixup_alpha", "cutmix_alpha", "cutmix_prob", "teachonce"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("store", STORES)
def test_a_missing_key_is_refused_with_its_name(tmp_path: Path, store: str, name: str) -> None:
    content = content_of(store, name)
    for path, _ in nodes(content):
        if path and isinstance(path[-1], str) and path[-1] not in OPTIONAL:
            changed = edited(content, path, lambda container, key: container.pop(key))
            if path[-2:] == ("data", "num_classes"):
                open_with(tmp_path, name, changed)
            else:
                line = refused(tmp_path, name, changed)
                is_policy = path[-1] in ("name", "randaugment") and path[-2] in ("policy", "codec")
                assert is_named(path[-1], line) or is_policy, path


def test_a_manifest_that_is_not_of_its_plan_is_refused(tmp_path: Path) -> None:
    content = content_of("store-v2-topk", "manifest.json")
    for changes, message in (
        ({"num_views": 3}, "num_views: 3, expected 2 as in its plan"),
        ({"num_records": 4}, "num_records: 4, expected 3 as in its plan"),
        ({"format_version": 1}, "format_version: 1, expected 2 as in its plan"),
        ({"shards": []}, "shards: expected those of its plan"),
    ):
        assert message in refused(tmp_path, "manifest.json", content | changes)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "none, expected at least one"),
        ([[1, 2]], "views 1 to 2, expected those from 0 on"),
        ([[0, 1], [3, 4]], "views 3 to 4, expected those from 2 on"),
        ([[0, 1], [1, 2]], "views 1 to 2, expected those from 2 on"),
        ([[0, 1], [2, 1]], "views 2 to 1, expected those from 2 on"),
    ],
)
def test_groups_of_views_follow_each_other(tmp_path: Path, groups: list[list[int]], message: str) -> None:
    content = content_of("store-v2-topk", "plan.json") | {"view_groups": groups}
    assert f"view_groups: {message}" in refused(tmp_path, "plan.json", content)


def test_a_plan_is_written_as_it_was_read() -> None:
    for path in GOLDEN.glob("store-*/plan.json"):
        text = path.read_text()
        plan = Plan.from_json(json.loads(text), path)
        assert json.dumps(plan.to_json(), indent=2) + "\n" == text
        manifest = path.with_name("manifest.json").read_text()
        assert json.dumps(Store(path.parent).manifest.to_json(), indent=2) + "\n" == manifest
