import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from teachonce.cli.main import main
from teachonce.errors import ConfigError, RecordError
from teachonce.inspection.records import render_records, summarize_records
from teachonce.records.discovery import open_records
from teachonce.records.options import RecordOptions
from tests.support.small_data import encode_jpeg, example, write_image_folder, write_shards


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """8 records in two shards: labels 1 2 3 1 2 3 1 2, one image doubled, logits that are right for seven."""
    payloads = []
    for index in range(8):
        label = 1 + index % 3
        logits = np.full(4, -1.0, np.float32)
        logits[label if index else 2] = 5
        payloads.append(example(3 if index == 6 else index, label, logit=logits, height=30 if index else None))
    return write_shards(tmp_path / "data", sizes=(5, 3), payloads=payloads)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_is_in_tfrecords(data: Path, num_workers: int) -> None:
    summary = summarize_records(data, num_workers=num_workers)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    (split,) = summary["splits"]
    assert (split["split"], split["format"], split["num_records"], split["num_doubled"]) == ("train", "tfrecord", 8, 1)
    assert (split["num_classes"], split["has_background"]) == (4, True)
    assert [entry["num_records"] for entry in split["classes"]] == [0, 3, 3, 2]
    assert split["classes"][1]["name"] == "class0"
    assert [(shard["name"], shard["num_records"]) for shard in split["shards"]] == [
        ("train-00000-of-00002", 5),
        ("train-00001-of-00002", 3),
    ]
    assert split["num_bytes"] == sum(path.stat().st_size for path in data.glob("train-*-of-00002"))
    assert split["width_px"] == {"least": 40, "most": 40} and split["height_px"] == {"least": 30, "most": 30}
    assert split["image_bytes"]["least"] <= split["image_bytes"]["mean"] <= split["image_bytes"]["most"]
    assert split["logits"] == {"num_records": 8, "num_classes": 4, "num_not_finite": 0, "top1": 7 / 8}
    features = {entry["name"]: (entry["kind"], entry["num_records"]) for entry in split["features"]}
    assert features == {
        "image/encoded": ("bytes", 8),
        "image/class/label": ("int64", 8),
        "image/filename": ("bytes", 8),
        "image/height": ("int64", 7),
        "image/logit": ("float", 8),
    }
    text = render_records(summary)
    assert "train: 8 records in 2 shards (tfrecord), " in text and "bytes; 1 DUPLICATE image" in text
    assert " px wide, " in text and not re.search(r"(\d+) to \1 px", text), "sizes that are equal are one number"
    assert "3 of 3 present and background; 2 to 3 records each" in text
    assert "of 4 classes in 8 records, top-1 0.8750 against the labels" in text
    assert "train-00001-of-00002" in text and "image/class/label" in text


def test_several_splits_and_one_of_them(tmp_path: Path) -> None:
    write_image_folder(tmp_path, "train")
    write_image_folder(tmp_path, "validation", per_class=2)
    summary = summarize_records(tmp_path, num_workers=1)
    assert [(split["split"], split["num_records"]) for split in summary["splits"]] == [("train", 12), ("validation", 6)]
    (split,) = summarize_records(tmp_path, "validation", num_workers=1)["splits"]
    assert split["format"] == "folder" and split["logits"] is None and split["features"] == []
    text = render_records(summary)
    assert "logits    none" in text and "3 of 3 present; 4 to 4 records each" in text


def test_a_split_in_val_is_called_validation(tmp_path: Path) -> None:
    """In texts, as by every other result; values for programs have the name that the data has."""
    write_image_folder(tmp_path, "train")
    write_image_folder(tmp_path, "val")
    for split in (None, "val"):
        summary = summarize_records(tmp_path, split)
        assert summary["splits"][-1]["split"] == "val", "the name in the data"
        lines = render_records(summary).splitlines()
        assert any(line.startswith("validation: ") for line in lines) and not any("val: " in line for line in lines)


def test_foreign_and_mixed_logits(tmp_path: Path) -> None:
    bad = np.array([0, np.nan, 0], np.float32)
    payloads = [example(0, 7, logit=np.zeros(5, np.float32)), example(1, 9, logit=bad), example(2, 9)]
    data = write_shards(tmp_path / "data", sizes=(3,), num_classes=None, payloads=payloads)
    summary = summarize_records(data, num_workers=1)
    (split,) = summary["splits"]
    assert split["num_classes"] is None
    assert split["logits"]["num_classes"] == [3, 5] and split["logits"]["num_not_finite"] == 1
    assert split["logits"]["num_records"] == 2
    text = render_records(summary)
    assert "2 labels, 7 to 9 (no classes.json)" in text and "1 NOT FINITE" in text


def test_one_of_anything_is_singular(tmp_path: Path) -> None:
    payloads = [example(0, 7, logit=np.zeros(1, np.float32)), example(1, 7)]
    data = write_shards(tmp_path / "data", sizes=(2,), num_classes=None, payloads=payloads)
    summary = summarize_records(data, num_workers=1)
    text = render_records(summary)
    assert "  classes   1 label, 7 to 7 (" in text and "of 1 class in 1 record, top-1" in text
    summary["splits"][0]["num_unlabeled"] = 1
    assert "; 1 record has no label" in render_records(summary)


def test_damage_is_named(data: Path, tmp_path: Path) -> None:
    path = data / "train-00001-of-00002"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"train-00001-of-00002 record 2 \(byte \d+\): wrong checksum of the data"):
        summarize_records(data, num_workers=1)
    other = write_shards(tmp_path / "other", sizes=(1,), payloads=[example(0, 1, **{"class/label": None})])
    with pytest.raises(
        RecordError, match=r"train-00000-of-00001 record 0 \(byte 0\): no image/class/label, found image/"
    ):
        summarize_records(other, num_workers=1)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"cat", "holds 1 values of bytes, expected one of int64; .*by --label-feature image/class/label, or write"),
        (b"3", "holds 1 values of bytes"),
        (
            np.ones(1, np.float32),
            "holds 1 values of float32, expected one of int64; .*by --label-feature image/class/l",
        ),
        ([1, 2], "holds 2 values of int64, expected one of int64; write the record again"),
        (-1, "label -1, expected 0 to 2"),
        (3, "label 3, expected 0 to 2"),
    ],
)
def test_a_label_that_training_refuses_is_refused(tmp_path: Path, label: Any, message: str) -> None:
    payloads = [example(0, 1), example(1, 1, **{"class/label": label})]
    data = write_shards(tmp_path, sizes=(2,), num_classes=3, payloads=payloads)
    with pytest.raises(RecordError, match=rf"train-00000-of-00001 record 1 \(byte \d+\): .*{message}") as error:
        summarize_records(data, num_workers=1)
    with pytest.raises(RecordError) as expected:
        open_records(data, "train").read_record(0, 1)
    assert str(error.value) == str(expected.value)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_all_images_that_cannot_be_read_are_named(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data" / "train" / "a"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    # A thumbnail in the EXIF block has an end of its own.
    thumbnail = {"exif": b"Exif\0\0" + b"\xff\xd8\xff\xd9"} if kind == "jpg" else {}
    Image.fromarray(noise).save(buffer, "JPEG" if kind == "jpg" else "PNG", **thumbnail)
    content = buffer.getvalue()
    cut = {f"cut-{left}.{kind}": content[:left] for left in (len(content) - 99, len(content) // 2, len(content) // 8)}
    sound = {f"sound.{kind}": content, f"more.{kind}": content + bytes(200)}
    for name, written in ({f"text.{kind}": b"text", f"empty.{kind}": b""} | cut | sound).items():
        (folder / name).write_bytes(written)
    (split,) = summarize_records(tmp_path / "data", num_workers=1)["splits"]
    assert split["num_records"] == 7
    found = {Path(item["where"].split(":")[0]).name for item in split["unreadable"]}
    assert found == {f"text.{kind}", f"empty.{kind}"} | cut.keys()
    assert split["width_px"] == {"least": 40, "most": 40}
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(tmp_path / "data")])
    shown = capsys.readouterr()
    assert end.value.code == 1 and "UNREADABLE  5 images" in shown.out


def spoil(folder: Path) -> dict[str, str]:
    """Files with an image's name that nobody can read, and what is said of each."""
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.png").symlink_to("/dev/zero")
    return {
        "gone.jpg": "No such file or directory, the file is a broken link to nowhere.jpg",
        "loop.jpg": "Too many levels of symbolic links, the file is a broken link to loop.jpg",
        "pipe.jpg": "is a named pipe, expected a regular file",
        "device.png": "is a device, expected a regular file",
    }


@pytest.mark.parametrize("num_workers", [1, 2])
def test_files_that_cannot_be_read_are_named_with_the_damaged_images(
    tmp_path: Path, num_workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_image_folder(tmp_path / "data")
    folder = data / "train" / "class1"
    expected = spoil(folder)
    (folder / "text.jpg").write_bytes(b"text")
    (split,) = summarize_records(data, num_workers=num_workers)["splits"]
    assert (split["num_records"], split["num_doubled"]) == (17, 0)
    assert [entry["num_records"] for entry in split["classes"]] == [4, 9, 4]
    found = {Path(item["where"]).name: item["why"] for item in split["unreadable"]}
    assert found.keys() == {*expected, "text.jpg"}
    for name, phrase in expected.items():
        assert found[name] == f"cannot be read: {phrase}"
    assert split["image_bytes"]["least"] == 4 and split["num_bytes"] == sum(
        path.stat().st_size for path in data.rglob("*.jpg") if path.is_file()
    )
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(data)])
    shown = capsys.readouterr()
    assert end.value.code == 1 and "UNREADABLE  5 images" in shown.out and "stop" not in shown.err
    assert f"    {folder}/gone.jpg: cannot be read: No such file" in shown.out


def test_of_a_split_that_is_held_out_they_are_named_once(tmp_path: Path) -> None:
    data = write_image_folder(tmp_path / "data", per_class=8) / "train"
    names = {*spoil(data / "class1"), *spoil(data / "class2")}
    splits = summarize_records(data, num_workers=1, options=RecordOptions(val_fraction=0.3))["splits"]
    assert [split["split"] for split in splits] == ["train", "validation"]
    found = [item["where"] for split in splits for item in split["unreadable"]]
    assert len(found) == len(set(found)) == 8 and {Path(where).name for where in found} == names
    # What cannot be read now is not what is known of it once it is mended.
    for name in names:
        for label in (1, 2):
            (data / f"class{label}" / name).unlink()
            (data / f"class{label}" / name).write_bytes(encode_jpeg(900 + label))
    with pytest.raises(RecordError, match=r"gone.jpg: cannot be read: .*; restore or remove it and start again"):
        (data / "class0" / "gone.jpg").symlink_to("nowhere")
        open_records(data, "train", RecordOptions(val_fraction=0.3))


def test_nothing_that_can_be_read_and_rows_of_tables(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "train" / "a"
    folder.mkdir(parents=True)
    (folder / "gone.jpg").symlink_to("nowhere")
    summary = summarize_records(tmp_path / "data")
    (split,) = summary["splits"]
    assert split["image_bytes"] == {"least": 0, "mean": 0, "most": 0} and split["num_records"] == 1
    assert "UNREADABLE  1 image;" in render_records(summary)
    (tmp_path / "here.jpg").write_bytes(encode_jpeg(1))
    (tmp_path / "table.csv").write_text("path,label\nhere.jpg,a\nmissing.jpg,b\n")
    (split,) = summarize_records(tmp_path / "table.csv")["splits"]
    assert split["num_records"] == 2 and [Path(item["where"]).name for item in split["unreadable"]] == ["missing.jpg"]


@pytest.mark.parametrize("num_sound, sizes", [(3, {"least": 40, "most": 40}), (0, {"least": 0, "most": 0})])
def test_a_shard_without_a_readable_image_has_no_size(tmp_path: Path, num_sound: int, sizes: dict[str, int]) -> None:
    broken = [example(number, 1, encoded=[b"text%d" % number]) for number in range(4)]
    sound = [example(number, 1) for number in range(10, 10 + num_sound)]
    payloads = [*broken, *sound]
    write_shards(tmp_path, sizes=(4, num_sound) if num_sound else (4,), payloads=payloads)
    summary = summarize_records(tmp_path, num_workers=1)
    (split,) = summary["splits"]
    assert split["width_px"] == sizes and len(split["unreadable"]) == 4
    assert f"{sizes['most']} px wide" in render_records(summary)


def test_nothing_to_inspect(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no records at all, expected train-NNNNN-of-NNNNN shards"):
        summarize_records(tmp_path)
    with pytest.raises(ConfigError, match="nowhere: no such folder; expected TFRecord shards"):
        summarize_records(tmp_path / "nowhere")
    write_image_folder(tmp_path)
    with pytest.raises(ConfigError, match="only train, expected test-"):
        summarize_records(tmp_path, "test")


def test_images_that_viewers_would_turn_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "train" / "a"
    folder.mkdir(parents=True)
    for orientation in (None, 1, 3, 6, 8, 9, "broken"):
        image = Image.fromarray(np.full((8, 12, 3), 9, np.uint8))
        exif = Image.Exif()
        if isinstance(orientation, int):
            exif[0x0112] = orientation
        content = b"Exif\0\0II*\0\xff\xff" if orientation == "broken" else exif.tobytes()
        for kind in ("jpg", "png", "webp"):
            if kind != "jpg" and orientation == "broken":
                continue
            image.save(folder / f"{orientation}.{kind}", exif=content)
    (split,) = summarize_records(tmp_path / "data", num_workers=1)["splits"]
    assert (split["num_records"], split["num_turned"]) == (19, 9), "orientations 3, 6 and 8, in three formats"
    assert split["width_px"] == {"least": 12, "most": 12}, "as stored"
    text = render_records({"path": "data", "splits": [split]})
    assert "  turned    9 images have an EXIF rotation, which is ignored" in text


def test_without_turned_images_nothing_is_said(data: Path) -> None:
    summary = summarize_records(data)
    assert summary["splits"][0]["num_turned"] == 0 and "EXIF" not in render_records(summary)


def test_the_bytes_of_a_held_out_part_are_its_own(data: Path) -> None:
    """Its shards' files hold the other records too."""
    options = RecordOptions(val_fraction=0.4)
    parts = [
        summarize_records(data, split, num_workers=workers, options=options)["splits"][0]
        for split, workers in (("train", 1), ("validation", 2))
    ]
    sources = [open_records(data, split, options) for split in ("train", "validation")]
    for part, source in zip(parts, sources, strict=True):
        sizes = [sum(len(record.encoded) for record in source.iter_shard(at)) for at in range(len(source.shards))]
        assert [shard["num_bytes"] for shard in part["shards"]] == sizes and part["num_bytes"] == sum(sizes)
        shown = render_records({"path": "x", "splits": [part]})
        assert f"{sum(sizes):,} bytes of images, those of these records" in shown and "bytes of images\n" in shown
    complete = summarize_records(data, "train")["splits"][0]
    assert complete["num_bytes"] == sum(file.stat().st_size for file in data.glob("train-*-of-?????"))
    assert complete["bytes_of"] == "shards" and "of images" not in render_records({"path": "x", "splits": [complete]})
