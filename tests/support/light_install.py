"""An installation without extras, or without some modules, in a process where they are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from teachonce.extras import EXTRAS
from tests.support.paths import ROOT

ALL_EXTRAS = tuple(module for modules in EXTRAS.values() for module in modules)

_HIDE = """
import sys

class Hiding:
    def __init__(self, finder, hidden):
        self.finder, self.hidden = finder, hidden
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder, set({hidden!r})) for finder in sys.meta_path]
"""


def run_hiding(hidden: Sequence[str], code: str, *, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, in ``folder``, where no module of ``hidden`` is to be found.

    Python itself then says that a module is missing, as where it was never installed.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    words = [sys.executable, "-c", _HIDE.format(hidden=tuple(hidden)) + code]
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment)


def teachonce_hiding(hidden: Sequence[str], *words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a teachonce command there."""
    code = f"from teachonce.cli.main import main; main({[str(word) for word in words]!r})"
    return run_hiding(hidden, code, folder=folder)
