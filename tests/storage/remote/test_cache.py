"""The cache of objects: the right bytes, each fetched once, whatever is killed, removed, damaged or full."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from teachonce.errors import RecordError
from teachonce.storage.files import open_storage
from teachonce.storage.remote.cache import PAGE_BYTES, CachedReader, CacheFolder, use_cache
from teachonce.storage.storage import Storage
from tests.storage.test_storage import StorageContract
from tests.support.object_stores import environment, new_bucket

CONTENT = np.random.default_rng(1).bytes(40 * PAGE_BYTES + 777)


class Object:
    """An object in memory that counts what is asked of it."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.ranges: list[tuple[int, int]] = []

    def get_range(self, start: int, end: int) -> memoryview:
        self.ranges.append((start, end))
        return memoryview(self.content)[start:end]

    @property
    def num_fetched(self) -> int:
        return sum(end - start for start, end in self.ranges)


def reader_of(cache: CacheFolder, source: Object, unit: int = 1, identity: str = "s3://b/a\n1") -> CachedReader:
    return CachedReader(cache, identity, len(source.content), source.get_range, unit)


@pytest.fixture
def cache(tmp_path: Path) -> CacheFolder:
    return CacheFolder(tmp_path / "cache", 10**9)


def test_each_page_is_fetched_once(cache):
    source = Object()
    reader = reader_of(cache, source)
    rng = np.random.default_rng(0)
    for _ in range(300):
        start, end = sorted(rng.integers(0, len(CONTENT) + 1, 2).tolist())
        assert reader.view(start, end) == CONTENT[start:end] == reader.read(start, end - start)
    assert reader.read(len(CONTENT) - 3, 99) == CONTENT[-3:] and reader.read(len(CONTENT), 9) == b""
    assert source.num_fetched == len(CONTENT)
    again = Object()
    assert reader_of(cache, again).view(0, len(CONTENT)) == CONTENT and again.ranges == []


def test_a_range_fetches_its_pages_and_no_other(cache):
    source = Object()
    reader_of(cache, source).view(5 * PAGE_BYTES + 10, 7 * PAGE_BYTES - 10)
    assert source.ranges == [(5 * PAGE_BYTES, 7 * PAGE_BYTES)]
    reader_of(cache, source, unit=8).view(6 * PAGE_BYTES, 6 * PAGE_BYTES + 1)
    assert len(source.ranges) == 1, "it is there"
    reader_of(cache, source, unit=8).view(7 * PAGE_BYTES, 8 * PAGE_BYTES + 1)
    assert source.ranges[1:] == [(0, 5 * PAGE_BYTES), (7 * PAGE_BYTES, 16 * PAGE_BYTES)]


def test_another_version_is_another_object(cache):
    old, new = Object(), Object(CONTENT[::-1])
    assert reader_of(cache, old, identity="s3://b/a\n1").read(0, 100) == CONTENT[:100]
    assert reader_of(cache, new, identity="s3://b/a\n2").read(0, 100) == CONTENT[::-1][:100]


def test_a_damaged_page_is_fetched_again(cache):
    reader_of(cache, Object()).view(0, len(CONTENT))
    (data,) = cache.folder.glob("??/*.data")
    with data.open("r+b") as file:
        file.seek(3 * PAGE_BYTES + 5)
        file.write(b"damage")
    source = Object()
    assert reader_of(cache, source).view(0, len(CONTENT)) == CONTENT
    assert source.ranges == [(3 * PAGE_BYTES, 4 * PAGE_BYTES)]


def test_what_a_killed_fetch_wrote_is_not_believed(cache):
    """The bytes were written, the hash was not; or the hash was, and the bytes were lost with the power."""
    reader_of(cache, Object()).view(0, 4 * PAGE_BYTES)
    (data,) = cache.folder.glob("??/*.data")
    pages = data.with_suffix(".pages")
    hashes = bytearray(pages.read_bytes())
    hashes[8:16] = bytes(8)
    pages.write_bytes(hashes[:29])  # the last one was cut too
    with data.open("r+b") as file:
        file.seek(2 * PAGE_BYTES)
        file.write(bytes(PAGE_BYTES))
    source = Object()
    assert reader_of(cache, source).view(0, 4 * PAGE_BYTES) == CONTENT[: 4 * PAGE_BYTES]
    assert source.ranges == [(PAGE_BYTES, 4 * PAGE_BYTES)]


def test_the_least_recently_used_make_room(tmp_path):
    cache = CacheFolder(tmp_path / "cache", 100 * PAGE_BYTES)
    readers = [reader_of(cache, Object(), identity=f"object {number}") for number in range(4)]
    for number, reader in enumerate(readers):
        reader.view(0, len(CONTENT))
        os.utime(cache.path(f"object {number}").with_suffix(".pages"), (number, number))
    assert cache.num_bytes() <= 125 * PAGE_BYTES
    kept = [number for number in range(4) if cache.path(f"object {number}").with_suffix(".data").exists()]
    assert kept in ([2, 3], [1, 2, 3]) and 3 in kept
    for reader in readers:
        assert reader.view(0, len(CONTENT)) == CONTENT, "what is mapped stays readable"


def test_a_removed_object_is_fetched_again_where_it_is_seen(cache):
    source, other = Object(), Object()
    reader, second = reader_of(cache, source), reader_of(cache, other)
    first = reader.view(0, PAGE_BYTES)
    for path in cache.folder.glob("??/*"):
        path.unlink()
    third = reader_of(cache, Object())
    third.view(20 * PAGE_BYTES, 21 * PAGE_BYTES)
    assert reader.view(20 * PAGE_BYTES, 22 * PAGE_BYTES) == CONTENT[20 * PAGE_BYTES : 22 * PAGE_BYTES]
    assert second.view(0, len(CONTENT)) == CONTENT and reader.view(0, len(CONTENT)) == CONTENT
    assert first == CONTENT[:PAGE_BYTES]


def test_who_reads_keeps_its_file_when_another_thread_maps_a_new_one(cache):
    """A thread that has looked where its pages are must not read the new, empty file at their place."""
    source = Object()
    reader = reader_of(cache, source)
    reader.view(0, 2 * PAGE_BYTES)
    before = reader._pages
    for path in cache.folder.glob("??/*"):
        path.unlink()
    reader.view(9 * PAGE_BYTES, 10 * PAGE_BYTES)
    after = reader._pages
    assert before is not None and after is not None and after is not before
    assert before.present[:2].all() and not after.present[:2].any()
    assert before.content[: 2 * PAGE_BYTES] == CONTENT[: 2 * PAGE_BYTES]
    assert reader.view(0, 2 * PAGE_BYTES) == CONTENT[: 2 * PAGE_BYTES]


def test_a_file_in_use_says_so_and_one_that_was_removed_is_let_go_of(cache, monkeypatch):
    monkeypatch.setattr("teachonce.storage.remote.cache.TOUCH_SECONDS", -1.0)
    reader = reader_of(cache, Object())
    reader.view(0, len(CONTENT))
    (pages,) = cache.folder.glob("??/*.pages")
    os.utime(pages, (1, 1))
    assert reader.view(5, 9) == CONTENT[5:9] and pages.stat().st_mtime > 1
    pages.with_suffix(".data").unlink()
    assert reader.view(5, 9) == CONTENT[5:9]
    names = Path("/proc/self/maps").read_text()
    assert f"{pages.with_suffix('.data')} (deleted)" not in names, "the disk has its room back"


def test_a_cached_file_takes_no_descriptor(cache):
    before = len(list(Path("/proc/self/fd").iterdir()))
    readers = [reader_of(cache, Object(), identity=str(number)) for number in range(20)]
    assert all(reader.view(0, 100) == CONTENT[:100] for reader in readers)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_threads_fetch_a_page_once(cache):
    source = Object()
    reader = reader_of(cache, source, unit=4)
    good = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        starts = rng.integers(0, len(CONTENT), 200).tolist()
        good.append(all(reader.view(start, start + 9999) == CONTENT[start : start + 9999] for start in starts))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert good == [True] * 6 and source.num_fetched == len(CONTENT)


PROCESS = """
import sys
from pathlib import Path
import numpy as np
from teachonce.storage.remote.cache import PAGE_BYTES, CachedReader, CacheFolder
content = Path(sys.argv[2]).read_bytes()
count = 0
def get_range(start, end):
    global count
    count += end - start
    return memoryview(content)[start:end]
reader = CachedReader(CacheFolder(Path(sys.argv[1]), 10**9), "x", len(content), get_range, 4)
for start in np.random.default_rng(int(sys.argv[3])).integers(0, len(content), 400).tolist():
    assert reader.view(start, start + 9999) == content[start : start + 9999]
print(count)
"""


def test_processes_fetch_a_page_once(tmp_path):
    (tmp_path / "content").write_bytes(CONTENT)
    command = [sys.executable, "-c", PROCESS, tmp_path / "cache", tmp_path / "content"]
    running = [subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(3)]
    counts = [int(process.communicate(timeout=60)[0]) for process in running]
    assert sum(counts) == len(CONTENT), counts


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    source = Object()
    with pytest.warns(UserWarning, match="file/cache: the cache cannot be written"):
        reader = reader_of(CacheFolder(tmp_path / "file" / "cache", 10**9), source)
    assert reader.view(5, 500) == CONTENT[5:500]


def test_the_default_limit_is_the_same_at_the_second_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache took at the first is not free any more, and is room for it all the same."""
    for name in ("TEACHONCE_CACHE", "TEACHONCE_CACHE_BYTES"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr("teachonce.storage.remote.cache._free_bytes", lambda _: 100_000)
    first = use_cache(tmp_path / "cache", None)
    monkeypatch.setattr(CacheFolder, "num_bytes", lambda _: 45_000)
    monkeypatch.setattr("teachonce.storage.remote.cache._free_bytes", lambda _: 55_000)
    second = use_cache(tmp_path / "cache", None)
    assert first is not None and second is not None
    assert first.max_bytes == second.max_bytes == 50_000


class TestCachedStorage(StorageContract):
    """With a cache a storage does all that it does without."""

    @pytest.fixture
    def storage(self, moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
        for name, value in environment(moto).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TEACHONCE_CACHE", "")
        monkeypatch.setenv("TEACHONCE_CACHE_BYTES", "")
        use_cache(tmp_path / "cache", 10**8)
        return open_storage(f"s3://{new_bucket(moto)}/some/folder", RecordError)
