"""The store: what one teacher said of one data set, as a directory that describes itself.

    STORE/plan.json                              what is being extracted; written first; a second extract must agree
          train-00000-of-01024.records.arrow     key, filename, label of each record, in record order
          train-00000-of-01024.v000-009.arrow    views 0..9 of that shard: view parameters and the codec's columns
          train-00000-of-01024.v000-009.sample.arrow   of a few of them: hashes of the pixels, logits before the codec
          manifest.json                          written last: the files of all groups of views that are whole

Arrow IPC is memory-mapped, needs no parsing, and opens in pandas, polars or DuckDB (``arrow_files`` reads and writes
the files). Nothing here needs torch.

A store without a manifest is unfinished and is refused by readers; ``plan`` says when it is written. While more
views are being extracted, readers see those of the manifest that they opened.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from teachonce.codecs.codec import Codec
from teachonce.codecs.registry import codec_from_json
from teachonce.errors import StoreError
from teachonce.records.class_space import ClassSpace
from teachonce.records.source import Location
from teachonce.storage.files import open_storage, read_json
from teachonce.store.arrow_files import (
    Sample,
    file_entry,
    keys_hash,
    open_records_file,
    open_views_file,
    read_samples,
    records_file,
    samples_file,
    to_numpy,
    views_file,
)
from teachonce.store.plan import (
    MANIFEST_NAME,
    PLAN_NAME,
    Manifest,
    Plan,
    ShardEntry,
    holds_store,
    missing_files,
    read_plan,
)
from teachonce.views.columns import VIEW_COLUMNS, decode_views
from teachonce.views.policy import Policy
from teachonce.views.view import View

KEPT_VIEWS = 2
"""Views of a shard whose columns stay mapped: as many as one batch reads."""


class Store:
    """A finished store, opened for reading: memory-mapped, random access by (shard, view, row), picklable.

    ``num_views`` reads only the first so many views, as if there were no more. ``is_partial`` also opens an unfinished
    one, for a worker that wants its own part: shards that are not there yet raise StoreError when they are read.
    """

    def __init__(self, path: Path | str, *, num_views: int | None = None, is_partial: bool = False) -> None:
        self.path = Path(path)
        manifest_path = self.path / MANIFEST_NAME
        has_manifest = open_storage(self.path).has(MANIFEST_NAME)
        if is_partial and not has_manifest:
            self.manifest = _partial_manifest(self.path)
        elif has_manifest:
            self.manifest = Manifest.from_json(read_json(manifest_path), manifest_path)
        else:
            raise StoreError(self._why_unfinished())
        self.plan: Plan = self.manifest.plan
        self.num_records: int = self.manifest.num_records
        self._shards: list[ShardEntry] = self.manifest.shards
        self.codec: Codec = codec_from_json(self.plan.codec)
        self.policy: Policy
        self.seed: int
        self.policy, self.seed = self.plan.read_policy()
        if num_views is not None and not 1 <= num_views <= self.plan.num_views:
            raise StoreError(
                f"{self.path}: {num_views} views asked for, the store has {self.plan.num_views} that are whole; "
                "extract more with the same command and a larger --views"
            )
        self.num_views: int = num_views or self.plan.num_views
        """Views of each record that are read."""
        self._open_cache()

    @property
    def class_space(self) -> ClassSpace:
        """The teacher's classes, and which data label its class 0 is."""
        return self.plan.class_space

    @property
    def shards(self) -> list[tuple[str, int]]:
        """(name, number of records) of each shard."""
        return self.plan.shards

    @property
    def fingerprint(self) -> str:
        """Hash of the plan and of every file's hash: what a run says it was trained from.

        Only what the views that are read depend on: it stays the same when more views are added to the store.
        """
        groups = tuple(group for group in self.plan.view_groups if group[0] < self.num_views)
        plan = replace(self.plan, view_groups=groups)
        used = {name for names in plan.unit_files().values() for name in names}
        parts = [str(sorted(plan.to_json().items())), str(self.num_views)]
        parts += [file["xxh3"] for shard in self._shards for file in shard["files"] if file["name"] in used]
        return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())

    def read_keys(self, shard: int) -> NDArray[np.uint64]:
        """Record keys [N] of a shard."""
        return self._records(shard)[0]

    def read_labels(self, shard: int) -> NDArray[np.int32]:
        """Data labels [N] of a shard."""
        return self._records(shard)[1]

    def read_filenames(self, shard: int) -> list[str]:
        """Filenames [N] of a shard."""
        return self._records(shard)[2].to_pylist()

    def read_logits(
        self, shard: int, view: int, rows: Sequence[int] | NDArray[np.integer] | slice, temperature: float = 1.0
    ) -> NDArray[np.float32]:
        """Teacher logits [n, C] of some rows of one view, in the teacher's class space.

        A sparse codec estimates the classes that it does not keep for a softmax at ``temperature``; a dense one gives
        the same at any.
        """
        return self.codec.decode_logits(self.read_rows(shard, view, rows), temperature)

    def read_rows(
        self, shard: int, view: int, rows: Sequence[int] | NDArray[np.integer] | slice
    ) -> dict[str, NDArray[Any]]:
        """The codec's columns of some rows of one view, as they are stored."""
        columns = self.read_columns(shard, view)
        return {name: values[rows] for name, values in columns.items() if name not in VIEW_COLUMNS}

    def gather_columns(self, locations: Sequence[Location], view: int) -> dict[str, NDArray[Any]]:
        """All stored columns of one view of the records at several locations, each [n] or [n, width]."""
        gathered: dict[str, NDArray[Any]] = {}
        for shard, positions, rows in _by_shard(locations):
            columns = self.read_columns(shard, view)
            if not gathered:
                gathered = {
                    name: np.empty((len(locations), *values.shape[1:]), values.dtype)
                    for name, values in columns.items()
                }
            for name, values in columns.items():
                gathered[name][positions] = values[rows]
        return gathered

    def gather_keys(self, locations: Sequence[Location]) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Keys and labels [n] of the records at several locations."""
        keys, labels = np.empty(len(locations), np.uint64), np.empty(len(locations), np.int32)
        for shard, positions, rows in _by_shard(locations):
            keys[positions], labels[positions] = self.read_keys(shard)[rows], self.read_labels(shard)[rows]
        return keys, labels

    def read_views(self, shard: int, view: int, rows: Sequence[int] | NDArray[np.integer] | slice) -> list[View]:
        """The views of some rows, as stored; ``CENTER`` for the policy that stores none."""
        columns = {
            name: values[rows] for name, values in self.read_columns(shard, view).items() if name in VIEW_COLUMNS
        }
        return decode_views(columns, len(self.read_keys(shard)[rows]))

    def read_samples(self) -> list[tuple[int, Sample]]:
        """(shard, sample) of every sample of the views that are read; none in a store that keeps no samples."""
        if not self.plan.num_samples:
            return []
        groups = [group for group in self.plan.view_groups if group[0] < self.num_views]
        return [
            (shard, sample)
            for shard, (name, _) in enumerate(self.shards)
            for group in groups
            for sample in read_samples(self.path / samples_file(name, group))
            if sample.view < self.num_views
        ]

    def find_row(self, shard: int, key: int) -> int:
        """The row of a record key in a shard (of equal images the first); StoreError where it is not there."""
        with self._lock:
            found = self._orders.get(shard)
        if found is None:
            keys = self.read_keys(shard)
            order = np.argsort(keys, kind="stable")
            found = order, keys[order]
            with self._lock:
                self._orders[shard] = found
        order, ordered = found
        at = int(np.searchsorted(ordered, np.uint64(key)))
        if at == len(ordered) or int(ordered[at]) != key:
            raise StoreError(
                f"{self.path}: a view of {self.shards[shard][0]} is mixed with record {key:016x}, which is not in that "
                "shard: partners come from the same shard; the store is damaged: extract again"
            )
        return int(order[at])

    def check_files(self) -> int:
        """Compare every file's bytes with the manifest; StoreError for the first that differs. Returns their number."""
        for shard in self._shards:
            for file in shard["files"]:
                found = file_entry(self.path, file["name"])
                if found != file:
                    raise StoreError(
                        f"{self.path / file['name']}: {found['bytes']} bytes with hash {found['xxh3']}, the manifest "
                        f"says {file['bytes']} bytes with hash {file['xxh3']}: damaged; remove the file and "
                        f"{MANIFEST_NAME}, and extract again"
                    )
        return sum(len(shard["files"]) for shard in self._shards)

    def num_bytes(self) -> int:
        """Bytes of all files of the manifest."""
        return sum(file["bytes"] for shard in self._shards for file in shard["files"])

    def _records(self, shard: int) -> tuple[NDArray[np.uint64], NDArray[np.int32], pa.Array]:
        """Keys, labels and filenames."""
        found = self._record_tables.get(shard)
        if found is None:
            entry = self._shards[shard]
            table = open_records_file(self.path / records_file(entry["name"]), entry["num_records"])
            found = table["key"].to_numpy(), table["label"].to_numpy(), table["filename"]
            # Two threads may both open it; the later one's is kept, and both are good.
            self._record_tables[shard] = found
        return found

    def read_columns(self, shard: int, view: int) -> dict[str, NDArray[Any]]:
        """The stored columns of one view of a shard, each [N] or [N, width], memory-mapped."""
        if not 0 <= view < self.num_views:
            raise StoreError(f"{self.path}: view {view} is not there: the store has views 0..{self.num_views - 1}")
        # An epoch reads one view of every shard, with mixup of two images two, and the next epoch others. Of threads
        # that map views of a shard at once the last one's are kept, and all are good.
        cached = self._columns.get(shard, ())
        for cached_view, columns in cached:
            if cached_view == view:
                return columns
        columns = self._map_columns(shard, view)
        self._columns[shard] = ((view, columns), *cached)[:KEPT_VIEWS]
        return columns

    def _map_columns(self, shard: int, view: int) -> dict[str, NDArray[Any]]:
        group = next(group for group in self.plan.view_groups if group[0] <= view <= group[1])
        entry = self._shards[shard]
        path = self.path / views_file(entry["name"], group)
        expected_keys = entry.get("keys_xxh3") or keys_hash(self.read_keys(shard))
        reader = open_views_file(path, group, entry["num_records"], expected_keys)
        batch = reader.get_batch(view - group[0])
        columns = {name: to_numpy(batch.column(name)) for name in batch.schema.names}
        for values in columns.values():
            # A shard's view is small and will be read in random order: from a cold disk once, in order, is cheaper.
            values.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max(initial=0)
        return columns

    def _open_cache(self) -> None:
        self._lock = threading.Lock()
        self._record_tables: dict[int, tuple[NDArray[np.uint64], NDArray[np.int32], pa.Array]] = {}
        self._columns: dict[int, tuple[tuple[int, dict[str, NDArray[Any]]], ...]] = {}
        self._orders: dict[int, tuple[NDArray[np.intp], NDArray[np.uint64]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        hidden = {"_lock", "_record_tables", "_columns", "_orders"}  # memory maps are opened anew in each process
        return {name: value for name, value in vars(self).items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_cache()

    def _why_unfinished(self) -> str:
        if not holds_store(self.path):
            return f"{self.path}: is no store (neither {MANIFEST_NAME} nor {PLAN_NAME} is there)"
        plan = read_plan(self.path)
        num_files = len({name for names in plan.unit_files().values() for name in names})
        num_missing = len(missing_files(self.path, plan))
        return (
            f"{self.path}: is not finished: {num_files - num_missing} of {num_files} files are there; "
            "run the same extract again"
        )


def _partial_manifest(path: Path) -> Manifest:
    plan = read_plan(path)
    shards: list[ShardEntry] = [{"name": name, "num_records": count, "files": []} for name, count in plan.shards]
    return Manifest(
        format_version=plan.format_version,
        num_views=plan.num_views,
        num_records=sum(count for _, count in plan.shards),
        versions={},
        plan=plan,
        shards=shards,
    )


def _by_shard(locations: Sequence[Location]) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.intp]]]:
    """(shard, positions in ``locations``, rows) of each shard that occurs."""
    shards, rows = np.array(locations, np.intp).reshape(-1, 2).T
    order = np.argsort(shards, kind="stable")
    for positions in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1) if locations else ():
        yield int(shards[positions[0]]), positions, rows[positions]
