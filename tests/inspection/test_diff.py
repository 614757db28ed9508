"""Two runs and two stores side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from teachonce.errors import ConfigError
from teachonce.inspection.config import DiffConfig
from teachonce.inspection.diff import diff
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.storage.files import write_json
from teachonce.store.begin import begin_store
from teachonce.store.manifests import finalize_store
from teachonce.store.plan_files import CONFIG_NAME
from tests.support.small_data import run_config
from tests.support.small_stores import fill, make_plan

RESULT = {"epochs": 3, "top1": 0.5, "top5": 0.75, "ece": 0.1, "seconds": 12.5}


def write_run(path: Path, result: dict[str, Any] | None = None, **settings: Any) -> Path:
    path.mkdir()
    config = run_config("timm:test_resnet", Preprocessing(size_px=16, resize_px=16))
    config |= {"out": str(path), "device": "cpu", "versions": {"torch": "2.8", "numpy": "2.0"}, "lr": 0.1} | settings
    write_json(path / "config.json", config)
    if result is not None:
        write_json(path / "result.json", result)
    return path


def write_store(path: Path, num_views: int = 2, options: dict[str, Any] | None = None, **changes: Any) -> Path:
    plan = begin_store(path, make_plan(num_views, **changes), views_per_file=2)
    fill(path, plan)
    finalize_store(path)
    if options is not None:
        write_json(path / CONFIG_NAME, options)
    return path


def compare(first: Path, second: Path) -> dict[str, Any]:
    return json.loads(diff(DiffConfig(first=first, second=second, json=True)))


def test_two_runs(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", RESULT)
    second = write_run(
        tmp_path / "b",
        RESULT | {"top1": 0.5625},
        lr=0.2,
        device="cuda",
        versions={"torch": "2.9", "numpy": "2.0"},
        preprocessing=Preprocessing(size_px=32, resize_px=32).to_json(),
    )
    found = compare(first, second)
    assert found["kind"] == "run"
    assert found["settings"] == {
        "preprocessing.size_px": [16, 32],
        "preprocessing.resize_px": [16, 32],
        "lr": [0.1, 0.2],
    }
    assert found["results"]["top1"] == [0.5, 0.5625] and found["results"]["top5"] == [0.75, 0.75]
    assert found["environment"] == {"device": ["cpu", "cuda"], "versions.torch": ["2.8", "2.9"]}
    text = diff(DiffConfig(first=first, second=second))
    assert text.startswith(f"runs: A is {first}, B is {second}\n\nsettings:\n")
    assert any(line.split() == ["lr", "0.1", "0.2", "+0.1"] for line in text.splitlines())
    assert any(line.split() == ["top1", "0.5", "0.5625", "+0.0625"] for line in text.splitlines())
    assert any(line.split() == ["top5", "0.75", "0.75"] for line in text.splitlines())


def test_equal_runs_and_unfinished_ones(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a", RESULT), write_run(tmp_path / "b")
    text = diff(DiffConfig(first=first, second=second))
    assert "settings: the same" in text and "environment: the same" in text
    assert compare(first, second)["results"]["finished"] == [None, False]
    assert compare(first, second)["results"]["top1"] == [0.5, None]


def test_two_stores(tmp_path: Path) -> None:
    first = write_store(tmp_path / "a", 2, {"out": "a", "views": 2})
    second = write_store(
        tmp_path / "b",
        3,
        {"out": "b", "views": 3},
        teacher={"spec": "timm:y", "model": "timm:x", "weights_sha256": "cd"},
    )
    found = compare(first, second)
    assert found["kind"] == "store"
    assert found["settings"]["teacher.spec"] == ["timm:x", "timm:y"]
    assert found["settings"]["teacher.weights_sha256"] == ["ab", "cd"]
    assert found["settings"]["options.views"] == [2, 3] and "options.out" not in found["settings"]
    assert found["results"]["views"] == [2, 3] and found["results"]["bytes"][0] < found["results"]["bytes"][1]
    assert 0 <= found["results"]["top1"][0] <= 1
    assert found["environment"] == {}
    same = compare(first, first)
    assert same["settings"] == same["environment"] == {}


def test_options_that_one_store_lacks_are_not_compared(tmp_path: Path) -> None:
    first = write_store(tmp_path / "a", 2, {"views": 2, "batch_size": 64})
    second, third = write_store(tmp_path / "b", 3), write_store(tmp_path / "c", 3)
    for pair, lacking in (((first, second), "B"), ((second, first), "A")):
        note = f"{lacking} has no {CONFIG_NAME}: options are not compared"
        text = diff(DiffConfig(first=pair[0], second=pair[1]))
        assert text.splitlines().count(note) == 1 and "options." not in text
        found = compare(*pair)
        assert found["notes"] == [note] and found["settings"] == {}
    assert compare(second, third)["notes"] == []


def test_a_very_long_value_is_shortened_for_people(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", RESULT, student="timm:" + "x" * 500)
    second = write_run(tmp_path / "b", RESULT)
    text = diff(DiffConfig(first=first, second=second))
    assert max(map(len, text.splitlines())) < 250 and "xxx..." in text
    assert compare(first, second)["settings"]["student"][0] == "timm:" + "x" * 500


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    run, store = write_run(tmp_path / "run", RESULT), write_store(tmp_path / "store")
    with pytest.raises(ConfigError, match=r"is a run, .* a store: expected two of one kind"):
        diff(DiffConfig(first=run, second=store))
    with pytest.raises(ConfigError, match="is neither a run nor a store"):
        diff(DiffConfig(first=run, second=tmp_path))
