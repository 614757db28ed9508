"""What is particular to local folders."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import ipc

from teachonce.errors import ConfigError, RecordError, TeachonceError
from teachonce.storage import regular
from teachonce.storage.local import LocalStorage
from teachonce.storage.storage import Listing
from teachonce.storage.writers import is_writer_name
from tests.support.kills import dead_writer, temporary


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_goes_while_a_folder_is_asked_for_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    (tmp_path / "a").write_bytes(b"a")
    monkeypatch.setattr(LocalStorage, "list_folder", lambda self, folder="": Listing(["a", "gone"], []))
    assert list(storage.statuses()) == ["a"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(RecordError, match="mine"), LocalStorage(tmp_path).put("a.bin") as file:
        file.write(b"new")
        raise RecordError("mine")
    assert (tmp_path / "a.bin").read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = LocalStorage(tmp_path / "file")
    assert storage.has() and not storage.is_folder() and not storage.has("a.bin")
    expected = pytest.raises(TeachonceError, match=r"file/a\.bin: cannot be written: .*choose another --out")
    with expected, storage.put("a.bin"):
        pass


LIMIT_BYTES = 100_000
"""Of files while a test has its full disk; pytest's own are smaller."""


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """What a full disk does to a write, without one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


FULL = r"^\S+a\.bin: cannot be written: File too large; free space or choose another --out$"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ENOENT, errno.EACCES])
def test_what_fails_beside_the_file_stays_what_it_is(tmp_path: Path, number: int) -> None:
    """An input that cannot be read while an output is open is no full disk."""
    (tmp_path / "a.bin").write_bytes(b"old")
    storage, foreign = LocalStorage(tmp_path), OSError(number, os.strerror(number), "/elsewhere/input")
    for open_file in (storage.put, storage.put_if_absent, storage.stream):
        with pytest.raises(OSError) as found, open_file("a.bin"):
            raise foreign
        assert found.value is foreign
    with pytest.raises(RecordError, match=r"^input: cannot be read"), storage.put("a.bin") as file:
        file.write(bytes(2 * LIMIT_BYTES))
        raise RecordError("input: cannot be read")
    assert (tmp_path / "a.bin").read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_a_full_disk_is_told_whatever_a_library_makes_of_it(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    with files_of_at_most(LIMIT_BYTES):
        with pytest.raises(TeachonceError, match=FULL), storage.put("a.bin") as file:
            file.write(bytes(2 * LIMIT_BYTES))
        with pytest.raises(TeachonceError, match=FULL), storage.put("a.bin") as file:
            file.write(bytes(LIMIT_BYTES - 1000))
            file.write(bytes(2000))  # stays in the buffer until the end of the block
        with pytest.raises(TeachonceError, match=FULL), storage.put("a.bin") as file:
            try:
                file.write(bytes(2 * LIMIT_BYTES))
            except TeachonceError:
                raise RuntimeError("a library's own words") from None
        with pytest.raises(TeachonceError, match=FULL), storage.put("a.bin") as file, suppress(TeachonceError):
            file.write(bytes(2 * LIMIT_BYTES))  # by a library that goes on
        batch = pa.record_batch({"a": pa.array(range(100_000))})
        with (
            pytest.raises(TeachonceError, match=FULL),
            storage.put("a.bin") as file,
            ipc.new_file(file, batch.schema) as writer,
        ):
            writer.write_batch(batch)
    assert names(tmp_path) == []


def test_an_error_before_the_disk_was_full_is_the_one_to_hear_of(tmp_path: Path) -> None:
    with (
        files_of_at_most(LIMIT_BYTES),
        pytest.raises(KeyError, match="mine"),
        LocalStorage(tmp_path).put("a.bin") as file,
    ):
        file.write(bytes(LIMIT_BYTES - 1000))
        file.write(bytes(2000))
        raise KeyError("mine")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EIO, r"input/output error: check the disk"),
        (errno.ENOSPC, r"No space left on device; free space or choose another --out"),
        (errno.EDQUOT, r"Disk quota exceeded; free space or choose another --out"),
        (errno.EACCES, r"Permission denied; allow it or choose another --out"),
        (errno.EROFS, r"Read-only file system; allow it or choose another --out"),
        (errno.EMFILE, r"Too many open files"),
    ],
)
def test_each_cause_has_its_own_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    storage = LocalStorage(tmp_path, RecordError)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RecordError, match=rf"a\.bin: cannot be written: {message}$"), storage.put("a.bin") as file:
        file.write(b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"old" and names(tmp_path) == ["a.bin"]
    monkeypatch.setattr(os, "pread", fail)
    reader, advice = storage.open_reader("a.bin"), message.partition(";")[0]
    with pytest.raises(RecordError, match=rf"a\.bin: cannot be read: {advice}"):
        reader.read(0, 3)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EINVAL, errno.EACCES, errno.EOPNOTSUPP])
def test_a_folder_that_cannot_be_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A disk that fails there is told; a file system that cannot do it is no error."""
    open_file = os.open

    def refuse_folders(path: object, *rest: int) -> int:
        if path == tmp_path:
            raise OSError(number, os.strerror(number))
        return open_file(path, *rest)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", refuse_folders)
    storage = LocalStorage(tmp_path)
    if number in (errno.EIO, errno.ENOSPC):
        with pytest.raises(TeachonceError, match=r"a\.bin: cannot be written"), storage.put("a.bin") as file:
            file.write(b"new")
    else:
        with storage.put("a.bin") as file:
            file.write(b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"new" and names(tmp_path) == ["a.bin"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose reading fails")
def test_a_stream_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Address 0 of a process is mapped to nothing: input/output error."""
    message = r"self/mem: cannot be read: input/output error: check the disk$"
    storage = LocalStorage(Path("/proc/self"), RecordError)
    for read in (lambda file: file.read(3), lambda file: file.read(), lambda file: list(file)):
        with pytest.raises(RecordError, match=message), storage.stream("mem") as file:
            read(file)


@pytest.mark.parametrize("is_refused", [False, True])
def test_the_disk_begins_before_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    asked: list[tuple[int, int]] = []

    def advise(descriptor: int, offset: int, num_bytes: int, advice: int) -> None:
        asked.append((offset, num_bytes))
        if is_refused:
            raise OSError(errno.EINVAL, "no such advice here")

    monkeypatch.setattr("teachonce.storage.local._WRITEBACK_BYTES", 1000)
    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    content = os.urandom(5_000)
    with LocalStorage(tmp_path).put("file") as file:
        for start in range(0, len(content), 600):
            file.write(content[start : start + 600])
            file.flush()
    assert (tmp_path / "file").read_bytes() == content
    assert asked == [(0, 1200), (1200, 1200), (2400, 1200), (3600, 1200)]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        with LocalStorage(tmp_path).put("a.bin"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o644


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path: Path) -> None:
    storage, dead = LocalStorage(tmp_path), dead_writer()
    elsewhere = "00000000" + dead[8:]
    temporary(tmp_path, dead)
    temporary(tmp_path, elsewhere, "old")
    (tmp_path / ".tmp-0123456789ab-old").write_bytes(b"of an older version")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    kept = [temporary(tmp_path, elsewhere, "new"), temporary(tmp_path, name="of-a-living-process"), tmp_path / "a.bin"]
    kept += [tmp_path / f".tmp-{name}" for name in ("my-notes.txt", "x", "0123456789ab-new", f"{dead}", f"{dead}x-a")]
    kept += [tmp_path / f".tmp-{dead}-folder", tmp_path / f".tmp-{dead}-link"]
    for path in kept[2:-2]:
        path.write_bytes(b"years of work")
    for path in kept[2:-3]:
        os.utime(path, (0, 0) if "new" not in path.name else None)
    kept[-2].mkdir()
    kept[-1].symlink_to("a.bin")
    assert storage.list_folder() == (["a.bin"], []) and list(storage.walk()) == ["a.bin"]
    storage.remove_temporaries()
    assert names(tmp_path) == sorted(path.name for path in kept)


def test_what_may_not_be_removed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's file, or a folder that is read-only: no error of a command that has done its work."""
    left = temporary(tmp_path, dead_writer())

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "unlink", refuse)
    LocalStorage(tmp_path).remove_temporaries()
    assert left.exists()


def test_a_temporary_carries_its_writer(tmp_path: Path) -> None:
    with LocalStorage(tmp_path).put("a.bin"):
        (name,) = names(tmp_path)
        assert name.endswith("-a.bin") and is_writer_name(name.removeprefix(".tmp-").removesuffix("-a.bin"))
        LocalStorage(tmp_path).remove_temporaries()
        assert names(tmp_path) == [name]
    assert names(tmp_path) == ["a.bin"]


def test_names_as_long_as_a_file_system_takes(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for name in (254 * "a", 85 * "字"):
        with storage.put(name) as file:
            file.write(b"content")
            (temporary,) = names(tmp_path)
            assert is_writer_name("-".join(temporary.removeprefix(".tmp-").split("-")[:4]))
        assert names(tmp_path) == [name] and storage.read(name) == b"content"
        storage.delete(name)


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    storage = LocalStorage(tmp_path)
    for content in (b"first", b"second"):
        with storage.put_if_absent("a.bin") as file:
            file.write(content)
    assert storage.read("a.bin") == b"first" and names(tmp_path) == ["a.bin"]


def test_a_disk_that_fails_is_not_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "hardlink_to", fail)
    expected = pytest.raises(TeachonceError, match=r"a\.bin: cannot be written: input/output error: check the disk")
    with expected, LocalStorage(tmp_path).put_if_absent("a.bin") as file:
        file.write(b"first")
    assert names(tmp_path) == []


def test_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.bin").write_bytes(b"a")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "file").symlink_to("real/a.bin")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to(".")
    (tmp_path / "self").symlink_to("self")
    storage = LocalStorage(tmp_path, ConfigError)
    files, folders = storage.list_folder()
    assert (sorted(files), sorted(folders)) == (["broken", "file", "self"], ["circle", "folder", "real"])
    assert sorted(storage.walk()) == ["broken", "file", "real/a.bin", "self"]
    assert storage.statuses().keys() == {"file"}
    assert storage.read("file") == b"a" and not storage.has("broken")
    for name, reason in (("broken", "No such file.*link to nowhere"), ("self", "Too many levels.*link to self")):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read: {reason}$"):
            storage.status(name)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks the system what a pipe is called")
def test_a_pipe_without_a_name_is_read_in_order() -> None:
    """``--labels <(command)``."""
    reading, writing = os.pipe()
    os.write(writing, b"a\nb\n")
    os.close(writing)
    with LocalStorage(Path("/dev/fd")).stream(str(reading)) as file:
        assert list(file) == [b"a\n", b"b\n"]
    os.close(reading)


def every_reading(storage: LocalStorage) -> list[Callable[[str], object]]:
    return [
        storage.read,
        storage.status,
        storage.open_reader,
        storage.map,
        lambda name: storage.stream(name).__enter__(),
    ]


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe that nobody writes to, and what never ends; links to regular files are regular files."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "linked").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.bin").write_bytes(b"a")
    (tmp_path / "good").symlink_to("a.bin")
    storage = LocalStorage(tmp_path, RecordError)
    kinds = {"pipe": "is a named pipe", "linked": "is a named pipe", "zero": "is a device"}
    for read in every_reading(storage):
        for name, kind in kinds.items():
            with pytest.raises(RecordError, match=rf"{name}: cannot be read: {kind}, expected a regular file$"):
                read(name)
        with pytest.raises(RecordError, match=r"socket: cannot be read: (is a socket|No such device)"):
            read("socket")
        with pytest.raises(RecordError, match=r"folder: cannot be read: Is a directory$"):
            read("folder")
    assert storage.read("good") == storage.open_reader("good").read(0, 9) == storage.map("good")[:] == b"a"


def test_a_file_without_end_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a.bin").open("wb") as file:
        file.truncate(1 << 40)
    expected = r"a\.bin: cannot be read: 1,099,511,627,776 bytes, expected at most 2,147,483,648$"
    with pytest.raises(TeachonceError, match=expected):
        LocalStorage(tmp_path).read("a.bin")
    monkeypatch.setattr(regular, "MAX_WHOLE_BYTES", 10)
    (tmp_path / "growing").write_bytes(b"12345")
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, 0) + b"12345")
    with pytest.raises(TeachonceError, match=r"growing: cannot be read: 15 bytes, expected at most 10$"):
        LocalStorage(tmp_path).read("growing")


def test_a_read_that_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over 2 GiB, on signals, and on some network file systems."""
    content = bytes(range(200))
    (tmp_path / "a.bin").write_bytes(content)
    read, pread, preadv = os.read, os.pread, os.preadv
    monkeypatch.setattr(os, "read", lambda fd, size: read(fd, min(size, 7)))
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 7), offset))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:7]], offset))
    storage = LocalStorage(tmp_path)
    reader, buffer = storage.open_reader("a.bin"), memoryview(bytearray(100))
    assert storage.read("a.bin") == content
    assert reader.read(10, 100) == content[10:110] and reader.read(150, 100) == content[150:]
    assert reader.read_into(buffer, 10) == 100 and buffer == content[10:110]
    assert reader.read_into(buffer, 150) == 50 and buffer[:50] == content[150:]


def test_a_disk_that_fails_is_one_line_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.bin").write_bytes(b"123")
    storage = LocalStorage(tmp_path, RecordError)
    reader = storage.open_reader("a.bin")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("read", "pread", "preadv"):
        monkeypatch.setattr(os, name, fail)
    buffer = memoryview(bytearray(3))
    for ask in (lambda: storage.read("a.bin"), lambda: reader.read(0, 3), lambda: reader.read_into(buffer, 0)):
        with pytest.raises(RecordError, match=r"a\.bin: cannot be read: input/output error: check the disk"):
            ask()


def test_a_reader_gives_its_descriptor_back(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"123")
    storage = LocalStorage(tmp_path)
    readers = [storage.open_reader("a.bin") for _ in range(3)]
    descriptors = [reader.descriptor for reader in readers]
    assert all(descriptor is not None and os.fstat(descriptor).st_size == 3 for descriptor in descriptors)
    readers.clear()
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks the system for the open files")
def test_a_mapped_file_takes_no_descriptor(tmp_path: Path) -> None:
    """A store maps two files of every shard, which may be a thousand."""
    for number in range(20):
        (tmp_path / f"{number}.bin").write_bytes(b"%d" % number)
    storage = LocalStorage(tmp_path)
    mapped = [storage.map(f"{number}.bin") for number in range(20)]
    opened = {os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()}
    assert not opened & {str((tmp_path / f"{number}.bin").resolve()) for number in range(20)}
    assert [bytes(view) for view in mapped] == [b"%d" % number for number in range(20)]
    assert all(view.readonly for view in mapped)


def test_a_folder_whose_name_is_no_utf_8_can_be_mapped(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    (folder / "a").write_bytes(b"content")
    assert bytes(LocalStorage(folder, RecordError).map("a")) == b"content"
