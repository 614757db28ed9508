"""plan.json and manifest.json of formats 1 and 2, whatever stands in them: a store, or one line with file and field."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

from teachonce.errors import StoreError
from teachonce.store.legacy import LegacyFile, is_legacy, read_manifest, read_plan
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
    # A plan of no version that is known should end with its hash, as those of format 3 do.
    words = {"format_version": ("store format version", "does not end with its hash"), "name": ("codec ",)}
    return key in line or any(word in line for word in words.get(key, ()))


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
        ({"num_views": 3}, "(format_version, num_views, num_records) (2, 3, 3), its plan has (2, 2, 3)"),
        ({"num_records": 4}, "(format_version, num_views, num_records) (2, 2, 4), its plan has (2, 2, 3)"),
        ({"format_version": 1}, "(format_version, num_views, num_records) (1, 2, 3), its plan has (2, 2, 3)"),
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


def test_files_lie_in_the_store(tmp_path: Path) -> None:
    """A copy would put them where their names say."""
    content = content_of("store-v2-topk", "manifest.json")
    content["shards"][0]["files"][0]["name"] = "../elsewhere.arrow"
    shutil.copytree(GOLDEN / "store-v2-topk", tmp_path / "store")
    assert "elsewhere" in refused(tmp_path / "store", "manifest.json", content)


def test_a_plan_says_what_it_said() -> None:
    for path in GOLDEN.glob("store-v[12]-*/plan.json"):
        written = json.loads(path.read_text())
        found = read_plan(path.parent).to_json()
        assert found | written == found and found["parts"] == [[0, 0]] and found["class_names"] is None
        assert found["shards"] == [[name, count] for name, count, _ in written["data"]["shards"]]
        assert read_manifest(path.parent)[0] == read_plan(path.parent)


def test_the_format_of_a_folder() -> None:
    assert all(is_legacy(path.parent) for path in GOLDEN.glob("store-v[12]-*/plan.json"))
    assert not is_legacy(GOLDEN)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "store-v2-topk", tmp_path / "old"))


def test_every_flipped_byte_of_a_file_is_noticed(old: Path) -> None:
    """The manifest has one hash of the whole file; it is compared when the file is first read, and by verify.

    More flips are in the footer, which Arrow reads before that: whatever it makes of them is an error of the store.
    """
    (path,) = old.glob("*.v000-001.arrow")
    good = path.read_bytes()
    # Behind the footer are its length and six bytes that say what the file is.
    footer = len(good) - 10 - int.from_bytes(good[-10:-6], "little")
    for at in (*range(0, footer, 61), *range(footer, len(good) - 10, 7), *range(len(good) - 10, len(good))):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with pytest.raises(StoreError, match=rf"{path.name}: "):
            Store(old).read_columns(0, 1)
        with pytest.raises(StoreError, match=rf"1 of 3 files are damaged(.|\n)*{path.name}: "):
            Store(old).check_files()
    path.write_bytes(good)
    assert Store(old).check_files() == 3


def test_a_file_is_hashed_once_and_not_at_all_where_it_is_trusted(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    real = LegacyFile.find_damage
    monkeypatch.setattr(LegacyFile, "find_damage", lambda self, entry=None: hashed.append(1) or real(self, entry))
    store = Store(old)
    for _ in range(2):
        store.read_columns(0, 0)
        store.read_keys(0)
    assert len(hashed) == 2, "the views, and the records"
    trusting = Store(old, trust=True)
    assert trusting.read_columns(0, 1) and len(trusting.read_keys(0)) == 3
    assert len(hashed) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "remove", "text"])
def test_files_that_are_not_there_as_they_were(old: Path, damage: str) -> None:
    (path,) = old.glob("*.v000-001.arrow")
    good = path.read_bytes()
    path.unlink()
    if damage != "remove":
        path.write_bytes({"cut": good[:-9], "empty": b"", "text": b"x" * len(good)}[damage])
    for read in (lambda: Store(old).read_columns(0, 0), lambda: Store(old).check_files()):
        with pytest.raises(StoreError, match=rf"{path.name}: "):
            read()


def test_a_file_of_other_records_is_refused(old: Path) -> None:
    """Without a manifest there are no hashes of files, but each view file says which keys it was made for."""
    (old / "manifest.json").unlink()
    store = Store(old, is_partial=True)
    assert store.read_columns(0, 0)
    (path,) = old.glob("*.records.arrow")
    table = ipc.open_file(path.read_bytes()).read_all()
    keys = table.column("key").to_numpy().copy()
    keys[0] ^= np.uint64(1)
    changed = table.set_column(table.schema.get_field_index("key"), "key", pa.array(keys))
    with ipc.new_file(path, changed.schema) as writer:
        writer.write_table(changed)
    with pytest.raises(StoreError, match=r"keys_xxh3 .*belongs to other records: the data changed between two"):
        Store(old, is_partial=True).read_columns(0, 0)


def test_format_3_is_told_by_its_plan(tmp_path: Path) -> None:
    """A file of the old format's name that somebody left in the folder changes nothing."""
    path = Path(shutil.copytree(GOLDEN / "store-v3-grown", tmp_path / "store"))
    (path / "manifest.json").write_text("{}")
    assert not is_legacy(path) and Store(path).num_records == 5
    (path / "plan.json").write_text('{"a": ' + "[" * 200_000)
    (path / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"plan\.json: does not end with its hash"):
        Store(path)
