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
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout.split()


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
    begin = "complete -c teachonce -n '__fish_seen_subcommand_from extract'"
    assert f"{begin} -l codec -x -a 'float32 float16 int8 topk' " in "\n".join(lines)
    assert any(line.startswith(f"{begin} -l data -r -d ") for line in lines)
    assert any(line.startswith(f"{begin} -l no-compile -d ") for line in lines)
