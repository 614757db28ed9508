"""Copies of runs and of splits that lie together: what is further stays, and no split is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from teachonce.errors import ConfigError, PlanMismatchError, TeachonceError
from teachonce.records.discovery import find_splits, open_records
from teachonce.runs.run import LOCK_NAME
from teachonce.storage.files import open_storage
from teachonce.storage.remote.file_index import read_file_index
from tests.support.copies import copy
from tests.support.kills import everything
from tests.support.object_stores import environment, new_bucket
from tests.support.small_data import write_image_folder, write_shards


def make_run(path: Path, num_epochs: int, *, is_finished: bool = False) -> Path:
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"student": "timm:x", "epochs": 9}))
    (path / "metrics.csv").write_text("epoch\n" + "".join(f"{epoch + 1}\n" for epoch in range(num_epochs)))
    (path / "checkpoints" / "last.ckpt").write_bytes(b"%d" % num_epochs)
    if is_finished:
        (path / "result.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    "epochs, is_finished, phrase",
    [
        (9, True, r"is further \(finished, epoch 9\) than .*source \(epoch 1\)"),
        (1, True, r"is further \(finished, epoch 1\) than .*source \(epoch 1\)"),
        (2, False, r"is further \(epoch 2\) than .*source \(epoch 1\)"),
    ],
)
def test_a_run_that_is_further_stays(tmp_path: Path, epochs: int, is_finished: bool, phrase: str) -> None:
    source = make_run(tmp_path / "source", 1)
    target = make_run(tmp_path / "target", epochs, is_finished=is_finished)
    before = everything(target)
    with pytest.raises(PlanMismatchError, match=phrase + ".*swap SOURCE and TARGET"):
        copy(source, target)
    assert everything(target) == before
    copy(target, source)
    assert before.items() <= everything(source).items()


def test_a_run_in_a_bucket_that_is_further_stays(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(moto).items():
        monkeypatch.setenv(name, value)
    address = f"s3://{new_bucket(moto)}/run"
    copy(make_run(tmp_path / "run", 3), address)
    with pytest.raises(PlanMismatchError, match=r"s3://.*/run: is further \(epoch 3\) than"):
        copy(make_run(tmp_path / "old", 2), address)
    copy(make_run(tmp_path / "new", 4), address)
    assert open_storage(address).read("checkpoints/last.ckpt") == b"4"
    assert not open_storage(address).has(LOCK_NAME)
    with pytest.raises(ConfigError, match=r"s3://.*/run/backup: lies in the source"):
        copy(address, f"{address}/backup")


def test_a_run_that_is_being_trained_stays(tmp_path: Path) -> None:
    source, target = make_run(tmp_path / "source", 3), make_run(tmp_path / "target", 1)
    with (
        open_storage(target).lock(LOCK_NAME, "trained"),
        pytest.raises(TeachonceError, match=r"target: is being trained or copied to by process \d+"),
    ):
        copy(source, target)
    assert (target / "checkpoints" / "last.ckpt").read_bytes() == b"1"
    copy(source, target)
    assert (target / "checkpoints" / "last.ckpt").read_bytes() == b"3"


def test_images_beside_shards_are_copied_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_shards(tmp_path / "source", sizes=(4, 3))
    write_image_folder(source, split="validation")
    copy(source, tmp_path / "copy")
    assert "complete: records: 2 shards of train; images of validation, 14 files" in capsys.readouterr().err
    assert find_splits(tmp_path / "copy") == ["train", "validation"]
    assert open_records(tmp_path / "copy", "validation").num_records == 12
    listed = read_file_index(open_storage(tmp_path / "copy"))
    assert listed is not None and {"train-00001-of-00002", "validation/class0/validation_0_0.jpg"} <= listed.keys()
    copied = everything(tmp_path / "copy")
    assert everything(source).items() <= copied.items()
    copy(source, tmp_path / "copy")
    assert ": 0 copied, 14 already there" in capsys.readouterr().err
    assert everything(tmp_path / "copy") == copied
    # A split alone is still that one.
    copy(source, tmp_path / "one", split="train")
    assert find_splits(tmp_path / "one") == ["train"]
    copy(source, tmp_path / "part", shards="0:1")
    assert find_splits(tmp_path / "part") == ["train"]
    # Of two names of a split readers take the shards, and so does the copy.
    for name in ("train", "Training"):
        shutil.move(next(path for path in source.iterdir() if path.is_dir()), source / name)
        copy(source, tmp_path / f"shards of {name}")
        assert not (tmp_path / f"shards of {name}" / name).exists()


@pytest.mark.parametrize("kind", ["run", "images"])
def test_a_place_within_the_source_or_around_it_is_refused(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    make_run(source, 1) if kind == "run" else write_image_folder(source)
    (tmp_path / "link").symlink_to(source)
    before = everything(source)
    for target in (source / "backup", tmp_path / "link" / "a" / "backup"):
        with pytest.raises(ConfigError, match=rf"{target}: lies in the source, {source}; choose a target beside it"):
            copy(source, target)
    with pytest.raises(ConfigError, match=rf"{tmp_path}: holds the source, {source}; choose a target beside it"):
        copy(source, tmp_path)
    assert everything(source) == before


def test_records_are_copied_to_a_place_within_them_or_around_them(tmp_path: Path) -> None:
    """Of these the files are known by name: none is copied into itself."""
    source = write_shards(tmp_path / "download" / "records", sizes=(4, 3))
    for target in (source / "part", source.parent):
        for _ in range(2):
            copy(source, target, shards="0:2")
        assert open_records(target, "train").num_records == 7
