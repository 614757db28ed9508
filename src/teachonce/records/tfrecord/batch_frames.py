"""Frames of a batch, read and checked together: by the native library in one call where it can, the rest in Python.

For small images a call from Python for each, and handing over its lock there, takes longer than what it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from teachonce.engine.buffers import BufferPool
from teachonce.engine.chunked import chunked
from teachonce.native import Parts, load_library
from teachonce.records.source import Locations
from teachonce.records.tfrecord.framing import FOOTER_BYTES, FRAME_BYTES, HEADER_BYTES, TFRecordFile

_SHARDS_AT_ONCE = 16  # whose files are open together, whatever the size of a batch

FRAME = np.dtype([("descriptor", np.int64), ("offset", np.int64), ("num_bytes", np.int64), ("bytes", np.uint64)])
"""struct frame: an open file, below 0 for none; where in it a frame is; the address that it is read to."""
GOOD, UNCHECKED, UNREAD = 0, 1, 2
"""What became of a frame: read and in order; read, and yet to be checked; not read."""


def read_frames(open_file: Callable[[int], TFRecordFile], found: Locations, buffers: BufferPool) -> Parts:
    """The payloads at some places, read into one of ``buffers`` one behind the other, both checksums checked.

    ``open_file`` gives the file of a shard. By the native library where it can; every frame that is not in order there
    is read or checked again here. Raises RecordError as ``TFRecordFile.read``.
    """
    offsets, frame_ends = np.empty(len(found), np.int64), np.empty(len(found), np.int64)
    for shard, positions, rows in found.by_shard:
        offsets[positions], frame_ends[positions] = open_file(shard).bounds(rows)
    ends = np.cumsum(frame_ends - offsets)
    starts = ends - (frame_ends - offsets)
    data = buffers.take((int(ends[-1]) if len(ends) else 0,))
    frames = np.empty(len(found), FRAME)
    frames["offset"], frames["num_bytes"] = offsets, ends - starts
    frames["bytes"] = data.ctypes.data + starts.astype(np.uint64)
    is_good = np.ones(len(found), np.bool_)
    statuses = _read_by_library(open_file, found, frames)
    for index in np.flatnonzero(statuses == UNREAD).tolist():
        part = data.data[starts[index] : ends[index]]
        is_good[index] = open_file(found[index][0]).read_into(part, int(offsets[index]))
    left = np.flatnonzero(statuses != GOOD)
    if len(left):
        is_good[left] &= _are_good(data, starts[left], ends[left])
    for index in np.flatnonzero(~is_good).tolist():
        shard, row = found[index]
        payload = open_file(shard).read(row)
        data.data[starts[index] + HEADER_BYTES : ends[index] - FOOTER_BYTES] = payload
    return Parts(data, starts + HEADER_BYTES, ends - FOOTER_BYTES)


def _read_by_library(
    open_file: Callable[[int], TFRecordFile], found: Locations, frames: NDArray[Any]
) -> NDArray[np.int32]:
    """What became of each frame [n] in the native library, which has the files of a few shards at a time."""
    statuses = np.empty(len(found), np.int32)
    for shards in chunked(found.by_shard, _SHARDS_AT_ONCE):
        readers = [open_file(shard).try_open() for shard, _, _ in shards]
        for (_, positions, _), reader in zip(shards, readers, strict=True):
            frames["descriptor"][positions] = -1 if reader is None or reader.descriptor is None else reader.descriptor
        chosen = np.concatenate([positions for _, positions, _ in shards])
        # The readers, which keep the descriptors open, are there until here.
        statuses[chosen] = _read_good_frames(frames[chosen])
    return statuses


def _are_good(data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each of some frames in memory has the length and the checksums that it says."""
    buffer = data.data
    crcs = np.empty((len(starts), 2), np.uint32)
    for index, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        crcs[index] = crc32c(buffer[start : start + 8]), crc32c(buffer[start + HEADER_BYTES : end - FOOTER_BYTES])
    # Masked as TFRecord stores it, see ``masked_crc32c``; 32-bit arithmetic wraps round as it should.
    masked = ((crcs >> 15) | (crcs << 17)) + np.uint32(0xA282EAD8)
    is_good = _gather(data, starts, "<u8") == (ends - starts - FRAME_BYTES).astype(np.uint64)
    is_good &= _gather(data, starts + 8, "<u4") == masked[:, 0]
    is_good &= _gather(data, ends - FOOTER_BYTES, "<u4") == masked[:, 1]
    return cast(NDArray[np.bool_], is_good)


def _gather(data: NDArray[np.uint8], starts: NDArray[np.int64], kind: str) -> NDArray[Any]:
    """The numbers that begin at some bytes."""
    width = np.dtype(kind).itemsize
    return data[starts[:, None] + np.arange(width)].view(kind)[:, 0]


def _read_good_frames(frames: NDArray[Any]) -> NDArray[np.int32]:
    """Read ``frames`` (FRAME, [n]) that have a descriptor; what became of each [n].

    The files stay open and the addresses good while this runs.
    """
    statuses = np.full(len(frames), UNREAD, np.int32)
    library = load_library()
    assert frames.dtype == FRAME and frames.flags.c_contiguous
    if library is not None:
        library.teachonce_read_frames(frames.ctypes.data, len(frames), statuses.ctypes.data)
    return statuses
