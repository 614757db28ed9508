"""Data sets by their address on the Hugging Face hub: downloaded once, read as the local folder would be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from teachonce.errors import ConfigError
from teachonce.storage.address import Address, to_location
from teachonce.storage.files import open_storage
from tests.records.containers.test_huggingface import write_parquet_folder
from tests.records.containers.test_webdataset import write_tars
from tests.support.hub_server import HubServer, serve_hub
from tests.support.light_install import teachonce_hiding
from tests.support.many_commands import Ended, run_commands
from tests.support.small_data import encode_jpeg

pytest.importorskip("huggingface_hub")


class Made(NamedTuple):
    """What the hub has: two folders on this machine that tests read, and the files of each data set by name."""

    parquet: Path
    tars: Path
    data_sets: dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    parquet, tars = write_parquet_folder(folder / "parquet"), write_tars(folder / "tars")
    files = {str(path.relative_to(parquet)): path.read_bytes() for path in parquet.rglob("*") if path.is_file()}
    below = {name.replace("data/", "sizes-32/"): content for name, content in files.items()}
    images = {f"train/{kind}/{index}.jpg": encode_jpeg(index) for index, kind in enumerate("aabb")}
    extra = {"train/cat.jpg": encode_jpeg(1), "notes.txt": b"other", "odd[1]@2x/a b#.txt": b"odd"}
    two = {f"{size}/{name.rpartition('/')[2]}": content for size in "xy" for name, content in files.items()}
    in_tars = {path.name: path.read_bytes() for path in tars.iterdir()}
    data_sets = {"me/flowers": files | extra, "me/named": below, "me/images": images, "me/two": two, "me/tars": in_tars}
    # The same once more, so that whoever opens all of them downloads each.
    return Made(parquet, tars, data_sets | {"me/branch": files | extra, "me/folder": below})


@pytest.fixture
def hub(made: Made) -> Iterator[HubServer]:
    with serve_hub(made.data_sets) as server:
        yield server


def settings(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    own = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.endpoint, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    others = {
        name: value for name, value in os.environ.items() if not re.match("HF_|TEACHONCE_HUB|.*_proxy$", name, re.I)
    }
    return {**others, **own}


def python(hub: HubServer, tmp_path: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own: huggingface_hub reads its settings when it is imported."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env=settings(hub, tmp_path) | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run(hub: HubServer, tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return python(hub, tmp_path, "-m", "teachonce", *arguments, **environment)


def run_all(hub: HubServer, tmp_path: Path, *commands: Sequence[str]) -> list[Ended]:
    return run_commands(lambda code: python(hub, tmp_path, "-c", code), commands)


KEYS = """
import sys
from teachonce.records.discovery import open_records
from teachonce.storage.address import to_location
for location in sys.argv[1:]:
    source = open_records(to_location(location), 'train')
    print([record.key for shard in range(len(source.shards)) for record in source.iter_shard(shard)])
"""


def keys_of_all(hub: HubServer, tmp_path: Path, *locations: str, **environment: str) -> list[list[int]]:
    """The keys of each location's records, read by one process."""
    done = python(hub, tmp_path, "-c", KEYS, *locations, **environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def keys(hub: HubServer, tmp_path: Path, location: str, **environment: str) -> list[int]:
    (found,) = keys_of_all(hub, tmp_path, location, **environment)
    return found


def test_parquet_of_the_hub_is_what_the_folder_is(hub: HubServer, made: Made, tmp_path: Path):
    names = ["flowers", "branch@main", "named", "folder/sizes-32", "two/x"]
    *found, local = keys_of_all(hub, tmp_path, *(f"hf://datasets/me/{name}" for name in names), str(made.parquet))
    assert len(local) == 10
    assert dict(zip(names, found, strict=True)) == dict.fromkeys(names, local)
    assert len(hub.downloads()) == 2 * len(names)
    assert all(asked.endswith(".parquet") for asked in hub.downloads())


def test_tars_are_read_too(hub: HubServer, made: Made, tmp_path: Path):
    found, local = keys_of_all(hub, tmp_path, "hf://datasets/me/tars", str(made.tars))
    assert len(found) == 7 and found == local
    assert found[:3] == keys(hub, tmp_path, "hf://datasets/me/tars/train-000000.tar", HF_HUB_OFFLINE="1")


def test_other_files_are_read_where_there_is_no_parquet(hub: HubServer, tmp_path: Path):
    assert len(keys(hub, tmp_path, "hf://datasets/me/images")) == 4
    # Every folder below is opened too, and the hub asked for the commit once.
    assert sum("/api/datasets/" in asked for asked in hub.asked) == 1
    assert len(set(hub.downloads())) == len(hub.downloads()) == 4


def test_only_what_is_read_is_downloaded(hub: HubServer, tmp_path: Path):
    first = "data/train-00000-of-00002-0a1b2c.parquet"
    assert len(keys(hub, tmp_path, f"hf://datasets/me/flowers/{first}")) == 5 and hub.downloads() == [first]
    done = run(hub, tmp_path, "inspect", "hf://datasets/me/flowers/dta")
    assert done.returncode == 2 and "hf://datasets/me/flowers/dta: no such folder" in done.stderr, done.stderr
    assert hub.downloads() == [first]


def test_what_is_beside_and_below_is_there_whatever_was_opened_before(hub: HubServer, tmp_path: Path):
    script = (
        "from teachonce.storage.files import open_storage, exists; from teachonce.storage.address import to_location; "
        "top = to_location('hf://datasets/me/flowers'); print(sorted(open_storage(top).list_folder().folders)); "
        "print(open_storage(top / 'train').list_folder().files, open_storage(top).read('notes.txt'), "
        "exists(top), exists(top / 'notes.txt'), exists(top / 'no'), "
        "open_storage(top / 'odd[1]@2x').list_folder().files)"
    )
    done = python(hub, tmp_path, "-c", script)
    expected = "['data', 'odd[1]@2x', 'train']\n['cat.jpg'] b'other' True True False ['a b#.txt']\n"
    assert done.stdout == expected, done.stderr


def test_without_a_network_a_data_set_is_complete_or_refused(hub: HubServer, tmp_path: Path):
    first = "data/train-00000-of-00002-0a1b2c.parquet"
    keys(hub, tmp_path, f"hf://datasets/me/flowers/{first}")
    done = run(hub, tmp_path, "inspect", "hf://datasets/me/flowers", HF_HUB_OFFLINE="1")
    assert done.returncode in (1, 2) and "train-00001-of-00002-0a1b2c.parquet: cannot be downloaded" in done.stderr


def test_nothing_is_downloaded_twice_and_the_cache_serves_without_a_network(hub: HubServer, tmp_path: Path):
    first = keys(hub, tmp_path, "hf://datasets/me/flowers")
    count = len(hub.downloads())
    assert keys(hub, tmp_path, "hf://datasets/me/flowers") == first and len(hub.downloads()) == count == 2
    asked = len(hub.asked)
    assert keys(hub, tmp_path, "hf://datasets/me/flowers", HF_HUB_OFFLINE="1") == first and len(hub.asked) == asked


def test_inspect_shows_the_address_and_the_classes(hub: HubServer, tmp_path: Path):
    done = run(hub, tmp_path, "inspect", "hf://datasets/me/flowers")
    assert done.returncode == 0 and "copying Parquet" in done.stderr, done.stderr
    assert "hf://datasets/me/flowers" in done.stdout and "daisy" in done.stdout


def assert_is_one_line(done: Ended | subprocess.CompletedProcess[str], expected: str) -> None:
    assert done.returncode in (1, 2) and expected in done.stderr, (expected, done.stderr)
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, (expected, done.stderr)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "check the name, the network and, for a private or gated"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be downloaded: "),
    ],
)
def test_what_cannot_be_downloaded_is_one_line(
    hub: HubServer, tmp_path: Path, environment: Mapping[str, str], expected: str
):
    assert_is_one_line(run(hub, tmp_path, "inspect", "hf://datasets/me/flowers", **environment), expected)


def test_what_cannot_be_read_is_one_line(hub: HubServer, tmp_path: Path):
    expected = {
        "hf://datasets/me/nothing": "hf://datasets/me/nothing: cannot be downloaded: ",
        "hf://datasets/me/flowers@v9": "hf://datasets/me/flowers@v9: cannot be downloaded: ",
        "hf://datasets/me/two": "Parquet of several data sets, in x, y; give one of them, such as",
        "hf://datasets/me/flowers/nowhere": "hf://datasets/me/flowers/nowhere: no such folder; expected",
        "hf://me/flowers": "hf://me/flowers: expected hf://datasets/OWNER/NAME",
        "hf://datasets/": "expected hf://datasets/OWNER/NAME",
    }
    all_done = run_all(hub, tmp_path, *(("inspect", location) for location in expected))
    for done, part in zip(all_done, expected.values(), strict=True):
        assert_is_one_line(done, part)


def test_nothing_is_written_to_it(hub: HubServer, made: Made, tmp_path: Path):
    """Each command refuses it before anything is asked."""
    images = str(made.parquet)
    copied, extracted, predicted = run_all(
        hub,
        tmp_path,
        ["copy", images, "hf://datasets/me/flowers"],
        ["extract", "--data", images, "--teacher", "timm:x", "--out", "hf://datasets/me/x"],
        ["predict", "timm:x", images, "--csv", "hf://datasets/me/x.csv"],
    )
    assert copied.returncode == 2 and "the Hugging Face hub is read-only" in copied.stderr, copied.stderr
    assert extracted.returncode == 2, extracted.stderr
    assert "the Hugging Face hub is read-only; write to a local path" in extracted.stderr
    assert predicted.returncode == 2, predicted.stderr
    assert "--csv hf://datasets/me/x.csv: the Hugging Face hub is" in predicted.stderr
    assert not hub.asked


def test_nothing_is_put_into_its_storage():
    # In this process: nothing is asked, so that the environment does not matter.
    storage = open_storage("hf://datasets/me/flowers")
    line = "hf://datasets/me/flowers/x.bin: the Hugging Face hub is read-only; write to a local path or a bucket"
    for ask in (storage.put, storage.put_if_absent, storage.delete, lambda name: storage.lock(name, "written")):
        with pytest.raises(ConfigError) as caught:
            ask("x.bin")
        assert str(caught.value) == line
    assert not storage.is_writable()


def test_without_the_library(tmp_path: Path):
    done = teachonce_hiding(["huggingface_hub"], "inspect", "hf://datasets/me/flowers", folder=tmp_path)
    assert done.returncode == 2 and "pip install 'teachonce[huggingface]'" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://datasets/a/b", ("a/b", None, "")),
        ("hf://datasets/a/b@v1/c/d", ("a/b", "v1", "c/d")),
        ("hf://datasets/a/b@refs%2Fconvert%2Fparquet/c", ("a/b", "refs/convert/parquet", "c")),
        ("hf://datasets/a/b@refs/convert/parquet/c", ("a/b", "refs/convert/parquet", "c")),
    ],
)
def test_addresses_are_those_of_huggingface_hub(text: str, expected: tuple[str, str | None, str]):
    from teachonce.storage.remote.hub_storage import parse_hub_address

    address = to_location(text)
    assert isinstance(address, Address) and parse_hub_address(address) == expected


@pytest.mark.parametrize(
    "text", ["hf://datasets", "hf://datasets/mnist", "hf://spaces/a/b", "hf://a/b", "hf://datasets/a/b@"]
)
def test_other_addresses_are_refused(text: str):
    from teachonce.storage.remote.hub_storage import parse_hub_address

    with pytest.raises(ConfigError, match="expected hf://datasets/OWNER/NAME"):
        parse_hub_address(Address(text.replace("://", ":/")))
