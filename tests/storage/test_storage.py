"""What every storage must do, whatever lies behind it: the contract, run for each implementation."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
from pathlib import Path

import pytest

from teachonce.errors import RecordError
from teachonce.storage.local import LocalStorage
from teachonce.storage.storage import Storage


def put(storage: Storage, name: str, content: bytes = b"content") -> None:
    with storage.put(name) as file:
        file.write(content)


class StorageContract:
    """Tests of an implementation: a subclass has the fixture ``storage``, an empty one that raises RecordError."""

    def test_a_file_appears_whole(self, storage: Storage) -> None:
        with storage.put("deep/er/a.bin") as file:
            file.write(b"half")
            assert not storage.has("deep/er/a.bin")
            if storage.is_folder("deep/er"):
                assert storage.list_folder("deep/er").files == []
            file.write(b" and half")
        assert storage.has("deep/er/a.bin") and storage.read("deep/er/a.bin") == b"half and half"

    def test_an_error_leaves_what_was_there(self, storage: Storage) -> None:
        put(storage, "a.bin", b"old")
        for name in ("a.bin", "b.bin"):
            with pytest.raises(KeyError), storage.put(name) as file:
                file.write(b"new")
                raise KeyError
        assert storage.read("a.bin") == b"old" and storage.list_folder() == (["a.bin"], [])

    def test_a_later_put_takes_the_place(self, storage: Storage) -> None:
        put(storage, "a.bin", b"first, and longer")
        with storage.put("a.bin") as slow:
            put(storage, "a.bin", b"second")
            slow.write(b"third")
        assert storage.read("a.bin") == b"third"

    def test_the_first_of_several_writers_wins(self, storage: Storage) -> None:
        with storage.put_if_absent("a.bin") as slow:
            with storage.put_if_absent("a.bin") as fast:
                fast.write(b"first")
            slow.write(b"second")
        assert storage.read("a.bin") == b"first" and storage.list_folder().files == ["a.bin"]

    def test_names_files_and_folders(self, storage: Storage) -> None:
        assert storage.has() is False
        for name in ("a.bin", "b/c.bin", "b/.hidden", "b/d/e.bin"):
            put(storage, name)
        files, folders = storage.list_folder()
        assert (sorted(files), sorted(folders)) == (["a.bin"], ["b"])
        files, folders = storage.list_folder("b")
        assert (sorted(files), sorted(folders)) == ([".hidden", "c.bin"], ["d"])
        assert sorted(storage.walk()) == ["a.bin", "b/.hidden", "b/c.bin", "b/d/e.bin"]
        assert sorted(storage.walk("b")) == [".hidden", "c.bin", "d/e.bin"]
        assert storage.is_folder() and storage.is_folder("b/d") and not storage.is_folder("a.bin")
        assert storage.has("b/d/e.bin") and not storage.has("b/d") and not storage.has("a.bin/c")
        assert not storage.has("nowhere/a.bin") and not storage.is_folder("nowhere")

    def test_size_and_time(self, storage: Storage) -> None:
        put(storage, "a.bin", b"12345")
        first = storage.status("a.bin")
        put(storage, "a.bin", b"123")
        second = storage.status("a.bin")
        assert (first.num_bytes, second.num_bytes) == (5, 3) and first.modified_ns <= second.modified_ns

    def test_sizes_of_a_folder(self, storage: Storage) -> None:
        assert storage.statuses() == {} and storage.statuses("nowhere") == {}
        for name in ("a.bin", "b/c.bin", "b/d.bin", "b/e/f.bin"):
            put(storage, name, name.encode())
        assert storage.statuses() == {"a.bin": storage.status("a.bin")}
        found = storage.statuses("b")
        assert found == {"c.bin": storage.status("b/c.bin"), "d.bin": storage.status("b/d.bin")}

    def test_a_file_in_order(self, storage: Storage) -> None:
        content = bytes(range(251)) * 100_000
        put(storage, "a.bin", content)
        reader = storage.open_reader("a.bin", in_order=True)
        position = 0
        while part := reader.read(position, 4_000_000):
            assert part == content[position : position + 4_000_000]
            position += 3_999_000
        assert position >= len(content) and reader.read(5, 7) == content[5:12]

    def test_large_files(self, storage: Storage) -> None:
        content = bytes(range(256)) * 200_000
        for put_large in (storage.put, storage.put_if_absent):
            with put_large("a.bin") as file:
                for start in range(0, len(content), 1_000_000):
                    file.write(content[start : start + 1_000_000])
            assert storage.status("a.bin").num_bytes == len(content) and storage.read("a.bin") == content

    def test_names_with_odd_characters(self, storage: Storage) -> None:
        names = ["a b#%?+&.bin", "ä-ö.bin", "%20.bin", "a=b,c;d'e.bin"]
        for name in names:
            put(storage, f"f/{name}", name.encode())
            assert storage.read(f"f/{name}") == name.encode() and storage.status(f"f/{name}").num_bytes
        assert sorted(storage.list_folder("f").files) == sorted(names) == sorted(storage.walk("f"))

    def test_ranges_of_a_file(self, storage: Storage) -> None:
        content = bytes(range(256)) * 20
        put(storage, "a.bin", content)
        reader = storage.open_reader("a.bin")
        assert reader.num_bytes == len(content)
        assert reader.read(100, 300) == content[100:400] and reader.read(0, 0) == b""
        assert reader.read(len(content) - 3, 10) == content[-3:] and reader.read(len(content), 10) == b""
        buffer = memoryview(bytearray(10))
        assert reader.read_into(buffer, 5) == 10 and bytes(buffer) == content[5:15]
        assert reader.read_into(buffer, len(content) - 4) == 4 and bytes(buffer[:4]) == content[-4:]
        assert reader.read_into(buffer, len(content)) == 0

    def test_a_reader_is_for_many_threads(self, storage: Storage) -> None:
        content = bytes(range(256)) * 20
        put(storage, "a.bin", content)
        reader, good = storage.open_reader("a.bin"), []

        def read(start: int) -> None:
            good.append(all(reader.read(i, 64) == content[i : i + 64] for i in range(start, 4000, 97)))

        threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert good == [True] * 4

    def test_a_file_in_order_and_as_memory(self, storage: Storage) -> None:
        content = b"line\n" * 500_000
        put(storage, "a.txt", content)
        with storage.stream("a.txt") as file:
            assert file.read(7) == content[:7] and file.readline() == b"ne\n"
            assert sum(map(len, file)) == len(content) - 10
        mapped = storage.map("a.txt")
        assert len(mapped) == len(content) and mapped[:].readonly and mapped[:] == content
        assert mapped[7:1000] == content[7:1000] and mapped[len(content) - 9 :] == content[-9:]
        put(storage, "empty", b"")
        assert storage.map("empty")[:] == storage.read("empty") == b"" and storage.open_reader("empty").num_bytes == 0

    def test_what_is_read_stays_when_the_file_is_replaced(self, storage: Storage) -> None:
        put(storage, "a.bin", b"old content")
        mapped, reader = storage.map("a.bin"), storage.open_reader("a.bin")
        put(storage, "a.bin", b"new")
        assert mapped[:] == b"old content" and reader.read(0, 100) == b"old content"

    def test_versions_of_a_file_are_never_mixed(self, storage: Storage) -> None:
        old, new = bytes(300_000), b"1" * 300_000
        put(storage, "a.bin", old)
        mapped, reader = storage.map("a.bin"), storage.open_reader("a.bin")
        put(storage, "a.bin", new)
        for read in (lambda: bytes(mapped[100_000:200_000]), lambda: reader.read(100_000, 100_000)):
            try:
                assert read() == old[100_000:200_000]
            except RecordError as error:  # what an object store without versions can say at most
                assert "a.bin: cannot be read: it was replaced while it was read" in str(error)

    def test_what_is_deleted_is_gone(self, storage: Storage) -> None:
        put(storage, "a.bin")
        storage.delete("a.bin")
        storage.delete("a.bin")
        assert not storage.has("a.bin")

    def test_what_is_not_there_is_named(self, storage: Storage) -> None:
        where = storage.describe("no/file")
        for ask in (storage.read, storage.status, storage.open_reader, storage.map):
            with pytest.raises(RecordError, match=rf"^{where}: cannot be read: No such file"):
                ask("no/file")
        with pytest.raises(RecordError, match=rf"^{where}: cannot be read: No such file"), storage.stream("no/file"):
            pass
        for ask in (storage.list_folder, lambda name: list(storage.walk(name))):
            with pytest.raises(RecordError, match=rf"^{where}: cannot be listed: No such file"):
                ask("no/file")

    def test_what_may_be_missing(self, storage: Storage) -> None:
        assert storage.find("a.bin") is storage.find("no/file") is None
        put(storage, "a.bin")
        put(storage, "large.bin", b"x" * 200_000)
        put(storage, "empty.bin", b"")
        assert storage.find("a.bin") == b"content" and storage.find("empty.bin") == b""
        assert storage.find("large.bin") == b"x" * 200_000

    def test_a_library_reads_the_file_itself(self, storage: Storage) -> None:
        put(storage, "a/b.bin", b"bytes")
        assert storage.local_path("a/b.bin").read_bytes() == b"bytes"

    def test_it_goes_to_other_processes(self, storage: Storage) -> None:
        put(storage, "a.bin")
        again = pickle.loads(pickle.dumps(storage))
        assert again.read("a.bin") == b"content" and again.describe("a.bin") == storage.describe("a.bin")
        assert again.raises is RecordError and again.is_writable()

    def test_one_holds_a_lock(self, storage: Storage) -> None:
        for _ in range(2):
            with storage.lock("a/lock", "painted"):
                expected = (
                    rf"^{storage.describe('a')}: is being painted by process {os.getpid()} on \S+; wait until it has"
                )
                with pytest.raises(RecordError, match=expected), storage.lock("a/lock", "painted"):
                    pass
                with pytest.raises(KeyError), storage.lock("a/other", "painted"):
                    raise KeyError
        put(storage, "b.bin")
        assert not storage.has("a/lock") and list(storage.walk()) == ["b.bin"]

    def test_leftovers_are_cleaned_up_and_files_stay(self, storage: Storage) -> None:
        put(storage, "b/a.bin")
        with contextlib.suppress(KeyError), storage.put("b/c.bin"):
            raise KeyError
        storage.remove_temporaries("b")
        storage.remove_temporaries("nowhere")
        assert list(storage.walk()) == ["b/a.bin"]


class TestLocalStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return LocalStorage(tmp_path, RecordError)
