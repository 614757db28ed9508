"""Manifests: what readers see, put once behind the files that they list, and refused when anything is other."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from teachonce.errors import StoreError, TeachonceError
from teachonce.storage import local
from teachonce.storage.block_file import BlockFile
from teachonce.storage.files import open_storage
from teachonce.storage.sealed_json import sealed_bytes
from teachonce.store.begin import begin_store
from teachonce.store.manifests import (
    Manifests,
    finalize_store,
    index_file,
    is_complete,
    missing_files,
    records_manifest,
    views_manifest,
    visible_views,
)
from teachonce.store.plan import records_file
from teachonce.store.plan_files import read_plan, read_plans
from teachonce.store.repair import remove_damaged
from teachonce.store.store import Store
from teachonce.store.tables import StoreWriter
from tests.support.paths import GOLDEN
from tests.support.small_data import remove_manifests
from tests.support.small_stores import MADE_BY, NUM_CLASSES, Today, fill, make_plan, read_tree

NAME = "train-00000-of-00002"


def test_names():
    assert (records_manifest(0), records_manifest(2)) == ("manifest.records.json", "manifest.records.002.json")
    assert views_manifest(0, (0, 9)) == "manifest.v000-009.json"
    assert views_manifest(3, (10, 119)) == "manifest.v010-119.003.json"
    assert (index_file(0), index_file(1)) == ("index.arrow", "index.001.arrow")


def test_a_manifest_lists_its_files(finished):
    path, *_ = finished
    plans = read_plans(path)
    for group in (None, (0, 1), (2, 2)):
        name = records_manifest(0) if group is None else views_manifest(0, group)
        value = json.loads((path / name).read_text())
        assert (value["format_version"], value["plan"], value["part"]) == (3, plans[0].seal, 0)
        assert value["views"] == (None if group is None else list(group))
        for file, (num_bytes, head, tail) in value["files"].items():
            assert BlockFile(open_storage(path), file).entry == (num_bytes, head, tail)
        kind = ".records.arrow" if group is None else f".v{group[0]:03d}-{group[1]:03d}.arrow"
        assert list(value["files"]) == [
            *(f"{shard}{kind}" for shard, _ in plans[0].plan.shards),
            *(["index.arrow"] if group is None else []),
        ]
        assert value["made_by"] == ([] if group is None else [MADE_BY])
        assert len(value["keys_xxh3"]) == (2 if group is None else 0)


def test_what_is_complete_is_seen_and_nothing_else(tmp_path):
    path = tmp_path / "store"
    plan = begin_store(path, make_plan(num_views=5), views_per_file=2)
    assert finalize_store(path) == visible_views(path) == 0 and read_tree(path).keys() == {"plan.json"}
    fill(path, plan, groups=[(0, 1)], shards=[0])
    assert finalize_store(path) == 0 and missing_files(path, plan) >= {records_file("train-00001-of-00002")}
    fill(path, plan, groups=[(2, 3), (4, 4)])
    # The later groups are there, and have manifests; the first is missing, so nobody sees them.
    assert finalize_store(path) == visible_views(path) == 0
    assert (path / "manifest.v002-003.json").exists() and not (path / "manifest.v000-001.json").exists()
    with pytest.raises(StoreError, match="is not finished: 7 of 8 files are there"):
        Store(path)
    fill(path, plan, groups=[(0, 1)])
    assert visible_views(path) == 0 and not is_complete(path, plan)
    assert finalize_store(path) == visible_views(path) == 5 and is_complete(path, plan)
    assert not missing_files(path, plan)


def test_to_finalize_again_changes_nothing(finished):
    path, *_ = finished
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    assert finalize_store(path) == 3
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before
    tree = read_tree(path)
    remove_manifests(path)
    assert finalize_store(path) == 3 and read_tree(path) == tree, "the same bytes, whoever writes them"


def test_only_what_is_new_is_read(finished, monkeypatch):
    path, *_ = finished
    plan = begin_store(path, make_plan(num_views=4), views_per_file=2)
    fill(path, plan, groups=[(3, 3)])
    opened = []
    real = BlockFile.__init__
    monkeypatch.setattr(
        BlockFile, "__init__", lambda self, storage, name, **o: opened.append(name) or real(self, storage, name, **o)
    )
    monkeypatch.setattr(BlockFile, "read", lambda *_, **__: pytest.fail("a block was read"))
    assert finalize_store(path) == 4
    assert opened == [f"{name}.v003-003.arrow" for name, _ in plan.shards]


def refuse(path, match):
    remove_manifests(path)
    with pytest.raises(StoreError, match=match):
        finalize_store(path)
    assert not (path / "manifest.v000-001.json").exists()


def test_files_of_other_records_are_refused(finished):
    path, *_ = finished
    (path / records_file(NAME)).unlink()
    keys = np.arange(5, dtype=np.uint64)
    StoreWriter(path, read_plan(path)).write_records(NAME, keys, list("abcde"), np.ones(5, np.int32))
    refuse(path, rf"{NAME}\.v000-001\.arrow: keys_xxh3 \w+, expected \w+: belongs to other records: the data changed")


def test_files_that_lie_in_the_wrong_place_are_refused(finished, tmp_path):
    path, *_ = finished
    good = read_tree(path)
    other = begin_store(tmp_path / "other", make_plan(num_views=3, policy=make_plan(2).policy | {"seed": 7}), 2)
    fill(tmp_path / "other", other)
    for source, target, match in (
        (tmp_path / "other" / f"{NAME}.v000-001.arrow", f"{NAME}.v000-001.arrow", "plan .*belongs to another plan"),
        (path / f"{NAME}.v002-002.arrow", f"{NAME}.v000-001.arrow", r"views \[2, 2\], expected \[0, 1\]: its content"),
        (path / "train-00001-of-00002.v000-001.arrow", f"{NAME}.v000-001.arrow", "shard train-00001.*its content"),
        (path / f"{NAME}.v000-001.arrow", records_file(NAME), "kind views, expected records: its content"),
    ):
        shutil.copy(source, tmp_path / "copy")
        shutil.copy(tmp_path / "copy", path / target)
        refuse(path, match)
        (path / target).write_bytes(good[target])
    remove_manifests(path)
    assert finalize_store(path) == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "head"])
def test_damaged_files_are_refused(finished, damage):
    path, *_ = finished
    file = path / f"{NAME}.v000-001.arrow"
    good = file.read_bytes()
    file.write_bytes({"cut": good[:600], "empty": b"", "head": good[:9] + b"\0" + good[10:]}[damage])
    refuse(path, rf"{file.name}: .*--repair to rebuild it")


def test_records_whose_bytes_changed_make_no_index(finished):
    path, *_ = finished
    raw = bytearray((path / records_file(NAME)).read_bytes())
    start = BlockFile(open_storage(path), records_file(NAME))._starts[1] - 9
    raw[start] ^= 1
    (path / records_file(NAME)).write_bytes(raw)
    refuse(path, rf"{NAME}\.records\.arrow: block 0: hash")
    assert not (path / "index.arrow").exists()


def reseal(path, name, **changes):
    value = json.loads((path / name).read_text())
    del value["xxh3"]
    (path / name).write_bytes(sealed_bytes(value | changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"plan": "0" * 32}, r"\(plan, part, views\) .*expected .*: of another store"),
        ({"part": 1}, r"\(plan, part, views\)"),
        ({"views": [0, 2]}, r"\(plan, part, views\)"),
        ({"views": None}, r"\(plan, part, views\)"),
        ({"format_version": 4}, "store format version 4, this teachonce reads 3 .*that wrote it"),
        ({"newest": 1}, "newest: unknown here"),
        ({"files": {"a": [1, "b"]}}, "files"),
        ({"made_by": "text"}, "made_by"),
    ],
)
def test_a_manifest_of_something_else_is_refused(finished, changes, match):
    """Sound in itself, and sealed."""
    path, *_ = finished
    reseal(path, "manifest.v000-001.json", **changes)
    with pytest.raises(StoreError, match=rf"manifest\.v000-001\.json: .*{match}"):
        Store(path).read_columns(0, 0)
    with pytest.raises(StoreError, match=rf"manifest\.v000-001\.json: .*{match}"):
        Store(path).check_files()


def test_a_manifest_without_its_version_is_refused(finished):
    path, *_ = finished
    value = json.loads((path / "manifest.records.json").read_text())
    del value["xxh3"], value["format_version"]
    (path / "manifest.records.json").write_bytes(sealed_bytes(value))
    with pytest.raises(StoreError, match=r"manifest\.records\.json: store format version None, this teachonce reads 3"):
        Store(path).read_columns(0, 0)


@pytest.mark.parametrize("name", ["manifest.records.json", "manifest.v000-001.json"])
def test_a_missing_manifest_is_named(finished, name):
    """All files are there: then what is missing is not one of them."""
    path, *_ = finished
    (path / name).unlink()
    with pytest.raises(StoreError, match=rf"is not finished: 6 of 6 files are there, {name} is not; run the command"):
        Store(path)


def test_a_file_that_the_manifest_does_not_have_is_refused(finished):
    path, *_ = finished
    files = json.loads((path / "manifest.v000-001.json").read_text())["files"]
    reseal(path, "manifest.v000-001.json", files={name: entry for name, entry in files.items() if NAME not in name})
    with pytest.raises(
        StoreError, match=rf"\.json: files: 0 are .* 1 of its 2 are missing \(first: {NAME}\.v000-001\."
    ):
        Store(path).read_columns(1, 0)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("manifest.records.json", lambda value: value["keys_xxh3"].pop(), "keys_xxh3: 1 hashes, expected 2: damaged"),
        ("manifest.v000-001.json", lambda value: value["keys_xxh3"].append("0"), "keys_xxh3: 1 hashes, expected 0"),
        (
            "manifest.records.json",
            lambda value: value["files"].pop("index.arrow"),
            "files: 0 are .* 1 of its 3 are missing .first: index",
        ),
        (
            "manifest.v000-001.json",
            lambda value: value["files"].update({"../../elsewhere": [1, "a", "b"]}),
            "files: 1 are not in the plan, 0 of its 2",
        ),
        ("manifest.v000-001.json", lambda value: value["made_by"].append({"versions": ["a"]}), "made_by: versions: "),
        ("manifest.v000-001.json", lambda value: value["made_by"].append({"versions": {"a": 1}}), "made_by: versions"),
        ("manifest.v000-001.json", lambda value: value["made_by"].append({"device": None}), "made_by: device: "),
    ],
)
def test_a_manifest_is_what_its_plan_says(finished, name, change, match):
    """Else it is refused in one line, is what a repair finds, and is made again as it was."""
    path, *_ = finished
    good = (path / name).read_bytes()
    value = json.loads(good)
    del value["xxh3"]
    change(value)
    (path / name).write_bytes(sealed_bytes(value))
    with pytest.raises(StoreError, match=rf"{name}: {match}.*--repair to rebuild it"):
        Store(path).read_columns(0, 0)
    assert [(damage.name, name in damage.reason) for damage in remove_damaged(path)] == [(name, True)]
    assert finalize_store(path) == 3 and (path / name).read_bytes() == good


def test_a_part_is_seen_when_it_has_as_many_views_as_the_store_had(finished):
    path, *_ = finished
    first = read_plan(path)
    data = first.data | {"shards": [*first.data["shards"], ["more", 2, 9]]}
    grown = replace(first, data=data, shards=(*first.shards, ("more", 2)))
    plan = begin_store(path, grown, 2, Today(("more", 2)))
    manifests = Manifests(path, read_plans(path))
    assert manifests.visible() == (3, 1) and not is_complete(path, plan) and is_complete(path, first)
    fill(path, plan, groups=[(0, 1)], shards=[2])
    finalize_store(path)
    assert (manifests.complete_views(0), manifests.complete_views(1)) == (3, 2) and manifests.visible() == (3, 1)
    fill(path, plan, groups=[(2, 2)], shards=[2])
    assert finalize_store(path) == 3 and manifests.visible() == (3, 2) and is_complete(path, plan)
    assert Store(path).read_logits(2, 2, slice(None)).shape == (2, NUM_CLASSES)
    seals = [sealed.seal for sealed in read_plans(path)]
    assert manifests.plan_seal(0, (0, 1)) == seals[0] and manifests.plan_seal(1, (0, 1)) == seals[1]


def test_views_of_an_older_store():
    assert visible_views(GOLDEN / "store-v2-topk") == 2


def test_a_file_that_was_cut_before_it_was_sealed(finished):
    """Its blocks are there, Arrow's own end is not: others could not open it."""
    path, *_ = finished
    for manifest in (*path.glob("manifest.*"), *path.glob("index.*")):
        manifest.unlink()
    file = sorted(path.glob("*.v*.arrow"))[0]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(StoreError, match=rf"{file.name}: its end is not that of an Arrow file"):
        finalize_store(path)


def test_an_index_that_was_removed_is_made_again(finished):
    """And one that would be another is not put in its place."""
    path, *_ = finished
    plan, tree = read_plan(path), read_tree(path)
    assert is_complete(path, plan)
    (path / "index.arrow").unlink()
    assert not is_complete(path, plan)
    assert finalize_store(path) == 3 and is_complete(path, plan) and read_tree(path) == tree
    (path / "index.arrow").unlink()
    (path / records_file(NAME)).unlink()
    StoreWriter(path, plan).write_records(NAME, np.arange(5, dtype=np.uint64), list("abcde"), np.ones(5, np.int32))
    with pytest.raises(
        StoreError, match=r"index\.arrow: is missing, and the records do not give the same one; .*--repair"
    ):
        finalize_store(path)
    assert not (path / "index.arrow").exists()


@pytest.mark.parametrize(
    "name",
    [
        "train-00000-of-00002.v000-001.arrow",
        "train-00000-of-00002.records.arrow",
        "manifest.v000-001.json",
        "manifest.records.json",
    ],
)
def test_what_cannot_be_read_now_is_not_removed(finished, monkeypatch, name):
    """A lost server, or a file without rights, is no damage."""
    path, *_ = finished
    before = read_tree(path)
    open_regular = local.open_regular

    def lost(asked, **given):
        if str(asked).endswith(f"/{name}"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return open_regular(asked, **given)

    monkeypatch.setattr(local, "open_regular", lost)
    with pytest.raises(TeachonceError, match=rf"{name}: cannot be read: Stale file handle; --repair removes"):
        remove_damaged(path)
    assert read_tree(path) == before
