"""Upgrading again: an old store that has got more views since, and a new one that has. Formats: system/test_compat."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from teachonce.errors import PlanMismatchError, StoreError
from teachonce.interop import upgrade as upgrade_module
from teachonce.interop.config import UpgradeConfig
from teachonce.interop.upgrade import upgrade
from teachonce.store.begin import begin_store
from teachonce.store.plan import views_file
from teachonce.store.store import Store
from tests.support.kills import everything
from tests.support.paths import GOLDEN
from tests.system.test_store_format import compare

OLD = GOLDEN / "store-v1-float32"
"""Views 0 and 1 in one file."""


def get_more_views(path: Path) -> None:
    """What an old version did with more views: another group, of two again, and the manifest anew."""
    where = path / "manifest.json"
    manifest = json.loads(where.read_text())
    manifest["num_views"] = 4
    manifest["plan"]["view_groups"].append([2, 3])
    for shard in manifest["shards"]:
        for file in list(shard["files"]):
            name = file["name"].replace("v000-001", "v002-003")
            if name != file["name"]:
                shutil.copy(path / file["name"], path / name)
                shard["files"].append({**file, "name": name})
    where.write_text(json.dumps(manifest))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def test_more_views_of_the_old_store_come_too(old: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    upgrade(UpgradeConfig(store=old, out=out))
    assert Store(out).num_views == 2
    before = everything(out)
    get_more_views(old)
    for _ in range(2):
        upgrade(UpgradeConfig(store=old, out=out))
        store = compare(out)
        assert (store.num_views, store.plan.view_groups) == (4, ((0, 1), (2, 3)))
        assert before.items() - {("README.md", before.get("README.md", b""))} <= everything(out).items()
        for shard in range(2):
            for view in range(4):
                np.testing.assert_array_equal(
                    store.read_logits(shard, view, slice(None)), Store(old).read_logits(shard, view, slice(None))
                )
    # At once it is the same store, but for the plan that follows.
    upgrade(UpgradeConfig(store=old, out=tmp_path / "at once"))
    assert Store(tmp_path / "at once").plan.view_groups == store.plan.view_groups


def test_views_of_both_in_other_groups_are_refused(old: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    upgrade(UpgradeConfig(store=old, out=out))
    plan = Store(out).plan
    begin_store(out, plan.extend(view_groups=((0, 1), (2, 2), (3, 3))), 1)
    before = everything(out)
    upgrade(UpgradeConfig(store=old, out=out))  # has no views there
    assert everything(out) == before
    get_more_views(old)
    with pytest.raises(PlanMismatchError, match=r"new: has a file of views 2 to 2, expected one of 2 to 3: .* --out"):
        upgrade(UpgradeConfig(store=old, out=out))
    assert everything(out) == before


def test_fewer_views_than_the_old_store_has_are_no_success(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    get_more_views(old)
    out, finalize = tmp_path / "new", upgrade_module.finalize_store

    def remove_first(path: Path) -> int:
        (path / views_file("train-00001-of-00002", (2, 3))).unlink()
        return finalize(path)

    monkeypatch.setattr(upgrade_module, "finalize_store", remove_first)
    with pytest.raises(StoreError, match=r"new: 2 views are complete, expected the 4 of .*old: .*run the same upgrade"):
        upgrade(UpgradeConfig(store=old, out=out))
    assert "format 3" not in capsys.readouterr().err
    monkeypatch.undo()
    upgrade(UpgradeConfig(store=old, out=out))
    assert compare(out).num_views == 4
