"""What a very large store costs before its first record is read: planning, listing, finalizing, opening, joining.

    python -m benchmarks.scale [--records 14000000 --shards 10000 --views 50 --views-per-file 1] [--out FILE]

The plan, the records files and their index are real, with a random key for each record. View files are complete
but for their rows: one stands for all, since none is read here; so half a million of them fit on a small disk.
Each step runs in a process of its own, whose time and peak memory are the table's rows; Python and its libraries alone
take the memory of the first row.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teachonce.codecs.topk import TopKCodec
from teachonce.engine.buffers import BufferPool
from teachonce.engine.machine import num_cores
from teachonce.extraction.units import all_units, bundle_units, missing_units
from teachonce.records.class_space import ClassSpace
from teachonce.records.source import Location, Record, RecordSource, ShardInfo, shard_name
from teachonce.store.begin import begin_store
from teachonce.store.join import StoreJoin, find_unknown
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import Plan, describe_data, group_views
from teachonce.store.plan_files import read_plan, read_plans
from teachonce.store.store import Store
from teachonce.store.tables import Sample, StoreWriter, to_batch
from teachonce.versions import library_versions
from teachonce.views.columns import encode_views
from teachonce.views.policy import CropPolicy, policy_to_json
from teachonce.views.view import View

NUM_CLASSES = 1000
CODEC = TopKCodec(k=10, num_classes=NUM_CLASSES)


class SyntheticSource(RecordSource):
    """Records of which only the keys are there: shard by shard a random permutation of those of the store, or these."""

    format = "tfrecord"

    def __init__(self, num_records: int, num_shards: int, *, seed: int = 0, is_permuted: bool = False) -> None:
        self.split = "train"
        self.classes = None
        sizes = np.diff(np.linspace(0, num_records, num_shards + 1).astype(np.int64)).tolist()
        # Other sizes in bytes are enough for the data to be joined by key instead of by position.
        self.shards = tuple(
            ShardInfo(shard_name("train", index, num_shards), None, size, 100 + is_permuted)
            for index, size in enumerate(sizes)
        )
        self._seed = seed
        self._is_permuted = is_permuted

    def known_keys(self, shard: int) -> NDArray[np.uint64]:
        """A function of the shard's number; reversed where the data is permuted."""
        count, last = self.shards[shard].num_records, len(self.shards) - 1
        number = last - shard if self._is_permuted else shard
        keys = np.random.default_rng([self._seed, number]).integers(0, 2**64, count, dtype=np.uint64)
        return keys[::-1].copy() if self._is_permuted else keys

    def read_batch(
        self, locations: Sequence[Location], *, with_logits: bool = False, buffers: BufferPool | None = None
    ) -> list[Record]:
        """There are none."""
        raise NotImplementedError

    def iter_shard(self, shard: int, *, with_logits: bool = False) -> Iterator[Record]:
        """There are none."""
        raise NotImplementedError


def build_plan(flags: argparse.Namespace, source: RecordSource) -> Plan:
    """A plan of random crops, topk 10, with samples."""
    return Plan(
        teacher={"spec": "synthetic", "model": "synthetic", "weights_sha256": "0" * 64},
        class_space=ClassSpace(num_classes=NUM_CLASSES, offset=1),
        data_classes=NUM_CLASSES + 1,
        **describe_data(source),
        policy=policy_to_json(CropPolicy()) | {"seed": 0},
        codec=CODEC.to_json(),
        view_groups=group_views(flags.views, flags.views_per_file),
        num_samples=4,
    )


def write_files(path: Path, source: SyntheticSource) -> None:
    """Records files as they are; view and sample files with one row for all: no row of them is read here."""
    os.fsync = _do_not_sync  # it is not what is measured
    plan = read_plan(path)
    writer = StoreWriter(path, plan, {"versions": library_versions(), "device": "cpu"})
    logits = np.zeros((1, NUM_CLASSES), np.float32)
    row = to_batch(encode_views([View((0, 0, 9, 9))], plan.read_policy()[0].layout) | CODEC.encode_logits(logits))
    for shard, (name, count) in enumerate(plan.shards):
        keys = source.known_keys(shard)
        names = [f"ILSVRC2012_train_{number:08d}.JPEG" for number in range(count)]
        writer.write_records(name, keys, names, (np.arange(count) % NUM_CLASSES + 1).astype(np.int32))
        for group in plan.view_groups:
            num_views = group[1] - group[0] + 1
            writer.write_samples(name, group, keys, [Sample(0, group[0], 0, 0, logits[0])])
            writer.write_columns(name, group, keys, [row] * num_views, [0] * num_views)


def _do_not_sync(fd: object) -> None:
    """Instead of ``os.fsync``."""


def _nothing(flags: argparse.Namespace, path: Path) -> None:
    """Start and end."""


def _plan(flags: argparse.Namespace, path: Path) -> None:
    source = SyntheticSource(flags.records, flags.shards)
    begin_store(path, build_plan(flags, source), flags.views_per_file)


def _read_plans(flags: argparse.Namespace, path: Path) -> None:
    read_plans(path)


def _write(flags: argparse.Namespace, path: Path) -> None:
    write_files(path, SyntheticSource(flags.records, flags.shards))


def _list_units(flags: argparse.Namespace, path: Path) -> None:
    plan = read_plan(path)
    missing = missing_units(path, plan)
    bundle_units(plan, [unit for unit in all_units(plan) if unit in missing or flags.records], 64)


def _finalize(flags: argparse.Namespace, path: Path) -> None:
    assert finalize_store(path) == flags.views


def _open(flags: argparse.Namespace, path: Path) -> None:
    assert Store(path).num_records == flags.records


def _fingerprint(flags: argparse.Namespace, path: Path) -> None:
    assert Store(path).fingerprint


def _join_by_position(flags: argparse.Namespace, path: Path) -> None:
    assert StoreJoin(Store(path), SyntheticSource(flags.records, flags.shards)).has_positions


def _join_by_key(flags: argparse.Namespace, path: Path) -> None:
    source = SyntheticSource(flags.records, flags.shards, is_permuted=True)
    assert find_unknown([Store(path)], source).count == 0


def _order(flags: argparse.Namespace, path: Path) -> None:
    from teachonce.data.sampler import EpochBatches

    assert 0 < len(next(iter(EpochBatches(flags.records, 1024, epoch=1)))) <= 1024


STEPS: dict[str, tuple[str, Callable[[argparse.Namespace, Path], None]]] = {
    "nothing": ("Python and its libraries", _nothing),
    "plan": ("make and write the plan", _plan),
    "read-plans": ("read the plan", _read_plans),
    "write": ("(write the synthetic files)", _write),
    "list-units": ("list the files; units and bundles that are left", _list_units),
    "finalize": ("finalize: all manifests and the key index", _finalize),
    "open": ("open the store", _open),
    "fingerprint": ("open it and hash what a run was trained from", _fingerprint),
    "position": ("open and join, same shards", _join_by_position),
    "key": ("open and join by key, all keys looked up (data's keys cached)", _join_by_key),
    "order": ("an epoch's order, and its first batch", _order),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=14_000_000)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--views", type=int, default=50)
    parser.add_argument("--views-per-file", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the store is made; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.records % flags.shards:
        parser.error(f"--records {flags.records}: expected a multiple of --shards {flags.shards}")
    if flags.step is not None:
        STEPS[flags.step][1](flags, flags.folder / "store")
        return
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        table = measure(flags, folder)
    print(table)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(table)


def measure(flags: argparse.Namespace, folder: str) -> str:
    """The table as Markdown."""
    own = ["--records", flags.records, "--shards", flags.shards, "--views", flags.views]
    own += ["--views-per-file", flags.views_per_file]
    groups = -(-flags.views // flags.views_per_file)
    lines = [
        f"# A store of {flags.records:,} records, {flags.shards:,} shards, {flags.views} views, {platform.machine()}, "
        f"{num_cores()} cores",
        "",
        f"{time.strftime('%Y-%m-%d')}, `python -m benchmarks.scale {' '.join(map(str, own))}`: "
        f"{flags.shards * (1 + 2 * groups):,} files.",
        ", ".join(f"{key} {value}" for key, value in library_versions().items()),
        "",
        "| step | seconds | of them the processor's | peak memory, MB |",
        "|---|---|---|---|",
    ]
    idle = idle_cpu = 0.0
    for name, (description, _) in STEPS.items():
        command = [sys.executable, "-m", "benchmarks.scale", *map(str, own), "--folder", folder, "--step", name]
        begin = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begin
        if process.returncode:
            raise SystemExit(f"step {name} failed")
        cpu = usage.ru_utime + usage.ru_stime
        if name == "nothing":
            idle, idle_cpu = seconds, cpu
            lines.append(f"| {description} | {seconds:.2f} | {cpu:.2f} | {usage.ru_maxrss / 1024:.0f} |")
        else:
            memory = f"{usage.ru_maxrss / 1024:.0f}"
            lines.append(f"| {description} | {seconds - idle:.2f} | {cpu - idle_cpu:.2f} | {memory} |")
        print(lines[-1], file=sys.stderr, flush=True)
    lines += ["", "Seconds are without those of the first row."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
