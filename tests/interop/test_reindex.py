"""Shards whose images got restart markers: the same records to every store, and to nobody where they were changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from teachonce.errors import ConfigError, PlanMismatchError, RecordError, StoreError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.inspection.config import InspectConfig
from teachonce.inspection.inspect import inspect
from teachonce.interop.config import MergeConfig, RecordsConfig, ReindexConfig
from teachonce.interop.convert import convert_records
from teachonce.interop.merge import merge
from teachonce.interop.reindex import reindex
from teachonce.native import load_library
from teachonce.pixels.decode import decode_image
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource, record_key
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
    with pytest.raises(PlanMismatchError, match="data was"):
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
