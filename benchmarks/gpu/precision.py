"""How far logits of a device lie from those of the CPU, in each precision, and whether stores hold across devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting, photographs_as_pixels
from teachonce.extraction.config import VerifyConfig
from teachonce.extraction.differences import RELATIVE_TOLERANCE
from teachonce.extraction.verify import verify
from teachonce.models.classifier import Classifier, load_model
from teachonce.models.options import Precision
from teachonce.store.store import Store

PRECISIONS: tuple[Precision, ...] = ("float32", "bf16", "fp16")


def compare_precisions(setting: Setting, report: Report) -> None:
    """Largest difference from the CPU's float32, relative to a row's largest logit, of each teacher and precision."""
    names = ["timm:test_vit"] if setting.is_tiny else ["timm:resnet50", "timm:vit_small_patch16_224"]
    specs = {name: setting.random_teacher(name) for name in names}
    if setting.teacher is not None:
        specs[f"{setting.teacher.partition(',')[0]}, its own weights"] = setting.teacher
    for name, spec in specs.items():
        exact_model = load_model(spec)
        jpegs = setting.jpegs[0][: 16 if setting.is_tiny else 64]
        pixels = photographs_as_pixels(jpegs, exact_model.preprocessing.size_px)
        exact = exact_model.collect_logits(exact_model.logits(pixels))
        found = _differences(setting, spec, pixels, exact)
        report.measure(
            f"{name}: largest difference from the CPU's float32 / largest logit",
            ", ".join(f"{key} {value:.1e}" for key, value in found.items()),
        )
        report.check_at_most(f"{name}: float32 against the CPU", found["float32"], RELATIVE_TOLERANCE["float32"])
        for precision in ("bf16", "fp16"):
            report.check_at_most(
                f"{name}: {precision} against the CPU's {precision}",
                found[f"{precision} against the CPU's"],
                RELATIVE_TOLERANCE[precision],
            )
        report.check_at_most(f"{name}: compiled", found["float32 compiled"], RELATIVE_TOLERANCE["float32"])
        report.check_at_most(f"{name}: beside a student in TF32 and bf16", found["online"], found["float32"] + 1e-12)


def _differences(setting: Setting, spec: str, pixels: torch.Tensor, exact: NDArray[np.float32]) -> dict[str, float]:
    def difference(model: Classifier, expected: NDArray[np.float32] = exact) -> float:
        logits = model.collect_logits(model.logits(pixels))
        return float((np.abs(logits - expected).max(axis=1) / np.abs(expected).max(axis=1)).max())

    found: dict[str, float] = {}
    for precision in PRECISIONS:
        model = load_model(spec, device=setting.device, precision=precision)
        found[precision] = difference(model)
        if precision != "float32":
            cpu = load_model(spec, precision=precision)
            found[f"{precision} against the CPU's"] = difference(model, cpu.collect_logits(cpu.logits(pixels)))
    model = load_model(spec, device=setting.device)
    with _student_settings(setting.device):
        found["online"] = difference(model)
    found["TF32"] = difference(dataclasses.replace(model, forward=_in_tf32(model)))
    torch._dynamo.reset()
    found["float32 compiled"] = difference(load_model(spec, device=setting.device, compile=True))
    return found


@contextmanager
def _student_settings(device: torch.device) -> Iterator[None]:
    """What a student may have on while it asks an online teacher; it must be on still when the block ends."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast(device.type, torch.bfloat16):
            yield
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def _in_tf32(model: Classifier) -> Any:
    """The teacher's forward as PyTorch would do it if it were allowed to everywhere: the control."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        backends = torch.backends
        before = backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
        backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
        try:
            return model.forward(images)
        finally:
            backends.cudnn.allow_tf32 = before[0]
            torch.set_float32_matmul_precision(before[1])

    return forward


def check_stores(setting: Setting, report: Report) -> None:
    """Stores made on the device are sound on the CPU and the reverse, from the files; twice the same is the same."""
    spec = setting.teacher or setting.random_teacher("timm:test_resnet" if setting.is_tiny else "timm:resnet50")
    setting = setting.with_images("few", 256)
    samples = 16 if setting.is_tiny else 64
    here, cpu = setting.device_name, "cpu"
    for made_on, precision, verified_on in (
        (here, "float32", cpu),
        (cpu, "float32", here),
        (here, "float32", here),
        (here, "bf16", cpu),
        (here, "bf16", here),
        (here, "fp16", cpu),
    ):
        name = f"store-{made_on.partition(':')[0]}-{precision}"
        store = _store_once(setting, name, spec, made_on, precision)
        config = VerifyConfig(store=store.path, data=setting.data, device=verified_on, samples=samples)
        verdict = verify(config)
        found = verdict.reason if verdict.largest_excess is None else f"{verdict.reason}, {verdict.largest_excess:.3f}"
        report.check(
            f"{precision} store made on {made_on}, verified on {verified_on}",
            f"{found} of what codec and arithmetic allow",
            "sound",
            verdict.is_sound,
        )
        report.check(
            "its plan says the precision",
            store.plan.teacher["precision"],
            precision,
            store.plan.teacher["precision"] == precision,
        )
    again = setting.make_store("store-again", spec, codec="float32", decode_threads=3)
    first = Store(setting.folder / f"store-{setting.device.type}-float32")
    files = sorted(path.name for path in again.path.glob("*.arrow"))
    different = [name for name in files if (again.path / name).read_bytes() != (first.path / name).read_bytes()]
    report.check(
        "the same extraction again, other threads: files that differ",
        len(different),
        f"0 of {len(files)}",
        not different and bool(files),
    )


def _store_once(setting: Setting, name: str, spec: str, device: str, precision: str) -> Store:
    path = setting.folder / name
    if path.exists():
        return Store(path)
    return setting.make_store(name, spec, codec="float32", device=device, precision=precision)
