"""Shards whose images got restart markers: the same records to every store, and to nobody where they were changed."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from teachonce.engine.buffers import BufferPool
from teachonce.errors import ConfigError, PlanMismatchError, RecordError, StoreError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.inspection.config import InspectConfig
from teachonce.inspection.inspect import inspect
from teachonce.interop.config import CopyConfig, MergeConfig, RecordsConfig, ReindexConfig
from teachonce.interop.convert import convert_records
from teachonce.interop.copy import copy
from teachonce.interop.merge import merge
from teachonce.interop.reindex import reindex
from teachonce.native import load_library
from teachonce.pixels.decode import decode_image
from teachonce.pixels.restart_markers import add_restart_markers
from teachonce.records.discovery import open_records
from teachonce.records.options import RecordOptions
from teachonce.records.source import RecordBatch, RecordSource, all_keys, record_key
from teachonce.records.tfrecord import source as tfrecord_source
from teachonce.records.tfrecord.framing import read_tfrecords
from teachonce.records.tfrecord.source import decode_tfrecord
from teachonce.records.tfrecord.tf_example import decode_example, encode_example, replace_feature
from teachonce.store.join import StoreJoin
from teachonce.store.store import Store
from tests.support.small_data import (
    build_dataset,
    encode_jpeg,
    example,
    rewrite_shard,
    write_image_folder,
    write_shards,
    write_store,
)
from tests.support.small_models import write_color_shards, write_color_teacher

pytestmark = pytest.mark.skipif(load_library() is None, reason="the native library was not built")

SHARD = "train-00000-of-00002"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data")


@pytest.fixture
def out(tmp_path: Path, data: Path) -> Path:
    reindex(ReindexConfig(data=data, out=tmp_path / "out", num_workers=1))
    return tmp_path / "out"


def records_of(source: RecordSource | Path) -> list[Any]:
    source = open_records(source, "train") if isinstance(source, Path) else source
    return [record for shard in range(len(source.shards)) for record in source.iter_shard(shard)]


def test_records_keep_their_keys_pixels_and_everything_else(data: Path, out: Path) -> None:
    for path in sorted(data.glob("train-*-of-0000?")):
        for (_, old), (_, new) in zip(read_tfrecords(path), read_tfrecords(out / path.name), strict=True):
            before, after = decode_example(old), decode_example(new)
            assert after.keys() - before.keys() == {"image/encoded_xxh3", "image/original_key"}
            assert list(after) == sorted(after)
            assert {name for name in before if before[name] != after[name]} == {"image/encoded"} or all(
                np.array_equal(before[name], after[name]) for name in before if name != "image/encoded"
            )
    for old, new in zip(records_of(data), records_of(out), strict=True):
        assert (new.key, new.label, new.filename) == (old.key, old.label, old.filename)
        assert old.own_key is None and new.own_key == record_key(new.encoded) != new.key
        assert b"\xff\xdd" in bytes(new.encoded)
        np.testing.assert_array_equal(np.asarray(decode_image(new.encoded)), np.asarray(decode_image(old.encoded)))
    assert (out / "classes.json").read_bytes() == (data / "classes.json").read_bytes()


def test_every_way_of_reading_gives_the_same(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_records(out, "train")
    streamed = records_of(source)
    read = source.read_batch([(0, row) for row in range(5)])
    monkeypatch.setattr(tfrecord_source, "find_features", lambda payloads: None)
    for by_library, by_row, by_python in zip(streamed, read, records_of(source), strict=False):
        for other in (by_row, by_python):
            assert (other.key, other.own_key) == (by_library.key, by_library.own_key)


@pytest.mark.parametrize("is_store_of_the_originals", [True, False])
def test_stores_of_one_train_on_the_other(
    data: Path, out: Path, tmp_path: Path, is_store_of_the_originals: bool
) -> None:
    """Pixels, labels and logits are the same, whichever of the two the store was made of and the student sees."""
    made_of, seen = (data, out) if is_store_of_the_originals else (out, data)
    store = write_store(tmp_path / "store", made_of)
    batches = {}
    for folder in (made_of, seen):
        dataset = build_dataset(open_records(folder, "train"), store=store, size=16)
        batches[folder] = list(dataset.batches(batch_size=3, epoch=0, shuffle=False))
    for one, other in zip(*batches.values(), strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            np.testing.assert_array_equal(np.asarray(values), np.asarray(other[name]), err_msg=name)


def test_positions_are_tried_first_and_nothing_else_is_read(data: Path, out: Path, tmp_path: Path, cache: Path) -> None:
    """Of shards that say that they are rewritten; others of other bytes have all their keys looked up, as ever."""
    store = Store(write_store(tmp_path / "store", data).path)
    join = StoreJoin(store, open_records(out, "train"))
    assert join.has_positions and not list(cache.rglob("*.keys"))
    assert not StoreJoin(Store(write_store(tmp_path / "other", out).path), open_records(data, "train")).has_positions
    rewrite_shard(out / SHARD, lambda payloads: payloads[::-1])
    moved = open_records(out, "train")
    join = StoreJoin(store, moved)
    assert not join.has_positions
    assert join.locate([(0, 0)], [moved.read_record(0, 0)]) == [(0, 4)]


def test_a_store_of_the_image_folder_and_rewritten_records(tmp_path: Path) -> None:
    images = write_image_folder(tmp_path / "images")
    store = write_store(tmp_path / "store", images)
    for keep in (False, True):
        out = tmp_path / f"keep-{keep}"
        convert_records(RecordsConfig(images=images, out=out, restart="auto", keep=keep, shards=2, num_workers=1))
        join = StoreJoin(store, open_records(out, "train"))
        records = records_of(out)
        located = join.locate([(0, 0)] * len(records), records)
        assert len(set(located)) == len(records) == 12


def test_an_image_that_was_changed_since_is_refused(out: Path) -> None:
    """Its checksums hold, as of any program that writes shards; its own hash does not."""
    (record, *_) = records_of(out)

    def change(payloads: list[bytes]) -> list[bytes]:
        encoded = bytearray(decode_example(payloads[0])["image/encoded"][0])
        encoded[-20] ^= 1
        return [replace_feature(payloads[0], "image/encoded", bytes(encoded)), *payloads[1:]]

    rewrite_shard(out / SHARD, change)
    for read in (lambda: records_of(out), lambda: open_records(out, "train").read_record(0, 0)):
        with pytest.raises(
            RecordError, match=rf"{SHARD} record 0 .*image/encoded_xxh3 {record.own_key:016x}, expected"
        ):
            read()


@pytest.mark.parametrize(
    "features",
    [
        {"image/original_key": 5},
        {"image/encoded_xxh3": 5},
        {"image/encoded_xxh3": [5, 6], "image/original_key": 5},
        {"image/encoded_xxh3": b"5", "image/original_key": b"5"},
        {"image/encoded_xxh3": 5, "image/original_key": 5},
    ],
)
def test_half_of_the_features_or_others_are_refused(tmp_path: Path, features: dict[str, Any]) -> None:
    own = {"image/encoded": encode_jpeg(0), "image/class/label": 1}
    payload = encode_example(own | features)
    with pytest.raises(RecordError, match=r"here: image/encoded_xxh3 .*, expected .*the image was changed"):
        decode_tfrecord(payload, "here")
    folder = write_shards(tmp_path / "data", sizes=(1,), payloads=[payload])
    with pytest.raises(RecordError, match="image/encoded_xxh3"):
        records_of(folder)


def test_again_in_the_other_way_and_from_rewritten_records(data: Path, out: Path, tmp_path: Path) -> None:
    """The key stays that of the first original, and what is rewritten already stays as it is."""
    reindex(ReindexConfig(data=out, out=tmp_path / "same", num_workers=1))
    reindex(ReindexConfig(data=out, out=tmp_path / "rows", restart="row", num_workers=1))
    assert (tmp_path / "same" / SHARD).read_bytes() == (out / SHARD).read_bytes()
    reindex(ReindexConfig(data=data, out=tmp_path / "at-once", restart="row", num_workers=1))
    assert (tmp_path / "rows" / SHARD).read_bytes() == (tmp_path / "at-once" / SHARD).read_bytes()


def test_images_that_cannot_be_rewritten_are_copied_and_counted(tmp_path: Path, capsys: Any) -> None:
    """Such as PNGs and CMYK, kept by records --keep."""
    images = write_image_folder(tmp_path / "images")
    Image.new("CMYK", (30, 20), (9, 80, 7, 6)).save(images / "train/class0/cmyk.jpg", "JPEG")
    Image.new("RGB", (30, 20), (9, 80, 7)).save(images / "train/class1/png.jpg", "PNG")
    kept = tmp_path / "kept"
    convert_records(RecordsConfig(images=images, out=kept, keep=True, num_workers=1))
    reindex(ReindexConfig(data=kept, out=tmp_path / "out", num_workers=1))
    assert "reindex: 2 images could not be given restart markers and were left unchanged" in capsys.readouterr().err
    convert_records(RecordsConfig(images=images, out=tmp_path / "direct", keep=True, restart="auto", num_workers=1))
    assert "records: 2 images could not be given restart markers" in capsys.readouterr().err
    name = "train-00000-of-00001"
    assert (tmp_path / "direct" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    records = {record.filename: record for record in records_of(tmp_path / "out")}
    assert {name for name, record in records.items() if record.own_key is None} == {"cmyk.jpg", "png.jpg"}


def test_shards_are_kept_and_others_refused(data: Path, out: Path, tmp_path: Path) -> None:
    before = (out / SHARD).stat().st_mtime_ns
    (out / "train-00001-of-00002").unlink()
    reindex(ReindexConfig(data=data, out=out, num_workers=2))
    assert (out / SHARD).stat().st_mtime_ns == before and (out / "train-00001-of-00002").is_file()
    with pytest.raises(PlanMismatchError, match="restart was auto, now row"):
        reindex(ReindexConfig(data=data, out=out, restart="row"))
    with pytest.raises(
        PlanMismatchError,
        match=r"the records of .*more changed since: 8 images in 2 shards \(.* then, 9 images in 2 shards",
    ):
        reindex(ReindexConfig(data=write_shards(tmp_path / "more", sizes=(5, 4)), out=out))
    with pytest.raises(ConfigError, match="is the --data folder"):
        reindex(ReindexConfig(data=data, out=data))
    with pytest.raises(ConfigError, match="exists and is not empty"):
        reindex(ReindexConfig(data=data, out=write_shards(tmp_path / "foreign")))
    images = write_image_folder(tmp_path / "images")
    with pytest.raises(
        ConfigError, match=r"reindex copies TFRecord shards .*, found folders of images; use records --restart auto"
    ):
        reindex(ReindexConfig(data=images, out=tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_two_splits_may_lie_together(data: Path, out: Path) -> None:
    write_shards(data, sizes=(3,), split="validation")
    reindex(ReindexConfig(data=data, out=out, split="validation", num_workers=1))
    assert len(records_of(out)) == 8 and open_records(out, "validation").num_records == 3


def test_rewritten_records_are_merged_and_inspected(data: Path, out: Path, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", data)
    merge(MergeConfig(store=store.path, data=out, out=tmp_path / "merged", num_workers=1))
    merge(MergeConfig(store=store.path, data=data, out=tmp_path / "merged-originals", num_workers=1))
    for name in (SHARD, "train-00001-of-00002"):
        pairs = zip(
            read_tfrecords(tmp_path / "merged" / name),
            read_tfrecords(tmp_path / "merged-originals" / name),
            strict=True,
        )
        for (_, new), (_, old) in pairs:
            found = decode_example(new)
            np.testing.assert_array_equal(found["image/logit"], decode_example(old)["image/logit"])
            assert "image/original_key" in found
    assert [record.key for record in records_of(tmp_path / "merged")] == [record.key for record in records_of(data)]
    text = inspect(InspectConfig(path=out)).text
    assert "image/original_key" in str(text) and "DOUBLED" not in str(text)


@pytest.mark.parametrize("views", [1, 3])
def test_extraction_gives_the_same_store(tmp_path: Path, views: int) -> None:
    """The same keys, so the same crops; the same pixels, so the same logits, samples included."""
    data, teacher = write_color_shards(tmp_path / "data"), write_color_teacher(tmp_path / "teacher.onnx")
    reindex(ReindexConfig(data=data, out=tmp_path / "marked", num_workers=1))
    stores = []
    for folder in (data, tmp_path / "marked"):
        out = tmp_path / f"store-of-{folder.name}"
        extract(ExtractConfig(data=folder, teacher=teacher, policy="crop", views=views, device="cpu", out=out))
        stores.append(out)
    names = [path.name for path in sorted(stores[0].glob("*.arrow"))]
    assert len(names) > 3
    for name in names:
        assert (stores[0] / name).read_bytes() == (stores[1] / name).read_bytes(), name


def test_other_records_are_unknown_to_the_store(out: Path, tmp_path: Path) -> None:
    """The original's key is what is looked for, so a record of another original is not found."""
    payloads = [example(100 + index, 1) for index in range(8)]
    store = Store(write_store(tmp_path / "store", write_shards(tmp_path / "others", payloads=payloads)).path)
    with pytest.raises(StoreError, match="0 of 8 records are in the store"):
        StoreJoin(store, open_records(out, "train"))


def test_records_with_and_without_markers_are_other_conversions(tmp_path: Path) -> None:
    images = write_image_folder(tmp_path / "images")
    convert_records(RecordsConfig(images=images, out=tmp_path / "out", num_workers=1))
    with pytest.raises(PlanMismatchError, match="restart was off, now auto"):
        convert_records(RecordsConfig(images=images, out=tmp_path / "out", restart="auto", num_workers=1))


def test_a_batch_takes_rewritten_records_apart_together(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one by one, each with a hash of its own: they are read to be faster."""
    source = open_records(out, "train")
    taken: list[Any] = []
    monkeypatch.setattr(tfrecord_source, "take_apart", lambda *arguments, **options: taken.append(arguments))
    batch = source.read_batch([(0, row) for row in range(5)], buffers=BufferPool())
    assert isinstance(batch, RecordBatch)
    monkeypatch.undo()
    expected = [source.read_record(0, row) for row in range(5)]
    assert not taken and all_keys(batch).tolist() == [record.key for record in expected]
    for found, record in zip(batch, expected, strict=True):
        assert (found.key, found.own_key, found.label) == (record.key, record.own_key, record.label)
        assert bytes(found.encoded) == bytes(record.encoded)


def test_a_changed_image_is_refused_in_a_batch(out: Path) -> None:
    def change(payloads: list[bytes]) -> list[bytes]:
        encoded = bytearray(decode_example(payloads[1])["image/encoded"][0])
        encoded[-20] ^= 1
        return [payloads[0], replace_feature(payloads[1], "image/encoded", bytes(encoded)), *payloads[2:]]

    rewrite_shard(out / SHARD, change)
    with pytest.raises(RecordError, match=rf"{SHARD} record 1 .*image/encoded_xxh3 .*the image was changed"):
        open_records(out, "train").read_batch([(0, 0), (0, 1)], buffers=BufferPool())


def test_a_split_by_its_other_name_is_that_split(tmp_path: Path) -> None:
    """Names of shards say validation: what is there already is of this command or of nobody, whatever --split says."""
    data = write_shards(tmp_path / "data")
    write_shards(tmp_path / "data", split="validation")
    out = tmp_path / "out"
    reindex(ReindexConfig(data=data, out=out, num_workers=1))
    copied = [path for path in data.iterdir() if path.name.startswith("validation-")]
    for path in copied:
        shutil.copy(path, out)
    with pytest.raises(ConfigError, match="exists and is not empty"):
        reindex(ReindexConfig(data=data, out=out, split="val", num_workers=1))
    for path in copied:
        (out / path.name).unlink()
    reindex(ReindexConfig(data=data, out=out, split="val", num_workers=1))
    assert all(record.own_key is not None for record in open_records(out, "validation").iter_shard(0))
    # Resumed, all of it is listed.
    (out / "validation-00000-of-00002").unlink()
    (out / "files.json").unlink()
    reindex(ReindexConfig(data=data, out=out, split="val", num_workers=1))
    listed = (out / "files.json").read_text()
    assert all(name in listed for name in (*(path.name for path in copied), "reindex.validation.json"))


def test_a_copy_is_completed_by_the_same_command(data: Path, out: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    copy(CopyConfig(source=out, target=target))
    assert (target / "reindex.train.json").read_bytes() == (out / "reindex.train.json").read_bytes()
    reindex(ReindexConfig(data=data, out=target, num_workers=1))


def test_the_first_record_alone_does_not_decide_what_data_are(tmp_path: Path, cache: Path) -> None:
    """It was left as it is; the others are rewritten, and where they were."""
    payloads = [example(index, 1 + index % 3) for index in range(9)]
    with io.BytesIO() as file:
        Image.new("RGB", (30, 20), (9, 80, 7)).save(file, "PNG")
        payloads[0] = replace_feature(payloads[0], "image/encoded", file.getvalue())
    data = write_shards(tmp_path / "data", sizes=(5, 4), payloads=payloads)
    store = write_store(tmp_path / "store", data)
    reindex(ReindexConfig(data=data, out=tmp_path / "out", num_workers=1))
    source = open_records(tmp_path / "out", "train")
    assert source.read_record(0, 0).own_key is None
    assert StoreJoin(Store(store.path), source).has_positions and not list(cache.rglob("*.keys"))


def test_markers_that_are_there_already_are_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_image_folder(tmp_path / "images")
    for path in images.rglob("*.jpg"):
        marked = add_restart_markers(path.read_bytes(), by_row=False)
        assert marked is not None
        path.write_bytes(marked)
    convert_records(RecordsConfig(images=images, out=tmp_path / "out", restart="auto", shards=2, num_workers=1))
    reindex(ReindexConfig(data=tmp_path / "out", out=tmp_path / "again", num_workers=1))
    assert "could not be given" not in capsys.readouterr().err


def test_counts_of_a_resumed_run_say_of_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_image_folder(tmp_path / "images")
    for number in range(12):
        Image.new("RGB", (30, 20), (9, 80, number)).save(images / f"train/class1/png{number}.jpg", "PNG")
    config = RecordsConfig(images=images, out=tmp_path / "out", keep=True, restart="auto", shards=2, num_workers=1)
    convert_records(config)
    assert "records: 12 images could not be given" in capsys.readouterr().err
    (tmp_path / "out" / SHARD).unlink()
    convert_records(config)
    said = capsys.readouterr().err
    assert "images of the shards written by this run could not be given" in said
    assert "images of the shards written by this run were not RGB" in said


def test_another_image_of_a_rewritten_record(data: Path, tmp_path: Path) -> None:
    """What the record says of image/encoded is not said of its thumbnail."""
    for path in data.glob("train-*-of-0000?"):
        rewrite_shard(
            path,
            lambda payloads: [replace_feature(one, "image/thumbnail", encode_jpeg(number))
                              for number, one in enumerate(payloads)],
        )  # fmt: skip
    reindex(ReindexConfig(data=data, out=tmp_path / "out", num_workers=1))
    found = open_records(tmp_path / "out", "train", RecordOptions(image_feature="image/thumbnail"))
    before = open_records(data, "train", RecordOptions(image_feature="image/thumbnail"))
    assert [record.key for record in records_of(found)] == [record.key for record in records_of(before)]
