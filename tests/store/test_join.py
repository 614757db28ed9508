"""Joining by key: records find their rows wherever they lie, classes compare by name, and what is other is refused."""

import dataclasses
import pickle
import warnings

import numpy as np
import pytest
import torch

from teachonce.data.stored_logits import StoredLogits
from teachonce.errors import ConfigError, ImageError, StoreError
from teachonce.pixels.decode import decode_record
from teachonce.pixels.render import ViewReader
from teachonce.records.class_space import ClassSpace, NamedClassSpace
from teachonce.records.class_table import ClassTable, write_classes
from teachonce.records.discovery import open_records
from teachonce.records.key_index import SORTED_AT_ONCE
from teachonce.records.selection import SelectedSource
from teachonce.records.source import NO_LABEL, shard_name
from teachonce.records.tfrecord.framing import read_tfrecords
from teachonce.store.join import (
    StoreJoin,
    _together,
    check_same_policy,
    find_unknown,
    has_same_shards,
    invert_labels,
    join_records,
    known_records,
    label_map,
)
from teachonce.store.manifests import finalize_store
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from teachonce.store.tables import write_index
from tests.support.small_data import (
    build_dataset,
    change_image,
    example,
    rewrite_shard,
    write_as_folder,
    write_shards,
    write_store,
)

LOCATIONS = [(1, 2), (0, 4), (0, 0), (1, 0), (0, 0)]


@pytest.fixture
def source(tmp_path):
    return open_records(write_shards(tmp_path / "data"), "train")


@pytest.fixture
def store(tmp_path, source):
    return write_store(tmp_path / "store", source)


def read_all(source):
    locations = [source.locate(index) for index in range(source.num_records)]
    return locations, source.read_batch(locations)


def check_joined(store, source):
    """Every record of the source is found where the store has its key; returns the join."""
    join = StoreJoin(store, source)
    locations, records = read_all(source)
    found = join.locate(locations, records)
    assert [int(store.read_keys(shard)[row]) for shard, row in found] == [record.key for record in records]
    for location, record in zip(locations, records, strict=True):
        at = join.find_in_source(record.key)
        assert source.read_record(*at).key == record.key and (at == location or source.read_record(*location))
    return join


def payloads_of(data):
    return [bytes(payload) for path in sorted(data.glob("train-*-of-?????")) for _, payload in read_tfrecords(path)]


def reshard(data, out, order, sizes):
    """The records of a folder in another order, in shards of other sizes, with the same classes."""
    payloads = payloads_of(data)
    write_shards(out, sizes=sizes, payloads=[payloads[index] for index in order])
    return open_records(out, "train")


def test_records_of_the_store_are_where_they_are(store, source):
    join = check_joined(store, source)
    assert join.has_positions and join.labels is None and join.class_space == store.class_space
    assert list(join.locate(LOCATIONS, source.read_batch(LOCATIONS))) == LOCATIONS
    assert list(join.locate([], [])) == []
    joined = join_records([join], LOCATIONS, source.read_batch(LOCATIONS))
    assert list(joined.locations_in(store)) == list(joined.locations) == LOCATIONS


@pytest.mark.parametrize(
    ("order", "sizes"),
    [
        (range(8), (3, 5)),
        (range(8), (8,)),
        (range(8), (1, 2, 2, 3)),
        ([7, 0, 6, 1, 5, 2, 4, 3], (2, 6)),
        ([7, 0, 6], (3,)),
        ([4], (1,)),
        ([0, 0, 3, 3, 3], (2, 3)),
    ],
    ids=str,
)
def test_other_orders_shards_and_subsets_join(tmp_path, store, source, order, sizes):
    other = reshard(tmp_path / "data", tmp_path / "other", order, sizes)
    join = check_joined(store, other)
    assert not join.has_positions
    dataset, expected = build_dataset(other, size=8, store=store), build_dataset(source, size=8, store=store)
    batch, whole = dataset.read_batch(range(len(order)), 0), expected.read_batch(list(order), 0)
    assert torch.equal(batch["teacher_logits"], whole["teacher_logits"])
    assert torch.equal(batch["labels"], whole["labels"])


def test_a_shard_in_another_order_joins(tmp_path, store):
    """As many records and bytes as before, so positions are tried first."""
    rewrite_shard(tmp_path / "data" / "train-00000-of-00002", lambda payloads: payloads[::-1])
    source = open_records(tmp_path / "data", "train")
    join = check_joined(store, source)
    assert join.has_positions
    assert list(join.locate([(0, 0), (0, 4)], source.read_batch([(0, 0), (0, 4)]))) == [(0, 4), (0, 0)]
    assert join.find_in_source(int(store.read_keys(0)[0])) == (0, 4)
    # Who reads what lies there compares its key.
    assert join.locate_key(int(store.read_keys(0)[0]), "here", by_position=True) == (0, 0)


def test_shards_of_other_names_are_tried_by_position(tmp_path, store):
    data = tmp_path / "renamed"
    data.mkdir()
    for index in range(2):
        (data / shard_name("train", index, 2)).write_bytes(
            (tmp_path / "data" / shard_name("train", index, 2)).read_bytes()
        )
    validation = tmp_path / "validation"
    validation.mkdir()
    for index in range(2):
        (validation / shard_name("validation", index, 2)).write_bytes(
            (tmp_path / "data" / shard_name("train", index, 2)).read_bytes()
        )
    for folder, split in ((data, "train"), (validation, "validation")):
        other = open_records(folder, split)
        assert has_same_shards(store, other)
        check_joined(store, other)


def test_a_folder_with_the_images_of_the_shards(tmp_path, store, source):
    """Labels count from 0 there and from 1 here; the logits are those of the same classes."""
    folder = open_records(write_as_folder(source, tmp_path / "folder"), "train")
    join = check_joined(store, folder)
    # The folder has no background; the teacher has no logit for it either.
    assert join.labels.tolist() == [1, 2, 3] and join.class_space == ClassSpace(num_classes=3, offset=0)
    assert join.is_by_name and len(join.relabeled) == 0
    dataset = build_dataset(folder, size=8, store=store)
    batch = dataset.read_batch(range(8), 0)
    assert dataset.num_classes == 3 and batch["teacher_logits"].shape == (8, 3)
    _, records = read_all(folder)
    for record, logits, label in zip(records, batch["teacher_logits"], batch["labels"].tolist(), strict=True):
        ((shard, row),) = store.locations_of(record.key)
        np.testing.assert_array_equal(logits, store.read_logits(shard, 0, [row])[0])
        assert label == record.label == int(store.read_labels(shard)[row]) - 1
    # And the other way round: a store over the folder, and the shards.
    back = write_store(tmp_path / "back", folder, offset=0)
    join = check_joined(back, source)
    assert join.labels.tolist() == [-1, 0, 1, 2] and join.class_space == ClassSpace(num_classes=3, offset=1)
    batch = build_dataset(source, size=8, store=back).read_batch(range(8), 0)
    assert batch["teacher_logits"].shape == (8, 4) and (batch["teacher_logits"][:, 0] == -np.inf).all()
    ((shard, row),) = back.locations_of(source.read_record(0, 3).key)
    np.testing.assert_array_equal(batch["teacher_logits"][3, 1:], back.read_logits(shard, 0, [row])[0])


@pytest.fixture
def six(tmp_path):
    """Shards of six classes, class0 to class5 with labels 1 to 6, and a store of which each logit says what it is."""
    payloads = [example(index, 1 + index % 6) for index in range(12)]
    source = open_records(write_shards(tmp_path / "six", (7, 5), num_classes=7, payloads=payloads), "train")
    logits = (np.arange(12)[:, None] * 0.125 + np.arange(6)[None] * [1, -1, 0.5, 2, -2, 0]).astype(np.float32)
    return source, write_store(tmp_path / "six-store", source, logits)


def test_some_of_the_classes_in_another_numbering(tmp_path, six):
    """A folder of three classes under names that sort otherwise: labels, logits and KD targets by hand."""
    _, store = six
    # Labels 0, 1, 2 of the new data are the classes 4, 0, 2 of the teacher, which are the labels 5, 1, 3 of the store.
    names = ("class4", "class0", "class2")
    chosen = [index for index in range(12) if index % 6 in (4, 0, 2)]
    new_label = {4: 0, 0: 1, 2: 2}
    data = tmp_path / "three"
    write_shards(data, (6,), num_classes=None, payloads=[example(index, new_label[index % 6]) for index in chosen])
    write_classes(data, ClassTable(names, names, has_background=False))
    some = open_records(data, "train")
    join = check_joined(store, some)
    assert join.labels.tolist() == [5, 1, 3]
    assert join.class_space == NamedClassSpace(num_classes=6, output_labels=(1, -1, 2, -1, 0, -1))
    dataset = build_dataset(some, size=8, store=store)
    batch = dataset.read_batch(range(6), 0)
    assert batch["labels"].tolist() == [new_label[index % 6] for index in chosen] == [1, 2, 0, 1, 2, 0]
    for index, row in zip(chosen, batch["teacher_logits"].tolist(), strict=True):
        base = index * 0.125
        assert row == [base + 4 * -2, base + 0, base + 2 * 0.5]
    # The teacher's distribution, conditioned on the three classes.
    target = torch.softmax(batch["teacher_logits"][0], 0)
    np.testing.assert_allclose(target, np.exp([-8, 0, 1]) / np.exp([-8, 0, 1]).sum(), rtol=1e-6)
    # On the device it is the same.
    raw = build_dataset(some, size=8, store=store, as_stored=True)
    stored = raw.read_batch(range(6), 0)
    decoded = raw.logits.decode(stored, 1.0, raw.class_space)
    assert torch.equal(decoded, batch["teacher_logits"])


def test_unknown_records_are_counted_and_named(tmp_path, store, source):
    payloads = payloads_of(tmp_path / "data")
    more = [payloads[0], example(100, 1), *payloads[1:5], example(101, 2), payloads[5]]
    other = open_records(write_shards(tmp_path / "more", sizes=(5, 3), payloads=more), "train")
    with pytest.raises(StoreError) as error:
        StoreJoin(store, other)
    assert str(error.value) == (
        f"{store.path}: 6 of 8 records are in the store; 2 are not (first: image_100.jpg); give the data of "
        f"{store.path}, or extract over this data (train --missing skip leaves them out)"
    )
    unknown = find_unknown([store], other)
    assert unknown.count == 2 and [rows.tolist() for rows in unknown.rows] == [[1], [1]]
    known, unknown = known_records([store], other)
    assert isinstance(known, SelectedSource) and known.num_records == 6 and unknown.count == 2
    check_joined(store, known)
    same, unknown = known_records([store], source)
    assert same is source and unknown.count == 0


def test_what_one_of_two_stores_does_not_know_is_left_out(tmp_path, source, store):
    halves = [SelectedSource(source, [np.array(rows), np.arange(3)]) for rows in ([0, 1, 2], [1, 2, 3])]
    stores = [write_store(tmp_path / f"half-{index}", half) for index, half in enumerate(halves)]
    known, unknown = known_records(stores, source)
    assert unknown.count == 3 and known.num_records == 5
    assert f"{stores[0].path} and {stores[1].path}: 5 of 8 records are in the store" in unknown.describe("")
    for item in stores:
        check_joined(item, known)
    foreign = write_store(
        tmp_path / "foreign-store", write_shards(tmp_path / "foreign", payloads=[example(i, 1) for i in range(50, 58)])
    )
    with pytest.raises(StoreError, match=r"0 of 8 records are in the store; 8 are not .* a store of other data"):
        known_records([foreign], reshard(tmp_path / "data", tmp_path / "x", range(8), (8,)))


def test_records_that_were_left_out_are_read_once(tmp_path, store, monkeypatch):
    """Their keys are known by then: ImageNet would be read once more at every start."""
    payloads = [*payloads_of(tmp_path / "data"), example(100, 1)]
    other = open_records(write_shards(tmp_path / "more", sizes=(4, 5), payloads=payloads), "train")
    known, _ = known_records([store], other)
    read = []
    real = type(other).iter_shard
    monkeypatch.setattr(
        type(other), "iter_shard", lambda self, shard, **options: read.append(shard) or real(self, shard, **options)
    )
    StoreJoin(store, known)
    assert not read


def test_a_changed_image_that_looks_re_encoded_is_named_so(tmp_path, store):
    payloads = payloads_of(tmp_path / "data")
    again = example(100, 1, filename=b"image_2.jpg")
    other = open_records(
        write_shards(tmp_path / "more", sizes=(8,), payloads=[*payloads[:2], again, *payloads[3:]]), "train"
    )
    with pytest.raises(
        StoreError, match=r"first: image_2\.jpg, a name that the store has for other bytes: re-encoded, or "
    ):
        StoreJoin(store, other)


CHANGES = {
    "another image": (
        {"key": 2**64 - 5},
        r"key fffffffffffffffb \(image_1\.jpg\), the store .* has [0-9a-f]{16} there and does not have this key: the "
        "image has changed since extraction, or this is other data",
    ),
    "another label": (
        {"label": 3},
        r"label 3 \(image_1\.jpg\), the store .* has 2: the classes have a different order",
    ),
    "a label beyond int32": ({"label": 2 + 2**32}, "label 4294967298 .* has 2"),
    "a negative label": ({"label": -2}, "label -2 .* has 2"),
}


@pytest.fixture
def unnamed(tmp_path):
    """Shards without class names, and their store."""
    source = open_records(write_shards(tmp_path / "unnamed", num_classes=None), "train")
    return source, write_store(tmp_path / "unnamed-store", source)


@pytest.mark.parametrize("kind", CHANGES)
def test_what_changed_is_refused_alone_and_in_a_batch(unnamed, kind):
    source, store = unnamed
    join = StoreJoin(store, source)
    changes, message = CHANGES[kind]
    locations = [(1, 0), (0, 1), (0, 2)]
    records = source.read_batch(locations)
    records[1] = dataclasses.replace(records[1], **changes)
    location = r"train-00000-of-00002 record 1 \(byte \d+\): "
    with pytest.raises(StoreError, match=location + message.replace("2: the", r"2: the")):
        join.locate(locations[1:2], records[1:2])
    with pytest.raises(StoreError, match=location + message):
        join.locate(locations, records)


def test_the_first_of_several_is_named(unnamed):
    source, store = unnamed
    records = [dataclasses.replace(record, label=0) for record in source.read_batch(LOCATIONS)]
    with pytest.raises(StoreError, match=r"train-00001-of-00002 record 2 .*label 0"):
        StoreJoin(store, source).locate(LOCATIONS, records)


def test_an_image_that_changed_while_it_was_read(tmp_path, store):
    other = reshard(tmp_path / "data", tmp_path / "other", range(8), (8,))
    join = StoreJoin(store, other)
    record = dataclasses.replace(other.read_record(0, 3), key=5)
    with pytest.raises(StoreError, match=r"record 3 .*key 0{15}5 .* is not in the store .* changed while it was read"):
        join.locate([(0, 3)], [record])


def test_numbers_compare_where_one_side_has_no_names(tmp_path, source, store, unnamed):
    """And must be as many where the data says how many there are."""
    nameless, nameless_store = unnamed
    for records, other in ((nameless, store), (source, nameless_store)):
        join = check_joined(other, records)
        assert join.labels is None and not join.is_by_name
    shifted = [example(index, index % 3) for index in range(8)]
    wrong = open_records(write_shards(tmp_path / "wrong", num_classes=None, payloads=shifted), "train")
    join = StoreJoin(store, wrong)
    with pytest.raises(StoreError, match="the classes have a different order or numbering there"):
        join.locate([(0, 0)], wrong.read_batch([(0, 0)]))
    five = open_records(
        write_shards(tmp_path / "five", num_classes=5, payloads=payloads_of(tmp_path / "data")), "train"
    )
    with pytest.raises(
        StoreError, match=r"made for 4 classes \(background included\), the data has 5, and the store has"
    ):
        StoreJoin(nameless_store, five)


def test_the_same_names_in_another_number_join(tmp_path, store):
    five = open_records(
        write_shards(tmp_path / "five", num_classes=5, payloads=payloads_of(tmp_path / "data")), "train"
    )
    join = check_joined(store, five)
    assert join.labels.tolist() == [0, 1, 2, 3, -1] and join.class_space == store.class_space


def test_no_class_in_common_is_refused(tmp_path, source, store):
    names = ("x", "y", "z", "w")
    write_classes(tmp_path / "data", ClassTable(names, names, has_background=False))
    with pytest.raises(
        StoreError, match="its classes are background, class2 and the like, those of the data x, w: none"
    ):
        StoreJoin(store, open_records(tmp_path / "data", "train"))


def test_equal_images_under_two_labels_are_both_right(tmp_path):
    """Whichever of them a record's row is: its own label is one of the store's."""
    image = example(7, 1)
    payloads = [image, example(7, 2), example(1, 3), example(2, 1)]
    source = open_records(write_shards(tmp_path / "twice", (2, 2), payloads=payloads), "train")
    store = write_store(tmp_path / "twice-store", source)
    key = source.read_record(0, 0).key
    assert key == source.read_record(0, 1).key and store.locations_of(key) == [(0, 0), (0, 1)]
    for order, sizes in (((0, 1, 2, 3), (2, 2)), ((2, 1, 3, 0), (4,)), ((1, 0), (1, 1))):
        write_shards(tmp_path / str(order), sizes, payloads=[payloads[index] for index in order])
        other = open_records(tmp_path / str(order), "train")
        with pytest.warns(
            UserWarning, match=r"1 image occurs more than once with different labels \(first: image_7\.jpg with"
        ):
            join = StoreJoin(store, other)
        join.locate(*read_all(other))
        assert len(join.relabeled) == 0
        with pytest.warns(UserWarning, match="each keeps its own label"):
            dataset = build_dataset(other, size=8, store=store)
        batch = dataset.read_batch(range(len(order)), 0)
        assert batch["labels"].tolist() == [(1, 2, 3, 1)[index] for index in order]


def test_an_image_that_was_given_another_label_keeps_its_own(tmp_path, source, store):
    payloads = payloads_of(tmp_path / "data")
    # Records 3 and 6 (label 1) are of class 3 today.
    relabeled = [example(index, 3) if index in (3, 6) else payload for index, payload in enumerate(payloads)]
    other = open_records(write_shards(tmp_path / "other", payloads=relabeled), "train")
    with pytest.warns(
        UserWarning,
        match=r"2 of 8 sampled images \(about 25 % of all\) have another label than in the store, such as .*record 3 "
        r".*label 3 \(class2\) \(image_3\.jpg\), the store .* has 1 \(class0\): the data's labels are used, ",
    ) as seen:
        dataset = build_dataset(other, size=8, store=store)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = dataset.read_batch(range(8), 0)
    before = build_dataset(source, size=8, store=store).read_batch(range(8), 0)
    assert batch["labels"].tolist() == [1, 2, 3, 3, 2, 3, 3, 2] != before["labels"].tolist()
    assert torch.equal(batch["teacher_logits"], before["teacher_logits"])
    assert dataset.num_relabeled == 2
    with pytest.warns(UserWarning, match="2 of 8 sampled images"):
        join = StoreJoin(store, other)
    join.locate(*read_all(other))
    assert len(join.relabeled) == 2


def test_most_labels_different_is_another_order_of_the_classes(tmp_path, store):
    relabeled = [example(index, 1 + (index + (index < 5)) % 3) for index in range(8)]
    other = open_records(write_shards(tmp_path / "other", payloads=relabeled), "train")
    with pytest.raises(
        StoreError,
        match=r"record 0 .*label 2 \(class1\) .*; 5 of 8 sampled images \(about 62 % of all\) have another label than "
        r"in the store, expected at most 50 %, .*the classes have a different order .*another --out",
    ):
        StoreJoin(store, other)


def test_records_without_a_label_match_any(tmp_path, source, store):
    join = StoreJoin(store, source)
    records = [dataclasses.replace(record, label=NO_LABEL) for record in source.read_batch(LOCATIONS)]
    assert list(join.locate(LOCATIONS, records)) == LOCATIONS and len(join.relabeled) == 0


def test_a_join_travels_to_another_process(tmp_path, store):
    other = reshard(tmp_path / "data", tmp_path / "other", [7, 0, 6, 1, 5, 2, 4, 3], (2, 6))
    join = StoreJoin(store, other)
    join.find_in_source(int(store.read_keys(0)[0]))
    again = pickle.loads(pickle.dumps(join))
    locations, records = read_all(other)
    assert list(again.locate(locations, records)) == list(join.locate(locations, records))
    assert again.find_in_source(int(store.read_keys(1)[1])) == join.find_in_source(int(store.read_keys(1)[1]))


def test_mix_partners_are_found_across_shards(tmp_path, digits):
    """A store whose partners lay in the same shard, over data in other shards, and over a part of it."""
    from teachonce.extraction.config import ExtractConfig
    from teachonce.extraction.extract import extract
    from tests.support.small_models import write_color_shards, write_color_teacher

    data = write_color_shards(tmp_path / "color", sizes=(9, 6))
    options = {"policy": "crop", "views": 2, "mixup_alpha": 1.0, "device": "cpu", "gate_samples": 0}
    extract(ExtractConfig(data=data, teacher=write_color_teacher(tmp_path / "t.onnx"), out=tmp_path / "mix", **options))
    store, source = Store(tmp_path / "mix"), open_records(data, "train")
    payloads = [bytes(payload) for path in sorted(data.glob("train-*2")) for _, payload in read_tfrecords(path)]
    order = np.random.default_rng(0).permutation(15).tolist()
    write_shards(tmp_path / "other", (4, 7, 4), num_classes=5, payloads=[payloads[index] for index in order])
    other = open_records(tmp_path / "other", "train")
    batches = [build_dataset(records, size=8, store=store) for records in (source, other)]
    for epoch in range(2):
        expected, found = (
            dataset.read_batch(indices, epoch) for dataset, indices in zip(batches, (order, range(15)), strict=True)
        )
        assert (found["shares"] < 1).all()
        for name in ("pixels", "labels", "partner_labels", "shares", "teacher_logits"):
            assert torch.equal(found[name], expected[name]), name
    row = next(row for row in range(9) if store.read_views(0, 0, [row])[0].mix is not None)
    key, partner = int(store.read_keys(0)[row]), store.read_views(0, 0, [row])[0].mix.partner
    keep = [index for index in range(15) if source.read_record(*source.locate(index)).key != partner]
    assert len(keep) == 14 and key != partner
    write_shards(tmp_path / "fewer", (14,), num_classes=5, payloads=[payloads[index] for index in keep])
    fewer = open_records(tmp_path / "fewer", "train")
    reader = ViewReader(fewer, StoredViews(store))
    location = StoreJoin(store, fewer).find_in_source(key)
    with pytest.raises(
        StoreError, match=rf"record {partner:016x} of the store .*give all of the data from which the store was"
    ):
        reader.read([location], 0)


def test_stores_of_other_classes_are_not_joined(store, tmp_path):
    check_same_policy(store, Store(store.path))
    payloads = [example(index, 1) for index in range(8)]
    other = write_store(tmp_path / "five", write_shards(tmp_path / "more", num_classes=5, payloads=payloads))
    # Each is joined with the data by the names of its classes; only without them do numbers decide.
    check_same_policy(store, other)
    other.plan = dataclasses.replace(other.plan, class_names=None)
    with pytest.raises(StoreError, match=r"data_classes there 4, here 5: they cannot be averaged"):
        check_same_policy(store, other)


def test_labels_by_name(store):
    assert label_map(store, store.plan.class_names, 4) is None
    assert label_map(store, None, None) is None and label_map(store, None, 4) is None
    found = label_map(store, ("class2", "new", "class0"), 3)
    assert found.tolist() == [3, -1, 1]
    assert invert_labels(store, found).tolist() == [-1, 2, -1, 0]
    assert invert_labels(store, None).tolist() == [0, 1, 2, 3]


def test_a_damaged_index_joins_nothing(tmp_path, store):
    raw = bytearray((store.path / "index.arrow").read_bytes())
    raw[len(raw) // 2] ^= 1
    (store.path / "index.arrow").write_bytes(raw)
    other = reshard(tmp_path / "data", tmp_path / "other", range(8), (8,))
    with pytest.raises(StoreError, match=r"index\.arrow: "):
        StoreJoin(Store(store.path), other)


def test_an_image_that_does_not_decode_says_where(source):
    record = source.read_record(0, 3)
    assert decode_record(record).size == (40, 30)
    with pytest.raises(ImageError, match=r"train-00000-of-00002 record 3 \(byte \d+\): 4 bytes"):
        decode_record(dataclasses.replace(record, encoded=b"text"))


def test_an_index_that_names_other_rows_is_refused_where_it_is_used(tmp_path, store):
    """Also where hashes are not asked for: a record's own key is compared with that of the row that was found."""
    index = store.index[0]
    rows = index.rows.copy()
    rows[:2] = rows[1::-1]
    (store.path / "index.arrow").unlink()
    write_index(store.path, "index.arrow", dataclasses.replace(index, rows=rows), store.plan.identity)
    other = reshard(tmp_path / "data", tmp_path / "other", range(8), (8,))
    trusting = Store(store.path, trust=True)
    trusting._index = [dataclasses.replace(index, rows=rows)]
    with pytest.raises(StoreError, match=r"the index of .* points to a row with another key"):
        StoreJoin(trusting, other).locate(*read_all(other))
    for manifest in store.path.glob("manifest.*"):
        manifest.unlink()
    with pytest.raises(StoreError, match=r"index\.arrow: is not the index of these records"):
        finalize_store(store.path)


def test_logits_and_views_are_joined_with_one_source_alone(tmp_path, source, store):
    """What decodes them later must know whose classes are meant."""
    folder = open_records(write_as_folder(source, tmp_path / "folder"), "train")
    logits = StoredLogits([store])
    assert logits.join(source)[0] is logits.join(source)[0]
    with pytest.raises(
        ConfigError, match="its logits are already joined with other records; create one StoredLogits per dataset"
    ):
        logits.join(folder)
    views = StoredViews(store)
    views.join(source)
    with pytest.raises(ConfigError, match="create one StoredViews per dataset"):
        views.join(folder)


def test_skipping_looks_at_every_key(tmp_path, store):
    """Though data and store have shards of the same sizes: one image changed in its place."""
    change_image(tmp_path / "data" / "train-00000-of-00002", 1)
    source = open_records(tmp_path / "data", "train")
    assert has_same_shards(store, source)
    kept, unknown = known_records([store], source)
    assert unknown.count == 1 and kept.num_records == source.num_records - 1
    StoreJoin(store, kept).locate(*read_all(kept))


def with_names(store, names):
    store.plan = dataclasses.replace(store.plan, class_names=tuple(names), data_classes=len(names))
    return store


def test_names_that_occur_twice_do_not_tell_classes_apart(store):
    """As "crane" and "maillot" of ImageNet's texts, a bird or a machine, a swimsuit or a tank suit."""
    doubled = ("background", "crane", "crane", "b")
    assert label_map(with_names(store, doubled), doubled, 4) is None, "the same list: by number"
    for names in ((*doubled, "c"), ("crane", "b"), ("b", "crane", "background", "crane")):
        with pytest.raises(StoreError, match=r"class 'crane' is there 2 times, in the data \d times, and the lists of"):
            label_map(store, names, len(names))
    with pytest.raises(StoreError, match=r"class 'b' is there 1 times, in the data 2 times"):
        label_map(store, ("b", "b", "x"), 3)
    # What only one side has does not matter.
    with pytest.warns(UserWarning, match="1 of the teacher's 3 classes"):
        assert label_map(store, ("x", "b", "x"), 3).tolist() == [-1, 3, -1]


def test_background_alone_is_no_class_in_common(store):
    with pytest.raises(StoreError, match="none in common"):
        label_map(store, ("background", "x", "y"), 3)


def test_few_classes_in_common_are_said(store):
    with pytest.warns(UserWarning, match="by name the data has 1 of the teacher's 3 classes; the teacher's logits of"):
        assert label_map(store, ("background", "x", "class2"), 3).tolist() == [0, -1, 3]
    assert label_map(store, ("background", "class1", "class2"), 3).tolist() == [0, 2, 3]


def test_many_shards_are_put_together_in_linear_time():
    sizes = Counted([3, 0, SORTED_AT_ONCE, 5, 2])
    assert list(_together(sizes)) == [[0, 1, 2], [3, 4]]
    assert sizes.num_read == 5
    assert list(_together([])) == []


class Counted(list):
    num_read = 0

    def __iter__(self):
        for item in super().__iter__():
            self.num_read += 1
            yield item

    def __getitem__(self, at):
        self.num_read += 1
        return super().__getitem__(at)


def test_the_advice_is_that_of_the_program(tmp_path, store):
    other = open_records(
        write_shards(tmp_path / "other", payloads=[example(index, 1 + index % 3) for index in range(3, 12)]), "train"
    )
    with pytest.raises(StoreError, match="train --missing skip leaves them out"):
        StoreJoin(store, other)
    with pytest.raises(StoreError, match=r"3 are not .*; do this$"):
        StoreJoin(store, other, advice="do this")
