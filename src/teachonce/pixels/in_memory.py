"""Records that are read and decoded once and kept in memory, for data that fits there, such as CIFAR.

A record keeps key, label and logits; its image becomes a PPM, which is the pixels behind a short header, so whatever
reads images reads it too, and gets the same pixels. 32 px take 3 kB a record, ImageNet would take 700 GB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.engine.buffers import BufferPool
from teachonce.engine.machine import free_memory, num_cores
from teachonce.engine.prefetch import prefetch
from teachonce.errors import ConfigError, ImageError
from teachonce.pixels.decode import decode_image, image_size
from teachonce.records.source import Location, Record, RecordSource

_SAMPLED_RECORDS = 64
_RECORDS_AHEAD = 64


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
        threads = num_cores()
        self._records = [
            list(prefetch(records, _decode, threads=threads, ahead=_RECORDS_AHEAD))
            for records in (source.iter_shard(shard, with_logits=with_logits) for shard in range(len(source.shards)))
        ]

    def read_batch(
        self, locations: Sequence[Location], *, with_logits: bool = False, buffers: BufferPool | None = None
    ) -> list[Record]:
        """The records at several locations, as they were when all were read."""
        assert self._with_logits or not with_logits
        return [self._records[shard][row] for shard, row in locations]

    def known_labels(self, shard: int) -> NDArray[np.int32]:
        """Those of the records, which are all here."""
        return np.array([record.label for record in self._records[shard]], np.int32)

    def iter_shard(self, shard: int, *, with_logits: bool = False) -> Iterator[Record]:
        """The records of a shard in order."""
        assert self._with_logits or not with_logits
        yield from self._records[shard]

    def describe(self) -> dict[str, Any]:
        """As the source: it is the same data."""
        return self._description

    def _check_room(self, source: RecordSource) -> None:
        count = min(_SAMPLED_RECORDS, source.num_records)
        locations = [source.locate(index * source.num_records // count) for index in range(count)]
        sample = source.read_batch(locations, with_logits=self._with_logits)
        needed = sum(_num_bytes(record) for record in sample) * source.num_records // count
        free = free_memory()
        if needed > free:
            what = "the pixels and logits" if self._with_logits else "the pixels"
            raise ConfigError(
                f"--in-memory: {what} of {source.num_records:,} records take about {needed / 1e9:,.1f} GB, "
                f"{free / 1e9:,.1f} GB are free; without it, records are read as they are needed"
            )


def _num_bytes(record: Record) -> int:
    """Of its pixels and logits."""
    try:
        width, height = image_size(record.encoded)
    except ImageError as error:
        raise error.at(record.where) from error
    return 3 * width * height + (0 if record.logits is None else record.logits.nbytes)


def _decode(record: Record) -> Record:
    try:
        image = decode_image(record.encoded)
    except ImageError as error:
        raise error.at(record.where) from error
    encoded = b"P6\n%d %d\n255\n" % image.size + image.tobytes()
    return dataclasses.replace(record, encoded=encoded)
