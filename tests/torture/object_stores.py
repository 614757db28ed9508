"""Torture of what lies in an object store: requests that fail, a server that is killed, commands that are.

Data, stores and runs are in a bucket; what comes out must be, byte for byte, what an undisturbed command makes on the
local disk, nothing may be left over in the bucket, and no error may reach the user.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.support.object_stores import (
    RGW,
    Gateway,
    copy_bucket,
    environment,
    fill_bucket,
    list_uploads,
    new_bucket,
)
from tests.support.object_torture import disturbed_round
from tests.torture.counts import counts
from tests.torture.sandbox import COMMANDS, Ended, Sandbox, draw

REMOTE = ("records", "extract", "merge", "import", "train")
FAULTY_SHARE = 0.2


class Service(NamedTuple):
    """A running server, and the proxy in front of it."""

    process: subprocess.Popen[str]
    direct: str
    endpoint: str

    def ask(self, line: str) -> str:
        """A line to the process, and its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


@cache
def _service() -> Service:
    command = [sys.executable, "-m", "tests.torture.object_server"]
    # Not the shim that makes this process's files fail.
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    atexit.register(process.kill)
    assert process.stdout is not None
    direct, endpoint = process.stdout.readline().split()
    return Service(process, direct, endpoint)


@cache
def _gateway() -> Gateway:
    folder = Path(tempfile.mkdtemp(prefix="torture-rgw-")) / "server"
    gateway = Gateway(folder, 20_000 + os.getpid() % 10_000)
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    atexit.register(gateway.stop)
    return gateway


def has_gateway() -> bool:
    """Whether the server that is killed is installed."""
    return shutil.which("radosgw") is not None and RGW.is_file()


def object_store(sandbox: Sandbox, rng: np.random.Generator) -> str | None:
    """503s, resets, lost answers, answers that end in the middle; some commands are killed, or twice there."""
    service = _service()
    service.ask(f"{rng.integers(1 << 30)} {FAULTY_SHARE}")
    before = Counter(json.loads(service.ask("count")))
    try:
        if rng.random() < 0.5:
            return _operations(sandbox, service, rng)
        name = draw(rng, REMOTE)
        bucket = _prepare(sandbox, service.direct, service.endpoint, name)
        how = draw(rng, ["once", "once", "killed", "twice"])
        started = [
            sandbox.start(f"s3://{bucket}", COMMANDS[name].words, number=number)
            for number in range(2 if how == "twice" else 1)
        ]
        kill_after = float(rng.uniform(0, 2 * sandbox.seconds[name])) if how == "killed" else None
        all_ended = [sandbox.wait(process, kill_after=kill_after) for process in started]
        may_refuse = how == "twice" and name == "train"  # one at a time
        if how == "killed":
            all_ended = [sandbox.run(f"s3://{bucket}", COMMANDS[name].words)]
        for ended in all_ended:
            if not (ended.is_done or (may_refuse and ended.is_refusal)):
                return f"{name} ({how}) with faults: code {ended.code}: {_brief(ended)}"
        return _compare(sandbox, service.direct, bucket, name, f"{how}, with faults")
    finally:
        counts.update(Counter(json.loads(service.ask("count"))) - before)


def gateway(sandbox: Sandbox, rng: np.random.Generator) -> str | None:
    """The server is killed in the middle of a command, and comes back."""
    server = _gateway()
    name = draw(rng, REMOTE)
    bucket = _prepare(sandbox, server.endpoint, server.endpoint, name)
    started = sandbox.start(f"s3://{bucket}", COMMANDS[name].words)
    time.sleep(float(rng.uniform(0.2, 1.5)) * sandbox.seconds[name])
    server.kill()
    counts["kill of the server"] += 1
    time.sleep(float(rng.uniform(0, 3)))
    server.restart()
    ended = sandbox.wait(started)
    if ended.is_refusal and "tried for 20 s" in ended.said:
        # It began when the server was gone, and waited as long as one does for a server that was never there.
        ended = sandbox.run(f"s3://{bucket}", COMMANDS[name].words)
    if not ended.is_done:
        return f"{name}, server killed: code {ended.code}: {_brief(ended)}"
    return _compare(sandbox, server.endpoint, bucket, name, "server killed")


def _operations(sandbox: Sandbox, service: Service, rng: np.random.Generator) -> str | None:
    """Every operation of the storage itself, in a process of its own."""
    bucket = new_bucket(service.direct)
    os.environ |= environment(service.endpoint)
    seed = int(rng.integers(1 << 30))

    def act() -> None:
        from teachonce.errors import TeachonceError
        from teachonce.storage.files import open_storage

        wrong = disturbed_round(open_storage(f"s3://{bucket}/a", TeachonceError), np.random.default_rng(seed))
        print(wrong or "", file=sys.stderr)
        sys.stderr.flush()
        os._exit(0 if wrong is None else 3)

    ended = sandbox.run(sandbox.root, (), act)
    return None if ended.code == 0 else f"operations, seed {seed}: code {ended.code}: {_brief(ended)}"


def _prepare(sandbox: Sandbox, direct: str, endpoint: str, name: str) -> str:
    """A new bucket with what a command reads, for which the environment is set."""
    bucket = new_bucket(direct)
    for part in COMMANDS[name].reads:
        fill_bucket(direct, bucket, sandbox.clean / part, part)
    os.environ |= environment(endpoint)
    return bucket


def _compare(sandbox: Sandbox, direct: str, bucket: str, name: str, what: str) -> str | None:
    folder = sandbox.root / "downloaded"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    copy_bucket(direct, bucket, folder)
    out = COMMANDS[name].out
    different = sandbox.differences(folder, name, f"s3://{bucket}")
    expected = {*COMMANDS[name].reads, out}
    strays = sorted(path.name for path in folder.iterdir() if path.name not in expected)
    left = [*strays, *list_uploads(direct, bucket), *(path.name for path in folder.rglob("*.lock"))]
    if different or left:
        return f"{name}, {what}: other than undisturbed: {different[:6]}; left over: {left[:6]}"
    return None


def _brief(ended: Ended) -> str:
    return " | ".join(ended.said.strip().splitlines()[-4:])[-600:]
