"""The keys and labels of all records of a source, without reading its images again: kept in the user's cache folder.

A key is a hash of the image, so to know the keys of data is to read all of it, once. They are kept shard by shard under
an identity that is another one when a file's size or time changes (``ShardInfo.identity``), so data that grows has only
its new shards read; and as an index of all shards, memory-mapped, 16 bytes per record. A cache that is out of date does
no harm: readers of a record compare its key.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.engine.chunked import chunked
from teachonce.engine.jobs import run_jobs
from teachonce.engine.machine import num_cores
from teachonce.engine.options import Engine
from teachonce.engine.prefetch import prefetch
from teachonce.engine.progress import Advance, progress
from teachonce.errors import TeachonceError
from teachonce.records.key_index import KeyIndex
from teachonce.records.selection import SelectedSource
from teachonce.records.source import NO_LABEL, Location, Record, RecordSource
from teachonce.storage.cache_folder import cache_folder, filling_cache
from teachonce.storage.files import atomic_write, locate

WORKER_BYTES = 1 << 30
"""Bytes of records for which it pays to start one more process."""
SAMPLED_LABELS = 4096
"""Records that show whether labels are right: of 1,000 classes in no order they miss one twice in 100 times."""
READ_AT_ONCE = 32
READ_THREADS = 4


class DataKeys:
    """Keys [n] of each shard of a source, and where each key is; reads the records whose keys are not cached.

    Safe to use from several threads. Raises RecordError for a record that cannot be read.
    """

    def __init__(self, source: RecordSource) -> None:
        self._source = source
        self._lock = threading.RLock()
        self._shards: dict[int, NDArray[np.uint64]] = {}
        self._index: KeyIndex | None = None

    @property
    def shards(self) -> list[NDArray[np.uint64]]:
        """The keys of every shard."""
        with self._lock:
            numbers = range(len(self._source.shards))
            self._read([shard for shard in numbers if self._find(shard) is None])
            return [self._shards[shard] for shard in numbers]

    @property
    def index(self) -> KeyIndex:
        """(shard, row) by key."""
        with self._lock:
            if self._index is None:
                self._index = self._map_index()
            return self._index

    def shard(self, shard: int) -> NDArray[np.uint64]:
        """The keys of one shard; no other is read."""
        with self._lock:
            found = self._find(shard)
            if found is None:
                self._keep(shard, _KeyReader(self._source, 0)(shard, lambda count: None))
            return self._shards[shard]

    def _find(self, shard: int) -> NDArray[np.uint64] | None:
        if shard not in self._shards:
            info = self._source.shards[shard]
            found = self._source.known_keys(shard)
            if found is None and info.identity:
                found = read_cached(f"{info.identity}.keys", info.num_records)
            if found is None:
                return None
            self._shards[shard] = found
        return self._shards[shard]

    def _read(self, missing: list[int]) -> None:
        if not missing:
            return
        identities = "\n".join(self._source.shards[shard].identity for shard in missing)
        with filling_cache(xxhash.xxh3_128_hexdigest(identities.encode())):
            self._read_all([shard for shard in missing if self._find(shard) is None])

    def _read_all(self, missing: list[int]) -> None:
        if not missing:
            return
        infos = [self._source.shards[shard] for shard in missing]
        num_workers = min(num_cores(), sum(info.num_bytes for info in infos) // WORKER_BYTES)
        build = partial(_KeyReader, self._source)
        with progress("keys", sum(info.num_records for info in infos), unit="records") as advance:
            for shard, found in run_jobs(build, missing, engine=Engine(num_workers=num_workers), report=advance):
                self._keep(shard, found)

    def _keep(self, shard: int, found: _ShardKeys) -> None:
        self._shards[shard] = found.keys
        identity = self._source.shards[shard].identity
        if identity and found.is_whole:
            write_cached(f"{identity}.keys", found.keys)

    def _map_index(self) -> KeyIndex:
        shards = self.shards
        identities = [info.identity for info in self._source.shards]
        if not all(identities):
            return KeyIndex.build(shards)
        num_records = sum(map(len, shards))
        name = xxhash.xxh3_128_hexdigest("\n".join(identities).encode()) + ".index"
        found = read_cached(name, 2 * num_records)
        if found is None:
            built = KeyIndex.build(shards)
            numbers = np.concatenate([built.shards, built.rows]).view(np.uint64)
            write_cached(name, np.concatenate([built.keys, numbers]))
            return built
        halves = found[num_records:].view(np.uint32)
        return KeyIndex(found[:num_records], halves[:num_records], halves[num_records:])


class _ShardKeys(NamedTuple):
    keys: NDArray[np.uint64]
    is_whole: bool
    """False where a file could not be read, which may be mended without that its size or time changes."""


class _KeyReader:
    def __init__(self, source: RecordSource, worker_index: int) -> None:
        self.source = source

    def __call__(self, shard: int, report: Advance) -> _ShardKeys:
        keys = np.empty(self.source.shards[shard].num_records, np.uint64)
        is_whole = True
        for row, record in enumerate(self.source.iter_shard(shard)):
            keys[row] = record.key
            is_whole = is_whole and not record.unreadable
            report(1)
        return _ShardKeys(keys, is_whole)


def _cache_file(name: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / name


def read_cached(name: str, num_words: int) -> NDArray[np.uint64] | None:
    """Words (uint64) of a cached file, memory-mapped; followed by their xxh3."""
    path = _cache_file(name)
    if path is None:
        return None
    storage, file = locate(path)
    try:
        if not storage.has(file):
            return None
        words = np.frombuffer(storage.map(file)[:], np.uint64)
    except (TeachonceError, ValueError):
        return None
    if len(words) != num_words + 1 or xxhash.xxh3_64_intdigest(words[:-1].data) != int(words[-1]):
        return None
    return words[:-1]


def write_cached(name: str, words: NDArray[np.uint64]) -> None:
    """Keep words (uint64) under a name in the cache folder, where there is one that can be written."""
    path = _cache_file(name)
    if path is None:
        return
    # Where the folder cannot be written the keys are only slower to have, so this is not an error.
    with suppress(TeachonceError), atomic_write(path) as file:
        file.write(words.tobytes())
        file.write(xxhash.xxh3_64_intdigest(np.ascontiguousarray(words).data).to_bytes(8, "little"))


def read_shard_labels(source: RecordSource, shard: int) -> NDArray[np.int32]:
    """The labels [n] of a shard's records: known, cached, or read, once. Raises RecordError as the source."""
    found = find_shard_labels(source, shard)
    if found is not None:
        return found
    if isinstance(source, SelectedSource):
        # Cached for the records that they were chosen from.
        return source.choose_rows(shard, partial(read_shard_labels, source.source))
    info = source.shards[shard]
    labels = np.fromiter((record.label for record in source.iter_shard(shard)), np.int64, info.num_records)
    if name := _labels_name(source, shard):
        write_cached(name, labels.view(np.uint64))
    return labels.astype(np.int32)


def find_shard_labels(source: RecordSource, shard: int) -> NDArray[np.int32] | None:
    """As ``read_shard_labels``; None where they are neither known nor cached."""
    found = source.known_labels(shard)
    if found is not None:
        return found
    if isinstance(source, SelectedSource):
        whole = find_shard_labels(source.source, source.shard_of(shard))
        return None if whole is None else source.choose_rows(shard, lambda _: whole)
    name = _labels_name(source, shard)
    cached = read_cached(name, source.shards[shard].num_records) if name else None
    return None if cached is None else cached.view(np.int64).astype(np.int32)


def _labels_name(source: RecordSource, shard: int) -> str:
    """Of the file that the labels of a shard are cached in; "": nowhere."""
    identity = source.shards[shard].identity
    return f"{identity}.{source.label_reading}.labels" if identity else ""


def find_other_label(source: RecordSource, expected: range, most: int = SAMPLED_LABELS) -> Location | None:
    """Where a record is whose label is none of the ``expected``; None where none was found.

    Of shards whose labels are neither known nor cached about ``most`` records are read, the first ones of many shards:
    labels that are shifted, or of other classes, are found, and data that is far away is not read as a whole.
    """
    unknown = []
    for shard in range(len(source.shards)):
        labels = find_shard_labels(source, shard)
        if labels is None:
            unknown.append(shard)
            continue
        others = np.flatnonzero((labels < expected.start) | (labels >= expected.stop))
        if len(others):
            return shard, int(others[0])
    spread = unknown[:: -(-len(unknown) // most) or 1]
    is_small = sum(source.shards[shard].num_records for shard in spread) <= most
    for shard in spread:
        num_rows = source.shards[shard].num_records
        rows = range(num_rows if is_small else min(num_rows, most // len(spread)))
        batches = chunked(((shard, row) for row in rows), READ_AT_ONCE)
        read = prefetch(batches, partial(_read_with_locations, source), threads=READ_THREADS, ahead=2 * READ_THREADS)
        for found in read:
            for location, record in found:
                if record.label not in expected:
                    return location
    return None


def _read_with_locations(source: RecordSource, locations: Sequence[Location]) -> list[tuple[Location, Record]]:
    return list(zip(locations, source.read_batch(locations), strict=True))


def read_all_labels(source: RecordSource) -> NDArray[np.int32]:
    """The labels [N] of all records, counted through all shards; shows progress where records have to be read."""
    numbers = range(len(source.shards))
    found = {shard: labels for shard in numbers if (labels := source.known_labels(shard)) is not None}
    unknown = [shard for shard in numbers if shard not in found]
    num_records = sum(source.shards[shard].num_records for shard in unknown)
    with progress("labels", num_records, unit="records") if unknown else nullcontext() as advance:
        for shard in unknown:
            found[shard] = read_shard_labels(source, shard)
            if advance is not None:
                advance(len(found[shard]))
    return np.concatenate([found[shard] for shard in numbers])


@dataclass(frozen=True)
class ClassOrder:
    """How the classes are spread over the shards, as those see it who take pairs of records from one shard."""

    num_shards: int
    """That have labels."""
    num_single: int
    """Of these the shards whose records are of one class."""
    own_class: float
    """Of the other records of a record's shard, those of its class, in the mean."""
    own_class_shuffled: float
    """What it would be if all shards had been shuffled together."""


def find_class_order(source: RecordSource) -> ClassOrder | None:
    """Measured where all labels are known without reading records and a shard has two with labels; else None."""
    num_shards = num_single = num_records = num_pairs = 0
    num_own = 0.0
    totals = np.zeros(0, np.int64)
    for shard in range(len(source.shards)):
        labels = source.known_labels(shard)
        if labels is None:
            return None
        classes, counts = np.unique(labels[labels != NO_LABEL], return_counts=True)
        if len(classes) == 0:
            continue
        size = int(counts.sum())
        num_shards, num_single, num_records = num_shards + 1, num_single + (len(classes) == 1), num_records + size
        if len(totals) <= classes[-1]:
            totals = np.pad(totals, (0, int(classes[-1]) + 1 - len(totals)))
        totals[classes] += counts
        if size > 1:
            num_own += float((counts * (counts - 1)).sum()) / (size - 1)
            num_pairs += size
    if num_pairs == 0:
        return None
    shuffled = float((totals * (totals - 1)).sum()) / (num_records * (num_records - 1))
    return ClassOrder(num_shards, num_single, num_own / num_pairs, shuffled)
