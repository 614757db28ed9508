"""The kinds of torture: each a function of (sandbox, rng) that does one round and says what fell, or None."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from teachonce.storage.sealed_json import SEAL, sealed_bytes
from tests.support.small_data import encode_jpeg
from tests.torture.counts import counts
from tests.torture.object_stores import gateway, has_gateway, object_store
from tests.torture.sandbox import COMMANDS, NOT_BEGUN, Sandbox, draw
from tests.torture.shim import fail_after

WRITERS = ("records", "extract", "merge", "export", "import", "inspect", "train")
READERS = ("extract", "verify", "merge", "import", "inspect", "train", "evaluate")
Kind = Callable[[Sandbox, np.random.Generator], str | None]


def kills(sandbox: Sandbox, rng: np.random.Generator) -> str | None:
    """kill -9 at random moments, up to three times, then the same command to its end."""
    name = draw(rng, [*WRITERS, "verify", "evaluate"])
    folder = sandbox.folder(name)
    times = []
    for _ in range(int(rng.integers(1, 4))):
        times.append(float(rng.uniform(0, sandbox.seconds[name])))
        sandbox.wait(sandbox.start(folder, COMMANDS[name].words), kill_after=times[-1])
    return _must_finish(sandbox, folder, name, f"killed after {[round(at, 3) for at in times]} s")


def stops(sandbox: Sandbox, rng: np.random.Generator) -> str | None:
    """SIGTERM or Ctrl+C at random moments of a training, up to four times, then the same command to its end."""
    folder = sandbox.folder("train")
    sent = []
    for _ in range(int(rng.integers(1, 5))):
        number = (signal.SIGTERM, signal.SIGINT)[int(rng.integers(2))]
        after = float(rng.uniform(0, sandbox.seconds["train"]))
        sent.append(f"{number.name} at {after:.3f} s")
        ended = sandbox.wait(sandbox.start(folder, COMMANDS["train"].words), kill_after=after, number=number)
        # Before the training begins, and after it, the signals mean what they always do.
        if ended.code not in (0, 128 + number, -number, NOT_BEGUN) or "Traceback" in ended.said:
            return f"train, {', '.join(sent)}: code {ended.code}: {_brief(ended.said)}"
    return _must_finish(sandbox, folder, "train", ", ".join(sent))


def faults(sandbox: Sandbox, rng: np.random.Generator) -> str | None:
    """A full disk, or an error of the disk, from a random read or write on; then the same command without it."""
    name = draw(rng, [*WRITERS, "verify", "evaluate"])
    folder = sandbox.folder(name)
    error = draw(rng, ["ENOSPC", "EIO", "EIO on reading"])
    count = int(rng.integers(0, 40))
    ended = sandbox.run(folder, COMMANDS[name].words, lambda: fail_after(folder, count, error))
    if not (ended.is_done or ended.is_refusal):
        return f"{name} with {error} from call {count} on: code {ended.code}: {_brief(ended.said)}"
    return _must_finish(sandbox, folder, name, f"after {error} from call {count} on")


def races(sandbox: Sandbox, rng: np.random.Generator) -> str | None:
    """Two or three of the same command on one --out at once: each does its work or says why not."""
    name = draw(rng, WRITERS)
    folder = sandbox.folder(name)
    started = [sandbox.start(folder, COMMANDS[name].words, number=number) for number in range(int(rng.integers(2, 4)))]
    for ended in [sandbox.wait(process) for process in started]:
        if not (ended.is_done or ended.is_refusal):
            return f"{len(started)} x {name} at once: code {ended.code}: {_brief(ended.said)}"
    return _must_finish(sandbox, folder, name, f"after {len(started)} at once")


def array(sandbox: Sandbox, rng: np.random.Generator) -> str | None:
    """kill -9 of workers of a job array, which come again, or not; then one of them to its end."""
    name = draw(rng, ["records", "extract", "extract", "merge"])
    folder = sandbox.folder(name)
    words, count, num_killed = COMMANDS[name].words, int(rng.integers(2, 5)), 0
    for _ in range(int(rng.integers(1, 4))):
        started = [
            sandbox.start(folder, (*words, "--worker", f"{index}/{count}"), number=index) for index in range(count)
        ]
        for process in started:
            is_killed = rng.random() < 0.6
            num_killed += is_killed
            counts["kill -9 of a worker of a job array"] += is_killed
            wait_seconds = float(rng.uniform(0, sandbox.seconds[name] / count)) if is_killed else None
            ended = sandbox.wait(process, kill_after=wait_seconds)
            if not is_killed and not (ended.is_done or ended.is_refusal):
                return f"{name}, one of {count} workers: code {ended.code}: {_brief(ended.said)}"
    last = (*words, "--worker", f"{int(rng.integers(count))}/{count}")
    return _must_finish(sandbox, folder, name, f"{count} workers, {num_killed} kills", last)


def ray(sandbox: Sandbox, rng: np.random.Generator) -> str | None:
    """Kills of nodes, actors and drivers of a Ray cluster, and second drivers: see ``ray_rounds``."""
    process = _ray_rounds(sandbox.root / "ray")
    assert process.stdin is not None and process.stdout is not None
    print(int(rng.integers(2**31)), file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        return "the process of the rounds ended"
    fell, done = json.loads(answer)
    counts.update(done)
    return fell


@cache
def _ray_rounds(folder: Path) -> subprocess.Popen[str]:
    """Ends with this process, whose end of the pipe closes."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.torture.ray_rounds", str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def damage(sandbox: Sandbox, rng: np.random.Generator) -> str | None:
    """A bit, a byte or the end of any file that a command reads: the same result, or one line."""
    name = draw(rng, READERS)
    folder = sandbox.folder(name)
    path = _choose_file(folder, name, rng)
    raw = bytearray(path.read_bytes())
    how = draw(rng, ["bit", "bit", "bit", "byte", "cut", "zeros"])
    at = int(rng.integers(len(raw)))
    if how == "bit":
        raw[at] ^= 1 << int(rng.integers(8))
    elif how == "byte":
        raw[at] = int(rng.integers(256))
    elif how == "cut":
        del raw[at:]
    else:
        raw[at : at + 64] = bytes(len(raw[at : at + 64]))
    if bytes(raw) == path.read_bytes():
        return None
    path.write_bytes(raw)
    return _must_hold(sandbox, folder, name, f"{how} at {at} of {path.relative_to(folder)}")


def retyped(sandbox: Sandbox, rng: np.random.Generator) -> str | None:
    """A value of a JSON file becomes one of another type, and the file's own hash is made to fit."""
    name = draw(rng, READERS)
    folder = sandbox.folder(name)
    files = [path for path in _files(folder, name) if path.suffix == ".json"]
    if not files:
        return None
    path = files[int(rng.integers(len(files)))]
    value = json.loads(path.read_text())
    at = _retype(value, rng)
    if isinstance(value, dict) and SEAL in value:
        del value[SEAL]
        path.write_bytes(sealed_bytes(value))
    else:
        path.write_text(json.dumps(value))
    return _must_hold(sandbox, folder, name, f"{at} of {path.relative_to(folder)} retyped", is_forged=True)


def names(sandbox: Sandbox, rng: np.random.Generator) -> str | None:
    """Images and classes with names that a terminal, a CSV or a path would trip over."""
    folder = sandbox.folder("records")
    shutil.rmtree(folder / "images")
    pieces = [
        "a",
        ".",
        "-",
        "\x1b[31m",
        "\x07",
        "\n",
        '"',
        "'",
        ",",
        " ",
        "ü",
        "日",
        "%s",
        "{}",
        "*",
        "x" * 80,
        "\u202e",
        "\\",
    ]
    for _ in range(2):
        made = folder / "images" / "train" / ("c" + _name(rng, pieces))
        made.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            (made / f"n{_name(rng, pieces)}.jpg").write_bytes(encode_jpeg(int(rng.integers(10_000))))
    for words in (COMMANDS["records"].words, ("inspect", "{}/images"), ("inspect", "{}/records")):
        ended = sandbox.run(folder, words)
        if not (ended.is_done or ended.is_refusal):
            return f"hostile names: {words[0]}: code {ended.code}: {_brief(ended.said)}"
        if any(ord(char) < 32 and char not in "\n\r\t" for char in ended.said):
            return f"hostile names: {words[0]}: control characters on the terminal: {ended.said[:200]!r}"
    return None


KINDS: dict[str, Kind] = {
    kind.__name__: kind for kind in (kills, stops, faults, races, array, damage, retyped, names, object_store)
}
if has_gateway():
    KINDS["gateway"] = gateway
if importlib.util.find_spec("ray") is not None:
    KINDS["ray"] = ray


def _must_finish(
    sandbox: Sandbox, folder: Path, name: str, what: str, words: Sequence[str] | None = None
) -> str | None:
    ended = sandbox.run(folder, words or COMMANDS[name].words)
    if ended.is_refusal and not sandbox.differences(folder, name):
        return None  # it is done already, and says so
    if not ended.is_done:
        return f"{name}, {what}: the same command ends with {ended.code}: {_brief(ended.said)}"
    different = sandbox.differences(folder, name)
    return f"{name}, {what}: other than undisturbed: {different[:6]}" if different else None


def _must_hold(sandbox: Sandbox, folder: Path, name: str, what: str, *, is_forged: bool = False) -> str | None:
    ended = sandbox.run(folder, COMMANDS[name].words)
    if ended.is_refusal:
        return None
    if not ended.is_done:
        return f"{name}, {what}: code {ended.code}: {_brief(ended.said)}"
    if is_forged:
        return None  # who makes hashes fit may say other things; what counts is that nothing breaks
    out = COMMANDS[name].out
    is_result = out not in COMMANDS[name].reads
    different = sandbox.differences(folder, name) if is_result else []
    return f"{name}, {what}: accepted, with another result: {different[:6]}" if different else None


def _files(folder: Path, name: str) -> list[Path]:
    reads = COMMANDS[name].reads
    return sorted(path for part in reads for path in (folder / part).rglob("*") if path.is_file())


def _choose_file(folder: Path, name: str, rng: np.random.Generator) -> Path:
    files = [path for path in _files(folder, name) if path.stat().st_size]
    return files[int(rng.integers(len(files)))]


def _retype(value: Any, rng: np.random.Generator, path: str = "") -> str:
    others = [None, True, -1, 2**70, 1e308, "", "x", [], {}, [[]], {"a": 1}, "../../x", 0.5]
    while isinstance(value, dict | list) and value:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(rng.integers(len(keys)))]
        path += f".{key}"
        if not isinstance(value[key], dict | list) or not value[key] or rng.random() < 0.3:
            value[key] = others[int(rng.integers(len(others)))]
            return path
        value = value[key]
    return path


def _name(rng: np.random.Generator, pieces: list[str]) -> str:
    name = "".join(draw(rng, pieces) for _ in range(int(rng.integers(1, 6))))
    return name.encode()[:200].decode(errors="ignore").replace("/", "").replace("\0", "")


def _brief(said: str) -> str:
    return " | ".join(said.strip().splitlines()[-4:])[-600:]
