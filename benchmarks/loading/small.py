"""Small images on one core: whole batches joined with a store, against bare decoding; and their share of a training.

    python -m benchmarks.loading.small --images DIR_OR_TAR [--rounds 15] [--seconds 0.3]

5,000 images (CIFAR-10, 32 px) as JPEGs in 4 TFRecord shards, with a store of random crops and int8 logits of 11
classes: read and checked, or from memory (``--in-memory``), in batches of 64 and of 256, one thread. Bare decoding is
simplejpeg's of the images in full, where it is installed, else Pillow's; ratios are of the same round. Everything is
in seconds of CPU time, since a machine that others use too takes them longer on the clock.

The share of a training: CPU time of making batches of 256, against making them and a step of ``timm:test_resnet`` on
them (KD, SGD, float32, one thread), of the same batches.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.loading.decoding import OURS, compare, in_turn
from teachonce.data.dataset import KDDataset
from teachonce.data.stored_logits import StoredLogits
from teachonce.losses.losses import kd_loss
from teachonce.pixels.in_memory import RecordsInMemory
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews

BATCH_SIZES = (64, 256)
SIZE_PX = 32
TEMPERATURE = 2.0
FROM_JPEG, FROM_MEMORY = "from JPEG", "from memory"


def open_dataset(source: RecordSource, work: Path) -> KDDataset:
    """The records joined with WORK/small-store."""
    store = Store(work / "small-store")
    return KDDataset(source, StoredViews(store), StoredLogits([store]), size=SIZE_PX)


def sources(work: Path) -> dict[str, RecordSource]:
    """The records of WORK/small as they are read, and in memory."""
    source = open_records(work / "small", "train")
    return {FROM_JPEG: source, FROM_MEMORY: RecordsInMemory(source)}


def whole_batches(dataset: KDDataset, batch_size: int) -> Iterator[int]:
    """Epoch after epoch; the number of records of each batch."""
    epoch = 0
    while True:
        for batch in dataset.batches(batch_size=batch_size, epoch=epoch, drop_last=True):
            yield len(batch["labels"])
        epoch += 1


def measure(work: Path, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Records by second of CPU time, by way."""
    source = open_records(work / "small", "train")
    encoded = [record.encoded for shard in range(len(source.shards)) for record in source.iter_shard(shard)]

    def pillow_full(i: int) -> None:
        np.asarray(Image.open(io.BytesIO(encoded[i])).convert("RGB"))

    ways: dict[str, Callable[[int], None]] = {"bare decode, Pillow": pillow_full}
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        print("simplejpeg: not installed, skipped", file=sys.stderr)
    else:

        def full(i: int) -> None:
            decode_jpeg(encoded[i], "RGB")

        ways = {"bare decode, libjpeg-turbo (simplejpeg)": full, **ways}
    turns = {name: in_turn(way, len(encoded), 128) for name, way in ways.items()}
    for name, records in sources(work).items():
        for batch_size in BATCH_SIZES:
            way = f"{OURS}, {SIZE_PX} px, joined with the store, {name}, batches of {batch_size}"
            turns[way] = whole_batches(open_dataset(records, work), batch_size)
    return compare(turns, rounds, seconds, time.process_time)


def measure_shares(work: Path, rounds: int) -> dict[str, list[float]]:
    """The share of loading in the CPU time of an epoch of training, by where the records are, one a round."""
    import timm

    shares: dict[str, list[float]] = {}
    for name, records in sources(work).items():
        dataset = open_dataset(records, work)
        model = timm.create_model("test_resnet", num_classes=dataset.num_classes).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        for epoch in range(rounds + 1):
            batches = iter(dataset.batches(batch_size=BATCH_SIZES[-1], epoch=epoch, drop_last=True))
            start, loading = time.process_time(), 0.0
            while True:
                before = time.process_time()
                batch = next(batches, None)
                loading += time.process_time() - before
                if batch is None:
                    break
                train_step(dataset, model, optimizer, batch)
            if epoch:  # the first one warms up
                shares.setdefault(name, []).append(loading / (time.process_time() - start))
    return shares


def train_step(
    dataset: KDDataset, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]
) -> None:
    """One update towards the stored logits."""
    assert isinstance(dataset.logits, StoredLogits)
    pixels = batch["pixels"].permute(0, 3, 1, 2).float() / 127.5 - 1
    targets = dataset.logits.decode(batch, TEMPERATURE, dataset.class_space)
    optimizer.zero_grad()
    kd_loss(model(pixels), targets, TEMPERATURE).backward()
    optimizer.step()


def main() -> None:
    """Measure and print; the last line is JSON."""
    from benchmarks.loading.__main__ import one_core_table, quote
    from benchmarks.loading.data import prepare_small

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder or tar archive of small CLASS/NAME.jpg")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="of CPU time of each way in a round")
    flags = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prepare_small(Path(folder), flags.images)
        rates = measure(Path(folder), flags.rounds, flags.seconds)
        shares = measure_shares(Path(folder), max(flags.rounds // 3, 3))
    print("\n".join(one_core_table(rates)))
    for name, values in shares.items():
        print(f"Share of loading in an epoch of test_resnet, {name}: {quote(values)}")
    print(json.dumps({"rates": {name: statistics.median(values) for name, values in rates.items()}}))


if __name__ == "__main__":
    main()
