"""The storage seam: every byte that is read or written under a user's path goes through ``Storage``.

A storage is a place with named files: a local folder (``local.py``), or a bucket or web server (``remote``). Names are
relative to it, with "/" between their parts; "" is the place itself. There is nothing here that an object store cannot
do: a file appears by one put, complete or not at all, and is never changed in place; folders are what names have in
common, made and gone with their files. Writers that collide are distinguished only by ``put_if_absent``.

Whatever cannot be read, listed or written is a TeachonceError of the class ``raises``, with the file's full name as
``describe`` has it. To read what is not there is "NAME: cannot be read: No such file or directory", and so is to ask
for its status; a folder that is not there "cannot be listed", as it is not an empty one: ``list_folder`` and ``walk``
raise. ``StorageContract`` in ``tests/storage/test_storage.py`` holds an implementation to all of this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple, Protocol

from teachonce.errors import TeachonceError


class Listing(NamedTuple):
    """Names directly in a folder, without the folder's own, in no order."""

    files: list[str]
    folders: list[str]


class FileStatus(NamedTuple):
    """What is known of a file without reading it."""

    num_bytes: int
    modified_ns: int
    """When it appeared, in nanoseconds since 1970; as fine as the storage counts."""
    version: str = ""
    """The storage's own name of these bytes, where it has one (an object's ETag)."""


class Reader(ABC):
    """One file, kept open for many ranges of it; safe to use from several threads, closed when it is no longer
    referenced."""

    num_bytes: int
    """Size of the file when it was opened."""
    descriptor: int | None = None
    """Of a local file, which the native library reads by position, as long as the reader is there; None: no such."""

    @abstractmethod
    def read(self, offset: int, num_bytes: int) -> bytes:
        """So many bytes from ``offset`` on; fewer only where the file ends before."""

    @abstractmethod
    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on; returns how many bytes: fewer than it has only where the file ends."""

    def fetch(self, go_on: Callable[[], bool] = lambda: True) -> None:  # noqa: B027, most readers have no cache
        """Have all of the file in the cache, where there is one that it is read through; until ``go_on()`` is False."""


class Mapped(Protocol):
    """A file as something to slice: a memoryview of a mapped one, or what reads each slice on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> memoryview: ...


class Storage(ABC):
    """A place with named files; picklable, and safe to use from several threads."""

    requests_at_once: ClassVar[int] = 1
    """Requests that are worth having under way together: more than one where each takes a round trip."""

    is_local: ClassVar[bool] = False
    """Whether its files are this machine's, of which one may be unreadable alone: elsewhere the next ones are too."""

    can_list: ClassVar[bool] = True
    """False where a folder is known by the list in it alone (files.json), which a store does not need."""

    @property
    def is_cached(self) -> bool:
        """Whether what is read is kept in a cache on this machine."""
        return False

    raises: type[TeachonceError]
    """The class of the errors of reading, listing and writing."""

    @abstractmethod
    def describe(self, name: str = "") -> str:
        """How messages name a file: its location with the storage's own."""

    @abstractmethod
    def list_folder(self, folder: str = "") -> Listing:
        """The names in a folder; files that are still being written are left out."""

    @abstractmethod
    def walk(self, folder: str = "") -> Iterator[str]:
        """Names, relative to the folder, of the files anywhere below it, in no order; links to folders are left out."""

    @abstractmethod
    def statuses(self, folder: str = "") -> dict[str, FileStatus]:
        """Size and time of the files directly in a folder; none where there is no such folder."""

    @abstractmethod
    def status(self, name: str) -> FileStatus:
        """Size and time of a file."""

    @abstractmethod
    def has(self, name: str = "") -> bool:
        """Whether there is a file of this name."""

    @abstractmethod
    def is_folder(self, name: str = "") -> bool:
        """Whether there is a folder of this name."""

    @abstractmethod
    def is_writable(self) -> bool:
        """False where it is plain that nothing can be put here; True where only trying can tell."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A complete file, of at most 2 GiB (``regular.MAX_WHOLE_BYTES``)."""

    def find(self, name: str) -> bytes | None:
        """As ``read``; None where there is no file of this name."""
        return self.read(name) if self.has(name) else None

    @abstractmethod
    def stream(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to be read in order, from its beginning, within the block.

        Errors of reading this file are of the class ``raises``; whatever else is raised in the block passes through.
        """

    @abstractmethod
    def open_reader(self, name: str, *, in_order: bool = False) -> Reader:
        """A file of which many ranges are read.

        ``in_order``: by one thread, each behind the one before, so that they can be read ahead.
        """

    @abstractmethod
    def map(self, name: str) -> Mapped:
        """A file of which slices are read, read-only: mapped where it is local."""

    @abstractmethod
    def put(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A binary file that appears under its name when the block ends without an error, in place of an older one.

        It is durable then. After an error, or a kill, there is what was there before; only where it is the last step
        that fails, which makes the name durable, the new file may be there, complete. Errors of writing this file are
        of the class ``raises``; whatever else is raised in the block passes through.
        """

    @abstractmethod
    def put_if_absent(self, name: str) -> AbstractContextManager[BinaryIO]:
        """As ``put``, but the first of several writers wins, and the others leave its file as it is."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""

    def remove_empty_folder(self, folder: str) -> None:  # noqa: B027, there are none in an object store
        """Remove a folder in which no file is left; nothing happens where there is one, or no such folder."""

    @abstractmethod
    def remove_temporaries(self, folder: str = "") -> None:
        """Remove what killed writers left in a folder, and nothing that a living one, or another program, put there."""

    @abstractmethod
    def lock(self, name: str, doing: str) -> AbstractContextManager[None]:
        """Hold ``name`` for a block, so that no other process on any machine does; it is released when the holder is
        killed.

        Raises where one does: "FOLDER: is being DOING by process 12 on HOST".
        """

    @abstractmethod
    def local_path(self, name: str = "") -> Path:
        """A path for libraries that open files themselves; elsewhere than here, of a local copy.

        For reading only: what is written there is local to this machine and need not reach the storage.
        """
