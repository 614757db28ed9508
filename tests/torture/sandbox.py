"""Commands on tiny data in a folder of their own: forked from one process that has imported everything already.

A command is forked, not started: that takes a hundredth of a second instead of five, so thousands of rounds are
possible.
The parent imports modules and never computes with them, since threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.support.small_data import write_image_folder
from tests.support.small_models import write_color_shards, write_color_teacher

TRAIN = ("--student", "timm:test_vit3", "--size", "32", "--batch-size", "6", "--epochs", "2", "--device", "cpu")
TRAIN += ("--checkpoint-minutes", "0.000001")  # a checkpoint after each update
NOT_BEGUN = 99
"""The exit code where a signal, or a mistake of ours, came before the command."""
VOLATILE = ("seconds", "images_per_second", "store", "out", "data", "validation_data")
"""Of result.json, config.json and metrics.csv: time, and places."""


class Command(NamedTuple):
    """A command line with {} for the round's folder, the folder that it makes, and the ones that it reads."""

    words: tuple[str, ...]
    out: str
    reads: tuple[str, ...]


EXTRACT = ("--teacher", "{teacher}", "--device", "cpu", "--gate-samples", "0")
CROPS = ("--policy", "crop", "--views", "4", "--views-per-file", "2")

COMMANDS = {
    "records": Command(
        ("records", "--images", "{}/images", "--out", "{}/records", "--shards", "3"), "records", ("images",)
    ),
    "extract": Command(
        ("extract", "--data", "{}/data", "--out", "{}/store", *EXTRACT, *CROPS),
        "store",
        ("data",),
    ),
    "verify": Command(
        ("verify", "{}/store", "--data", "{}/data", "--samples", "8", "--device", "cpu"), "store", ("data", "store")
    ),
    "merge": Command(("merge", "{}/fixed", "--data", "{}/data", "--out", "{}/merged"), "merged", ("data", "fixed")),
    "export": Command(("export-logits", "{}/fixed", "--format", "csv", "--out", "{}/csv"), "csv", ("fixed",)),
    "import": Command(("import", "{}/csv", "--data", "{}/data", "--out", "{}/imported"), "imported", ("csv", "data")),
    "inspect": Command(
        ("inspect", "{}/store", "--html", "--data", "{}/data", "--out", "{}/page/p.html"), "page", ("store", "data")
    ),
    "train": Command(
        ("train", "--data", "{}/data", "--store", "{}/store", "--out", "{}/run", *TRAIN), "run", ("data", "store")
    ),
    "evaluate": Command(
        ("evaluate", "--data", "{}/data", "--model", "run:{}/run", "--device", "cpu"), "run", ("data", "run")
    ),
}
FIXED = ("extract", "--data", "{}/data", "--out", "{}/fixed", *EXTRACT, "--codec", "float32")
"""A store of center views, for the commands that want one."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal), and what it said."""

    code: int
    said: str

    @property
    def is_refusal(self) -> bool:
        """One line and code 1 or 2; warnings and progress may stand before it."""
        return self.code in (1, 2) and "Traceback" not in self.said and bool(self.said.strip())

    @property
    def is_done(self) -> bool:
        """Whether it did its work."""
        return self.code == 0 and "Traceback" not in self.said


class Sandbox:
    """The undisturbed results of all commands, and folders for disturbed ones."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clean = root / "clean"
        self.temporary = root / "tmp"
        self.temporary.mkdir(parents=True)
        os.environ |= {"XDG_CACHE_HOME": str(root / "cache"), "TMPDIR": str(self.temporary), "COLUMNS": "200"}
        write_image_folder(self.clean / "images", num_classes=3, per_class=4)
        write_color_shards(self.clean / "data", sizes=(7, 5))
        write_color_shards(self.clean / "data", sizes=(6,), split="validation", first_index=90)
        self.teacher = write_color_teacher(root / "teacher.onnx")
        _import_everything()
        self.seconds: dict[str, float] = {}
        self._must(self.run(self.clean, FIXED))
        for name, command in COMMANDS.items():
            begin = time.perf_counter()
            self._must(self.run(self.clean, command.words))
            self.seconds[name] = time.perf_counter() - begin

    def folder(self, name: str, *, with_result: bool = False) -> Path:
        """A fresh folder with what a command reads, and with its result if asked for."""
        path = self.root / "round"
        shutil.rmtree(path, ignore_errors=True)
        command = COMMANDS[name]
        for part in {*command.reads, *((command.out,) if with_result else ())}:
            shutil.copytree(self.clean / part, path / part)
        return path

    def run(self, folder: Path | str, words: Sequence[str], prepare: Callable[[], None] | None = None) -> Ended:
        """A command to its end."""
        return self.wait(self.start(folder, words, prepare))

    def start(
        self, folder: Path | str, words: Sequence[str], prepare: Callable[[], None] | None = None, number: int = 0
    ) -> tuple[int, Path]:
        """A command in a process of its own: (pid, the file that takes its stderr)."""
        said = self.root / f"stderr-{number}"
        process = os.fork()
        if process:
            return process, said
        code = NOT_BEGUN
        with contextlib.suppress(BaseException):
            code = self._become(folder, words, prepare, said)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

    def wait(
        self, started: tuple[int, Path], *, kill_after: float | None = None, number: int = signal.SIGKILL
    ) -> Ended:
        """Until it has ended, or was killed by a signal."""
        process, said = started
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        _, status = os.waitpid(process, 0)
        return Ended(os.waitstatus_to_exitcode(status), said.read_text(errors="replace") if said.exists() else "")

    def differences(self, folder: Path, name: str, root: str | None = None) -> list[str]:
        """Files of a command's result that are not those of an undisturbed run, and what of ours is left behind.

        ``root``: where the result was made, if not in ``folder``.
        """
        out = COMMANDS[name].out
        found, expected = read_tree(folder / out, root or folder), read_tree(self.clean / out, self.clean)
        left = [path.name for path in (*folder.rglob(".tmp-*"), *self.temporary.glob("teachonce-*"))]
        return sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path)) + left

    def _become(self, folder: Path | str, words: Sequence[str], prepare: Callable[[], None] | None, said: Path) -> int:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.dup2(descriptor, 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        if prepare is not None:
            prepare()
        from teachonce.cli.main import main

        warnings.resetwarnings()
        given = [word.replace("{}", str(folder)).replace("{teacher}", self.teacher) for word in words]
        try:
            main(given)
        except SystemExit as end:
            sys.stderr.flush()
            return int(end.code or 0) if not isinstance(end.code, str) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            return 98
        return 97

    @staticmethod
    def _must(ended: Ended) -> None:
        if not ended.is_done:
            raise SystemExit(f"an undisturbed command ended with {ended.code}: {ended.said}")


def read_tree(out: Path, root: Path | str) -> dict[str, object]:
    """Every file's content by its path, without what differs between two undisturbed runs in two places."""
    found: dict[str, object] = {}
    for path in sorted(item for item in out.rglob("*") if item.is_file()):
        name = str(path.relative_to(out))
        if name.startswith(("tensorboard", "checkpoints")) or name in ("report.html", "run.lock"):
            continue
        if path.name in ("config.json", "result.json", "metrics.csv"):
            found[name] = _stable_text(path)
        else:
            found[name] = path.read_bytes().replace(str(root).encode(), b"ROOT")
    return found


def _stable_text(path: Path) -> object:
    if path.suffix == ".json":
        return {key: value for key, value in json.loads(path.read_text()).items() if key not in VOLATILE}
    lines = [line.split(",") for line in path.read_text().splitlines()]
    kept = [index for index, name in enumerate(lines[0]) if name not in VOLATILE]
    return [[line[index] for index in kept] for line in lines]


def _import_everything() -> None:
    import importlib

    for module in ("training.train", "extraction.extract", "extraction.verify", "interop.convert", "interop.merge"):
        importlib.import_module(f"teachonce.{module}")
    for module in ("interop.csv_files", "inspection.inspect", "evaluation.evaluate", "cli.export", "cli.main"):
        importlib.import_module(f"teachonce.{module}")
    for module in ("lightning", "timm", "onnxruntime", "torchvision", "PIL.Image", "matplotlib"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def draw(rng: np.random.Generator, names: Sequence[str]) -> str:
    """One of several."""
    return names[int(rng.integers(len(names)))]
