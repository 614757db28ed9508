"""What moves bytes against moving bytes: `records`, `merge`, `import`, `verify` beside cp, reading, parsing, hashing.

    python -m benchmarks.records [--quick] [--images N] [--photos DIR] [--out FILE]

Synthetic photographs (500 x 375 px JPEG, 75 kB), or the images of DIR/train/CLASS copied until there are N. Everything
is in the page cache, so what is measured is our work and the writing. Ours ends with fsync, `cp -r` does not, so the
copy is measured as it is and with the sync that makes it as durable. Each pair is measured in turn several times, with
the disk idle at the start of each (sync), and the median of the ratios is quoted, because a shared machine drifts; the
start of the worker processes (half a second) is in ours.

Every pair is quoted twice: by the clock, which is what a user waits for, and by CPU time (user and system, worker
processes included), which other work on the machine changes little. What the kernel's own threads do for `cp` and sync
is in nobody's CPU time, so merge stands beside a copy that waits for the disk itself as well.

At the end stands what a record's logits cost (`kd.py`, part 1).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from PIL import Image
from pyarrow import csv

from teachonce.codecs.registry import build_codec
from teachonce.engine.machine import num_cores
from teachonce.extraction.config import VerifyConfig
from teachonce.interop.config import ImportConfig, MergeConfig, RecordsConfig
from teachonce.interop.convert import convert_records
from teachonce.interop.csv_files import export_csv, import_csv
from teachonce.interop.merge import merge
from teachonce.pixels.decode import check_jpeg
from teachonce.pixels.jpeg_structure import sound_jpeg_size
from teachonce.records.class_space import ClassSpace
from teachonce.records.discovery import open_records
from teachonce.store.begin import begin_store
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import Plan, describe_data
from teachonce.store.tables import StoreWriter
from teachonce.versions import library_versions
from teachonce.views.policy import CenterPolicy, policy_to_json

NUM_CLASSES = 1000
NUM_SHARDS = 8
BLOCK_BYTES = 1 << 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=Path, help="a folder with train/CLASS/*.JPEG instead of synthetic ones")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1,500 images: a minute")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    flags = parser.parse_args()
    if flags.quick:
        flags.images, flags.rounds = 1_500, 3
    with tempfile.TemporaryDirectory() as folder:
        table = Bench(Path(folder), flags.images, flags.rounds, flags.photos).measure()
    print(table)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(table)


class Bench:
    """The data of one run, and its pairs."""

    def __init__(self, folder: Path, num_images: int, rounds: int, photos: Path | None) -> None:
        self.folder = folder
        self.rounds = rounds
        self.images = write_images(folder / "images", num_images, photos)
        self.num_images = num_images
        self.shards = folder / "records"
        self.labels = folder / "labels.txt"
        self.labels.write_text("".join(f"class{index:04d}\n" for index in range(NUM_CLASSES)))
        self.command = f"--images {num_images} --rounds {rounds}" + (" --photos DIR" if photos is not None else "")

    def measure(self) -> str:
        """The table as Markdown."""
        # Not at the top: it brings torch, which every process spawned here would import; those of the commands do not.
        from benchmarks.kd import record_costs
        from teachonce.extraction.verify import verify

        image_bytes = folder_bytes(self.images)
        lines = [
            f"# Moving bytes, {platform.machine()}, {num_cores()} cores",
            "",
            f"`python -m benchmarks.records {self.command}`: {self.num_images:,} images, {image_bytes / 1e6:,.0f} MB.",
            ", ".join(f"{key} {value}" for key, value in library_versions().items())
            + f", Python {platform.python_version()}.",
            "",
            "| ours | MB/s | against | MB/s | ours / other by the clock, median (least to most) | by CPU time |",
            "|---|---|---|---|---|---|",
        ]
        copied = self.folder / "copied"

        def copy(source: Path, *, durable: bool) -> Callable[[], None]:
            def run() -> None:
                subprocess.run(["cp", "-r", source, copied], check=True)
                if durable:
                    os.sync()

            return run

        def records(out: Path, num_workers: int = 0) -> Callable[[], None]:
            return lambda: convert_records(
                RecordsConfig(
                    images=self.images, out=out, shards=NUM_SHARDS, labels=self.labels, num_workers=num_workers
                )
            )

        made = self.folder / "made"
        pair = self.pair
        lines += [
            pair("records", records(made), "cp -r, sync", copy(self.images, durable=True), image_bytes),
            pair("records", records(made), "cp -r", copy(self.images, durable=False), image_bytes),
            pair("records, one process", records(made, 1), "cp -r, sync", copy(self.images, durable=True), image_bytes),
            self.pair_of_checks(),
        ]
        quiet(records(self.shards))
        store, csv = self.write_store(), self.folder / "csv"
        quiet(lambda: export_csv(store, csv))
        shard_bytes, csv_bytes = folder_bytes(self.shards), folder_bytes(csv)

        def merged() -> None:
            merge(MergeConfig(store=store, data=self.shards, out=made))

        def imported() -> None:
            import_csv(ImportConfig(csv=csv, data=self.shards, out=made))

        def verified() -> None:
            verdict = verify(VerifyConfig(store=store, data=self.shards, samples=0))
            assert verdict.is_sound and verdict.num_keys == self.num_images, verdict

        def read_and_parse() -> None:
            read_files(self.shards)
            for path in csv.iterdir():
                with path.open("rb") as file:
                    while block := file.readlines(BLOCK_BYTES):
                        assert len(parse_lines(block)) == len(block) * NUM_CLASSES

        def read_lines() -> None:
            for path in csv.iterdir():
                with path.open("rb") as file:
                    for _ in file:
                        pass

        both = shard_bytes + csv_bytes
        lines += [
            pair("merge", merged, "cp -r, sync", copy(self.shards, durable=True), shard_bytes),
            pair("merge", merged, "cp -r", copy(self.shards, durable=False), shard_bytes),
            pair("merge", merged, "reading, writing, fsync", lambda: copy_durably(self.shards, copied), shard_bytes),
            pair("import (MB of CSV)", imported, "reading the lines", read_lines, csv_bytes),
            pair("import", imported, "reading the shards, reading and parsing the lines", read_and_parse, both),
            pair("verify --samples 0", verified, "reading the files", lambda: read_files(self.shards), shard_bytes),
            pair(
                "verify --samples 0",
                verified,
                "reading, xxh3",
                lambda: read_files(self.shards, hashed=True),
                shard_bytes,
            ),
        ]
        lines += ["", *record_costs(self.folder, self.rounds)]
        return "\n".join(lines)

    def pair(
        self, name: str, ours: Callable[[], None], other_name: str, other: Callable[[], None], num_bytes: int
    ) -> str:
        """A row with the ratio of two rates, measured in turn after one round that does not count."""
        costs: list[tuple[Cost, Cost]] = []
        for _ in range(self.rounds + 1):
            pair = []
            for work in (ours, other):
                for name_of in ("made", "copied"):
                    shutil.rmtree(self.folder / name_of, ignore_errors=True)
                os.sync()
                pair.append(quiet(work))
            costs.append((pair[0], pair[1]))
        costs = costs[1:]
        first, second = (statistics.median(num_bytes / 1e6 / cost[side].seconds for cost in costs) for side in (0, 1))
        by_clock = spread([other.seconds / ours.seconds for ours, other in costs])
        by_cpu = spread([other.cpu_seconds / ours.cpu_seconds for ours, other in costs])
        return f"| {name} | {first:,.0f} | {other_name} | {second:,.0f} | {by_clock} | {by_cpu} |"

    def pair_of_checks(self) -> str:
        """The check of the images alone, by their structure and by decoding them, in one process."""
        paths = sorted(self.images.rglob("*.*"))[:1000]
        # Progressive files and those with restart markers are left to a decoder.
        images = [encoded for path in paths if path.is_file() and sound_jpeg_size(encoded := path.read_bytes())]

        def by_structure() -> None:
            for encoded in images:
                sound_jpeg_size(encoded)

        def by_decoding() -> None:
            for encoded in images:
                check_jpeg(encoded)

        num_bytes = sum(map(len, images))
        return self.pair("check by structure, one process", by_structure, "by decoding", by_decoding, num_bytes)

    def write_store(self) -> Path:
        """A finished store over the shards, logits of ``NUM_CLASSES`` classes drawn from a normal distribution."""
        source, path = open_records(self.shards, "train"), self.folder / "store"
        codec = build_codec("int8", num_classes=NUM_CLASSES)
        plan = Plan(
            teacher={"spec": "none", "model": "random", "precision": "float32"},
            class_space=ClassSpace(num_classes=NUM_CLASSES, offset=1),
            data_classes=NUM_CLASSES + 1,
            **describe_data(source, NUM_CLASSES + 1),
            policy=policy_to_json(CenterPolicy()),
            codec=codec.to_json(),
            view_groups=((0, 0),),
        )
        begin_store(path, plan, views_per_file=1)
        writer = StoreWriter(path, plan, {"versions": library_versions(), "device": "cpu"})
        rng = np.random.default_rng(0)
        for shard, (name, num_records) in enumerate(plan.shards):
            records = [(record.key, record.filename, record.label) for record in source.iter_shard(shard)]
            keys, filenames, labels = zip(*records, strict=True)
            logits = rng.normal(0, 3, (1, num_records, NUM_CLASSES)).astype(np.float32)
            of_records = np.array(keys, np.uint64), np.array(labels, np.int32)
            writer.write_records(name, of_records[0], filenames, of_records[1])
            writer.write_views(name, (0, 0), *of_records, logits, None)
        finalize_store(path)
        return path


class Cost(NamedTuple):
    """What some work took."""

    seconds: float
    cpu_seconds: float
    """User and system, of this process and of those that it started."""


def quiet(work: Callable[[], object]) -> Cost:
    """What ``work`` costs, without what it prints."""
    with contextlib.redirect_stderr(io.StringIO()):
        start, cpu_start = time.perf_counter(), cpu_seconds()
        work()
        return Cost(time.perf_counter() - start, cpu_seconds() - cpu_start)


def cpu_seconds() -> float:
    """Spent by this process and by those of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def spread(ratios: Sequence[float]) -> str:
    """Median (least to most)."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def copy_durably(source: Path, copied: Path) -> None:
    """Copy a folder, file by file, each on the disk before the next."""
    copied.mkdir()
    for path in sorted(source.iterdir()):
        with path.open("rb", buffering=0) as file, (copied / path.name).open("wb", buffering=0) as copy:
            while block := file.read(BLOCK_BYTES):
                copy.write(block)
            os.fsync(copy.fileno())


def parse_lines(lines: list[bytes]) -> NDArray[np.float64]:
    """The numbers of some lines of CSV behind their names, as Arrow's reader has them."""
    text = b"".join(line.partition(b",")[2].replace(b",", b"\n") for line in lines)
    options = csv.ReadOptions(column_names=["logit"], use_threads=False, block_size=1 << 22)
    return csv.read_csv(pa.BufferReader(text), options).column(0).to_numpy()


def read_files(folder: Path, *, hashed: bool = False) -> None:
    """Read every file of a folder, and hash it if asked."""
    for path in sorted(folder.iterdir()):
        digest = xxhash.xxh3_128()
        with path.open("rb", buffering=0) as file:
            while block := file.read(BLOCK_BYTES):
                if hashed:
                    digest.update(block)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder and below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_images(folder: Path, count: int, photos: Path | None) -> Path:
    """``count`` JPEGs in 20 class folders, no two the same: each of the originals with a comment of its own."""
    originals = [path.read_bytes() for path in sorted(photos.rglob("*.*")) if path.is_file()] if photos else draw(100)
    originals = [encoded for encoded in originals if encoded.startswith(b"\xff\xd8")]
    if not originals:
        sys.exit(f"{photos}: no JPEGs")
    for index in range(count):
        path = folder / "train" / f"class{index % 20:04d}" / f"image_{index:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = originals[index % len(originals)]
        path.write_bytes(encoded[:2] + b"\xff\xfe\x00\x0a" + f"{index:08d}".encode() + encoded[2:])
    return folder


def draw(count: int) -> list[bytes]:
    """Photographs of smooth noise with grain, 500 x 375 px."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (38, 50, 3), np.uint8))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        pixels = pixels + rng.integers(-12, 13, (375, 500, 3), np.int16)
        buffer = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    return images


if __name__ == "__main__":
    main()
