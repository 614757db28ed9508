"""The benchmark of very large stores runs, on a small one: what finalizing asks of a file has changed before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.mark.slow
def test_every_step_runs(tmp_path: Path) -> None:
    sizes = ["--records", "1200", "--shards", "3", "--views", "4", "--views-per-file", "2"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.scale",
        *sizes,
        "--folder",
        str(tmp_path),
        "--out",
        str(tmp_path / "t.md"),
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    assert "| open and join by key" in (tmp_path / "t.md").read_text()
