"""A short torture: some rounds of each kind. The long one is ``make torture``. See docs/reference/reliability.md."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.support.paths import ROOT
from tests.torture.kinds import KINDS

ROUNDS = 1
SERVERS = ("object_store", "gateway")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="compiles the shim that makes reads and writes fail")
@pytest.mark.parametrize(
    "kinds",
    [
        [kind for kind in KINDS if kind not in ("ray", *SERVERS)],
        SERVERS,
        pytest.param(["ray"], marks=pytest.mark.alone),
    ],
    ids=["local", "servers", "ray"],
)
def test_torture(kinds: Sequence[str]) -> None:
    command = [sys.executable, "-m", "tests.torture", "--rounds", str(ROUNDS), "--minutes", "8", "--seed", "1"]
    found = subprocess.run(
        [*command, "--kinds", ",".join(kinds)], cwd=ROOT, capture_output=True, text=True, timeout=580, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr[-4000:]
    for kind in kinds:
        assert f"| {kind} | " in found.stdout and f"| {kind} | 0 |" not in found.stdout
