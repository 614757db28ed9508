"""Records that are read and decoded once and kept in memory, for data that fits there, such as CIFAR.

A record keeps key, label and logits; its image becomes a PPM, which is the pixels behind a short header, so whatever
reads images reads it too, and gets the same pixels. 32 px take 3 kB a record, ImageNet would take 700 GB. PPMs lie one
behind another, and of all records there are arrays, so that a batch is made without an object for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from teachonce.engine.buffers import BufferPool
from teachonce.engine.chunked import chunked
from teachonce.engine.machine import free_memory, local_ranks, num_cores
from teachonce.engine.prefetch import prefetch
from teachonce.errors import ConfigError, ImageError
from teachonce.native import addresses
from teachonce.pixels.decode import decode_image, image_size
from teachonce.records.source import Location, Locations, Record, RecordBatch, RecordSource

_SAMPLED_RECORDS = 64
_RECORDS_AHEAD = 64
_BLOCK_RECORDS = 64  # whose PPMs are one array


class _Kept(NamedTuple):
    """Of a record, what is seldom asked for."""

    filename: str
    where: str
    logits: NDArray[np.float32] | None
    boxes: NDArray[np.float32] | None
    own_key: int | None


class RecordsInMemory(RecordSource):
    """The same records as ``source``, decoded; what is wrong with any of them is raised here, with its place.

    Raises ConfigError where a sample of the records says that they would not fit into the memory that is free.
    """

    def __init__(self, source: RecordSource, *, with_logits: bool = False) -> None:
        self.split = source.split
        self.shards = source.shards
        self.classes = source.classes
        self.format = source.format
        self.with_boxes = source.with_boxes
        self.labeled = source.labeled
        self._description = source.describe()
        self._with_logits = with_logits
        self._check_room(source)
        sizes = [shard.num_records for shard in source.shards]
        self._first_records = np.cumsum([0, *sizes], dtype=np.int64)
        self._kept: list[_Kept] = []
        self._blocks: list[bytes] = []
        self._keys = np.empty(source.num_records, np.uint64)
        self._labels = np.empty(source.num_records, np.int64)
        self._offsets_in_block = np.empty(source.num_records, np.int64)
        self._num_bytes = np.empty(source.num_records, np.int64)
        records = chain.from_iterable(source.iter_shard(shard, with_logits=with_logits) for shard in range(len(sizes)))
        decoded = prefetch(records, _decode, threads=num_cores(), ahead=_RECORDS_AHEAD)
        for block in chunked(decoded, _BLOCK_RECORDS):
            self._keep(block)
        self._addresses = self._find_addresses()

    def _keep(self, block: Sequence[tuple[Record, bytes]]) -> None:
        own = slice(len(self._kept), len(self._kept) + len(block))
        self._keys[own] = [record.key for record, _ in block]
        self._labels[own] = [record.label for record, _ in block]
        self._num_bytes[own] = [len(pixels) for _, pixels in block]
        self._offsets_in_block[own] = np.cumsum(self._num_bytes[own]) - self._num_bytes[own]
        self._blocks.append(b"".join(pixels for _, pixels in block))
        self._kept += [_Kept(item.filename, item.where, item.logits, item.boxes, item.own_key) for item, _ in block]

    def _find_addresses(self) -> NDArray[np.uint64]:
        """Of the PPMs, in this process."""
        blocks = addresses(self._blocks)[np.arange(len(self._kept)) // _BLOCK_RECORDS]
        return blocks + self._offsets_in_block.astype(np.uint64)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_addresses"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._addresses = self._find_addresses()

    def read_batch(
        self, locations: Sequence[Location], *, with_logits: bool = False, buffers: BufferPool | None = None
    ) -> RecordBatch:
        """The records at several locations, as they were when all were read."""
        assert self._with_logits or not with_logits
        found = Locations.of(locations)
        indices = self._first_records[found.shards] + found.rows
        return RecordBatch(
            self._keys[indices],
            self._labels[indices],
            self._addresses[indices],
            self._num_bytes[indices],
            lambda at: self._record(int(indices[at])),
        )

    def known_labels(self, shard: int) -> NDArray[np.int32]:
        """Those of the records, which are all here."""
        return self._labels[self._first_records[shard] : self._first_records[shard + 1]].astype(np.int32)

    def iter_shard(self, shard: int, *, with_logits: bool = False) -> Iterator[Record]:
        """The records of a shard in order."""
        assert self._with_logits or not with_logits
        yield from map(self._record, range(*self._first_records[shard : shard + 2].tolist()))

    def _record(self, index: int) -> Record:
        kept, begin = self._kept[index], int(self._offsets_in_block[index])
        block = memoryview(self._blocks[index // _BLOCK_RECORDS])
        return Record(
            block[begin : begin + int(self._num_bytes[index])],
            int(self._labels[index]),
            kept.filename,
            int(self._keys[index]),
            kept.where,
            kept.logits,
            kept.boxes,
            kept.own_key,
        )

    def describe(self) -> dict[str, Any]:
        """As the source: it is the same data."""
        return self._description

    def _check_room(self, source: RecordSource) -> None:
        count = min(_SAMPLED_RECORDS, source.num_records)
        locations = [source.locate(index * source.num_records // count) for index in range(count)]
        sample = source.read_batch(locations, with_logits=self._with_logits)
        num_ranks = local_ranks()  # each keeps all of it
        needed = num_ranks * sum(_num_bytes(record) for record in sample) * source.num_records // count
        free = free_memory()
        if needed > free:
            ranks = f" in {num_ranks} processes" if num_ranks > 1 else ""
            what = "the pixels and logits" if self._with_logits else "the pixels"
            raise ConfigError(
                f"--in-memory: {what} of {source.num_records:,} records take{ranks} about {needed / 1e9:,.1f} GB, "
                f"{free / 1e9:,.1f} GB are free; without it, records are read as they are needed"
            )


def _num_bytes(record: Record) -> int:
    """Of its pixels and logits."""
    try:
        width, height = image_size(record.encoded)
    except ImageError as error:
        raise error.at(record.where) from error
    return 3 * width * height + (0 if record.logits is None else record.logits.nbytes)


def _decode(record: Record) -> tuple[Record, bytes]:
    """The record, and its image as a PPM."""
    try:
        image = decode_image(record.encoded)
    except ImageError as error:
        raise error.at(record.where) from error
    return record, b"P6\n%d %d\n255\n" % image.size + image.tobytes()
