"""A validation split of data that has none: which of its records are held out.

A record is held out where a hash of (seed, key) is below the fraction. So it stays on its side whatever other records
come or go, in any container and order, and equal images, which have one key, are on the same side. Of a class that
would have none held out its smallest hash is, where it has two images or more, and its largest never is, so that every
class has an image to train on: only such images can change sides as their class grows. Where an image of two classes
would be held out for one and kept for the other it is kept.

To know the keys all images are read, once: they are kept in the cache folder (``data_keys``), and labels beside them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.errors import ConfigError
from teachonce.records.data_keys import DataKeys, read_shard_labels
from teachonce.records.selection import SelectedSource
from teachonce.records.source import NO_LABEL, RecordSource

Part = Literal["train", "validation"]


def hold_out(source: RecordSource, part: Part, fraction: float, seed: int) -> RecordSource:
    """The records of ``source`` that are held out (``validation``), or the others.

    Raises ConfigError where none are left, RecordError for a record that cannot be read.
    """
    keys = DataKeys(source).shards
    labels = [read_shard_labels(source, shard) for shard in range(len(source.shards))]
    is_held_out = choose_held_out(np.concatenate(keys), np.concatenate(labels), fraction, seed)
    chosen = is_held_out if part == "validation" else ~is_held_out
    if not chosen.any():
        raise ConfigError(
            f"--val-fraction {fraction}: leaves none of {source.num_records} records for {part}; give another fraction"
        )
    ends = np.cumsum([len(part_keys) for part_keys in keys])[:-1]
    rows = [np.flatnonzero(shard) for shard in np.split(chosen, ends)]
    return SelectedSource(source, rows, keys)


def choose_held_out(
    keys: NDArray[np.uint64], labels: NDArray[np.int32], fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Which records [N] are held out, by their keys [N] and labels [N]."""
    unique, inverse = np.unique(keys, return_inverse=True)
    content = unique.astype("<u8").tobytes()
    seed &= 2**64 - 1
    drawn = (xxhash.xxh3_64_intdigest(content[at : at + 8], seed) for at in range(0, len(content), 8))
    hashes = np.fromiter(drawn, np.uint64, len(unique))
    is_held_out = hashes < np.uint64(fraction * 2**64)
    images = np.unique(np.stack([labels.astype(np.int64), inverse]), axis=1)
    # By class, and within one by hash: a class's first image is its smallest.
    order = np.lexsort((hashes[images[1]], images[0]))
    classes, places = images[0][order], images[1][order]
    starts = np.flatnonzero(np.r_[True, classes[1:] != classes[:-1]])
    ends = np.r_[starts[1:], len(classes)]
    is_class = classes[starts] != NO_LABEL
    is_held_out[places[starts[is_class & (ends - starts > 1)]]] = True
    # Behind the others, as another class may have the same image: what a class needs for training counts more.
    is_held_out[places[ends[is_class] - 1]] = False
    return is_held_out[inverse]
