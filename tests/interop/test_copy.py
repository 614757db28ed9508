"""Copies between folders, buckets and web servers: complete, resumable, checked; parts are stores of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from teachonce.cli.main import main
from teachonce.errors import ConfigError, PlanMismatchError, RecordError, TeachonceError
from teachonce.records.discovery import find_splits, open_records
from teachonce.storage.address import to_location
from teachonce.storage.files import open_storage
from teachonce.storage.remote.file_index import INDEX_NAME, read_file_index
from teachonce.storage.remote.object_storage import ObjectStorage
from teachonce.store.join import StoreJoin, has_same_shards
from teachonce.store.store import Store
from tests.support.copies import copy
from tests.support.kills import Killed, everything, killed_after
from tests.support.object_stores import Gateway, environment, new_bucket
from tests.support.proxy import start_proxy
from tests.support.small_data import write_image_folder, write_shards, write_store
from tests.support.web_server import serve


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TFRecords in four shards, made by ``records``, with all that this leaves beside them."""
    folder = tmp_path_factory.mktemp("records")
    write_image_folder(folder / "images", per_class=8)
    with pytest.raises(SystemExit) as end:
        main(["records", "--images", str(folder / "images"), "--shards", "4", "--out", str(folder / "records")])
    assert end.value.code == 0
    return folder / "records"


def test_records(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy(records, tmp_path / "copy")
    assert everything(tmp_path / "copy") == everything(records)
    assert capsys.readouterr().err.splitlines()[-1].endswith(": 4 copied, 0 already there")
    copy(records, tmp_path / "copy")
    assert capsys.readouterr().err.splitlines()[-1].endswith(": 0 copied, 4 already there")
    assert everything(tmp_path / "copy") == everything(records)


def test_kills_of_records(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = everything(records)
    for num_files in range(len(expected)):
        target = tmp_path / f"copy{num_files}"
        with pytest.raises(Killed), killed_after(num_files, target, monkeypatch):
            copy(records, target, transfers=1)
        assert INDEX_NAME not in everything(target)
        copy(records, target)
        assert everything(target) == expected


@pytest.mark.parametrize("has_list", [True, False])
def test_damaged_records_are_named_and_not_put(records: Path, tmp_path: Path, has_list: bool) -> None:
    source = tmp_path / "source"
    shutil.copytree(records, source)
    if not has_list:
        (source / INDEX_NAME).unlink()
    shard = source / "train-00002-of-00004"
    good = shard.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    for content, expected in ((bytes(bad), "checksum"), (good[:-7], "truncated")):
        shard.write_bytes(content)
        with pytest.raises(RecordError, match=rf"{shard}.*{expected}"):
            copy(source, tmp_path / "copy")
        assert not (tmp_path / "copy" / shard.name).exists()
    assert INDEX_NAME not in everything(tmp_path / "copy")
    if has_list:
        # Other records of the same size, whose checksums hold: only the list tells.
        other = bytearray((source / "classes.json").read_bytes().replace(b"class0", b"klass0"))
        shard.write_bytes(good)
        (source / "classes.json").write_bytes(other)
        with pytest.raises(RecordError, match=r"classes\.json: hash .* is listed"):
            copy(source, tmp_path / "copy")


def test_records_that_others_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_shards(tmp_path / "source", sizes=(5, 3, 2))
    copy(source, tmp_path / "copy")
    copied = everything(tmp_path / "copy")
    assert {name: copied[name] for name in everything(source)} == everything(source)
    found = read_file_index(open_storage(tmp_path / "copy"))
    assert found is not None and [found[f"train-{i:05d}-of-00003"].num_records for i in range(3)] == [5, 3, 2]
    assert found.keys() == copied.keys() - {INDEX_NAME}
    assert len(open_records(tmp_path / "copy", "train").shards) == 3
    # Another file of the same size is no copy: it is named, and stays.
    shard = tmp_path / "copy" / "train-00001-of-00003"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with pytest.raises(TeachonceError, match=f"{shard}: exists and differs from"):
        copy(source, tmp_path / "copy")
    assert set(shard.read_bytes()) == {0}
    with pytest.raises(PlanMismatchError, match="is not a shard of this copy"):
        copy(source, tmp_path / "copy", shards="0:2")


def test_splits_lie_together(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "source")
    write_shards(tmp_path / "source", sizes=(4,), split="validation")
    copy(source, tmp_path / "one", split="validation")
    assert not list((tmp_path / "one").glob("train-*"))
    copy(source, tmp_path / "one", split="train")
    copy(source, tmp_path / "both")
    assert everything(tmp_path / "one") == everything(tmp_path / "both")
    copy(source, tmp_path / "other", split="val")
    assert find_splits(tmp_path / "other") == ["validation"]
    images = write_image_folder(tmp_path / "images", split="Val")
    copy(images, tmp_path / "copied", split="validation")
    assert find_splits(tmp_path / "copied") == ["Val"]
    with pytest.raises(ConfigError, match="has the splits train, validation; give --split"):
        copy(source, tmp_path / "no", shards="0:1")
    with pytest.raises(ConfigError, match=r"--split test: .* has train, validation"):
        copy(source, tmp_path / "no", split="test")


def test_the_same_shards_of_store_and_records_fit(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "source", sizes=(5, 3, 4))
    write_store(tmp_path / "store", source)
    copy(source, tmp_path / "records", shards="1:3", split="train")
    copy(tmp_path / "store", tmp_path / "part", shards="1:3")
    part, data = Store(tmp_path / "part"), open_records(tmp_path / "records", "train")
    assert [(info.name, info.num_records) for info in data.shards] == [
        ("train-00000-of-00002", 3),
        ("train-00001-of-00002", 4),
    ]
    assert has_same_shards(part, data)
    joined = StoreJoin(part, data)
    locations = [(0, 2), (1, 0)]
    assert list(joined.locate(locations, data.read_batch(locations))) == locations
    assert "records.train.json" not in everything(tmp_path / "records")


def test_images(tmp_path: Path) -> None:
    source = write_image_folder(tmp_path / "source")
    copy(source, tmp_path / "copy")
    copied = everything(tmp_path / "copy")
    listed = read_file_index(open_storage(tmp_path / "copy"))
    assert copied.pop(INDEX_NAME) and listed is not None and listed.keys() == copied.keys()
    assert copied == everything(source)
    with serve(tmp_path / "copy") as server:
        data = open_records(to_location(server.address), "train")
        assert (
            data.num_records == 12 and data.read_record(0, 3).key == open_records(source, "train").read_record(0, 3).key
        )
        copy(server.address, tmp_path / "back")
    assert everything(tmp_path / "back") == everything(tmp_path / "copy")


@pytest.mark.parametrize(
    "name, phrase", [(b"dir\\a.jpg", "leads to another folder"), (b"a\tb.jpg", "control"), (b"\xff.jpg", "not UTF-8")]
)
def test_names_that_no_list_could_have_are_refused_before_anything_is_copied(
    tmp_path: Path, name: bytes, phrase: str
) -> None:
    source = write_image_folder(tmp_path / "source")
    image = next((source / "train" / "class1").iterdir())
    image.rename(image.with_name(os.fsdecode(name)))
    with pytest.raises(TeachonceError, match=rf"class1.*{phrase}"):
        copy(source, tmp_path / "copy")
    assert not list(tmp_path.glob("copy/**/*.jpg"))


def test_linked_class_folders_are_copied_as_they_are_read(tmp_path: Path) -> None:
    source = write_image_folder(tmp_path / "source")
    (source / "train" / "class1").rename(tmp_path / "elsewhere")
    (source / "train" / "class1").symlink_to(tmp_path / "elsewhere")
    copy(source, tmp_path / "copy")
    here, there = open_records(source, "train"), open_records(tmp_path / "copy", "train")
    assert here.num_records == there.num_records == 12
    assert len(list((tmp_path / "copy" / "train" / "class1").iterdir())) == 4


def test_links_at_any_depth_are_copied_as_they_are_read(tmp_path: Path) -> None:
    source = write_image_folder(tmp_path / "source")
    for number, link in enumerate(("train/class0/more", "train/class1", "train/class2/a/b")):
        elsewhere = write_image_folder(tmp_path / f"elsewhere{number}", split=f"s{number}", num_classes=1)
        shutil.rmtree(source / link, ignore_errors=True)
        (source / link).parent.mkdir(parents=True, exist_ok=True)
        (source / link).symlink_to(elsewhere / f"s{number}")  # whose images are one folder deeper
    copy(source, tmp_path / "copy")
    here, there = open_records(source, "train"), open_records(tmp_path / "copy", "train")
    assert here.num_records == 4 + 4 + 4 + 4 + 4
    assert [record.key for record in there.iter_shard(0)] == [record.key for record in here.iter_shard(0)]


def test_the_list_of_a_folder_keeps_what_is_below_it(records: Path, tmp_path: Path) -> None:
    """Images of one split and shards of the other, in the order in which the shards come last."""
    images = write_image_folder(tmp_path / "images", split="validation")
    copy(images, tmp_path / "copy", split="validation")
    copy(records, tmp_path / "copy", split="train")
    listed = read_file_index(open_storage(tmp_path / "copy"))
    assert listed is not None
    assert {name.partition("/")[0] for name in listed if "/" in name} == {"validation"}
    assert sum(name.startswith("validation/") for name in listed) == 12
    assert {"train-00000-of-00004", "train-00003-of-00004.idx"} <= listed.keys()


def test_broken_links_are_named(records: Path, tmp_path: Path) -> None:
    source = write_image_folder(tmp_path / "source")
    (source / "train" / "class1" / "lost.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(TeachonceError, match=r"class1/lost\.jpg: is a broken link, or not a regular file"):
        copy(source, tmp_path / "copy")
    shutil.copytree(records, tmp_path / "records")
    shard = tmp_path / "records" / "train-00001-of-00004"
    shard.unlink()
    shard.symlink_to(tmp_path / "nowhere")
    with pytest.raises(TeachonceError, match=r"train-00001-of-00004: is a broken link, or not a regular file"):
        copy(tmp_path / "records", tmp_path / "copied records")


def test_files_of_an_earlier_copy_are_not_asked_for_one_by_one(
    moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_image_folder(write_image_folder(tmp_path / "source"), "val")
    with start_proxy(moto) as proxy:
        for name, value in environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        target = f"s3://{new_bucket(moto)}/images"
        copy(source, target, split="train")
        open_storage(target).delete("train/class0/train_0_0.jpg")
        first = len(proxy.requests)
        copy(source, target, split="val")
        heads = [request for request in proxy.requests[first:] if request.method == "HEAD"]
        assert not [request for request in heads if "/train/" in request.path]
        listed = read_file_index(open_storage(target))
    assert listed is not None and len(listed) == 23 and "train/class0/train_0_0.jpg" not in listed


def make_run(path: Path, epochs: int = 2) -> Path:
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"student": "timm:x", "epochs": epochs}))
    (path / "metrics.csv").write_text("epoch\n1\n")
    (path / "checkpoints" / "last.ckpt").write_bytes(b"first")
    (path / ".train.lock").write_bytes(b"")
    return path


def test_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run, target = make_run(tmp_path / "run"), tmp_path / "copy"
    copy(run, target)
    assert "run that is NOT finished, 3 files" in capsys.readouterr().err
    assert everything(target).keys() == {"config.json", "metrics.csv", "checkpoints/last.ckpt", INDEX_NAME}
    # It goes on, and ends; the next copy brings the other one up to date, the result last.
    (run / "checkpoints" / "last.ckpt").write_bytes(b"other")
    (run / "student.safetensors").write_bytes(b"weights")
    (run / "result.json").write_text("{}")
    with killed_after(None, target, monkeypatch) as done:
        copy(run, target)
    assert done[-2:] == ["result.json", INDEX_NAME] and "config.json" not in done
    copied = everything(target)
    copied.pop(INDEX_NAME)
    assert copied == {name: content for name, content in everything(run).items() if name != ".train.lock"}
    with serve(target) as server:
        copy(server.address, tmp_path / "back")
    assert everything(tmp_path / "back") == everything(target)
    (tmp_path / "other").mkdir()
    make_run(tmp_path / "other" / "run", epochs=3)
    with pytest.raises(PlanMismatchError, match="is a different run: epochs there 2, here 3"):
        copy(tmp_path / "other" / "run", target)
    for options in ({"shards": "0:1"}, {"views": "0:1"}, {"split": "train"}):
        with pytest.raises(ConfigError, match="is for"):
            copy(run, tmp_path / "no", **options)


def round_trip(source: Path, addresses: list[str], back: Path, **options: Any) -> dict[str, bytes]:
    for place, following in zip([str(source), *addresses], [*addresses, str(back)], strict=True):
        copy(place, following, **options)
    return everything(back)


def check_places(records: Path, store: Store, bucket: str, tmp_path: Path) -> None:
    addresses = [f"s3://{bucket}/a/store", f"s3://{bucket}/b"]
    assert round_trip(store.path, addresses, tmp_path / "back") == everything(store.path)
    assert sorted(open_storage(addresses[1]).walk()) == sorted(everything(store.path))
    assert Store(addresses[1]).check_files() == 15
    addresses = [f"s3://{bucket}/records", f"s3://{bucket}/c/records"]
    assert round_trip(records, addresses, tmp_path / "records back") == everything(records)
    assert sorted(open_storage(addresses[0]).walk()) == sorted(everything(records))
    run = make_run(tmp_path / "run")
    (run / "result.json").write_text("{}")
    copy(run, f"s3://{bucket}/run")
    copy(f"s3://{bucket}/run", tmp_path / "run back")
    assert everything(tmp_path / "run back").keys() - {INDEX_NAME} == everything(run).keys() - {".train.lock"}
    # What was removed there, and what changed.
    storage = open_storage(f"s3://{bucket}/b")
    storage.delete("train-00000-of-00002.v002-003.arrow")
    with storage.put("train-00001-of-00002.v002-003.arrow") as file:
        file.write(bytes(storage.status("train-00001-of-00002.v002-003.arrow").num_bytes))
    copy(store.path, f"s3://{bucket}/b")
    copy(f"s3://{bucket}/b", tmp_path / "again")
    assert everything(tmp_path / "again") == everything(store.path)
    # Parts of it.
    copy(f"s3://{bucket}/b", f"s3://{bucket}/part", shards="1:2", views="0:2")
    assert Store(f"s3://{bucket}/part").num_records == 3 and Store(f"s3://{bucket}/part").check_files() == 4


def test_buckets(moto: str, records: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(moto).items():
        monkeypatch.setenv(name, value)
    check_places(records, store, new_bucket(moto), tmp_path)


@pytest.mark.slow
@pytest.mark.xdist_group("gateway")
def test_a_real_server(
    gateway: Gateway, records: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(gateway.endpoint).items():
        monkeypatch.setenv(name, value)
    check_places(records, store, new_bucket(gateway.endpoint), tmp_path)


@pytest.mark.slow
@pytest.mark.xdist_group("gateway")
def test_a_server_that_dies_meanwhile(gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(gateway.endpoint).items():
        monkeypatch.setenv(name, value)
    source = write_shards(tmp_path / "source", sizes=(3,) * 10)
    address = f"s3://{new_bucket(gateway.endpoint)}/records"
    put, begun = ObjectStorage.put_if_absent, []
    is_midway, is_killed = threading.Event(), threading.Event()

    @contextmanager
    def noted(storage: ObjectStorage, name: str) -> Iterator[BinaryIO]:
        begun.append(name)
        if len(begun) == 6:
            assert is_killed.wait(120)
        with put(storage, name) as file:
            yield file
            if len(begun) == 5:
                is_midway.set()  # this put ends while the server is killed, the next one begins without a server

    monkeypatch.setattr(ObjectStorage, "put_if_absent", noted)
    copying = threading.Thread(target=copy, args=(source, address), kwargs={"transfers": 1})
    copying.start()
    assert is_midway.wait(120)
    gateway.kill()
    is_killed.set()
    assert copying.is_alive() and len(begun) <= 6
    gateway.restart()
    copying.join(240)
    assert not copying.is_alive()
    copy(address, tmp_path / "back")
    assert everything(source).items() <= everything(tmp_path / "back").items()


def test_a_web_server(records: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(store.path) as server:
        copy(server.address, tmp_path / "store")
        assert everything(tmp_path / "store") == everything(store.path)
        copy(server.address, tmp_path / "part", views="0:2", shards="0:1")
        found = Store(to_location(server.address))
        assert found.check_files() == 15 and found.fingerprint == store.fingerprint
        with pytest.raises(SystemExit) as end:
            main(["inspect", server.address])
        assert end.value.code == 0 and "15 of 15 files" not in capsys.readouterr().err
    with serve(records) as server:
        copy(server.address, tmp_path / "records")
        assert everything(tmp_path / "records") == everything(records)
        with pytest.raises(SystemExit) as end:
            main(["inspect", server.address])
        assert end.value.code == 0 and "24 records" in capsys.readouterr().out
    bare = tmp_path / "bare"
    shutil.copytree(records, bare)
    (bare / INDEX_NAME).unlink()
    with serve(bare) as server:
        with pytest.raises(TeachonceError, match=r"a web server has no listings, and there is no files\.json here"):
            copy(server.address, tmp_path / "no")
        with pytest.raises(TeachonceError, match=r"a web server has no listings, and there is no files\.json here"):
            open_records(to_location(server.address), "train")


@pytest.mark.slow
def test_kill_9_in_the_middle(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "source", sizes=(3,) * 150)
    copy(source, tmp_path / "expected")
    expected = everything(tmp_path / "expected")
    command = [sys.executable, "-c", "from teachonce.cli.main import main; main()"]
    command += ["copy", str(source), str(tmp_path / "copy")]
    num_cut = 0
    for wanted in (1, 30, 90):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while len(list((tmp_path / "copy").glob("train-*"))) < wanted and process.poll() is None:
                time.sleep(0.002)
            num_cut += process.poll() is None
            process.send_signal(signal.SIGKILL)
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        assert everything(tmp_path / "copy") == expected
    assert num_cut


def test_training_from_a_published_store(digits: Path, tmp_path: Path) -> None:
    """Store and records on plain web servers teach as they do from a folder, a part of them as that part."""
    from teachonce.training.config import TrainConfig
    from teachonce.training.train import train
    from tests.support.small_data import teacher_logits

    with pytest.raises(SystemExit):
        main(["records", "--images", str(digits), "--shards", "4", "--out", str(tmp_path / "records")])
    source = open_records(tmp_path / "records", "train")
    write_store(tmp_path / "store", source, teacher_logits(source, 11), offset=0)
    copy(tmp_path / "records", tmp_path / "www" / "records")
    copy(tmp_path / "store", tmp_path / "www" / "store")
    copy(tmp_path / "records", tmp_path / "www" / "part" / "records", shards="1:3")
    copy(tmp_path / "store", tmp_path / "www" / "part" / "store", shards="1:3")
    curves = []
    with serve(tmp_path / "www") as server:
        for number, place in enumerate((str(tmp_path / "www"), server.address, f"{server.address}/part")):
            out = tmp_path / f"run{number}"
            train(
                TrainConfig(
                    data=to_location(f"{place}/records"),
                    store=(to_location(f"{place}/store"),),
                    student="timm:test_resnet",
                    out=out,
                    size=16,
                    batch_size=16,
                    epochs=1,
                    device="cpu",
                    validation_split="none",
                    kd_temp=2.0,
                )
            )
            columns = [row.split(",") for row in (out / "metrics.csv").read_text().splitlines()]
            curves.append(dict(zip(*columns, strict=True))["train_loss"])
            assert json.loads((out / "result.json").read_text())["missing_records"] == 0
    assert curves[0] == curves[1] != curves[2]


def test_data_that_is_not_copied(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "images/train")
    classes = tmp_path / "images/train/train"
    for name in ("tars/train-0.tar", "parquet/data/train-0.parquet", "images/list.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    for source in (
        tmp_path / "tars",
        tmp_path / "tars/train-0.tar",
        tmp_path / "parquet",
        classes,
        tmp_path / "images/list.txt",
    ):
        with pytest.raises(ConfigError, match=rf"{source}: copy takes a store, a run, TFRecord shards SPLIT-N"):
            copy(source, tmp_path / "target")
