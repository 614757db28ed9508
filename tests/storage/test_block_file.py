"""Files of hashed blocks: every bit is accounted for, and a block is believed when its hash holds and it is valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash
from pyarrow import ipc

from teachonce.errors import StoreError
from teachonce.storage.block_file import METADATA_KEY, BlockCheck, BlockFile, FileEntry, write_blocks
from teachonce.storage.files import open_storage

SCHEMA = pa.schema(
    [pa.field("key", pa.uint64(), nullable=False), pa.field("name", pa.string(), nullable=False), ("label", pa.int32())]
)
NAME = "a.arrow"


def batch(first: int, count: int, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    rows = range(first, first + count)
    columns = [list(rows), [f"image {row}" for row in rows], [row if row % 2 else None for row in rows]]
    return pa.record_batch(
        [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema
    )


BATCHES = [batch(0, 4), batch(4, 3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_blocks(open_storage(tmp_path), NAME, BATCHES, {"kind": "test", "größe": [1, None]})
    return tmp_path / NAME


def open_blocks(path: Path, **options: Any) -> BlockFile:
    return BlockFile(open_storage(path.parent), path.name, **options)


def test_what_was_written_is_read(path: Path) -> None:
    file = open_blocks(path)
    assert file.num_blocks == 2 and file.metadata == {"kind": "test", "größe": [1, None]}
    for number, expected in enumerate(BATCHES):
        found = file.read(number, SCHEMA, expected.num_rows)
        assert found.to_pydict() == expected.to_pydict()
        assert file.read(number, SCHEMA, None, is_checked=True) == found
    assert file.entry.num_bytes == path.stat().st_size and open_blocks(path, entry=file.entry).entry == file.entry
    assert file.find_damage() == file.find_damage(file.entry) == []


def test_any_reader_of_arrow_opens_it(path: Path) -> None:
    table = ipc.open_file(path).read_all()
    assert table.to_pydict() == pa.Table.from_batches(BATCHES).to_pydict()
    assert json.loads(table.schema.metadata[METADATA_KEY])["kind"] == "test"


def test_each_block_is_where_the_metadata_says(path: Path) -> None:
    """As the specification has it: who reads nothing but the head can check all the rest."""
    raw = path.read_bytes()
    schema = ipc.open_file(path).schema
    blocks = json.loads(schema.metadata[METADATA_KEY])["blocks"]
    start = 8 + 8 + int.from_bytes(raw[12:16], "little")
    for (num_bytes, digest), expected in zip(blocks, BATCHES, strict=True):
        message = raw[start : start + num_bytes]
        assert xxhash.xxh3_128_hexdigest(message) == digest
        assert ipc.read_record_batch(pa.py_buffer(message), schema).to_pydict() == expected.to_pydict()
        start += num_bytes
    assert raw[-6:] == b"ARROW1"


@pytest.mark.parametrize("all_bits", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_noticed(path: Path, all_bits: bool) -> None:
    """By whoever reads the block it lies in, with the manifest's entry when the file is opened, or by verify.

    One bit of each byte, or all of them.
    """
    good, entry = path.read_bytes(), open_blocks(path).entry
    starts = open_blocks(path)._starts
    for at in range(len(good)):
        for bit in range(8) if all_bits else (at % 8,):
            path.write_bytes(good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :])
            if at < starts[0]:
                with pytest.raises(StoreError, match=rf"{NAME}: "):
                    open_blocks(path, entry=entry)
                continue
            file = open_blocks(path, entry=entry)
            damaged = {item.block for item in file.find_damage(entry)}
            assert damaged == ({None} if at >= starts[-1] else {0 if at < starts[1] else 1}), (at, bit)
            for block in range(2):
                if block in damaged:
                    with pytest.raises(StoreError, match=rf"{NAME}: block {block}: hash \w+, \w+ was written"):
                        file.read(block, SCHEMA, None)
                else:
                    assert file.read(block, SCHEMA, None).to_pydict() == BATCHES[block].to_pydict()


def test_without_an_entry_a_damaged_head_is_an_error_or_says_the_same(path: Path) -> None:
    """Whatever the bits: one StoreError, or the content as it was; nothing of Arrow's comes through."""
    good = path.read_bytes()
    for at in range(open_blocks(path)._starts[0]):
        for bit in (0, 3, 7):
            path.write_bytes(good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :])
            try:
                file = open_blocks(path)
                found = [file.read(block, SCHEMA, None).to_pydict() for block in range(2)]
            except StoreError as error:
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error), (at, bit)
            else:
                assert found == [expected.to_pydict() for expected in BATCHES], (at, bit)


def test_a_file_that_was_cut_is_refused(path: Path) -> None:
    good, entry = path.read_bytes(), open_blocks(path).entry
    starts = open_blocks(path)._starts
    for length in (*range(0, len(good), 13), len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(StoreError, match=rf"{NAME}: "):
            open_blocks(path, entry=entry)
        if length < starts[-1]:
            with pytest.raises(StoreError, match=rf"{NAME}: .*(truncated|damaged)"):
                open_blocks(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(StoreError, match=r"has [\d,]+ bytes, [\d,]+ were written: damaged or replaced"):
        open_blocks(path, entry=entry)


def forge(path: Path, change: Any, schema: pa.Schema | None = None) -> None:
    """Change the bytes of block 0 and compute its hash again, as somebody does who keeps the books in order."""
    raw = bytearray(path.read_bytes())
    file = open_blocks(path)
    start, end = file._starts[0], file._starts[1]
    del file
    old = xxhash.xxh3_128_hexdigest(bytes(raw[start:end])).encode()
    block = change(bytes(raw[start:end]))
    assert len(block) == end - start and block != raw[start:end]
    raw[start:end] = block
    head = bytes(raw[:start])
    assert old in head
    path.unlink()
    path.write_bytes(head.replace(old, xxhash.xxh3_128_hexdigest(block).encode()) + bytes(raw[start:]))


def test_forged_offsets_are_refused(path: Path) -> None:
    """Their hash holds; an offset that points out of the texts would read foreign memory."""
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 7, 14, 21, 28))

    def change(block: bytes) -> bytes:
        assert offsets in block
        return block.replace(offsets, offsets[:4] + (1 << 30).to_bytes(4, "little") + offsets[8:])

    forge(path, change)
    with pytest.raises(StoreError, match=rf"{NAME}: block 0: is not a readable Arrow record batch"):
        open_blocks(path).read(0, SCHEMA, None)
    assert open_blocks(path).read(1, SCHEMA, None).num_rows == 3


def test_texts_that_are_no_utf8_are_refused(path: Path) -> None:
    forge(path, lambda block: block.replace(b"image 2", b"image \xff"))
    with pytest.raises(StoreError, match="block 0: is not a readable Arrow record batch"):
        open_blocks(path).read(0, SCHEMA, None)


def test_forged_bytes_never_raise_what_is_arrows(path: Path) -> None:
    """Each byte of a block another one, and the hash right again: a batch, or one StoreError."""
    good = path.read_bytes()
    size = open_blocks(path)._starts[1] - open_blocks(path)._starts[0]
    for at in range(size):
        forge(path, lambda block, at=at: block[:at] + bytes([block[at] ^ 0x81]) + block[at + 1 :])
        try:
            open_blocks(path).read(0, SCHEMA, None).to_pydict()
        except StoreError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        path.write_bytes(good)


@pytest.mark.parametrize("trust", [False, True])
def test_a_null_where_there_can_be_none_is_refused(tmp_path: Path, trust: bool) -> None:
    schema = pa.schema([pa.field(field.name, field.type) for field in SCHEMA])
    rows = pa.record_batch(
        [pa.array([1, None], pa.uint64()), pa.array(["a", "b"]), pa.array([1, None], pa.int32())], schema
    )
    write_blocks(open_storage(tmp_path), NAME, [rows], {})
    file = open_blocks(tmp_path / NAME, trust=trust)
    with pytest.raises(StoreError, match=rf"{NAME}: block 0: column key has 1 nulls, expected none"):
        file.read(0, SCHEMA, None)
    assert file.read(0, schema, 2).num_rows == 2


@pytest.mark.parametrize(
    "other",
    [
        pa.schema([*list(SCHEMA)[:2], ("label", pa.int64())]),
        pa.schema([*list(SCHEMA)[:2], ("labels", pa.int32())]),
        pa.schema(list(SCHEMA)[:2]),
        pa.schema([SCHEMA.field(1), SCHEMA.field(0), SCHEMA.field(2)]),
    ],
)
def test_other_columns_are_refused(path: Path, other: pa.Schema) -> None:
    message = rf"{NAME}: columns key uint64, name string, label int32, expected .*: damaged, or of a different policy"
    with pytest.raises(StoreError, match=message):
        open_blocks(path).read(0, other, None)


def test_other_rows_and_blocks_are_refused(path: Path) -> None:
    file = open_blocks(path, advice="do this")
    with pytest.raises(StoreError, match="block 1: 3 rows, expected 4: the records differ; do this"):
        file.read(1, SCHEMA, 4)
    with pytest.raises(StoreError, match="2 blocks, expected more than 2: the file has other views; do this"):
        file.read(2, SCHEMA, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an Arrow file"),
        (b"ARROW1\0\0", "is not an Arrow file"),
        (b"hello, this is some text and no file of blocks", "is not an Arrow file"),
        (b"ARROW1\0\0\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(99), "its schema does not fit into the file"),
        (b"ARROW1\0\0\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(99), "its schema does not fit into the file"),
        (b"ARROW1\0\0\xff\xff\xff\xff\x10\0\0\0" + bytes(99), "its schema cannot be read"),
    ],
)
def test_what_is_no_file_of_blocks(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(StoreError, match=rf"{NAME}: {message}"):
        open_blocks(tmp_path / NAME)
    with pytest.raises(StoreError, match=r"b\.arrow: cannot be read: No such file or directory; do this"):
        open_blocks(tmp_path / "b.arrow", advice="do this")


def test_a_block_that_is_an_end_of_stream(path: Path) -> None:
    """With a hash that holds."""
    raw, file = bytearray(path.read_bytes()), open_blocks(path)
    start, end = file._starts[:2]
    before = xxhash.xxh3_128_hexdigest(bytes(raw[start:end])).encode()
    raw[start + 4 : start + 8] = bytes(4)
    after = xxhash.xxh3_128_hexdigest(bytes(raw[start:end])).encode()
    assert raw.count(before, 0, start) == 1
    path.write_bytes(bytes(raw[:start]).replace(before, after) + raw[start:])
    with pytest.raises(StoreError, match="block 0: is not a readable Arrow record batch"):
        open_blocks(path).read(0, SCHEMA, None)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "has no hashes of its blocks: written by another program"),
        (b"text", "its metadata is not JSON"),
        (b"[1]", "its metadata is not a JSON object"),
        (b"[" * 200_000, r"its metadata is not JSON \(nested more than 64 deep\)"),
        (b"{}", "blocks"),
        (b'{"blocks": [[1]]}', "blocks"),
        (b'{"blocks": [[-1, "a"]]}', "blocks"),
        (b'{"blocks": [[1, 2]]}', "blocks"),
        (b'{"blocks": [[99999999, "a"]]}', "truncated"),
    ],
)
def test_metadata_that_says_something_else(tmp_path: Path, metadata: bytes | None, message: str) -> None:
    schema = SCHEMA.with_metadata({} if metadata is None else {METADATA_KEY: metadata})
    with ipc.new_file(tmp_path / NAME, schema) as writer:
        writer.write_batch(BATCHES[0].replace_schema_metadata(schema.metadata))
    with pytest.raises(StoreError, match=message):
        open_blocks(tmp_path / NAME)


def test_the_first_writer_wins(path: Path) -> None:
    before = path.read_bytes()
    write_blocks(open_storage(path.parent), NAME, [batch(9, 2)], {})
    assert path.read_bytes() == before


def test_who_trusts_reads_no_hash(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = open_blocks(path).entry
    monkeypatch.setattr(BlockFile, "_hash", lambda *_: pytest.fail("hashed"))
    assert open_blocks(path, trust=True).read(0, SCHEMA, 4).num_rows == 4
    assert open_blocks(path, trust=True, entry=entry).read(1, SCHEMA, 3).num_rows == 3


def check_pieces(content: bytes, entry: FileEntry, piece: int) -> None:
    check = BlockCheck("a.arrow", entry)
    for start in range(0, len(content), piece):
        check.update(memoryview(content)[start : start + piece])
    check.finish()


@pytest.mark.parametrize("piece", [1, 7, 64, 1000, 1 << 20])
def test_bytes_that_pass_by_are_checked_in_pieces_of_any_size(path: Path, piece: int) -> None:
    content, entry = path.read_bytes(), open_blocks(path).entry
    check_pieces(content, entry, piece)
    for cut in (0, 1, 15, 16, 17, 300, len(content) - 1):
        with pytest.raises(StoreError, match=r"^a\.arrow: .*damaged"):
            check_pieces(content[:cut], entry, piece)
    with pytest.raises(StoreError, match="has more than"):
        check_pieces(content + b"x", entry, piece)


def test_every_byte_that_passes_by_counts(path: Path) -> None:
    content, entry = path.read_bytes(), open_blocks(path).entry
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        with pytest.raises(StoreError, match=r"^a\.arrow: .*damaged"):
            check_pieces(bytes(damaged), entry, 997)
    # All damaged blocks are named, not only the first.
    file = open_blocks(path)
    damaged = bytearray(content)
    for name in (b"image 1", b"image 5"):
        damaged[content.index(name)] ^= 1
    with pytest.raises(StoreError, match=r"block 0: hash .*; block 1: hash"):
        check_pieces(bytes(damaged), file.entry, 100)


def test_an_entry_of_a_head_that_is_no_schema(path: Path) -> None:
    content, entry = path.read_bytes(), open_blocks(path).entry
    head = content[:16] + bytes(int.from_bytes(content[12:16], "little"))
    with pytest.raises(StoreError, match="its schema cannot be read"):
        check_pieces(head + content[len(head) :], entry._replace(head=xxhash.xxh3_128_hexdigest(head)), 1000)
