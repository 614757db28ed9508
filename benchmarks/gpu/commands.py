"""The real commands on the device, with handwritten digits: what they give there, and that they agree with the CPU."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import shlex
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.report import Report, no_waiting
from benchmarks.gpu.setting import Setting
from teachonce.cli.demo import write_digits
from teachonce.cli.main import COMMANDS, parse_command
from teachonce.errors import TeachonceError
from teachonce.runs.metrics import read_metrics
from teachonce.training.student_module import StudentModule

DATA = "--crop-scale 0.6 1 --flip-prob 0"
TRAINING = "--offset 1 --eval-crop-frac 1 --batch-size 60 --warmup-epochs 1 --num-workers 2"
NUM_VALIDATION = 597
"""Digits of the validation split."""
LEAST_TOP1 = 0.8
"""Of a small student after a few epochs; a tenth of the digits are right by chance."""
SAME_TOP1 = 2 / NUM_VALIDATION + 1e-9
"""Two digits whose two likeliest classes are as likely within rounding."""
LEAST_CURVE_TOLERANCE = 1e-3


def check_commands(setting: Setting, report: Report) -> None:
    """Teacher, stores, verdicts, students with every option of a GPU, evaluation and export."""
    folder, device = setting.folder / "digits", setting.device_name
    write_digits(folder / "images")
    for split in ("train", "validation"):
        run(f"records --images {folder}/images --out {folder}/records --split {split} --shards 2")
    data, teacher, store = f"--data {folder}/records", f"run:{folder}/teacher", folder / "store"
    common = f"{data} {TRAINING} --size {size_px(setting)} --device {device}"
    learner = "timm:test_resnet --epochs 4 --lr 0.1" if setting.is_tiny else "timm:resnet10t --epochs 8 --lr 0.05"
    top1 = run(f"train {common} {DATA} --student {learner} --out {folder}/teacher")["top1"]
    report.check("train: a teacher's top-1", f"{top1:.3f}", "at least 0.9", top1 >= 0.9)
    extract = f"extract {data} --teacher {teacher} --device {device} {DATA} --policy crop --views 3 --expect-top1 0.9"
    compiled = "" if setting.is_tiny else "--compile"
    report.check("extract", run(f"{extract} {compiled} --out {store}"), "True", True)
    run(f"{extract} --num-workers 2 --codec topk --out {folder}/store-two")
    for name in (store, folder / "store-two"):
        for place in dict.fromkeys((device, "cpu")):
            verdict = run(f"verify {name} {data} --device {place}")
            report.check(f"verify {name.name} on {place}", verdict.reason, "sound", verdict.is_sound)
    _check_students(setting, report, common, store, teacher)
    with _going_on(report, "evaluate and export"):
        _check_student_elsewhere(setting, report, data, folder / "student-float32")
    with _going_on(report, "plan"):
        text = run(f"plan {data} --teacher {teacher} --device {device} --samples 64")
        report.check("plan: its device", device in str(text), "named", device in str(text))


def size_px(setting: Setting) -> int:
    """Of the students' images."""
    return 16 if setting.is_tiny else 32


def check_compiled(setting: Setting, report: Report) -> None:
    """Students with ``--compile``, of the data and the store of ``check_commands``; on a GPU alone."""
    folder = setting.folder / "digits"
    if setting.device.type != "cuda":
        return
    if not (folder / "store" / "plan.json").exists():
        report.check("compiled students: data and store of the part commands", "none", "there", False)
        return
    common = f"--data {folder}/records {TRAINING} --size {size_px(setting)} --device {setting.device_name}"
    _check_compiled_students(setting, report, common, folder / "store")


def _check_students(setting: Setting, report: Report, common: str, store: Path, teacher: str) -> None:
    folder, epochs = store.parent, 3 if setting.is_tiny else 5
    train = f"train {common} --student timm:test_resnet --lr 0.1"
    is_cuda = setting.device.type == "cuda"
    # Most CPUs have no units for bf16: minutes for what is tried in seconds.
    bf16 = "--precision bf16" if is_cuda else ""
    variants = {
        "float32": f"--store {store}",
        "bf16, channels-last, moving average": f"--store {store} {bf16} --channels-last --ema-decay 0.9",
        "online teacher, bf16": f"--teacher {teacher} {bf16} {DATA}",
        "two stores averaged, bf16": f"--store {store} --store {store}-two {bf16}",
    }
    if is_cuda:
        variants |= {
            "fp16, clipped": f"--store {store} --precision fp16 --clip-norm 1",
            "labels, mixup": f"--precision bf16 --mixup-alpha 0.1 --mixup-type 2 {DATA}",
        }
    for name, options in variants.items():
        _check_student(setting, report, name, f"{train} --epochs {epochs} {options}", folder)
    with _going_on(report, "resuming"):
        _check_resuming(
            report, f"{train} --validation-split none --store {store}", folder, 2 if setting.is_tiny else epochs
        )


def _check_student(setting: Setting, report: Report, name: str, line: str, folder: Path) -> None:
    with _going_on(report, f"train, {name}: no forward and loss waiting for the device"):
        with _steps_without_waiting(setting.device):
            result = run(f"{line} --out {folder}/student-{name.replace(', ', '-').replace(' ', '-')}")
        expected = f"at least {LEAST_TOP1}, no forward and loss waiting for the device"
        report.check(f"train, {name}: top-1", f"{result['top1']:.3f}", expected, result["top1"] >= LEAST_TOP1)


@contextlib.contextmanager
def _going_on(report: Report, name: str) -> Iterator[None]:
    """An error within the block is a check that does not hold; what comes behind it is worth its lines."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        found = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        report.check(f"{name}: runs to its end", found, "no error", False)


def _check_resuming(report: Report, train: str, folder: Path, epochs: int) -> None:
    """A curve that was interrupted against one that was not, and two that were not against each other."""
    curves = {}
    for name in ("whole", "whole again", "interrupted"):
        line = f"{train} --epochs {epochs} --out {folder}/curve-{name.replace(' ', '-')}"
        if name == "interrupted":
            with contextlib.suppress(_Interrupted), _interrupted_before(epochs - 1):
                run(line)
        run(line)
        rows = read_metrics(folder / f"curve-{name.replace(' ', '-')}")
        curves[name] = [float(row["train_loss"] or math.nan) for row in rows]
    noise = _largest_difference(curves["whole"], curves["whole again"])
    found = _largest_difference(curves["whole"], curves["interrupted"])
    report.measure("losses of two equal trainings: largest relative difference", f"{noise:.1e}")
    report.check_at_most("losses of an interrupted training, resumed", found, max(10 * noise, LEAST_CURVE_TOLERANCE))
    report.check("its epochs", len(curves["interrupted"]), str(epochs), len(curves["interrupted"]) == epochs)


def _check_compiled_students(setting: Setting, report: Report, common: str, store: Path) -> None:
    """A small student, and the walkthrough's backbone, inside which something is scheduled at every step."""
    from torch._dynamo.utils import counters

    # Not at 32 px or less, where the last maps are of one pixel: such have two memory formats at once.
    common, folder = common.replace(f"--size {size_px(setting)}", "--size 64"), store.parent
    options = "--precision bf16 --compile --channels-last --in-memory --lr 0.1 --epochs 5"
    line = f"train {common} --student timm:test_resnet --store {store} {options}"
    _check_student(setting, report, "bf16, compiled, in memory", line, folder)
    counters.clear()
    line = f"train {common} --student timm:assemble_resnet50 --precision bf16 --channels-last --compile {DATA}"
    line = f"{line} --epochs 2 --validation-split none --lr 0.01"
    result = run(f"{line} --out {folder}/assembled")
    finite = math.isfinite(result["train_loss"])
    report.check("train, assemble_resnet50, compiled: loss", f"{result['train_loss']:.3f}", "finite", finite)
    graphs = counters["stats"]["unique_graphs"]
    report.check("its graphs, one for each batch size", graphs, "at most 2", 1 <= graphs <= 2)


def _check_student_elsewhere(setting: Setting, report: Report, data: str, student: Path) -> None:
    """The same student there and on the CPU, as a run and as ONNX."""
    split = f"{data} --split validation"
    scores = {
        place: run(f"evaluate {split} --model run:{student} --device {place}")["top1"]
        for place in (setting.device_name, "cpu")
    }
    run(f"export-onnx {student} --out {student}/student.onnx")
    run(f"export-weights {student} --out {student}/exported.safetensors")
    scores["ONNX, auto"] = run(f"evaluate {split} --model onnx:{student}/student.onnx --device auto")["top1"]
    for name, top1 in scores.items():
        difference = abs(top1 - scores["cpu"])
        report.check(
            f"evaluate, {name}: top-1 against the CPU's", f"{top1:.4f}", f"{scores['cpu']:.4f}", difference <= SAME_TOP1
        )


def run(line: str) -> Any:
    """What a command's program returns; its own lines are kept to itself."""
    print(f"     $ teachonce {line}", flush=True)
    # As in a process of its own: what other models of one architecture have been compiled for is forgotten.
    torch._dynamo.reset()
    config = parse_command(shlex.split(line))
    program = next(item.program for item in COMMANDS.values() if type(config) is item.options)
    module, _, function = program.partition(":")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return getattr(importlib.import_module(f"teachonce.{module}"), function)(config)


@contextlib.contextmanager
def _steps_without_waiting(device: torch.device) -> Iterator[None]:
    """Training steps raise where they would wait for the device."""
    step = StudentModule.training_step

    def checked(self: StudentModule, batch: Any, batch_index: int) -> Any:
        # What is made at the first step (compiled code, tables of libraries) may wait.
        if batch_index < 2:
            return step(self, batch, batch_index)
        with no_waiting(device):
            return step(self, batch, batch_index)

    with mock.patch.object(StudentModule, "training_step", checked):
        yield


class _Interrupted(TeachonceError):
    """Of our own making."""


@contextlib.contextmanager
def _interrupted_before(epoch: int) -> Iterator[None]:
    begin: Callable[[StudentModule], None] = StudentModule.on_train_epoch_start

    def interrupt(self: StudentModule) -> None:
        if self.current_epoch == epoch:
            raise _Interrupted("interrupted")
        begin(self)

    with mock.patch.object(StudentModule, "on_train_epoch_start", interrupt):
        yield


def _largest_difference(a: list[float], b: list[float]) -> float:
    return max((abs(x - y) / abs(x) for x, y in zip(a, b, strict=True)), default=math.nan)
