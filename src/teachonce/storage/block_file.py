"""Arrow files of hashed blocks: a block is one record batch, and its hash is in the file's own metadata.

An Arrow IPC file is its magic, the schema, the record batches one behind the other, and a footer. The schema's metadata
has one entry, ``teachonce``: a JSON object with what the writer says of the file, and ``blocks``: [bytes, xxh3 (128
bits)] of each batch in the file. So the first bytes of a file (its *head*: magic and schema) say where each
block begins and what its bytes must be; a block is read alone, and checked before anything in it is trusted. What
comes behind the last block (its *tail*) repeats the schema for other readers and is not needed here.

A ``FileEntry`` (size, hash of the head, hash of the tail) is what a manifest keeps of such a file: with it every byte
is accounted for, and to make it nothing but head and tail is read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash
from pyarrow import ipc

from teachonce.errors import StoreError, TeachonceError, UnreadableError
from teachonce.storage.storage import Mapped, Storage
from teachonce.storage.strict_json import Count, convert_json, parse_strict_json

METADATA_KEY = b"teachonce"
_MAGIC = b"ARROW1\0\0"
_CONTINUATION = b"\xff\xff\xff\xff"
_PREFIX_BYTES = len(_MAGIC) + len(_CONTINUATION) + 4
MAX_HEAD_BYTES = 1 << 24
ARROW_ERRORS = (pa.ArrowException, OSError, EOFError, ValueError, KeyError, IndexError, TypeError)
"""What pyarrow raises for bytes that are no Arrow."""


class FileEntry(NamedTuple):
    """What a manifest keeps of a file."""

    num_bytes: Count
    head: str
    """xxh3 (128 bits) of magic and schema, which have the hashes of the blocks."""
    tail: str
    """xxh3 (128 bits) of what comes behind the last block."""


class DamagedBlock(NamedTuple):
    """A block (None: the file as a whole) whose bytes are not those that were written, and the reason."""

    block: int | None
    reason: str

    def __str__(self) -> str:
        return self.reason if self.block is None else f"block {self.block}: {self.reason}"


def write_blocks(storage: Storage, name: str, batches: Sequence[pa.RecordBatch], metadata: Mapping[str, Any]) -> None:
    """Put a file of these batches, of one schema, where there is none of this name; the first of several writers wins.

    ``metadata`` is JSON values; ``blocks`` is added.
    """
    assert "blocks" not in metadata
    blocks = []
    for batch in batches:
        message = batch.replace_schema_metadata(None).serialize()
        blocks.append([message.size, xxhash.xxh3_128_hexdigest(memoryview(message))])
    text = json.dumps({**metadata, "blocks": blocks}, allow_nan=False, ensure_ascii=False)
    schema = batches[0].schema.with_metadata({METADATA_KEY: text.encode()})
    with storage.put_if_absent(name) as file, ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))


class BlockFile:
    """A file of ``write_blocks``, memory-mapped where it is local; each block is checked by its hash when it is read.

    With ``entry`` size and head are checked too when it is opened; ``trust`` reads without any hash. Raises StoreError,
    with the file and ``advice``, for whatever does not hold.
    """

    def __init__(
        self, storage: Storage, name: str, *, entry: FileEntry | None = None, trust: bool = False, advice: str = ""
    ) -> None:
        self._where = storage.describe(name)
        self._advice = advice and f"; {advice}"
        self._trust = trust
        try:
            self._bytes = storage.map(name)
        except TeachonceError as error:
            raise StoreError(f"{error}{self._advice}") from error
        if entry is not None and len(self._bytes) != entry.num_bytes:
            raise self.error(f"has {len(self._bytes):,} bytes, {entry.num_bytes:,} were written: damaged or replaced")
        self._head_bytes = self._find_head()
        if entry is not None and not trust and self._hash(0, self._head_bytes) != entry.head:
            raise self.error("its first bytes (schema and hashes) are not those that were written: damaged or replaced")
        self.schema = self._read_schema()
        self.metadata, self._blocks = self._read_metadata()
        self._starts = [self._head_bytes]
        for num_bytes, _ in self._blocks:
            self._starts.append(self._starts[-1] + num_bytes)
        if self._starts[-1] > len(self._bytes):
            raise self.error(f"{len(self._bytes):,} bytes, its blocks need {self._starts[-1]:,}: truncated")

    @property
    def num_blocks(self) -> int:
        """Record batches in the file."""
        return len(self._blocks)

    @property
    def entry(self) -> FileEntry:
        """What a manifest keeps of the file: head and tail are hashed, no block is read."""
        num_bytes = len(self._bytes)
        return FileEntry(num_bytes, self._hash(0, self._head_bytes), self._hash(self._starts[-1], num_bytes))

    def read(self, block: int, schema: pa.Schema, num_rows: int | None, *, is_checked: bool = False) -> pa.RecordBatch:
        """A block without a copy, which must have the types of ``schema`` and so many rows
        (None: any).

        ``is_checked``: the caller has checked its bytes before. The batch is validated in full: offsets,
        lengths, and that there is a null only where the schema allows it.
        """
        if block >= self.num_blocks:
            raise self.error(f"{self.num_blocks} blocks, expected more than {block}: the file has other views")
        content = self._content(block)
        if not (self._trust or is_checked):
            reason = self._damage(block, content)
            if reason is not None:
                raise self.error(f"block {block}: {reason}")
        found = self.schema.remove_metadata()
        if not has_same_columns(found, schema):
            raise self.error(
                f"columns {_types(found)}, expected {_types(schema)}: damaged, or of a different policy or codec"
            )
        try:
            batch = ipc.read_record_batch(pa.py_buffer(content), found)
            batch.validate(full=True)
        except ARROW_ERRORS as error:
            raise self.error(f"block {block}: is not a readable Arrow record batch ({_first_line(error)})") from error
        if num_rows not in (None, batch.num_rows):
            raise self.error(f"block {block}: {batch.num_rows} rows, expected {num_rows}: the records differ")
        for field, column in zip(schema, batch.columns, strict=True):
            num_nulls = column.null_count if not field.nullable else 0
            if pa.types.is_fixed_size_list(column.type):
                num_nulls += column.flatten().null_count
            if num_nulls:
                raise self.error(f"block {block}: column {field.name} has {num_nulls} nulls, expected none")
        return batch

    def check_tail(self) -> None:
        """Raise StoreError where the end is not that of an Arrow file with these blocks; none of them is read."""
        try:
            found = ipc.open_file(_arrow_source(self._bytes)).num_record_batches
        except ARROW_ERRORS as error:
            raise self.error(f"its end is not that of an Arrow file ({_first_line(error)}): truncated") from error
        if found != self.num_blocks:
            raise self.error(f"its footer has {found} record batches, its header {self.num_blocks}: damaged")

    def find_damage(self, entry: FileEntry | None = None) -> list[DamagedBlock]:
        """Every block whose bytes are not those that were written; with ``entry`` the tail too."""
        damaged = [
            DamagedBlock(block, reason)
            for block in range(self.num_blocks)
            if (reason := self._damage(block, self._content(block)))
        ]
        if entry is not None and self.entry.tail != entry.tail:
            damaged.append(DamagedBlock(None, "its last bytes (Arrow's footer) are not those that were written"))
        return damaged

    def _content(self, block: int) -> memoryview:
        return self._bytes[self._starts[block] : self._starts[block + 1]]

    def _damage(self, block: int, content: memoryview) -> str | None:
        expected = self._blocks[block][1]
        found = xxhash.xxh3_128_hexdigest(content)
        return None if found == expected else f"hash {found}, {expected} was written: its bytes changed on disk"

    def _hash(self, start: int, end: int) -> str:
        return xxhash.xxh3_128_hexdigest(self._bytes[start:end])

    def _find_head(self) -> int:
        prefix = bytes(self._bytes[:_PREFIX_BYTES])
        if len(prefix) < _PREFIX_BYTES or not prefix.startswith(_MAGIC + _CONTINUATION):
            raise self.error("is not an Arrow file (wrong first bytes): damaged or truncated")
        end = _PREFIX_BYTES + int.from_bytes(prefix[-4:], "little", signed=True)
        if not _PREFIX_BYTES < end <= min(len(self._bytes), MAX_HEAD_BYTES):
            raise self.error("its schema does not fit into the file: damaged or truncated")
        return end

    def _read_schema(self) -> pa.Schema:
        try:
            schema = ipc.read_schema(pa.py_buffer(self._bytes[len(_MAGIC) : self._head_bytes]))
            _ = schema.names  # which are decoded on demand
            return schema
        except ARROW_ERRORS as error:
            raise self.error(f"its schema cannot be read ({_first_line(error)}): damaged") from error

    def _read_metadata(self) -> tuple[dict[str, Any], list[tuple[int, str]]]:
        text = (self.schema.metadata or {}).get(METADATA_KEY)
        if text is None:
            raise self.error("has no hashes of its blocks: written by another program")
        try:
            metadata = parse_strict_json(text)
        except ValueError as error:
            raise self.error(f"its metadata is not JSON ({error}): damaged") from error
        if not isinstance(metadata, dict):
            raise self.error("its metadata is not a JSON object: damaged")
        blocks = convert_json(
            metadata.pop("blocks", None), list[tuple[Count, str]], f"{self._where}: blocks", StoreError
        )
        return metadata, blocks

    def error(self, what: str) -> StoreError:
        """The error that says so of this file, with the advice."""
        return StoreError(f"{self._where}: {what}{self._advice}")


def check_was_read(storage: Storage, name: str, error: TeachonceError, then: str) -> None:
    """Raise UnreadableError where ``error``, of a ``BlockFile``, is that a file which is there cannot be read now.

    By rights, a lost server, or credentials that expired: no damage, and it may pass. ``then`` is added to the reason.
    """
    cause = error.__cause__ if isinstance(error, StoreError) else error
    if isinstance(cause, TeachonceError) and not isinstance(cause, StoreError) and _may_be_there(storage, name):
        raise UnreadableError(f"{cause}; {then}") from cause


def _may_be_there(storage: Storage, name: str) -> bool:
    try:
        return storage.has(name)
    except TeachonceError:
        return True


class BlockCheck:
    """The bytes of a file that pass by, in pieces of any size, against its entry of a manifest: every byte counts.

    ``finish`` raises StoreError with all that is damaged, ``update`` where the file has more than its entry says.
    """

    def __init__(self, where: str, entry: FileEntry) -> None:
        self._where = where
        self._entry = entry
        self._head = bytearray()
        self._sections: list[tuple[str, int, str]] = []
        """What of the file, how many bytes and their hash: behind the head each block, then the tail."""
        self._section = 0
        self._hasher = xxhash.xxh3_128()
        self._num_hashed = 0
        self._damaged: list[str] = []
        self._num_bytes = 0

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes of the file."""
        view = memoryview(data)
        self._num_bytes += len(view)
        if self._num_bytes > self._entry.num_bytes:
            raise self._error(f"has more than the {self._entry.num_bytes:,} bytes that were written")
        while len(view) and not self._sections:
            wanted = _PREFIX_BYTES
            if len(self._head) >= wanted:
                wanted += int.from_bytes(self._head[_PREFIX_BYTES - 4 : _PREFIX_BYTES], "little", signed=True)
                if not _PREFIX_BYTES < wanted <= min(MAX_HEAD_BYTES, self._entry.num_bytes):
                    raise self._error("its schema does not fit into the file")
            taken = view[: wanted - len(self._head)]
            self._head += taken
            view = view[len(taken) :]
            if len(self._head) == wanted > _PREFIX_BYTES:
                self._sections = self._read_sections()
        while len(view):
            _, size, _ = self._sections[self._section]
            taken = view[: size - self._num_hashed]
            self._hasher.update(taken)
            self._num_hashed += len(taken)
            view = view[len(taken) :]
            self._end_sections()

    def finish(self) -> None:
        """There are no more bytes."""
        if self._num_bytes != self._entry.num_bytes:
            raise self._error(f"has {self._num_bytes:,} bytes, {self._entry.num_bytes:,} were written")
        if self._damaged:
            raise self._error("; ".join(self._damaged))

    def _end_sections(self) -> None:
        while self._section < len(self._sections) and self._num_hashed == self._sections[self._section][1]:
            what, _, expected = self._sections[self._section]
            found = self._hasher.hexdigest()
            if found != expected:
                self._damaged.append(f"{what}: hash {found}, {expected} was written: its bytes changed")
            self._section += 1
            self._hasher.reset()
            self._num_hashed = 0

    def _read_sections(self) -> list[tuple[str, int, str]]:
        if xxhash.xxh3_128_hexdigest(self._head) != self._entry.head:
            raise self._error("its first bytes (schema and hashes) are not those that were written")
        try:
            metadata = ipc.read_schema(pa.py_buffer(bytes(self._head[len(_MAGIC) :]))).metadata or {}
            blocks = parse_strict_json(metadata[METADATA_KEY])["blocks"]
            blocks = convert_json(blocks, list[tuple[Count, str]], f"{self._where}: blocks", StoreError)
        except ARROW_ERRORS as error:
            raise self._error(f"its schema cannot be read ({_first_line(error)})") from error
        sections = [(f"block {number}", size, expected) for number, (size, expected) in enumerate(blocks)]
        left = self._entry.num_bytes - len(self._head) - sum(size for _, size, _ in sections)
        if left <= 0:
            raise self._error(f"{self._entry.num_bytes:,} bytes are too few for its blocks")
        return [*sections, ("the end (Arrow's footer)", left, self._entry.tail)]

    def _error(self, what: str) -> StoreError:
        return StoreError(f"{self._where}: {what}: damaged or replaced")


def _arrow_source(content: Mapped) -> Any:
    return pa.py_buffer(content) if isinstance(content, memoryview) else pa.PythonFile(_SlicedFile(content), mode="r")


class _SlicedFile(io.RawIOBase):
    """Slices as a file that Arrow seeks in."""

    def __init__(self, content: Mapped) -> None:
        self._content = content
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, len(self._content))[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._content) if size is None or size < 0 else self._position + size
        found = bytes(self._content[self._position : end])
        self._position += len(found)
        return found


def has_same_columns(found: pa.Schema, expected: pa.Schema) -> bool:
    """Whether names and types are the same; nulls are counted in the columns."""
    return [(field.name, field.type) for field in found] == [(field.name, field.type) for field in expected]


def _types(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema) or "none"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
