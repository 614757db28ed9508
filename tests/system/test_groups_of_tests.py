"""Tests of one group run in one process: else each process starts each server, twice and at once, and none says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FILE = """
import os, pathlib, pytest

@pytest.mark.parametrize("number", range(8))
@pytest.mark.xdist_group("server")
def test_it(number):
    pathlib.Path(__file__).with_name(f"{number}.worker").write_text(os.environ["PYTEST_XDIST_WORKER"])
"""


def test_xdist_and_pytest_agree_on_groups(tmp_path: Path) -> None:
    (tmp_path / "test_group.py").write_text(FILE)
    options = [
        "-n",
        "2",
        "--dist",
        "loadgroup",
        "--rootdir",
        str(tmp_path),
        "-c",
        "/dev/null",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "ignore", *options, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    workers = [path.read_text() for path in tmp_path.glob("*.worker")]
    assert len(workers) == 8 and len(set(workers)) == 1
