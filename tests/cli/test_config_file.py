"""--config FILE: options from JSON and TOML, of runs and stores too; flags on top, unknown keys refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from teachonce.cli.config_file import convert_value
from teachonce.cli.main import main, parse_command
from teachonce.errors import ConfigError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.options import Count, to_json
from teachonce.store.plan_files import CONFIG_NAME
from teachonce.training.config import RUN_ENTRIES, TrainConfig
from teachonce.training.train import train
from tests.support.small_data import write_digits
from tests.support.small_models import write_color_shards, write_color_teacher

TOML = """
data = "records"
student = "timm:resnet18"
batch-size = 32
crop_scale = [0.2, 1]
store = ["a", "b"]
channels_last = true
mixup_type = "batch"
"""


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_options_of_a_file(tmp_path: Path) -> None:
    expected = TrainConfig(
        data=Path("records"),
        student="timm:resnet18",
        out=Path("o"),
        batch_size=32,
        crop_scale=(0.2, 1.0),
        store=(Path("a"), Path("b")),
        channels_last=True,
    )
    file = write(tmp_path / "train.toml", TOML)
    assert parse_command(["train", "--config", file, "--out", "o"]) == expected
    content = {name: value for name, value in to_json(expected).items() if name != "out"}
    file = write(tmp_path / "train.json", content)
    assert parse_command(["--config", file, "train", "--out", "o"]) == expected


def test_flags_stand_on_top(tmp_path: Path) -> None:
    file = write(tmp_path / "train.toml", TOML)
    found = parse_command(["train", "--config", file, "--out", "o", "--store", "c", "--batch-size", "8"])
    assert (found.store, found.batch_size) == ((Path("c"),), 8), "in place of those of the file"
    assert parse_command(["train", "--config", file, "--out", "o", "--no-channels-last"]).channels_last is False
    file = write(tmp_path / "verify.json", {"store": "a", "data": "d"})
    assert parse_command(["verify", "--config", file]).store == Path("a")
    assert parse_command(["verify", "b", "--config", file]).store == Path("b")


def test_a_recipe_of_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "r.json", {"recipe": "assemble_resnet50", "epochs": 20, "data": "d", "store": ["s"]})
    found = parse_command(["train", "--config", file, "--out", "o"])
    assert (found.recipe, found.epochs, found.label_smoothing) == ("assemble_resnet50", 20, 0.1)
    assert parse_command(["train", "--config", file, "--out", "o", "--epochs", "30"]).epochs == 30


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", {"bach_size": 3}, r"'bach_size' is not an option of extract; did you mean batch_size\?$"),
        ("a.json", {"xyzzy": 3}, "'xyzzy' is not an option of extract$"),
        ("a.json", {"batch_size": "3"}, "batch_size is '3', expected an integer$"),
        ("a.json", {"batch_size": True}, "batch_size is True, expected an integer$"),
        ("a.json", {"views": 1.5}, "views is 1.5, expected an integer or null$"),
        ("a.json", {"codec": "int9"}, "codec is 'int9', expected float32, float16, int8, topk$"),
        ("a.json", {"data": ""}, "data is '', expected a path$"),
        ("a.json", {"compile": 1}, "compile is 1, expected true or false$"),
        ("a.json", {"crop_scale": [0.5]}, r"crop_scale is \[0.5\], expected a list of 2$"),
        ("a.json", {"crop_scale": [0.5, "x"]}, r"crop_scale is \[0.5, 'x'\], expected a number$"),
        ("a.json", {"batch_size": 3, "batch-size": 4}, "batch_size is given twice$"),
        ("a.json", {"batch_size": 0}, "^--batch-size 0: expected at least 1$"),
        ("a.json", [], "expected an object of options$"),
        ("a.json", "{", "a.json: is not JSON: "),
        ("a.toml", "data = ", "a.toml: is not TOML: "),
        ("a.toml", "[data]\na = 1", r"data is {'a': 1}, expected a path$"),
    ],
)
def test_what_a_file_cannot_say(
    name: str, content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["extract", "--config", write(tmp_path / name, content), "--teacher", "timm:a", "--out", "o"]
    words += [] if "data" in str(content) else ["--data", "d"]
    with pytest.raises(ConfigError, match=message):
        parse_command(words)
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json: cannot be read: No such file"):
        parse_command(["verify", "--config", str(tmp_path / "nowhere.json")])


def test_values_of_json_and_toml() -> None:
    assert convert_value(tuple[Count, ...], [1, 2]) == (1, 2)
    assert convert_value(float, "-inf") == -math.inf and convert_value(float, 2) == 2.0
    assert convert_value(str | None, None) is None
    for hint, value in ((float, "x"), (tuple[int, ...], 3), (int, 2.0), (Path, "a\0b"), (int | None, "x")):
        with pytest.raises(ValueError):
            convert_value(hint, value)


@pytest.mark.slow
def test_a_run_is_repeated_by_its_own_config(tmp_path: Path) -> None:
    """Weights and curve are those of the first; and every entry of config.json is an option or known to be none."""
    data = write_digits(tmp_path / "digits", num_train=32, num_validation=16)
    first = TrainConfig(
        data=data,
        student="timm:test_resnet",
        out=tmp_path / "a",
        epochs=1,
        size=16,
        batch_size=16,
        device="cpu",
        offset=0,
        crop_ratio=(0.9, 1.1),
        seed=3,
    )
    train(first)
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert written.keys() - {field.name for field in dataclasses.fields(TrainConfig)} == RUN_ENTRIES
    words = ["train", "--config", str(tmp_path / "a" / "config.json"), "--out", str(tmp_path / "b")]
    with pytest.raises(SystemExit) as end:
        main(["--quiet", *words])
    assert end.value.code == 0
    again = json.loads((tmp_path / "b" / "config.json").read_text())
    assert again == written | {"out": str(tmp_path / "b")}
    weights = [load_file(tmp_path / name / "student.safetensors") for name in ("a", "b")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    with pytest.raises(ConfigError, match="is not an option of train"):
        parse_command(["train", "--config", write(tmp_path / "x.json", written | {"colour": 1}), "--out", "c"])


def test_a_store_is_repeated_by_its_own_config(tmp_path: Path) -> None:
    data = write_color_shards(tmp_path / "data", sizes=(4, 4))
    write_color_teacher(tmp_path / "teacher.onnx")
    config = ExtractConfig(
        data=data,
        teacher=f"onnx:{tmp_path / 'teacher.onnx'},size=16,resize=16",
        out=tmp_path / "a",
        policy="crop",
        views=2,
        codec="float32",
        device="cpu",
        worker="1/2",
    )
    # A worker of an array makes what the others lack, so that it ends with the complete store.
    assert extract(config)
    file = tmp_path / "a" / CONFIG_NAME
    before = file.read_bytes()
    assert extract(dataclasses.replace(config, views=4, worker="0/2", batch_size=3))
    assert file.read_bytes() == before, "that of the call that was first"
    assert parse_command(["extract", "--config", str(file), "--out", str(tmp_path / "b")]) == dataclasses.replace(
        config, out=tmp_path / "b", worker="0/1"
    )
    with pytest.raises(SystemExit) as end:
        main(["--quiet", "extract", "--config", str(file), "--out", str(tmp_path / "b")])
    assert end.value.code == 0
    plans = [(tmp_path / name / "plan.json").read_bytes() for name in ("a", "b")]
    assert plans[0] == plans[1]
