"""Several commands in one process of its own, which pays for its imports once; what each of them did is told apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from subprocess import CompletedProcess
from typing import NamedTuple

_RUN = """
import json, os, sys
from pathlib import Path
from teachonce.cli.main import main
for words in {commands!r}:
    code = None
    try: main(words)
    except SystemExit as end: code = end.code
    sys.stderr.write({end!r})
    sys.stderr.flush()
    print({end!r} + json.dumps([code, sorted(map(str, Path().rglob("*")))]) + {end!r}, end="", flush=True)
"""
_END = "\n-- end of a command --\n"


class Ended(NamedTuple):
    """What a command that has ended leaves."""

    returncode: int | None
    """None where ``main`` returned, which it does not."""
    stdout: str
    stderr: str
    files: list[str]
    """All that is below the folder that it ran in, relative to that."""


def run_commands(run: Callable[[str], CompletedProcess[str]], commands: Sequence[Sequence[str]]) -> list[Ended]:
    """The commands' words, each given to ``main`` after the one before, by the code that ``run`` runs."""
    done = run(_RUN.format(commands=[list(words) for words in commands], end=_END))
    assert done.returncode == 0, done.stderr
    outputs, errors = done.stdout.split(_END)[:-1], done.stderr.split(_END)[:-1]
    ends = [json.loads(line) for line in outputs[1::2]]
    return [
        Ended(code, output, error, files)
        for (code, files), output, error, _ in zip(ends, outputs[::2], errors, commands, strict=True)
    ]
