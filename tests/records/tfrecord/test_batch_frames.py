"""Frames of a batch: the same payloads, and the same errors, as of each frame alone, with the library and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from teachonce.engine.buffers import BufferPool
from teachonce.errors import RecordError
from teachonce.native import load_library
from teachonce.records.source import Locations
from teachonce.records.tfrecord import batch_frames
from teachonce.records.tfrecord.batch_frames import read_frames
from teachonce.records.tfrecord.framing import TFRecordFile, TFRecordWriter, index_path, write_index

LONG = 16 << 10
"""Bytes of a frame above which the library leaves its checksum to Python."""
SIZES = [0, 1, 7, 8, 9, 500, LONG - 17, LONG - 16, LONG - 15, 70_000]


@pytest.fixture(params=["library", "python", "no descriptor"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(batch_frames, "load_library", lambda: None)
    elif load_library() is None:
        pytest.skip("the native library was not built")
    elif request.param == "no descriptor":
        monkeypatch.setattr(TFRecordFile, "try_open", lambda self: None)
    return str(request.param)


def write_shards(folder: Path, count: int) -> tuple[list[TFRecordFile], dict[tuple[int, int], bytes]]:
    random, payloads = Random(count), {}
    for shard in range(count):
        with (folder / f"train-{shard:05d}-of-{count:05d}").open("wb") as file:
            writer = TFRecordWriter(file)
            for row, size in enumerate(random.sample(SIZES, 6)):
                payloads[shard, row] = random.randbytes(size)
                writer.write(payloads[shard, row])
        write_index(index_path(Path(file.name)), writer.index)
    return [TFRecordFile(path) for path in sorted(folder.glob("train-*[0-9]"))], payloads


@pytest.mark.parametrize("num_shards", [1, 3, 40])
def test_payloads_in_any_order(tmp_path: Path, way: str, num_shards: int) -> None:
    files, payloads = write_shards(tmp_path, num_shards)
    locations = list(payloads) * 2
    Random(0).shuffle(locations)
    for chosen in (locations, locations[:1], []):
        found = read_frames(files.__getitem__, Locations.of(chosen), BufferPool())
        assert [bytes(payload) for payload in found] == [payloads[location] for location in chosen]
        assert [bytes(found[index]) for index in range(len(chosen))] == [bytes(payload) for payload in found]
        assert found.num_bytes.tolist() == [len(payload) for payload in found]


def outcome(read: Callable[[], object]) -> str | None:
    try:
        read()
    except RecordError as error:
        return str(error)
    return None


def test_damage_is_reported_as_of_the_frame_alone(tmp_path: Path, way: str) -> None:
    """A bit of every byte of a frame, and the file cut there, behind the back of a reader that is open."""
    path = tmp_path / "train-00000-of-00001"
    with path.open("wb") as file:
        writer = TFRecordWriter(file)
        for payload in (b"first", b"the second record", b"third"):
            writer.write(payload)
    content, file = path.read_bytes(), TFRecordFile(path)
    begin, size = writer.index[1]
    rows = Locations.of([(0, 2), (0, 1), (0, 0)])
    assert len(read_frames(lambda shard: file, rows, BufferPool())) == 3
    for at in range(begin, begin + size):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        for damaged in (bytes(changed), content[:at]):
            with path.open("r+b") as open_file:
                open_file.truncate(len(damaged))
                open_file.write(damaged)
            alone = outcome(lambda: [file.read(row) for row in (2, 1, 0)])
            together = outcome(lambda: read_frames(lambda shard: file, rows, BufferPool()))
            assert together == alone is not None, at


def test_a_file_that_is_gone_is_reported(tmp_path: Path, way: str) -> None:
    files, payloads = write_shards(tmp_path, 2)
    assert len(files[1]) == 6
    files[1].path.unlink()
    with pytest.raises(RecordError, match=r"train-00001-of-00002"):
        read_frames(files.__getitem__, Locations.of(list(payloads)), BufferPool())


def test_few_files_are_open_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch may be of more shards than a process may have files open."""
    files, payloads = write_shards(tmp_path, 40)
    counts = []
    real = batch_frames._read_good_frames

    def count(frames: object) -> object:
        counts.append(len({int(descriptor) for descriptor in frames["descriptor"]}))  # type: ignore[index]
        return real(frames)  # type: ignore[arg-type]

    monkeypatch.setattr(batch_frames, "_read_good_frames", count)
    read_frames(files.__getitem__, Locations.of(list(payloads)), BufferPool())
    assert sum(counts) == 40 and max(counts) <= batch_frames._SHARDS_AT_ONCE
