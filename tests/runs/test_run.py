"""The run's directory: agreeing with a configuration, and the curve as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from teachonce.errors import PlanMismatchError, TeachonceError
from teachonce.runs.metrics import METRIC_COLUMNS, read_metrics, write_metrics
from teachonce.runs.run import begin_run, read_result, run_differences
from teachonce.training.config import default_options

CONFIG = {
    "student": "timm:x",
    "lr": 0.1,
    "crop_scale": [0.08, 1.0],
    "out": "a",
    "device": "cpu",
    "versions": {"a": "1"},
}


def test_begin_writes_and_then_agrees(tmp_path: Path) -> None:
    begin_run(tmp_path / "run", CONFIG, default_options())
    begin_run(tmp_path / "run", CONFIG, default_options())
    begin_run(tmp_path / "run", {**CONFIG, "out": "b", "device": "cuda", "versions": {"a": "1"}}, default_options())


def test_begin_says_what_differs(tmp_path: Path) -> None:
    begin_run(tmp_path / "run", CONFIG, default_options())
    other = {**CONFIG, "lr": 0.2, "crop_scale": [0.5, 1.0], "new": 1}
    with pytest.raises(PlanMismatchError) as caught:
        begin_run(tmp_path / "run", other, default_options())
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: begun with another configuration: crop_scale was [0.08, 1.0], now [0.5, 1.0]; "
        "lr was 0.1, now 0.2; new was None, now 1; choose another --out, or the same settings"
    )


def test_an_option_that_the_run_did_not_have_yet_had_its_default(tmp_path: Path) -> None:
    """So a run that an older version began goes on, unless the new option is used."""
    begin_run(tmp_path / "run", CONFIG, default_options())
    begin_run(
        tmp_path / "run", {**CONFIG, "mixup_type": "batch", "boundary_epochs": [30, 60, 80, 90]}, default_options()
    )
    with pytest.raises(PlanMismatchError, match="mixup_type was batch, now 1;"):
        begin_run(tmp_path / "run", {**CONFIG, "mixup_type": 1}, default_options())


def test_begin_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TeachonceError, match="exists and is no run"):
        begin_run(tmp_path, CONFIG, default_options())
    with pytest.raises(TeachonceError, match="exists and is no run"):
        begin_run(tmp_path / "notes.txt", CONFIG, default_options())


def test_long_values_are_cut() -> None:
    (phrase,) = run_differences({"a": "x" * 500}, {"a": "y"})
    assert len(phrase) < 120


def test_metrics_survive_the_file_exactly(tmp_path: Path) -> None:
    row = {name: 1 / 3 + index for index, name in enumerate(METRIC_COLUMNS)}
    rows = [{**row, "epoch": 1, "step": 10}, {**row, "epoch": 2, "step": 20, "validation_top1": None, "lr": 1e-300}]
    assert read_metrics(tmp_path) == []
    write_metrics(tmp_path, rows)
    assert read_metrics(tmp_path) == rows


@pytest.mark.parametrize("damage", ["1,2\n", "x" * 9 + "," * 12 + "\n"])
def test_damaged_metrics_are_named(tmp_path: Path, damage: str) -> None:
    write_metrics(tmp_path, [])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(damage)
    with pytest.raises(TeachonceError, match=r"metrics.csv: line 2 is no line of metrics"):
        read_metrics(tmp_path)


def test_result_of_an_unfinished_run(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
