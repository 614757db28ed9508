"""Rounds of torture on a Ray cluster, in a process of their own: Ray's threads would not survive the sandbox's forks.

    python -m tests.torture.ray_rounds FOLDER

Reads a seed a line, does a round, and answers with a line of JSON: what fell, or null, and what was done how often.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

from tests.support.kills import everything
from tests.support.ray_cluster import RayCluster, actor_processes, finish, ray_cluster
from tests.support.small_models import write_color_shards, write_color_teacher

NUM_NODES = 2
DISTURBANCES = ("node", "actor", "actor, asked to stop", "driver", "driver, asked to stop", "two drivers")


class Rounds:
    """A cluster, an extraction of many small units, and its undisturbed store."""

    def __init__(self, folder: Path, cluster: RayCluster) -> None:
        self.cluster, self.out = cluster, folder / "store"
        self.done: Counter[str] = Counter()
        data, teacher = write_color_shards(folder / "data", sizes=(8,) * 12), write_color_teacher(folder / "t.onnx")
        self.words = ["extract", "--data", str(data), "--teacher", teacher, "--device", "cpu", "--gate-samples", "0"]
        self.words += ["--policy", "crop", "--views", "8", "--views-per-file", "4", "--batch-size", "1"]
        code, said = finish(cluster.start(*self.words, "--out", folder / "clean"))
        assert code == 0, said
        self.expected = everything(folder / "clean")

    def round(self, rng: np.random.Generator) -> str | None:
        """One to three disturbances at random moments, then the same command where the first was ended by one."""
        shutil.rmtree(self.out, ignore_errors=True)
        drivers, done = [self._start(rng)], []
        for _ in range(int(rng.integers(1, 4))):
            time.sleep(float(rng.uniform(0, 6)))
            done.append(DISTURBANCES[int(rng.integers(len(DISTURBANCES)))])
            self._disturb(done[-1], drivers, rng)
        what = f"{', '.join(done)} of {len(drivers)} drivers"
        for driver in drivers:
            code, said = finish(driver)
            if code not in (0, 143, -signal.SIGKILL, -signal.SIGTERM) or "Traceback" in said:
                return f"{what}: code {code}: {said[-600:]}"
        _wait_for_actors()  # those of a killed driver end a moment after it
        code, said = finish(self._start(rng))
        if code != 0 or "Traceback" in said:
            return f"{what}: the same command again: code {code}: {said[-600:]}"
        found = everything(self.out)
        different = sorted(name for name in found | self.expected if found.get(name) != self.expected.get(name))
        return f"{what}: other than undisturbed: {different[:6]}" if different else None

    def _start(self, rng: np.random.Generator) -> subprocess.Popen[str]:
        options = self.cluster.options(num_workers=int(rng.integers(1, NUM_NODES + 1)))
        return self.cluster.start(*self.words, "--out", self.out, *options)

    def _disturb(self, how: str, drivers: list[subprocess.Popen[str]], rng: np.random.Generator) -> None:
        if how == "node":
            self.done["kill -9 of a node"] += 1
            self.cluster.kill(int(rng.integers(NUM_NODES)))
            self.cluster.add()
        elif how.startswith("actor"):
            for process in actor_processes()[: int(rng.integers(1, NUM_NODES + 1))]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL if how == "actor" else signal.SIGTERM)
                    self.done[f"{'kill -9 of' if how == 'actor' else 'SIGTERM to'} an actor"] += 1
        elif how == "two drivers":
            self.done["a second driver"] += 1
            drivers.append(self._start(rng))
        elif drivers[-1].poll() is None:
            self.done[f"{'kill -9 of' if how == 'driver' else 'SIGTERM to'} a driver"] += 1
            drivers[-1].send_signal(signal.SIGKILL if how == "driver" else signal.SIGTERM)


def _wait_for_actors() -> None:
    end = time.monotonic() + 60
    while actor_processes():
        assert time.monotonic() < end, "actors of ended drivers live on"
        time.sleep(0.1)


def main() -> None:
    """Rounds until the input ends."""
    with ray_cluster(NUM_NODES) as cluster:
        rounds = Rounds(Path(sys.argv[1]), cluster)
        for line in sys.stdin:
            rounds.done.clear()
            print(json.dumps([rounds.round(np.random.default_rng(int(line))), rounds.done]), flush=True)


if __name__ == "__main__":
    main()
