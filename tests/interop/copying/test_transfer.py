"""Files that are moved: in pieces, several at once, checked, kept, replaced or refused."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path

import pytest

from teachonce.errors import TeachonceError
from teachonce.interop.copying import transfer
from teachonce.interop.copying.transfer import Item, Mover, sizes_of
from teachonce.storage.local import LocalStorage
from teachonce.storage.remote.file_index import hash_bytes


def mover(
    source: Path, target: Path, *, threads: int = 4, trust: bool = False, report: list[int] | None = None
) -> Mover:
    report = [] if report is None else report
    return Mover(
        source=LocalStorage(source), target=LocalStorage(target), threads=threads, trust=trust, advance=report.append
    )


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_files_are_moved_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE_BYTES", 7)
    contents = {f"{number % 3}/{number}.bin": bytes([number]) * number for number in range(30)}
    for name, content in contents.items():
        put(tmp_path / "a" / name, content)
    items = [Item(name=name, num_bytes=len(content)) for name, content in contents.items()]
    report: list[int] = []
    moved = mover(tmp_path / "a", tmp_path / "b", report=report).move_all(items, {})
    assert [entry.item.name for entry in moved] == list(contents) and all(entry.is_new for entry in moved)
    assert [entry.listed for entry in moved] == [hash_bytes(content) for content in contents.values()]
    assert sum(report) == sum(map(len, contents.values()))
    assert sizes_of(LocalStorage(tmp_path / "b"), [*contents, "no/where"]) == {
        name: len(content) for name, content in contents.items()
    }
    present = {item.name: item.num_bytes for item in items}
    report.clear()
    again = mover(tmp_path / "a", tmp_path / "b", report=report).move_all(items, present)
    assert not any(entry.is_new for entry in again) and [entry.listed for entry in again] == [
        entry.listed for entry in moved
    ]
    assert sum(report) == sum(map(len, contents.values()))


def test_what_is_there(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x", b"right")
    put(tmp_path / "b" / "x", b"wrong")
    item = Item(name="x", num_bytes=5)
    with pytest.raises(TeachonceError, match=rf"^{tmp_path}/b/x: exists and differs from {tmp_path}/a/x"):
        mover(tmp_path / "a", tmp_path / "b").move(item, 5)
    assert (tmp_path / "b" / "x").read_bytes() == b"wrong"
    assert not mover(tmp_path / "a", tmp_path / "b", trust=True).move(item, 5).is_new
    # Of what is known by its hash the source need not be read.
    put(tmp_path / "b" / "x", b"right")
    put(tmp_path / "a" / "x", b"wrong")
    known = Item(name="x", num_bytes=5, listed=hash_bytes(b"right"))
    assert not mover(tmp_path / "a", tmp_path / "b").move(known, 5).is_new
    replaced = Item(name="x", num_bytes=5, may_replace=True)
    assert mover(tmp_path / "a", tmp_path / "b").move(replaced, 5).is_new
    assert (tmp_path / "b" / "x").read_bytes() == b"wrong"


@pytest.mark.parametrize("content", [b"other", b"longer", b"cut"])
def test_nothing_damaged_is_put(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "a" / "x", content)
    item = Item(name="x", num_bytes=5, listed=hash_bytes(b"right"))
    with pytest.raises(TeachonceError, match=rf"^{tmp_path}/a/x: .*(is listed|expected 5)"):
        mover(tmp_path / "a", tmp_path / "b").move(item, None)
    assert not [path for path in tmp_path.rglob("b/*") if path.is_file()]


def test_an_error_ends_the_others(tmp_path: Path) -> None:
    for number in range(50):
        put(tmp_path / "a" / f"{number}", b"right")
    items = [Item(name=f"{number}", num_bytes=5 if number != 3 else 6) for number in range(50)]
    with pytest.raises(TeachonceError, match="/a/3: 5 bytes, expected 6"):
        mover(tmp_path / "a", tmp_path / "b", threads=2).move_all(items, {})
    assert len(list((tmp_path / "b").iterdir())) < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x", b"")
    with (tmp_path / "a" / "x").open("wb") as file:
        for _ in range(40):
            file.write(bytes(4 << 20))
    tracemalloc.start()
    try:
        mover(tmp_path / "a", tmp_path / "b").move(Item(name="x", num_bytes=160 << 20), None)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
