"""--storage-options, wherever it stands among the words of a command line."""

from __future__ import annotations

import os

import pytest

from teachonce.cli.parsing import take_storage_options
from teachonce.errors import ConfigError
from teachonce.storage.remote.settings import VARIABLE, read_settings


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
def test_words(words: str, left: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert take_storage_options(words.split()) == left.split()
    assert dict(read_settings().options) == options


def test_they_are_added_to_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "region=here 'token=with a space'")
    take_storage_options(["x", "--storage-options", "region=there", "retry_seconds=7"])
    found = read_settings()
    assert dict(found.options) == {"region": "there", "token": "with a space"} and found.retry_seconds == 7
    assert "there" in os.environ[VARIABLE], "so that workers have it"


@pytest.mark.parametrize("words", ["--storage-options", "--storage-options store a=1", "--storage-options=a"])
def test_without_a_pair(words: str) -> None:
    with pytest.raises(ConfigError, match="expected KEY=VALUE words, such as --storage-options region="):
        take_storage_options(words.split())
