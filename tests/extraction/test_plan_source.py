"""Data that has grown: what is missing is extracted, what is there is not touched, and all of it is trained from."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from teachonce.errors import PlanMismatchError
from teachonce.extraction import plan_source
from teachonce.extraction.config import ExtractConfig, VerifyConfig
from teachonce.extraction.extract import extract
from teachonce.extraction.plan_source import PlanSource
from teachonce.extraction.verify import verify
from teachonce.models import classifier
from teachonce.records.discovery import open_records
from teachonce.store.plan_files import read_plan
from teachonce.store.store import Store
from tests.support.grown_data import OPTIONS, by_key, check_kept, check_same_content, check_trains, run
from tests.support.small_data import (
    rewrite_shard,
    write_as_folder,
    write_shards,
    write_store,
)
from tests.support.small_models import COLORS, color_example, write_color_shards
from tests.support.small_stores import read_tree


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Filenames of the records that extraction rendered for the teacher, once for each view."""
    from teachonce.extraction import unit_result

    seen: Counter[str] = Counter()
    real = unit_result.UnitResult.add_record

    def add_record(self, row, record, views, hashes):
        seen[record.filename] += len(views)
        real(self, row, record, views, hashes)

    monkeypatch.setattr(unit_result.UnitResult, "add_record", add_record)
    return seen


@pytest.fixture
def rows_asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each batch that a teacher was asked."""
    rows: list[int] = []
    real = classifier.Classifier.logits

    def logits(self, images):
        rows.append(len(images))
        return real(self, images)

    monkeypatch.setattr(classifier.Classifier, "logits", logits)
    return rows


def add_shard(data: Path, count: int, first_index: int, name: str) -> Path:
    """One more shard of so many images of the colors."""
    payloads = [
        color_example(index, 1 + index % len(COLORS), COLORS[index % len(COLORS)])
        for index in range(first_index, first_index + count)
    ]
    more = write_shards(data.parent / f"more-{first_index}", (count,), num_classes=None, payloads=payloads)
    return (more / "train-00000-of-00001").rename(data / name)


def rename_shards(data: Path, old: int, new: int) -> None:
    for index in range(old):
        (data / f"train-{index:05d}-of-{old:05d}").rename(data / f"train-{index:05d}-of-{new:05d}")
    for path in data.glob("*.idx"):
        path.unlink()


def test_shards_that_were_appended(tmp_path, teacher, asked, rows_asked, capsys):
    data = write_color_shards(tmp_path / "data", sizes=(9, 6))
    out = tmp_path / "store"
    run(data, teacher, out)
    before = read_tree(out)
    rename_shards(data, 2, 3)
    add_shard(data, 5, 100, "train-00002-of-00003")
    asked.clear()
    rows_asked.clear()
    store = run(data, teacher, out)
    assert "the data has changed: 5 new records in 1 shard\n" in capsys.readouterr().err
    assert asked == {f"image_{index}.jpg": 3 for index in range(100, 105)}
    # Two views of 5 records in two batches of 8, the third in one; when it is loaded a teacher is asked once.
    assert rows_asked[1:] == [8, 8, 8]
    check_kept(out, before)
    assert store.num_records == 20 and [count for _, count in store.shards] == [9, 6, 5]
    assert store.shards[2][0] == "train-00002-of-00003.p001"
    check_same_content(store, run(data, teacher, tmp_path / "scratch"))
    check_trains(store, data)
    verdict = verify(VerifyConfig(store=out, data=data, device="cpu"))
    assert verdict.is_sound, verdict.reason
    # The same command again makes nothing, and the data of the beginning is still known.
    before = read_tree(out)
    asked.clear()
    run(data, teacher, out)
    assert not asked and read_tree(out) == before
    # More views of all of it.
    more = run(data, teacher, out, views=5)
    assert more.num_views == 5 and sum(asked.values()) == 20 * 2
    check_kept(out, before)
    check_same_content(more, run(data, teacher, tmp_path / "scratch", views=5))
    check_trains(more, data)


def test_it_grows_again_and_again(tmp_path, teacher, asked):
    data = write_color_shards(tmp_path / "data", sizes=(4,))
    out = tmp_path / "store"
    run(data, teacher, out)
    for step in range(1, 4):
        rename_shards(data, step, step + 1)
        add_shard(data, 2 + step, 100 * step, f"train-{step:05d}-of-{step + 1:05d}")
        before = read_tree(out)
        asked.clear()
        store = run(data, teacher, out, views=3 + step)
        check_kept(out, before)
        assert len(store.plan.parts) == step + 1 and store.num_views == 3 + step
        assert asked == {
            store.read_filename(shard, row): (3 + step if shard == step else 1)
            for shard, (_, count) in enumerate(store.shards)
            for row in range(count)
        }
    assert store.num_records == 4 + 3 + 4 + 5
    check_same_content(store, run(data, teacher, tmp_path / "scratch", views=6))
    assert verify(VerifyConfig(store=out, data=data, device="cpu")).is_sound


def test_a_folder_with_images_that_came_and_went(tmp_path, teacher, asked, monkeypatch, capsys):
    monkeypatch.setattr("teachonce.records.image_folder.FOLDER_SHARD_RECORDS", 6)
    shards = write_color_shards(tmp_path / "shards", sizes=(15,))
    images = write_as_folder(open_records(shards, "train"), tmp_path / "images")
    out = tmp_path / "store"
    run(images, teacher, out)
    before = read_tree(out)
    more = write_color_shards(tmp_path / "more", sizes=(6,), first_index=200)
    write_as_folder(open_records(more, "train"), images)
    # One of the old images goes, one moves into another folder and gets another name.
    gone = images / "train" / "class2" / "image_2.jpg"
    key_gone = next(r.key for r in open_records(shards, "train").iter_shard(0) if r.filename == "image_2.jpg")
    gone.unlink()
    (images / "train" / "class1" / "image_5.jpg").rename(images / "train" / "class1" / "zzz.jpg")
    asked.clear()
    store = run(images, teacher, out)
    assert "6 new records in " in (text := capsys.readouterr().err) and "; 1 that the store has are not in" in text
    assert sum(asked.values()) == 6 * 3 and all("image_20" in name for name in asked)
    check_kept(out, before)
    assert store.num_records == 21 and store.locations_of(key_gone)
    scratch = run(images, teacher, tmp_path / "scratch")
    assert scratch.num_records == 20
    found, expected = by_key(store), by_key(scratch)
    assert set(found) == {*expected, key_gone}
    for key, (*views, label, _) in expected.items():
        assert found[key][-2] == label
        for (view, logits), (other_view, other_logits) in zip(views, found[key], strict=False):
            assert view == other_view
            np.testing.assert_allclose(logits, other_logits, atol=1e-5)
    check_trains(store, images)
    verdict = verify(VerifyConfig(store=out, data=images, device="cpu"))
    assert verdict.is_sound, verdict.reason
    # A record that is gone gets no more views: that is said, and nothing is lost.
    before = read_tree(out)
    with pytest.raises(PlanMismatchError, match=r"1 images of the store are not in the data any more"):
        run(images, teacher, out, views=4)
    check_kept(out, before)
    assert Store(out).num_views == 3
    write_as_folder(open_records(shards, "train"), images)
    assert run(images, teacher, out, views=4).num_views == 4


def test_only_removed_records_are_nothing_to_do(tmp_path, teacher, asked, capsys):
    data = write_color_shards(tmp_path / "data", sizes=(9, 6))
    run(data, teacher, tmp_path / "store")
    before = read_tree(tmp_path / "store")
    rewrite_shard(data / "train-00000-of-00002", lambda payloads: payloads[:7])
    asked.clear()
    store = run(data, teacher, tmp_path / "store")
    assert "0 new records in 0 shards; 2 that the store has are not in the data" in capsys.readouterr().err
    assert not asked and store.num_records == 15 and read_tree(tmp_path / "store") == before
    check_trains(store, data)


def test_records_in_other_shards_are_not_asked_again(tmp_path, teacher, asked):
    data = write_color_shards(tmp_path / "data", sizes=(9, 6))
    run(data, teacher, tmp_path / "store")
    other = write_color_shards(tmp_path / "other", sizes=(2, 12, 1))
    before = read_tree(tmp_path / "store")
    asked.clear()
    store = run(other, teacher, tmp_path / "store")
    assert not asked and read_tree(tmp_path / "store") == before
    # More views of them: in the shards and rows of the store.
    store = run(other, teacher, tmp_path / "store", views=5)
    assert sum(asked.values()) == 2 * 15
    check_kept(tmp_path / "store", before)
    check_same_content(store, run(data, teacher, tmp_path / "scratch", views=5))


def test_a_killed_growth_goes_on(tmp_path, teacher, asked):
    """After the plan was written, and after a part of the files."""
    data = write_color_shards(tmp_path / "data", sizes=(9, 6))
    out = tmp_path / "store"
    run(data, teacher, out)
    rename_shards(data, 2, 4)
    add_shard(data, 5, 100, "train-00002-of-00004")
    add_shard(data, 4, 200, "train-00003-of-00004")
    run(data, teacher, out)
    complete = read_tree(out)
    for name in ("train-00003-of-00004.p001.v000-001.arrow", "train-00002-of-00004.p001.records.arrow"):
        shutil.rmtree(out)
        out.mkdir()
        for file, content in complete.items():
            if ".001." not in file or file == "plan.001.json":
                (out / file).write_bytes(content)
        assert Store(out, is_partial=True).num_records == 15
        (out / name).unlink()
        asked.clear()
        store = run(data, teacher, out)
        assert store.num_records == 24 and 0 < sum(asked.values()) < 9 * 3
        assert read_tree(out) == complete


def test_a_growth_that_was_killed_before_its_last_manifest(tmp_path, teacher, asked):
    """All files are there, and readers do not see them yet."""
    data = write_color_shards(tmp_path / "data", sizes=(9, 6))
    out = tmp_path / "store"
    run(data, teacher, out)
    rename_shards(data, 2, 3)
    add_shard(data, 5, 100, "train-00002-of-00003")
    run(data, teacher, out)
    complete = read_tree(out)
    for name in ("manifest.v002-002.001.json", "manifest.records.001.json"):
        (out / name).unlink()
        assert Store(out).num_records == 15
        asked.clear()
        assert run(data, teacher, out).num_records == 20
        assert not asked and read_tree(out) == complete


def test_more_views_of_an_image_that_was_given_another_label(tmp_path, teacher):
    """The store keeps the label that it had, in what it counts too."""
    data = write_color_shards(tmp_path / "data", sizes=(9, 6))
    out = tmp_path / "store"
    run(data, teacher, out)
    relabeled = [color_example(index, 3 if index == 4 else 1 + index % 4, COLORS[index % 4]) for index in range(15)]
    write_shards(data, (9, 6), num_classes=5, payloads=relabeled)
    for path in data.glob("*.idx"):
        path.unlink()
    store = run(data, teacher, out, views=5)
    assert store.num_views == 5 and store.read_labels(0)[4] == 1
    with pytest.warns(UserWarning, match=r"1 of 15 sampled images .* have another label"):
        verdict = verify(VerifyConfig(store=out, data=data, device="cpu"))
    assert verdict.is_sound, verdict.reason


def test_workers_share_what_was_added(tmp_path, teacher):
    data = write_color_shards(tmp_path / "data", sizes=(4, 4))
    out = tmp_path / "store"
    run(data, teacher, out)
    rename_shards(data, 2, 5)
    for index in range(2, 5):
        add_shard(data, 3, 100 * index, f"train-{index:05d}-of-00005")
    shutil.copytree(out, tmp_path / "alone")
    run(data, teacher, tmp_path / "alone")
    for index in (2, 0, 1):
        config = ExtractConfig(data=data, teacher=teacher, out=out, batch_size=8, worker=f"{index}/3", **OPTIONS)
        assert extract(config)
    assert read_tree(out) == read_tree(tmp_path / "alone")


def test_mixed_views_of_records_that_were_added(tmp_path, teacher):
    """Partners of new records are new records of their shard; those of the old ones stay."""
    data = write_color_shards(tmp_path / "data", sizes=(9, 6))
    out = tmp_path / "store"
    run(data, teacher, out, mixup_alpha=1.0)
    rename_shards(data, 2, 3)
    add_shard(data, 5, 100, "train-00002-of-00003")
    store = run(data, teacher, out, mixup_alpha=1.0)
    keys = set(store.read_keys(2).tolist())
    mixes = [view.mix for number in range(3) for view in store.read_views(2, number, slice(None))]
    assert all(mix is not None and mix.partner in keys for mix in mixes)
    check_same_content(store, run(data, teacher, tmp_path / "scratch", mixup_alpha=1.0))
    check_trains(store, data)
    assert verify(VerifyConfig(store=out, data=data, device="cpu")).is_sound


def test_equal_images_that_were_added_keep_their_own_labels(tmp_path, teacher):
    """One image twice, under two labels: each has a row of its own."""
    data = write_color_shards(tmp_path / "data", sizes=(4,))
    out = tmp_path / "store"
    run(data, teacher, out)
    rename_shards(data, 1, 2)
    add_shard(data, 1, 100, "train-00001-of-00002")
    twice = [color_example(100, 1, COLORS[0]), color_example(100, 3, COLORS[0])]
    rewrite_shard(data / "train-00001-of-00002", lambda payloads: twice)
    store = run(data, teacher, out)
    assert store.read_keys(1)[0] == store.read_keys(1)[1] and store.read_labels(1).tolist() == [1, 3]


def test_a_grown_store_is_repaired_though_its_first_index_and_later_records_are_damaged(tmp_path, teacher):
    data = write_color_shards(tmp_path / "data", sizes=(4,))
    run(data, teacher, tmp_path / "store")
    rename_shards(data, 1, 2)
    add_shard(data, 3, 500, "train-00001-of-00002")
    store = run(data, teacher, tmp_path / "store")
    before = read_tree(store.path)
    for name in ("index.arrow", f"{store.shards[1][0]}.records.arrow"):
        raw = bytearray((store.path / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (store.path / name).write_bytes(raw)
    run(data, teacher, tmp_path / "store", repair=True)
    assert read_tree(store.path) == before


def test_a_training_goes_on_with_the_records_that_it_began_with(tmp_path, teacher):
    """Though the store has grown since: a later part is as if it were not there."""
    data = write_color_shards(tmp_path / "data", sizes=(4,))
    first = run(data, teacher, tmp_path / "store")
    fingerprint = first.fingerprint
    shutil.copytree(data, tmp_path / "more")
    rename_shards(tmp_path / "more", 1, 2)
    add_shard(tmp_path / "more", 3, 500, "train-00001-of-00002")
    grown = run(tmp_path / "more", teacher, tmp_path / "store")
    assert (grown.num_parts, grown.num_records) == (2, 7) and grown.fingerprint != fingerprint
    store = Store(tmp_path / "store", num_parts=1)
    assert (store.num_parts, store.num_records, store.fingerprint) == (1, 4, fingerprint)
    check_trains(store, data)


def test_the_places_of_few_shards_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight bytes a record, and of the shards that were read last alone."""
    data = write_shards(tmp_path / "data", sizes=(5, 3, 4))
    write_store(tmp_path / "store", data)
    plan = read_plan(tmp_path / "store")
    monkeypatch.setattr(plan_source, "KEPT_SHARDS", 2)
    source = PlanSource(tmp_path / "store", plan, open_records(data, "train"))
    for _ in range(2):
        for shard, (_, count) in enumerate(plan.shards):
            assert [record.key for record in source.iter_shard(shard)] == source.known_keys(shard).tolist()
            assert source.read_batch([(shard, count - 1)])[0].key == source.known_keys(shard)[-1]
    assert list(source._found) == [1, 2]
    assert {(places.dtype, places.nbytes) for places in source._found.values()} == {
        (np.dtype(np.uint32), 8 * 3),
        (np.dtype(np.uint32), 8 * 4),
    }
    located = []
    monkeypatch.setattr(source, "_locate_shard", lambda shard: located.append(shard) or real(shard))
    real = PlanSource._locate_shard.__get__(source)
    source.read_batch([(shard, 0) for shard in (0, 1, 2, 0, 1, 2)])
    assert len(located) <= 3, "once a batch"
