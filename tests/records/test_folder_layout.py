"""The layouts of image folders that people have, each opened as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from teachonce.errors import ConfigError, RecordError
from teachonce.records.discovery import find_splits, named_splits, open_records
from teachonce.records.options import RecordOptions
from teachonce.records.source import NO_LABEL, RecordSource, require_labels
from tests.support.small_data import encode_jpeg


def write_images(root: Path, *names: str) -> Path:
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(index))
    return root


def labels_of(source: RecordSource) -> dict[str, int]:
    found = {}
    for shard in range(len(source.shards)):
        records = list(source.iter_shard(shard))
        np.testing.assert_array_equal(source.known_labels(shard), [record.label for record in records])
        found |= {record.filename: record.label for record in records}
    return found


def test_class_folders_without_splits_are_the_training_data(tmp_path: Path) -> None:
    write_images(tmp_path, "dog/1.jpg", "cat/1.jpg", "cat/2.jpg", ".cache/0.jpg")
    source = open_records(tmp_path, "train")
    assert labels_of(source) == {"cat/1.jpg": 0, "cat/2.jpg": 0, "dog/1.jpg": 1}
    assert source.classes is not None and source.classes.names == ("cat", "dog") and source.split == "train"
    assert [shard.name for shard in source.shards] == ["train-00000-of-00001"]
    assert find_splits(tmp_path) == [] and named_splits(tmp_path) == ["train"]


def test_a_split_that_is_not_there_says_what_was_seen_and_what_to_type(tmp_path: Path) -> None:
    write_images(tmp_path / "flat", "dog/1.jpg", "cat/1.jpg")
    with pytest.raises(
        ConfigError,
        match=r"has no splits, found no validation; its records are --split train: give "
        r"--val-fraction 0.1 to hold a tenth of it out as validation; `train` can do without, with "
        r"--validation-split none",
    ):
        open_records(tmp_path / "flat", "validation")
    with pytest.raises(ConfigError, match=r"found no test; its records are --split train: give --split train$"):
        open_records(tmp_path / "flat", "test")
    write_images(tmp_path / "split", "train/dog/1.jpg", "train/cat/1.jpg")
    with pytest.raises(
        ConfigError, match=r"only train, expected validation-.*, or --val-fraction 0.1 to hold a tenth of train"
    ):
        open_records(tmp_path / "split", "validation")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_images(tmp_path, "car/1.jpg", "train/1.jpg", "truck/1.jpg")
    assert labels_of(open_records(tmp_path, "train")) == {"car/1.jpg": 0, "train/1.jpg": 1, "truck/1.jpg": 2}


def test_imagenettes_layout(tmp_path: Path) -> None:
    write_images(tmp_path, "train/n1/a.JPEG", "train/n2/b.JPEG", "val/n2/c.JPEG")
    (tmp_path / "noisy_imagenette.csv").write_text("path,label\n")
    assert find_splits(tmp_path) == ["train", "val"]
    for name in ("val", "validation", "valid"):
        source = open_records(tmp_path, name)
        assert source.split == name and labels_of(source) == {"n2/c.JPEG": 1}


def test_tiny_imagenets_layout(tmp_path: Path) -> None:
    write_images(tmp_path, "train/n1/images/n1_0.JPEG", "train/n2/images/n2_0.JPEG", "train/n2/images/n2_1.JPEG")
    (tmp_path / "train/n1/n1_boxes.txt").write_text("n1_0.JPEG\t0\t0\t9\t9\n")
    write_images(tmp_path, "val/images/val_0.JPEG", "val/images/val_1.JPEG", "test/images/test_0.JPEG")
    (tmp_path / "val/val_annotations.txt").write_text("val_1.JPEG\tn1\t0\t0\t9\t9\nval_0.JPEG\tn2\t0\t0\t9\t9\n")
    with pytest.warns(UserWarning, match=r"1 file ignored, .*images have one of \.bmp, "):
        train = open_records(tmp_path, "train")
    assert labels_of(train) == {"n1/images/n1_0.JPEG": 0, "n2/images/n2_0.JPEG": 1, "n2/images/n2_1.JPEG": 1}
    validation = open_records(tmp_path, "validation")
    assert labels_of(validation) == {"images/val_0.JPEG": 1, "images/val_1.JPEG": 0}
    assert validation.classes == train.classes
    test = open_records(tmp_path, "test")
    assert labels_of(test) == {"test_0.JPEG": NO_LABEL} and test.labeled == "none" and test.classes is None
    (tmp_path / "val/val_annotations.txt").write_text("val_1.JPEG\tn1\n")
    with pytest.raises(RecordError, match=r"val_annotations.txt: has no line for val_0.JPEG"):
        open_records(tmp_path, "val")
    (tmp_path / "val/val_annotations.txt").write_text("val_1.JPEG\tn1\nval_0.JPEG\tn3\n")
    with pytest.raises(RecordError, match=r"val_0.JPEG has class n3, which is not among the 2 of the data"):
        open_records(tmp_path, "val")
    (tmp_path / "val/val_annotations.txt").write_text("val_1.JPEG n1\n")
    with pytest.raises(ConfigError, match=r"line 1: 'val_1.JPEG n1', expected NAME<TAB>CLASS"):
        open_records(tmp_path, "val")


def test_the_classes_of_a_list_are_numbered_by_it(tmp_path: Path) -> None:
    """Of a teacher's 5 classes the data has two: labels are the teacher's, and nothing has to be mapped."""
    write_images(tmp_path / "data", "train/dog/1.jpg", "train/ant/1.jpg", "validation/dog/2.jpg")
    (tmp_path / "labels.txt").write_text("owl\ndog\nbee\nant\ncat\n")
    options = RecordOptions(labels=tmp_path / "labels.txt")
    source = open_records(tmp_path / "data", "train", options)
    assert labels_of(source) == {"ant/1.jpg": 3, "dog/1.jpg": 1}
    assert source.classes is not None and source.classes.names == ("owl", "dog", "bee", "ant", "cat")
    assert labels_of(open_records(tmp_path / "data", "validation", options)) == {"dog/2.jpg": 1}
    write_images(tmp_path / "data", "train/fox/1.jpg")
    with pytest.raises(
        ConfigError, match=r"train/fox: a class that .*labels.txt does not list \(5 classes\); give the"
    ):
        open_records(tmp_path / "data", "train", options)


@pytest.mark.parametrize("folder", ["", "train"])
def test_images_alone_have_no_labels_and_no_class(tmp_path: Path, folder: str) -> None:
    write_images(tmp_path / folder, "2.jpg", "1.jpg", "10.png")
    source = open_records(tmp_path, "train")
    assert labels_of(source) == {"1.jpg": NO_LABEL, "10.png": NO_LABEL, "2.jpg": NO_LABEL}
    assert source.classes is None and source.describe()["num_classes"] is None
    with pytest.raises(ConfigError, match="split train: none of its 3 images have labels, which this test needs; stop"):
        require_labels(source, "this test", "stop it")


def test_folders_of_splits_one_folder_too_high_are_not_taken_for_classes(tmp_path: Path) -> None:
    write_images(tmp_path, "a/train/x/1.jpg", "b/train/x/1.jpg")
    assert find_splits(tmp_path) == ["a", "b"]
    with pytest.raises(ConfigError, match=r"only a, b, expected train-"):
        open_records(tmp_path, "train")


def test_splits_by_names_of_their_own(tmp_path: Path) -> None:
    write_images(tmp_path, "fold1/x/1.jpg", "fold1/y/1.jpg", "fold2/x/1.jpg", "fold2/y/1.jpg")
    assert find_splits(tmp_path) == ["fold1", "fold2"]
    assert labels_of(open_records(tmp_path, "fold2")) == {"x/1.jpg": 0, "y/1.jpg": 1}


def test_classes_whose_images_all_lie_deeper(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/images/1.jpg", "dog/images/1.jpg")
    assert labels_of(open_records(tmp_path, "train")) == {"cat/images/1.jpg": 0, "dog/images/1.jpg": 1}


def test_folders_without_images_are_no_records(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/readme.md").write_text("text")
    assert named_splits(tmp_path) == []
    with pytest.raises(ConfigError, match="no records at all"):
        open_records(tmp_path, "train")


@pytest.mark.parametrize(("train", "validation"), [("training", "val"), ("Train", "Val"), ("TRAIN", "Valid")])
def test_other_names_of_splits_have_the_classes_of_the_training_images(
    tmp_path: Path, train: str, validation: str
) -> None:
    write_images(tmp_path, f"{train}/ant/1.jpg", f"{train}/bee/1.jpg", f"{validation}/bee/2.jpg", "Test/bee/3.jpg")
    assert find_splits(tmp_path) == sorted([train, validation, "Test"])
    assert labels_of(open_records(tmp_path, "train")) == {"ant/1.jpg": 0, "bee/1.jpg": 1}
    assert labels_of(open_records(tmp_path, "validation")) == {"bee/2.jpg": 1}
    assert labels_of(open_records(tmp_path, "test")) == {"bee/3.jpg": 1}


def write_texts(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("text")


def test_folders_without_images_beside_splits_are_none(tmp_path: Path) -> None:
    write_images(tmp_path, "train/ant/1.jpg", "val/ant/2.jpg")
    write_texts(tmp_path, "annotations/xmls/1.xml", "__MACOSX/train/ant/._1.jpg", "docs/a/b/c.md")
    assert find_splits(tmp_path) == named_splits(tmp_path) == ["train", "val"]
    assert labels_of(open_records(tmp_path, "train")) == {"ant/1.jpg": 0}


def test_folders_without_images_beside_classes_are_left_out_with_one_warning(tmp_path: Path) -> None:
    write_images(tmp_path, "ant/1.jpg", "bee/1.jpg")
    write_texts(tmp_path, "__MACOSX/train/ant/._1.jpg", "annotations/xmls/1.xml")
    (tmp_path / "labels.txt").write_text("bee\nant\n")
    for options, expected in (
        (RecordOptions(), {"ant/1.jpg": 0, "bee/1.jpg": 1}),
        (RecordOptions(labels=tmp_path / "labels.txt"), {"ant/1.jpg": 1, "bee/1.jpg": 0}),
    ):
        with pytest.warns(UserWarning) as warned:
            assert labels_of(open_records(tmp_path, "train", options)) == expected
        said = [str(warning.message) for warning in warned if "folders have no images" in str(warning.message)]
        assert said == [f"{tmp_path}: 2 folders have no images and are left out: __MACOSX, annotations"]
    write_texts(tmp_path / "alone", "a/1.txt", "b/1.txt")
    with pytest.raises(ConfigError, match="no records at all"):
        open_records(tmp_path / "alone", "train")


@pytest.mark.parametrize("folder", ["", "train/"])
def test_images_beside_class_folders_are_counted(tmp_path: Path, folder: str) -> None:
    write_images(tmp_path, *(f"{folder}{name}" for name in ("ant/1.jpg", "bee/1.jpg", "stray.jpg", "x.png")))
    write_texts(tmp_path, f"{folder}readme.txt", f"{folder}._1.jpg")
    with pytest.warns(UserWarning, match=r": 2 images beside the class folders left out, such as stray.jpg: ") as said:
        assert labels_of(open_records(tmp_path, "train")) == {"ant/1.jpg": 0, "bee/1.jpg": 1}
    assert len(said) == 1


@pytest.mark.parametrize("stray", ["pics.tar", "features.parquet", "x.tfrecord"])
@pytest.mark.parametrize("layout", [("train/ant/1.jpg", "validation/ant/2.jpg"), ("ant/1.jpg", "bee/1.jpg")])
def test_a_file_of_records_beside_folders_of_images_is_ambiguous(
    tmp_path: Path, stray: str, layout: tuple[str, ...]
) -> None:
    write_images(tmp_path, *layout)
    assert open_records(tmp_path, "train").num_records
    write_texts(tmp_path, stray)
    folders = ", ".join(dict.fromkeys(name.partition("/")[0] for name in layout))
    with pytest.raises(
        ConfigError,
        match=rf"holds {stray} and folders of images \({folders}\), expected one of the two; give the file's own "
        rf"path, .*/{stray}, or move it elsewhere",
    ):
        open_records(tmp_path, "train")
