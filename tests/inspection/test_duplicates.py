"""Images that train shares with a split that measures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from teachonce.cli.main import main
from teachonce.inspection.duplicates import SplitKeys, find_shared
from teachonce.inspection.records import render_records, summarize_records
from teachonce.records.discovery import open_records
from teachonce.records.options import RecordOptions
from teachonce.records.source import RecordSource
from tests.support.small_data import encode_jpeg, example, write_image_folder, write_shards


def shared(data: Path, num_workers: int = 1, **options: float) -> dict[str, tuple[int, list[str] | None]]:
    """By the split that has images of train too: how many, and where one of them is."""
    summary = summarize_records(data, num_workers=num_workers, options=RecordOptions(**options))  # type: ignore[arg-type]
    assert json.loads(json.dumps(summary)) == summary
    assert all(pair["splits"][0] == "train" for pair in summary["shared"])
    return {pair["splits"][1]: (pair["num_records"], pair["example"]) for pair in summary["shared"]}


def test_images_of_train_that_validation_has_too_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    for split in ("train", "val"):
        write_image_folder(data, split)
    assert shared(data) == {"val": (0, None)}
    assert "SHARED" not in render_records(summarize_records(data))
    shutil.copy(data / "train/class1/train_1_2.jpg", data / "val/class2/other_name.jpg")
    pair = [f"{data}/train/class1/train_1_2.jpg", f"{data}/val/class2/other_name.jpg"]
    assert shared(data) == {"val": (1, pair)}
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(data)])
    assert end.value.code == 0, "as for images that a split has twice"
    assert (
        f"\nSHARED  1 image of train is in validation too, byte for byte: {pair[0]} is {pair[1]}; remove it from one "
        "of the two, as accuracy on validation counts what was trained on\n"
    ) in capsys.readouterr().out
    # Images of train are counted: twice there is two, twice in validation is not.
    shutil.copy(data / "train/class1/train_1_2.jpg", data / "train/class0/zz.jpg")
    shutil.copy(data / "train/class1/train_1_2.jpg", data / "val/class2/zz.jpg")
    shutil.copytree(data / "train/class2", data / "test/class2")
    found = shared(data)
    assert (found["val"][0], found["test"][0]) == (2, 4), "val and test are not compared"
    text = render_records(summarize_records(data))
    assert "2 images of train are in validation too" in text and "4 images of train are in test too" in text
    for split in ("train", "val"):
        assert summarize_records(data, split)["shared"] == [], "there is nothing to compare with"


def test_what_cannot_be_read_is_equal_to_nothing(tmp_path: Path) -> None:
    for split in ("train", "val"):
        folder = write_image_folder(tmp_path, split) / split / "class0"
        for name in ("a.jpg", "b.jpg"):
            (folder / name).write_bytes(b"")
            (folder / f"gone_{name}").symlink_to("nowhere")
    assert shared(tmp_path) == {"val": (0, None)}
    assert all(split["num_doubled"] == 0 for split in summarize_records(tmp_path)["splits"])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_shards_that_end_in_any_order(tmp_path: Path, num_workers: int) -> None:
    write_shards(tmp_path, (4, 1, 7, 2), payloads=[example(index, 1) for index in range(14)])
    write_shards(tmp_path, (5, 3), "validation", payloads=[example(index, 1) for index in range(106, 98, -1)])
    assert shared(tmp_path, num_workers) == {"validation": (0, None)}
    shutil.rmtree(tmp_path)
    write_shards(tmp_path, (4, 1, 7, 2), payloads=[example(index, 1) for index in range(14)])
    write_shards(tmp_path, (5, 3), "validation", payloads=[example(index, 1) for index in (*range(50, 56), 11, 6)])
    count, pair = shared(tmp_path, num_workers)["validation"]
    assert count == 2 and pair is not None
    places = [place.partition(" (byte")[0] for place in pair]
    assert places == [f"{tmp_path}/train-00002-of-00004 record 1", f"{tmp_path}/validation-00001-of-00002 record 2"]


def test_a_split_that_is_held_out_shares_nothing(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path, per_class=6) / "train"
    for number in range(6):
        shutil.copy(folder / "class1" / f"train_1_{number}.jpg", folder / "class1" / f"again_{number}.jpg")
    assert shared(folder, val_fraction=0.3) == {"validation": (0, None)}


def test_keys_are_found_as_by_sets(tmp_path: Path) -> None:
    def split(name: str, keys: list[int]) -> SplitKeys:
        folder = tmp_path / name
        (folder / name / "a").mkdir(parents=True)
        for number in range(len(keys)):
            (folder / name / "a" / f"{number:03}.jpg").write_bytes(encode_jpeg(number))
        source: RecordSource = open_records(folder, name)
        return SplitKeys(source, {0: np.array(keys, np.uint64)})

    rng = np.random.default_rng(0)
    first = split("train", [0, 2**64 - 1, *rng.integers(0, 40, 30).tolist()])
    second = split("test", [2**64 - 1, *rng.integers(20, 60, 20).tolist()])
    expected = [at for at, key in enumerate(first.keys.tolist()) if key in set(second.keys.tolist())]
    assert first.find_in(second).tolist() == expected and len(expected) > 3
    (pair,) = find_shared([second, first])
    assert (pair["splits"], pair["num_records"]) == (["train", "test"], len(expected))
    assert find_shared([first]) == find_shared([second]) == []
