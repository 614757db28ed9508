"""Do records and a store belong together? Checked when both are opened, and again for every record that is read.

A store is joined with its records by position, and the position is trusted only as far as these checks go: split,
shards and class count of the whole; key (hash of the image's bytes) and label of each record. What does not agree is
refused, never guessed. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from teachonce.errors import StoreError
from teachonce.records.source import Location, Record
from teachonce.store.store import Store


def check_same_data(store: Store, described: Mapping[str, Any]) -> None:
    """Raise StoreError unless the store was made of the data that ``RecordSource.describe`` describes."""
    if store.plan.data["split"] != described["split"]:
        raise StoreError(
            f"{store.path}: made of split {store.plan.data['split']!r}, this is {described['split']!r}; "
            "give the store of this split"
        )
    num_classes = described.get("num_classes")
    if num_classes is not None and num_classes != store.plan.data_classes:
        raise StoreError(
            f"{store.path}: made for {store.plan.data_classes} classes (background included), the data has "
            f"{num_classes}: a store of other data; give the data that it was extracted from"
        )
    stored = [(name, num_records) for name, num_records, _ in store.plan.data["shards"]]
    found = [(name, num_records) for name, num_records, _ in described["shards"]]
    for index, (a, b) in enumerate(zip(stored, found, strict=False)):
        if a != b:
            raise StoreError(
                f"{store.path}: shard {index} is {a[0]} with {a[1]} records in the store, {b[0]} with {b[1]} in the "
                "data: a store of other data; give the data that it was extracted from"
            )
    if len(stored) != len(found):
        raise StoreError(
            f"{store.path}: {len(stored)} shards in the store, {len(found)} in the data: a store of other data; "
            "give the data that it was extracted from"
        )


def check_same_policy(first: Store, other: Store) -> None:
    """Raise StoreError unless two stores have views drawn from one policy by one seed, for one set of data classes."""
    for name, a, b in (
        ("policy", first.plan.policy, other.plan.policy),
        ("data classes", first.plan.data_classes, other.plan.data_classes),
    ):
        if a != b:
            raise StoreError(
                f"{other.path}: {name} {b}, {first.path} has {a}: the teachers looked at other views, nothing to "
                f"average; extract with --views-of {first.path}"
            )


def check_key(store: Store, shard: int, row: int, record: Record) -> None:
    """Raise StoreError unless the record has the bytes that the teacher saw, and the label that the store has."""
    expected = int(store.read_keys(shard)[row])
    if record.key != expected:
        if record.key in store.read_keys(shard):
            raise StoreError(
                f"{record.where}: key {record.key:016x} ({record.filename}) is another row of the store {store.path}: "
                "the records of this shard have another order than at extraction; restore it, or extract again"
            )
        raise StoreError(
            f"{record.where}: key {record.key:016x} ({record.filename}), the store {store.path} has {expected:016x}: "
            "the image changed since extraction, or this is other data; extract again"
        )
    label = int(store.read_labels(shard)[row])
    if record.label != label:
        raise StoreError(
            f"{record.where}: label {record.label} ({record.filename}), the store {store.path} has {label}: the "
            "classes have another order or other numbers there; use the same --labels, or extract over this data"
        )


def check_keys(store: Store, locations: Sequence[Location], records: Sequence[Record]) -> None:
    """``check_key`` of several records."""
    keys, labels = store.gather_keys(locations)
    found_keys = np.array([record.key for record in records], np.uint64)
    found_labels = np.array([record.label for record in records], np.int64)
    for index in np.flatnonzero((keys != found_keys) | (labels != found_labels)).tolist():
        shard, row = locations[index]
        check_key(store, shard, row, records[index])
