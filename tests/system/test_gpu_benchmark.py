"""`make gpu` tried out on a CPU: every part runs, its checks hold, and one that does not hold is the exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.report import Report, in_turn
from tests.support.paths import ROOT
from tests.support.warm_python import warm_python


@pytest.mark.slow
def test_the_tiny_version(tmp_path):
    out = tmp_path / "table.md"
    command = [*warm_python(), "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = out.read_text()
    assert "holds |" in table and "**no**" not in table and "Not in this table" not in table
    for part in ("precision", "transfers", "extraction", "training", "commands"):
        assert f"| {part} |" in table


def test_parts_are_known(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--tiny", "--only", "extracting"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and "extracting is none of precision, transfers" in capsys.readouterr().err


def test_what_does_not_hold_or_breaks_is_told(capsys):
    report = Report()
    with report.part("first"):
        report.check_at_most("a number", float("nan"), 1.0)
        report.check_at_most("another", 0.5, 1.0)
    with report.part("second"):
        raise ValueError("broken\nand more")
    assert [item.name for item in report.failed] == ["a number", "second: runs to its end"]
    assert "FAIL a number: found nan, expected at most 1" in capsys.readouterr().err
    assert "| second | second: runs to its end | ValueError: broken | no error | **no** |" in report.to_lines()


def test_rates_in_turn():
    calls = []

    def work(name: str, count: int) -> int:
        calls.append(name)
        return count

    ratio = in_turn(torch.device("cpu"), lambda: work("a", 1), lambda: work("b", 1), rounds=2)
    assert "".join(calls) == "ab" + 2 * "abba"
    assert len(ratio.ratios) == 2 and ratio.median > 0
