"""The tables of a store: written whole or not at all, read back as they were, and told from those of other stores."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from teachonce.codecs.dense import Int8Codec
from teachonce.errors import LogitsError, StoreError
from teachonce.records.key_index import KeyIndex
from teachonce.records.source import NO_LABEL
from teachonce.storage.block_file import BlockFile, write_blocks
from teachonce.storage.files import open_storage
from teachonce.store.plan import records_file, views_file
from teachonce.store.tables import (
    ALIAS_FIELD,
    RECORDS_SCHEMA,
    Sample,
    StoreWriter,
    check_file,
    check_metadata,
    count_hits,
    keys_hash,
    pixels_hash,
    read_index,
    read_records,
    read_samples,
    records_schema,
    samples_schema,
    to_batch,
    to_numpy,
    to_records,
    views_schema,
    write_index,
)
from teachonce.views.columns import CROP_ONLY
from teachonce.views.view import View
from tests.support.small_stores import MADE_BY, NUM_CLASSES, make_plan, shard_keys

SHARD = "train-00001-of-00002"
KEYS = shard_keys(1, 3)
LABELS = np.array([1, NO_LABEL, 7], np.int32)


def open_blocks(path, name):
    return BlockFile(open_storage(path), name)


def test_records_are_read_back(tmp_path):
    plan = make_plan()
    StoreWriter(tmp_path, plan).write_records(SHARD, KEYS, ["a.jpg", "ü/b.jpg", ""], LABELS)
    found = read_records(tmp_path, plan, 1)
    assert found.keys.tolist() == KEYS.tolist() and found.labels.tolist() == [1, NO_LABEL, 7]
    assert found.filenames.to_pylist() == ["a.jpg", "ü/b.jpg", ""]
    file = open_blocks(tmp_path, records_file(SHARD))
    assert file.read(0, RECORDS_SCHEMA, 3)["label"].null_count == 1, "no label is a null"
    assert file.metadata == {
        "format": 3,
        "kind": "records",
        "plan": plan.identity,
        "shard": SHARD,
        "num_records": 3,
        "keys_xxh3": keys_hash(KEYS),
    }


def test_records_of_another_plan_or_shard_are_refused(tmp_path):
    plan = make_plan()
    StoreWriter(tmp_path, make_plan(codec={"name": "float32"})).write_records(SHARD, KEYS, list("abc"), LABELS)
    with pytest.raises(
        StoreError, match=r"records\.arrow: plan \w+, expected \w+: belongs to another plan: a file of another"
    ):
        read_records(tmp_path, plan, 1)
    (tmp_path / records_file(SHARD)).rename(tmp_path / records_file(SHARD.replace("1-of", "0-of")))
    with pytest.raises(StoreError, match=r"records\.arrow: (plan|shard) "):
        read_records(tmp_path, plan, 0)


def test_records_with_the_key_of_an_original(tmp_path):
    """A further column, null where there is none."""
    schema = RECORDS_SCHEMA.append(ALIAS_FIELD)
    columns = [pa.array(KEYS), pa.array(list("abc")), pa.array(LABELS), pa.array([None, 5, None], pa.uint64())]
    plan = make_plan()
    about = {"format": 3, "kind": "records", "num_records": 3, "keys_xxh3": keys_hash(KEYS)}
    metadata = about | {"plan": plan.identity, "shard": SHARD}
    write_blocks(open_storage(tmp_path), records_file(SHARD), [pa.record_batch(columns, schema)], metadata)
    assert read_records(tmp_path, plan, 1).keys.tolist() == KEYS.tolist()
    assert records_schema(schema) == schema and records_schema(RECORDS_SCHEMA) == RECORDS_SCHEMA


def test_a_key_or_a_name_that_is_null_is_refused(tmp_path):
    loose = pa.schema([pa.field(field.name, field.type) for field in RECORDS_SCHEMA])
    rows = pa.record_batch(
        [pa.array([1, None], pa.uint64()), pa.array(["a", "b"]), pa.array([1, 2], pa.int32())], loose
    )
    plan = make_plan()
    write_blocks(open_storage(tmp_path), records_file(SHARD), [rows], {"plan": plan.identity, "shard": SHARD})
    with pytest.raises(StoreError, match="column key has 1 nulls, expected none"):
        to_records(open_blocks(tmp_path, records_file(SHARD)).read(0, RECORDS_SCHEMA, None))


def write_views(path, logits, plan=None, made_by=MADE_BY):
    plan = plan or make_plan(num_views=2)
    views = [[View((0, 0, v + 1, n + 1), n == 1) for n in range(3)] for v in range(len(logits))]
    StoreWriter(path, plan, made_by).write_views(SHARD, (0, len(logits) - 1), KEYS, LABELS, logits, views)
    return plan


def test_views_are_a_block_each(tmp_path):
    logits = np.random.default_rng(0).normal(0, 3, (2, 3, NUM_CLASSES)).astype(np.float32)
    logits[:, 0, 0], logits[0, 2, 6] = 99, 99  # labels 1 and 7 are the classes 0 and 6
    plan = write_views(tmp_path, logits)
    file = open_blocks(tmp_path, views_file(SHARD, (0, 1)))
    assert file.num_blocks == 2 and file.metadata["views"] == [0, 1]
    assert file.metadata["hits"] == [count_hits(of_view, LABELS, 1) for of_view in logits]
    assert file.metadata["hits"][0] == 2 and file.metadata["made_by"] == MADE_BY
    assert (file.metadata["plan"], file.metadata["keys_xxh3"]) == (plan.identity, keys_hash(KEYS))
    schema = views_schema(CROP_ONLY, Int8Codec(), NUM_CLASSES)
    for number, of_view in enumerate(logits):
        batch = file.read(number, schema, 3)
        columns = {name: to_numpy(batch.column(name)) for name in batch.schema.names}
        assert columns["box"].tolist() == [[0, 0, number + 1, row + 1] for row in range(3)]
        errors, allowed = Int8Codec().compare_logits(columns, of_view, np.zeros(3))
        assert (errors <= allowed).all()


def test_columns_that_are_encoded_already_are_the_same_file(tmp_path):
    logits = np.random.default_rng(0).normal(0, 3, (2, 3, NUM_CLASSES)).astype(np.float32)
    plan = write_views(tmp_path / "a", logits)
    name = views_file(SHARD, (0, 1))
    file = open_blocks(tmp_path / "a", name)
    schema = views_schema(CROP_ONLY, Int8Codec(), NUM_CLASSES)
    batches = [file.read(number, schema, 3) for number in range(2)]
    StoreWriter(tmp_path / "b", plan, MADE_BY).write_columns(SHARD, (0, 1), KEYS, batches, file.metadata["hits"])
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_nan_is_refused_and_nothing_is_written(tmp_path):
    logits = np.zeros((2, 3, NUM_CLASSES), np.float32)
    logits[1, 2, 2] = np.nan
    with pytest.raises(LogitsError):
        write_views(tmp_path / "store", logits)
    assert not (tmp_path / "store").exists() or list((tmp_path / "store").iterdir()) == []


def test_what_is_there_stays(tmp_path):
    logits = np.zeros((1, 3, NUM_CLASSES), np.float32)
    write_views(tmp_path, logits)
    before = (tmp_path / views_file(SHARD, (0, 0))).read_bytes()
    write_views(tmp_path, logits + np.arange(NUM_CLASSES, dtype=np.float32))
    assert (tmp_path / views_file(SHARD, (0, 0))).read_bytes() == before


def test_samples_are_read_back(tmp_path):
    samples = [
        Sample(row, 1, 2**64 - 1 - row, row, np.arange(NUM_CLASSES, dtype=np.float32) * (1 + row)) for row in (0, 2)
    ]
    plan = make_plan(num_views=2, num_samples=2)
    StoreWriter(tmp_path, plan).write_samples(SHARD, (0, 1), KEYS, samples)
    file = open_blocks(tmp_path, f"{SHARD}.v000-001.sample.arrow")
    batch = file.read(0, samples_schema(NUM_CLASSES), None)
    found = read_samples(batch, 3, (0, 1), "file")
    for num_records, group in ((2, (0, 1)), (3, (0, 0)), (3, (2, 3))):
        with pytest.raises(StoreError, match=r"file: a sample of row [02], view 1, expected rows below .*: damaged"):
            read_samples(batch, num_records, group, "file")
    for sample, expected in zip(found, samples, strict=True):
        assert (sample.row, sample.view, sample.image_xxh3, sample.pixels_xxh3) == (
            *(expected.row, expected.view),
            *(expected.image_xxh3, expected.pixels_xxh3),
        )
        np.testing.assert_array_equal(sample.logits, expected.logits)
    with pytest.raises(StoreError, match=r"columns .*logits fixed_size_list"):
        file.read(0, samples_schema(NUM_CLASSES + 1), None)


def test_an_index_is_read_back_without_a_copy(tmp_path):
    index = KeyIndex.build([KEYS[::-1], np.array([2**64 - 1, 0], np.uint64)], first_shard=4)
    write_index(tmp_path, "index.arrow", index, "identity")
    file = open_blocks(tmp_path, "index.arrow")
    found = read_index(file, range(4, 6), [3, 2])
    for name in ("keys", "shards", "rows"):
        assert getattr(found, name).tolist() == getattr(index, name).tolist()
        assert not getattr(found, name).flags.writeable and not getattr(found, name).flags.owndata
    with pytest.raises(StoreError, match="block 0: 5 rows, expected 4: the records differ"):
        read_index(file, range(4, 6), [3, 1])
    for shards, sizes in ((range(4, 6), [2, 3]), (range(5, 7), [3, 2]), (range(4, 5), [5]), (range(3, 5), [2, 3])):
        with pytest.raises(StoreError, match=r"index\.arrow: shard [45] row \d: there is no such record: damaged"):
            read_index(file, shards, sizes)


ABOUT = {"views": [0, 1], "hits": [0, 3], "made_by": {}}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hits": [1]}, r"hits \[1\], expected 2 numbers up to 3"),
        ({"hits": {"a": 1}}, "hits: expected `array`"),
        ({"hits": [0, -1]}, "hits"),
        ({"hits": [0, 4]}, r"hits \[0, 4\], expected 2 numbers up to 3"),
        ({"hits": None}, "hits"),
        ({"views": [0, 2]}, r"views \[0, 2\], expected \[0, 1\]: its content does not match its name"),
        ({"made_by": [1]}, "made_by: expected `object`"),
        ({"made_by": {"versions": "a"}}, "made_by: versions: expected `object`"),
        ({"made_by": {"device": 1}}, "made_by: device: expected `str`"),
        ({"newer": 1}, "newer: unknown here"),
        ({"batches": 1}, "1 blocks, expected 2"),
    ],
)
def test_metadata_that_are_not_as_the_format_says(tmp_path, changes, match):
    """Before anything is read by them."""
    plan = make_plan(num_views=2)
    name = views_file(SHARD, (0, 1))
    batch = to_batch({"a": np.arange(3)})
    about = ABOUT | changes
    batches = [batch] * about.pop("batches", 2)
    StoreWriter(tmp_path, plan)._write(name, "views", SHARD, KEYS, batches, about)
    with pytest.raises(StoreError, match=rf"^file: {match}.*; do this$"):
        check_file(open_blocks(tmp_path, name), name, "file", {"plan": plan.identity, "views": [0, 1]}, "do this")


def test_metadata_as_the_format_says(tmp_path):
    plan = make_plan(num_views=2)
    name = views_file(SHARD, (0, 1))
    about = ABOUT | {"made_by": {"device": "cpu", "more": [1]}}
    StoreWriter(tmp_path, plan)._write(name, "views", SHARD, KEYS, [to_batch({"a": np.arange(3)})] * 2, about)
    check_file(open_blocks(tmp_path, name), name, "file", {"plan": plan.identity, "views": [0, 1]}, "do this")


def test_metadata_that_is_not_as_expected():
    found = {"plan": "a", "shard": "b", "keys_xxh3": "c"}
    check_metadata(found, "file", {"plan": "a", "shard": "b"}, "do this")
    for changes, message in (
        ({"plan": "x"}, "file: plan a, expected x: belongs to another plan: a file of another store; do this"),
        ({"keys_xxh3": "x"}, "file: keys_xxh3 c, expected x: belongs to other records: the data changed between"),
        ({"shard": "x"}, "file: shard b, expected x: its content does not match its name"),
        ({"views": [0, 1]}, r"file: views None, expected \[0, 1\]: its content does not match its name"),
    ):
        with pytest.raises(StoreError, match=message):
            check_metadata(found, "file", changes, "do this")


def test_hits():
    logits = np.eye(4, dtype=np.float32)
    assert count_hits(logits, np.array([1, 2, 3, 4], np.int32), 1) == 4
    assert count_hits(logits, np.array([0, 1, 2, 3], np.int32), 0) == 4
    assert count_hits(logits, np.array([NO_LABEL, 1, 3, NO_LABEL], np.int32), 0) == 1
    # A model without the class "background": no label is its class -1.
    assert count_hits(logits, np.full(4, NO_LABEL, np.int32), -1) == 0


def test_hashes_depend_on_every_byte_and_the_order():
    assert keys_hash(KEYS) == keys_hash(KEYS.copy()) != keys_hash(KEYS[::-1])
    assert len(keys_hash(np.empty(0, np.uint64))) == 16
    pixels = np.zeros((2, 3, 3), np.uint8)
    changed = pixels.copy()
    changed[1, 2, 0] = 1
    assert pixels_hash(pixels) != pixels_hash(changed) == pixels_hash(np.asfortranarray(changed))


def test_columns_of_one_and_of_two_dimensions():
    columns = {"a": np.arange(3, dtype=np.uint16), "b": np.arange(6, dtype=np.float16).reshape(3, 2)}
    batch = to_batch(columns)
    for name, values in columns.items():
        np.testing.assert_array_equal(to_numpy(batch.column(name)), values)
        np.testing.assert_array_equal(to_numpy(batch.slice(1, 2).column(name)), values[1:])
