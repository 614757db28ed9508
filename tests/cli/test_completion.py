"""The scripts of ``teachonce completion``, asked as a shell asks them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from teachonce.cli.completion import completion
from teachonce.cli.config import CompletionConfig
from teachonce.cli.main import COMMANDS

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_teachonce
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "teachonce"
    path.write_text(completion(CompletionConfig(shell="bash")))
    return path


def complete(script: Path, *words: str, cwd: Path | None = None) -> list[str]:
    command = ["bash", "-c", ASK, "bash", str(script), "teachonce", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout.split("\n")[:-1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_values(script: Path, tmp_path: Path) -> None:
    assert set(COMMANDS) <= set(complete(script, ""))
    assert complete(script, "ext") == ["extract"]
    assert complete(script, "extract", "--views") == ["--views", "--views-per-file", "--views-of"]
    assert complete(script, "extract", "--codec", "") == ["float32", "float16", "int8", "topk"]
    assert complete(script, "extract", "--data", "d", "--no-co") == ["--no-compile"]
    assert complete(script, "train", "--list") == ["--list-recipes"]
    assert complete(script, "completion", "") == ["bash", "zsh", "fish"]
    assert {"--config", "--quiet"} <= set(complete(script, "inspect", "--"))
    (tmp_path / "records").mkdir()
    assert complete(script, "inspect", "rec", cwd=tmp_path) == ["records"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_paths_with_spaces_and_says_which_words_are_files(script: Path, tmp_path: Path) -> None:
    for name in ("my data", "my other data", "train"):
        (tmp_path / name).mkdir()
    assert sorted(complete(script, "inspect", "my", cwd=tmp_path)) == ["my data", "my other data"]
    assert complete(script, "inspect", "nowhere", cwd=tmp_path) in ([], [""])
    # Readline makes a folder of a word that is said to be a file, where there is such a folder.
    assert "filenames" not in script.read_text().splitlines()[-1]
    assert complete(script, "trai", cwd=tmp_path) == ["train"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_finds_the_command_past_options_of_all_commands(script: Path, tmp_path: Path) -> None:
    assert complete(script, "--quiet", "ext") == ["extract"]
    assert complete(script, "--quiet", "train", "--list") == ["--list-recipes"]
    assert complete(script, "--progress", "j") == ["json"]
    assert complete(script, "--progress", "json", "train", "--list") == ["--list-recipes"]
    (tmp_path / "file.json").write_text("{}")
    assert complete(script, "--config", "fi", cwd=tmp_path) == ["file.json"]
    assert complete(script, "--config", "train", "extract", "--codec", "t") == ["topk"]
    assert complete(script, "--storage-options", "region", "=", "copy", "extract", "--codec", "t") == ["topk"]
    assert complete(script, "inspect", "train", "--lis") in ([], [""]), "the first word is the command"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_read_their_scripts(shell: str, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(completion(CompletionConfig(shell=shell)))  # type: ignore[arg-type]
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n", path], check=True)
    text = path.read_text()
    assert all(f" {name} " in text or f" {name})" in text for name in COMMANDS)


def test_fish_has_a_line_an_option() -> None:
    lines = completion(CompletionConfig(shell="fish")).splitlines()
    begin = "complete -c teachonce -n '__teachonce_is extract'"
    assert f"{begin} -l codec -x -a 'float32 float16 int8 topk' " in "\n".join(lines)
    assert any(line.startswith(f"{begin} -l data -r -d ") for line in lines)
    assert any(line.startswith(f"{begin} -l no-compile -d ") for line in lines)
    assert "complete -c teachonce -n '__teachonce_is \"\"' -f -a extract " in "\n".join(lines)
    assert "            case --config --storage-options --progress" in lines
