"""Replay: every model sees through a view what was drawn, at any size; partners are found, checked and seen."""

import dataclasses
import io
import warnings

import numpy as np
import pytest

from teachonce.errors import ConfigError, RecordError, StoreError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.pixels.apply_view import apply_view
from teachonce.pixels.decode import decode_image
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.render import RecordView, ViewReader, render_views
from teachonce.pixels.view_sources import DrawnViews, OwnViews, warn_of_own_class_partners
from teachonce.records.discovery import open_records
from teachonce.store.join import StoreJoin
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from teachonce.views.draw import draw_view
from teachonce.views.policy import CenterPolicy, CropPolicy, RandomErasing, RandomMix
from teachonce.views.view import CENTER
from tests.support.small_data import change_image, example, rewrite_shard, write_image_folder, write_shards, write_store
from tests.support.small_models import write_color_shards, write_color_teacher

POLICY = CropPolicy(erasing=RandomErasing(prob=0.5), mix=RandomMix(mixup_alpha=0.8, cutmix_alpha=1.0))


@pytest.fixture
def data(tmp_path):
    return write_color_shards(tmp_path / "data", sizes=(9, 6))


@pytest.fixture
def store(tmp_path, data):
    teacher = write_color_teacher(tmp_path / "teacher.onnx")
    options = {"erase_prob": 0.5, "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "seed": 4}
    extract(
        ExtractConfig(
            data=data,
            teacher=teacher,
            out=tmp_path / "s",
            policy="crop",
            views=3,
            gate_samples=0,
            device="cpu",
            **options,
        )
    )
    return Store(tmp_path / "s")


def read(reader: ViewReader, shard: int, row: int, number: int) -> RecordView:
    (found,) = reader.read([(shard, row)], number)
    return found


def render(seen: RecordView, size_px: int) -> np.ndarray:
    return render_views([seen], Preprocessing(size_px=size_px))[0]


def test_stored_views_are_the_drawn_ones(data, store):
    source = open_records(data, "train")
    drawn, stored = ViewReader(source, DrawnViews(POLICY, 4, source)), ViewReader(source, StoredViews(store))
    num_mixed = 0
    for shard, row, number in [(s, r, n) for s in range(2) for r in range(6) for n in range(3)]:
        a, b = read(drawn, shard, row, number), read(stored, shard, row, number)
        assert a.view == b.view
        num_mixed += a.partner is not None
        for size_px in (8, 20):
            np.testing.assert_array_equal(render(a, size_px), render(b, size_px))
    assert num_mixed > 20


def test_a_mixed_view_shows_the_partners_own_view_without_its_mix(data):
    source = open_records(data, "train")
    keys = np.array(sorted({record.key for record in source.iter_shard(0)}), np.uint64)
    seen = read(ViewReader(source, DrawnViews(POLICY, 4, source)), 0, 2, 1)
    assert seen.partner is not None and seen.view.mix is not None
    partner = next(record for record in source.iter_shard(0) if record.key == seen.view.mix.partner)
    image = decode_image(partner.encoded)
    own = draw_view(POLICY, 4, partner.key, 1, image.width, image.height, keys).without_mix()
    record = source.read_record(0, 2)
    expected = apply_view(decode_image(record.encoded), seen.view, 16, partner_pixels=apply_view(image, own, 16))
    np.testing.assert_array_equal(render(seen, 16), expected)


def test_another_record_or_partner_is_refused(tmp_path, data, store):
    source = open_records(data, "train")
    reader = ViewReader(source, StoredViews(store))
    mixed = next(row for row in range(9) if store.read_views(0, 0, [row])[0].mix is not None)
    ((_, partner_row),) = store.locations_of(store.read_views(0, 0, [mixed])[0].mix.partner)
    assert partner_row != mixed
    read(reader, 0, mixed, 0)
    change_image(data / "train-00000-of-00002", partner_row)
    source = open_records(data, "train")
    reader = ViewReader(source, StoredViews(store))
    with pytest.raises(
        StoreError, match=r"record \d+ .* record \w{16} of the store .* is not in the data but is needed"
    ):
        read(reader, 0, mixed, 0)
    with pytest.raises(StoreError, match="the image has changed since extraction"):
        read(reader, 0, partner_row, 0)


def test_a_drawn_partner_that_changed_meanwhile_is_refused(data):
    source = open_records(data, "train")
    reader = ViewReader(source, DrawnViews(POLICY, 4, source))
    mixed, seen = next((row, seen) for row in range(9) if (seen := read(reader, 0, row, 1)).partner is not None)
    keys = [record.key for record in source.iter_shard(0)]
    change_image(data / "train-00000-of-00002", keys.index(seen.view.mix.partner))
    again = ViewReader(open_records(data, "train"), reader.views)
    with pytest.raises(StoreError, match=r"the mix of .* was made with .*the image has changed since extraction"):
        read(again, 0, mixed, 1)


def test_records_in_another_order_show_the_same_pixels(data, store):
    """The shard is as long as it was, so positions are tried first: for the records, and for their partners."""
    source = open_records(data, "train")
    reader = ViewReader(source, StoredViews(store))
    expected = {}
    for row in range(9):
        seen = read(reader, 0, row, 1)
        expected[seen.record.key] = (seen.view, render(seen, 16))
    assert any(view.mix is not None for view, _ in expected.values())
    rewrite_shard(data / "train-00000-of-00002", lambda payloads: payloads[::-1])
    source = open_records(data, "train")
    reader = ViewReader(source, StoredViews(store))
    keys = []
    for row in range(9):
        seen = read(reader, 0, row, 1)
        keys.append(seen.record.key)
        assert seen.view == expected[seen.record.key][0]
        np.testing.assert_array_equal(render(seen, 16), expected[seen.record.key][1])
    assert keys == list(expected)[::-1]


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(size_px=12, resize_px=14),
        Preprocessing(size_px=12, geometry="central", crop_frac=0.875, interpolation="tf1_bilinear", antialias=False),
    ],
)
def test_center_is_a_view_like_any_other(tmp_path, preprocessing):
    """Stored, drawn or asked of the policy: it is seen through the evaluation preprocessing of the model."""
    data = write_shards(tmp_path / "data", payloads=[example(i, 1) for i in range(8)])
    store = write_store(tmp_path / "center", data)
    source = open_records(data, "train")
    assert store.policy == CenterPolicy() and store.read_views(0, 0, [0, 1]) == [CENTER] * 2
    for views in (StoredViews(store), DrawnViews(store.policy, 0, source)):
        seen = ViewReader(source, views).read([(0, 1), (1, 0)], 0)
        expected = [preprocessing.apply(decode_image(item.record.encoded)) for item in seen]
        assert [item.view for item in seen] == [CENTER, CENTER]
        np.testing.assert_array_equal(render_views(seen, preprocessing), np.stack(expected))


def test_a_view_of_another_image_says_where(tmp_path, data, store):
    source = open_records(data, "train")
    buffer = io.BytesIO()
    record = source.read_record(0, 0)
    decode_image(record.encoded).resize((3, 3)).save(buffer, "PNG")
    tiny = dataclasses.replace(record, encoded=buffer.getvalue())
    reader = ViewReader(source, StoredViews(store))
    (seen,) = reader.views_of(reader.join([(0, 0)], [tiny]), 0)
    with pytest.raises(StoreError, match=r"train-00000-of-00002 record 0.*is outside of the image of 3 x 3"):
        render(seen, 8)


def test_a_drawn_mix_of_an_image_that_changed_says_where(data):
    """Keys of a shard are read once, or cached, and the image later."""
    source = open_records(data, "train")
    reader = ViewReader(source, DrawnViews(POLICY, 4, source))
    for key in (0, 5, 2**64 - 1):
        changed = dataclasses.replace(source.read_record(0, 2), key=key)
        with pytest.raises(
            RecordError, match=rf"train-00000-of-00002 record 2.*: key {key:016x} .*the image was changed"
        ):
            reader.views_of(reader.join([(0, 2)], [changed]), 0)


@pytest.mark.parametrize("per_shard", [4, 12])
def test_partners_of_the_own_class_are_said(tmp_path, monkeypatch, per_shard):
    monkeypatch.setattr("teachonce.records.image_folder.FOLDER_SHARD_RECORDS", per_shard)
    source = open_records(write_image_folder(tmp_path / "images"), "train")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_of_own_class_partners(CropPolicy(), source, "images")
        assert found == []
        warn_of_own_class_partners(POLICY, source, "images")
    if per_shard == 12:
        assert found == []
        return
    (message,) = (str(warning.message) for warning in found)
    assert message.startswith("images: its records are sorted by class") and "\n" not in message
    assert "3 of 3 shards hold one class alone, and 100% of the partners are of the record's own class (27%" in message


def test_a_students_own_views_are_not_mixed():
    """A policy that mixes would be drawn without its mix, and nobody would know."""
    with pytest.raises(ConfigError, match="a student's own views are not mixed; give DrawnViews, or a policy without"):
        OwnViews(CropPolicy(mix=RandomMix(mixup_alpha=1.0)))


def test_records_are_those_of_the_stores_beside_the_views_too(tmp_path, data, store):
    source = open_records(data, "train")
    other = write_store(
        tmp_path / "other", write_shards(tmp_path / "data2", payloads=[example(i, 1) for i in range(8)])
    )
    own = OwnViews(CropPolicy())
    ViewReader(source, own, joins=[StoreJoin(store, source)]).read([(0, 0)], 0)
    with pytest.raises(StoreError, match="0 of 15 records are in the store"):
        StoreJoin(other, source)
    foreign = StoreJoin(other, open_records(tmp_path / "data2", "train"))
    with pytest.raises(StoreError, match=r"record 0 .*: key"):
        ViewReader(source, own, joins=[foreign]).read([(0, 0)], 0)
