"""The records of a store's shards, wherever they lie in the data today.

An extraction whose data is that of its plan reads it shard by shard. Data that has grown, or lies in other shards, is
read by key: a shard of the store has the records that its records file names, and a shard that was added has those of
its data shard that no earlier part of the store has.
"""

from __future__ import annotations

import threading
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
from teachonce.store.tables import read_records
from teachonce.terminal import print_line

READ_AT_ONCE = 32


def open_plan_source(path: Path, plan: Plan, source: RecordSource) -> RecordSource:
    """The records in the shards and rows of the plan: the source itself where it has them so."""
    if len(plan.parts) == 1 and plan.data["shards"] == source.describe()["shards"]:
        return source
    return PlanSource(path, plan, source)


class ExtractedData:
    """The data of an extraction, for a store that may have been begun with other data (``store.begin``)."""

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
                f"{self._path}: was begun with other data: it knows none of the {num_added:,} records here; choose "
                "another --out"
            )
        num_gone = self._count_gone(index)
        if num_added or num_gone:
            gone = f"; {num_gone:,} that the store has are not in the data" if num_gone else ""
            print_line(f"{self._path}: the data has changed: {num_added:,} new records in {len(added)} shards{gone}")
        return added

    def check_has_all(self, plan: Plan) -> None:
        """Raise PlanMismatchError where records of the store are not in the data."""
        num_gone = self._count_gone(self._read_index(plan))
        if num_gone:
            raise PlanMismatchError(
                f"{self._path}: {num_gone:,} images of the store are not in the data any more, so its records cannot "
                "get more views: give them back, or extract into another --out; new records alone can be added with "
                "the --views that the store has"
            )

    def _read_index(self, plan: Plan) -> list[KeyIndex]:
        index = _read_index(self._path, range(len(plan.parts)))
        if index is None:
            raise PlanMismatchError(
                f"{self._path}: is unfinished and was begun with other data: finish it with that data first, or choose "
                "another --out"
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
        self.shards = tuple(ShardInfo(name, None, count, 0) for name, count in plan.shards)
        self._open_cache()

    def read_batch(
        self, locations: Sequence[Location], *, with_logits: bool = False, buffers: BufferPool | None = None
    ) -> list[Record]:
        """By key; RecordError where the data has a record no more."""
        own = [self._locations(shard)[row] for shard, row in locations]
        return self.source.read_batch(own, with_logits=with_logits, buffers=buffers)

    def iter_shard(self, shard: int, *, with_logits: bool = False) -> Iterator[Record]:
        """In the rows of the store."""
        for block in chunked(iter(self._locations(shard)), READ_AT_ONCE):
            yield from self.source.read_batch(block, with_logits=with_logits)

    def known_keys(self, shard: int) -> NDArray[np.uint64] | None:
        """Those of the records file, where there is one."""
        return self._find_keys(shard)

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
        name = self.plan.shards[shard][0].removesuffix(f".p{part:03d}")
        numbers = [number for number, info in enumerate(self.source.shards) if info.name == name]
        if not (part and numbers):
            return None
        with self._lock:
            if part not in self._earlier:
                self._earlier[part] = _read_index(self.path, range(part)) or []
            earlier = self._earlier[part]
        known = _is_known(earlier, self._keys.shard(numbers[0]))
        return (numbers[0], np.flatnonzero(~known)) if earlier else None

    def _locations(self, shard: int) -> list[Location]:
        with self._lock:
            found = self._found.get(shard)
            if found is None:
                found = self._found[shard] = self._locate_shard(shard)
            return found

    def _locate_shard(self, shard: int) -> list[Location]:
        name, num_records = self.plan.shards[shard]
        keys = self._find_keys(shard)
        if len(keys) != num_records:
            raise RecordError(
                f"{name}: {len(keys)} records, {num_records} in the plan: the data changed since; start again"
            )
        # Where the shard is as it was planned, its rows are those: of equal images each has a label of its own.
        if (added := self._find_rows(shard)) and np.array_equal(self._keys.shard(added[0])[added[1]], keys):
            return [(added[0], row) for row in added[1].tolist()]
        index = self._keys.index
        places = index.find(keys)
        missing = np.flatnonzero(places < 0)
        if len(missing):
            raise RecordError(
                f"{self.path}: {len(missing)} records of shard {name} are not in the data any more (first: key "
                f"{int(keys[missing[0]]):016x}), so it cannot get more views; restore them, or choose another --out"
            )
        return [index.location(place) for place in places.tolist()]

    def _open_cache(self) -> None:
        self._lock = threading.RLock()
        self._keys = DataKeys(self.source)
        self._found: dict[int, list[Location]] = {}
        self._earlier: dict[int, list[KeyIndex]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name not in ("_lock", "_keys", "_found", "_earlier")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_cache()


def _read_index(path: Path, parts: range) -> list[KeyIndex] | None:
    contents = StoreContents(path, is_partial=True, trust=False)
    return contents.read_parts(parts)


def _is_known(index: Sequence[KeyIndex], keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    known = np.zeros(len(keys), bool)
    for part in index:
        known |= part.contains(keys)
    return known
