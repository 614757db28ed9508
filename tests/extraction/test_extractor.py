"""Units of extraction: full teacher batches whatever the shard size, and a row's logits do not depend on its batch."""

import dataclasses

import numpy as np
import pytest
import torch

from teachonce.errors import StoreError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extractor import UnitExtractor
from teachonce.extraction.prepare import _num_samples, build_plan
from teachonce.extraction.units import BUNDLE_BATCHES, Unit, all_units, bundle_units
from teachonce.models.classifier import load_model
from teachonce.pixels.render import render_views
from teachonce.records.discovery import open_records
from teachonce.store.begin import begin_store
from teachonce.store.manifests import finalize_store
from teachonce.store.store import Store
from tests.support.small_data import change_image
from tests.support.small_models import write_color_shards, write_color_teacher


def extractor(tmp_path, sizes, batch_size, **options):
    """(UnitExtractor of a recording teacher, list of the batch sizes that it was asked)."""
    data = write_color_shards(tmp_path / "data", sizes=sizes)
    config = ExtractConfig(
        data=data, teacher=write_color_teacher(tmp_path / "t.onnx"), out=tmp_path / "store", codec="float32", **options
    )
    source = open_records(data, "train")
    teacher = load_model(config.teacher)
    asked = []
    forward = teacher.forward

    def recording(images):
        asked.append(len(images))
        return forward(images)

    teacher = dataclasses.replace(teacher, forward=recording)
    plan = begin_store(config.out, build_plan(config, source, teacher), config.views_per_file)
    return UnitExtractor(config.out, plan, source, teacher, batch_size, 2), asked


def test_every_batch_is_full(tmp_path):
    made, asked = extractor(tmp_path, (3, 5, 2, 7, 4), 8, policy="crop", views=2)
    for bundle in bundle_units(made.plan, all_units(made.plan), 8):
        made(bundle)
    assert asked == [8] * 6  # 42 views; the last batch is filled up
    assert finalize_store(tmp_path / "store") == 2


def test_bundles_hold_many_batches_of_one_group():
    class Sizes:
        shards = [("a", 100)] * 7  # a stand-in for a plan's properties
        view_groups = ((0, 0), (1, 2))

    units = [Unit(shard, group) for group in Sizes.view_groups for shard in range(7)]
    bundles = bundle_units(Sizes, units, 8)
    assert [unit for bundle in bundles for unit in bundle] == units
    for bundle in bundles:
        assert len({unit.group for unit in bundle}) == 1
    # 32 batches of 8 are 256 views: three shards of one view, two of two; the rest of a group is a bundle too.
    assert [len(bundle) for bundle in bundles] == [3, 3, 1, 2, 2, 2, 1] and BUNDLE_BATCHES == 32


def test_bundles_change_no_byte(tmp_path):
    """Units made alone, after a kill say, are the same bytes as in a bundle."""
    made, _ = extractor(tmp_path, (3, 5, 2), 8, policy="crop", views=2)
    units = all_units(made.plan)
    made(units)
    together = {path.name: path.read_bytes() for path in (tmp_path / "store").glob("*.arrow")}
    assert len(together) == 9
    for path in (tmp_path / "store").glob("*.arrow"):
        path.unlink()
    for unit in reversed(units):
        made([unit])
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").glob("*.arrow")} == together


def test_a_changed_image_costs_only_its_own_unit(tmp_path):
    """The rows before it wait for a full batch when it is met; they are finished all the same."""
    first, _ = extractor(tmp_path, (5, 4), 4, policy="crop", views=1)
    first(all_units(first.plan))
    finalize_store(tmp_path / "store")
    change_image(tmp_path / "data" / "train-00001-of-00002", 0)
    source = open_records(tmp_path / "data", "train")
    config = ExtractConfig(data=tmp_path / "data", teacher=str(tmp_path / "t.onnx"), out=tmp_path / "second")
    plan = begin_store(config.out, first.plan, config.views_per_file)
    second = UnitExtractor(config.out, plan, source, first.teacher, 64, 2, views_of=Store(tmp_path / "store"))
    with pytest.raises(StoreError, match=r"train-00001-of-00002 record 0 .*the image has changed since extraction"):
        second(all_units(plan))
    written = [path.name for path in config.out.glob("train-*.v???-???.arrow")]
    assert written == ["train-00000-of-00002.v000-000.arrow"]


def test_samples_are_what_the_teacher_met(tmp_path):
    made, _ = extractor(tmp_path, (9, 6), 8, policy="crop", views=3, mixup_alpha=1.0)
    made(all_units(made.plan))
    finalize_store(tmp_path / "store")
    store = Store(tmp_path / "store")
    samples = store.read_samples(0, (0, 2))
    places = [(sample.row, sample.view) for sample in samples]
    assert len(set(places)) == 4 and places == sorted(places) and {0, 1, 2} >= {view for _, view in places}
    for sample in samples:
        (seen,) = made.reader.read([(0, sample.row)], sample.view)
        fresh = made.teacher.logits(
            torch.from_numpy(render_views([seen], made.teacher.preprocessing)[0][None])
        ).numpy()[0]
        np.testing.assert_allclose(sample.logits, fresh, atol=1e-4)
        np.testing.assert_array_equal(sample.logits, store.read_logits(0, sample.view, [sample.row])[0])
    assert store.sample_files() == [(0, (0, 2)), (1, (0, 2))] and len(store.read_samples(1, (0, 2))) == 4


def test_how_many_samples_a_file_has():
    assert _num_samples([1250] * 1024) == 4  # ImageNet
    assert _num_samples([50_000]) == 256
    assert _num_samples([250]) == 15, "a sixteenth of the records"
    assert _num_samples([9, 6]) == 4
