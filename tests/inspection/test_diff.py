"""Two runs and two stores side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from teachonce.errors import ConfigError, ModelError
from teachonce.inspection.config import DiffConfig
from teachonce.inspection.diff import diff
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.runs.run import WEIGHTS_NAME
from teachonce.storage.files import write_json
from teachonce.store.begin import begin_store
from teachonce.store.manifests import finalize_store
from teachonce.store.plan_files import CONFIG_NAME
from teachonce.views.policy import CropPolicy, RandomMix, policy_to_json
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


def test_times_are_noise_and_weights_are_compared(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, RESULT | {"seconds": 10.0 + at, "images_per_second": 99.5 + at})
        for at, name in enumerate("abc")
    ]
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.int64)}
    # As safetensors writes it: metadata are no part of the weights, and in any order.
    save_file(tensors, runs[0] / WEIGHTS_NAME, {"student": "x", "format": "pt"})
    save_file(tensors, runs[1] / WEIGHTS_NAME, {"format": "np"})
    save_file({**tensors, "b": np.array([1, 1, 1, 2])}, runs[2] / WEIGHTS_NAME, {"student": "x", "format": "pt"})
    text = diff(DiffConfig(first=runs[0], second=runs[1]))
    assert "\n\nweights: equal, bit for bit\n\n" in text and "seconds" not in text and "per_second" not in text
    found = compare(runs[0], runs[1])
    assert found["weights"]["first"] == found["weights"]["second"] and "seconds" not in found["results"]
    assert "\n\nweights: different\n\n" in diff(DiffConfig(first=runs[0], second=runs[2]))
    other_shape = {**tensors, "a": tensors["a"].reshape(3, 2)}
    save_file(other_shape, runs[2] / WEIGHTS_NAME)
    assert "weights: different" in diff(DiffConfig(first=runs[0], second=runs[2]))
    (runs[2] / WEIGHTS_NAME).unlink()
    assert "weights: B has none yet" in diff(DiffConfig(first=runs[0], second=runs[2]))
    for damaged in (b"", b"\xff" * 20, (4).to_bytes(8, "little") + b"[1 ]"):
        (runs[2] / WEIGHTS_NAME).write_bytes(damaged)
        with pytest.raises(ModelError, match="is not in the safetensors format"):
            diff(DiffConfig(first=runs[0], second=runs[2]))


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


def test_a_mixed_view_has_no_single_label(tmp_path: Path) -> None:
    first = write_store(tmp_path / "a")
    mixed = policy_to_json(CropPolicy(mix=RandomMix(cutmix_alpha=1.0))) | {"seed": 0}
    second = write_store(tmp_path / "b", policy=mixed)
    top1 = compare(first, second)["results"]["top1"]
    assert 0 <= top1[0] <= 1 and top1[1] is None


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
