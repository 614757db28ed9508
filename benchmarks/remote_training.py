"""Batches for training from an object store: from a warm cache and a cold one, against local files.

    python -m benchmarks.remote_training --at s3://BUCKET/FOLDER --images TAR [--small TAR] [--rounds N] [--out FILE]

The photographs of an archive (CLASS/NAME.jpg), ``--copies`` of each with another comment, become 8 shards with a store
of 4 crops of each (int8, random logits: nobody reads them here), in a temporary folder and at the address. Measured is
what a training loop gets of ``KDDataset.batches``: crops of 224 px joined with their logits, batches of 64, a thread a
core. Local and warm are measured in turn; the ratios are those of images a second, and of images a second of CPU time:
median and quartiles of the rounds, since a shared machine drifts. Cold is the first epoch with an empty cache; beside
it what the link gives (shards and blocks fetched and nothing else), since an epoch can be no faster than the slower of
link and decoder.

Of ``--small`` images (1,250 a shard, as ImageNet's shards have) a store is made and one view's epoch read: the bytes
fetched of the store, by the bytes of that view.

The bucket exists, and the environment says how to reach it (docs/guide/object-stores.md). What was put there is
removed. A server on this machine takes its share of the cores, so give each cores of its own (``taskset -c 1`` starts
the server on one, ``taskset -c 0`` runs this on another; as many threads make batches as this may use cores).
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.loading.data import NUM_VIEWS, write_crop_store
from benchmarks.photographs import read_jpegs, write_jpegs
from teachonce.data.dataset import KDDataset
from teachonce.data.stored_logits import StoredLogits
from teachonce.engine.machine import num_cores
from teachonce.records.discovery import open_records
from teachonce.storage.address import to_location
from teachonce.storage.files import open_storage
from teachonce.storage.remote import object_storage
from teachonce.storage.remote.cache import use_cache
from teachonce.store.plan import records_file, views_file
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from teachonce.versions import library_versions
from teachonce.views.order import ViewOrder

BATCH_SIZE, SIZE_PX = 64, 224
SMALL_SHARDS, SMALL_RECORDS = 4, 1250
CACHE_BYTES = 10**10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", required=True, help="where in an object store, such as s3://BUCKET/FOLDER")
    parser.add_argument("--images", type=Path, required=True, help="an archive or folder of CLASS/NAME.jpg")
    parser.add_argument("--small", type=Path, help="an archive of small images, 5,000 or more")
    parser.add_argument("--copies", type=int, default=4, help="of each photograph: epochs long enough to be timed")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    flags = parser.parse_args()
    there = to_location(flags.at) / uuid.uuid4().hex[:8]
    try:
        with tempfile.TemporaryDirectory() as folder:
            table = measure(Path(folder), there, flags)
    finally:
        storage = open_storage(there)
        for name in list(storage.walk()) if storage.is_folder() else []:
            storage.delete(name)
    print(table)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(table)


def measure(here: Path, there: Path, flags: argparse.Namespace) -> str:
    """The table as Markdown."""
    jpegs, labels = read_jpegs(flags.images)
    jpegs = [_commented(jpeg, copy) for copy in range(flags.copies) for jpeg in jpegs]
    labels = labels * flags.copies
    prepare(here / "large", there / "large", jpegs, labels, 8)
    near = open_dataset(here / "large", SIZE_PX)
    cold, link, warm = [], [], []
    for number in range(3):
        with caching(here / f"cache-{number}") as cache:
            cold.append(epoch_rate(open_dataset(there / "large", SIZE_PX), 0))
            shutil.rmtree(cache)
    for number in range(3):
        with caching(here / f"link-{number}") as cache:
            link.append(link_rate(there / "large"))
            shutil.rmtree(cache)
    with caching(here / "cache"):
        far = open_dataset(there / "large", SIZE_PX)
        for number in range(NUM_VIEWS):  # each epoch has another view of the store
            for dataset in (near, far):
                epoch_rate(dataset, number)
        rounds = []
        for number in range(flags.rounds):
            pair = {}
            for name, dataset in [("local", near), ("warm", far)][:: 1 if number % 2 else -1]:
                pair[name] = epoch_rates(dataset, number)
            rounds.append(pair)
    local, warm = ([pair[name][0] for pair in rounds] for name in ("local", "warm"))
    wall, cpu = (sorted(pair["warm"][kind] / pair["local"][kind] for pair in rounds) for kind in (0, 1))
    allowed = min(median(link), median(local))
    lines = [
        f"# Training data from an object store, {platform.machine()}, {num_cores()} cores",
        "",
        f"`python -m benchmarks.remote_training --copies {flags.copies} --rounds {flags.rounds} ...`, "
        f"{len(jpegs)} photographs, {sum(map(len, jpegs)):,} bytes.",
        ", ".join(f"{name} {version}" for name, version in library_versions().items()),
        "",
        "| | images/s, median |",
        "|---|---|",
        f"| local | {median(local):,.0f} |",
        f"| warm cache | {median(warm):,.0f} |",
        f"| fetching alone | {median(link):,.0f} |",
        f"| cold cache | {median(cold):,.0f} |",
        "",
        f"Warm / local: {_middle(wall)} by the clock, {_middle(cpu)} by CPU time. "
        f"Cold / the slower of fetching and local: {median(cold) / allowed:.2f}.",
    ]
    if flags.small is not None:
        lines.append(bytes_of_a_view(here, there, flags.small))
    return "\n".join(lines) + "\n"


def _commented(jpeg: bytes, number: int) -> bytes:
    """The same picture as another record: a comment (ITU-T T.81, B.2.4.5) makes its bytes, and so its key, another."""
    return jpeg[:2] + b"\xff\xfe\x00\x03" + bytes([number]) + jpeg[2:]


def bytes_of_a_view(here: Path, there: Path, images: Path) -> str:
    """What one view's epoch fetches of a store with all its views in one file a shard."""
    jpegs, labels = read_jpegs(images, SMALL_SHARDS * SMALL_RECORDS)
    prepare(here / "small", there / "small", jpegs, labels, SMALL_SHARDS)
    fetched: dict[str, int] = {}
    storage = object_storage.ObjectStorage
    real, real_open = storage._get_range, storage._open

    def count(self: object_storage.ObjectStorage, name: str, version: str, start: int, end: int) -> memoryview:
        found = real(self, name, version, start, end)
        fetched[name] = fetched.get(name, 0) + len(found)
        return found

    def count_open(self: object_storage.ObjectStorage, name: str) -> Any:
        opened, get_range = real_open(self, name)
        fetched[name] = fetched.get(name, 0) + len(opened.head)
        return opened, get_range

    with (
        caching(here / "small-cache"),
        mock.patch.object(storage, "_get_range", count),
        mock.patch.object(storage, "_open", count_open),
    ):
        epoch_rate(open_dataset(there / "small", 32), 3)
    store = Store(here / "small" / "store")
    files = [
        (name, here / "small" / "store" / name)
        for shard, _ in store.shards
        for name in (records_file(shard), views_file(shard, (0, store.num_views - 1)))
    ]
    total = sum(fetched.get(name, 0) for name, _ in files)
    needed = sum(
        path.stat().st_size / (1 if name.endswith("records.arrow") else store.num_views) for name, path in files
    )
    return (
        f"One view's epoch of {len(jpegs)} records in {SMALL_SHARDS} shards, {store.num_views} views a file: {total:,} "
        f"bytes of the store are fetched, {total / needed:.2f} of what keys, labels and that view take."
    )


def prepare(here: Path, there: Path, jpegs: list[bytes], labels: list[int], num_shards: int) -> None:
    """data/ and store/ at both places."""
    write_jpegs(here / "data", jpegs, labels, num_shards, num_classes=1 + max(max(labels), 1000))
    source = open_records(here / "data", "train")
    write_crop_store(here / "store", source)
    for name in open_storage(here).walk():
        with open_storage(there).put(name) as file:
            file.write((here / name).read_bytes())


@contextmanager
def caching(folder: Path) -> Iterator[Path]:
    """An empty cache for what is opened in the block."""
    use_cache(folder, CACHE_BYTES)
    yield folder


def open_dataset(place: Path, size_px: int) -> KDDataset:
    """The records with the store's views."""
    store = Store(place / "store")
    order = ViewOrder(num_views=store.num_views)
    return KDDataset(
        open_records(place / "data", "train"), StoredViews(store, order), StoredLogits([store], order), size=size_px
    )


def epoch_rate(dataset: KDDataset, epoch: int) -> float:
    """Images a second of one epoch."""
    return epoch_rates(dataset, epoch)[0]


def epoch_rates(dataset: KDDataset, epoch: int) -> tuple[float, float]:
    """Images a second of one epoch, and images a second of CPU time."""
    start, start_cpu, count = time.perf_counter(), time.process_time(), 0
    for batch in dataset.batches(batch_size=BATCH_SIZE, epoch=epoch, num_workers=num_cores()):
        count += len(batch["labels"])
    return count / (time.perf_counter() - start), count / (time.process_time() - start_cpu)


def link_rate(place: Path) -> float:
    """Images a second where shards and blocks are fetched and nothing is done with them."""
    dataset = open_dataset(place, SIZE_PX)
    start = time.perf_counter()
    for shard in range(len(dataset.records.shards)):
        dataset.fetch(shard, 0)
    return len(dataset) / (time.perf_counter() - start)


def _middle(values: list[float]) -> str:
    """Median and quartiles of sorted values."""
    quarter = len(values) // 4
    return f"{values[len(values) // 2]:.3f} ({values[quarter]:.3f} to {values[-1 - quarter]:.3f})"


def median(values: list[float]) -> float:
    """Of several."""
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
