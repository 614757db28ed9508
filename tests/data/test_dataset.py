"""Batches: each record once an epoch whatever the ranks and workers, joined with the logits of the view it shows."""

import gc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from teachonce.data.dataset import EvalDataset, KDDataset
from teachonce.data.loader import Loader
from teachonce.data.logit_sources import RecordLogits
from teachonce.data.sampler import EpochBatches
from teachonce.data.stored_logits import StoredLogits
from teachonce.errors import ConfigError, ImageError, LogitsError, RecordError, StoreError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.interop.config import MergeConfig
from teachonce.interop.merge import merge
from teachonce.pixels.apply_view import apply_view
from teachonce.pixels.decode import decode_image
from teachonce.pixels.in_memory import RecordsInMemory
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.view_sources import DrawnViews, OwnViews
from teachonce.records.class_space import ClassSpace, map_logits
from teachonce.records.discovery import open_records
from teachonce.records.options import RecordOptions
from teachonce.rng import generator
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from teachonce.views.draw import sample_view
from teachonce.views.order import ViewOrder
from teachonce.views.policy import CropPolicy, ObjectCrop
from tests.support.small_data import (
    build_dataset,
    change_image,
    example,
    forge_views,
    write_image_folder,
    write_shards,
    write_store,
)
from tests.support.small_models import write_color_shards, write_color_teacher


@pytest.fixture
def data(tmp_path):
    return write_color_shards(tmp_path / "data", sizes=(9, 6))


@pytest.fixture
def view_store(tmp_path, data):
    extract(
        ExtractConfig(
            data=data,
            teacher=write_color_teacher(tmp_path / "teacher.onnx"),
            out=tmp_path / "views",
            policy="crop",
            views=3,
            codec="float32",
            device="cpu",
            gate_samples=0,
        )
    )
    return Store(tmp_path / "views")


@given(
    num_records=st.integers(3, 200),
    batch_size=st.integers(1, 40),
    world_size=st.sampled_from([1, 2, 3]),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_each_record_once_an_epoch_over_all_ranks_in_equal_steps(num_records, batch_size, world_size, epoch, shuffle):
    ranks = [
        EpochBatches(num_records, batch_size, seed=1, epoch=epoch, shuffle=shuffle, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches = [list(rank) for rank in ranks]
    seen = [index for rank in batches for batch in rank for index, _ in batch]
    assert sorted(seen) == list(range(num_records))
    assert {len(rank) for rank in batches} == {len(ranks[0])}
    assert all(batch for rank in batches for batch in rank)
    assert all(e == epoch for rank in batches for batch in rank for _, e in batch)
    steps = [sum(len(rank[step]) for rank in batches) for step in range(len(batches[0]))]
    assert max(steps) - min(steps) <= 1
    assert max(steps) <= batch_size * world_size or num_records // len(steps) < 2 * world_size


def test_the_order_is_of_seed_and_epoch_and_the_global_batch_is_that_of_one_rank():
    def order(**options):
        return [index for batch in EpochBatches(50, 10, **options) for index, _ in batch]

    assert order(seed=0, epoch=1) == order(seed=0, epoch=1)
    assert len({tuple(order(seed=s, epoch=e)) for s, e in [(0, 0), (0, 1), (1, 0)]}) == 3
    assert order(shuffle=False) == list(range(50))
    one = list(EpochBatches(60, 12, seed=3))
    three = [list(EpochBatches(60, 4, seed=3, rank=rank, world_size=3)) for rank in range(3)]
    for step in range(5):
        assert sorted(one[step]) == sorted(three[0][step] + three[1][step] + three[2][step])
    with pytest.raises(ConfigError, match="2 records for 3 devices"):
        EpochBatches(2, 1, world_size=3)


def test_batches_of_a_window_of_shards(tmp_path):
    source = open_records(write_shards(tmp_path / "records", sizes=(4, 4, 4)), "train")
    dataset = build_dataset(source, size=8)
    batches = list(dataset.batches(batch_size=4, epoch=0, shuffle_shards=1))
    # One shard after another, each shuffled.
    assert sorted(sorted(batch["indices"].tolist()) for batch in batches) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    everything = [batch["indices"].tolist() for batch in dataset.batches(batch_size=4, epoch=0, shuffle_shards=3)]
    assert everything == [batch["indices"].tolist() for batch in dataset.batches(batch_size=4, epoch=0)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_students_own_views_cover_the_boxes_of_the_records(tmp_path, num_workers):
    boxes = np.array([[0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    data = write_color_shards(tmp_path / "boxes", sizes=(6,), boxes=boxes)
    policy = CropPolicy(scale=(0.05, 1.0), objects=ObjectCrop(covered=0.5))
    for views in (OwnViews(policy), None):
        with pytest.raises(ConfigError, match="with_boxes=True"):
            source = open_records(data, "train")
            KDDataset(source, views or DrawnViews(policy, 0, source), size=12)
    source = open_records(data, "train", with_boxes=True)
    dataset = build_dataset(source, size=12, policy=policy, seed=3)
    (batch,) = dataset.batches(batch_size=6, epoch=4, shuffle=False, num_workers=num_workers)
    for row in range(6):
        record = source.read_record(0, row)
        np.testing.assert_array_equal(record.boxes, boxes)
        view = sample_view(generator(3, "student view", 4, record.key), policy, 24, 20, boxes=boxes)
        np.testing.assert_array_equal(batch["pixels"][row], apply_view(decode_image(record.encoded), view, 12))


def test_paired_batches_show_two_views_of_a_record(data, view_store):
    """Epoch 1 of pairs is the views 2 and 3 mod 3 of a store, or two draws of a student's own."""
    for dataset in (build_dataset(open_records(data, "train"), size=12, store=view_store), None):
        dataset = dataset or build_dataset(open_records(data, "train"), size=12, class_space=ClassSpace(num_classes=5))
        (items,) = EpochBatches(15, 15, epoch=1, paired=True)
        records, partners = items[:15], items[15:]
        (batch,) = Loader(dataset, EpochBatches(15, 15, epoch=1, paired=True))
        own = dataset.read_batch([index for index, _ in records], 2)
        other = dataset.read_batch([index for index, _ in partners], 3)
        for name, tensor in batch.items():
            assert torch.equal(tensor, torch.cat([own[name], other[name]])), name
        place = [index for index, _ in partners].index(records[0][0])
        assert not torch.equal(batch["pixels"][0], batch["pixels"][15 + place]), "one record, two views"


def test_epoch_e_shows_view_e_mod_v_with_its_logits(data, view_store):
    source = open_records(data, "train")
    dataset = build_dataset(source, size=12, store=view_store)
    assert dataset.views.is_replay and dataset.num_classes == 5
    for epoch in (0, 2, 4):
        batch = dataset.read_batch([3, 11], epoch)
        assert batch["pixels"].shape == (2, 12, 12, 3) and batch["pixels"].dtype == torch.uint8
        for position, (shard, row) in enumerate([(0, 3), (1, 2)]):
            record = source.read_record(shard, row)
            view = view_store.read_views(shard, epoch % 3, [row])[0]
            np.testing.assert_array_equal(batch["pixels"][position], apply_view(decode_image(record.encoded), view, 12))
            logits = view_store.read_logits(shard, epoch % 3, [row])[0]
            np.testing.assert_array_equal(batch["teacher_logits"][position], [-np.inf, *logits])
            assert batch["labels"][position] == record.label


@pytest.mark.parametrize("in_memory", [True, False])
def test_memory_of_a_batch_is_free_with_it(data, view_store, in_memory):
    """Without the garbage collector: nothing of a batch refers to itself, or each would take fresh memory."""
    records = open_records(data, "train")
    store, order = view_store, ViewOrder(num_views=2)
    source = RecordsInMemory(records) if in_memory else records
    dataset = KDDataset(source, StoredViews(store, order), StoredLogits([store], order), size=16)
    gc.collect()
    gc.disable()
    try:
        for epoch in range(12):
            dataset.read_arrays(range(len(dataset)), epoch % 2)
        assert len(dataset._buffers._buffers) <= 3  # of the pixels, the bytes read, and the pool's first
        assert gc.collect() < 50
    finally:
        gc.enable()


def test_center_logits_stay_and_the_students_crops_change(tmp_path, data):
    store = write_store(tmp_path / "center", data, num_classes=4)
    dataset = build_dataset(open_records(data, "train"), size=12, store=store, seed=1)
    first, again, second = (dataset.read_batch([0, 1, 14], epoch) for epoch in (0, 0, 1))
    assert torch.equal(first["pixels"], again["pixels"]) and not torch.equal(first["pixels"], second["pixels"])
    assert torch.equal(first["teacher_logits"], second["teacher_logits"])
    other_seed = build_dataset(open_records(data, "train"), size=12, store=store, seed=2).read_batch([0, 1, 14], 0)
    assert not torch.equal(first["pixels"], other_seed["pixels"])


def test_records_logits_equal_the_stores(tmp_path, data):
    store = write_store(tmp_path / "center", data, num_classes=4)
    merge(MergeConfig(store=store.path, data=data, out=tmp_path / "merged", num_workers=1))
    from_store = build_dataset(open_records(data, "train"), size=12, store=store).read_batch(range(15), 3)
    merged = open_records(tmp_path / "merged", "train")
    from_records = build_dataset(merged, size=12, use_record_logits=True).read_batch(range(15), 3)
    assert from_store.keys() == from_records.keys()
    assert all(torch.equal(from_store[name], from_records[name]) for name in from_store)


def test_a_student_without_background(data, view_store):
    dataset = build_dataset(
        open_records(data, "train"), size=8, store=view_store, class_space=ClassSpace(num_classes=4, offset=1)
    )
    batch = dataset.read_batch([0, 5], 0)
    assert batch["teacher_logits"].shape == (2, 4) and torch.isfinite(batch["teacher_logits"]).all()
    assert batch["labels"].tolist() == [0, 1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_gives_the_same_batches_whatever_the_workers(data, view_store, num_workers):
    dataset = build_dataset(open_records(data, "train"), size=8, store=view_store, seed=4)
    loader = dataset.batches(batch_size=4, epoch=1, seed=4, num_workers=num_workers)
    batches = list(loader)
    expected = [dataset.read_batch([i for i, _ in items], 1) for items in EpochBatches(15, 4, seed=4, epoch=1)]
    assert len(batches) == len(expected) == 4
    for found, wanted in zip(batches, expected, strict=True):
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_evaluation_batches(data):
    source = open_records(data, "train")
    preprocessing = Preprocessing(size_px=16, resize_px=18)
    dataset = EvalDataset(source, preprocessing, ClassSpace(num_classes=5))
    (batch,) = dataset.batches(batch_size=20)
    assert batch["pixels"].shape == (15, 16, 16, 3)
    ranks = [dataset.batches(batch_size=4, rank=rank, world_size=2, num_workers=1) for rank in range(2)]
    seen = [batch["indices"] for rank in ranks for batch in rank]
    assert sorted(torch.cat(seen).tolist()) == list(range(15)) and len(seen) == 4
    expected = preprocessing.apply(decode_image(source.read_record(1, 5).encoded))
    np.testing.assert_array_equal(batch["pixels"][14], expected)


def test_a_dataloader_takes_the_loader_and_not_the_dataset(data):
    """A record has its view by the epoch, which a DataLoader that draws records itself does not know."""
    source = open_records(data, "train")
    dataset = build_dataset(source, size=8)
    validation = EvalDataset(source, Preprocessing(size_px=8), ClassSpace(num_classes=5))
    for loader in (dataset.batches(batch_size=4, epoch=1), validation.batches(batch_size=4)):
        with pytest.raises(ConfigError, match=r"^record \d+ without an epoch: .*; use dataset.batches\(...\), which"):
            next(iter(DataLoader(loader.dataset, batch_size=4, shuffle=True)))
        found = list(DataLoader(loader, batch_size=None))
        assert len(found) == len(loader) == 4
        for batch, expected in zip(found, loader, strict=True):
            assert all(torch.equal(batch[name], expected[name]) for name in expected)
    sampler = EpochBatches(15, 4, epoch=1)
    found = list(DataLoader(dataset, batch_sampler=sampler, collate_fn=dict))
    assert [batch["indices"].tolist() for batch in found] == [[index for index, _ in items] for items in sampler]


def test_records_that_are_not_there_are_refused(data):
    source = open_records(data, "train")
    dataset = build_dataset(source, size=8)
    for wrong in (-1, 15):
        with pytest.raises(ConfigError, match=f"^record {wrong}: expected 0 to 14"):
            dataset.read_batch([3, wrong], 0)
    with pytest.raises(ConfigError, match=r"^a batch of no records"):
        dataset.read_batch([], 0)
    with pytest.raises(ConfigError, match=r"^a batch of no records"):
        dataset.read_items([])
    for not_numbers in (np.arange(15) == 2, [False, False, True], [0.5, 2.0], np.array([1.0])):
        for read in (dataset.read_batch, dataset.read_arrays):
            with pytest.raises(TypeError, match=r"expected record numbers \(of a mask: np.flatnonzero\(mask\)\)"):
                read(not_numbers, 0)
    with pytest.raises(TypeError, match="expected record numbers"):
        EvalDataset(source, Preprocessing(size_px=8), ClassSpace(num_classes=5)).read_items([(0.5, 0)])
    for numbers in (np.array([3, 14], np.uint64), [3, 14], range(3, 15, 11)):
        assert dataset.read_batch(numbers, 0)["indices"].tolist() == [3, 14]
    with pytest.raises(ConfigError, match=r"^num_workers -1: expected 0 or more"):
        dataset.batches(batch_size=4, epoch=0, num_workers=-1)


def test_an_image_that_changed_since_extraction_is_refused(data, view_store):
    change_image(data / "train-00000-of-00002", 1)
    dataset = build_dataset(open_records(data, "train"), size=8, store=view_store)
    dataset.read_batch([0, 2], 0)
    with pytest.raises(StoreError, match=r"record 1 \(byte \d+\): key .*changed since extraction"):
        dataset.read_batch([1], 0)


def test_a_store_of_other_data_is_refused_at_once(tmp_path, view_store):
    more = open_records(write_color_shards(tmp_path / "more", sizes=(9, 8)), "train")
    with pytest.raises(StoreError, match=r"15 of 17 records are in the store; 2 are not \(first: image_15\.jpg\)"):
        build_dataset(more, size=8, store=view_store)


def test_some_of_the_records_in_other_shards(tmp_path, data, view_store):
    """Each has its own view and logits, wherever it lies."""
    fewer = open_records(write_color_shards(tmp_path / "fewer", sizes=(4, 6, 3)), "train")
    some = build_dataset(fewer, size=8, store=view_store).read_batch(range(13), 1)
    expected = build_dataset(open_records(data, "train"), size=8, store=view_store).read_batch(range(13), 1)
    for name in ("pixels", "teacher_logits", "labels"):
        assert torch.equal(some[name], expected[name])


def test_wrong_records_are_named(tmp_path):
    bad_image = write_shards(tmp_path / "a", sizes=(2,), payloads=[example(0, 1), example(1, 1, encoded=b"text")])
    with pytest.raises(ImageError, match="train-00000-of-00001 record 1"):
        build_dataset(open_records(bad_image, "train"), size=8).read_batch([0, 1], 0)
    labels = write_shards(tmp_path / "b", sizes=(1,), num_classes=None, payloads=[example(0, 7)])
    with pytest.raises(RecordError, match="label 7, expected 0 to 3; give --num-classes or --offset that fit"):
        build_dataset(open_records(labels, "train"), size=8, class_space=ClassSpace(num_classes=4)).read_batch([0], 0)
    with pytest.raises(RecordError, match="label 7, expected 0 to 6; if labels count from 1, give --label-offset -1,"):
        build_dataset(open_records(labels, "train"), size=8, class_space=ClassSpace(num_classes=7)).read_batch([0], 0)
    with pytest.raises(RecordError, match="label 7, expected 1 to 6; give --num-classes"):
        space = ClassSpace(num_classes=6, offset=1)
        build_dataset(open_records(labels, "train"), size=8, class_space=space).read_batch([0], 0)
    with pytest.raises(ConfigError, match="number of classes is unknown"):
        build_dataset(open_records(labels, "train"), size=8)
    gap = open_records(write_shards(tmp_path / "g", sizes=(2,), payloads=[example(0, 1), example(1, -1)]), "train",
                       RecordOptions(label_feature="image/class/label"))  # fmt: skip
    gap.labeled = "all"  # by the records that were asked
    with pytest.raises(RecordError, match=r"record 1 .*: has no label, expected 0 to 3 as other records of the split"):
        build_dataset(gap, size=8).read_batch([0, 1], 0)
    without = write_shards(tmp_path / "c", sizes=(1,))
    with pytest.raises(LogitsError, match="no image/logit"):
        build_dataset(open_records(without, "train"), size=8, use_record_logits=True).read_batch([0], 0)


@pytest.mark.parametrize("num_classes", [4, None])
def test_logits_of_another_class_count_are_refused(tmp_path, num_classes):
    logit = np.zeros(3, np.float32)
    data = write_shards(tmp_path / "d", sizes=(1,), num_classes=num_classes, payloads=[example(0, 1, logit=logit)])
    dataset = build_dataset(
        open_records(data, "train"), size=8, use_record_logits=True, class_space=ClassSpace(num_classes=4)
    )
    with pytest.raises(LogitsError, match="3 classes"):
        dataset.read_batch([0], 0)


def test_folders_train_too(tmp_path):
    source = open_records(write_image_folder(tmp_path / "images"), "train")
    dataset = build_dataset(source, size=8, policy=CropPolicy(scale=(1.0, 1.0), ratio=(0.5, 2.0), flip_prob=0.0))
    batch = dataset.read_batch([0, 11], 0)
    assert dataset.num_classes == 3 and batch["labels"].tolist() == [0, 2] and "teacher_logits" not in batch
    image = decode_image(source.read_record(0, 0).encoded)
    assert np.abs(batch["pixels"][0].numpy().astype(int) - np.asarray(image.resize((8, 8), 2)).astype(int)).mean() < 12


@pytest.mark.parametrize(("num_records", "world_size", "sizes"), [(23, 1, [8, 8]), (23, 2, [8]), (5, 1, [5])])
def test_an_incomplete_batch_can_be_left_out(num_records, world_size, sizes):
    ranks = [
        list(EpochBatches(num_records, 8, seed=1, drop_last=True, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for batches in ranks:
        assert [len(batch) for batch in batches] == sizes
    seen = [index for batches in ranks for batch in batches for index, _ in batch]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("batch_size, num_workers", [(4, 0), (5, 2)])
def test_each_record_and_view_as_planned_over_ranks_and_resumption(
    data, view_store, world_size, batch_size, num_workers
):
    """Two runs of V epochs, the second one begun anew at epoch 1 as a resumed run would: the same pairs and pixels."""
    source = open_records(data, "train")
    num_records, num_views = source.num_records, view_store.num_views

    def epoch_pairs(epoch):
        found = {}
        for rank in range(world_size):
            dataset = build_dataset(source, size=8, store=Store(view_store.path), seed=2)
            options = {"rank": rank, "world_size": world_size, "num_workers": num_workers}
            for batch in dataset.batches(batch_size=batch_size, epoch=epoch, **options):
                for row, index in enumerate(batch["indices"].tolist()):
                    assert index not in found, "seen twice"
                    found[index] = (
                        batch["pixels"][row].numpy().tobytes(),
                        batch["teacher_logits"][row].numpy().tobytes(),
                    )
        assert len(found) == num_records, "missed"
        return found

    whole = [epoch_pairs(epoch) for epoch in range(num_views + 1)]
    assert epoch_pairs(1) == whole[1]
    assert whole[num_views] == whole[0] and whole[0] != whole[1]
    dataset = build_dataset(source, size=8, store=view_store)
    for index in range(num_records):
        shard, row = dataset.records.locate(index)
        for view in range(num_views):
            expected = map_logits(
                view_store.read_logits(shard, view, [row]), view_store.class_space, dataset.class_space
            )
            assert whole[view][index][1] == expected.tobytes()


def test_permuted_views_go_through_all_of_them(data, view_store):
    dataset = build_dataset(open_records(data, "train"), size=8, store=view_store, view_order="permuted", seed=1)
    num_views = view_store.num_views
    order = [dataset.views.number_of(epoch) for epoch in range(20 * num_views)]
    cycles = [tuple(order[start : start + num_views]) for start in range(0, len(order), num_views)]
    assert all(sorted(cycle) == list(range(num_views)) for cycle in cycles) and len(set(cycles)) > 1
    other = build_dataset(open_records(data, "train"), size=8, store=view_store, view_order="permuted", seed=2)
    assert [other.views.number_of(epoch) for epoch in range(len(order))] != order


def test_several_stores_give_their_logits_for_the_same_pixels(tmp_path, data, view_store):
    teacher = write_color_teacher(tmp_path / "second.onnx", order=[1, 0, 2, 3])
    second = tmp_path / "second"
    extract(
        ExtractConfig(data=data, teacher=teacher, out=second, views_of=view_store.path, device="cpu", gate_samples=0)
    )
    source = open_records(data, "train")
    batch = build_dataset(source, size=8, store=[view_store, second]).read_batch([0, 3], 1)
    alone = build_dataset(source, size=8, store=view_store).read_batch([0, 3], 1)
    other = build_dataset(source, size=8, store=second).read_batch([0, 3], 1)
    assert torch.equal(batch["pixels"], alone["pixels"]) and torch.equal(alone["pixels"], other["pixels"])
    assert torch.equal(batch["teacher_logits"], torch.stack([alone["teacher_logits"], other["teacher_logits"]], dim=1))
    # The second teacher has the classes 0 and 1 swapped.
    swapped = alone["teacher_logits"][:, [0, 2, 1, 3, 4]]
    torch.testing.assert_close(other["teacher_logits"], swapped, atol=0.1, rtol=0)


def test_stores_of_other_views_are_not_averaged(tmp_path, data, view_store):
    teacher = write_color_teacher(tmp_path / "t.onnx")
    common = {"data": data, "teacher": teacher, "policy": "crop", "views": 3, "device": "cpu", "gate_samples": 0}
    extract(ExtractConfig(out=tmp_path / "other", seed=99, **common))
    with pytest.raises(StoreError, match=r"policy\.seed there 0, here 99: they cannot be averaged"):
        build_dataset(open_records(data, "train"), size=8, store=[view_store, tmp_path / "other"])
    # Plans that agree and views that do not: the columns are compared as they are read.
    extract(ExtractConfig(out=tmp_path / "same", views_of=view_store.path, data=data, teacher=teacher, device="cpu"))
    same = Store(tmp_path / "same")
    other_views = [Store(tmp_path / "other").read_views(0, view, slice(None)) for view in range(3)]
    logits = np.stack([same.read_logits(0, view, slice(None)) for view in range(3)])
    forge_views(same.path, 0, logits, other_views)
    dataset = build_dataset(open_records(data, "train"), size=8, store=[view_store, Store(tmp_path / "same")])
    with pytest.raises(
        StoreError, match=r"view 0 of .*train-0.* differs from that of .*\(box.*extract with --views-of"
    ):
        dataset.read_batch([0], 0)


@pytest.fixture
def mixed_store(tmp_path, data):
    teacher = write_color_teacher(tmp_path / "t.onnx")
    out = tmp_path / "mixed"
    options = {"policy": "crop", "views": 2, "cutmix_alpha": 1.0, "mix_prob": 0.7, "device": "cpu", "gate_samples": 0}
    extract(ExtractConfig(data=data, teacher=teacher, out=out, **options))
    return Store(out)


def test_mixed_views_bring_both_labels_and_the_share(data, mixed_store):
    store, source = mixed_store, open_records(data, "train")
    dataset = build_dataset(source, size=16, store=store)
    batch = dataset.read_batch(range(len(dataset)), 1)
    shares = batch["shares"].tolist()
    assert 0 < sum(share < 1 for share in shares) < len(shares)
    for index, share in enumerate(shares):
        shard, row = dataset.records.locate(index)
        (view,) = store.read_views(shard, 1, [row])
        (_, partner), *_ = [(shard, row)] if view.mix is None else store.locations_of(view.mix.partner)
        assert batch["partner_labels"][index] == source.read_record(shard, partner).label
        assert share == (1.0 if view.mix is None else np.float32(view.mix.share))
        assert batch["labels"][index] == source.read_record(shard, row).label


def test_logits_of_mixed_images_stand_beside_their_own_views_alone(data, mixed_store):
    """Of two images beside the pixels of one, or of one beside two: nobody said that of what the student is shown."""
    source = open_records(data, "train")
    redrawn = DrawnViews(mixed_store.policy, mixed_store.seed + 1, source)
    for views in (OwnViews(CropPolicy()), DrawnViews(CropPolicy(), 0, source), redrawn):
        for other_views in (False, True):
            with pytest.raises(
                ConfigError, match=rf"^{mixed_store.path}: its views are mixed with other images.*; give"
            ):
                KDDataset(source, views, StoredLogits([mixed_store], other_views=other_views), size=8)
    for views in (StoredViews(mixed_store), redrawn):
        with pytest.raises(ConfigError, match=r"views are mixed with other images, and the records' logits are of one"):
            KDDataset(source, views, RecordLogits(), size=8)


def test_an_online_teachers_views_are_those_of_an_extraction(data, view_store):
    """Same seed and policy, view e for epoch e; the teacher's pixels at its own size."""
    source = open_records(data, "train")
    teacher = Preprocessing(size_px=24)
    online = build_dataset(source, size=8, policy=view_store.policy, online=teacher, view_seed=view_store.seed)
    stored, large = (build_dataset(source, size=size, store=view_store) for size in (8, 24))
    for epoch in range(view_store.num_views):
        batch = online.read_batch([0, 5], epoch)
        assert torch.equal(batch["pixels"], stored.read_batch([0, 5], epoch)["pixels"])
        assert torch.equal(batch["teacher_pixels"], large.read_batch([0, 5], epoch)["pixels"])
    assert "teacher_pixels" not in build_dataset(source, size=24, online=teacher).read_batch([0], 0)


def test_logits_of_other_views_than_the_replayed_ones_are_refused(data, view_store):
    source, again = open_records(data, "train"), Store(view_store.path)
    with pytest.raises(ConfigError, match="open the store once and use it for views and logits"):
        KDDataset(source, StoredViews(again), StoredLogits([view_store]), size=8)
    permuted = ViewOrder(num_views=view_store.num_views, kind="permuted", seed=1)
    with pytest.raises(ConfigError, match="views and logits have different view orders"):
        KDDataset(source, StoredViews(view_store, permuted), StoredLogits([view_store]), size=8)
    # Which goes through two views one by one in its first three cycles.
    later, one_by_one = ViewOrder(num_views=2, kind="permuted", seed=1), ViewOrder(num_views=2)
    with pytest.raises(ConfigError, match="views and logits have different view orders"):
        KDDataset(source, StoredViews(view_store, later), StoredLogits([view_store], one_by_one), size=8)
    KDDataset(source, StoredViews(view_store, permuted), StoredLogits([view_store], permuted), size=8)
    KDDataset(source, OwnViews(CropPolicy()), StoredLogits([view_store], permuted, other_views=True), size=8)
    with pytest.warns(UserWarning, match=r"its logits are of the views that it has, and the student gets others; give"):
        KDDataset(source, OwnViews(CropPolicy()), StoredLogits([view_store]), size=8)


def test_an_order_of_views_that_the_store_does_not_have_is_refused_at_once(view_store):
    """Not in the epoch that shows the first of them."""
    more = ViewOrder(num_views=4)
    for source in (StoredViews, StoredLogits):
        with pytest.raises(ConfigError, match=rf"^{view_store.path}: an order of 4 views, expected at most 3, which"):
            source(view_store, more)
        assert source(view_store, ViewOrder(num_views=2)).order.num_views == 2
    with pytest.raises(ConfigError, match="an order of 3 views, expected at most 2"):
        StoredLogits([view_store, Store(view_store.path, num_views=2)], ViewOrder(num_views=3))


def test_a_sparse_store_must_know_the_temperature(tmp_path, data):
    teacher = write_color_teacher(tmp_path / "t.onnx")
    extract(ExtractConfig(data=data, teacher=teacher, out=tmp_path / "s", codec="topk", topk=2, device="cpu"))
    source = open_records(data, "train")
    assert "teacher_logits" not in build_dataset(source, size=8, store=tmp_path / "s", as_stored=True).read_batch(
        [0], 0
    )
    datasets = [build_dataset(source, size=8, store=tmp_path / "s", temperature=t) for t in (1.0, 4.0)]
    one, four = (dataset.read_batch(range(len(dataset)), 0) for dataset in datasets)
    assert not torch.equal(one["teacher_logits"], four["teacher_logits"])
