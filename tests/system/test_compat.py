"""Stores of every released format stay readable: tests/golden/store-* were written once and are never written again.

tests/golden/README.md has the script that wrote those of format 3.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from teachonce.data.dataset import KDDataset
from teachonce.data.stored_logits import StoredLogits
from teachonce.errors import ConfigError, StoreError
from teachonce.extraction.config import ExtractConfig, VerifyConfig
from teachonce.extraction.extract import extract
from teachonce.extraction.verify import verify
from teachonce.interop.config import MergeConfig, UpgradeConfig
from teachonce.interop.merge import merge
from teachonce.interop.upgrade import read_names, upgrade
from teachonce.losses.losses import kd_loss
from teachonce.pixels.view_sources import OwnViews
from teachonce.records.class_table import ClassTable
from teachonce.records.discovery import open_records
from teachonce.records.source import Record, RecordSource, ShardInfo
from teachonce.store.begin import begin_store
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import records_file, views_file
from teachonce.store.store import Store
from teachonce.store.tables import StoreWriter
from teachonce.training.config import TrainConfig
from teachonce.training.train import train
from teachonce.views.operations import Operation
from teachonce.views.policy import (
    AutoAugment,
    CropPolicy,
    ObjectCrop,
    RandAugment,
    RandomErasing,
    RandomMix,
    policy_from_json,
    policy_to_json,
)
from teachonce.views.view import CENTER, Erasing, Mix, View
from tests.support.paths import GOLDEN
from tests.support.small_data import encode_jpeg, write_as_folder, write_image_folder, write_store
from tests.system.test_store_format import compare

OLD = sorted(path.name for path in GOLDEN.glob("store-v[12]-*"))


@pytest.mark.parametrize("codec", ["float16", "float32", "int8"])
def test_version_1(codec):
    store = Store(GOLDEN / f"store-v1-{codec}")
    assert store.check_files() == 4
    assert store.policy == CropPolicy(scale=(0.25, 1.0)) and store.num_views == 2
    assert (store.class_space.num_classes, store.class_space.offset, store.plan.data_classes) == (3, 1, 4)
    assert store.read_keys(1).tolist() == [2**64 - 1, 7]
    assert store.read_filenames(0) == ["a.jpg", "b.jpg", "ü.jpg"] and store.read_labels(0).tolist() == [1, 2, 3]
    assert store.read_views(0, 1, [2]) == [View((1, 2, 3, 65535), flip=True)]
    expected = np.array([[0.5, -1.25, 3.0], [10.0, 0.0, -75.0], [2.0, 2.0, 2.0]], np.float32)
    logits = store.read_logits(0, 1, slice(None))
    assert (np.abs(logits - expected) <= store.codec.error_bound(store.read_rows(0, 1, slice(None)))).all()
    if codec == "int8":
        # The code of 2.5 below the largest, in a range of 4.25, is 178; the largest and the farthest are exact.
        np.testing.assert_allclose(logits[0], [3 - 4.25 * (178 / 254) ** 1.5, -1.25, 3.0], atol=1e-6)
        assert logits[1, 0] == 10.0 and logits[1, 2] == -75.0


def test_version_2():
    """Every column of a view, a sparse codec, samples, and the manifest."""
    store = Store(GOLDEN / "store-v2-topk")
    assert store.check_files() == 3 and store.num_views == 2 and store.seed == 3
    assert store.policy == CropPolicy(
        scale=(0.25, 1.0),
        randaugment=RandAugment(),
        erasing=RandomErasing(),
        mix=RandomMix(mixup_alpha=0.5, cutmix_alpha=1.0),
    )
    rotated = View((0, 0, 9, 8), True, (Operation("rotate", -12.5), Operation("equalize")))
    assert store.read_views(0, 0, [1]) == [rotated]
    assert store.read_views(0, 1, slice(None)) == [
        View(
            (1, 2, 3, 65535),
            False,
            (Operation("solarize", 96.0), Operation("translate_x", 0.25)),
            (Erasing((1, 2, 3, 4), (5, 6, 7)),),
            Mix(77, 0.75),
        ),
        View(
            (1, 2, 3, 4), True, (Operation("identity"), Operation("color", 1.5)), (), Mix(5, 0.75, (0, 0, 32768, 32767))
        ),
        View((0, 0, 1, 1), False, (Operation("posterize", 4.0), Operation("shear_y", -0.25))),
    ]
    assert store.locations_of(77) == [(0, 2)] and store.locations_of(2**64 - 1) == [(0, 1)]
    logits = np.array([[2, 2.5, 0, -3, -9], [0, -30, -30, -30, -31], [3, 2, 1, 0, -1]], np.float32)
    errors, allowed = store.codec.compare_logits(store.read_rows(0, 1, slice(None)), logits, np.zeros(3))
    assert (errors <= allowed).all() and store.codec.num_kept == 2
    ((shard, group),) = store.sample_files()
    samples = store.read_samples(shard, group)
    assert (shard, [(sample.row, sample.view) for sample in samples]) == (0, [(0, 0), (2, 1)])
    assert (samples[0].image_xxh3, samples[0].pixels_xxh3) == (11, 2**64 - 1)
    assert samples[1].logits.tolist() == [3, 2, 1, 0, -1]
    assert store.plan.teacher["num_parameters"] == 7


def test_a_policy_with_every_part_that_plans_hold():
    """As it stands in the plans of stores; the parts of the others are in the stores above."""
    entry = {
        "name": "crop+autoaugment",
        "scale": [0.05, 1.0],
        "ratio": [0.75, 1.33],
        "flip_prob": 0.5,
        "autoaugment": {"found_on": "imagenet"},
        "objects": {"covered": 0.1, "boxes": "records", "max_attempts": 100},
    }
    policy = CropPolicy(scale=(0.05, 1.0), ratio=(0.75, 1.33), autoaugment=AutoAugment(), objects=ObjectCrop())
    assert policy_from_json(entry) == policy and policy_to_json(policy) == entry


# ---- Format 3 ----


def golden(name: str) -> Store:
    store = compare(GOLDEN / f"store-v3-{name}")
    store.check_files()
    assert store.made_by == [{"versions": {"teachonce": "0.1.0"}, "device": "cpu"}]
    return store


def test_version_3_with_everything_that_a_view_may_have():
    store = golden("int8")
    assert (store.num_records, store.num_views, store.seed) == (5, 3, 3)
    assert store.plan.class_names == ("background", "drake", "hen", "tench") and store.plan.view_groups == (
        (0, 1),
        (2, 2),
    )
    assert store.policy == CropPolicy(
        scale=(0.25, 1.0),
        randaugment=RandAugment(),
        erasing=RandomErasing(),
        mix=RandomMix(mixup_alpha=0.5, cutmix_alpha=1.0),
    )
    assert store.read_keys(0).tolist() == [5, 2**64 - 1, 7] and store.read_labels(0).tolist() == [1, -1, 3]
    assert store.read_filenames(0) == ["a.jpg", "b.jpg", "folder/ü.jpg"]
    assert store.read_views(0, 2, slice(None)) == [
        View(
            (1, 2, 3, 4), True, (Operation("identity"), Operation("color", 1.5)), (), Mix(5, 0.75, (0, 0, 32768, 32767))
        ),
        View(
            (1, 2, 3, 65535),
            False,
            (Operation("solarize", 96.0), Operation("translate_x", 0.25)),
            (Erasing((1, 2, 3, 4), (5, 6, 7)),),
            Mix(7, 0.75),
        ),
        View((0, 0, 9, 8), True, (Operation("rotate", -12.5), Operation("equalize"))),
    ]
    # The code of 2.5 below the largest, in a range of 4.25, is 178; -75 is far; 1.0 below 1.0004 has code 1.
    logits = store.read_logits(0, 0, slice(None))
    np.testing.assert_allclose(logits[0], [3 - 4.25 * (178 / 254) ** 1.5, -1.25, 3.0], atol=1e-6)
    np.testing.assert_allclose(logits[1], [10.0, 0.0, -75.0], atol=0.5 / 254 * 1.5 * 85)
    assert logits[1, [0, 2]].tolist() == [10.0, -75.0]
    top = store.read_logits(0, 1, [0])[0]
    assert top[1] == np.float32(1.0004) and store.read_columns(0, 1)["codes"][0].tolist() == [1, 0, 254]
    assert [store.read_hits(shard, (0, 1)) for shard in (0, 1)] == [[0, 0], [1, 1]]
    assert store.locations_of(5) == [(0, 0), (1, 1)] and store.locations_of(6) == []
    samples = store.read_samples(1, (2, 2))
    assert [(sample.row, sample.view, sample.image_xxh3, sample.pixels_xxh3) for sample in samples] == [
        (0, 2, 12, 2**64 - 1),
        (1, 2, 12, 2**64 - 2),
    ]
    assert samples[1].logits.tolist() == [-1.0, -2.0, 6.0]


def test_version_3_sparse():
    store = golden("topk")
    assert store.policy == CropPolicy(autoaugment=AutoAugment()) and store.plan.class_names is None
    assert store.read_views(0, 0, [0, 1]) == [
        View((0, 0, 9, 8), False, (Operation("invert"), Operation("shear_y", -0.25))),
        View((3, 4, 5, 6), True, (Operation("posterize", 4.0), Operation("identity"))),
    ]
    logits = np.array([[2, 2.5, 0, -3, -9], [0, -30, -30, -30, -31], [3, 2, 1, 0, -1]], np.float32)
    errors, allowed = store.codec.compare_logits(store.read_rows(0, 0, slice(None)), logits, np.zeros(3))
    assert (errors <= allowed).all() and store.codec.num_kept == 2
    assert store.plan.num_samples == 0 and store.sample_files() == []


def test_version_3_grown():
    """Three plans and two parts."""
    store = golden("grown")
    assert [tuple(part) for part in store.plan.parts] == [(0, 0), (1, 1)] and store.num_views == 2
    assert store.shards == (("train-00000-of-00001", 3), ("train-00000-of-00001.p001", 2))
    assert store.read_views(1, 1, slice(None)) == [View((1, 0, 10, 20)), View((1, 1, 10, 20), True)]
    assert store.read_logits(1, 1, [0]).tolist() == [[2.0, np.float32(1.0004) + 1, -7.0]]
    assert store.locations_of(10) == [(0, 1), (1, 1)] and store.locations_of(25) == [(1, 0)]
    first = Store(GOLDEN / "store-v3-grown", num_views=1)
    assert first.num_records == 5 and first.fingerprint != store.fingerprint


def test_version_3_center():
    store = golden("float16")
    assert store.read_views(0, 0, slice(None)) == [CENTER] * 3
    assert store.read_logits(0, 0, slice(None)).tolist() == [[0.5, -1.25, 3.0], [10.0, 0.0, -75.0], [2.0, 2.0, 1.5]]


def test_what_is_written_today_has_the_same_values(tmp_path):
    """By the script that wrote the golden stores."""
    (script,) = re.findall(r"```python\n(.*?)```", (GOLDEN / "README.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(script, names)
    for name, write in names["WRITERS"].items():
        write(tmp_path / name)
        same_values(Store(tmp_path / name), golden(name))
        plans = [json.loads((path / "plan.json").read_bytes()) for path in (tmp_path / name, golden(name).path)]
        assert plans[0] == plans[1]
    assert len(names["WRITERS"]) == len(list(GOLDEN.glob("store-v3-*")))


def same_values(store: Store, other: Store) -> None:
    assert (store.shards, store.num_views, store.policy, store.codec) == (
        other.shards,
        other.num_views,
        other.policy,
        other.codec,
    )
    for shard in range(len(store.shards)):
        assert store.read_keys(shard).tolist() == other.read_keys(shard).tolist()
        assert store.read_labels(shard).tolist() == other.read_labels(shard).tolist()
        assert store.read_filenames(shard) == other.read_filenames(shard)
        for view in range(store.num_views):
            columns, expected = store.read_columns(shard, view), other.read_columns(shard, view)
            assert list(columns) == list(expected)
            for name, values in columns.items():
                np.testing.assert_array_equal(values, expected[name])
                assert values.dtype == expected[name].dtype
    for shard, group in other.sample_files():
        found, expected_samples = store.read_samples(shard, group), other.read_samples(shard, group)
        assert [sample.logits.tolist() for sample in found] == [sample.logits.tolist() for sample in expected_samples]
        assert [vars(sample) | {"logits": 0} for sample in found] == [
            vars(sample) | {"logits": 0} for sample in expected_samples
        ]
    assert store.sample_files() == other.sample_files()


# ---- Formats 1 and 2 in use ----


class MadeUpRecords(RecordSource):
    """Records with the keys and labels of a store whose images nobody has."""

    split, format = "train", "folder"

    def __init__(self, store: Store) -> None:
        self._store = store
        described = store.plan.data["shards"]
        self.shards = tuple(ShardInfo(name, None, count, num_bytes) for name, count, num_bytes in described)
        names = store.plan.class_names or tuple(map(str, range(store.plan.data_classes)))
        self.classes = ClassTable(names, names, has_background=True)

    def read_batch(self, locations, *, with_logits=False, buffers=None):
        return [
            Record(
                encode_jpeg(row),
                int(self._store.read_labels(shard)[row]),
                "",
                int(self._store.read_keys(shard)[row]),
                f"{shard}:{row}",
            )
            for shard, row in locations
        ]

    def iter_shard(self, shard, *, with_logits=False):
        yield from self.read_batch([(shard, row) for row in range(self.shards[shard].num_records)])


class BesideAnyViews(StoredLogits):
    """Logits beside views that they are not of, those of mixed views too: nobody has the images of these."""

    def check_views(self, views):
        pass


def learn(store: Store, num_epochs: int = 15) -> list[float]:
    """KD loss of each epoch of a linear student."""
    logits = BesideAnyViews([store], temperature=1.0)
    dataset = KDDataset(MadeUpRecords(store), OwnViews(CropPolicy()), logits, size=8)
    torch.manual_seed(0)
    student = torch.nn.Linear(8 * 8 * 3, dataset.num_classes)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.02)
    losses = []
    for epoch in range(num_epochs):
        (batch,) = dataset.batches(batch_size=8, epoch=epoch)
        logits = student(batch["pixels"].flatten(1).float() / 255)
        loss = kd_loss(logits, batch["teacher_logits"], 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", [*OLD, "store-v3-topk", "store-v3-float16"])
def test_a_student_learns_from_a_store_of_any_format(name):
    store = Store(GOLDEN / name)
    losses = learn(store)
    assert np.isfinite(losses).all() and sum(losses[-3:]) < sum(losses[:3])


@pytest.fixture
def records(tmp_path):
    """A copy: indices are made beside shards."""
    return Path(shutil.copytree(GOLDEN / "records", tmp_path / "records"))


@pytest.fixture(params=[1, 2])
def old(request, tmp_path):
    """The store of ``records`` as format 2 wrote it, and as format 1 would have: without samples."""
    path = Path(shutil.copytree(GOLDEN / "store-v2-crop", tmp_path / "old"))
    if request.param == 1:
        for file in path.glob("*.sample.arrow"):
            file.unlink()
        plan = json.loads((path / "plan.json").read_bytes())
        manifest = json.loads((path / "manifest.json").read_bytes())
        for entry in (plan, manifest["plan"]):
            del entry["num_samples"]
        for entry in (plan, manifest, manifest["plan"]):
            entry["format_version"] = 1
        for shard in manifest["shards"]:
            shard["files"] = [file for file in shard["files"] if "sample" not in file["name"]]
        (path / "plan.json").write_text(json.dumps(plan))
        (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def run_train(data, store, out):
    config = TrainConfig(
        data=data,
        store=(store,),
        out=out,
        student="timm:test_resnet",
        size=16,
        epochs=2,
        batch_size=3,
        device="cpu",
        validation_split=None,
        warmup_epochs=0,
    )
    train(config)
    return json.loads((out / "result.json").read_bytes())


def test_an_old_store_is_verified_trained_from_and_merged(tmp_path, records, old):
    verdict = verify(VerifyConfig(store=old, data=records, samples=0, device="cpu"))
    assert verdict.is_sound, verdict.reason
    assert (verdict.num_keys, verdict.num_files) == (
        5,
        10 if (old / "train-00000-of-00002.v000-000.sample.arrow").exists() else 6,
    )
    result = run_train(records, old, tmp_path / "run")
    assert result["missing_records"] == 0
    merge_of(old, records, tmp_path / "merged")


def merge_of(store, records, out):
    if Store(store).policy.mix is not None:
        with pytest.raises(ConfigError, match="its views are mixed with other images"):
            merge(MergeConfig(store=store, data=records, out=out, view=1))
        return
    with pytest.warns(UserWarning, match="is a random crop"):
        merge(MergeConfig(store=store, data=records, out=out, view=1))
    merged, opened = open_records(out, "train"), Store(store)
    for shard in range(2):
        logits = [record.logits[1:] for record in merged.iter_shard(shard, with_logits=True)]
        np.testing.assert_array_equal(logits, opened.read_logits(shard, 1, slice(None)))


def test_an_upgraded_store_is_extended_by_its_teacher(tmp_path, records, old):
    """Upgraded, then more views by the same command; then verified, trained from and merged like any other."""
    out = tmp_path / "new"
    upgrade(UpgradeConfig(store=old, out=out, data=records))
    store = compare(out)
    same_values(store, Store(old))
    assert store.plan.class_names == ("background", "class0", "class1", "class2", "class3")
    assert store.made_by == [{"versions": Store(old).versions, "device": "unknown"}]
    for shard, (name, _) in enumerate(store.shards):
        labels = store.read_labels(shard)
        for view in (0, 1):
            found = store.read_logits(shard, view, slice(None)).argmax(axis=1) + 1
            assert store.read_hits(shard, (view, view)) == [int((found == labels).sum())], name
    options = {"policy": "crop", "views_per_file": 1, "mixup_alpha": 1.0, "mix_prob": 0.5}
    teacher = f"onnx:{GOLDEN / 'teacher.onnx'},size=16,resize=16"
    extract(
        ExtractConfig(
            data=records, teacher=teacher, out=out, codec="int8", views=3, device="cpu", gate_samples=0, **options
        )
    )
    extended = compare(out)
    assert extended.num_views == 3 and extended.check_files() == 2 + 1 + 3 * (4 if extended.plan.num_samples else 2)
    verdict = verify(VerifyConfig(store=out, data=records, samples=0, device="cpu"))
    assert verdict.is_sound and verdict.num_top1 == 6, verdict.reason
    run_train(records, out, tmp_path / "run")
    merge_of(out, records, tmp_path / "merged")


@pytest.mark.parametrize("name", OLD)
def test_an_upgraded_golden_store(tmp_path, name):
    """Equal values, files that are sound, more views, and the reader of the examples; the old one stays as it is."""
    before = {path.name: path.read_bytes() for path in (GOLDEN / name).iterdir()}
    out = tmp_path / "new"
    upgrade(UpgradeConfig(store=GOLDEN / name, out=out))
    old, store = Store(GOLDEN / name), compare(out)
    same_values(store, old)
    shards, groups = len(old.shards), len(old.plan.view_groups)
    assert store.check_files() == 1 + shards * (1 + groups * (2 if old.plan.num_samples else 1))
    assert {path.name: path.read_bytes() for path in (GOLDEN / name).iterdir()} == before
    plan = begin_store(out, store.plan.extend(view_groups=(*store.plan.view_groups, (2, 2))), 1)
    writer = StoreWriter(out, plan, {"device": "cpu"})
    for shard, (shard_name, num_records) in enumerate(plan.shards):
        keys, labels = store.read_keys(shard), store.read_labels(shard)
        logits = np.random.default_rng(shard).normal(size=(1, num_records, store.class_space.num_classes))
        views = [store.read_views(shard, 0, slice(None))]
        if plan.num_samples:
            writer.write_samples(shard_name, (2, 2), keys, old.read_samples(shard, plan.view_groups[0]))
        writer.write_views(shard_name, (2, 2), keys, labels, logits.astype(np.float32), views)
    assert finalize_store(out) == 3
    extended = compare(out)
    assert extended.num_views == 3 and extended.read_views(0, 2, [0]) == old.read_views(0, 0, [0])


def test_an_interrupted_upgrade_goes_on_and_has_the_same_bytes(tmp_path):
    old = GOLDEN / "store-v2-crop"
    upgrade(UpgradeConfig(store=old, out=tmp_path / "at_once"))
    expected = {path.name: path.read_bytes() for path in (tmp_path / "at_once").iterdir()}
    for name in [name for name in expected if not name.endswith(".arrow")] + [
        views_file("train-00001-of-00002", (0, 0))
    ]:
        out = tmp_path / f"without_{name}"
        shutil.copytree(tmp_path / "at_once", out)
        for file in out.glob("manifest.*"):
            file.unlink()
        (out / name).unlink(missing_ok=True)
        if name == "plan.json":  # killed before anything but temporary files were there
            shutil.rmtree(out)
            out.mkdir()
            (out / ".tmp-0123456789ab-plan.json").write_bytes(b"{")
        else:
            (out / records_file("train-00001-of-00002")).unlink()
        upgrade(UpgradeConfig(store=old, out=out))
        assert {path.name: path.read_bytes() for path in out.glob("[!.]*")} == expected, name


def test_what_is_not_upgraded(tmp_path):
    with pytest.raises(ConfigError, match="is already of format 3"):
        upgrade(UpgradeConfig(store=GOLDEN / "store-v3-int8", out=tmp_path / "new"))
    path = Path(shutil.copytree(GOLDEN / "store-v2-crop", tmp_path / "old"))
    (path / "manifest.json").unlink()
    with pytest.raises(StoreError, match="is not finished"):
        upgrade(UpgradeConfig(store=path, out=tmp_path / "new"))
    shutil.copyfile(GOLDEN / "store-v2-crop" / "manifest.json", path / "manifest.json")
    file = path / "train-00000-of-00002.v001-001.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"train-00000-of-00002\.v001-001\.arrow: hash .* its bytes changed on disk"):
        upgrade(UpgradeConfig(store=path, out=tmp_path / "new"))
    with pytest.raises(StoreError, match="is not finished"):
        Store(tmp_path / "new")


def test_options_of_data_that_is_not_given_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--label-offset 1: applies only with --data, found no --data"):
        UpgradeConfig(store=tmp_path, label_offset=1)


def test_an_upgrade_of_the_working_folder_lies_beside_it(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "store-v2-crop", tmp_path / "old")
    (tmp_path / "old" / "below").mkdir()
    for folder, name in (("old", "."), ("old/below", "..")):
        monkeypatch.chdir(tmp_path / folder)
        upgrade(UpgradeConfig(store=Path(name)))
        assert Store(tmp_path / "old-v3").num_views == 2
        shutil.rmtree(tmp_path / "old-v3")


def test_names_are_given_to_an_upgraded_store_later_too(tmp_path, records, old):
    """By a plan that follows; nothing else is written anew."""
    out = tmp_path / "new"
    upgrade(UpgradeConfig(store=old, out=out))
    assert Store(out).plan.class_names is None
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for _ in range(2):
        upgrade(UpgradeConfig(store=old, out=out, data=records))
        store = compare(out)
        assert store.plan.class_names == open_records(records, "train").classes.names
        after = {path.name: path.read_bytes() for path in out.iterdir()}
        assert after.keys() == before.keys() | {"plan.001.json"} and before.items() <= after.items()
    upgrade(UpgradeConfig(store=old, out=out))
    assert len(list(out.glob("plan*.json"))) == 2


def test_names_come_from_any_data_of_the_store_and_no_other(tmp_path, records, old):
    """Its keys and labels are compared, as the old store has no names to be compared with."""
    out = tmp_path / "refused"
    with pytest.raises(ConfigError, match=r"others: .*label \d .* has \d: its classes are numbered differently"):
        other = write_as_folder(
            open_records(records, "train"), tmp_path / "others", names=lambda record: "axyzb"[record.label]
        )
        (other / "train" / "c").mkdir()
        shutil.copyfile(next((other / "train" / "b").iterdir()), other / "train" / "c" / "copy.jpg")
        upgrade(UpgradeConfig(store=old, out=out, data=other))
    images = write_image_folder(tmp_path / "images", num_classes=5)
    with pytest.raises(ConfigError, match=r"images: the store .* has only 0 of 20 compared records: other data"):
        upgrade(UpgradeConfig(store=old, out=out, data=images))
    folder = write_store(tmp_path / "of_folder", images, num_classes=5, offset=0)
    assert read_names(images, folder) == tuple(f"class{label}" for label in range(5))
    (records / "classes.json").unlink()
    with pytest.raises(ConfigError, match="no class names, expected the 5 classes of the store"):
        upgrade(UpgradeConfig(store=old, out=out, data=records))
    assert not out.exists()
