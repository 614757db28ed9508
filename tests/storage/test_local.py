"""What is particular to local folders."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from teachonce.errors import ConfigError, RecordError, TeachonceError
from teachonce.storage.local import LocalStorage


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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


def test_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        with LocalStorage(tmp_path).put("a.bin"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o644


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for name in (".tmp-abc-a.bin", ".tmp-abc-b.bin", "a.bin", ".tmp-notours"):
        (tmp_path / name).write_bytes(b"")
    assert storage.list_folder().files == list(storage.walk()) == ["a.bin"]
    storage.remove_temporaries(older_than_seconds=60)
    assert len(names(tmp_path)) == 4
    storage.remove_temporaries(of=r"a\..*")
    assert names(tmp_path) == [".tmp-abc-b.bin", ".tmp-notours", "a.bin"]
    storage.remove_temporaries()
    assert names(tmp_path) == [".tmp-notours", "a.bin"]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    storage = LocalStorage(tmp_path)
    for content in (b"first", b"second"):
        with storage.put_if_absent("a.bin") as file:
            file.write(content)
    assert storage.read("a.bin") == b"first" and names(tmp_path) == ["a.bin"]


def test_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.bin").write_bytes(b"a")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "file").symlink_to("real/a.bin")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to(".")
    storage = LocalStorage(tmp_path, ConfigError)
    files, folders = storage.list_folder()
    assert (sorted(files), sorted(folders)) == (["broken", "file"], ["circle", "folder", "real"])
    assert sorted(storage.walk()) == ["broken", "file", "real/a.bin"]
    assert storage.read("file") == b"a" and not storage.has("broken")
    with pytest.raises(ConfigError, match="broken: cannot be read: No such file"):
        storage.status("broken")


def test_a_pipe_is_a_file(tmp_path: Path) -> None:
    """``--labels <(command)``."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"a\nb\n",))
    writer.start()
    with LocalStorage(tmp_path).stream("pipe") as file:
        assert list(file) == [b"a\n", b"b\n"]
    writer.join()


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
        with pytest.raises(RecordError, match=r"a\.bin: cannot be read: Input/output error"):
            ask()


def test_a_reader_gives_its_descriptor_back(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"123")
    storage = LocalStorage(tmp_path)
    readers = [storage.open_reader("a.bin") for _ in range(3)]
    descriptors = [reader._descriptor for reader in readers]  # type: ignore[attr-defined]
    assert all(os.fstat(descriptor).st_size == 3 for descriptor in descriptors)
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
