"""What used to end in a traceback is one line that names the file and says what to do."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from teachonce.cli.main import main
from teachonce.storage.files import write_json
from teachonce.training.config import TrainConfig
from teachonce.training.train import train
from tests.support.small_models import write_color_shards


def run(capsys, *words) -> tuple[int, str]:
    """The exit code and what was said; never more than one line where the program fails."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    shown = capsys.readouterr().err.splitlines()
    lines = [line for line in shown if not line.startswith(("train: ", "teachonce: warning: "))]
    assert len(lines) == 1 or end.value.code == 0, shown
    return end.value.code, lines[0] if lines else ""


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train(
        TrainConfig(data=digits, student="timm:test_resnet", out=out, epochs=1, size=32, batch_size=32, num_workers=1)
    )
    return out


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("name", ["config.json", "result.json"])
@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{}", "[" * 100_000])
def test_a_run_whose_json_is_something_else(copied, capsys, name, content):
    (copied / name).write_text(content)
    code, line = run(capsys, "inspect", copied)
    assert code == 1
    assert line.startswith(f"teachonce: {copied}/{name}: is ")


def test_a_run_with_any_setting_or_figure_missing(copied, capsys):
    """Shown or refused, in one line: whichever key is gone, or of another type."""
    refused = 0
    for name in ("config.json", "result.json"):
        whole = json.loads((copied / name).read_text())
        for key in whole:
            for changed in ({k: v for k, v in whole.items() if k != key}, {**whole, key: [{}]}):
                write_json(copied / name, changed)
                code, line = run(capsys, "inspect", copied)
                assert code == 0 or re.match(f"teachonce: {copied}/{name}: is not (from|the result of) a run", line), (
                    key,
                    line,
                )
                refused += code != 0
        write_json(copied / name, whole)
    assert refused >= 20, "data, split, epochs, batch_size, student, ... and five figures, each in two ways"


def test_training_into_a_run_whose_result_is_damaged(copied, digits, capsys):
    (copied / "result.json").write_text("[]")
    words = ["--size", 32, "--batch-size", 32, "--epochs", 1, "--num-workers", 1]
    code, line = run(capsys, "train", "--data", digits, "--student", "timm:test_resnet", "--out", copied, *words)
    assert code == 1 and "result.json: is not the result of a run" in line and "remove it" in line
    # And so it is.
    (copied / "result.json").unlink()
    assert run(capsys, "train", "--data", digits, "--student", "timm:test_resnet", "--out", copied, *words)[0] == 0
    assert json.loads((copied / "result.json").read_text())["epochs"] == 1


def test_metrics_that_are_no_text(copied, capsys):
    with (copied / "metrics.csv").open("ab") as file:
        file.write(b"\xff")
    code, line = run(capsys, "inspect", copied)
    assert code == 1 and f"{copied}/metrics.csv: line 3 is not a line of metrics" in line


@pytest.mark.parametrize("name", ["merge.train.json", "records.train.json"])
def test_a_note_of_merged_logits_that_is_no_object(tmp_path, capsys, name):
    data = write_color_shards(tmp_path / "data")
    (data / name).write_text("[]")
    words = ["--size", 32, "--batch-size", 4, "--epochs", 1, "--num-workers", 1, "--validation-split", "none"]
    words += ["--logits", "records", "--kd-temp", 1]
    code, line = run(
        capsys, "train", "--data", data, "--student", "timm:test_resnet", "--out", tmp_path / "out", *words
    )
    assert code == 1 and line.startswith(f"teachonce: {data}/{name}: ") and "expected a JSON object" in line
    assert not (tmp_path / "out").exists()


def test_batch_norm_on_a_single_value(tmp_path, digits, capsys):
    words = ["--size", 1, "--batch-size", 1, "--epochs", 1, "--num-workers", 1]
    code, line = run(
        capsys, "train", "--data", digits, "--student", "timm:test_resnet", "--out", tmp_path / "out", *words
    )
    assert code == 2
    assert line.startswith(
        "teachonce: --batch-size 1: --student timm:test_resnet cannot be trained on one image of 1 px"
    )
    assert not (tmp_path / "out").exists()
