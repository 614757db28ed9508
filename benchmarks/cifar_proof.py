"""What distillation is worth on CIFAR-10: labels, fixed logits, stored views, the teacher in the loop.

    python -m benchmarks.cifar_proof --images cifar10-jpeg.tar.xz --weights LITE0.safetensors --out proof

A teacher (EfficientNet-Lite0, fine-tuned on all 50,000 training images: 6 epochs at 64 px and 12 at 96, which takes
110 minutes on two cores; on a GPU 20 at 128) teaches ``timm:test_resnet`` on 25,000 of them for 30 epochs. The steps
are commands of teachonce, run in ``--out`` in an order in which each finished one says something; all of them resume,
so this command does too. ``--out/proof.md`` has the tables of those that are done, each with its command.
``--minutes``: begin no step after so long, and stop the one that runs.

On one GPU students share it (``--jobs``), all arms and seeds at once; seconds of training mean nothing then. On a CPU
the teacher is asked through ONNX Runtime, which is about twice as fast as PyTorch for it there, and the arms come in
turn.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from teachonce.engine.machine import num_cores
from teachonce.runs.run import Run
from teachonce.versions import library_versions

SMALL_TEACHER = (
    "train --data full --student timm:tf_efficientnet_lite0,weights={weights} --out teacher-64 --size 64 --epochs 6 "
    "--crop-scale 0.4 1 --lr 2e-3"
)
TEACHER = "train --data full --student timm:tf_efficientnet_lite0 --init teacher-64 --out teacher --crop-scale 0.6 1"
TEACHER_SIZES = {
    "cpu": "--size 96 --eval-size 112 --epochs 12 --lr 1e-3",
    "cuda": "--size 128 --eval-size 144 --epochs 20 --lr 1e-3",
}
TEACHING = (
    "--eval-crop-frac 1 --optimizer adamw --weight-decay 0.02 --warmup-epochs 0.3 --batch-size 64 --channels-last "
    "--validation-epochs 1 --checkpoint-minutes 5"
)
STUDENT = (
    "--data 25k --student timm:test_resnet --size 32 --eval-crop-frac 1 --epochs 30 --batch-size 128 --lr 0.2 "
    "--warmup-epochs 1 --weight-decay 5e-4 --channels-last --validation-epochs 10"
)
VIEWS = "extract --data 25k --teacher {teacher} --crop-scale 0.25 1 --views 10"
ARMS = f"ablate {STUDENT} --teacher {{teacher}} --out arms --crop-scale 0.25 1 --kd-temp 2 --label-weight 0"
SHUFFLED = "records --images 25k --split train --shards 25 --keep --out shuffled"
STORES = f"ablate {STUDENT} --arms ''"


WANTED_TOP1 = 0.93
"""Of the teacher, on the test images."""
MOST_SECONDS = 1e6
"""Of one command; who waits for ever cannot say so in seconds."""


class Step(NamedTuple):
    """A part of the proof: a title, and commands of which the last one's table is its result."""

    title: str
    commands: tuple[str, ...]
    out: str


def teachings(weights: Path, *, is_cpu: bool) -> list[str]:
    """The teacher's trainings: small images first, of which an epoch costs less than half."""
    workers = " --num-workers 1" if is_cpu else ""
    first, second = SMALL_TEACHER.format(weights=weights), f"{TEACHER} {TEACHER_SIZES['cpu' if is_cpu else 'cuda']}"
    return [f"{training} {TEACHING}{workers}" for training in (first, second)]


def steps(*, in_turn: bool) -> Iterator[Step]:
    """The whole proof; ``in_turn``: in an order in which each finished step says something, first all with one seed."""
    arms = "labels,center,views:10"
    parts = ("", ",online", ",views:4,views:1", ",views:30")
    for number, more in enumerate(parts, 1):
        arms += more
        if in_turn or number == len(parts):
            seeds = 1 if in_turn else 3
            yield Step(f"Arms, {seeds} seeds: {arms}", (f"{ARMS} --arms {arms} --seeds {seeds}",), "arms")
    for seeds in (1, 2) if in_turn else (2,):
        yield from _comparisons(seeds)
        if in_turn:
            yield Step(f"Arms, {seeds + 1} seeds: {arms}", (f"{ARMS} --arms {arms} --seeds {seeds + 1}",), "arms")


def _comparisons(seeds: int) -> Iterator[Step]:
    """What is asked besides: labels beside the teacher, what views are, how logits are stored."""
    view = {
        "int8": "--policy crop --codec int8",
        "randaugment": "--policy crop+randaugment",
        "mixup": "--policy crop --mixup-alpha 0.2",
        "topk5": "--policy crop --codec topk --topk 5",
        "topk2": "--policy crop --codec topk --topk 2",
    }
    extract: dict[str, tuple[str, ...]] = {
        name: (f"{VIEWS} {options} --out stores/{name}",) for name, options in view.items()
    }
    # Partners are of the same shard, and of a folder that is one class; the store serves the folder's images too.
    (mixed,) = extract["mixup"]
    extract["mixup"] = (SHUFFLED, mixed.replace("--data 25k", "--data shuffled --offset 1"))

    def compare(title: str, names: tuple[str, ...], options: str, out: str) -> Step:
        stores = ",".join(f"stores/{name}" for name in names)
        command = f"{STORES} --stores {stores} {options} --seeds {seeds} --out {out}"
        return Step(f"{title}, {seeds} seeds", (*(each for name in names for each in extract[name]), command), out)

    yield compare("KD and labels, half and half", ("int8",), "--label-weight 1 --kd-temp 2", "with-labels")
    kinds = ("int8", "randaugment", "mixup")
    yield compare("What the views are, 10 of them, T = 2", kinds, "--label-weight 0 --kd-temp 2", "policies")
    codecs = ("int8", "topk5", "topk2")
    for temperature in (4, 1):
        options = f"--label-weight 0 --kd-temp {temperature}"
        yield compare(f"Codecs at T = {temperature}, 10 views", codecs, options, f"codecs-{temperature}")


def main() -> None:
    """Run what is not done yet, and write what is; exit code 1 where a command fails, 3 where time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="tar of train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet's, of the teacher")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=0, help="students at a time; 0: one per core")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    flags = parser.parse_args()
    end = time.monotonic() + 60 * flags.minutes
    unpack(flags.images, flags.out)
    is_cpu, options = flags.device == "cpu", f"--device {flags.device}"
    for training in teachings(flags.weights.resolve(), is_cpu=is_cpu):
        run(flags.out, f"{training} {options}", end)
    result = Run(flags.out / "teacher").result
    assert result is not None, "its training has ended"
    if (top1 := result["top1"]) < WANTED_TOP1:
        print(
            f"The teacher has {top1:.1%} top-1, {WANTED_TOP1:.0%} are wanted: say so where figures are quoted.",
            flush=True,
        )
    teacher = "onnx:teacher.onnx" if is_cpu else "run:teacher"
    if is_cpu and not (flags.out / "teacher.onnx").exists():
        run(flags.out, "export-onnx teacher --out teacher.onnx", end)
    results: dict[str, str] = {}
    for step in steps(in_turn=is_cpu):
        for command in step.commands:
            run(flags.out, command.format(teacher=teacher) + more_options(command, flags), end)
        table = (flags.out / step.out / "ablation.md").read_text().strip()
        # Of the arms the last table has all that the ones before had.
        results[step.out] = f"## {step.title}\n\n{table}\n"
        (flags.out / "proof.md").write_text("\n".join([head(flags.device), *results.values()]))
        print(results[step.out], flush=True)


def more_options(command: str, flags: argparse.Namespace) -> str:
    """What the machine asks for."""
    verb = command.split()[0]
    if verb == "records":
        return ""
    more = f" --device {flags.device}"
    if verb == "ablate":
        more += f" --jobs {flags.jobs}"
    if flags.device == "cpu":
        return more
    return f"{more} --num-workers 1" if verb == "ablate" else f"{more} --batch-size 512"


def head(device: str) -> str:
    """On what it ran."""
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    return f"{platform.machine()}, {num_cores()} cores, device {device}; {versions}\n"


def unpack(images: Path, out: Path) -> None:
    """``full``: all images; ``25k``: the first 2,500 training images of each class, by name."""
    if (out / "25k").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(images) as tar:
        tar.extractall(out / "cifar", filter="data")
    for name in ("full", "25k.part"):
        (out / name).mkdir(exist_ok=True)
        (out / name / "validation").symlink_to("../cifar/test")
    (out / "full" / "train").symlink_to("../cifar/train")
    for folder in sorted((out / "cifar" / "train").iterdir()):
        (out / "25k.part" / "train" / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:2500]:
            os.link(path, out / "25k.part" / "train" / folder.name / path.name)
    (out / "25k.part").rename(out / "25k")


def run(folder: Path, command: str, end: float) -> None:
    """A command of teachonce in ``folder``; ends this program where it fails, or where time is over."""
    print(f"$ teachonce {command}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "teachonce", *shlex.split(command)], cwd=folder)
    try:
        code = process.wait(min(max(end - time.monotonic(), 0), MOST_SECONDS))
    except subprocess.TimeoutExpired:
        process.terminate()  # with a checkpoint
        process.wait()
        print(f"--minutes are over; the same command goes on. What is done: {folder / 'proof.md'}", flush=True)
        sys.exit(3)
    if code:
        sys.exit(1)


if __name__ == "__main__":
    main()
