"""Rounds of each kind until the time is over; a table of what was tried and what fell. See the package."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from teachonce.versions import library_versions
from tests.torture.counts import counts
from tests.torture.kinds import KINDS
from tests.torture.sandbox import Sandbox
from tests.torture.shim import SOURCE, is_loaded


def torture(
    folder: Path, kinds: Sequence[str], *, seed: int, minutes: float, rounds: int | None = None
) -> tuple[Counter[str], list[str]]:
    """How many rounds of each kind were done, and what fell, each with the seed that repeats it."""
    sandbox = Sandbox(folder)
    done: Counter[str] = Counter()
    fallen: list[str] = []
    end = time.monotonic() + 60 * minutes
    number = 0
    while time.monotonic() < end and (rounds is None or number < rounds * len(kinds)):
        kind = kinds[number % len(kinds)]
        what = KINDS[kind](sandbox, np.random.default_rng([seed, number]))
        done[kind] += 1
        if what is not None:
            fallen.append(f"{kind}, seed {seed}, round {number}: {what}")
            print(fallen[-1], file=sys.stderr, flush=True)
        number += 1
    return done, fallen


def main() -> None:
    """Torture, print the table, end with 1 where anything fell."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--rounds", type=int, help="of each kind, instead of the time alone")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    flags = parser.parse_args()
    kinds = flags.kinds.split(",")
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        if "faults" in kinds and not is_loaded():
            _start_with_shim(Path(folder))
        done, fallen = torture(
            Path(folder) / "sandbox", kinds, seed=flags.seed, minutes=flags.minutes, rounds=flags.rounds
        )
    versions = library_versions()
    lines = [
        f"Seed {flags.seed}, {time.strftime('%Y-%m-%d')}, {platform.machine()}; "
        f"python {versions['python']}, teachonce {versions['teachonce']}",
        "",
        "| kind | rounds | fell |",
        "|---|---|---|",
        *(f"| {kind} | {done[kind]} | {sum(line.startswith(f'{kind},') for line in fallen)} |" for kind in kinds),
    ]
    if counts:
        each = ", ".join(f"{count:,} x {what}" for what, count in sorted(counts.items()))
        lines += ["", f"Done to the commands: {each}."]
    table = "\n".join([*lines, *(f"- {line}" for line in fallen)]) + "\n"
    print(table)
    if flags.out is not None:
        flags.out.write_text(table)
    sys.exit(1 if fallen else 0)


def _start_with_shim(folder: Path) -> None:
    """This program again, with the shim loaded before all other libraries."""
    library = folder / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    sys.exit(
        subprocess.run([sys.executable, "-m", "tests.torture", *sys.argv[1:]], env=environment, check=False).returncode
    )


if __name__ == "__main__":
    main()
