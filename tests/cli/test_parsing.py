"""Words that mean no command: one line that says which, and what was probably meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from teachonce.cli.main import main, parse_command
from teachonce.cli.parsing import take_storage_options
from teachonce.errors import ConfigError
from teachonce.storage.remote.settings import VARIABLE, read_settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("exract --data d", r"^exract: no such command \(did you mean extract\?\); 'teachonce --help' lists them$"),
        ("distil", r"^distil: no such command; 'teachonce --help' lists them$"),
        ("--data d extract", r"^--data: expected a command before its options"),
        ("verify s --data d --bach-size 3", r"^--bach-size: not an option of verify \(did you mean --batch-size\?\)"),
        ("verify s --data d --xyz", r"^--xyz: not an option of verify; 'teachonce verify --help-all' lists them$"),
        ("verify s --data d --no-jsn", r"^--no-jsn: not an option of verify \(did you mean --no-json\?\)"),
        ("verify s --data d -b 3", "^-b: not an option of verify"),
        ("verify", "^verify: STORE and --data PATH missing; give it here or in --config"),
        ("verify --data d", "^verify: STORE missing"),
        ("train --data d --out o", "^train: --student SPEC missing"),
        ("verify s --data", "^--data PATH: expected 1 value, found 0$"),
        ("verify s --data --json", "^--data PATH: expected 1 value, found 0$"),
        ("extract --data d --crop-scale 0.5", "^--crop-scale FLOAT FLOAT: expected 2 values, found 1$"),
        ("verify s t --data d", "^t: unexpected; options of verify are given as --NAME VALUE$"),
        ("export run --format onnx --out o", "^export: was split into one command per product: export-onnx RUN"),
        ("completion csh", "^shell csh: expected bash, zsh, fish$"),
        ("verify --progress bar", "^--progress: invalid choice: 'bar'"),
        ("verify s -help", "^-help: not an option of verify"),
        ("verify --quiet=1", "^--quiet: takes no value, found '1'$"),
        ("verify --config", "^--config: expected one argument"),
    ],
)
def test_what_is_wrong_is_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_command(words.split())
    with pytest.raises(SystemExit) as end:
        main(words.split())
    line = capsys.readouterr().err
    assert end.value.code == 2 and line.startswith("teachonce: ") and line.count("\n") == 1


def test_numbers_that_begin_with_a_dash_are_values() -> None:
    parsed = parse_command(["merge", "s", "--data", "d", "--out", "o", "--background-logit", "-inf"])
    assert parsed.background_logit == float("-inf")
    with pytest.raises(ConfigError, match=r"^-1: unexpected"):
        parse_command(["merge", "s", "-1", "--data", "d", "--out", "o"])


def test_files_whose_names_begin_with_a_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-hidden.jpg", "--top"):
        Path(name).touch()
        with pytest.raises(ConfigError, match=rf"^{name}: not an option of evaluate; a path is given as \./{name}; "):
            parse_command(["evaluate", name])
    for words in (["./-hidden.jpg", "./--top"], ["--", "-hidden.jpg", "--top"]):
        parsed = parse_command(["predict", "run", "--csv", "out.csv", *words])
        assert parsed.images == (Path("-hidden.jpg"), Path("--top"))
    with pytest.raises(ConfigError, match="--storage-options: expected KEY=VALUE pairs"):
        take_storage_options(["predict", "--storage-options", "--", "a=1"])
    assert take_storage_options(["predict", "--", "--storage-options"]) == ["predict", "--", "--storage-options"]


def test_no_command_shows_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2 and "train and evaluate:\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no command"):
        parse_command(["--quiet"])


def test_general_options_stand_anywhere() -> None:
    expected = parse_command(["verify", "s", "--data", "d", "--json"])
    for words in ("--quiet verify s --data d --json", "verify s --progress json --data d --json --debug"):
        assert parse_command(words.split()) == expected


@pytest.mark.parametrize(
    "words, left, options",
    [
        ("inspect store", "inspect store", {}),
        ("--storage-options a=1 inspect store", "inspect store", {"a": "1"}),
        ("inspect --storage-options a=1 b=x=y store", "inspect store", {"a": "1", "b": "x=y"}),
        ("inspect store --storage-options a=1 B=2", "inspect store", {"a": "1", "b": "2"}),
        ("inspect --storage-options=a=1 store --storage-options a=2", "inspect store", {"a": "2"}),
        ("plan --storage-options a=1 --teacher timm:x,weights=f", "plan --teacher timm:x,weights=f", {"a": "1"}),
        ("evaluate --storage-options a= timm:x,weights=f", "evaluate timm:x,weights=f", {"a": ""}),
    ],
)
def test_words_of_storage_options(
    words: str, left: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert take_storage_options(words.split()) == left.split()
    assert dict(read_settings().options) == options


def test_a_path_is_no_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    token = "token=" + "x" * 3000
    assert take_storage_options(["inspect", "--storage-options", "a=1", token, "lr=0.1", "lr=0.2"]) == [
        "inspect",
        "lr=0.1",
        "lr=0.2",
    ]
    assert dict(read_settings().options) == {"a": "1", "token": "x" * 3000}


def test_they_are_added_to_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "region=here 'token=with a space'")
    take_storage_options(["x", "--storage-options", "region=there", "retry_seconds=7"])
    found = read_settings()
    assert dict(found.options) == {"region": "there", "token": "with a space"} and found.retry_seconds == 7
    assert "there" in os.environ[VARIABLE], "so that workers have it"


@pytest.mark.parametrize("words", ["--storage-options", "--storage-options store a=1", "--storage-options=a"])
def test_without_a_pair(words: str) -> None:
    with pytest.raises(ConfigError, match="expected KEY=VALUE pairs, such as --storage-options region="):
        take_storage_options(words.split())
