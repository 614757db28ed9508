"""What ``start`` sees of data: counts, sizes, splits, and files that are no images."""

from __future__ import annotations

from pathlib import Path

import pytest

from teachonce.cli.config import StartConfig
from teachonce.cli.start.findings import find_out
from teachonce.errors import ConfigError
from tests.support.small_data import encode_jpeg, write_image_folder, write_shards
from tests.support.small_models import write_color_shards


def test_a_folder_of_classes(tmp_path: Path) -> None:
    write_image_folder(tmp_path, per_class=4)
    (tmp_path / "train" / "class2" / "more.jpg").write_bytes(encode_jpeg(7, 90, 60))
    (tmp_path / "train" / "class2" / "broken.jpg").write_bytes(b"no image")
    found = find_out(StartConfig(data=tmp_path))
    assert (found.num_records, found.format, found.has_validation, found.labeled) == (14, "folder", False, "all")
    assert (found.class_names, found.num_classes) == (("class0", "class1", "class2"), 3)
    assert (found.counts, found.is_counted) == ((4, 4, 6), True)
    assert (found.sides_px, found.num_sampled, found.num_odd) == ((30, 30, 60), 14, 1)


def test_a_validation_split_of_its_own(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    write_image_folder(tmp_path, "val")
    assert find_out(StartConfig(data=tmp_path)).has_validation
    with pytest.raises(ConfigError, match="has a validation split, val; leave the option out"):
        find_out(StartConfig(data=tmp_path, val_fraction=0.2))


def test_tfrecords_with_background_and_without_names(tmp_path: Path) -> None:
    found = find_out(StartConfig(data=write_color_shards(tmp_path / "named", sizes=(9, 6))))
    assert (found.format, found.has_background, found.num_classes) == ("tfrecord", True, 4)
    assert not found.is_counted and sum(found.counts) == 15, "labels of TFRecords are read from the sample"
    unnamed = find_out(StartConfig(data=write_shards(tmp_path / "unnamed", num_classes=None)))
    assert (unnamed.class_names, unnamed.has_background) == ((), False)
    assert unnamed.num_classes == unnamed.largest_label + 1


def test_images_without_labels(tmp_path: Path) -> None:
    for index in range(9):
        (tmp_path / f"{index}.jpg").write_bytes(encode_jpeg(index))
    found = find_out(StartConfig(data=tmp_path))
    assert (found.labeled, found.class_names, found.counts, found.num_classes) == ("none", (), (), 0)


def test_too_few_images_and_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="6 images in split train, expected at least 8"):
        find_out(StartConfig(data=write_image_folder(tmp_path / "few", per_class=2)))
    for index in range(9):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / f"{index}.jpg").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="none of 9 files of split train is an image"):
        find_out(StartConfig(data=tmp_path / "broken"))
