"""The store: the logits of one teacher for one dataset, as a self-describing directory.

    STORE/plan.json                              what is being extracted; a second extract must agree with it
          train-00000-of-01024.records.arrow     key, filename, label of each record, in record order
          train-00000-of-01024.v000-009.arrow    views 0..9 of that shard: view parameters and the codec's columns
          train-00000-of-01024.v000-009.sample.arrow   of a few of them: hashes of the pixels, logits before the codec
          index.arrow                            all record keys in order, with shard and row
          manifest.records.json                  complete: the records of all shards, and the index
          manifest.v000-009.json                 complete: views 0..9 of all shards

Every file is put once and never changed. Arrow IPC is memory-mapped, needs no parsing, and opens in pandas, polars or
DuckDB; docs/reference/store-format.md is the specification. Nothing here needs torch.

A store without a complete group of views is unfinished and is refused by readers. While more views are being extracted,
readers see those that were complete when they opened it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from teachonce.codecs.codec import Codec
from teachonce.codecs.registry import codec_from_json
from teachonce.codecs.softmax import check_temperature
from teachonce.errors import StoreError
from teachonce.records.class_space import ClassSpace
from teachonce.records.key_index import KeyIndex
from teachonce.records.source import NO_LABEL, Location, Locations
from teachonce.storage.address import to_location
from teachonce.store.contents import open_contents
from teachonce.store.manifests import REPAIR, index_file, missing_files, missing_manifest
from teachonce.store.open_shards import OpenShards
from teachonce.store.plan import Group, Plan, records_file, samples_file, views_file
from teachonce.store.plan_files import read_plan, resuming_command
from teachonce.store.tables import (
    Sample,
    ShardRecords,
    read_samples,
    records_schema,
    samples_schema,
    to_numpy,
    to_records,
    views_schema,
)
from teachonce.views.columns import VIEW_COLUMNS, check_views, decode_views
from teachonce.views.policy import Policy
from teachonce.views.view import View


class Store:
    """A finished store, opened for reading: memory-mapped, random access by (shard, view, row), picklable.

    ``num_views`` reads only the first so many views, as if there were no more, and ``num_parts`` only the first so many
    parts: what was there before records were added. ``is_partial`` also opens an unfinished
    one, for a worker that wants its own part: shards that are not there yet raise StoreError when they are read.

    The files of the shards that were used last stay mapped, of 16,384 shards in all stores of a process together
    (``open_shards``): at most 49,152 maps of the 65,530 that Linux allows, and about 12 KB a shard besides their pages.

    ``path``, ``plan``, ``policy``, ``seed``, ``codec`` and ``num_views`` say what it is. Where a method asks for a
    group, it is a tuple (first view, last view) of ``plan.view_groups``, which are stored in one file.

    A block (one view of one shard) is compared with its hash when it is first read, and its values with what they may
    be; ``trust`` leaves that out. A file
    whose bytes are not those that were written is a StoreError with its name.
    """

    _index: list[KeyIndex]

    def __init__(
        self,
        path: Path | str,
        *,
        num_views: int | None = None,
        num_parts: int | None = None,
        is_partial: bool = False,
        trust: bool = False,
    ) -> None:
        self.path = to_location(path)
        self._trust = trust
        self._contents = open_contents(self.path, is_partial=is_partial, trust=trust, num_parts=num_parts)
        if not self._contents.num_views:
            raise StoreError(self._why_unfinished())
        self.plan: Plan = self._contents.plan
        """With the groups of views and the shards that are complete."""
        self.codec: Codec = codec_from_json(self.plan.codec)
        self.policy: Policy
        self.seed: int
        self.policy, self.seed = self.plan.read_policy()
        complete = self._contents.num_views
        if num_views is not None and not 1 <= num_views <= complete:
            raise StoreError(
                f"{self.path}: {num_views} views requested, the store has {complete} complete ones; extract more "
                "with the same command and a larger --views"
            )
        self.num_views: int = num_views or complete
        """Views of each record that are read."""
        self._open_cache()

    @property
    def num_parts(self) -> int:
        """Parts that are read: one, and one more for each time that records were added."""
        return len(self.plan.parts)

    @property
    def num_records(self) -> int:
        """Records of all shards."""
        return self.plan.num_records

    @property
    def class_space(self) -> ClassSpace:
        """The teacher's classes, and which data label its class 0 is."""
        return self.plan.class_space

    @property
    def shards(self) -> Sequence[tuple[str, int]]:
        """(name, number of records) of each shard."""
        return self.plan.shards

    @property
    def made_by(self) -> list[dict[str, Any]]:
        """What made the numbers of the views that are read, each once: ``versions`` of libraries, ``device``."""
        return self._contents.made_by(self._groups())

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that made the views that are read, by name; several of one as "a and b"."""
        found: dict[str, list[str]] = {}
        for made in self.made_by:
            for name, version in made.get("versions", {}).items():
                if version not in found.setdefault(name, []):
                    found[name].append(version)
        return {name: " and ".join(versions) for name, versions in found.items()}

    @property
    def fingerprint(self) -> str:
        """Hash of the plan and of the manifests: what a run says it was trained from.

        Only what the views that are read depend on: it stays the same when more views are added to the store.
        """
        parts = [str(self.num_views), *self._contents.seals(self._groups())]
        return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())

    @property
    def index(self) -> list[KeyIndex]:
        """The key index of each part of the store; of a store of format 1 or 2 made now, of all its records."""
        if not self._index:
            self._index = self._contents.read_index() or [
                KeyIndex.build([self.read_keys(shard) for shard in range(len(self.shards))])
            ]
        return self._index

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Whether each of some keys [n] is known, and (shard, row) [n, 2] of its first record."""
        known = np.zeros(len(keys), bool)
        locations = np.full((len(keys), 2), -1, np.int64)
        for index in self.index:
            places = index.find(keys)
            new = (places >= 0) & ~known
            locations[new, 0], locations[new, 1] = index.shards[places[new]], index.rows[places[new]]
            known |= new
        return known, locations

    def knows(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each of many keys [n] is known; where they are ``find`` says."""
        known = np.zeros(len(keys), bool)
        for index in self.index:
            known |= index.contains(keys)
        return known

    def locations_of(self, key: int) -> list[Location]:
        """(shard, row) of every record with this key."""
        return [location for index in self.index for location in index.locations_of(key)]

    def read_keys(self, shard: int) -> NDArray[np.uint64]:
        """Record keys [N] of a shard."""
        return self._records(shard).keys

    def read_labels(self, shard: int) -> NDArray[np.int32]:
        """Data labels [N] of a shard; ``NO_LABEL`` where there is none."""
        return self._records(shard).labels

    def count_labeled(self, shard: int) -> int:
        """How many records of a shard have a label: what is right of them is a part of these."""
        return int((self.read_labels(shard) != NO_LABEL).sum())

    def read_filenames(self, shard: int) -> list[str]:
        """Filenames [N] of a shard."""
        return self._records(shard).filenames.to_pylist()

    def has_filename(self, filename: str) -> bool:
        """Whether a record has this name, folders aside; all names are searched."""
        name = filename.rpartition("/")[2]
        return any(
            pc.any(pc.or_(pc.equal(names, name), pc.ends_with(names, f"/{name}"))).as_py()
            for names in (self._records(shard).filenames for shard in range(len(self.shards)))
        )

    def read_filename(self, shard: int, row: int) -> str:
        """One filename."""
        return self._records(shard).filenames[row].as_py()

    def read_logits(
        self, shard: int, view: int, rows: Sequence[int] | NDArray[np.integer] | slice, temperature: float = 1.0
    ) -> NDArray[np.float32]:
        """Teacher logits [n, C] of some rows of one view, in the teacher's class space.

        A sparse codec estimates the classes that it does not keep for a softmax at ``temperature``; a dense one gives
        the same at any.
        """
        check_temperature(temperature)
        return self.codec.decode_logits(self.read_rows(shard, view, rows), temperature)

    def read_rows(
        self, shard: int, view: int, rows: Sequence[int] | NDArray[np.integer] | slice
    ) -> dict[str, NDArray[Any]]:
        """The codec's columns of some rows of one view, as they are stored."""
        columns = self.read_columns(shard, view).items()
        if isinstance(rows, slice):
            return {name: values[rows] for name, values in columns if name not in VIEW_COLUMNS}
        at = np.asarray(rows)
        if at.dtype == np.bool_ or (at.size and at.dtype.kind not in "iu"):
            raise TypeError(f"rows of {at.dtype}, expected row numbers or a slice (of a mask: np.flatnonzero(mask))")
        at = at.astype(np.intp, copy=False)
        # For one row a third of the time that ``values[rows]`` takes.
        return {name: values.take(at, axis=0) for name, values in columns if name not in VIEW_COLUMNS}

    def gather_columns(self, locations: Sequence[Location], view: int) -> dict[str, NDArray[Any]]:
        """All stored columns of one view of the records at several locations, each [n] or [n, width]."""
        gathered: dict[str, NDArray[Any]] = {}
        for shard, positions, rows in Locations.of(locations).by_shard:
            columns = self.read_columns(shard, view)
            if len(rows) == len(locations):
                return {name: values.take(rows, axis=0) for name, values in columns.items()}
            if not gathered:
                gathered = {
                    name: np.empty((len(locations), *values.shape[1:]), values.dtype)
                    for name, values in columns.items()
                }
            for name, values in columns.items():
                gathered[name][positions] = values.take(rows, axis=0)
        return gathered

    def gather_keys(self, locations: Sequence[Location]) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Keys and labels [n] of the records at several locations."""
        keys, labels = np.empty(len(locations), np.uint64), np.empty(len(locations), np.int32)
        for shard, positions, rows in Locations.of(locations).by_shard:
            records = self._records(shard)
            keys[positions], labels[positions] = records.keys.take(rows), records.labels.take(rows)
        return keys, labels

    def read_views(self, shard: int, view: int, rows: Sequence[int] | NDArray[np.integer] | slice) -> list[View]:
        """The views of some rows, as stored; ``CENTER`` for the policy that stores none."""
        columns = {
            name: values[rows] for name, values in self.read_columns(shard, view).items() if name in VIEW_COLUMNS
        }
        return list(decode_views(columns, len(self.read_keys(shard)[rows])))

    def read_samples(self, shard: int, group: Group) -> list[Sample]:
        """The samples of a shard's group of views; none in a store that keeps no samples."""
        if not self.plan.num_samples:
            return []
        name, num_records = self.shards[shard]
        file = self._contents.open_file(samples_file(name, group), shard, group)
        batch = file.read(0, samples_schema(self.class_space.num_classes), None)
        return read_samples(batch, num_records, group, str(self.path / samples_file(name, group)))

    def sample_files(self) -> list[tuple[int, Group]]:
        """(shard, group of views) of each sample file of the views that are read."""
        if not self.plan.num_samples:
            return []
        return [(shard, group) for group in self._groups() for shard in range(len(self.shards))]

    def read_hits(self, shard: int, group: Group) -> list[int] | None:
        """Of each view of a group, the rows whose most likely class was the label at extraction; None: not recorded."""
        name, _ = self.shards[shard]
        return self._contents.open_file(views_file(name, group), shard, group).metadata.get("hits")

    def check_files(self) -> int:
        """Compare all bytes of all files with what was written; returns the number of files.

        Raises StoreError that lists every damaged block.
        """
        num_files, damaged = self.find_damage()
        if damaged:
            listed = "\n  ".join(reason for _, reason in damaged)
            raise StoreError(
                f"{self.path}: {len(damaged)} of {num_files} files are damaged; run the command that made "
                f"it, extract or import, with the same options and --repair to recompute them:\n  {listed}"
            )
        return num_files

    def find_damage(self) -> tuple[int, list[tuple[str, str]]]:
        """The number of files, and (file, what is wrong with its blocks) of each that is not what was written."""
        return self._contents.find_damage()

    def check_index(self) -> None:
        """Raise StoreError unless the index of each part has every record once, at its place, in order."""
        for part, index in enumerate(self._contents.read_index()):
            shards = self.plan.part_shards(part)
            if not index.fits([self.read_keys(shard) for shard in shards], shards.start):
                raise StoreError(f"{self.path / index_file(part)}: is not the index of these records; {REPAIR}")

    def num_bytes(self) -> int:
        """Bytes of all files of the manifests."""
        return sum(self.file_sizes().values())

    def file_sizes(self) -> dict[str, int]:
        """Bytes of each file of the manifests."""
        return self._contents.file_sizes(self._groups())

    def read_columns(self, shard: int, view: int) -> dict[str, NDArray[Any]]:
        """The stored columns of one view of a shard, each [N] or [N, width], memory-mapped."""
        if not 0 <= view < self.num_views:
            raise StoreError(f"{self.path}: view {view} does not exist: the store has views 0..{self.num_views - 1}")
        # An epoch reads one view of every shard, with mixup of two images two, and the next epoch others.
        return self._open.get(shard).columns(view) or self._map_columns(shard, view)

    def _groups(self) -> list[Group]:
        return [group for group in self.plan.view_groups if group[0] < self.num_views]

    def _records(self, shard: int) -> ShardRecords:
        opened = self._open.get(shard)
        found = opened.records
        if found is None:
            name, num_records = self.shards[shard]
            file = self._contents.open_file(records_file(name), shard, None)
            found = to_records(
                file.read(0, records_schema(file.schema), num_records, is_checked=bool(self._checked[shard, -1]))
            )
            self._checked[shard, -1] = True
            opened.records = found
        return found

    def _map_columns(self, shard: int, view: int) -> dict[str, NDArray[Any]]:
        opened, group = self._open.get(shard), self.plan.group_of(view)
        name, num_records = self.shards[shard]
        file = opened.file(group) or self._contents.open_file(views_file(name, group), shard, group)
        schema = views_schema(self.policy.layout, self.codec, self.class_space.num_classes)
        is_checked = self._trust or bool(self._checked[shard, view])
        # A shard's view is small and will be read in random order: hashing it also reads it once, in order, which on a
        # cold disk is cheaper.
        batch = file.read(view - group[0], schema, num_records, is_checked=is_checked)
        columns = {column: to_numpy(batch.column(column)) for column in batch.schema.names}
        if not is_checked:
            try:
                check_views(columns)
                self.codec.check_values(columns)
            except StoreError as error:
                raise StoreError(f"{self.path / views_file(name, group)}: view {view}, {error}; {REPAIR}") from error
        self._checked[shard, view] = True
        opened.keep(group, file, view, columns)
        return columns

    def _open_cache(self) -> None:
        self._open = OpenShards()
        # Of each shard and view, and behind the views of the records, whether the block's hash was compared.
        self._checked = np.zeros((len(self.shards), self.num_views + 1), bool)
        self._index = []

    def __getstate__(self) -> dict[str, Any]:
        hidden = {"_open", "_checked", "_index"}  # memory maps are opened again in each process
        return {name: value for name, value in vars(self).items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_cache()

    def _why_unfinished(self) -> str:
        plan = read_plan(self.path)
        names = set(plan.files())
        num_missing = len(missing_files(self.path, plan))
        manifest = missing_manifest(self.path, plan)
        missing = f", {manifest} is not" if manifest is not None and not num_missing else ""
        return (
            f"{self.path}: is not finished: {len(names) - num_missing} of {len(names)} files are there{missing}; run "
            f"{resuming_command(self.path, plan)} to resume"
        )
