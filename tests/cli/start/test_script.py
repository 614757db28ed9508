"""The script of ``start``: a shell reads it, the command line reads its commands, and they run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from teachonce.cli.config import StartConfig
from teachonce.cli.main import main, parse_command
from teachonce.cli.start.findings import find_out
from teachonce.cli.start.rules import choose_steps
from teachonce.cli.start.script import WIDTH, describe, start
from teachonce.errors import ConfigError
from tests.cli.start.test_rules import PICTURES
from tests.support.small_data import encode_jpeg, write_image_folder, write_shards
from tests.support.small_models import write_color_shards
from tests.support.warm_python import warm_python


def commands_of(script: str) -> list[list[str]]:
    """The words of each command, as a shell has them."""
    lines = script.replace("\\\n", "").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("teachonce ")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["folder", "held out", "tfrecords", "unnamed", "unlabeled", "spaces"])
@pytest.mark.parametrize("out", [None, Path("my scripts/start.sh")])
def test_every_command_is_read_as_it_was_meant(here: Path, kind: str, out: Path | None) -> None:
    options: dict[str, Any] = {"data": Path("data"), "out": out}
    if kind == "folder":
        write_image_folder(here / "data")
        write_image_folder(here / "data", "validation")
    elif kind == "held out":
        write_image_folder(here / "data")
        options |= {"val_fraction": 0.3, "val_seed": 4}
    elif kind == "tfrecords":
        write_color_shards(here / "data", sizes=(9, 6))
    elif kind == "unnamed":
        write_shards(here / "data", num_classes=None)
    elif kind == "unlabeled":
        write_image_folder(here / "data", num_classes=1)
        for index in range(9):
            (here / "flat").mkdir(exist_ok=True)
            (here / "flat" / f"{index}.jpg").write_bytes(encode_jpeg(index))
        options |= {"data": Path("flat"), "teacher": "onnx:my teacher.onnx"}
    else:
        write_image_folder(here / "it's $HOME, my data")
        options |= {"data": Path("it's $HOME, my data")}
    config = StartConfig(**options)
    shown = start(config)
    script = shown if out is None else out.read_text()
    assert max(len(line) for line in script.splitlines() if line.startswith("#")) <= WIDTH + 60
    expected = choose_steps(find_out(config), config, Path() if out is None else out.parent)
    found = [parse_command(words) for words in commands_of(script)]
    assert found == [step.config for step in expected]
    assert len(found) == (4 if kind == "unlabeled" else 5)
    # A shell agrees about words and line ends.
    names = subprocess.run(
        ["sh", "-c", 'teachonce() { echo "$1"; }\n' + script], capture_output=True, text=True, check=True
    )
    assert names.stdout.split() == [step.command for step in expected]


@pytest.mark.parametrize("options", [{}, {"val_fraction": 0.3, "val_seed": 4}, {"label_offset": 1}])
def test_inspect_is_named_first(here: Path, options: dict[str, Any]) -> None:
    """Only it finds images that are cut short: here only headers are read."""
    write_shards(here / "my data", num_classes=None)
    script = start(StartConfig(data=Path("my data"), **options))
    (line,) = (line for line in script.partition("\nset -e\n")[0].splitlines() if "teachonce inspect" in line)
    config = parse_command(shlex.split(line.removeprefix("#   teachonce ")))
    assert (config.path, config.val_fraction) == (Path("my data"), 0.0)
    assert config.label_offset == options.get("label_offset", 0)


def test_a_line_break_does_not_end_a_comment(here: Path) -> None:
    write_image_folder(here / "my\necho obeyed; data")
    script = start(StartConfig(data=Path("my\necho obeyed; data")))
    done = subprocess.run(["sh", "-c", "teachonce() { :; }\n" + script], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_a_path_with_joiners_is_that_path_in_the_commands_and_escaped_in_comments(here: Path) -> None:
    name = "my\u200cdata\u202e"
    write_image_folder(here / name)
    script = start(StartConfig(data=Path(name)))
    commands = [line for line in script.splitlines() if not line.startswith("#")]
    assert any(f"--data '{name}'" in line for line in commands)
    assert name not in "\n".join(line for line in script.splitlines() if line.startswith("#"))
    assert "my\\u200cdata" in script


def test_it_is_printed_and_nothing_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image_folder(here / "data")
    before = sorted(here.rglob("*"))
    with pytest.raises(SystemExit) as end:
        main(["start", "data", "--student", "timm:test_resnet"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("#!/bin/sh\n# teachonce start data --student timm:test_resnet\n")
    assert "12 images in split train (a folder of images), shorter side 30 to 30 px, median 30" in shown
    assert "3 classes (class0, class1, class2), 4 to 4 images each." in shown.replace("\n# ", " ")
    assert sorted(here.rglob("*")) == before


def test_with_out_the_trainings_have_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image_folder(here / "data")
    shown = start(StartConfig(data=Path("data"), out=Path("a/start.sh")))
    assert shown == "a/start.sh\na/start.teacher.json\na/start.student.json"
    assert "start: read what was written, then: sh a/start.sh" in capsys.readouterr().err
    student = json.loads(Path("a/start.student.json").read_text())
    assert (student["store"], student["label_weight"], student["out"]) == (["a/store"], 0.0, "a/student")
    assert "teachonce train --config a/start.teacher.json\n" in Path("a/start.sh").read_text()
    for name in ("start.sh", "start.teacher.json", "start.student.json"):
        with pytest.raises(ConfigError, match=rf"{name}: exists; remove it or choose another --out"):
            start(StartConfig(data=Path("data"), out=Path("a/start.sh")))
        Path("a", name).unlink()


def test_what_is_odd_is_said() -> None:
    config = StartConfig(data=Path("data"))
    text = describe(PICTURES, config)
    assert text.startswith("3,200 images in split train (a folder of images), shorter side 200 to 900 px, median 375")
    assert "2 classes (cat, dog), 1,500 to 1,700 images each." in text and "unequal" not in text
    assert "They are unequal" in describe(replace(PICTURES, counts=(9, 90)), config)
    assert "3 files of these cannot be read as an image" in describe(replace(PICTURES, num_odd=3), config)
    assert describe(replace(PICTURES, has_validation=True), config).endswith("There is a validation split.")
    assert describe(replace(PICTURES, labeled="none"), config).endswith("They have no labels.")
    unnamed = describe(replace(PICTURES, class_names=(), is_counted=False), config)
    assert "2 classes without names, 1,500 to 1,700 images each of the sample." in unnamed
    assert "--num-classes is the largest label that was seen" in unnamed
    many = describe(replace(PICTURES, class_names=tuple("abcdefghij"), has_background=True), config)
    assert "10 classes (a, b, c, d, e, f, g, h, ...) and background, which the student leaves out" in many


@pytest.mark.slow
def test_the_script_runs(digits: Path, here: Path) -> None:
    """All five commands, by a shell, with tiny models; the second time only the export is made, again."""
    (here / "pictures").symlink_to(digits / "train")
    words = "--teacher timm:test_resnet,pretrained=0 --student timm:test_resnet --size 32 --epochs 3 --device cpu"
    with pytest.raises(SystemExit) as end:
        main(["start", "pictures", *words.split(), "--out", "start.sh"])
    assert end.value.code == 0
    (here / "bin").mkdir()
    (here / "bin" / "teachonce").write_text(f'#!/bin/sh\nexec {shlex.join(warm_python())} -m teachonce "$@"\n')
    (here / "bin" / "teachonce").chmod(0o755)
    environment = os.environ | {"PATH": f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["sh", "start.sh"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "float" in done.stdout and "int8" in done.stdout, "the table of the last command"
    result = json.loads((here / "student" / "result.json").read_text())
    assert result["epochs"] == 3 and result["store"] == "store" and result["top1"] is not None
    assert {path.name for path in here.iterdir()} >= {
        "teacher",
        "store",
        "student",
        "student.onnx",
        "student.int8.onnx",
    }
    made = [path for ending in ("safetensors", "ckpt", "arrow") for path in here.rglob(f"*.{ending}")]
    times = [path.stat().st_mtime_ns for path in made]
    again = subprocess.run(["sh", "start.sh"], capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    assert len(made) >= 8 and [path.stat().st_mtime_ns for path in made] == times
