"""TFRecord files: framing, checksums, index, random access.

A TFRecord file is a sequence of frames (tensorflow/core/lib/io/record_writer.h):

    uint64 length | uint32 masked CRC32C of the length | payload | uint32 masked CRC32C of the payload

all little-endian. Reading and writing is ours because it is a hot path: TensorFlow is not needed to train from its
files. Both checksums are checked on every read (about 10 us for a photograph of 110 kB), where most readers skip them.
The index beside a shard has a line "offset size" for each frame, size of the complete frame, as DALI's ``tfrecord2idx``
and the ``tfrecord`` package write it. Files are never memory-mapped: one that is truncated under us must be an error,
not SIGBUS. Compressed TFRecord files are not supported.
"""

from __future__ import annotations

import os
import re
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash
from crc32c import crc32c
from numpy.typing import NDArray

from teachonce.engine.buffers import BufferPool
from teachonce.errors import RecordError, TeachonceError
from teachonce.records.tfrecord.write_behind import write_behind
from teachonce.storage.cache_folder import cache_folder
from teachonce.storage.files import atomic_write, locate
from teachonce.storage.remote.file_index import ListedFile, hash_bytes
from teachonce.storage.storage import FileStatus, Reader

HEADER_BYTES = 12
FOOTER_BYTES = 4
FRAME_BYTES = HEADER_BYTES + FOOTER_BYTES
_HEADER = struct.Struct("<QI")
_LENGTH = struct.Struct("<Q")
FOOTER = struct.Struct("<I")
WRITE_BYTES = 1 << 20
"""Of records that are written at once."""
BLOCK_BYTES = 1 << 20
"""Of a file that are read at once."""


def masked_crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC32C rotated right by 15 bits plus a constant, as TFRecord stores it (crc of data that holds crcs is weak)."""
    return mask_crc(crc32c(data))


def mask_crc(crc: int) -> int:
    """A CRC32C as TFRecord stores it."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class TFRecordWriter:
    """Appends frames to a buffered binary file that it does not close; ``index`` collects (offset, size of frame)."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offset = 0
        self._hasher = xxhash.xxh3_128()
        self._pass_on: Callable[[bytes], None] = self._append
        self.index: list[tuple[int, int]] = []

    @property
    def listed(self) -> ListedFile:
        """What a folder's list of files says of what was written."""
        return ListedFile(self._offset, self._hasher.hexdigest(), len(self.index))

    def write(self, *parts: bytes | memoryview) -> None:
        """Append one record, the payload in one part or several."""
        self.write_block([parts])

    def write_block(self, records: Iterable[Sequence[bytes | memoryview]]) -> None:
        """Append records, each payload in parts, by as few writes as pay."""
        block: list[bytes | memoryview] = []
        start = self._offset
        for parts in records:
            num_bytes = crc = 0
            for part in parts:
                num_bytes += len(part)
                crc = crc32c(part, crc)
            length = _LENGTH.pack(num_bytes)
            block += (length, FOOTER.pack(masked_crc32c(length)), *parts, FOOTER.pack(mask_crc(crc)))
            size = num_bytes + FRAME_BYTES
            self.index.append((self._offset, size))
            self._offset += size
            if self._offset - start >= WRITE_BYTES:
                self._pass_on(b"".join(block))
                block.clear()
                start = self._offset
        if block:
            self._pass_on(b"".join(block))

    @contextmanager
    def behind(self) -> Iterator[None]:
        """Within the block a thread hashes and writes, and may raise at its end what writing raises."""
        with write_behind(self._append) as self._pass_on:
            yield
        self._pass_on = self._append

    def _append(self, data: bytes) -> None:
        self._hasher.update(data)
        self._file.write(data)


def read_tfrecords(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each record of the file as (offset of its frame, payload), sequentially; raises as ``read_blocks``."""
    for block in read_blocks(path):
        yield from ((offset, bytes(payload)) for offset, payload in block)


def read_blocks(path: Path, buffers: BufferPool | None = None) -> Iterator[list[tuple[int, memoryview]]]:
    """The records of the file as (offset of its frame, payload), sequentially, in lists of about ``BLOCK_BYTES``.

    They are read into memory of ``buffers``, which is used again for others once no payload in it is referred to.

    Raises RecordError with path, record number and byte offset where a frame is truncated or a checksum does not hold,
    after the records before it, and for a file without any record.
    """
    reader = _open(path, in_order=True)
    file_bytes = reader.num_bytes
    buffers = buffers or BufferPool()
    buffer_bytes = BLOCK_BYTES
    offset, row = 0, 0
    while offset < file_bytes:
        chunk = buffers.take((buffer_bytes,)).data[: file_bytes - offset]
        chunk = chunk[: reader.read_into(chunk, offset)]
        spans = _find_frames(chunk)
        if spans and all(_is_sound(chunk, begin, end) for begin, end in spans):
            yield [(offset + begin, chunk[begin + HEADER_BYTES : end - FOOTER_BYTES]) for begin, end in spans]
            row += len(spans)
            offset += spans[-1][1]
            continue
        # The first does not fit, or one of them is damaged: the first alone, until it is that one's turn.
        length = check_header(path, row, offset, chunk[:HEADER_BYTES], file_bytes)
        end = length + FRAME_BYTES
        if end > buffer_bytes:
            buffer_bytes = end
            continue
        payload = chunk[HEADER_BYTES : end - FOOTER_BYTES]
        _check_payload(path, row, offset, payload, chunk[end - FOOTER_BYTES : end], length)
        yield [(offset, payload)]
        row += 1
        offset += end


def _find_frames(data: memoryview) -> list[tuple[int, int]]:
    """Where the complete frames of some bytes begin and end, as far as their lengths, not yet checked, say."""
    spans: list[tuple[int, int]] = []
    begin = 0
    while begin + HEADER_BYTES <= len(data):
        end = begin + _LENGTH.unpack_from(data, begin)[0] + FRAME_BYTES
        if end > len(data):
            break
        spans.append((begin, end))
        begin = end
    return spans


def _is_sound(data: memoryview, begin: int, end: int) -> bool:
    """Whether both checksums of the frame that begins and ends there hold."""
    length, payload = data[begin : begin + 8], data[begin + HEADER_BYTES : end - FOOTER_BYTES]
    of_length, of_payload = (FOOTER.unpack_from(data, at)[0] for at in (begin + 8, end - FOOTER_BYTES))
    return bool(of_length == masked_crc32c(length) and of_payload == masked_crc32c(payload))


class TFRecordFile:
    """Random access to the records of one file, by row.

    Thread-safe (positional reads), safe to use after a fork, and picklable: the descriptor is opened at the first read
    in each process. The index is read, or made, at the first use of it.
    """

    def __init__(self, path: Path, bounds: NDArray[np.int64] | None = None) -> None:
        self.path = path
        self._bounds = bounds
        self._reader: Reader | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._load_bounds()) - 1

    def offset(self, row: int) -> int:
        """Byte offset of the row's frame."""
        return int(self._load_bounds()[row])

    def offsets(self, first: int, count: int) -> list[int]:
        """Byte offsets of the frames of up to ``count`` rows from ``first`` on, as many as there are."""
        return self._load_bounds()[first : min(first + count, len(self))].tolist()

    def bounds(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the frames of some rows [n] begin and end [n], in bytes."""
        bounds = self._load_bounds()
        return bounds.take(rows), bounds.take(rows + 1)

    def read(self, row: int) -> memoryview:
        """The payload of one record, without a copy of what was read; raises RecordError as ``read_tfrecords``."""
        bounds = self._load_bounds()
        assert 0 <= row < len(bounds) - 1, f"{self.path}: row {row} of {len(bounds) - 1}"
        offset, end = bounds[row : row + 2].tolist()
        try:
            frame = memoryview(self._open().read(offset, end - offset))
        except RecordError as error:
            raise RecordError(f"{error} (record {row}, byte {offset})") from error
        length = check_header(self.path, row, offset, frame[:HEADER_BYTES], self._open().num_bytes)
        if length + FRAME_BYTES != end - offset:
            raise RecordError(
                f"{describe_record(self.path, row, offset)}: the index says {end - offset} bytes, the frame has "
                f"{length + FRAME_BYTES}: the index belongs to another shard; delete {index_path(self.path).name}"
            )
        payload = frame[HEADER_BYTES : HEADER_BYTES + length]
        _check_payload(self.path, row, offset, payload, frame[HEADER_BYTES + length :], length)
        return payload

    def try_open(self) -> Reader | None:
        """What reads the file; None where it cannot be opened, which ``read`` explains."""
        try:
            return self._open()
        except RecordError:
            return None

    def read_into(self, buffer: memoryview, offset: int) -> bool:
        """Fill ``buffer`` with what the file holds from ``offset`` on; False where that fails or ends before."""
        try:
            return self._open().read_into(buffer, offset) == len(buffer)
        except RecordError:
            return False

    def fetch(self, go_on: Callable[[], bool]) -> None:
        """Have the file in the cache that it is read through, if there is one; until ``go_on()`` is False."""
        self._open().fetch(go_on)

    def close(self) -> None:
        """Close the file, once the reads that are under way are over; a later read opens it again."""
        self._reader = None

    def __reduce__(self) -> tuple[type[TFRecordFile], tuple[Path, NDArray[np.int64] | None]]:
        return TFRecordFile, (self.path, self._bounds)

    def _load_bounds(self) -> NDArray[np.int64]:
        if self._bounds is None:
            self._bounds = load_index(self.path)
        return self._bounds

    def _open(self) -> Reader:
        # Who reads holds a reference of its own, so the file stays open, whatever close() does meanwhile.
        reader = self._reader
        if reader is None:
            with self._lock:
                reader = self._reader
                if reader is None:
                    reader = self._reader = _open(self.path)
        return reader


def _open(path: Path, *, in_order: bool = False) -> Reader:
    storage, name = locate(path, RecordError)
    reader = storage.open_reader(name, in_order=in_order)
    check_not_empty(path, reader.num_bytes)
    return reader


def index_path(path: Path) -> Path:
    """Path of the index of a shard: ``PATH.idx`` next to it."""
    return path.with_name(path.name + ".idx")


def load_index(path: Path, found: Mapping[str, FileStatus] | None = None) -> NDArray[np.int64]:
    """Frame bounds of a shard, [N + 1]: frame ``i`` is bytes ``bounds[i]`` to ``bounds[i + 1]``.

    Read from the index beside the shard, which was written with it and so says how much of it there was. One that does
    not fit (contiguous from 0 to the file's end) is never made again here: without it a shard that was cut where a
    frame ends looks complete. Raises RecordError then, with the way out for who wrote the shard again: to delete the
    index.

    Where there is none it is made by reading the headers, and kept beside the shard, or in the user's cache folder
    where the shard's is read-only. The cache's is found by the shard's size and time and is for speed alone: it says
    nothing of a shard that changed, and a damaged one is made again.

    ``found``: the files of the shard's folder, where known.
    """
    storage, name = locate(path, RecordError)
    found = found or {}
    status = found.get(name) or storage.status(name)
    check_not_empty(path, status.num_bytes)
    beside = index_path(path)
    # A listing that has the shard has all files next to it, but for what is not a file.
    if beside.name in found or ((name not in found or storage.requests_at_once == 1) and storage.has(beside.name)):
        return _read_index(path, status.num_bytes)
    cached = _cached_index_path(path, status)
    if cached is not None:
        try:
            return _parse_index(locate(cached)[0].read(cached.name), status.num_bytes)
        except (TeachonceError, _IndexProblem):
            pass  # none, or a damaged one
    bounds = _scan_bounds(path)
    index = list(zip(bounds[:-1].tolist(), np.diff(bounds).tolist(), strict=True))
    for candidate in (beside, cached):
        # Where neither folder can be written the index is only slower to have, so this is not an error.
        with suppress(TeachonceError):
            if candidate is not None:
                write_index(candidate, index)
                break
    return bounds


def delete_index(path: Path) -> None:
    """Remove the index of a shard that is about to be written, with whatever is in the way of its own."""
    storage, name = locate(index_path(path))
    storage.delete(name)


def is_whole(path: Path) -> bool:
    """Whether a shard is there, as a writer leaves it: with the index beside it.

    Writers put the index last. Of one that was killed in between the index is made here, of the shard.
    """
    storage, name = locate(path)
    if not storage.has(name):
        return False
    if not storage.has(index_path(path).name):
        bounds = _scan_bounds(path)
        write_index(index_path(path), list(zip(bounds[:-1].tolist(), np.diff(bounds).tolist(), strict=True)))
    return True


def write_index(path: Path, index: list[tuple[int, int]]) -> ListedFile:
    """Write "offset size" lines to ``path``, atomically; returns what a folder's list of files says of it."""
    content = index_bytes(index)
    with atomic_write(path) as file:
        file.write(content)
    return hash_bytes(content)


def index_bytes(index: Sequence[tuple[int, int]]) -> bytes:
    """An index as its file has it."""
    return "".join(f"{offset} {size}\n" for offset, size in index).encode()


def describe_record(path: Path, row: int, offset: int) -> str:
    """How messages name a record."""
    return describe_records(path, row, [offset])[0]


def describe_records(path: Path, first: int, offsets: Sequence[int]) -> list[str]:
    """How messages name the records from row ``first`` on, at these offsets."""
    prefix = f"{path} record "  # a path is slow to print
    return [f"{prefix}{row} (byte {offset})" for row, offset in enumerate(offsets, first)]


class _IndexProblem(Exception):
    """Why an index is none of this shard, as a phrase."""


def _read_index(path: Path, shard_bytes: int) -> NDArray[np.int64]:
    """The bounds that the index beside a shard has; RecordError where it is not of this shard as it is."""
    storage, name = locate(index_path(path), RecordError)
    return check_index(path, storage.read(name), shard_bytes)


def check_index(path: Path, content: bytes, shard_bytes: int) -> NDArray[np.int64]:
    """The bounds that the content of a shard's index has; RecordError where it is not of a shard of this size."""
    try:
        return _parse_index(content, shard_bytes, path)
    except _IndexProblem as problem:
        raise RecordError(
            f"{problem}; restore the shard from its source, or, if the shard is right and its index is outdated, "
            f"delete {index_path(path)}"
        ) from None


def _parse_index(content: bytes, shard_bytes: int, path: Path | None = None) -> NDArray[np.int64]:
    """Frame bounds [N + 1]; ``_IndexProblem`` where they are not contiguous from 0 to the shard's end."""
    words = content.split()
    try:
        numbers = np.array(words, np.int64)
    except (ValueError, OverflowError):
        bad = next((word for word in words if not re.fullmatch(rb"-?\d{1,18}", word)), words[0])
        raise _IndexProblem(
            f"{path}: its index has {bad[:20]!r}, expected one line 'offset size' per record, in bytes"
        ) from None
    if len(numbers) == 0 or len(numbers) % 2:
        raise _IndexProblem(f"{path}: its index has {len(numbers)} numbers, expected two per record")
    offsets, sizes = numbers[0::2], numbers[1::2]
    bounds = np.append(0, np.cumsum(sizes))
    # Sizes that are too large for 64 bits together are negative where they first are, not round to what fits.
    wrong = np.flatnonzero((sizes < FRAME_BYTES) | (offsets != bounds[:-1]) | (bounds[1:] < 0))
    if len(wrong):
        row = int(wrong[0])
        raise _IndexProblem(
            f"{path}: its index has record {row} at byte {offsets[row]} with {sizes[row]} bytes, expected it at "
            f"byte {bounds[row]}, where the previous one ends, with at least {FRAME_BYTES}"
        )
    if bounds[-1] != shard_bytes:
        found = f"its index says {len(sizes)} records in {bounds[-1]} bytes, the file has {shard_bytes}"
        if shard_bytes < bounds[-1]:
            row = int(np.searchsorted(bounds, shard_bytes, side="right")) - 1
            raise _IndexProblem(f"{path} record {row} (byte {bounds[row]}): truncated: {found}")
        raise _IndexProblem(f"{path}: {found}: it has grown, or it is another shard")
    return bounds


def _scan_bounds(path: Path) -> NDArray[np.int64]:
    # In order: at an address the whole shard in blocks, where each header would be a request.
    reader = _open(path, in_order=True)
    bounds = [0]
    while bounds[-1] < reader.num_bytes:
        offset = bounds[-1]
        header = reader.read(offset, HEADER_BYTES)
        length = check_header(path, len(bounds) - 1, offset, header, reader.num_bytes)
        bounds.append(offset + length + FRAME_BYTES)
    return np.array(bounds, dtype=np.int64)


def _cached_index_path(path: Path, status: FileStatus) -> Path | None:
    """Path of an index that cannot be next to its shard: in the cache, under the shard's identity."""
    folder = cache_folder()
    if folder is None:
        return None
    identity = f"{path.resolve()}\0{status.num_bytes}\0{status.modified_ns}{status.version}"
    return folder / f"{xxhash.xxh3_128_hexdigest(os.fsencode(identity))}.idx"


def check_not_empty(path: Path, file_bytes: int) -> None:
    """Raise RecordError for a shard without any record."""
    if file_bytes == 0:
        raise RecordError(f"{path}: is empty (0 bytes), expected at least one record; write the shard again")


def check_header(path: Path, row: int, offset: int, header: bytes | memoryview, end: int) -> int:
    """The payload's length, if its checksum holds and the frame ends at or before byte ``end``."""
    if len(header) < HEADER_BYTES:
        raise truncated(path, row, offset, f"the header has {len(header)} of {HEADER_BYTES} bytes")
    length, crc = _HEADER.unpack(header)
    if masked_crc32c(header[:8]) != crc:
        is_packed = row == 0 and bytes(header[:2]) == b"\x1f\x8b"
        hint = "it looks like gzip, which is read where the name ends in .gz" if is_packed else ""
        hint = hint or "write the shard again, or delete its .idx if that is outdated"
        raise RecordError(
            f"{describe_record(path, row, offset)}: wrong checksum of the length: the shard is damaged or not a "
            f"TFRecord file; {hint}"
        )
    if offset + length + FRAME_BYTES > end:
        raise truncated(path, row, offset, f"the frame should have {length + FRAME_BYTES} bytes, has {end - offset}")
    return length


def _check_payload(
    path: Path, row: int, offset: int, payload: bytes | memoryview, footer: bytes | memoryview, length: int
) -> None:
    if len(payload) < length or len(footer) < FOOTER_BYTES:
        found = HEADER_BYTES + len(payload) + len(footer)
        raise truncated(path, row, offset, f"the frame should have {length + FRAME_BYTES} bytes, has {found}")
    if masked_crc32c(payload) != FOOTER.unpack(footer)[0]:
        raise damaged(path, row, offset)


def damaged(path: Path, row: int, offset: int) -> RecordError:
    """The error of a payload whose checksum does not hold."""
    return RecordError(
        f"{describe_record(path, row, offset)}: wrong checksum of the data: the shard is damaged; write it again"
    )


def truncated(path: Path, row: int, offset: int, found: str) -> RecordError:
    """The error of a frame that is not complete, of which there is ``found``."""
    return RecordError(f"{describe_record(path, row, offset)}: truncated: {found}; write the shard again")
