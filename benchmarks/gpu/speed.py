"""Extraction against the teacher's bare forward, and training with and without distillation and each of its options."""

from __future__ import annotations

import contextlib
import gc
import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.report import Report, in_turn, synchronize
from benchmarks.gpu.setting import Setting
from benchmarks.kd import synthetic_logits
from teachonce.codecs.dense import Int8Codec
from teachonce.engine.machine import num_cores
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extractor import UnitExtractor
from teachonce.extraction.prepare import build_plan
from teachonce.extraction.units import all_units, bundle_units
from teachonce.losses.losses import kd_loss, label_loss
from teachonce.models.classifier import build_student, load_model
from teachonce.models.options import Precision
from teachonce.models.pending import PendingLogits
from teachonce.pixels.preprocessing import Preprocessing, normalize
from teachonce.records.discovery import open_records
from teachonce.runs.metrics import read_metrics
from teachonce.store.begin import begin_store
from teachonce.store.store import Store
from teachonce.training.config import TrainConfig
from teachonce.training.train import train

NUM_CLASSES = 1000
NUM_VIEWS = 4
MANY_IMAGES = 4096
"""So many that filling and emptying the pipeline, which happens once, counts for little."""
TEMPERATURE = 1.0


def measure_extraction(setting: Setting, report: Report) -> None:
    """A whole extraction's images/s over those of the teacher alone, which is asked for random pixels."""
    name = "timm:test_vit" if setting.is_tiny else "timm:vit_large_patch16_224"
    spec = setting.random_teacher(name)
    setting = setting.with_images("extraction", MANY_IMAGES)
    for precision, policy, part in (("float32", "center", 8), ("bf16", "center", 1), ("bf16", "crop", NUM_VIEWS)):
        _measure_extraction(setting, report, spec, precision, policy, 1 if setting.is_tiny else part)  # type: ignore[arg-type]
        _forget(setting)


def _measure_extraction(
    setting: Setting, report: Report, spec: str, precision: Precision, policy: str, part: int
) -> None:
    """Of the data set's shards the ``part``-th part, so that each round takes about as long."""
    model = load_model(spec, device=setting.device, precision=precision)
    source = open_records(setting.data, "train")
    views = NUM_VIEWS if policy == "crop" else 1
    numbers = iter(range(10_000))
    size_px = model.preprocessing.size_px
    pixels = torch.randint(0, 256, (setting.batch_size, size_px, size_px, 3), dtype=torch.uint8)
    if setting.device.type == "cuda":
        pixels = pixels.pin_memory()
    units = len(source.shards) // part
    num_views = sum(shard.num_records for shard in source.shards[:units]) * views
    profile = io.StringIO()

    def whole() -> int:
        """As a process does it that has loaded its teacher: read, decode, ask, encode and write some units."""
        out = setting.folder / f"speed-{precision}-{policy}-{next(numbers)}"
        config = ExtractConfig(
            data=setting.data,
            teacher=spec,
            out=out,
            device=setting.device_name,
            precision=precision,
            **({"policy": "crop", "views": views} if policy == "crop" else {}),  # type: ignore[arg-type]
        )
        plan = begin_store(out, build_plan(config, source, model), config.views_per_file)
        extractor = UnitExtractor(out, plan, source, model, setting.batch_size, num_cores(), None, True)
        with contextlib.redirect_stderr(profile):
            for bundle in bundle_units(plan, all_units(plan)[:units], setting.batch_size):
                extractor(bundle)
        return num_views

    def bare() -> int:
        pending = None
        num_batches = max(1, num_views // setting.batch_size)
        for _ in range(num_batches):
            asked = PendingLogits(model.logits(pixels))
            if pending is not None:
                pending.wait()
            pending = asked
        assert pending is not None
        pending.wait()
        return num_batches * setting.batch_size

    ratio = in_turn(setting.device, whole, bare, min(setting.rounds, 2))
    seconds = re.findall(r"seconds: (.*) \(look", profile.getvalue())
    report.measure(
        f"{spec.partition(',')[0]}, {precision}, {policy}{f', {views} views' if views > 1 else ''}: extraction / "
        f"bare forward, {num_cores()} cores",
        f"{ratio}; {ratio.rate:,.0f} and {ratio.other_rate:,.0f} views/s; last bundle, seconds: {seconds[-1]}",
    )


class Steps:
    """Training steps of one student on one batch that lies on the device, with distillation or without."""

    def __init__(
        self,
        setting: Setting,
        student: str,
        *,
        precision: Precision = "bf16",
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        self.device = setting.device
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.channels_last = channels_last
        count, size_px = setting.batch_size, setting.size_px
        torch.manual_seed(0)
        self.student: torch.nn.Module = build_student(student, NUM_CLASSES, size_px=size_px).to(self.device)
        if channels_last:
            self.student.to(memory_format=torch.channels_last)
        if compile:
            torch._dynamo.reset()  # what other models of this architecture were compiled for is forgotten
            self.student.compile(dynamic=False)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=1e-4, momentum=0.9)
        self.codec = Int8Codec()
        columns = self.codec.encode_logits(synthetic_logits(count))
        host = {name: torch.from_numpy(values) for name, values in columns.items()}
        pixels = torch.randint(0, 256, (count, size_px, size_px, 3), dtype=torch.uint8)
        is_cuda = self.device.type == "cuda"
        self.columns = {name: values.pin_memory() if is_cuda else values for name, values in host.items()}
        self.pixels = pixels.pin_memory() if is_cuda else pixels
        self.labels = torch.randint(NUM_CLASSES, (count,), device=self.device)
        self.preprocessing = Preprocessing(size_px=size_px, resize_px=size_px)
        self.num_steps = 1 if setting.is_tiny else 10

    def __call__(self, with_kd: bool) -> int:
        """Some steps; the images that they took. Pixels and stored logits come from the host each time."""
        for _ in range(self.num_steps):
            images = normalize(self.pixels.to(self.device, non_blocking=True), self.preprocessing)
            if self.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                logits = self.student(images)
                loss = label_loss(logits, self.labels)
                if with_kd:
                    columns = {name: values.to(self.device, non_blocking=True) for name, values in self.columns.items()}
                    loss = loss + kd_loss(logits, self.codec.decode_tensor(columns, TEMPERATURE), TEMPERATURE)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return self.num_steps * len(self.labels)


def measure_steps(setting: Setting, report: Report) -> None:
    """Steps with KD over steps with labels alone; then what each option brings."""
    torch.backends.cudnn.benchmark = True
    students = ["timm:test_resnet"] if setting.is_tiny else ["timm:resnet50", "timm:assemble_resnet50"]
    for student in students:
        steps = Steps(setting, student)
        ratio = in_turn(setting.device, partial(steps, True), partial(steps, False), setting.rounds, warm_up=2)
        report.measure(
            f"{student}, bf16, channels-last, batch {setting.batch_size}: steps with KD / labels alone",
            f"{ratio}; {ratio.rate:,.0f} and {ratio.other_rate:,.0f} images/s",
        )
        del steps
        _forget(setting)
    base: dict[str, Any] = {"precision": "bf16", "channels_last": True, "compile": False}
    changes: list[tuple[str, dict[str, Any]]] = [
        ("bf16 / float32 (PyTorch's own: convolutions in TF32)", {"precision": "float32"}),
        ("channels-last / not", {"channels_last": False}),
        ("not compiled / compiled", {"compile": True}),
    ]
    for name, change in changes:
        if setting.is_tiny and "compile" in change:
            continue
        both = Steps(setting, students[0], **base), Steps(setting, students[0], **{**base, **change})
        works: list[Callable[[], int]] = [partial(steps, True) for steps in both]
        ratio = in_turn(setting.device, works[0], works[1], min(setting.rounds, 3), warm_up=2)
        report.measure(
            f"{students[0]}, steps with KD: {name}",
            f"{ratio}; {ratio.rate:,.0f} and {ratio.other_rate:,.0f} images/s",
        )
        del both, works
        _forget(setting)
    torch.backends.cudnn.benchmark = False


def measure_training(setting: Setting, report: Report, store: Store) -> None:
    """The real trainer from JPEGs on disk, with a store and without, in turn."""
    student = "timm:test_resnet" if setting.is_tiny else "timm:resnet50"
    numbers = iter(range(100))
    found: dict[bool, list[float]] = {True: [], False: []}
    for with_kd in (True, False, False, True):
        config = TrainConfig(
            data=setting.data,
            student=student,
            out=setting.folder / f"training-{next(numbers)}",
            validation_split="none",
            epochs=1 if setting.is_tiny else 2,
            batch_size=setting.batch_size // 2,
            size=setting.size_px,
            lr=0.01,
            precision="bf16",
            channels_last=True,
            device=setting.device_name,
            num_workers=num_cores(),
            **({"store": (store.path,)} if with_kd else {}),  # type: ignore[arg-type]
        )
        with contextlib.redirect_stderr(io.StringIO()):
            train(config)
        # Of the last epoch: the first one also pays for memory and for the threads' first batches.
        found[with_kd].append(float(read_metrics(config.out)[-1]["images_per_second"] or 0.0))
        _forget(setting)
    with_kd_rate, rate = (sum(found[key]) / 2 for key in (True, False))
    report.measure(
        f"train, {student}, bf16, batch {setting.batch_size // 2}, from JPEGs, {num_cores()} cores: with a store / "
        "labels",
        f"{with_kd_rate / rate:.3f} ({min(found[True]) / max(found[False]):.3f} to "
        f"{max(found[True]) / min(found[False]):.3f}); {with_kd_rate:,.0f} and {rate:,.0f} images/s",
    )


def _forget(setting: Setting) -> None:
    gc.collect()
    synchronize(setting.device)
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
