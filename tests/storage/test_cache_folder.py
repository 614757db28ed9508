"""The cache is filled by one process of a machine at a time, and what another one filled is not made again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from teachonce.records import data_keys
from teachonce.records.data_keys import DataKeys
from teachonce.records.discovery import open_records
from teachonce.storage.cache_folder import filling_cache
from tests.support.small_data import write_shards

HOLD = """
from teachonce.storage.cache_folder import filling_cache
with filling_cache("keys"):
    print("held", flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teachonce"


def test_others_wait(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    has_entered = threading.Event()

    def enter() -> None:
        with filling_cache("keys"):
            has_entered.set()

    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with filling_cache("something else"):
            pass
        thread = threading.Thread(target=enter)
        thread.start()
        shown, deadline = "", time.monotonic() + 30
        while not shown and time.monotonic() < deadline:
            time.sleep(0.02)
            shown = capsys.readouterr().err
        assert shown.startswith(f"waiting for process {process.pid} on ")
        assert not has_entered.wait(0.3)
        process.kill()  # which sets it free too
    assert has_entered.wait(30)
    thread.join()
    assert not list(own_cache.glob(".*.lock"))


@pytest.mark.parametrize("kind", ["no home", "a file"])
def test_where_nothing_can_be_locked_nothing_is_waited_for(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "no home":
        monkeypatch.setattr("teachonce.storage.cache_folder.cache_folder", lambda: None)
    else:
        (tmp_path / "cache").write_text("")
    with filling_cache("keys"):
        pass


def test_keys_that_another_process_read_meanwhile_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_shards(tmp_path / "data")
    expected = [record.key for record in open_records(data, "train").iter_shard(0)]

    @contextmanager
    def after_another(name: str) -> Iterator[None]:
        source = open_records(data, "train")
        monkeypatch.setattr(data_keys, "filling_cache", filling_cache)
        assert len(DataKeys(source).shards) == len(source.shards)
        monkeypatch.setattr(data_keys, "run_jobs", lambda *_, **__: pytest.fail("the keys were read again"))
        yield

    monkeypatch.setattr(data_keys, "filling_cache", after_another)
    assert DataKeys(open_records(data, "train")).shards[0].tolist() == expected
