"""Copies of stores: complete or not a store, in parts, checked, resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash

from teachonce.cli.main import main
from teachonce.errors import ConfigError, PlanMismatchError, StoreError, TeachonceError
from teachonce.records.discovery import open_records
from teachonce.store.begin import begin_store
from teachonce.store.card import CARD_NAME, write_card
from teachonce.store.manifests import finalize_store
from teachonce.store.plan_files import CONFIG_NAME, read_plan
from teachonce.store.repair import remove_damaged
from teachonce.store.store import Store
from tests.support.copies import copy
from tests.support.kills import Killed, everything, killed_after
from tests.support.paths import GOLDEN
from tests.support.small_models import write_color_shards, write_color_teacher
from tests.support.small_stores import Today, fill, make_plan


def grow(path: Path) -> Store:
    """Add two records to the first shard, which are seen with all views of the store."""
    old = read_plan(path)
    shards = [["train-00000-of-00002", 7, 140], *old.data["shards"][1:]]
    plan = replace(old, data={**old.data, "shards": shards})
    plan = begin_store(path, plan, 2, Today(("train-00000-of-00002", 2)))
    fill(path, plan, shards=[2])
    assert finalize_store(path) == plan.num_views
    write_card(Store(path))
    return Store(path)


def test_a_copy_is_the_store(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy(store.path, tmp_path / "copy")
    assert everything(tmp_path / "copy") == everything(store.path)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{tmp_path / 'copy'}: complete: store of 8 records x 6 views, 15 files, ")
    assert last.endswith(": 15 copied, 0 already there")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").iterdir()}
    copy(store.path, tmp_path / "copy")
    assert capsys.readouterr().err.splitlines()[-1].endswith(": 0 copied, 15 already there")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").iterdir()} == before


def test_the_options_of_a_store_are_copied_and_those_that_are_there_stay(store: Store, tmp_path: Path) -> None:
    (store.path / CONFIG_NAME).write_text('{"views": 6}')
    copy(store.path, tmp_path / "copy")
    copy(store.path, tmp_path / "part", shards="1:2", views="0:2")
    assert everything(tmp_path / "copy") == everything(store.path)
    assert (tmp_path / "part" / CONFIG_NAME).read_text() == '{"views": 6}'
    (tmp_path / "copy" / CONFIG_NAME).write_text('{"views": 4}')
    copy(store.path, tmp_path / "copy")
    assert (tmp_path / "copy" / CONFIG_NAME).read_text() == '{"views": 4}'
    shutil.copytree(next(GOLDEN.glob("store-v2*")), tmp_path / "old")
    (tmp_path / "old" / CONFIG_NAME).write_text('{"views": 2}')
    copy(tmp_path / "old", tmp_path / "old copy")
    assert (tmp_path / "old copy" / CONFIG_NAME).read_text() == '{"views": 2}'


def test_readers_never_see_an_incomplete_copy(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, seen = tmp_path / "copy", []
    for num_files in range(40):
        shutil.rmtree(target, ignore_errors=True)
        try:
            with killed_after(num_files, target, monkeypatch):
                copy(store.path, target, transfers=1)
        except Killed:
            try:
                seen.append(Store(target).num_views)
                Store(target).check_files()
            except StoreError as error:
                assert "is not finished" in str(error) or "no such folder" in str(error)
                seen.append(0)
            copy(store.path, target)
        assert everything(target) == everything(store.path)
        if num_files > len(everything(store.path)):
            break
    assert seen == sorted(seen) and seen[0] == 0 and set(seen) == {0, 2, 4, 6}


def test_what_changed_at_the_target_is_put_again(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    copy(store.path, target)
    for name in ("train-00000-of-00002.v002-003.arrow", "train-00001-of-00002.records.arrow", "index.arrow"):
        content = bytearray((target / name).read_bytes())
        content[len(content) // 2] ^= 1
        (target / name).write_bytes(content)
    (target / "train-00001-of-00002.v000-001.arrow").write_bytes(b"short")
    copy(store.path, target, trust=True)  # by the sizes alone
    assert everything(target) != everything(store.path)
    copy(store.path, target)
    assert everything(target) == everything(store.path)


@pytest.mark.parametrize(
    "name",
    [
        "train-00000-of-00002.records.arrow",
        "train-00001-of-00002.v002-003.arrow",
        "train-00001-of-00002.v002-003.sample.arrow",
        "index.arrow",
    ],
)
@pytest.mark.parametrize("part", ["head", "middle", "tail", "cut", "longer"])
def test_damage_is_named_and_not_put(store: Store, tmp_path: Path, name: str, part: str) -> None:
    content = bytearray((store.path / name).read_bytes())
    if part == "cut":
        content = content[:-9]
    elif part == "longer":
        content += b"more"
    else:
        content[{"head": 40, "middle": len(content) * 2 // 3, "tail": len(content) - 3}[part]] ^= 1
    (store.path / name).write_bytes(content)
    with pytest.raises(StoreError, match=rf"{name}: .*damaged"):
        copy(store.path, tmp_path / "copy")
    assert not (tmp_path / "copy" / name).exists() and not list((tmp_path / "copy").glob("manifest.*"))
    with pytest.raises(StoreError, match="is not finished"):
        Store(tmp_path / "copy")


@pytest.mark.parametrize("name", ["plan.json", "manifest.records.json", "manifest.v002-003.json"])
def test_damaged_json_is_named(store: Store, tmp_path: Path, name: str) -> None:
    content = (store.path / name).read_bytes()
    (store.path / name).write_bytes(content.replace(b"train", b"tra1n", 1).replace(b"files", b"filos", 1))
    with pytest.raises(StoreError, match=rf"{name}: its bytes have the hash"):
        copy(store.path, tmp_path / "copy")
    assert not list((tmp_path / "copy").glob("manifest.*"))


def test_what_is_at_the_target_stays(store: Store, tmp_path: Path) -> None:
    other = begin_store(tmp_path / "other", make_plan(num_views=2), views_per_file=2)
    fill(tmp_path / "other", other)
    finalize_store(tmp_path / "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    for target, error in (("other", PlanMismatchError), ("mine", StoreError)):
        before = everything(tmp_path / target)
        with pytest.raises(error) as refused:
            copy(store.path, tmp_path / target)
        # "." may be the target: nobody is told to remove it.
        assert "--out" not in str(refused.value) and "remove it" not in str(refused.value)
        assert everything(tmp_path / target) == before
    with pytest.raises(ConfigError, match="is the source itself"):
        copy(store.path, store.path)
    with pytest.raises(ConfigError, match="a web server is read-only"):
        copy(store.path, "https://example.org/store")
    with pytest.raises(ConfigError, match="no such folder; expected a store, records or a run"):
        copy(tmp_path / "nowhere", tmp_path / "copy")


def make_other(path: Path, *, is_finished: bool = True) -> None:
    """The store of the same plan as another device makes it: the same records, other logits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.small_stores.MADE_BY", {"versions": {"python": "3"}, "device": "other"})
        plan = begin_store(path, make_plan(num_views=6, num_samples=2), views_per_file=2)
        fill(path, plan, shards=None if is_finished else [1])
    if is_finished:
        finalize_store(path)


@pytest.mark.parametrize("part", [{}, {"views": "0:4"}])
def test_the_same_store_made_elsewhere_stays_as_it_is(store: Store, tmp_path: Path, part: dict[str, str]) -> None:
    make_other(tmp_path / "other")
    before = everything(tmp_path / "other")
    assert before["plan.json"] == everything(store.path)["plan.json"]
    with pytest.raises(
        PlanMismatchError, match=r"manifest\.v000-001\.json: lists other bytes .* choose another target"
    ):
        copy(store.path, tmp_path / "other", **part)
    assert everything(tmp_path / "other") == before


def test_a_part_of_the_shards_made_elsewhere_stays_as_it_is(store: Store, tmp_path: Path) -> None:
    make_other(tmp_path / "other")
    copy(tmp_path / "other", tmp_path / "part", shards="1:2")
    before = everything(tmp_path / "part")
    with pytest.raises(PlanMismatchError, match="lists other bytes"):
        copy(store.path, tmp_path / "part", shards="1:2")
    assert everything(tmp_path / "part") == before


def test_finished_units_of_a_store_that_is_being_made_stay(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "other"
    make_other(target, is_finished=False)
    before = everything(target)
    with pytest.raises(TeachonceError, match=r"00001-of-00002\.v000-001\..*arrow: exists and differs"):
        copy(store.path, target)
    after = everything(target)
    assert {name: after[name] for name in before} == before and not list(target.glob("manifest.v*"))
    # What is damaged of an interrupted copy is nobody's work.
    copy(store.path, tmp_path / "copy")
    for path in (tmp_path / "copy").glob("manifest.*"):
        path.unlink()
    path = tmp_path / "copy" / "train-00001-of-00002.v002-003.arrow"
    path.write_bytes(path.read_bytes()[:-9] + bytes(9))
    copy(store.path, tmp_path / "copy")
    assert everything(tmp_path / "copy") == everything(store.path)


def test_an_unfinished_store_is_refused_and_what_is_complete_of_one_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "store"
    plan = begin_store(path, make_plan(num_views=6), views_per_file=2)
    fill(path, plan, groups=plan.view_groups[:1], shards=[0])
    with pytest.raises(StoreError, match="is not finished"):
        copy(path, tmp_path / "copy")
    fill(path, plan, groups=plan.view_groups[:2])
    finalize_store(path)
    copy(path, tmp_path / "copy")
    assert Store(tmp_path / "copy").num_views == 4 and not list((tmp_path / "copy").glob("*.v004-005.*"))
    fill(path, plan)
    finalize_store(path)
    copy(path, tmp_path / "copy")
    assert Store(tmp_path / "copy").num_views == 6 and Store(tmp_path / "copy").check_files() == 9


def test_a_part_of_the_views(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy(store.path, tmp_path / "copy", views="0:4")
    part = Store(tmp_path / "copy")
    assert (part.num_views, part.num_records, part.check_files()) == (4, 8, 11)
    assert part.fingerprint == Store(store.path, num_views=4).fingerprint
    card = (part.path / CARD_NAME).read_text()
    assert "8 records x 4 views" in card and 'teacher_license: "MIT"' in card
    np.testing.assert_array_equal(part.read_logits(1, 3, slice(None)), store.read_logits(1, 3, slice(None)))
    # It grows by more of the same store.
    copy(store.path, tmp_path / "copy", views="0:6")
    assert capsys.readouterr().err.splitlines()[-1].endswith(": 4 copied, 11 already there")
    assert everything(tmp_path / "copy") == everything(store.path)
    for views in ("0:3", "2:4", "0:8"):
        with pytest.raises(ConfigError, match=rf"--views {views}: .*--views 0:2, 0:4, 0:6"):
            copy(store.path, tmp_path / "no", views=views)
    assert not (tmp_path / "no").exists()


def test_views_without_which_records_would_be_missing(store: Store, tmp_path: Path) -> None:
    grow(store.path)
    with pytest.raises(ConfigError, match=r"--views 0:2: records that were added .* at least 6 views"):
        copy(store.path, tmp_path / "no", views="0:2")
    # Where none of these records are copied, or they alone are, no views are missing.
    for number, shards in enumerate(("0:2", "2:3")):
        copy(store.path, tmp_path / str(number), views="0:2", shards=shards)
        assert Store(tmp_path / str(number)).num_views == 2
    with pytest.raises(ConfigError, match=r"--views 0:2: records that were added"):
        copy(store.path, tmp_path / "no", views="0:2", shards="1:3")


def test_a_part_of_the_shards_is_a_store_of_its_own(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    copy(store.path, target, shards="1:2", views="0:4")
    part = Store(target)
    assert part.shards == (("train-00001-of-00002", 3),) and part.num_views == 4 and part.check_files() == 6
    assert part.plan.identity == store.plan.identity and part.plan.data["shards"] == [["train-00001-of-00002", 3, 100]]
    for name, content in everything(target).items():
        if name.endswith(".arrow") and name != "index.arrow":
            assert content == (store.path / name).read_bytes()
    np.testing.assert_array_equal(part.read_logits(0, 3, slice(None)), store.read_logits(1, 3, slice(None)))
    key = int(store.read_keys(1)[2])
    assert part.locations_of(key) == [(0, 2)] and part.locations_of(int(store.read_keys(0)[0])) == []
    # It can be repaired and completed as every store, and grows by more views.
    assert remove_damaged(target) == []
    before = everything(target)
    copy(store.path, target, shards="1:2", views="0:4")
    assert everything(target) == before
    copy(store.path, target, shards="1:2")
    assert Store(target).num_views == 6
    with pytest.raises(PlanMismatchError, match="of another part of it"):
        copy(store.path, target, shards="0:1")
    for shards in ("1:3", "2:3"):
        with pytest.raises(ConfigError, match=rf"--shards {shards}: expected a part of 0:2"):
            copy(store.path, tmp_path / "no", shards=shards)


def test_kills_of_a_part_of_the_shards(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy(store.path, tmp_path / "whole", shards="0:1")
    expected = everything(tmp_path / "whole")
    for num_files in range(len(expected)):
        target = tmp_path / f"copy{num_files}"
        with pytest.raises(Killed), killed_after(num_files, target, monkeypatch):
            copy(store.path, target, shards="0:1", transfers=1)
        copy(store.path, target, shards="0:1")
        assert everything(target) == expected


def test_shards_of_a_store_that_has_grown(store: Store, tmp_path: Path) -> None:
    grown = grow(store.path)
    assert grown.shards[2] == ("train-00000-of-00002.p001", 2) and grown.num_parts == 2
    copy(grown.path, tmp_path / "all")
    assert everything(tmp_path / "all") == everything(grown.path)
    copy(grown.path, tmp_path / "both", shards="1:3")
    both = Store(tmp_path / "both")
    assert [name for name, _ in both.shards] == ["train-00001-of-00002", "train-00000-of-00002.p001"]
    assert (both.num_parts, both.num_views, both.num_records) == (2, 6, 5) and both.check_files()
    copy(grown.path, tmp_path / "added", shards="2:3")
    added = Store(tmp_path / "added")
    assert (added.num_parts, added.num_views, added.num_records) == (1, 6, 2) and added.check_files()
    copy(grown.path, tmp_path / "old", shards="0:1")
    # Of data that has grown the store's shard is only a part.
    assert Store(tmp_path / "old").plan.data["shards"] == [["train-00000-of-00002", 5, 0]]


@pytest.mark.parametrize("version", [1, 2])
def test_stores_of_older_formats(version: int, tmp_path: Path) -> None:
    (path,) = [found for found in GOLDEN.glob(f"*v{version}*") if (found / "manifest.json").is_file()][:1]
    copy(path, tmp_path / "copy")
    copied = everything(tmp_path / "copy")
    assert copied.pop(CARD_NAME) and Store(tmp_path / "copy").check_files()
    assert copied == {name: content for name, content in everything(path).items() if name in copied}
    with pytest.raises(ConfigError, match="teachonce upgrade"):
        copy(path, tmp_path / "no", views="0:1")
    name = next(name for name in copied if name.endswith(".arrow"))
    damaged = tmp_path / "damaged"
    shutil.copytree(path, damaged)
    content = bytearray(copied[name])
    content[len(content) // 2] ^= 1
    (damaged / name).write_bytes(content)
    with pytest.raises(TeachonceError, match=f"{name}: hash"):
        copy(damaged, tmp_path / "no")
    manifest = json.loads((damaged / "manifest.json").read_text())
    (entry,) = [file for shard in manifest["shards"] for file in shard["files"] if file["name"] == name]
    entry["xxh3"] = xxhash.xxh3_128_hexdigest(bytes(content))
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    before = everything(damaged)
    with pytest.raises(PlanMismatchError, match="differs from the file to copy"):
        copy(path, damaged)
    assert everything(damaged) == before


def test_a_part_is_verified_and_extended_as_every_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_color_shards(tmp_path / "data")
    teacher = write_color_teacher(tmp_path / "teacher.onnx")

    def run(*words: object) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        assert end.value.code == 0, shown.err
        return shown.out + shown.err

    def extract(data: Path, store: Path, views: int) -> str:
        words = ["extract", "--data", data, "--teacher", teacher, "--policy", "crop", "--views", views, "--out", store]
        return run(*words, "--views-per-file", 1, "--device", "cpu", "--gate-samples", 0)

    extract(data, tmp_path / "store", 2)
    last = len(open_records(data, "train").shards)
    for source, target in (("data", "some"), ("store", "part")):
        run("copy", tmp_path / source, tmp_path / target, "--shards", f"1:{last}")
    assert "part: sound" in run("verify", tmp_path / "part", "--data", tmp_path / "some", "--device", "cpu")
    assert " 0 to do here" in extract(tmp_path / "some", tmp_path / "part", 2)
    assert f" {last - 1} to do here" in extract(tmp_path / "some", tmp_path / "part", 3)
    # More of the same views as the store itself gets.
    extract(data, tmp_path / "store", 3)
    part, store = Store(tmp_path / "part"), Store(tmp_path / "store")
    for shard in range(last - 1):
        assert part.read_views(shard, 2, slice(None)) == store.read_views(shard + 1, 2, slice(None))
    extract(data, tmp_path / "part", 3)  # over all of the data: the other records are added
    assert Store(tmp_path / "part").num_records == store.num_records
