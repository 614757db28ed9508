"""What a window of shards costs in mixing, and how long an order takes to make: ``train --shuffle-shards``.

    python -m benchmarks.shuffling [--out FILE]

Nothing is read: labels alone, of the shape of ImageNet's training split (1,281,167 records of 1,000 classes in 1,024
shards, batches of 256). Once with shards that are sorted by class, as image folders are (the worst case: a shard has
one or two classes), once with shuffled shards, as ``records`` writes them. A row for each window, and one for blocks of
16 shards that are shuffled one after another, the order that was not taken. Half a minute on one core.

Columns: different classes in a batch, mean; distance: total variation between a batch and the data, mean; largest jump:
that between 5 batches (a shard's worth) and the next 5; shards touched by 8 batches in a row (4 loader threads have
that many in the making), largest; seconds for the order of this data. Total variation is that of ten groups of 100
neighboring classes: of single classes, chance alone makes it 0.77 in a batch of 256. Below, the time and memory for 14
million records in 10,000 shards.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teachonce.data.shard_window import windowed_order
from teachonce.rng import generator

NUM_RECORDS, NUM_CLASSES, NUM_SHARDS, BATCH_SIZE = 1_281_167, 1000, 1024, 256
NUM_GROUPS = 10
RUN, IN_MAKING = 5, 8
WINDOWS = (1, 4, 16, 64)
BLOCKS = 16

Order = NDArray[np.integer]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    flags = parser.parse_args()
    text = "\n".join([*mixing_table(), "", *cost_table(), ""])
    print(text)
    if flags.out is not None:
        flags.out.write_text(text)


def mixing_table() -> list[str]:
    """A row for each window: columns as in the module's docstring."""
    sizes = np.bincount(np.arange(NUM_RECORDS) * NUM_SHARDS // NUM_RECORDS)
    sorted_labels = np.sort(np.arange(NUM_RECORDS) % NUM_CLASSES)
    shuffled_labels = generator(0, "labels").permutation(sorted_labels)
    shard_of = np.repeat(np.arange(NUM_SHARDS), sizes)
    lines = [
        "| window | sorted: classes | distance | jump | shuffled: classes | distance | shards in 8 batches | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, window in [*((str(window), window) for window in WINDOWS), (f"blocks of {BLOCKS}", 0), ("all", None)]:
        begin = time.perf_counter()
        order = make_order(sizes, window)
        seconds = time.perf_counter() - begin
        classes, distance, jump = measure(sorted_labels[order])
        plain_classes, plain_distance, _ = measure(shuffled_labels[order])
        shards = most_shards(shard_of[order])
        lines.append(
            f"| {name} | {classes:.1f} | {distance:.3f} | {jump:.2f} | {plain_classes:.1f} | {plain_distance:.3f} | "
            f"{shards} | {seconds:.2f} |"
        )
    return lines


def make_order(sizes: NDArray[np.int64], window: int | None) -> Order:
    """The order of a window; of blocks for 0, the plain permutation for None."""
    draws = generator(0, "order")
    if window is None:
        return draws.permutation(int(sizes.sum()))
    if window:
        return windowed_order(sizes, window, layout=generator(0, "shards"), draws=draws)
    first = np.cumsum(sizes) - sizes
    shards = draws.permutation(len(sizes))
    blocks = [shards[begin : begin + BLOCKS] for begin in range(0, len(shards), BLOCKS)]
    rows = [np.concatenate([first[shard] + np.arange(sizes[shard]) for shard in block]) for block in blocks]
    return np.concatenate([draws.permutation(block) for block in rows])


def measure(labels: NDArray[np.integer]) -> tuple[float, float, float]:
    """Different classes in a batch, distance of its labels from the data's, largest jump between runs of batches."""
    num_batches = len(labels) // BATCH_SIZE // RUN * RUN
    batches = labels[: num_batches * BATCH_SIZE].reshape(num_batches, BATCH_SIZE)
    counts = np.zeros((num_batches, NUM_CLASSES), np.int32)
    np.add.at(counts, (np.arange(num_batches)[:, None], batches), 1)
    groups = counts.reshape(num_batches, NUM_GROUPS, -1).sum(axis=2) / BATCH_SIZE
    overall = np.bincount(labels * NUM_GROUPS // NUM_CLASSES, minlength=NUM_GROUPS) / len(labels)
    distance = np.abs(groups - overall).sum(axis=1).mean() / 2
    runs = groups.reshape(-1, RUN, NUM_GROUPS).mean(axis=1)
    jump = np.abs(np.diff(runs, axis=0)).sum(axis=1).max() / 2
    return float((counts > 0).sum(axis=1).mean()), float(distance), float(jump)


def most_shards(shards: NDArray[np.integer]) -> int:
    """The most shards that successive batches touch, as many of them as loaders have in the making."""
    step = IN_MAKING * BATCH_SIZE
    starts = range(0, len(shards) - step + 1, BATCH_SIZE)
    return max(len(np.unique(shards[start : start + step])) for start in starts)


def cost_table() -> list[str]:
    """Seconds and bytes a record for the order of 14 million records in 10,000 shards."""
    sizes = np.full(10_000, 1400)
    lines = ["| window, 14 million records in 10,000 shards | s | bytes a record, at most |", "|---|---|---|"]
    for window in (1, 16, 1024, 9999, None):
        begin = time.perf_counter()
        make_order(sizes, window)
        seconds = time.perf_counter() - begin
        tracemalloc.start()
        make_order(sizes, window)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        lines.append(f"| {window or 'all'} | {seconds:.1f} | {peak / sizes.sum():.1f} |")
    return lines


if __name__ == "__main__":
    main()
