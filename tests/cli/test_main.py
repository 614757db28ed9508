"""The command line: fast help, one line for an error, exit codes, every option with a sentence."""

import dataclasses
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import teachonce
from teachonce.cli import main as cli
from teachonce.cli.main import main, parse_command
from teachonce.errors import ConfigError
from teachonce.extraction.config import ExtractConfig
from teachonce.terminal import print_note
from teachonce.training.config import TrainConfig
from tests.support.small_data import write_image_folder

COMMANDS = [
    "start",
    "records",
    "reindex",
    "extract",
    "verify",
    "inspect",
    "status",
    "diff",
    "merge",
    "train",
    "evaluate",
    "predict",
    "export-onnx",
    "export-weights",
    "export-logits",
    "upgrade",
    "copy",
    "import",
    "plan",
    "ablate",
    "demo",
    "completion",
]


def end_code(*words) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return end.value.code


def test_help_lists_every_command():
    command = [sys.executable, "-m", "teachonce", "--help"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(name, capsys):
    assert end_code(name, "--help") == 0
    assert "usage: teachonce " + name in capsys.readouterr().out


def test_every_option_has_a_sentence():
    assert list(cli.COMMANDS) == list(COMMANDS)
    for kind in (command.options for command in cli.COMMANDS.values()):
        for field in dataclasses.fields(kind):
            owner = next(base for base in kind.__mro__ if field.name in vars(base).get("__annotations__", {}))
            source = inspect.getsource(owner)
            after = source[source.index(f"    {field.name}: ") :].split("\n", 2)[1].strip()
            assert after.startswith('"""'), f"{kind.__name__}.{field.name} has no sentence"


def test_wrong_arguments_exit_with_two(capsys):
    assert end_code("distil") == 2
    assert end_code("extract", "--data", "x") == 2
    assert end_code("verify") == 2
    capsys.readouterr()
    assert end_code("extract", "--data", "x", "--teacher", "timm:a", "--out", "y", "--worker", "3/3") == 2
    assert capsys.readouterr().err == (
        "teachonce: --worker 3/3: expected i/n with i from 0 to 2; if the job array counts from 1, "
        "subtract 1, as in $((N - 1))/3\n"
    )


def test_version_and_debug(capsys, tmp_path):
    assert end_code("--version") == 0
    assert capsys.readouterr().out == f"teachonce {teachonce.__version__}\n"
    assert end_code("--debug", "inspect", str(tmp_path / "nowhere")) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and "in inspect" in shown
    assert shown.splitlines()[-1].startswith("teachonce: ") and "no such folder" in shown.splitlines()[-1]


class Unforeseen(Exception):
    """No error of ours, nor of any library that is known here."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (Unforeseen("first\nsecond"), "Unforeseen: first"),
        (AssertionError(), "AssertionError"),
        (KeyError("x"), "KeyError: 'x'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff"),
        (RecursionError("deep"), "RecursionError: deep"),
        (MemoryError(), "MemoryError"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_every_exception_is_one_line(capsys, monkeypatch, tmp_path, error, line, debug):
    def program(config):
        raise error

    monkeypatch.setattr("teachonce.inspection.inspect.inspect", program)
    assert end_code(*(["--debug"] if debug else []), "inspect", str(tmp_path)) == 1
    shown = capsys.readouterr().err
    assert ("Traceback" in shown) is debug
    *_, last = shown.splitlines()
    assert last.startswith(f"teachonce: {line}") and last.endswith("; --debug shows where")
    assert debug or shown.count("\n") == 1


def test_the_version_and_debug_wherever_they_stand(capsys, tmp_path):
    assert end_code("train", "--version") == 0
    assert capsys.readouterr().out == f"teachonce {teachonce.__version__}\n"
    assert end_code("inspect", str(tmp_path / "nowhere"), "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_quiet_and_json_progress(capsys, tmp_path):
    """Of the same command: notes and progress for people, JSON among them, and nothing but the result."""
    images = write_image_folder(tmp_path / "images")
    shown = {}
    for name, words in (("auto", []), ("json", ["--progress", "json"]), ("quiet", ["--quiet"])):
        out = tmp_path / name
        assert end_code("records", "--images", str(images), "--out", str(out), "--num-workers", "1", *words) == 0
        shown[name] = capsys.readouterr().err.splitlines()
    assert shown["auto"][0].startswith("records: done 12 of 12 images in ")
    assert shown["auto"][1] == f"{tmp_path / 'auto'}: 12 train records in 1 shard"
    event = json.loads(shown["json"][-2])
    assert (event["event"], event["what"], event["done"]) == ("done", "records", 12)
    assert shown["quiet"] == []
    print_note("afterwards")
    assert capsys.readouterr().err == "afterwards\n", "the flags were of that command"


def test_an_interrupt_says_how_to_resume(capsys, monkeypatch, tmp_path):
    def program(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("teachonce.interop.merge.merge", program)
    monkeypatch.setattr("teachonce.inspection.inspect.inspect", program)
    assert end_code("merge", str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "out")) == 130
    expected = "teachonce: interrupted; completed work is kept. Run the same command to resume\n"
    assert capsys.readouterr().err == expected
    assert end_code("inspect", str(tmp_path)) == 130
    assert capsys.readouterr().err == "teachonce: interrupted\n", "it begins anew"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_program(name):
    module, _, function = cli.COMMANDS[name].program.partition(":")
    program = getattr(importlib.import_module(f"teachonce.{module}"), function)
    parameter, *more = inspect.signature(program).parameters.values()
    assert all(other.kind is other.KEYWORD_ONLY and other.default is None for other in more), "the command gives one"
    assert parameter.annotation == cli.COMMANDS[name].options.__name__


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (ExtractConfig, {"views": 2}, "--views 2: expected 1 with --policy center"),
        (ExtractConfig, {"expect_top1": 80.0}, "--expect-top1 80.0: expected a fraction"),
        (ExtractConfig, {"crop_scale": (0.5, 0.1)}, "--crop-scale 0.5 0.1"),
        (ExtractConfig, {"batch_size": 0}, "--batch-size 0: expected at least 1"),
        (TrainConfig, {"kd_temp": 2.0}, "--kd-temp 2.0: expected 0 without --store, --logits records or --teacher"),
        (TrainConfig, {"store": Path("s"), "logits": "records"}, "not given together with --store"),
        (TrainConfig, {"label_weight": 0.0}, "--label-weight 0.0: expected more than 0 without a KD loss"),
        (TrainConfig, {"label_smoothing": 1.0}, "--label-smoothing"),
    ],
)
def test_settings_that_cannot_be_meant(kind, options, message):
    required = {"data": Path("d"), "out": Path("o"), "teacher": "t", "student": "s"}
    names = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    with pytest.raises(ConfigError) as error:
        kind(**{name: value for name, value in required.items() if name in names} | options)
    assert message in str(error.value)


def test_the_temperature_in_force():
    base = {"data": Path("d"), "out": Path("o"), "student": "s"}
    assert TrainConfig(**base).temperature == 0
    assert TrainConfig(**base, store=Path("s")).temperature == 1
    assert TrainConfig(**base, logits="records", kd_temp=4.0).temperature == 4
    assert TrainConfig(**base, store=Path("s"), kd_temp=0.0).temperature == 0


def test_options_as_they_are_typed():
    parsed = parse_command(
        [
            "extract",
            "--data",
            "d",
            "--teacher",
            "run:r",
            "--out",
            "o",
            "--policy",
            "crop",
            "--views",
            "4",
            "--crop-scale",
            "0.2",
            "0.9",
            "--no-compile",
        ]
    )
    assert (parsed.views, parsed.crop_scale, parsed.policy, parsed.compile) == (4, (0.2, 0.9), "crop", False)
    assert parse_command(["merge", "store", "--data", "d", "--out", "o"]).store == Path("store")
    assert parse_command(
        ["train", "--data", "d", "--student", "s", "--out", "o", "--validation-split", "none"]
    ).validation_split in (
        None,
        "none",
    )
