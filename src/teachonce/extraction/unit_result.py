"""What is known of one unit so far: filled in as records are rendered and the teacher's logits arrive, then written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import RecordError, StoreError, TeachonceError
from teachonce.extraction.units import Unit
from teachonce.records.source import Record, RecordSource
from teachonce.rng import generator
from teachonce.storage.files import open_storage
from teachonce.store.manifests import missing_files
from teachonce.store.plan import Group, Plan, records_file, views_file
from teachonce.store.shard_files import count_view_hits, open_views, read_indexed_keys
from teachonce.store.tables import Sample, ShardRecords, StoreWriter, keys_hash, read_records
from teachonce.views.view import View


class UnitResult:
    """Records, views, samples and logits of a unit; ``sampled`` are the (row, view) whose hashes are kept.

    One thread fills it in (the one that runs the teacher), another one writes it, once ``num_left`` is 0.
    """

    def __init__(self, unit: Unit, name: str, num_records: int, num_classes: int, num_samples: int) -> None:
        self.unit = unit
        self.name = name
        self.logits = np.empty((unit.num_views, num_records, num_classes), np.float32)
        self.num_left = num_records * unit.num_views
        """(row, view) whose logits are not there yet."""
        chosen = generator(0, "sample", name, unit.group[0]).permutation(self.num_left)[:num_samples]
        self.sampled = {(int(flat) % num_records, int(flat) // num_records) for flat in chosen}
        self._keys = np.empty(num_records, np.uint64)
        self._labels = np.empty(num_records, np.int32)
        self._filenames: list[str] = []
        self._views: list[list[View]] = [[] for _ in range(unit.num_views)]
        self._hashes: dict[tuple[int, int], tuple[int, int]] = {}

    def add_record(
        self, row: int, record: Record, views: Sequence[View], hashes: Mapping[tuple[int, int], tuple[int, int]]
    ) -> None:
        """The next record, in order, with its views of the group and the hashes of those that are sampled."""
        assert row == len(self._filenames), "records come in order"
        self._keys[row], self._labels[row] = record.key, record.label
        self._filenames.append(record.filename)
        for kept, view in zip(self._views, views, strict=True):
            kept.append(view)
        self._hashes |= hashes

    def add_logits(self, view: int, row: int, logits: NDArray[np.float32]) -> bool:
        """The teacher's logits [C] of one (row, view); whether they were the last ones missing."""
        self.logits[view, row] = logits
        self.num_left -= 1
        return self.num_left == 0

    def write(self, path: Path, plan: Plan, made_by: Mapping[str, Any]) -> None:
        """Write the unit's files into the store; LogitsError where the codec refuses a row."""
        name, group = self.name, self.unit.group
        writer = StoreWriter(path, plan, made_by)
        try:
            # The records go first, the views last: a view file never exists without what belongs to it.
            labels = self._labels
            if open_storage(path).has(records_file(name)):
                # An image may have been given another label since; what is counted is what the store says.
                stored = read_records(path, plan, self.unit.shard)
                self._check_same_records(stored)
                labels = stored.labels
            else:
                writer.write_records(name, self._keys, self._filenames, labels)
            if plan.num_samples:
                writer.write_samples(name, group, self._keys, self._samples())
            writer.write_views(name, group, self._keys, labels, self.logits, self._views)
        except TeachonceError as error:
            raise error.at(name) from error

    def _check_same_records(self, stored: ShardRecords) -> None:
        """Raise RecordError where these are other images than those whose earlier views are stored."""
        others = np.flatnonzero(stored.keys != self._keys)
        if len(others):
            row = int(others[0])
            raise RecordError(
                f"record {row} ({self._filenames[row]}) has key {int(self._keys[row]):016x}, its earlier views "
                f"are of {int(stored.keys[row]):016x}: {len(others)} images of the shard have changed since; "
                "restore them, or extract into another --out"
            )

    def _samples(self) -> list[Sample]:
        """The sampled (row, view) in order."""
        return [
            Sample(row, self.unit.group[0] + view, *self._hashes[row, view], self.logits[view, row])
            for row, view in sorted(self.sampled)
        ]


def write_missing_records(path: Path, plan: Plan, source: RecordSource) -> None:
    """Write the records files that are missing of shards that have views already: no teacher is needed for them.

    Raises StoreError where the data's records are not those that the views are of, or have other labels since.
    """
    missing = missing_files(path, plan)
    for shard, (name, _) in enumerate(plan.shards):
        groups = [group for group in plan.view_groups if views_file(name, group) not in missing]
        if records_file(name) in missing and groups:
            # Not the records themselves: their images may be more than fits into memory.
            found = [(record.key, record.label, record.filename) for record in source.iter_shard(shard)]
            keys = np.array([key for key, _, _ in found], np.uint64)
            labels = np.array([label for _, label, _ in found], np.int32)
            for group in groups:
                _check_made_of(path, plan, (shard, group), source, keys)
                _check_hits(path, plan, (shard, group), labels)
            StoreWriter(path, plan).write_records(name, keys, [filename for _, _, filename in found], labels)


def _check_made_of(
    path: Path, plan: Plan, place: tuple[int, Group], source: RecordSource, keys: NDArray[np.uint64]
) -> None:
    """Raise StoreError where a view file is of other records; which one changed the index says, where it is there."""
    shard, group = place
    file = open_views(path, plan, shard, group)
    if file.metadata["keys_xxh3"] == keys_hash(keys):
        return
    changed = "which one cannot be determined without the store's index"
    stored = read_indexed_keys(path, plan, shard)
    if stored is not None:
        other = np.flatnonzero(stored[: len(keys)] != keys[: len(stored)])
        at = int(other[0]) if len(other) else min(len(keys), len(stored))
        record = source.read_record(shard, at) if at < len(keys) else None
        what = f"record {at}" if record is None else f"{record.where} ({record.filename})"
        changed = f"first: {what}"
    name = plan.shards[shard][0]
    raise StoreError(
        f"{path / records_file(name)}: is missing or damaged and cannot be recomputed: an image of the data has "
        f"changed since the views were extracted ({changed}); restore it, or remove the views of {name} too"
    )


def _check_hits(path: Path, plan: Plan, place: tuple[int, Group], labels: NDArray[np.int32]) -> None:
    """Raise StoreError where the labels of today do not give the hits of a view file: they have changed since."""
    shard, group = place
    recorded = open_views(path, plan, shard, group).metadata["hits"]
    found = count_view_hits(path, plan, shard, group, labels)
    for view, (expected, now) in enumerate(zip(recorded, found, strict=True), group[0]):
        if now != expected:
            name = plan.shards[shard][0]
            raise StoreError(
                f"{path / records_file(name)}: is missing or damaged and cannot be recomputed: labels of the data "
                f"have changed since the views were extracted (in view {view} the most likely class was the label "
                f"of {expected} records, now of {now}); give the data with the old labels, or remove the views of "
                f"{name} too"
            )
