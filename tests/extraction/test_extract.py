"""Extraction: what the teacher said, in record order, whatever was killed, resumed or split among workers."""

import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from teachonce.errors import CheckError, ConfigError, LogitsError, PlanMismatchError, RecordError, StoreError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import _finish, extract
from teachonce.extraction.prepare import build_extractor, prepare
from teachonce.extraction.units import Unit, UnitCounts, all_units
from teachonce.models.classifier import Classifier, load_model
from teachonce.pixels.apply_view import apply_view
from teachonce.pixels.decode import decode_image
from teachonce.records.discovery import open_records
from teachonce.rng import generator
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import records_file
from teachonce.store.plan_files import CONFIG_NAME
from teachonce.store.store import Store
from teachonce.views.draw import draw_view, sample_view
from teachonce.views.policy import AutoAugment, CropPolicy, ObjectCrop
from tests.support.small_data import build_dataset, example, remove_manifests, write_image_folder, write_shards
from tests.support.small_models import COLORS, write_color_shards, write_color_teacher


@pytest.fixture
def data(tmp_path):
    return write_color_shards(tmp_path / "data")


@pytest.fixture
def teacher(tmp_path):
    return write_color_teacher(tmp_path / "teacher.onnx")


def run(data, teacher, out, **options):
    options = {"codec": "float32", "batch_size": 8, "device": "cpu"} | options
    extract(ExtractConfig(data=data, teacher=teacher, out=out, **options))
    return Store(out)


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.glob("[!.]*.arrow"))}


def tree(path: Path) -> dict[str, bytes]:
    """The store's files, without the options of the call that began it."""
    return {file.name: file.read_bytes() for file in sorted(path.glob("[!.]*")) if file.name != CONFIG_NAME}


def test_the_store_holds_what_the_teacher_says_of_each_record(tmp_path, data, teacher):
    store = run(data, teacher, tmp_path / "store")
    source = open_records(data, "train")
    model = load_model(teacher)
    assert store.class_space.offset == 1 and store.class_space.num_classes == 4 and store.plan.data_classes == 5
    for shard, (_, num_records) in enumerate(store.shards):
        for row in range(num_records):
            record = source.read_record(shard, row)
            pixels = model.preprocessing.apply(decode_image(record.encoded))
            expected = model.collect_logits(model.logits(torch.from_numpy(pixels[None])))[0]
            np.testing.assert_allclose(store.read_logits(shard, 0, [row])[0], expected, atol=1e-4)
            assert int(store.read_keys(shard)[row]) == record.key
            assert store.read_labels(shard)[row] == record.label
            assert expected.argmax() + 1 == record.label
    manifest = json.loads((tmp_path / "store" / "manifest.v000-000.json").read_text())
    (made_by,) = manifest["made_by"]
    assert "pillow" in made_by["versions"] and made_by["device"] == "cpu" and store.made_by == [made_by]
    assert len(store.index) == 1 and len(store.index[0]) == 33


def test_a_resumed_store_is_the_same_byte_for_byte(tmp_path, data, teacher):
    run(data, teacher, tmp_path / "whole", codec="int8")
    run(data, teacher, tmp_path / "resumed", codec="int8")
    removed = tmp_path / "resumed" / "train-00001-of-00002.v000-000.arrow"
    removed.unlink()
    remove_manifests(tmp_path / "resumed")
    kept = tmp_path / "resumed" / "train-00000-of-00002.v000-000.arrow"
    stamp = kept.stat().st_mtime_ns
    run(data, teacher, tmp_path / "resumed", codec="int8")
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")
    assert kept.stat().st_mtime_ns == stamp


def test_a_finished_store_is_not_touched(tmp_path, data, teacher):
    run(data, teacher, tmp_path / "store")
    stamps = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "store").iterdir()}
    run(data, teacher, tmp_path / "store")
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "store").iterdir()} == stamps


def test_finished_shards_are_skipped_before_anything_is_decoded(tmp_path, teacher):
    data = write_color_shards(tmp_path / "data", sizes=(4, 4, 4))
    run(data, teacher, tmp_path / "store")
    expected = files(tmp_path / "store")
    remove_manifests(tmp_path / "store")
    (tmp_path / "store" / "train-00002-of-00003.v000-000.arrow").unlink()
    # A finished shard whose data is destroyed (same size, so the plan agrees) is not looked at again.
    shard = data / "train-00000-of-00003"
    shard.write_bytes(bytes(shard.stat().st_size))
    run(data, teacher, tmp_path / "store", gate_samples=0)
    assert files(tmp_path / "store") == expected


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_any_batch_size_gives_the_same_logits(tmp_path, data, teacher, batch_size):
    expected = run(data, teacher, tmp_path / "a").read_logits(1, 0, slice(None))
    found = run(data, teacher, tmp_path / "b", batch_size=batch_size).read_logits(1, 0, slice(None))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_worker_of_a_job_array_does_its_part_and_then_what_others_lack(tmp_path, teacher, capsys):
    data = write_color_shards(tmp_path / "data", sizes=(4, 4, 4))
    whole = run(data, teacher, tmp_path / "whole")
    out = tmp_path / "parts"
    options = {"data": data, "teacher": teacher, "out": out, "codec": "float32", "device": "cpu"}
    assert extract(ExtractConfig(**options, worker="1/2"))
    said = capsys.readouterr().err
    assert "0 of 3 units done, 1 to do here" in said and "own part done; 2 units of other workers are missing" in said
    assert tree(out) == tree(whole.path)
    assert extract(ExtractConfig(**options, worker="0/2"))
    assert "3 of 3 units done, 0 to do here" in capsys.readouterr().err


def test_workers_at_once_make_few_units_twice_and_the_same_store(tmp_path, teacher):
    """No lease: what another worker makes meanwhile is skipped, or made twice and counted."""
    data = write_color_shards(tmp_path / "data", sizes=(8,) * 30)
    crops = {"policy": "crop", "views": 4, "views_per_file": 4, "batch_size": 1, "gate_samples": 0}
    whole = run(data, teacher, tmp_path / "whole", **crops)
    options = {"data": data, "teacher": teacher, "out": tmp_path / "parts", "codec": "float32", "device": "cpu"}

    def work(index):
        return extract(ExtractConfig(**options, **crops, worker=f"{index}/3"))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, range(3)))
    assert tree(tmp_path / "parts") == tree(whole.path)


def test_a_worker_that_loads_other_weights_than_the_planned_ones_does_nothing(tmp_path, data, teacher):
    """As where a run whose best epoch teaches is still trained, and a worker begins later than the others."""
    config = ExtractConfig(data=data, teacher=teacher, out=tmp_path / "store", gate_samples=0, device="cpu")
    preparation, _ = prepare(config)
    build_extractor(config, preparation, num_threads=1)
    write_color_teacher(tmp_path / "teacher.onnx", order=list(range(len(COLORS)))[::-1])
    with pytest.raises(PlanMismatchError, match="its weights have changed since the extraction began"):
        build_extractor(config, preparation, num_threads=1)


def test_what_is_there_when_its_turn_comes_is_skipped_and_what_came_meanwhile_is_counted(tmp_path, data, teacher):
    """Files of another worker appear between the listing and a unit's turn, and between its turn and its writing."""
    crops = {"policy": "crop", "views": 2, "views_per_file": 1, "gate_samples": 0}
    whole = run(data, teacher, tmp_path / "whole", **crops)
    config = ExtractConfig(
        data=data, teacher=teacher, out=tmp_path / "store", codec="float32", batch_size=8, device="cpu", **crops
    )
    preparation, loaded = prepare(config)
    extractor = build_extractor(config, preparation, loaded)
    bundle = [unit for unit in all_units(preparation.plan) if unit.group == (0, 0)]
    names = [records_file(whole.shards[0][0]), *whole.plan.group_files(whole.shards[0][0], (0, 0))]
    for name in names:
        shutil.copy(whole.path / name, config.out / name)
    counts = []
    assert extractor(bundle, counts.append) == UnitCounts(num_made=1, num_skipped=1)
    assert sum(counts) == sum(num_records for _, num_records in whole.shards)

    write = extractor._write

    def come_first(result):
        for path in whole.path.glob(f"{result.name}.*"):
            shutil.copy(path, config.out / path.name)
        write(result)

    extractor._write = come_first
    assert extractor([Unit(0, (1, 1)), Unit(1, (1, 1))]) == UnitCounts(num_twice=2)


def test_units_that_a_cluster_made_elsewhere_are_said(tmp_path, data, teacher):
    """Each node with a folder of its own under the name of --out: the workers are done, and the files are not here."""
    out = tmp_path / "store"
    store = run(data, teacher, out)
    remove_manifests(out)
    (out / "train-00001-of-00002.v000-000.arrow").unlink()
    config = ExtractConfig(data=data, teacher=teacher, out=out, engine="ray")
    with pytest.raises(
        StoreError, match=f"^{out}: 1 units that workers finished are missing here: --out must be a folder that"
    ):
        _finish(config, store.plan, has_new_files=True)


@pytest.mark.slow
def test_processes_give_the_same_store(tmp_path, teacher):
    data = write_color_shards(tmp_path / "data", sizes=(4, 4, 4))
    whole = run(data, teacher, tmp_path / "whole")
    run(data, teacher, tmp_path / "two", num_workers=2)
    for shard in range(3):
        np.testing.assert_allclose(
            Store(tmp_path / "two").read_logits(shard, 0, slice(None)),
            whole.read_logits(shard, 0, slice(None)),
            atol=1e-5,
        )


def test_another_plan_is_refused_with_what_differs(tmp_path, data, teacher):
    run(data, teacher, tmp_path / "store")
    with pytest.raises(PlanMismatchError, match=r"codec\.name was float32, now int8"):
        run(data, teacher, tmp_path / "store", codec="int8")
    other = write_color_teacher(tmp_path / "other.onnx", order=[1, 0, 2, 3])
    with pytest.raises(PlanMismatchError, match=r"the teacher's weights \(--teacher\): not the same then and now"):
        run(data, other, tmp_path / "store")
    with pytest.raises(PlanMismatchError, match=r"preprocessing\.size_px was 16, now 20"):
        run(data, teacher.replace("size=16,resize=16", "size=20,resize=20"), tmp_path / "store")
    others = write_color_shards(tmp_path / "others", sizes=(20, 14), first_index=100)
    with pytest.raises(PlanMismatchError, match=r"started with other data: it has none of the 34 records here"):
        run(others, teacher, tmp_path / "store")
    moved = tmp_path / "moved.onnx"
    (tmp_path / "teacher.onnx").rename(moved)
    run(data, f"onnx:{moved},size=16,resize=16", tmp_path / "store")


def test_folders_are_a_source_too(tmp_path, teacher):
    images = write_image_folder(tmp_path / "images", num_classes=4)
    store = run(images, teacher, tmp_path / "store")
    assert store.class_space.offset == 0 and store.read_filenames(0)[0] == "class0/train_0_0.jpg"


def test_views_are_drawn_by_seed_key_and_view_and_stored(tmp_path, data, teacher):
    store = run(data, teacher, tmp_path / "store", policy="crop", views=3, views_per_file=2, seed=5)
    source = open_records(data, "train")
    model = load_model(teacher)
    for shard, row, view_index in [(0, 0, 0), (1, 7, 1), (0, 19, 2)]:
        record = source.read_record(shard, row)
        view = store.read_views(shard, view_index, [row])[0]
        assert view == sample_view(generator(5, "view", record.key, view_index), CropPolicy(), 24, 20)
        pixels = apply_view(decode_image(record.encoded), view, 16)
        expected = model.collect_logits(model.logits(torch.from_numpy(pixels.copy()[None])))[0]
        np.testing.assert_allclose(store.read_logits(shard, view_index, [row])[0], expected, atol=1e-4)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_views_drawn_by_the_boxes_of_the_records(tmp_path, teacher, num_workers):
    """Stored as they were drawn, and seen by a student that reads no boxes at all."""
    boxes = np.array([[0.0, 0.0, 0.25, 0.5]], np.float32)
    data = write_color_shards(tmp_path / "data", sizes=(6, 5), boxes=boxes)
    options = {"policy": "crop+autoaugment", "object_covered": 0.8, "crop_scale": (0.05, 1.0), "gate_samples": 0}
    store = run(data, teacher, tmp_path / "store", views=3, num_workers=num_workers, **options)
    policy = CropPolicy(scale=(0.05, 1.0), autoaugment=AutoAugment(), objects=ObjectCrop(covered=0.8))
    assert store.policy == policy
    source = open_records(data, "train")
    for shard, (_, num_records) in enumerate(store.shards):
        for row in range(num_records):
            key = source.read_record(shard, row).key
            for number in range(3):
                (view,) = store.read_views(shard, number, [row])
                assert view == draw_view(policy, 0, key, number, 24, 20, None, boxes)
                left, top, right, bottom = view.box
                assert max(0, 6 - left) * max(0, 10 - top) >= 0.8 * 60 and right >= 6 and bottom >= 10
    batch = build_dataset(source, size=16, store=store).read_batch([7], 2)
    (view,) = store.read_views(1, 2, [1])
    image = decode_image(source.read_record(1, 1).encoded)
    np.testing.assert_array_equal(batch["pixels"][0], apply_view(image, view, 16))
    assert not source.with_boxes


def test_more_views_are_added_without_touching_the_first(tmp_path, data, teacher):
    run(data, teacher, tmp_path / "store", policy="crop", views=2)
    before = files(tmp_path / "store")
    store = run(data, teacher, tmp_path / "store", policy="crop", views=4)
    assert store.num_views == 4
    after = files(tmp_path / "store")
    assert {name: after[name] for name in before} == before
    at_once = run(data, teacher, tmp_path / "at-once", policy="crop", views=4)
    for view in range(4):
        np.testing.assert_allclose(
            at_once.read_logits(0, view, slice(None)), store.read_logits(0, view, slice(None)), atol=1e-5
        )


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.storage.local import LocalStorage
put, count = LocalStorage.put_if_absent, 0
@contextmanager
def die(storage, name):
    global count
    with put(storage, name) as file:
        yield file
        count += name.endswith(".v000-000.arrow")
        if count == 4:
            os.kill(os.getpid(), signal.SIGKILL)
LocalStorage.put_if_absent = die
extract(ExtractConfig(data=Path(sys.argv[1]), teacher=sys.argv[2], out=Path(sys.argv[3]), codec="int8",
                      batch_size=8, device="cpu"))
"""


@pytest.mark.slow
def test_kill_nine_and_again(tmp_path, teacher):
    """It kills itself where its fourth file of views is written and has no name yet."""
    data = write_color_shards(tmp_path / "data", sizes=(60,) * 8)
    command = [sys.executable, "-c", KILLED, str(data), teacher, str(tmp_path / "killed")]
    process = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(list((tmp_path / "killed").glob("train-*.v000-000.arrow"))) == 3
    assert list((tmp_path / "killed").glob(".tmp-*"))
    done = files(tmp_path / "killed")
    assert not list((tmp_path / "killed").glob("manifest.*"))
    with pytest.raises(StoreError, match="is not finished"):
        Store(tmp_path / "killed")
    run(data, teacher, tmp_path / "killed", codec="int8")
    run(data, teacher, tmp_path / "whole", codec="int8")
    again = files(tmp_path / "killed")
    assert {name: again[name] for name in done} == done
    assert again == files(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".tmp-*"))


def test_a_removed_input_leaves_what_is_whole(tmp_path, teacher):
    data = write_color_shards(tmp_path / "data", sizes=(4, 4))
    broken = data / "train-00001-of-00002"
    good = broken.read_bytes()
    broken.write_bytes(good[:-100] + bytes(100))
    with pytest.raises(RecordError, match=r"^train-00001-of-00002|train-00001-of-00002 record"):
        run(data, teacher, tmp_path / "store", gate_samples=0)
    assert (tmp_path / "store" / "train-00000-of-00002.v000-000.arrow").exists()
    broken.write_bytes(good)
    assert run(data, teacher, tmp_path / "store", gate_samples=0).num_records == 8


def test_nan_logits_are_refused_with_the_record(tmp_path, data):
    teacher = write_color_teacher(tmp_path / "nan.onnx", nan_above=0.6)
    with pytest.raises(LogitsError, match=r"train-0000\d-of-00002.*NaN or infinite"):
        run(data, teacher, tmp_path / "store", gate_samples=0)
    assert files(tmp_path / "store") == {}


def test_a_label_out_of_range_and_a_bad_image_are_named(tmp_path, teacher):
    payloads = [example(0, 1), example(1, 9)]
    data = write_shards(tmp_path / "labels", sizes=(2,), num_classes=None, payloads=payloads)
    with pytest.raises(RecordError, match=r"record 1 .*label 9, expected 0 to 4"):
        run(data, teacher, tmp_path / "a", offset=1, gate_samples=0)
    payloads = [example(0, 1), example(1, 2, encoded=b"\xff\xd8\xff but no image")]
    data = write_shards(tmp_path / "images", sizes=(2,), num_classes=5, payloads=payloads)
    with pytest.raises(RecordError, match=r"train-00000-of-00001 record 1 "):
        run(data, teacher, tmp_path / "b", gate_samples=0)


def test_the_class_space_is_explicit(tmp_path, teacher):
    foreign = write_shards(tmp_path / "foreign", num_classes=None)
    with pytest.raises(ConfigError, match="give --num-classes"):
        run(foreign, teacher, tmp_path / "a")
    assert run(foreign, teacher, tmp_path / "b", num_classes=5).class_space.offset == 1
    assert run(foreign, teacher, tmp_path / "c", offset=0).plan.data_classes == 4
    many = write_shards(tmp_path / "many", num_classes=9)
    with pytest.raises(ConfigError, match="4 classes, the data 9: create the records with"):
        run(many, teacher, tmp_path / "d")


def test_the_gate_lets_a_good_teacher_pass(tmp_path, data, teacher, capsys):
    run(data, teacher, tmp_path / "store", expect_top1=0.99)
    assert "gate: top-1 1.000 on 33 records" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, finding",
    [
        ({"offset": 0}, r"labels shifted by one \(--offset 1\), which gives 1\.000"),
        ({"order": [2, 0, 3, 1]}, r"a different class order"),
        ({"options": ",mean=0.5,std=2.5"}, r"a wrong mean/std \(.*: add ',mean="),
    ],
)
def test_the_gate_names_the_mistake(tmp_path, data, change, finding):
    teacher = write_color_teacher(tmp_path / "t.onnx", order=change.get("order")) + change.get("options", "")
    with pytest.raises(CheckError, match=finding) as error:
        run(data, teacher, tmp_path / "store", expect_top1=0.9, offset=change.get("offset"))
    assert "expected at least 0.9" in str(error.value)
    # Nothing is left that would refuse the right teacher.
    good = write_color_teacher(tmp_path / "good.onnx")
    assert run(data, good, tmp_path / "store", expect_top1=0.9).num_records == 33


def test_the_gate_of_a_store_that_is_whole_is_its_own_logits(tmp_path, data):
    wrong = write_color_teacher(tmp_path / "wrong.onnx", order=[1, 2, 3, 0])
    with pytest.warns(UserWarning, match="near chance: are --offset and the class order right"):
        run(data, wrong, tmp_path / "store")
    with pytest.raises(CheckError, match=r"is complete, and its logits have top-1 0\.000, expected at least 0\.5"):
        run(data, wrong, tmp_path / "store", expect_top1=0.5)


def test_a_file_that_is_made_again_is_the_one_that_was_there(tmp_path, data, teacher):
    """The manifest stays as it is, so the bytes must be the same; they are, with the same libraries and batches."""
    store = run(data, teacher, tmp_path / "store")
    before = tree(tmp_path / "store")
    (tmp_path / "store" / "train-00000-of-00002.v000-000.arrow").unlink()
    with pytest.raises(StoreError, match=r"1 of 7 files are damaged.*\n.*v000-000\.arrow: cannot be read"):
        store.check_files()
    assert run(data, teacher, tmp_path / "store").check_files() == 7
    assert tree(tmp_path / "store") == before


def test_an_unwritable_output_is_one_line(tmp_path, data, teacher):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="exists and is not a store"):
        run(data, teacher, tmp_path / "file")
    assert len(COLORS) == 4


def test_the_same_command_again_passes_the_gate_again(tmp_path, data, teacher):
    """Mixed views are no measure of the teacher: the gate looks at center crops, the second time too."""
    options = {"policy": "crop", "views": 2, "mixup_alpha": 1.0, "expect_top1": 0.9}
    run(data, teacher, tmp_path / "store", **options)
    assert run(data, teacher, tmp_path / "store", **options).num_views == 2


def test_a_teacher_without_antialiasing_cannot_render_views(tmp_path, data, teacher):
    blind = teacher + ",interpolation=tf1_bilinear"
    with pytest.raises(ConfigError, match="its preprocessing has no antialiasing, while views are antialiased"):
        run(data, blind, tmp_path / "views", policy="crop", gate_samples=0)
    assert not (tmp_path / "views").exists()
    assert run(data, blind, tmp_path / "center", gate_samples=0).num_views == 1


def test_fewer_views_of_another_store_are_finished_all_the_same(tmp_path, data, teacher, capsys):
    first = run(data, teacher, tmp_path / "a", policy="crop", views=4, views_per_file=2)
    begun = run(data, teacher, tmp_path / "b", views_of=first.path, views_per_file=2)
    for path in (tmp_path / "b").glob("*.v002-003*"):
        path.unlink()
    again = run(data, teacher, tmp_path / "b", views_of=first.path, views=2, views_per_file=2)
    assert again.num_views == begun.num_views == 4
    assert "planned for 4 views, more than --views 2: all of them are extracted" in capsys.readouterr().err


def test_training_can_begin_when_the_first_views_are_whole(tmp_path, data, teacher, capsys):
    """What a stopped extraction left is usable."""
    run(data, teacher, tmp_path / "store", policy="crop", views=4, views_per_file=2)
    assert "views 0 to 1 are complete; training can begin with them" in capsys.readouterr().err
    remove_manifests(tmp_path / "store")
    (tmp_path / "store" / "train-00001-of-00002.v002-003.arrow").unlink()
    assert finalize_store(tmp_path / "store") == 2 and Store(tmp_path / "store").num_views == 2
    store = run(data, teacher, tmp_path / "store", policy="crop", views=4, views_per_file=2)
    assert store.num_views == 4 and store.check_files() == 11


def test_workers_that_finish_at_once_write_the_same_manifests(tmp_path, data, teacher):
    run(data, teacher, tmp_path / "store", policy="crop", views=4, views_per_file=2)
    expected = tree(tmp_path / "store")
    remove_manifests(tmp_path / "store")
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(finalize_store, [tmp_path / "store"] * 16)) == [4] * 16
    assert tree(tmp_path / "store") == expected


def test_the_plan_says_the_precision_that_there_was(tmp_path, data, teacher):
    """ONNX models have their own: verify would otherwise allow what bf16 needs."""
    with pytest.warns(UserWarning, match="--precision bf16 has no effect"):
        store = run(data, teacher, tmp_path / "store", precision="bf16")
    assert store.plan.teacher["precision"] == "float32"


def test_every_batch_that_a_teacher_sees_has_one_size(tmp_path, data, teacher, monkeypatch):
    """Those of the gate too: a compiled teacher is made for one."""
    sizes = set()
    ask = Classifier.logits

    def logits(self, pixels):
        sizes.add(len(pixels))
        return ask(self, pixels)

    monkeypatch.setattr(Classifier, "logits", logits)
    run(data, teacher, tmp_path / "store", batch_size=7)
    assert sizes == {2, 7}  # 2: the probe, before anything is compiled
