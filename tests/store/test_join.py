"""Joining by position: what is another record, label, order or data set is refused, each with its reason and place."""

import dataclasses

import pytest
from teachonce.store.checks import check_key, check_keys, check_same_data, check_same_policy

from teachonce.errors import ImageError, StoreError
from teachonce.pixels.decode import decode_record
from teachonce.records.discovery import open_records
from teachonce.store.store import Store
from tests.support.small_data import example, write_shards, write_store

LOCATIONS = [(1, 2), (0, 4), (0, 0), (1, 0), (0, 0)]


@pytest.fixture
def source(tmp_path):
    return open_records(write_shards(tmp_path / "data"), "train")


@pytest.fixture
def store(tmp_path, source):
    return write_store(tmp_path / "store", source)


def test_records_of_the_store_pass(store, source):
    check_keys(store, LOCATIONS, source.read_batch(LOCATIONS))
    check_keys(store, [], [])
    for location in LOCATIONS:
        check_key(store, *location, source.read_record(*location))


CHANGES = {
    "another image": (
        {"key": 2**64 - 5},
        r"key fffffffffffffffb \(image_1\.jpg\), the store .* has [0-9a-f]{16}",
    ),
    "another label": ({"label": 3}, r"label 3 \(image_1\.jpg\), the store .* has 2: the classes have another order"),
    "a label beyond int32": ({"label": 2 + 2**32}, "label 4294967298 .* has 2"),
    "a negative label": ({"label": -1}, "label -1 .* has 2"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_changed_is_refused_alone_and_in_a_batch(store, source, kind):
    changes, message = CHANGES[kind]
    locations = [(1, 0), (0, 1), (0, 2)]
    records = source.read_batch(locations)
    records[1] = dataclasses.replace(records[1], **changes)
    location = r"train-00000-of-00002 record 1 \(byte \d+\): "
    with pytest.raises(StoreError, match=location + message):
        check_key(store, 0, 1, records[1])
    with pytest.raises(StoreError, match=location + message):
        check_keys(store, locations, records)


def test_the_first_of_several_is_named(store, source):
    records = [dataclasses.replace(record, label=0) for record in source.read_batch(LOCATIONS)]
    with pytest.raises(StoreError, match=r"train-00001-of-00002 record 2 .*label 0"):
        check_keys(store, LOCATIONS, records)


def test_another_order_is_told_from_other_images(store, source):
    with pytest.raises(StoreError, match=r"is another row of the store .* have another order than at extraction"):
        check_keys(store, [(0, 0), (0, 1)], source.read_batch([(0, 1), (0, 0)]))
    with pytest.raises(StoreError, match="the image changed since extraction, or this is other data"):
        check_keys(store, [(0, 0)], source.read_batch([(1, 0)]))


def test_other_data_is_refused(store, source, tmp_path):
    described = source.describe()
    check_same_data(store, described)
    with pytest.raises(StoreError, match=r"made for 4 classes \(background included\), the data has 5"):
        check_same_data(store, described | {"num_classes": 5})
    check_same_data(store, described | {"num_classes": None})
    other = open_records(write_shards(tmp_path / "other", sizes=(4, 4)), "train")
    with pytest.raises(StoreError, match=r"shard 0 is train-00000-of-00002 with 5 records in the store, .* with 4 in"):
        check_same_data(store, other.describe())


def test_stores_of_other_classes_are_not_joined(store, source, tmp_path):
    check_same_policy(store, Store(store.path))
    payloads = [example(index, 1) for index in range(8)]
    other = write_store(tmp_path / "five", write_shards(tmp_path / "more", num_classes=5, payloads=payloads))
    with pytest.raises(StoreError, match=r"data classes 5, .* has 4: the teachers looked at other views"):
        check_same_policy(store, other)


def test_an_image_that_does_not_decode_says_where(source):
    record = source.read_record(0, 3)
    assert decode_record(record).size == (40, 30)
    with pytest.raises(ImageError, match=r"train-00000-of-00002 record 3 \(byte \d+\): 4 bytes"):
        decode_record(dataclasses.replace(record, encoded=b"text"))
