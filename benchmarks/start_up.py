"""Where the seconds go before the first batch: `train` and `extract` on eight images, beside importing what they need.

    python -m benchmarks.start_up [--rounds N]

Each line is a process of its own from its start to its end, the files in the page cache; all are run in turn, and the
median (least to most) of the seconds is shown. Between a line of imports and the command that needs them lies
everything else of it: options, data, model, eight images, files, report.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from teachonce.engine.machine import num_cores
from teachonce.versions import library_versions

TRAIN = (
    "train --data images --student timm:test_resnet --size 32 --epochs 1 --batch-size 4 --validation-split none "
    "--device cpu --quiet --out run-{}"
)
EXTRACT = "extract --data images --teacher run:run-{0} --device cpu --quiet --out store-{0}"
IMPORTS = {
    "Python alone": "pass",
    "torch": "import torch",
    "torch, torchvision, timm": "import torch, torchvision, timm",
    "the same, and Lightning, torchmetrics": "import torch, torchvision, timm, lightning.pytorch, torchmetrics",
}
COMMANDS = {"teachonce --version": "--version", "inspect": "inspect images", "train": TRAIN, "extract": EXTRACT}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    lines = {f"import {name}" if name != "Python alone" else name: ["-c", code] for name, code in IMPORTS.items()}
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images")
        for number in range(rounds + 1):
            commands = {key: ["-m", "teachonce", *text.format(number).split()] for key, text in COMMANDS.items()}
            for line, words in {**lines, **commands}.items():
                spent = run(words, folder)
                if number:  # the first round reads the disk
                    seconds.setdefault(line, []).append(spent)
    print(f"# Start-up, {platform.machine()}, {num_cores()} cores\n")
    print(", ".join(f"{key} {value}" for key, value in library_versions().items()) + "\n")
    print("| process | seconds, median (least to most) |\n|---|---|")
    for line, values in seconds.items():
        print(f"| {line} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |")


def write_images(folder: Path) -> None:
    """Eight images of two classes."""
    rng = np.random.default_rng(0)
    for index in range(8):
        path = folder / "train" / f"class{index % 2}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)


def run(words: list[str], folder: Path) -> float:
    """Seconds of a Python process, which has to succeed."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
