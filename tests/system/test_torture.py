"""A short torture, so that the program of ``make torture`` keeps running. See docs/reference/reliability.md.

Kills, stops, arrays and servers that die have tests of their own (engine/, test_object_store_kills.py).
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

ROUNDS = 1
# Ray's have a cluster and kills of their own in engine/test_ray_engine.py.
KINDS_HERE = ("faults", "races", "damage", "retyped", "names", "object_store")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="compiles the shim that makes reads and writes fail")
def test_torture() -> None:
    command = [sys.executable, "-m", "tests.torture", "--rounds", str(ROUNDS), "--minutes", "8", "--seed", "1"]
    found = subprocess.run(
        [*command, "--kinds", ",".join(KINDS_HERE)], cwd=ROOT, capture_output=True, text=True, timeout=580, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr[-4000:]
    for kind in KINDS_HERE:
        assert f"| {kind} | " in found.stdout and f"| {kind} | 0 |" not in found.stdout
