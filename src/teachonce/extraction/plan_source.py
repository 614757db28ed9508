"""The records of a store's shards, wherever they are in the data today.

An extraction whose data is that of its plan reads it shard by shard. Data that has grown, or is in other shards, is
read by key: a shard of the store has the records that its records file names, and a shard that was added has those of
its data shard that no earlier part of the store has.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.engine.buffers import BufferPool
from teachonce.engine.chunked import chunked
from teachonce.errors import PlanMismatchError, RecordError
from teachonce.records.data_keys import DataKeys
from teachonce.records.key_index import KeyIndex
from teachonce.records.source import Location, Record, RecordSource, ShardInfo
from teachonce.storage.files import open_storage
from teachonce.store.contents import StoreContents
from teachonce.store.plan import Plan, records_file
from teachonce.store.relabeling.labels import compare_labels
from teachonce.store.store import Store
from teachonce.store.tables import read_records
from teachonce.terminal import plural, print_note

READ_AT_ONCE = 32
KEPT_SHARDS = 64
"""Shards whose keys and places in the data are kept, 16 bytes per record: as many as threads may read at once."""
LABEL_SAMPLE = 256
"""Records of which those that are known have their labels compared before a store grows: most may be new."""


def open_plan_source(path: Path, plan: Plan, source: RecordSource) -> RecordSource:
    """The records in the shards and rows of the plan: the source itself where it has them so."""
    if len(plan.parts) == 1 and plan.data["shards"] == source.describe()["shards"]:
        return source
    return PlanSource(path, plan, source)


class ExtractedData:
    """The data of an extraction, for a store that may have been started with other data (``store.begin``)."""

    def __init__(self, path: Path, source: RecordSource) -> None:
        self._path = path
        self._source = source
        self._keys = DataKeys(source)

    def find_added(self, plan: Plan) -> list[tuple[str, int]]:
        """(shard, records) of what the data has beyond the plan, and says what that is.

        Raises PlanMismatchError where the data has none of the store's records, or these are not complete.
        """
        index = self._read_index(plan)
        added, num_known = [], 0
        for shard, info in enumerate(self._source.shards):
            num_new = int((~_is_known(index, self._keys.shard(shard))).sum())
            num_known += info.num_records - num_new
            if num_new:
                added.append((info.name, num_new))
        num_added = sum(count for _, count in added)
        if not num_known:
            raise PlanMismatchError(
                f"{self._path}: was started with other data: it has none of the {num_added:,} records here; "
                "choose another --out"
            )
        if num_added:
            self._check_labels(plan)
        num_gone = self._count_gone(index)
        if num_added or num_gone:
            gone = f"; {num_gone:,} that the store has are not in the data" if num_gone else ""
            new = f"{plural(num_added, 'new record')} in {plural(len(added), 'shard')}"
            print_note(f"{self._path}: the data has changed: {new}{gone}")
        return added

    def _check_labels(self, plan: Plan) -> None:
        """Raise PlanMismatchError where known records have other labels than in the store: the new ones would, too.

        Plans that agree have the same class names; without any, no label may differ.
        """
        found = compare_labels(Store(self._path, is_partial=True), self._source, count=LABEL_SAMPLE)
        if found.num_different and (plan.class_names is None or not found.is_relabeling):
            raise PlanMismatchError(
                f"{self._path}: {found.example}; {found.count()} have another label than in the store: the classes are "
                "numbered differently here; use the same --labels, or another --out"
            )

    def check_has_all(self, plan: Plan) -> None:
        """Raise PlanMismatchError where records of the store are not in the data; of parts whose records are known."""
        index = _read_index(self._path, range(len(plan.parts)), is_partial=True) or []
        num_gone = self._count_gone(index) if index else 0
        if num_gone:
            raise PlanMismatchError(
                f"{self._path}: {num_gone:,} images of the store are not in the data any more, so its records "
                "cannot get more views: restore them, or extract into another --out; new records can only be "
                "added with the number of views that the store has"
            )

    def _read_index(self, plan: Plan) -> list[KeyIndex]:
        index = _read_index(self._path, range(len(plan.parts)))
        if index is None:
            raise PlanMismatchError(
                f"{self._path}: is unfinished and was started with other data: finish it with that data first, or "
                "choose another --out"
            )
        return index

    def _count_gone(self, index: Sequence[KeyIndex]) -> int:
        stored = np.unique(np.concatenate([part.keys for part in index]))
        return len(stored) - int(self._keys.index.contains(stored).sum())


class PlanSource(RecordSource):
    """A source in the shards and rows of a store's plan; picklable, and safe to use from several threads."""

    def __init__(self, path: Path, plan: Plan, source: RecordSource) -> None:
        self.path = path
        self.plan = plan
        self.source = source
        self.split, self.classes, self.format = source.split, source.classes, source.format
        self.with_boxes = source.with_boxes
        self.labeled = source.labeled
        self.shards = tuple(ShardInfo(name, None, count, 0) for name, count in plan.shards)
        self._open_cache()

    def read_batch(
        self, locations: Sequence[Location], *, with_logits: bool = False, buffers: BufferPool | None = None
    ) -> Sequence[Record]:
        """By key; RecordError where the data has a record no more."""
        found = {shard: self._locations(shard) for shard in dict.fromkeys(shard for shard, _ in locations)}
        own = [_location(found[shard][row]) for shard, row in locations]
        records = self.source.read_batch(own, with_logits=with_logits, buffers=buffers)
        for (shard, row), record in zip(locations, records, strict=True):
            self._check_key(shard, row, record)
        return records

    def _check_key(self, shard: int, row: int, record: Record) -> None:
        """Positions come from a cache of keys, which notices changed images only by sizes and times."""
        expected = int(self._keys_of(shard)[row])
        if record.key != expected:
            raise RecordError(
                f"{record.where}: key {record.key:016x} ({record.filename}), expected {expected:016x}: the image "
                "was changed, but its file has the old size and modification time; restore it, or touch it and "
                "start again"
            )

    def iter_shard(self, shard: int, *, with_logits: bool = False) -> Iterator[Record]:
        """In the rows of the store."""
        rows = range(self.shards[shard].num_records)
        for block in chunked(((shard, row) for row in rows), READ_AT_ONCE):
            yield from self.read_batch(block, with_logits=with_logits)

    def known_keys(self, shard: int) -> NDArray[np.uint64] | None:
        """Those of the records file, where there is one."""
        return self._find_keys(shard)

    def _keys_of(self, shard: int) -> NDArray[np.uint64]:
        """Kept for the shards that are being read."""
        with self._lock:
            found = self._kept_keys.get(shard)
            if found is None:
                while len(self._kept_keys) >= KEPT_SHARDS:
                    self._kept_keys.pop(next(iter(self._kept_keys)))
                found = self._kept_keys[shard] = self._find_keys(shard)
            return found

    def _find_keys(self, shard: int) -> NDArray[np.uint64]:
        name, _ = self.plan.shards[shard]
        if open_storage(self.path).has(records_file(name)):
            return read_records(self.path, self.plan, shard).keys
        added = self._find_rows(shard)
        if added is None:
            raise RecordError(f"{self.path}: shard {name} of the store is not in the data, which changed; start again")
        return self._keys.shard(added[0])[added[1]]

    def _find_rows(self, shard: int) -> tuple[int, NDArray[np.int64]] | None:
        """Of a shard that was added: the data's shard of its name, and the rows there that no earlier part has."""
        part = max(part for part, entry in enumerate(self.plan.parts) if entry.first_shard <= shard)
        if not part:
            return None
        name = self.plan.shards[shard][0].removesuffix(f".p{part:03d}")
        number = self._numbers.get(name)
        if number is None:
            return None
        with self._lock:
            if part not in self._earlier:
                self._earlier[part] = _read_index(self.path, range(part)) or []
            earlier = self._earlier[part]
        known = _is_known(earlier, self._keys.shard(number))
        return (number, np.flatnonzero(~known)) if earlier else None

    def _locations(self, shard: int) -> NDArray[np.uint32]:
        """(shard, row) in the source [n, 2] of each record of a shard."""
        with self._lock:
            found = self._found.get(shard)
            if found is None:
                found = self._found[shard] = self._locate_shard(shard)
            self._found.move_to_end(shard)
            while len(self._found) > KEPT_SHARDS:
                self._found.popitem(last=False)
            return found

    def _locate_shard(self, shard: int) -> NDArray[np.uint32]:
        name, num_records = self.plan.shards[shard]
        keys = self._find_keys(shard)
        if len(keys) != num_records:
            raise RecordError(
                f"{name}: {len(keys)} records, {num_records} in the plan: the data changed since; start again"
            )
        # Where the shard is as it was planned, its rows are those: each of several equal images has its own label.
        if (added := self._find_rows(shard)) and np.array_equal(self._keys.shard(added[0])[added[1]], keys):
            return np.column_stack([np.full(num_records, added[0]), added[1]]).astype(np.uint32)
        index = self._keys.index
        places = index.find(keys)
        missing = np.flatnonzero(places < 0)
        if len(missing):
            raise RecordError(
                f"{self.path}: {len(missing)} records of shard {name} are not in the data any more (first: key "
                f"{int(keys[missing[0]]):016x}), so it cannot get more views; restore them, or choose another --out"
            )
        return np.column_stack([index.shards[places], index.rows[places]])

    def _open_cache(self) -> None:
        self._lock = threading.RLock()
        self._keys = DataKeys(self.source)
        self._numbers = {info.name: number for number, info in enumerate(self.source.shards)}
        self._found: OrderedDict[int, NDArray[np.uint32]] = OrderedDict()
        self._earlier: dict[int, list[KeyIndex]] = {}
        self._kept_keys: dict[int, NDArray[np.uint64]] = {}

    def __getstate__(self) -> dict[str, Any]:
        hidden = {"_lock", "_keys", "_numbers", "_found", "_earlier", "_kept_keys"}
        return {name: value for name, value in vars(self).items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_cache()


def _read_index(path: Path, parts: range, *, is_partial: bool = False) -> list[KeyIndex] | None:
    """The index of some parts, of those alone that have one if ``is_partial``; else None where one has none."""
    contents = StoreContents(path, is_partial=True, trust=False)
    if is_partial:
        return [index for part in parts for index in contents.read_parts(range(part, part + 1)) or ()]
    return contents.read_parts(parts)


def _location(pair: NDArray[np.uint32]) -> Location:
    return int(pair[0]), int(pair[1])


def _is_known(index: Sequence[KeyIndex], keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    known = np.zeros(len(keys), bool)
    for part in index:
        known |= part.contains(keys)
    return known
