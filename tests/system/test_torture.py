"""A short torture: some rounds of each kind. The long one is ``make torture``. See docs/reference/reliability.md."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.torture.kinds import KINDS

ROUNDS = 4


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.skipif(shutil.which("cc") is None, reason="compiles the shim that makes reads and writes fail")
def test_torture(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.torture", "--rounds", str(ROUNDS), "--minutes", "12", "--seed", "1"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert found.returncode == 0, found.stdout + found.stderr[-4000:]
    for kind in KINDS:
        assert f"| {kind} | " in found.stdout and f"| {kind} | 0 |" not in found.stdout
