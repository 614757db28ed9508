"""Ray's workers against local processes, and what a job array without leases makes twice.

    python -m benchmarks.engine [--images N] [--rounds N] [--workers N] [--out FILE]

Both engines do the same units with as many workers of one core each; the rate is that between a quarter and nine tenths
of the views, so that the start of either is no part of it. They are measured in turn, and the median of the ratios is
quoted, because a shared machine drifts. The cluster is one that is started here, on loopback. The array is so many
processes at once, each of which says how many units were of no use, as another one had made them meanwhile.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.photographs import write_photographs
from teachonce.engine.jobs import run_jobs
from teachonce.engine.machine import num_cores
from teachonce.engine.options import Engine
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import _build_extractor
from teachonce.extraction.prepare import prepare
from teachonce.extraction.units import all_units
from teachonce.versions import library_versions

NUM_SHARDS = 24
SIZE_PX = 96
MAIN = "from teachonce.cli.main import main; main()"
TWICE = re.compile(r"(\d+) units made; (\d+) skipped because other workers had finished them, (\d+) processed twice")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = measure(Path(folder), flags.images, flags.rounds, flags.workers)
    print(table)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(table)


def measure(folder: Path, num_images: int, rounds: int, num_workers: int) -> str:
    """The tables as Markdown."""
    # Before Ray is imported: 127.0.0.1 is no other name of the machine's address.
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else a token is left in the user's home
    import ray
    from safetensors.torch import save_file
    from torchvision.models import get_model

    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    save_file(get_model("resnet18").state_dict(), weights)
    config = ExtractConfig(
        data=write_photographs(folder / "data", num_images, NUM_SHARDS),
        teacher=f"torchvision:resnet18,weights={weights},size={SIZE_PX}",
        out=folder / "store",
        policy="crop",
        views=4,
        views_per_file=2,
        batch_size=8,
        gate_samples=0,
        device="cpu",
    )
    ray.init(num_cpus=num_workers, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    local, cluster = Engine(num_workers=num_workers), Engine(name="ray", num_workers=num_workers)
    ratios, rates = [], []
    for number in range(rounds):
        of_ray = rate_of(config, cluster, folder / f"ray-{number}")
        of_local = rate_of(config, local, folder / f"local-{number}")
        ratios.append(of_ray / of_local)
        rates.append((of_ray, of_local))
    ray.shutdown()
    medians = [statistics.median(rate) for rate in zip(*rates, strict=True)]
    array = array_counts(config, folder / "array", 2 * num_workers)
    num_units = len(all_units(prepare(replace(config, out=folder / "array"))[0].plan))
    lines = [
        f"# Engines, {platform.machine()}, {num_cores()} cores, load {os.getloadavg()[0]:.1f}",
        "",
        f"`python -m benchmarks.engine --images {num_images} --rounds {rounds} --workers {num_workers}`, "
        f"{time.strftime('%Y-%m-%d')}",
        ", ".join(f"{key} {value}" for key, value in library_versions().items()) + f", ray {ray.__version__}",
        "",
        f"| {num_workers} Ray workers, views/s | {num_workers} processes, views/s | ratio, median (least to most) |",
        "|---|---|---|",
        f"| {medians[0]:.0f} | {medians[1]:.0f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
        f"{max(ratios):.2f}) |",
        "",
        "| workers of a job array | units | made | left out when their turn came | made twice |",
        "|---|---|---|---|---|",
        f"| {2 * num_workers} | {num_units} | {' | '.join(map(str, array))} |",
    ]
    return "\n".join(lines) + "\n"


def rate_of(config: ExtractConfig, engine: Engine, out: Path) -> float:
    """Views a second between a quarter and nine tenths of them."""
    config = replace(config, out=out)
    preparation, _ = prepare(config)
    units = all_units(preparation.plan)
    total = sum(preparation.plan.shards[unit.shard][1] * unit.num_views for unit in units)
    done, times = 0, [(0.0, 0)]

    def report(count: int) -> None:
        nonlocal done
        if count:
            done += count
            times.append((time.perf_counter(), done))

    build = partial(_build_extractor, config, preparation, 1)
    for _ in run_jobs(build, [(unit,) for unit in units], engine=engine, report=report):
        pass
    begin = next(item for item in times if item[1] >= total / 4)
    end = next(item for item in times if item[1] >= total * 0.9)
    return (end[1] - begin[1]) / (end[0] - begin[0])


def array_counts(config: ExtractConfig, out: Path, count: int) -> tuple[int, int, int]:
    """Units made, left out and made twice, by all workers of an array that begin at once."""
    words = ["extract", "--data", config.data, "--teacher", config.teacher, "--out", out, "--device", "cpu"]
    words += ["--policy", "crop", "--views", 4, "--views-per-file", 2, "--batch-size", 1, "--gate-samples", 0]
    words += ["--decode-threads", 1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MAIN, *map(str, words), "--worker", f"{index}/{count}"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for index in range(count)
    ]
    totals = [0, 0, 0]
    for process in started:
        said = process.communicate()[1]
        assert process.returncode == 0, said
        for match in TWICE.finditer(said):
            totals = [total + int(more) for total, more in zip(totals, match.groups(), strict=True)]
    return totals[0], totals[1], totals[2]


if __name__ == "__main__":
    main()
