"""A teacher on the CPU as ``load_model`` runs it against the same network as PyTorch runs it by default.

    python -m benchmarks.cpu_teacher [--rounds N] [--models NAME,...] [--out FILE]

What differs: images and weights are channels-last, and freed memory is kept (``engine.machine.keep_freed_memory``).
Each measurement is a process of its own, since the second cannot be undone; both ways are measured in turn. The ratio
is that of images a second of CPU time, the kernel's included, since a shared machine drifts. Weights are random.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from teachonce.engine.machine import num_cores
from teachonce.pixels.preprocessing import Preprocessing, normalize
from teachonce.versions import library_versions

MODELS = ("tf_efficientnet_lite0", "mobilenetv3_small_100", "resnet50", "densenet121", "vit_tiny_patch16_224")
BATCH_SIZE = 64
BATCHES = 4
SIZE_PX = 224


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default=",".join(MODELS), help="of timm")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--measure", choices=("ours", "default"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        print(images_per_cpu_second(flags.models, flags.measure == "ours"))
        return
    lines = [
        f"# Teachers on a CPU, {platform.machine()}, {num_cores()} cores",
        "",
        f"`python -m benchmarks.cpu_teacher --rounds {flags.rounds}`, float32, batches of {BATCH_SIZE}, "
        f"{flags.rounds} pairs in turn.",
        ", ".join(f"{name} {version}" for name, version in library_versions().items()),
        "",
        "| model | default, images/s of CPU time | teachonce | ratio, median (least to most) |",
        "|---|---|---|---|",
    ]
    for name in flags.models.split(","):
        pairs = []
        for number in range(flags.rounds):
            order = ("default", "ours")[:: 1 if number % 2 else -1]
            found = {way: _measure_apart(name, way) for way in order}
            pairs.append((found["default"], found["ours"]))
        ratios = sorted(ours / default for default, ours in pairs)
        default, ours = (statistics.median(rates) for rates in zip(*pairs, strict=True))
        middle = statistics.median(ratios)
        lines.append(f"| {name} | {default:.1f} | {ours:.1f} | {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |")
    table = "\n".join(lines) + "\n"
    print(table)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(table)


def _measure_apart(name: str, way: str) -> float:
    command = [sys.executable, "-m", "benchmarks.cpu_teacher", "--models", name, "--measure", way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def images_per_cpu_second(name: str, is_ours: bool) -> float:
    """Images a second of CPU time, normalizing included, after one batch."""
    # Imported here: what only starts the measurements needs none of it.
    import timm
    import torch
    from safetensors.torch import save_file

    from teachonce.models.classifier import load_model

    module = timm.create_model(name).eval()
    pixels = torch.randint(0, 256, (BATCH_SIZE, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8)
    run: Callable[[torch.Tensor], torch.Tensor]
    if is_ours:
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.safetensors"
            save_file(module.state_dict(), weights)
            run = load_model(f"timm:{name},weights={weights},size={SIZE_PX}").logits
    else:
        run = partial(run_by_default, module)
    run(pixels)
    start = time.process_time()
    for _ in range(BATCHES):
        run(pixels)
    return BATCHES * BATCH_SIZE / (time.process_time() - start)


def run_by_default(module: Any, pixels: Any) -> Any:
    """Logits as a few lines of PyTorch compute them."""
    import torch

    with torch.inference_mode():
        return module(normalize(pixels, Preprocessing(size_px=SIZE_PX)))


if __name__ == "__main__":
    main()
