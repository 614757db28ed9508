import io
import pickle
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachonce.engine.buffers import BufferPool
from teachonce.errors import RecordError
from teachonce.native import addresses
from teachonce.records.tfrecord.frame_check import FrameCheck
from teachonce.records.tfrecord.framing import (
    TFRecordFile,
    TFRecordWriter,
    delete_index,
    index_path,
    load_index,
    masked_crc32c,
    read_blocks,
    read_tfrecords,
    write_index,
)
from teachonce.storage.files import atomic_write
from teachonce.storage.remote.file_index import hash_bytes

PAYLOADS = [b"first", b"", b"third record", bytes(range(256)) * 40]
# tf.io.TFRecordWriter of TensorFlow 2.21 on b"teachonce" and b"".
TENSORFLOW_BYTES = bytes.fromhex("090000000000000037f9713974656163686f6e63651d0e74ee000000000000000029039807d8ea82a2")


def write_shard(path: Path, payloads: list[bytes] = PAYLOADS) -> list[tuple[int, int]]:
    with path.open("wb") as file:
        writer = TFRecordWriter(file)
        for payload in payloads:
            writer.write(payload)
    return writer.index


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write_shard(tmp_path / "train-00000-of-00001")
    return tmp_path / "train-00000-of-00001"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teachonce"


def test_writes_the_bytes_that_tensorflow_writes() -> None:
    file = io.BytesIO()
    writer = TFRecordWriter(file)
    writer.write(b"teachonce")
    writer.write(b"")
    assert file.getvalue() == TENSORFLOW_BYTES
    assert writer.index == [(0, 25), (25, 16)]


def test_masked_crc_of_the_standard_check_string() -> None:
    crc = 0xE3069283  # CRC-32C of "123456789", RFC 3720 appendix B.4 and every catalog
    assert masked_crc32c(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_reads_sequentially_and_by_row(shard: Path) -> None:
    assert [payload for _, payload in read_tfrecords(shard)] == PAYLOADS
    file = TFRecordFile(shard)
    assert len(file) == len(PAYLOADS)
    assert [bytes(file.read(row)) for row in (3, 0, 2, 1)] == [PAYLOADS[row] for row in (3, 0, 2, 1)]
    assert [file.offset(row) for row in range(4)] == [offset for offset, _ in read_tfrecords(shard)]


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("round") / "x-00000-of-00001"
    index = write_shard(path, payloads)
    assert [payload for _, payload in read_tfrecords(path)] == payloads
    file = TFRecordFile(path)
    assert [bytes(file.read(row)) for row in range(len(file))] == payloads
    assert index_path(path).read_text() == "".join(f"{offset} {size}\n" for offset, size in index)


@pytest.mark.parametrize("chunk_bytes", [12, 16, 37, 38, 64, 20_000])
def test_frames_are_the_same_however_they_lie_in_what_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr("teachonce.records.tfrecord.framing.BLOCK_BYTES", chunk_bytes)
    path = tmp_path / "x-00000-of-00001"
    payloads = [bytes([size % 251]) * size for size in (0, 1, 5, 21, 22, 300, 9_000, 30_000, 2)]
    index = write_shard(path, payloads)
    found = list(read_tfrecords(path))
    assert [payload for _, payload in found] == payloads
    assert [offset for offset, _ in found] == [offset for offset, _ in index]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecordError, match=r"record 8 .*truncated: the frame should have 18 bytes, has 17"):
        list(read_tfrecords(path))


@pytest.mark.parametrize("block_bytes", [12, 64, 20_000, 1 << 20])
def test_blocks_that_are_kept_are_not_read_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr("teachonce.records.tfrecord.framing.BLOCK_BYTES", block_bytes)
    path = tmp_path / "x-00000-of-00001"
    payloads = [bytes([size % 251]) * size for size in (0, 1, 300, 9_000, 30_000, 2, 40, 40, 40)]
    index = write_shard(path, payloads)
    blocks = list(read_blocks(path, BufferPool()))
    assert all(blocks)
    assert [payload for block in blocks for _, payload in block] == payloads
    assert [offset for block in blocks for offset, _ in block] == [offset for offset, _ in index]


def test_blocks_that_are_not_kept_take_no_new_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teachonce.records.tfrecord.framing.BLOCK_BYTES", 64)
    path = tmp_path / "x-00000-of-00001"
    write_shard(path, [bytes([number]) * 40 for number in range(100)])
    places = [addresses([payload])[0] for block in read_blocks(path) for _, payload in block]
    assert len(places) == 100
    assert len(set(places)) <= 2  # what was read last, and what is read next


@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
def test_records_before_a_damaged_one_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr("teachonce.records.tfrecord.framing.BLOCK_BYTES", block_bytes)
    path = tmp_path / "x-00000-of-00001"
    payloads = [bytes([number]) * 20 for number in range(10)]
    index = write_shard(path, payloads)
    content = path.read_bytes()
    for at in range(index[6][0], index[6][0] + index[6][1]):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        records = read_tfrecords(path)
        for number in range(6):
            assert next(records) == (index[number][0], payloads[number])
        with pytest.raises(RecordError, match=rf"record 6 \(byte {index[6][0]}\): (wrong checksum|truncated)"):
            next(records)


@pytest.mark.parametrize("write_bytes", [1, 50, 1 << 20])
def test_blocks_are_written_as_records_one_by_one(monkeypatch: pytest.MonkeyPatch, write_bytes: int) -> None:
    monkeypatch.setattr("teachonce.records.tfrecord.framing.WRITE_BYTES", write_bytes)
    one_by_one, in_blocks, behind = (TFRecordWriter(io.BytesIO()) for _ in range(3))
    for payload in PAYLOADS:
        one_by_one.write(payload)
    parts = [[payload[:3], memoryview(payload)[3:]] for payload in PAYLOADS]
    in_blocks.write_block(parts)
    with behind.behind():
        behind.write_block(parts[:3])
        behind.write(*parts[3])
    written = [writer._file.getvalue() for writer in (one_by_one, in_blocks, behind)]  # type: ignore[attr-defined]
    assert written[0] == written[1] == written[2]
    assert one_by_one.index == in_blocks.index == behind.index
    assert one_by_one.listed == in_blocks.listed == behind.listed == (len(written[0]), hash_bytes(written[0]).xxh3, 4)


@pytest.mark.parametrize("num_records", [1, 20])
def test_what_writing_behind_raises_is_raised(num_records: int) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError("full")

    writer = TFRecordWriter(Full())
    with pytest.raises(OSError, match="full"), writer.behind():
        for _ in range(num_records):
            writer.write(b"record")


BOUNDS = [0, 21, 37, 65, 65 + 10240 + 16]


def test_the_index_is_made_where_it_is_missing(shard: Path) -> None:
    index = index_path(shard)
    assert load_index(shard).tolist() == BOUNDS
    assert index.read_text() == "0 21\n21 16\n37 28\n65 10256\n"


HUGE = 2**63 - 1


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("", "its index has 0 numbers, expected two per "),
        ("\n \n", "its index has 0 numbers, expected two per "),
        ("0 21 21\n", "its index has 3 numbers, expected two per "),
        ("0 21\n", "its index says 1 records in 21 bytes, the file has 10321: it has grown, or it is another shard"),
        ("0 21\n21 16\n37 28\n65 20000\n", r"record 3 \(byte 65\): truncated: its index says 4 records in 20065 bytes"),
        ("0 21\n21 16\nx y\n", "its index has b'x', expected one line 'offset size'"),
        ("0 21.5\n", "its index has b'21.5', expected one line 'offset size'"),
        ("0 0x15\n", "its index has b'0x15', expected one line 'offset size'"),
        ("9999999999999999999999999 1\n", "its index has b'99999999999999999999', expected one line 'offset size'"),
        ("\xff\xfe", "its index has b'.*', expected one line 'offset size'"),
        ("0 21\n20 17\n37 28\n65 10256\n", "record 1 at byte 20 with 17 bytes, expected it at byte 21"),
        ("0 21\n22 15\n37 28\n65 10256\n", "record 1 at byte 22 with 15 bytes, expected it at byte 21"),
        ("5 16\n21 16\n37 28\n65 10256\n", "record 0 at byte 5 with 16 bytes, expected it at byte 0"),
        ("0 21\n21 -16\n5 60\n65 10256\n", "record 1 at byte 21 with -16 bytes, .* with at least 16"),
        ("0 21\n21 0\n21 16\n37 28\n65 10256\n", "record 1 at byte 21 with 0 bytes"),
        ("21 16\n0 21\n37 28\n65 10256\n", "record 0 at byte 21"),
        # Together 2^64 + the file's bytes: what wraps round to it.
        (f"0 {HUGE}\n{HUGE} {HUGE}\n-2 10323\n", f"record 1 at byte {HUGE} with {HUGE} bytes"),
    ],
)
def test_an_index_that_is_not_the_shards_is_refused_and_kept(shard: Path, index: str, message: str) -> None:
    """It is what knows how long the shard was; who wrote the shard anew is told to delete it."""
    path = index_path(shard)
    path.write_bytes(index.encode("latin-1"))
    advice = rf".*; restore the shard .*, or, if the shard is right and .* delete {path}$"
    with pytest.raises(RecordError, match=rf"^{shard}.*{message}{advice}") as found:
        load_index(shard)
    assert "\n" not in str(found.value)
    assert path.read_bytes() == index.encode("latin-1")
    path.unlink()
    assert load_index(shard).tolist() == BOUNDS


@pytest.mark.parametrize("num_left", [1, 2, 3])
def test_a_shard_that_was_cut_where_a_frame_ends_is_refused(shard: Path, num_left: int) -> None:
    load_index(shard)
    index = index_path(shard).read_bytes()
    shard.write_bytes(shard.read_bytes()[: BOUNDS[num_left]])
    message = (
        rf"^{shard} record {num_left} \(byte {BOUNDS[num_left]}\): truncated: its index says 4 records in 10321 bytes, "
        rf"the file has {BOUNDS[num_left]}; restore"
    )
    with pytest.raises(RecordError, match=message):
        len(TFRecordFile(shard))
    assert index_path(shard).read_bytes() == index


def test_a_shard_that_has_grown_is_refused(shard: Path) -> None:
    load_index(shard)
    shard.write_bytes(shard.read_bytes() + TENSORFLOW_BYTES)
    with pytest.raises(RecordError, match="its index says 4 records in 10321 bytes, the file has 10362: it has grown"):
        load_index(shard)


@given(st.lists(st.tuples(st.integers(-40, 120), st.integers(-20, 120)), min_size=1, max_size=5))
def test_no_index_but_the_shards_own_is_taken(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "x-00000-of-00001"
    write_shard(path, PAYLOADS[:3])
    write_index(index_path(path), entries)
    try:
        bounds = load_index(path).tolist()
    except RecordError:
        assert entries != [(0, 21), (21, 16), (37, 28)]
        return
    assert bounds[0] == 0 and bounds[-1] == 65 and len(bounds) == len(entries) + 1
    assert entries == list(zip(bounds[:-1], np.diff(bounds).tolist(), strict=True)) and min(np.diff(bounds)) >= 16


def test_a_damaged_index_in_the_cache_is_made_again(shard: Path, cache: Path) -> None:
    index_path(shard).mkdir()
    load_index(shard)
    (kept,) = cache.iterdir()
    for damage in (b"", b"0 21\n", b"x y\n", b"\xff"):
        kept.write_bytes(damage)
        assert load_index(shard).tolist() == BOUNDS
        assert kept.read_text() == "0 21\n21 16\n37 28\n65 10256\n"


def test_an_old_index_is_gone_before_its_shard_is_written_anew(shard: Path) -> None:
    load_index(shard)
    delete_index(shard)
    delete_index(shard)
    assert not index_path(shard).exists() and shard.exists()


def test_an_index_is_used_and_not_made_again(shard: Path) -> None:
    load_index(shard)
    before = index_path(shard).stat().st_mtime_ns
    load_index(shard)
    assert index_path(shard).stat().st_mtime_ns == before


def test_the_index_goes_to_the_cache_where_it_cannot_lie_beside_the_shard(shard: Path, cache: Path) -> None:
    # A folder in the index's place refuses the write whoever runs the test, permissions would not stop root.
    index_path(shard).mkdir()
    assert len(TFRecordFile(shard)) == len(PAYLOADS)
    (kept,) = cache.iterdir()
    assert kept.read_text().startswith("0 21\n")
    kept.write_text("0 21\n21 16\n37 28\n65 10256\n")
    assert len(load_index(shard)) == 5


def test_an_index_that_cannot_be_written_is_no_error(shard: Path, cache: Path) -> None:
    index_path(shard).mkdir()
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    assert len(TFRecordFile(shard)) == len(PAYLOADS)


FRAME = 12 + len(b"third record") + 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: 37 + 5], "truncated: the header has 5 of 12 bytes"),
        (lambda data: data[: 37 + 15], "truncated: the frame should have 28 bytes, has 15"),
        (lambda data: data[: 37 + FRAME - 1], "truncated: the frame should have 28 bytes, has 27"),
        (lambda data: flip(data, 37 + 1), "checksum of the length"),
        (lambda data: flip(data, 37 + 9), "checksum of the length"),
        (lambda data: flip(data, 37 + 12), "checksum of the data"),
        (lambda data: flip(data, 37 + FRAME - 1), "checksum of the data"),
    ],
)
def test_damage_is_found_and_placed(shard: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    file = TFRecordFile(shard)
    assert len(file) == 4
    shard.write_bytes(damage(shard.read_bytes()))
    place = rf"train-00000-of-00001 record 2 \(byte 37\): (the |wrong )?{message}"
    with pytest.raises(RecordError, match=place):
        list(read_tfrecords(shard))
    # The file was cut or damaged behind the back of an open reader: an error too, never SIGBUS or other bytes.
    assert bytes(file.read(1)) == b""
    with pytest.raises(RecordError, match=place):
        file.read(2)


@pytest.mark.parametrize("cut", [1, 11, 12, 20, 30, 36, 50])
def test_an_index_is_not_made_for_a_truncated_shard(shard: Path, cut: int) -> None:
    shard.write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(RecordError, match="truncated"):
        load_index(shard)
    assert not index_path(shard).exists()


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


@given(at=st.integers(0, 64), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    path = tmp_path_factory.mktemp("flip") / "x-00000-of-00001"
    write_shard(path, PAYLOADS[:3])
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(RecordError):
        list(read_tfrecords(path))


def test_an_empty_file_holds_no_record(tmp_path: Path) -> None:
    path = tmp_path / "train-00000-of-00001"
    path.touch()
    for read in (lambda: list(read_tfrecords(path)), lambda: len(TFRecordFile(path))):
        with pytest.raises(RecordError, match=r"is empty \(0 bytes"):
            read()


def test_a_missing_file_and_a_gzip_file_say_so(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="nowhere: cannot be read: No such file"):
        list(read_tfrecords(tmp_path / "nowhere"))
    with pytest.raises(RecordError, match="nowhere: cannot be read: No such file"):
        TFRecordFile(tmp_path / "nowhere").read(0)
    (tmp_path / "zipped").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(RecordError, match="gzip"):
        list(read_tfrecords(tmp_path / "zipped"))


def test_an_index_of_another_shard_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x-00000-of-00001"
    write_shard(path, [b"12345", b"1", b"z" * 16])
    # One frame that swallows the second: contiguous and of the right end, but not this shard's.
    write_index(index_path(path), [(0, 21 + 17), (38, 32)])
    with pytest.raises(RecordError, match=r"the index belongs to another shard; delete x-00000-of-00001\.idx"):
        TFRecordFile(path).read(0)


def test_a_reader_pickles_forgets_and_reopens(shard: Path, tmp_path: Path) -> None:
    file = TFRecordFile(shard)
    assert bytes(file.read(0)) == b"first"
    file.close()
    assert bytes(file.read(2)) == b"third record"
    copy = pickle.loads(pickle.dumps(file))
    assert bytes(copy.read(2)) == b"third record"


def test_threads_read_the_right_records_while_others_close(shard: Path) -> None:
    file = TFRecordFile(shard)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for row in np.random.default_rng(seed).integers(0, 4, 500):
            if bytes(file.read(int(row))) != PAYLOADS[row]:
                wrong.append(int(row))
            file.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_writer_that_fails_leaves_no_shard(tmp_path: Path) -> None:
    path = tmp_path / "train-00000-of-00001"
    with pytest.raises(KeyError), atomic_write(path) as file:
        TFRecordWriter(file).write(b"half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_tensorflow_reads_ours_and_we_read_tensorflows(tensorflow: Any, shard: Path, tmp_path: Path) -> None:
    assert [bytes(item.numpy()) for item in tensorflow.data.TFRecordDataset(str(shard))] == PAYLOADS
    theirs = tmp_path / "theirs-00000-of-00001"
    with tensorflow.io.TFRecordWriter(str(theirs)) as writer:
        for payload in PAYLOADS:
            writer.write(payload)
    assert theirs.read_bytes() == shard.read_bytes()
    assert [payload for _, payload in read_tfrecords(theirs)] == PAYLOADS


def test_an_impossible_length_with_a_good_checksum_allocates_nothing(shard: Path) -> None:
    bounds = load_index(shard)
    length = struct.pack("<Q", 1 << 40)
    shard.write_bytes(length + struct.pack("<I", masked_crc32c(length)) + shard.read_bytes()[12:])
    for read in (lambda: TFRecordFile(shard, bounds).read(0), lambda: list(read_tfrecords(shard))):
        with pytest.raises(RecordError, match="truncated: the frame should have 1099511627792 bytes"):
            read()


@pytest.mark.parametrize("piece", [1, 3, 16, 1000, 1 << 20])
def test_frames_that_pass_by_in_pieces(tmp_path, piece):
    path = tmp_path / "shard"
    with path.open("wb") as file:
        writer = TFRecordWriter(file)
        for size in (0, 1, 11, 12, 500, 3000):
            writer.write(bytes([size % 251]) * size)
    content = path.read_bytes()
    assert writer.listed == hash_bytes(content)._replace(num_records=6)

    def check(content: bytes) -> FrameCheck:
        found = FrameCheck(path, len(content))
        for start in range(0, len(content), piece):
            found.update(memoryview(content)[start : start + piece])
        found.finish()
        return found

    assert check(content).index == writer.index
    with pytest.raises(RecordError, match=r"is empty \(0 bytes"):
        check(b"")
    if piece < 1000:
        return
    # Whatever is wrong is said as a reader of the file says it.
    for position in range(0, len(content), 37):
        damaged = bytearray(content)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(RecordError) as expected:
            list(read_tfrecords(path))
        with pytest.raises(RecordError) as found:
            check(bytes(damaged))
        assert str(found.value) == str(expected.value)
    for end in range(len(content) - 1, 0, -41):
        if end in (0, *(begin for begin, _ in writer.index)):
            continue
        with pytest.raises(RecordError, match=rf"^{path} record \d .*truncated"):
            check(content[:end])
