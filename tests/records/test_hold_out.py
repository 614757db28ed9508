"""Records that are held out for validation: by their bytes alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xxhash

from teachonce.errors import ConfigError
from teachonce.records.discovery import named_splits, open_records
from teachonce.records.hold_out import choose_held_out
from teachonce.records.options import RecordOptions
from teachonce.records.source import NO_LABEL, RecordSource
from tests.support.small_data import encode_jpeg, example, write_image_folder, write_shards

TENTH = RecordOptions(val_fraction=0.1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_classes(data: Path, num_classes: int = 4, per_class: int = 60) -> Path:
    for label in range(num_classes):
        (data / f"class{label}").mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            (data / f"class{label}" / f"{index}.jpg").write_bytes(encode_jpeg(1000 * label + index, 8, 8))
    return data


def keys_of(source: RecordSource) -> dict[str, int]:
    found = {}
    for shard in range(len(source.shards)):
        records = list(source.iter_shard(shard))
        known = source.known_keys(shard)
        assert known is not None and [record.key for record in records] == known.tolist()
        found |= {record.filename: record.key for record in records}
    return found


def both(data: Path, options: RecordOptions = TENTH) -> tuple[dict[str, int], dict[str, int]]:
    train, validation = (open_records(data, split, options) for split in ("train", "validation"))
    assert (train.split, validation.split) == ("train", "validation")
    assert all(shard.name.startswith("validation-") for shard in validation.shards)
    assert train.classes == validation.classes
    return keys_of(train), keys_of(validation)


def test_the_parts_are_disjoint_and_all_there_is(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data")
    train, validation = both(data)
    assert not train.keys() & validation.keys() and len(train) + len(validation) == 240
    # Binomial with 240 and 0.1: 24 in the mean, a standard deviation of 4.6.
    assert 24 - 4 * 4.6 < len(validation) < 24 + 4 * 4.6
    limit = 0.1 * 2**64
    by_hash = {name for name, key in (train | validation).items()
               if xxhash.xxh3_64_intdigest(key.to_bytes(8, "little"), 0) < limit}  # fmt: skip
    assert by_hash == validation.keys(), "no class is so small that it needs the rule for these"
    assert both(data, RecordOptions(val_fraction=0.1, val_seed=1))[1].keys() != validation.keys()
    assert named_splits(data, TENTH) == ["train", "validation"]


def test_it_stays_as_data_grow_and_move_into_another_container(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data")
    before = set(both(data)[1].values())
    write_classes(data, num_classes=5, per_class=90)
    after = both(data)
    assert before < set(after[1].values()) and not before & set(after[0].values())
    (tmp_path / "other").mkdir()
    shutil.copytree(data, tmp_path / "other/train")
    assert set(both(tmp_path / "other")[1].values()) == set(after[1].values())
    payloads = [example(0, 1 + label, encoded=(data / f"class{label}/{index}.jpg").read_bytes())
                for index in range(90) for label in range(5)]  # fmt: skip
    shards = write_shards(tmp_path / "shards", (200, 250), num_classes=6, payloads=payloads)
    for split, part in zip(("train", "validation"), after, strict=True):
        source = open_records(shards, split, TENTH)
        streamed = [record for shard in range(len(source.shards)) for record in source.iter_shard(shard)]
        assert {record.key for record in streamed} == set(part.values())
        # Again, by what the cache knows of labels and keys; nothing else is known of other files.
        assert open_records(shards, split, TENTH).num_records == source.num_records


def test_equal_images_are_on_one_side(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data")
    for index in range(60):
        shutil.copy(data / f"class0/{index}.jpg", data / f"class1/copy_{index}.jpg")
    train, validation = both(data)
    assert not set(train.values()) & set(validation.values())


def test_a_class_without_any_gives_its_smallest_hash() -> None:
    keys = np.arange(1, 13, dtype=np.uint64)
    labels = np.repeat(np.arange(4, dtype=np.int32), 3)
    chosen = choose_held_out(keys, labels, 1e-9, 0)
    drawn = np.array([xxhash.xxh3_64_intdigest(int(key).to_bytes(8, "little"), 0) for key in keys], np.uint64)
    assert np.flatnonzero(chosen).tolist() == [3 * label + int(drawn[3 * label :][:3].argmin()) for label in range(4)]
    chosen = choose_held_out(keys, labels, 1 - 1e-9, 0)
    assert np.flatnonzero(~chosen).tolist() == [3 * label + int(drawn[3 * label :][:3].argmax()) for label in range(4)]
    # One image, however often it is there, stays for training; and records without labels have no class.
    assert not choose_held_out(np.full(3, 7, np.uint64), np.zeros(3, np.int32), 1e-9, 0).any()
    assert not choose_held_out(keys, np.full(12, NO_LABEL, np.int32), 1e-9, 0).any()


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_every_class_keeps_an_image_for_training(fraction: float) -> None:
    """Classes of a single image too, and those whose image another class has as well."""
    labels = np.array([0, 1, 1, 2, 2, 3, 4, 4, NO_LABEL], np.int32)
    keys = np.array([1, 2, 3, 4, 5, 4, 1, 6, 7], np.uint64)
    for seed in range(100):
        chosen = choose_held_out(keys, labels, fraction, seed)
        assert set(labels[~chosen].tolist()) >= {0, 1, 2, 3, 4}
        # Classes of two images that are theirs alone have one on either side; the equal ones are on one side.
        assert chosen[1:3].sum() == 1 and chosen[0] == chosen[6] and chosen[3] == chosen[5]


def test_data_with_a_validation_split_needs_none(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    write_image_folder(tmp_path, "val")
    with pytest.raises(ConfigError, match=r"--val-fraction 0.1: .* has a validation split, val; leave the option out"):
        open_records(tmp_path, "train", TENTH)


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data/x").mkdir(parents=True)
    (tmp_path / "data/x/1.jpg").write_bytes(encode_jpeg(1))
    with pytest.raises(ConfigError, match=r"--val-fraction 0.1: leaves none of 1 records for (train|validation)"):
        for split in ("train", "validation"):
            open_records(tmp_path / "data", split, TENTH)


def test_training_images_of_another_name_are_one_split(tmp_path: Path) -> None:
    write_image_folder(tmp_path, "Training")
    write_image_folder(tmp_path, "test")
    assert named_splits(tmp_path) == ["Training", "test"]
    assert named_splits(tmp_path, TENTH) == ["test", "train", "validation"]
