"""Verify: sound is sound, and each damage is named with an exit code."""

import dataclasses
import json
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from teachonce.cli.main import main
from teachonce.cli.output import show_verdict
from teachonce.codecs.dense import Float32Codec
from teachonce.codecs.registry import CODECS
from teachonce.errors import ConfigError, StoreError, TeachonceError
from teachonce.extraction.config import ExtractConfig, VerifyConfig
from teachonce.extraction.extract import extract
from teachonce.extraction.prepare import MIN_SAMPLES
from teachonce.extraction.verify import Verdict, _blocks, _find_teacher, verify
from teachonce.interop.config import MergeConfig
from teachonce.interop.merge import merge
from teachonce.models.classifier import load_model
from teachonce.records.class_table import ClassTable, write_classes
from teachonce.records.discovery import open_records
from teachonce.records.key_index import KeyIndex
from teachonce.records.source import ShardInfo
from teachonce.records.tfrecord.framing import read_tfrecords
from teachonce.storage.block_file import BlockFile
from teachonce.storage.files import open_storage
from teachonce.storage.sealed_json import sealed_bytes
from teachonce.store.begin import begin_store
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import samples_file
from teachonce.store.plan_files import read_plan
from teachonce.store.store import Store
from teachonce.store.tables import StoreWriter, write_index
from tests.support.small_data import (
    build_dataset,
    change_image,
    forge,
    forge_views,
    remove_manifests,
    rewrite_shard,
    write_image_folder,
    write_store,
)
from tests.support.small_models import write_color_shards, write_color_teacher

NAME = "train-00001-of-00002.v000-000.arrow"


@pytest.fixture
def data(tmp_path):
    return write_color_shards(tmp_path / "data", sizes=(9, 6))


@pytest.fixture
def teacher(tmp_path):
    return write_color_teacher(tmp_path / "teacher.onnx")


@pytest.fixture
def store(tmp_path, data, teacher):
    extract(
        ExtractConfig(data=data, teacher=teacher, out=tmp_path / "store", codec="int8", device="cpu", gate_samples=0)
    )
    return tmp_path / "store"


def check(store, data, **options):
    return verify(VerifyConfig(store=store, data=data, device="cpu", **options))


def test_a_store_does_not_say_whom_to_trust():
    """Its plan may be a stranger's."""
    plan = SimpleNamespace(teacher={"spec": "savedmodel:model,trust=1"})
    config, store = VerifyConfig(store=Path("store"), data=Path("data")), SimpleNamespace(path=Path("store"), plan=plan)
    with pytest.raises(ConfigError, match="store: its plan says to trust the teacher savedmodel:model,trust=1, which"):
        _find_teacher(config, store)
    given = dataclasses.replace(config, teacher="savedmodel:model,trust=1")
    assert _find_teacher(given, store) == "savedmodel:model,trust=1"
    assert _find_teacher(dataclasses.replace(config, samples=0), store) is None


def test_equal_images_in_two_shards_have_views_of_their_own(tmp_path, data, teacher):
    """A view is mixed with an image of its own shard, so the sample of one is not the other's."""
    first = [bytes(payload) for _, payload in read_tfrecords(data / "train-00000-of-00002")]
    rewrite_shard(data / "train-00001-of-00002", lambda payloads: first[: len(payloads)])
    options = {"policy": "crop", "views": 3, "mixup_alpha": 0.5, "device": "cpu", "gate_samples": 0}
    extract(ExtractConfig(data=data, teacher=teacher, out=tmp_path / "store", **options))
    verdict = check(tmp_path / "store", data, samples=1000)
    assert verdict.is_sound, verdict.reason
    num_samples = sum(
        len(Store(tmp_path / "store").read_samples(*file)) for file in Store(tmp_path / "store").sample_files()
    )
    assert verdict.num_pixels == num_samples > 0
    # In other shards the second of equal images is not found by its key, and left out.
    merged = write_color_shards(tmp_path / "merged", sizes=(15,))
    rewrite_shard(merged / "train-00000-of-00001", lambda _: [*first, *first[:6]])
    verdict = check(tmp_path / "store", merged, samples=1000)
    assert verdict.is_sound, verdict.reason
    assert 0 < verdict.num_pixels < num_samples


@pytest.mark.parametrize("codec", ["float32", "float16", "int8"])
@pytest.mark.parametrize("policy", ["center", "crop"])
def test_a_fresh_store_is_sound(tmp_path, data, teacher, codec, policy):
    views = 1 if policy == "center" else 3
    path = tmp_path / "fresh"
    extract(
        ExtractConfig(
            data=data, teacher=teacher, out=path, codec=codec, policy=policy, views=views, device="cpu", gate_samples=0
        )
    )
    verdict = check(path, data, batch_size=4)
    assert verdict.is_sound, verdict.reason
    # Records, samples and views of two shards, and the index.
    assert (verdict.num_files, verdict.num_keys, verdict.num_top1) == (7, 15, 2 * views)
    assert (verdict.num_pixels, verdict.num_logits) == (2 * MIN_SAMPLES, 15 * views)
    assert verdict.largest_excess is not None and verdict.largest_excess <= 1


def test_samples_are_bounded(store, data):
    assert 1 <= check(store, data, samples=5).num_logits <= 5
    assert check(store, data, samples=0).num_logits == 0
    assert check(store, data, teacher="none").num_logits == 0


def test_a_flipped_bit_in_the_store(store, data):
    raw = bytearray((store / NAME).read_bytes())
    raw[len(raw) // 2] ^= 1
    (store / NAME).write_bytes(raw)
    verdict = check(store, data)
    assert not verdict.is_sound and NAME in verdict.reason and "damaged" in verdict.reason
    assert (verdict.num_files, verdict.num_keys) == (0, 0)


def test_an_index_of_other_rows_is_not_sound(store, data):
    """Sound by every hash: its records are there, at other places."""
    index = Store(store).index[0]
    (store / "index.arrow").unlink()
    write_index(store, "index.arrow", KeyIndex(index.keys, index.shards, index.rows * 0), read_plan(store).identity)
    value = json.loads((store / "manifest.records.json").read_text())
    del value["xxh3"]
    value["files"]["index.arrow"] = BlockFile(open_storage(store), "index.arrow").entry
    (store / "manifest.records.json").write_bytes(sealed_bytes(value))
    verdict = check(store, data, teacher="none")
    assert not verdict.is_sound and "index.arrow: is not the index of these records" in verdict.reason


def test_all_damage_is_listed_at_once(store, data):
    other = NAME.replace("00001-of", "00000-of")
    for name in (NAME, other):
        raw = bytearray((store / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (store / name).write_bytes(raw)
    (store / "train-00000-of-00002.records.arrow").unlink()
    reason = check(store, data).reason
    assert (
        "3 of 7 files are damaged; run the command that made it, extract or import, with the same options and --repair"
        in reason
    )
    for name in (NAME, other):
        assert re.search(rf"{name}: block 0: hash \w+, \w+ was written", reason)
    assert re.search(r"train-00000-of-00002\.records\.arrow: cannot be read", reason)


def test_logits_that_the_teacher_never_said(store, data):
    opened = Store(store)
    row = opened.read_samples(1, (0, 0))[0].row
    logits = np.stack([opened.read_logits(1, 0, slice(None))])
    logits[0, row, 2] += 0.5
    forge_views(store, 1, logits, None)
    verdict = check(store, data)
    assert not verdict.is_sound
    assert f"train-00001-of-00002 record {row} " in verdict.reason and f"image_{9 + row}.jpg" in verdict.reason
    assert re.search(r"differ from the teacher's by 0\.(49|5)", verdict.reason) and "codec int8" in verdict.reason


def test_data_that_changed(tmp_path, store, data):
    other = write_color_shards(tmp_path / "other", sizes=(9, 6), first_index=100)
    verdict = check(store, other)
    assert (
        not verdict.is_sound and "0 of 15 records are in the store; 15 are not (first: image_100.jpg)" in verdict.reason
    )
    changed = shutil.copytree(data, tmp_path / "changed")
    change_image(changed / "train-00001-of-00002", 4)
    verdict = check(store, changed)
    assert not verdict.is_sound and "train-00001-of-00002 record 4 " in verdict.reason
    assert "the image has changed since extraction" in verdict.reason
    more = write_color_shards(tmp_path / "more", sizes=(9, 7))
    reason = check(store, more).reason
    assert "15 of 16 records are in the store; 1 are not (first: image_15.jpg)" in reason
    with pytest.raises(ConfigError, match="no such folder"):
        check(store, tmp_path / "nowhere")


def test_the_same_images_with_other_labels(tmp_path, store):
    """Keys agree, but every image would get the logits of other classes."""
    other = write_color_shards(tmp_path / "other", sizes=(9, 6), rotate=1)
    verdict = check(store, other, teacher="none")
    assert not verdict.is_sound and "record 0" in verdict.reason and "label 2 (class1) " in verdict.reason
    with pytest.raises(
        StoreError,
        match=r"label 2 .*; 15 of 15 sampled images .*: the classes have a different order or numbering here",
    ):
        merge(MergeConfig(store=store, data=other, out=tmp_path / "m", num_workers=1))
    with pytest.raises(StoreError, match=r"label \d .*a different order"):
        build_dataset(open_records(other, "train"), size=8, store=store).read_batch([0], 0)


def test_data_with_another_class_count(tmp_path, store, data):
    """Classes of one name are the same, whatever their number; without a name in common they are others."""
    for first, reason in (
        ("class0", "label 1 (a) (image_0.jpg), the store"),
        ("background", "its classes are background, class3 and the like, those of the data background, g: none in"),
        ("none", "its classes are background, class3 and the like, those of the data none, g: none in common"),
    ):
        names = (first, *"abcdefg")
        write_classes(data, ClassTable(names, names, has_background=True))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            verdict = check(store, data, teacher="none")
        assert not verdict.is_sound and reason in verdict.reason
        assert len(warned) == (first == "class0")
    (data / "classes.json").unlink()
    assert check(store, data).is_sound, "without names the numbers count"


def forge_samples(store, **changes):
    """Change what the samples say of the extraction: as if another library had made it."""
    opened = Store(store)
    made_by = {"versions": {"pillow": "1.0"}, "device": "cpu"}
    found = {at: (opened.read_keys(at[0]).copy(), opened.read_samples(*at)) for at in opened.sample_files()}
    names = [samples_file(opened.shards[shard][0], group) for shard, group in found]
    with forge(store, *names, made_by=made_by) as writer:
        for (shard, group), (keys, samples) in found.items():
            changed = [dataclasses.replace(sample, **changes) for sample in samples]
            writer.write_samples(opened.shards[shard][0], group, keys, changed)


def rewrite_store(store, path, plan):
    """The content of a store under another plan; returns the new path."""
    begin_store(path, plan, views_per_file=1)
    writer = StoreWriter(path, plan, store.made_by[0])
    for shard, (name, _) in enumerate(store.shards):
        keys, labels = store.read_keys(shard), store.read_labels(shard)
        writer.write_records(name, keys, store.read_filenames(shard), labels)
        for group in plan.view_groups:
            writer.write_samples(name, group, keys, store.read_samples(shard, group))
            logits = [store.read_logits(shard, view, slice(None)) for view in range(group[0], group[1] + 1)]
            writer.write_views(name, group, keys, labels, np.stack(logits), None)
    assert finalize_store(path) == plan.num_views
    return path


def test_another_decoder(store, data):
    forge_samples(store, image_xxh3=1)
    verdict = check(store, data)
    assert not verdict.is_sound and verdict.num_pixels == 0
    assert "decode to other pixels than at extraction: another decoder (pillow" in verdict.reason
    assert " record " in verdict.reason and "view 0" in verdict.reason


def test_another_resize(store, data):
    forge_samples(store, pixels_xxh3=1)
    reason = check(store, data).reason
    assert "decodes as at extraction, but its view differs: another resize, crop or operation (pillow" in reason


def test_a_view_that_was_changed(tmp_path, data, teacher):
    """The replayed pixels are no longer those that the teacher saw."""
    out = tmp_path / "views"
    common = {"policy": "crop", "views": 2, "device": "cpu", "gate_samples": 0}
    extract(ExtractConfig(data=data, teacher=teacher, out=out, **common))
    store = Store(out)
    logits = np.stack([store.read_logits(1, view, slice(None)) for view in range(2)])
    views = [store.read_views(1, view, slice(None)) for view in range(2)]
    sample = store.read_samples(1, (0, 1))[0]
    row, number = sample.row, sample.view
    views[number][row] = dataclasses.replace(views[number][row], flip=not views[number][row].flip)
    forge_views(out, 1, logits, views)
    reason = check(out, data).reason
    assert (
        f"train-00001-of-00002 record {row} " in reason
        and f"view {number}: the image decodes as at extraction, but its view" in reason
    )


def test_another_order(tmp_path, store, data):
    """The same records, two of them swapped: they are found by their keys."""
    swapped = tmp_path / "swapped"
    shutil.copytree(data, swapped)
    rewrite_shard(swapped / "train-00000-of-00002", lambda rows: [rows[5], *rows[1:5], rows[0], *rows[6:]])
    verdict = check(store, swapped)
    assert verdict.is_sound, verdict.reason
    assert (verdict.num_keys, verdict.num_pixels, verdict.num_logits) == (15, 2 * MIN_SAMPLES, 15)


def test_logits_of_other_weights(tmp_path, store, data, teacher):
    """The pixels are right, the answers are not, and the weights' hash was forged: the arithmetic is suspected."""
    other = write_color_teacher(tmp_path / "other.onnx", order=[1, 0, 2, 3])
    opened = Store(store)
    hashes = {name: load_model(spec).weights_sha256 for name, spec in (("old", teacher), ("new", other))}
    plan = dataclasses.replace(opened.plan, teacher=opened.plan.teacher | {"weights_sha256": hashes["new"]})
    assert opened.plan.teacher["weights_sha256"] == hashes["old"] != hashes["new"]
    store = rewrite_store(opened, tmp_path / "forged", plan)
    verdict = check(store, data, teacher=other)
    assert not verdict.is_sound and verdict.num_pixels == 2 * MIN_SAMPLES
    assert "the pixels are the teacher's, so weights or numerics differ (the same torch" in verdict.reason


def test_mixed_and_augmented_views_replay(tmp_path, data, teacher):
    out = tmp_path / "full"
    options = {"policy": "crop+randaugment", "erase_prob": 0.5, "mixup_alpha": 0.5, "cutmix_alpha": 1.0, "views": 3}
    extract(ExtractConfig(data=data, teacher=teacher, out=out, codec="topk", topk=2, device="cpu", **options))
    verdict = check(out, data)
    assert verdict.is_sound, verdict.reason
    assert (verdict.num_pixels, verdict.num_logits) == (2 * MIN_SAMPLES, 45)


def test_another_teacher(tmp_path, store, data, teacher):
    other = write_color_teacher(tmp_path / "other.onnx", order=[1, 0, 2, 3])
    verdict = check(store, data, teacher=other)
    assert not verdict.is_sound and "its weights: not the same then and now; give --teacher" in verdict.reason
    verdict = check(store, data, teacher=teacher + ",interpolation=bicubic")
    assert not verdict.is_sound and "preprocessing.interpolation was bilinear, now bicubic" in verdict.reason


def test_an_unfinished_store(store, data):
    remove_manifests(store)
    (store / NAME).unlink()
    verdict = check(store, data)
    assert not verdict.is_sound and "5 of 6 files" in verdict.reason


def test_folders_verify_too(tmp_path, teacher):
    images = write_image_folder(tmp_path / "images", num_classes=4)
    extract(ExtractConfig(data=images, teacher=teacher, out=tmp_path / "s", device="cpu", gate_samples=0))
    assert check(tmp_path / "s", images).is_sound
    changed = images / "train" / "class2" / "train_2_1.jpg"
    raw = bytearray(changed.read_bytes())
    raw[-10] ^= 1
    changed.write_bytes(raw)
    assert "class2/train_2_1.jpg" in check(tmp_path / "s", images).reason


def test_the_command_line_gives_verdict_and_exit_code(store, data, capsys):
    with pytest.raises(SystemExit) as end:
        main(["verify", str(store), "--data", str(data), "--device", "cpu"])
    assert end.value.code == 0 and ": sound: 7 files, 15 keys" in capsys.readouterr().out
    one = Verdict(is_sound=True, num_files=1, num_keys=1, num_top1=1, num_pixels=1, num_logits=1, num_absent=1)
    assert show_verdict(one, VerifyConfig(store=store, data=data)) == 0
    assert capsys.readouterr().out == (
        f"{store}: sound: 1 file, 1 key, top-1 of 1 block, pixels of 1 and logits of 1 view (1 image of the store is "
        "missing from the data)\n"
    )
    (store / NAME).write_bytes(b"")
    with pytest.raises(SystemExit) as end:
        main(["verify", str(store), "--data", str(data), "--device", "cpu", "--json"])
    verdict = json.loads(capsys.readouterr().out)
    assert end.value.code == 1 and verdict["is_sound"] is False and NAME in verdict["reason"]
    assert set(verdict) == {field.name for field in dataclasses.fields(type(check(store, data)))}


@dataclasses.dataclass(frozen=True)
class OwnCodec(Float32Codec):
    name = "own"


@pytest.mark.parametrize("command", ["verify", "inspect", "status"])
@pytest.mark.parametrize("change", ["codec", "format"])
def test_a_store_that_this_program_does_not_know_gets_no_verdict(store, data, capsys, monkeypatch, change, command):
    """Its codec is to be entered first, or a newer version to be used: neither is damage."""
    if change == "codec":
        monkeypatch.setitem(CODECS, "own", OwnCodec)
        shutil.rmtree(store)
        write_store(store, data, codec="own")
        monkeypatch.delitem(CODECS, "own")
        expected = "unknown codec 'own' .*; a codec of your own must be entered in teachonce.codecs.registry.CODECS"
    else:
        plan = read_plan(store).to_json()
        (store / "plan.json").write_bytes(sealed_bytes({**plan, "format_version": 99, "follows": None}))
        expected = "store format version 99, this teachonce reads 3 .*; use the version of teachonce that wrote it"
    with pytest.raises(SystemExit) as end:
        main([command, str(store), *(("--data", str(data)) if command == "verify" else ())])
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if not line.startswith("verify: ")]
    assert end.value.code == 1 and not shown.out, "no verdict"
    assert len(lines) == 1 and re.match(f"teachonce: {store}/plan.json: {expected}", lines[0]), lines


def test_a_teacher_that_is_not_where_the_plan_says(tmp_path, store, data, teacher):
    (tmp_path / "teacher.onnx").rename(tmp_path / "moved.onnx")
    with pytest.raises(TeachonceError, match=r"the store's plan, onnx:.*with --teacher, or --samples 0"):
        check(store, data)
    with pytest.raises(TeachonceError) as error:
        check(store, data, teacher=teacher)
    assert "plan" not in str(error.value), "it was given"
    assert check(store, data, samples=0).is_sound
    assert check(store, data, teacher=teacher.replace("teacher.onnx", "moved.onnx")).is_sound


def test_another_preprocessing_is_said_by_what_differs(store, data, teacher):
    found = check(store, data, teacher=teacher + ",mean=0.5")
    assert not found.is_sound
    assert "preprocessing.mean was [" in found.reason and "resize_px" not in found.reason


def test_all_records_are_looked_at_once_whatever_the_sizes_of_shards(data, monkeypatch):
    source = open_records(data, "train")
    monkeypatch.setattr(
        source, "shards", (ShardInfo("a", None, 0, 0), ShardInfo("b", None, 3, 0), ShardInfo("c", None, 5, 100 << 20))
    )
    blocks = list(_blocks(source, range(3)))
    assert [place for block in blocks for place in block] == [(1, 0), (1, 1), (1, 2), *((2, row) for row in range(5))]
    assert [len(block) for block in blocks] == [3, 1, 1, 1, 1, 1]
