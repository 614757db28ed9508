"""Verify: sound is sound, and each damage is named with an exit code."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from teachonce.cli.main import main
from teachonce.errors import ConfigError, StoreError
from teachonce.extraction.config import ExtractConfig, VerifyConfig
from teachonce.extraction.extract import MIN_SAMPLES, extract
from teachonce.extraction.verify import verify
from teachonce.interop.config import MergeConfig
from teachonce.interop.merge import merge
from teachonce.models.classifier import load_model
from teachonce.records.class_table import ClassTable, write_classes
from teachonce.records.discovery import open_records
from teachonce.records.tfrecord.framing import TFRecordWriter, read_tfrecords
from teachonce.store.arrow_files import read_samples, views_file, write_samples, write_views
from teachonce.store.plan import finalize_store
from teachonce.store.store import Store
from tests.support.small_data import build_dataset, write_image_folder
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
    assert (verdict.num_files, verdict.num_keys) == (6, 15)
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


def test_logits_that_the_teacher_never_said(store, data):
    opened = Store(store)
    row = next(sample.row for shard, sample in opened.read_samples() if shard == 1)
    logits = np.stack([opened.read_logits(1, 0, slice(None))])
    logits[0, row, 2] += 0.5
    keys = opened.read_keys(1).copy()
    (store / NAME).unlink()
    write_views(store / NAME, keys, opened.codec, logits, None)
    assert finalize_store(store, {})  # a forger who keeps the books in order
    verdict = check(store, data)
    assert not verdict.is_sound
    assert f"train-00001-of-00002 record {row} " in verdict.reason and f"image_{9 + row}.jpg" in verdict.reason
    assert (
        re.search(r"differ from what the teacher said by 0\.(49|5)", verdict.reason) and "codec int8" in verdict.reason
    )


def test_data_that_changed(tmp_path, store, data):
    other = write_color_shards(tmp_path / "other", sizes=(9, 6), first_index=100)
    verdict = check(store, other)
    assert not verdict.is_sound and "the image changed since extraction" in verdict.reason
    fewer = write_color_shards(tmp_path / "fewer", sizes=(9, 5))
    assert "a store of other data" in check(store, fewer).reason
    with pytest.raises(ConfigError, match="no such folder"):
        check(store, tmp_path / "nowhere")


def test_the_same_images_with_other_labels(tmp_path, store):
    """Keys agree, but every image would get the logits of other classes."""
    other = write_color_shards(tmp_path / "other", sizes=(9, 6), rotate=1)
    verdict = check(store, other, teacher="none")
    assert not verdict.is_sound and "record 0" in verdict.reason and "label 2 " in verdict.reason
    with pytest.raises(StoreError, match=r"label 2 .* has 1: the classes have another order"):
        merge(MergeConfig(store=store, data=other, out=tmp_path / "m", num_workers=1))
    with pytest.raises(StoreError, match=r"label \d .*another order"):
        build_dataset(open_records(other, "train"), size=8, store=store).read_batch([0], 0)


def test_data_with_another_class_count(tmp_path, store, data):
    names = ("background", *"abcdefg")
    write_classes(data, ClassTable(names, names, has_background=True))
    verdict = check(store, data, teacher="none")
    assert not verdict.is_sound and "made for 5 classes (background included), the data has 8" in verdict.reason


def forge_samples(store, **changes):
    """Change what the samples say of the extraction: as if another library had made it."""
    for path in store.glob("*.sample.arrow"):
        write_samples(path, [dataclasses.replace(sample, **changes) for sample in read_samples(path)])
    assert finalize_store(store, {"pillow": "1.0"})


def test_another_decoder(store, data):
    forge_samples(store, image_xxh3=1)
    verdict = check(store, data)
    assert not verdict.is_sound and verdict.num_pixels == 0
    assert "decode to other pixels than at extraction: another decoder (pillow 1.0 at extraction" in verdict.reason
    assert " record " in verdict.reason and "view 0" in verdict.reason


def test_another_resize(store, data):
    forge_samples(store, pixels_xxh3=1)
    reason = check(store, data).reason
    assert "decodes as at extraction, its view differs: another resize, crop or operation (pillow 1.0" in reason


def test_a_view_that_was_changed(tmp_path, data, teacher):
    """The replayed pixels are no longer those that the teacher saw."""
    out = tmp_path / "views"
    common = {"policy": "crop", "views": 2, "device": "cpu", "gate_samples": 0}
    extract(ExtractConfig(data=data, teacher=teacher, out=out, **common))
    store = Store(out)
    name, group = store.shards[1][0], store.plan.view_groups[0]
    logits = np.stack([store.read_logits(1, view, slice(None)) for view in range(2)])
    views = [store.read_views(1, view, slice(None)) for view in range(2)]
    row, number = next((sample.row, sample.view) for shard, sample in store.read_samples() if shard == 1)
    views[number][row] = dataclasses.replace(views[number][row], flip=not views[number][row].flip)
    (out / views_file(name, group)).unlink()
    write_views(out / views_file(name, group), store.read_keys(1), store.codec, logits, views)
    assert finalize_store(out, {})
    reason = check(out, data).reason
    assert (
        f"train-00001-of-00002 record {row} " in reason
        and f"view {number}: the image decodes as at extraction, its view" in reason
    )


def test_another_order(tmp_path, store, data):
    """The same records, two of them swapped."""
    swapped = tmp_path / "swapped"
    shutil.copytree(data, swapped)
    path = swapped / "train-00000-of-00002"
    payloads = [payload for _, payload in read_tfrecords(path)]
    payloads[2], payloads[5] = payloads[5], payloads[2]
    with path.open("wb") as file:
        writer = TFRecordWriter(file)
        for payload in payloads:
            writer.write(payload)
    for index in swapped.glob("*.idx"):
        index.unlink()
    verdict = check(store, swapped)
    assert not verdict.is_sound and "record 2 " in verdict.reason
    assert "the records of this shard have another order than at extraction" in verdict.reason


def test_logits_of_other_weights(tmp_path, store, data, teacher):
    """The pixels are right, the answers are not, and the weights' hash was forged: the arithmetic is suspected."""
    other = write_color_teacher(tmp_path / "other.onnx", order=[1, 0, 2, 3])
    for name in ("plan.json", "manifest.json"):
        value = (store / name).read_text()
        (store / name).write_text(value.replace(load_model(teacher).weights_sha256, load_model(other).weights_sha256))
    verdict = check(store, data, teacher=other)
    assert not verdict.is_sound and verdict.num_pixels == 2 * MIN_SAMPLES
    assert "the pixels are the teacher's, so weights or arithmetic differ (the same torch" in verdict.reason


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
    assert not verdict.is_sound and "weights_sha256" in verdict.reason
    verdict = check(store, data, teacher=teacher + ",interpolation=bicubic")
    assert not verdict.is_sound and "preprocessing of the teacher was" in verdict.reason


def test_an_unfinished_store(store, data):
    (store / "manifest.json").unlink()
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
    assert end.value.code == 0 and ": sound: 6 files, 15 keys" in capsys.readouterr().out
    (store / NAME).write_bytes(b"")
    with pytest.raises(SystemExit) as end:
        main(["verify", str(store), "--data", str(data), "--device", "cpu", "--json"])
    verdict = json.loads(capsys.readouterr().out)
    assert end.value.code == 1 and verdict["is_sound"] is False and NAME in verdict["reason"]
    assert set(verdict) == {field.name for field in dataclasses.fields(type(check(store, data)))}
