"""A Ray cluster on loopback: a head without cores, and nodes of one core each, which can be killed and added."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

LOOPBACK = "127.0.0.1"
STARTS = 4
"""Of a node, until one succeeds."""
# Ray takes 127.0.0.1 for a name of the machine's own address, and then talks through that; but not where it is told
# that clusters are not wanted, which is what this says on every system. Read when ray is imported.
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # else a token is left in the user's home
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    "OMP_NUM_THREADS": "1",
}
DRIVER = "from teachonce.cli.main import main; main()"
DRIVER_WITHOUT_TORCH = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnxruntime", "timm"):
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Refuse())
{DRIVER}
"""
"""As on a login node, which cannot load a teacher."""


class RayCluster:
    """Nodes that are processes of this machine."""

    def __init__(self, num_nodes: int) -> None:
        from ray._private import ray_constants
        from ray.cluster_utils import Cluster

        assert not ray_constants.ENABLE_RAY_CLUSTER, "ray was imported before its environment was set"

        head = {"num_cpus": 0, "node_ip_address": LOOPBACK, "include_dashboard": False}
        self._cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.address: str = self._cluster.address
        self.nodes: list[Any] = []
        for _ in range(num_nodes):
            self.add()

    def add(self) -> None:
        """One more node."""
        self.nodes.append(_patiently(lambda: self._cluster.add_node(num_cpus=1, node_ip_address=LOOPBACK)))

    def kill(self, number: int = 0) -> None:
        """kill -9 of a node with everything that runs on it."""
        self._cluster.remove_node(self.nodes.pop(number), allow_graceful=False)

    def close(self) -> None:
        """End all nodes."""
        with suppress(Exception):
            self._cluster.shutdown()

    def start(
        self,
        *words: object,
        code: str = DRIVER,
        folder: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """A command that is led from a process of its own; its lines are in its stdout."""
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def options(self, **more: object) -> list[str]:
        """The words that choose this cluster."""
        words = ["--engine", "ray", "--address", self.address]
        return words + [word for name, value in more.items() for word in ("--" + name.replace("_", "-"), str(value))]


def _patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 s to start, which on busy cores is too short."""
    for _ in range(STARTS - 1):
        with suppress(Exception):
            return start()
    return start()


@contextmanager
def ray_cluster(num_nodes: int) -> Iterator[RayCluster]:
    """A cluster for the block."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ |= ENVIRONMENT
    cluster = None
    try:
        cluster = RayCluster(num_nodes)
        yield cluster
    finally:
        if cluster is not None:
            cluster.close()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def actor_processes() -> list[int]:
    """Process ids of the workers on the clusters of this process, whoever leads them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            process = int(path.parent.name)
            # A worker is the child of its node's raylet, and that is a child of this process.
            if path.read_bytes().startswith(b"ray::_Actor") and _parent(_parent(process)) == os.getpid():
                found.append(process)
    return found


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def finish(driver: subprocess.Popen[str], seconds: float = 180) -> tuple[int, str]:
    """(exit code, what it said)."""
    said, _ = driver.communicate(timeout=seconds)
    return driver.returncode, said
