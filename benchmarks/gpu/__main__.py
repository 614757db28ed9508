"""Checks and measures on one GPU what no CPU can tell, without network or data.

    python -m benchmarks.gpu [--device cuda] [--only PART,...] [--teacher SPEC] [--images DIR_OR_TAR] [--out FILE.md]
    python -m benchmarks.gpu --device cpu --tiny

Exit code 1 where a check does not hold; its line says what was found and what was expected. Measurements are ratios of
two works in turn (A B B A), medians with the least and the most, after a warm-up and with the device's work waited for.
Teachers have random weights and photographs are synthetic unless ``--teacher`` and ``--images`` give others.
``--tiny`` is for trying this out on a CPU: everything runs, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu import commands, precision, speed, transfers
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from teachonce.engine.machine import num_cores
from teachonce.models.classifier import resolve_device
from teachonce.pixels.kernel import describe_decoder
from teachonce.versions import library_versions


def main() -> None:
    """Run the parts, print and write the table, exit with 1 where a check does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU does in a minute or two")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, of " + ", ".join(PARTS))
    parser.add_argument("--teacher", help="SPEC of a teacher with real weights")
    parser.add_argument("--images", type=Path, help="real photographs: CLASS/NAME.jpg in a folder or a tar archive")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    flags = parser.parse_args()
    chosen = flags.only.split(",")
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        parser.error(f"--only {flags.only}: {unknown[0]} is none of {', '.join(PARTS)}")
    report, begin = Report(), time.perf_counter()
    device = resolve_device(flags.device)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            device=device,
            folder=Path(folder),
            is_tiny=flags.tiny,
            teacher=flags.teacher,
            images=flags.images,
            num_images=24 if flags.tiny else 2048,
        )
        for name in chosen:
            # Each part as in a process of its own: what PyTorch has compiled or timed for another is forgotten.
            torch.backends.cudnn.benchmark = False
            torch._dynamo.reset()
            with report.part(name):
                PARTS[name](setting, report)
            table = render(report, device, time.perf_counter() - begin)
            if flags.out is not None:
                # After each part: what is found stays, should a later one be stopped.
                flags.out.parent.mkdir(parents=True, exist_ok=True)
                flags.out.write_text(table)
    print(table)
    for item in report.failed:
        print(f"FAIL {item.part}: {item.name}: found {item.found}, expected {item.expected}", file=sys.stderr)
    sys.exit(1 if report.failed else 0)


def check_precision(setting: Setting, report: Report) -> None:
    """Numbers and stores across devices."""
    precision.compare_precisions(setting, report)
    precision.check_stores(setting, report)


def check_transfers(setting: Setting, report: Report) -> None:
    """Between host and device."""
    spec = setting.random_teacher("timm:test_resnet" if setting.is_tiny else "timm:resnet50")
    store = setting.make_store("store-transfers", spec, codec="int8")
    transfers.check_batches(setting, report, store)
    transfers.measure_copies(setting, report)
    transfers.check_decoding(setting, report)
    transfers.check_waiting(setting, report, spec)
    transfers.measure_jpegs(setting, report)


def measure_training(setting: Setting, report: Report) -> None:
    """Steps alone, then the whole trainer."""
    speed.measure_steps(setting, report)
    spec = setting.random_teacher("timm:test_resnet" if setting.is_tiny else "timm:resnet50")
    # Twice as many: of fewer images the first batches, made while nothing is trained, are half of an epoch.
    setting = setting.with_images("training", 2 * speed.MANY_IMAGES)
    store = setting.make_store("store-training", spec, codec="int8", precision="bf16", policy="crop", views=1)
    speed.measure_training(setting, report, store)


PARTS: dict[str, Callable[[Setting, Report], None]] = {
    "precision": check_precision,
    "transfers": check_transfers,
    "commands": commands.check_commands,
    "extraction": speed.measure_extraction,
    "training": measure_training,
    "compiled": commands.check_compiled,
}
"""Checks before measurements, and last what takes longest: a run that is stopped has said the most then."""


def render(report: Report, device: torch.device, seconds: float) -> str:
    """The table as Markdown, with what repeats it, and with the parts that are not in it."""
    held = len(report.checks) - len(report.failed)
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in report.seconds.items())
    missing = [name for name in PARTS if name not in report.seconds]
    lines = [
        f"# On {describe_device(device)}",
        "",
        f"{time.strftime('%Y-%m-%d')}, `make gpu` (`python -m benchmarks.gpu{_flags()}`): {held} of "
        f"{len(report.checks)} checks hold; {seconds:.0f} s ({parts}).",
        f"{platform.machine()}, {num_cores()} cores; {describe_decoder()}; "
        + ", ".join(f"{name} {value}" for name, value in library_versions().items() if name != "tensorflow")
        + ".",
        "",
        *([f"**Not in this table: {', '.join(missing)}.**", ""] if missing else []),
        "Ratios are medians of rounds in turn (A B B A), with the least and the most.",
        "",
    ]
    return "\n".join([*lines, *report.to_lines()]) + "\n"


def describe_device(device: torch.device) -> str:
    """The card's name, its driver and CUDA's version; or that it is a CPU."""
    if device.type != "cuda":
        return f"a CPU ({platform.machine()}), to try the program out"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return f"{torch.cuda.get_device_name(device)}, driver {driver}, CUDA {torch.version.cuda}"


def _flags() -> str:
    """The flags given, without the folders of whoever ran it."""
    words = sys.argv[1:]
    shown = []
    for name, value in zip(words, [*words[1:], ""], strict=True):
        if name.startswith("--") and name not in ("--out",):
            given = {"--teacher": "SPEC", "--images": "IMAGES"}.get(name, value)
            shown.append(name if value.startswith("--") or not value else f"{name} {given}")
    return "".join(f" {item}" for item in shown)


if __name__ == "__main__":
    main()
