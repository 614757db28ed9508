"""A local folder as a storage.

A file is complete or absent: it is written under a temporary name in the same folder, synced, and renamed, so that a
kill, a full disk or a power cut leaves either the old state or the new one.

Errors of the operating system are one line only where they are this file's own: while it is open for a caller's
block, its own reads and writes are distinguished from whatever else fails in the block, which passes through as it is.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from teachonce.errors import TeachonceError
from teachonce.storage.lock import LockHeldError, hold_lock
from teachonce.storage.regular import check_regular, check_size, open_regular
from teachonce.storage.storage import FileStatus, Listing, Reader, Storage
from teachonce.storage.writers import is_dead, is_old, is_writer_name, writer_name

TEMPORARY_PREFIX = ".tmp-"
_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + r"(\w+-\w+-\w+-\w+)-.+", re.DOTALL)
_OLD_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + r"[0-9a-f]{12}-.+", re.DOTALL)
"""As they were named before they carried their writer."""
_STREAM_BUFFER_BYTES = 1 << 20
_WRITE_BUFFER_BYTES = 1 << 18
"""Written at once: larger pieces are no faster, and it stays in a core's cache."""
_WRITEBACK_BYTES = 4 << 20
"""After so many the system is told to begin writing them to the disk, so that less is left to wait for at the end."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_LONGEST_NAME = 255
"""Bytes of a file's name, on nearly every file system."""
_NO_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP}
_BROKEN_LINK = {errno.ENOENT, errno.ELOOP}
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM}
"""What file systems say that cannot do what is requested at all: it is not this file that failed."""


@dataclass(frozen=True)
class LocalStorage(Storage):
    """The files below a local folder, which need not be there before the first is written."""

    root: Path
    raises: type[TeachonceError] = TeachonceError
    is_local: ClassVar[bool] = True

    def describe(self, name: str = "") -> str:
        """The path, as it was given."""
        return str(self.root / name)

    def local_path(self, name: str = "") -> Path:
        """The file itself."""
        return self.root / name

    def list_folder(self, folder: str = "") -> Listing:
        """The files and folders in a folder; links count as what they lead to, broken ones as files."""
        listing = Listing([], [])
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    if not entry.name.startswith(TEMPORARY_PREFIX):
                        (listing.folders if _is_folder(entry) else listing.files).append(entry.name)
        except OSError as error:
            raise self._error(folder, "listed", error) from error
        return listing

    def walk(self, folder: str = "") -> Iterator[str]:
        """The files below a folder."""

        def refuse(error: OSError) -> None:
            raise self._error(folder, "listed", error) from error

        top = self.root / folder
        for path, _, names in os.walk(top, onerror=refuse):
            below = Path(path).relative_to(top)
            yield from ((below / name).as_posix() for name in names if not name.startswith(TEMPORARY_PREFIX))

    def statuses(self, folder: str = "") -> dict[str, FileStatus]:
        """Size and time of each file directly in a folder; a broken link and what is not a file are left out."""
        if not self.is_folder(folder):
            return {}
        found: dict[str, FileStatus] = {}
        for name in self.list_folder(folder).files:
            try:
                status = os.stat(f"{self.root}/{folder}/{name}")  # noqa: PTH116, as in ``status``
            except OSError as error:
                if error.errno in _BROKEN_LINK:
                    continue  # removed since it was listed, or a broken link
                raise self._error(f"{folder}/{name}" if folder else name, "read", error) from error
            if stat.S_ISREG(status.st_mode):
                found[name] = FileStatus(status.st_size, status.st_mtime_ns)
        return found

    def status(self, name: str) -> FileStatus:
        """Size and time of last change."""
        try:
            found = os.stat(f"{self.root}/{name}")  # noqa: PTH116, a Path costs as much as the call
            check_regular(found)
        except OSError as error:
            raise self._error(name, "read", error) from error
        return FileStatus(found.st_size, found.st_mtime_ns)

    def has(self, name: str = "") -> bool:
        """Whether there is a file, or a link to one; its reading may still be forbidden."""
        mode = self._mode(name)
        return mode is not None and not stat.S_ISDIR(mode)

    def is_folder(self, name: str = "") -> bool:
        """Whether there is a folder, or a link to one."""
        mode = self._mode(name)
        return mode is not None and stat.S_ISDIR(mode)

    def is_writable(self) -> bool:
        """Whether this user may write into the folder."""
        return os.access(self.root, os.W_OK)

    def read(self, name: str) -> bytes:
        """A whole file."""
        # Half the time of Path.read_bytes, which for the files of ImageNet is a tenth of all.
        try:
            descriptor = open_regular(f"{self.root}/{name}")
            try:
                num_bytes = os.fstat(descriptor).st_size
                check_size(num_bytes)
                content = os.read(descriptor, num_bytes)
                # One call is enough but for signals and for files that are being written just now.
                while more := os.read(descriptor, max(num_bytes - len(content), 1)):
                    content += more
                    check_size(len(content))
                return content
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._error(name, "read", error) from error

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """A file to be read in order; a pipe without a name, as of a shell's ``<(command)``, is one too."""
        explain = partial(self._error, name, "read")
        try:
            raw = _OwnErrors(open_regular(self.root / name, allows_pipe=True), "rb", explain)
        except OSError as error:
            raise explain(error) from error
        with _lend(raw, io.BufferedReader(raw, _STREAM_BUFFER_BYTES)) as file:
            yield file

    def open_reader(self, name: str, *, in_order: bool = False) -> Reader:
        """A descriptor for positional reads; the system reads ahead by itself."""
        return _LocalReader(self, name)

    def map(self, name: str) -> memoryview:
        """The file's pages; one that is truncated later is a SIGBUS, so only for files that are never changed."""
        try:
            with os.fdopen(open_regular(self.root / name), "rb") as file:
                # What is empty cannot be mapped.
                if not os.fstat(file.fileno()).st_size:
                    return memoryview(b"")
            # Not by mmap, which keeps a descriptor a file: a store maps two files a shard, and 1024 is a usual limit.
            # Imported here, as reading records needs no pyarrow.
            import pyarrow as pa

            with pa.memory_map(os.fsencode(self.root / name)) as mapped:
                return memoryview(mapped.read_buffer())
        except OSError as error:
            raise self._error(name, "read", error) from error

    def put(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file that is renamed into its place; its folders are made."""
        return self._put(name, overwrite=True)

    def put_if_absent(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file that is linked into its place."""
        return self._put(name, overwrite=False)

    def delete(self, name: str) -> None:
        """Remove a file."""
        try:
            (self.root / name).unlink(missing_ok=True)
        except OSError as error:
            raise self._error(name, "removed", error) from error

    def remove_empty_folder(self, folder: str) -> None:
        """Remove a folder; the system refuses where something is in it."""
        with suppress(OSError):
            (self.root / folder).rmdir()

    def remove_temporaries(self, folder: str = "") -> None:
        """Remove what killed writers left; nothing happens where there is no such folder, or none may be removed."""
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    # Another process may remove it at the same time, or it may be another user's.
                    with suppress(FileNotFoundError, PermissionError):
                        if entry.name.startswith(TEMPORARY_PREFIX) and _is_leftover(entry):
                            Path(entry.path).unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            if error.errno not in _NO_PERMISSION:
                raise self._error(folder, "cleaned up", error) from error

    @contextmanager
    def lock(self, name: str, doing: str) -> Iterator[None]:
        """A locked file, which is removed after the block."""
        path = self.root / name
        with ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold_lock(path))
            except LockHeldError as error:
                raise self.raises(
                    f"{path.parent}: is being {doing} by {error}; wait until it has finished, or choose another --out"
                ) from None
            except OSError as error:
                raise self._error(name, "written", error) from error
            yield

    def _mode(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._error(name, "read", error) from error

    @contextmanager
    def _put(self, name: str, *, overwrite: bool) -> Iterator[BinaryIO]:
        path = self.root / name
        # Not tempfile: its mode 0600 would hide the file from a colleague's job; the umask decides here.
        temporary = path.with_name(_temporary_name(path.name))
        explain = partial(self._error, name, "written")
        try:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                raw = _OwnErrors(temporary, "xb", explain)
            except OSError as error:
                raise explain(error) from error
            with _lend(raw, io.BufferedWriter(raw, _WRITE_BUFFER_BYTES)) as file:
                yield file
            try:
                if overwrite:
                    temporary.replace(path)
                else:
                    _appear_once(temporary, path)
                _sync_folder(path.parent)
            except OSError as error:
                raise explain(error) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _error(self, name: str, verb: str, error: OSError) -> TeachonceError:
        reason = _explain(error, is_written=verb == "written")
        if error.errno in _BROKEN_LINK and verb == "read":
            with suppress(OSError):
                reason += f", the file is a broken link to {(self.root / name).readlink()}"
        return self.raises(f"{self.describe(name)}: cannot be {verb}: {reason}")


def _temporary_name(name: str) -> str:
    """A name for a file until it has its own, which may be as long as a file system takes: of that the beginning."""
    whole = f"{TEMPORARY_PREFIX}{writer_name()}-{name}"
    encoded = os.fsencode(whole)
    # Not within a character: some file systems take whole ones alone.
    return whole if len(encoded) <= _LONGEST_NAME else encoded[:_LONGEST_NAME].decode(errors="ignore")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False  # a link to itself
        raise  # what may not be looked at may be a class


def _is_leftover(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a temporary file of ours whose writer is dead."""
    if not entry.is_file(follow_symlinks=False):
        return False
    match = _TEMPORARY.fullmatch(entry.name)
    modified_seconds = entry.stat(follow_symlinks=False).st_mtime
    if match and is_writer_name(match[1]):
        return is_dead(match[1], modified_seconds)
    return _OLD_TEMPORARY.fullmatch(entry.name) is not None and is_old(modified_seconds)


def _explain(error: OSError, *, is_written: bool) -> str:
    """What went wrong, and what to do about it."""
    reason = error.strerror or str(error)
    if error.errno == errno.EIO:
        return "input/output error: check the disk"
    if is_written and error.errno in _NO_SPACE:
        return f"{reason}; free space or choose another --out"
    if error.errno in _NO_PERMISSION:
        return f"{reason}; {'allow it or choose another --out' if is_written else 'check the permissions'}"
    return f"{reason}; choose another --out" if is_written and error.errno in _NO_PLACE else reason


class _OwnErrors(io.FileIO):
    """An unbuffered file whose own errors are what ``explain`` makes of them, and no OSErrors any more.

    In a block that reads other files too, an OSError does not say which file it is about.
    """

    def __init__(self, path: Path | int, mode: str, explain: Callable[[OSError], TeachonceError]) -> None:
        self.failure: TeachonceError | None = None
        self._explain = explain
        self._num_written = self._num_begun = 0
        super().__init__(path, mode)

    def write(self, data: Any) -> int:
        """Some of ``data``; returns how many bytes."""
        num_bytes = self._own(super().write, data)
        self._num_written += num_bytes
        if self._num_written - self._num_begun >= _WRITEBACK_BYTES:
            _begin_writeback(self.fileno(), self._num_begun, self._num_written)
            self._num_begun = self._num_written
        return num_bytes

    def readinto(self, buffer: Any) -> int:
        """Some bytes into ``buffer``; returns how many."""
        return self._own(super().readinto, buffer)

    def readall(self) -> bytes:
        """What is left."""
        return self._own(super().readall)

    def close(self) -> None:
        """Some file systems say only here that they are full."""
        self._own(super().close)

    def sync(self) -> None:
        """Wait until the disk has what was written."""
        self._own(os.fsync, self.fileno())

    def _own(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except OSError as error:
            failure = self._explain(error)
            self.failure = self.failure or failure
            raise failure from error


@contextmanager
def _lend(raw: _OwnErrors, file: BinaryIO) -> Iterator[BinaryIO]:
    """``file``, the buffer of ``raw``, for a block; flushed and on the disk after it, where it is written.

    The first error of ``raw`` is what is raised, whatever the block made of it: libraries turn it into errors of their
    own, or finish silently (torch, Arrow). Any other error of the block stays what it is, also where ``raw``
    fails after it.
    """
    try:
        yield file
        if raw.mode != "rb":
            file.flush()
            raw.sync()
    except BaseException as error:
        first = raw.failure
        with suppress(TeachonceError):
            file.close()
        if first is not None and first is not error and isinstance(error, Exception):
            raise first from error
        raise
    file.close()
    if raw.failure is not None:
        raise raw.failure


class _LocalReader(Reader):
    """A descriptor that is closed with its last user, so that no thread reads a closed or reused number."""

    descriptor: int

    def __init__(self, storage: LocalStorage, name: str) -> None:
        self._storage = storage
        self._name = name
        try:
            self.descriptor = open_regular(storage.root / name)
            self.num_bytes = os.fstat(self.descriptor).st_size
        except OSError as error:
            raise storage._error(name, "read", error) from error

    def read(self, offset: int, num_bytes: int) -> bytes:
        """A range; one call returns all of it but over 2 GiB, on signals, and where the file has been cut."""
        try:
            content = os.pread(self.descriptor, num_bytes, offset)
            while len(content) < num_bytes:
                more = os.pread(self.descriptor, num_bytes - len(content), offset + len(content))
                if not more:
                    break
                content += more
            return content
        except OSError as error:
            raise self._storage._error(self._name, "read", error) from error

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """A range into memory that is there, as ``read``."""
        try:
            done = os.preadv(self.descriptor, [buffer], offset)
            while done < len(buffer):
                more = os.preadv(self.descriptor, [buffer[done:]], offset + done)
                if not more:
                    break
                done += more
            return done
        except OSError as error:
            raise self._storage._error(self._name, "read", error) from error

    def __del__(self) -> None:
        if self.descriptor is not None:
            with suppress(OSError):
                os.close(self.descriptor)


def _begin_writeback(descriptor: int, start: int, end: int) -> None:
    """Have the system write a range to the disk, without waiting for it; a hint, that not every system takes."""
    # That the pages are not needed is what makes Linux write dirty ones now; it keeps those that are on their way.
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)


def _appear_once(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return
    except OSError as error:
        # A file system without hard links: a rename is the next best thing.
        if error.errno not in _NOT_SUPPORTED | {errno.EMLINK, errno.EXDEV}:
            raise
        if not path.exists():
            temporary.replace(path)


def _sync_folder(folder: Path) -> None:
    # The rename itself is durable only once the folder is; some file systems cannot say so, which is harmless. A disk
    # that fails here is not: the file is complete under its name, but may not survive a power cut.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED | {errno.EBADF}:
            raise
