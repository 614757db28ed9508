"""Ranges of one object: opened with its first bytes, pinned to its version, read ahead where it is read in order."""

from __future__ import annotations

import io
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

from teachonce.errors import TeachonceError
from teachonce.storage.storage import Reader

HEAD_BYTES = 1 << 16
"""Read when an object is opened: its size comes with them, and most small files are complete."""
AHEAD_BYTES = 8 << 20
"""Of one range that is read ahead."""
RANGES_AHEAD = 2

GetRange = Callable[[int, int], memoryview]
"""``get_range(start, end)``: these bytes of the version that was opened; raises TeachonceError."""


class Opened(NamedTuple):
    """An object as it was when it was opened."""

    num_bytes: int
    version: str
    """The server's name of these bytes (ETag), or what else distinguishes them from others of this name."""
    head: bytes
    """The first ``HEAD_BYTES``, or all of it."""
    modified_ns: int = 0
    """When it appeared; 0 where the server does not say."""


class ViewedReader(Reader):
    """A reader that returns memory that is already there."""

    @abstractmethod
    def view(self, start: int, end: int) -> memoryview:
        """A range; shorter only where the object ends before."""

    def read(self, offset: int, num_bytes: int) -> bytes:
        """A range."""
        return bytes(self.view(offset, offset + num_bytes))

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """A range into memory that is there."""
        found = self.view(offset, offset + len(buffer))
        buffer[: len(found)] = found
        return len(found)


class ObjectReader(ViewedReader):
    """Ranges of an object, each one request; its first bytes are kept."""

    def __init__(self, opened: Opened, get_range: GetRange) -> None:
        self.num_bytes = opened.num_bytes
        self._head = opened.head
        self._get_range = get_range

    def view(self, start: int, end: int) -> memoryview:
        """A range; shorter only where the object ends before."""
        end = min(end, self.num_bytes)
        if end <= start:
            return memoryview(b"")
        if end <= len(self._head):
            return memoryview(self._head)[start:end]
        return self._get_range(start, end)


class SequentialReader(Reader):
    """An object that is read in order: what comes next is requested before it is needed. For one thread at a time."""

    def __init__(self, reader: ViewedReader) -> None:
        self.num_bytes = reader.num_bytes
        self._reader = reader
        self._ranges: deque[tuple[int, int, Future[memoryview]]] = deque()

    def read(self, offset: int, num_bytes: int) -> bytes:
        """A range; what comes before it is discarded."""
        end = min(offset + num_bytes, self.num_bytes)
        if end <= offset:
            return b""
        while self._ranges and self._ranges[0][1] <= offset:
            self._ranges.popleft()
        if self._ranges and self._ranges[0][0] > offset:
            self._ranges.clear()
        self._ask(offset, end)
        parts = [
            future.result()[max(offset - start, 0) : end - start] for start, _, future in self._ranges if start < end
        ]
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """A range into memory that is there."""
        found = self.read(offset, len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def _ask(self, offset: int, end: int) -> None:
        position = self._ranges[-1][1] if self._ranges else offset
        while position < self.num_bytes and (position < end or len(self._ranges) < RANGES_AHEAD):
            stop = min(position + AHEAD_BYTES, self.num_bytes)
            self._ranges.append((position, stop, _threads().submit(self._reader.view, position, stop)))
            position = stop


class ObjectStream(io.RawIOBase):
    """An object in order, as a file; ``failure`` is the first error, whatever a library makes of it."""

    def __init__(self, reader: Reader) -> None:
        self.failure: TeachonceError | None = None
        self._reader = reader
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Some bytes into ``buffer``; returns how many."""
        try:
            count = self._reader.read_into(memoryview(buffer).cast("B"), self._position)
        except TeachonceError as error:
            self.failure = self.failure or error
            raise
        self._position += count
        return count


class RemoteBytes:
    """An object as something to slice, as a memoryview is; each slice is a request, but of its ends."""

    def __init__(self, reader: ViewedReader) -> None:
        self._reader = reader
        self._tail_start = max(0, reader.num_bytes - HEAD_BYTES)
        self._tail: memoryview | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._reader.num_bytes

    def __getitem__(self, part: slice) -> memoryview:
        start, end, step = part.indices(len(self))
        assert step == 1
        if start < self._tail_start or start >= end:
            return self._reader.view(start, end)
        with self._lock:
            if self._tail is None:
                self._tail = self._reader.view(self._tail_start, len(self))
        return self._tail[start - self._tail_start : end - self._tail_start]


@cache
def _threads() -> ThreadPoolExecutor:
    """What reads ahead, of the process: requests wait more than they compute."""
    return ThreadPoolExecutor(8, thread_name_prefix="read ahead")
