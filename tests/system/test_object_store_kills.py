"""A real S3 server that is killed in the middle of each command and comes back, and commands that are killed.

Data, stores and runs lie in a bucket. What comes out is, byte for byte, what an undisturbed command makes on the local
disk, no error is said, and nothing is left over in the bucket: no stray object, no upload that was begun.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file

from tests.support.object_stores import (
    Gateway,
    copy_bucket,
    environment,
    fill_bucket,
    list_keys,
    list_uploads,
    new_bucket,
)
from tests.support.small_data import write_image_folder
from tests.support.small_models import write_color_shards, write_color_teacher
from tests.support.warm_python import warm_python
from tests.torture.sandbox import read_tree

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("gateway")]

RUN = ["-c", "from teachonce.cli.main import main; main()"]
EXTRACT = "extract --data {}/data --teacher TEACHER --out {}/%s --device cpu --gate-samples 0 "
CENTER = EXTRACT % "fixed" + "--codec float32"


class Command(NamedTuple):
    """A command line with {} for the place of everything, what it reads, and when it is disturbed."""

    words: str
    out: str
    reads: tuple[str, ...]
    kill_at: int
    """Objects of its result that are there by then."""


COMMANDS = {
    "records": Command("records --images {}/images --out {}/records --shards 24 --num-workers 2", "records",
                       ("images",), 6),
    "extract": Command(EXTRACT % "store" + "--policy crop --views 6 --views-per-file 1", "store", ("data",), 60),
    "merge": Command("merge {}/fixed --data {}/data --out {}/merged", "merged", ("data", "fixed"), 4),
    "train": Command(
        "train --data {}/data --store {}/fixed --student timm:test_vit3 --out {}/run --size 32 --batch-size 6 "
        "--epochs 3 --lr 0.005 --device cpu --num-workers 1",
        "run",
        ("data", "fixed"),
        4,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local folder with what the commands read, and what each of them makes."""
    folder = tmp_path_factory.mktemp("undisturbed") / "place"
    write_image_folder(folder / "images", num_classes=4, per_class=30)
    write_color_shards(folder / "data", sizes=(5,) * 16)
    write_color_shards(folder / "data", sizes=(6,), split="validation", first_index=400)
    write_color_teacher(folder.parent / "teacher.onnx")
    for words in (CENTER, *(command.words for command in COMMANDS.values())):
        process = start(words, str(folder), folder, {})
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
    return folder


def start(words: str, place: str, local: Path, more: dict[str, str]) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    # Beside the place, so that a plan names it as it is in both.
    teacher = f"onnx:{local.parent / 'teacher.onnx'},size=16,resize=16"
    given = words.replace("{}", place).replace("TEACHER", teacher).split()
    # What is forked from a process that has read an object store cannot read it: workers are spawned, as a user's are.
    python = [sys.executable] if "--num-workers 2" in words else warm_python()
    return subprocess.Popen(
        [*python, *RUN, *given],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **more},
    )


def fill(gateway: Gateway, undisturbed: Path, names: Sequence[str]) -> str:
    bucket = new_bucket(gateway.endpoint)
    for name in names:
        fill_bucket(gateway.endpoint, bucket, undisturbed / name, name)
    return bucket


def start_until(command: Command, gateway: Gateway, undisturbed: Path) -> tuple[str, subprocess.Popen[str]]:
    """A bucket and the command that runs there, with so many objects of its result made and not all of them.

    Where the machine gave this process no time to look while the command ran, once more in a bucket of its own.
    """
    for _ in range(5):
        bucket = fill(gateway, undisturbed, command.reads)
        process = start(command.words, f"s3://{bucket}", undisturbed, environment(gateway.endpoint))
        while process.poll() is None:
            names = [key for key in list_keys(gateway.endpoint, bucket) if key.startswith(f"{command.out}/")]
            if len(names) >= command.kill_at and process.poll() is None:
                return bucket, process
            time.sleep(0.02)
        said = process.communicate()[1]
        assert process.returncode == 0, said
    pytest.fail(f"it ended before it was disturbed, each time: {said}")


def check(gateway: Gateway, bucket: str, undisturbed: Path, command: Command, folder: Path) -> None:
    """The result is that of an undisturbed command, and there is nothing else."""
    copy_bucket(gateway.endpoint, bucket, folder)
    found = read_tree(folder / command.out, f"s3://{bucket}")
    expected = read_tree(undisturbed / command.out, undisturbed)
    assert sorted(found) == sorted(expected)
    different = [name for name in found if found[name] != expected[name]]
    # safetensors writes its metadata in any order.
    weights = [name for name in different if name.endswith(".safetensors")]
    assert different == weights
    for name in weights:
        assert _tensors(folder / command.out / name) == _tensors(undisturbed / command.out / name)
    assert {path.name for path in folder.iterdir()} == {*command.reads, command.out}
    assert list_uploads(gateway.endpoint, bucket) == [] and list(folder.rglob("*lock*")) == []


def _tensors(path: Path) -> dict[str, bytes]:
    return {name: values.numpy().tobytes() for name, values in load_file(path).items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_server_is_killed(name: str, gateway: Gateway, undisturbed: Path, tmp_path: Path) -> None:
    command = COMMANDS[name]
    bucket, process = start_until(command, gateway, undisturbed)
    gateway.kill()
    time.sleep(2)
    gateway.restart()
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    check(gateway, bucket, undisturbed, command, tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_is_killed(name: str, gateway: Gateway, undisturbed: Path, tmp_path: Path) -> None:
    command = COMMANDS[name]
    bucket, process = start_until(command, gateway, undisturbed)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    process = start(command.words, f"s3://{bucket}", undisturbed, environment(gateway.endpoint))
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    check(gateway, bucket, undisturbed, command, tmp_path)


def test_two_extractions_into_one_store(gateway: Gateway, undisturbed: Path, tmp_path: Path) -> None:
    command = COMMANDS["extract"]
    bucket = fill(gateway, undisturbed, command.reads)
    both = [start(command.words, f"s3://{bucket}", undisturbed, environment(gateway.endpoint)) for _ in range(2)]
    for process in both:
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
    check(gateway, bucket, undisturbed, command, tmp_path)
