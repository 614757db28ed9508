"""Replay: whoever looks through a view sees what was drawn, at any size; partners are found, checked and seen."""

import dataclasses
import io

import numpy as np
import pytest

from teachonce.errors import StoreError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.pixels.apply_view import apply_view
from teachonce.pixels.decode import decode_image
from teachonce.pixels.render_views import DrawnViews, Looker, StoredViews
from teachonce.records.discovery import open_records
from teachonce.store.store import Store
from teachonce.views.draw import draw_view
from teachonce.views.policy import CropPolicy, RandomErasing, RandomMix
from tests.support.small_data import example, write_shards, write_store
from tests.support.small_models import write_colour_shards, write_colour_teacher

POLICY = CropPolicy(erasing=RandomErasing(prob=0.5), mix=RandomMix(mixup_alpha=0.8, cutmix_alpha=1.0))


@pytest.fixture
def data(tmp_path):
    return write_colour_shards(tmp_path / "data", sizes=(9, 6))


@pytest.fixture
def store(tmp_path, data):
    teacher = write_colour_teacher(tmp_path / "teacher.onnx")
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


def test_stored_views_are_the_drawn_ones(data, store):
    source = open_records(data, "train")
    drawn, stored = Looker(source, DrawnViews(POLICY, 4, source)), Looker(source, StoredViews(store))
    num_mixed = 0
    for shard, row, number in [(s, r, n) for s in range(2) for r in range(6) for n in range(3)]:
        a, b = drawn.look(shard, row, number), stored.look(shard, row, number)
        assert a.view == b.view
        num_mixed += a.partner is not None
        for size_px in (8, 20):
            np.testing.assert_array_equal(a.pixels(size_px), b.pixels(size_px))
    assert num_mixed > 20


def test_a_mixed_view_shows_the_partners_own_view_without_its_mix(data):
    source = open_records(data, "train")
    keys = np.array(sorted({record.key for record in source.iter_shard(0)}), np.uint64)
    look = Looker(source, DrawnViews(POLICY, 4, source)).look(0, 2, 1)
    assert look.partner is not None and look.view.mix is not None
    partner = next(record for record in source.iter_shard(0) if record.key == look.view.mix.partner)
    image = decode_image(partner.encoded)
    own = draw_view(POLICY, 4, partner.key, 1, image.width, image.height, keys).without_mix()
    record = source.read_record(0, 2)
    expected = apply_view(decode_image(record.encoded), look.view, 16, partner_pixels=apply_view(image, own, 16))
    np.testing.assert_array_equal(look.pixels(16), expected)


def test_another_record_or_partner_is_refused(tmp_path, data, store):
    source = open_records(data, "train")
    looker = Looker(source, StoredViews(store))
    mixed = next(row for row in range(9) if store.read_views(0, 0, [row])[0].mix is not None)
    partner_row = store.find_row(0, store.read_views(0, 0, [mixed])[0].mix.partner)
    changed = write_colour_shards(tmp_path / "changed", sizes=(9, 6), first_index=100)

    real, other = source.read_record, open_records(changed, "train")
    source.read_batch = lambda places: [(other.read_record if at[1] == partner_row else real)(*at) for at in places]
    with pytest.raises(StoreError, match=r"the mix of .* was made with .*the image changed since extraction"):
        looker.look(0, mixed, 0)
    with pytest.raises(StoreError, match="the image changed since extraction"):
        looker.look(0, partner_row, 0)


def test_a_partner_of_another_shard_is_refused(store):
    other = int(store.read_keys(1)[0])
    with pytest.raises(StoreError, match="which is not in that shard: partners come from the same shard"):
        store.find_row(0, other)


def test_a_store_without_views_has_nothing_to_look_through(tmp_path):
    store = write_store(
        tmp_path / "center", write_shards(tmp_path / "data", payloads=[example(i, 1) for i in range(8)])
    )
    with pytest.raises(StoreError, match="policy center stores no views to look through"):
        StoredViews(store)


def test_a_view_of_another_image_says_where(tmp_path, data, store):
    source = open_records(data, "train")
    buffer = io.BytesIO()
    record = source.read_record(0, 0)
    decode_image(record.encoded).resize((3, 3)).save(buffer, "PNG")
    tiny = dataclasses.replace(record, encoded=buffer.getvalue())
    (look,) = Looker(source, StoredViews(store)).look_all([(0, 0)], 0, [tiny])
    with pytest.raises(StoreError, match=r"train-00000-of-00002 record 0.*does not lie in the image of 3 x 3"):
        look.pixels(8)
