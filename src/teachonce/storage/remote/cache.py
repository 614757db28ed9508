"""A cache of objects on a local disk, shared by all processes of a machine: pages of what was read, with their hashes.

    DIR/AB/HASH.data     the object's bytes, of which only the pages that were fetched take room (a sparse file)
    DIR/AB/HASH.pages    xxh3 (64 bits) of each page; 0: not there

HASH is that of the object's address, size and version, so a replaced object is another one. A page counts when its hash
is written, behind its bytes; each process compares a page with its hash when it first uses it, so neither a killed
fetch nor a power cut leaves anything that is trusted. A process that fetches pages of an object holds a lock on its
.pages file, so that no two processes fetch the same.

When the files take more room than they may, those that were used last stay. A removed file that a process has mapped
stays readable there; its times say when it was used, and decide nothing else.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.storage.cache_folder import cache_folder
from teachonce.storage.remote.reader import ViewedReader

PAGE_BYTES = 1 << 14
FETCH_PAGES = 128
"""Pages around a record that are fetched with it: 2 MiB, some twenty photographs, which the epoch will want too."""
FOLDER_VARIABLE, BYTES_VARIABLE = "TEACHONCE_CACHE", "TEACHONCE_CACHE_BYTES"
DEFAULT_BYTES = 50 * 10**9
_MAX_FREE_FRAC = 0.5
"""Of the free disk, where no size was requested."""
TOUCH_SECONDS = 300.0
"""How often a reader that is in use says so."""
_HAS_PROC = Path("/proc/self/fd").exists()
_SWEEP_FRAC = 0.02
"""Of the limit: so much is fetched between two checks of the space used."""

GetRange = Callable[[int, int], memoryview]


class CacheFolder:
    """A folder of cached objects with a limit on its size."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._num_fetched = max_bytes  # so that the first fetch checks

    def path(self, identity: str) -> Path:
        """Path of an object in the cache, without the suffix."""
        name = xxhash.xxh3_128_hexdigest(identity.encode())
        return self.folder / name[:2] / name

    def count_fetched(self, num_bytes: int) -> None:
        """Say that so many bytes were added; makes room where the limit is passed."""
        with self._lock:
            self._num_fetched += num_bytes
            if self._num_fetched < self.max_bytes * _SWEEP_FRAC:
                return
            self._num_fetched = 0
        self._sweep()

    def num_bytes(self) -> int:
        """Room that the files take."""
        return sum(size for _, size, _ in self._files())

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(last used, bytes, path without suffix) of each object."""
        for pages in self.folder.glob("??/*.pages"):
            with suppress(FileNotFoundError):
                used = pages.stat().st_mtime
                data = pages.with_suffix(".data")
                yield used, sum(path.stat().st_blocks * 512 for path in (pages, data)), data.with_suffix("")

    def _sweep(self) -> None:
        files = sorted(self._files(), key=lambda item: (item[0], item[2]))
        excess = sum(size for _, size, _ in files) - self.max_bytes
        for _, size, path in files:
            if excess <= 0:
                break
            for suffix in (".pages", ".data"):  # in this order: pages without data would be believed
                path.with_suffix(suffix).unlink(missing_ok=True)
            excess -= size


class _Pages(NamedTuple):
    """An object's data file as it is mapped, and which of its pages this process has compared with their hashes.

    One thing: where the file was removed to make room, another one takes its place, and who still reads the old one
    reads its bytes.
    """

    content: memoryview
    present: NDArray[np.bool_]
    inode: tuple[int, int]


class CachedReader(ViewedReader):
    """Ranges of an object through the cache; what is not there is fetched, with ``unit`` pages around it."""

    def __init__(
        self, cache: CacheFolder, identity: str, num_bytes: int, get_range: GetRange, unit: int = FETCH_PAGES
    ) -> None:
        self.num_bytes = num_bytes
        self._cache = cache
        self._path = cache.path(identity)
        self._get_range = get_range
        self._unit = unit
        self._num_pages = -(-num_bytes // PAGE_BYTES)
        self._lock = threading.Lock()
        self._used = time.monotonic()
        self._is_usable = True
        """False once the folder could not be written: then every range is a request, after one warning."""
        self._pages = self._open_data()

    def view(self, start: int, end: int) -> memoryview:
        """A range, mapped; shorter only where the object ends before."""
        end = min(end, self.num_bytes)
        if end <= start:
            return memoryview(b"")
        first, last = start // PAGE_BYTES, -(-end // PAGE_BYTES)
        if time.monotonic() - self._used > TOUCH_SECONDS:
            self._say_used()
        # Taken once: another thread may map another file meanwhile.
        pages = self._pages
        if pages is None or not pages.present[first:last].all():
            with self._lock:
                pages = self._load(first, last) if self._is_usable else None
        return self._get_range(start, end) if pages is None else pages.content[start:end]

    def fetch(self, go_on: Callable[[], bool] = lambda: True) -> None:
        """All pages, a few MiB at a time, as long as ``go_on()``."""
        step = 4 * FETCH_PAGES * PAGE_BYTES
        for start in range(0, self.num_bytes, step):
            if not go_on():
                return
            self.view(start, start + step)

    def _say_used(self) -> None:
        """Renew the time by which the least recently used are found; close a file that was removed nevertheless."""
        with self._lock:
            self._used = time.monotonic()
            pages = self._pages
            if pages is not None and self.num_bytes:
                with suppress(OSError):
                    os.utime(self._path.with_suffix(".pages"))
                if self._was_removed(pages):
                    self._pages = None  # the next read maps the new one, and the disk has its room back

    def _open_data(self) -> _Pages | None:
        """The data file, made where there is none; None where it cannot be."""
        # Imported here, as reading local records needs no pyarrow. Not Python's mmap, which keeps a descriptor a file.
        import pyarrow as pa

        path = self._path.with_suffix(".data")
        present = np.zeros(self._num_pages, bool)
        if not self.num_bytes:
            return _Pages(memoryview(b""), present, (0, 0))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a+b") as file:  # noqa: PTH123, as a descriptor
                if os.fstat(file.fileno()).st_size != self.num_bytes:
                    os.ftruncate(file.fileno(), self.num_bytes)
                inode = _inode(file.fileno())
                # "r+" maps it shared: what other processes write is seen. By the descriptor, so that it is this file.
                with pa.memory_map(f"/proc/self/fd/{file.fileno()}" if _HAS_PROC else str(path), "r+") as mapped:
                    content = memoryview(mapped.read_buffer()).cast("B").toreadonly()
            return _Pages(content, present, inode)
        except OSError as error:
            self._warn(error)
            return None

    def _load(self, first: int, last: int) -> _Pages | None:
        """What has these pages; None where the cache cannot keep them."""
        try:
            with self._open_pages() as descriptor:
                pages = self._pages
                if pages is not None:
                    self._check(pages, descriptor, first, last)
                    if pages.present[first:last].all():
                        return pages
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if pages is None or self._was_removed(pages):
                    pages = self._pages = self._open_data()
                    if pages is None:
                        return None
                # With what lies around, in units that begin at the same pages in every process.
                unit = self._unit
                first, last = first // unit * unit, min(-(-last // unit) * unit, self._num_pages)
                self._check(pages, descriptor, first, last)
                self._fetch(pages, descriptor, first, last)
                return pages
        except OSError as error:
            self._warn(error)
            return None

    def _was_removed(self, pages: _Pages) -> bool:
        """Whether the data file of this name is another one than is mapped: another process made room meanwhile."""
        try:
            return _inode(self._path.with_suffix(".data")) != pages.inode
        except FileNotFoundError:
            return True

    @contextmanager
    def _open_pages(self) -> Iterator[int]:
        path = self._path.with_suffix(".pages")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _check(self, pages: _Pages, descriptor: int, first: int, last: int) -> None:
        """Mark the pages that are there, and whose bytes are those of their hashes, as present."""
        words = self._read_hashes(descriptor, first, last)
        for page in np.flatnonzero((words != 0) & ~pages.present[first:last]) + first:
            content = pages.content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
            pages.present[page] = _hash(content) == words[page - first]

    def _fetch(self, pages: _Pages, descriptor: int, first: int, last: int) -> None:
        """Fetch what is missing of these pages, each run of them by one request."""
        missing = np.flatnonzero(~pages.present[first:last]) + first
        if not len(missing):
            return
        with open(self._path.with_suffix(".data"), "r+b") as file:  # noqa: PTH123, as a descriptor
            if _inode(file.fileno()) != pages.inode:
                raise OSError(errno.ESTALE, "the cache was emptied at this moment")
            for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
                begin = int(run[0]) * PAGE_BYTES
                end = min((int(run[-1]) + 1) * PAGE_BYTES, self.num_bytes)
                content = self._get_range(begin, end)
                _write_all(file.fileno(), content, begin)
                parts = [content[offset : offset + PAGE_BYTES] for offset in range(0, len(content), PAGE_BYTES)]
                hashes = np.array([_hash(part) for part in parts], np.uint64)
                _write_all(descriptor, memoryview(hashes.tobytes()), int(run[0]) * 8)
                pages.present[run] = True
                self._cache.count_fetched(len(content))

    def _read_hashes(self, descriptor: int, first: int, last: int) -> NDArray[np.uint64]:
        found = os.pread(descriptor, (last - first) * 8, first * 8)
        words = np.zeros(last - first, np.uint64)
        complete = len(found) // 8
        words[:complete] = np.frombuffer(found, np.uint64, complete)
        return words

    def _warn(self, error: OSError) -> None:
        if error.errno == errno.ESTALE:
            return  # the next read finds the new file
        self._is_usable = False
        warnings.warn(
            f"{self._cache.folder}: the cache cannot be written ({error.strerror or error}); data is read from "
            "its source each time; free space, or choose another --cache",
            stacklevel=2,
        )


def cache_of_environment() -> CacheFolder | None:
    """The cache that this process uses; None: none, every range is a request."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return None if not folder else _open_cache(folder, int(os.environ.get(BYTES_VARIABLE) or DEFAULT_BYTES))


def use_cache(folder: Path | None, max_bytes: int | None) -> CacheFolder | None:
    """Cache what this process, and those that it starts, read of objects; default: in the user's cache folder.

    Default of ``max_bytes``: 50 GB, or, where that is less, half of what of the disk is free or the cache's already.
    None where there is no place for one.
    """
    if folder is None:
        user_folder = cache_folder()
        if user_folder is None:
            return None
        folder = user_folder / "objects"
    if max_bytes is None:
        # What the cache has taken already is room for it too: a second start must not have half as much.
        room = _free_bytes(folder) + CacheFolder(folder, 0).num_bytes()
        max_bytes = min(DEFAULT_BYTES, int(room * _MAX_FREE_FRAC))
    os.environ[FOLDER_VARIABLE] = str(folder.absolute())
    os.environ[BYTES_VARIABLE] = str(max_bytes)
    return cache_of_environment()


_caches: dict[tuple[str, int], CacheFolder] = {}


def _open_cache(folder: str, max_bytes: int) -> CacheFolder:
    return _caches.setdefault((folder, max_bytes), CacheFolder(Path(folder), max_bytes))


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _inode(file: int | Path) -> tuple[int, int]:
    found = os.stat(file)  # noqa: PTH116, of a descriptor too
    return found.st_dev, found.st_ino


def _hash(content: memoryview) -> int:
    return xxhash.xxh3_64_intdigest(content) or 1


def _write_all(descriptor: int, content: memoryview, offset: int) -> None:
    while len(content):
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
