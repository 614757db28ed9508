"""Plain web servers: read by name, listed by files.json, and one line for what they cannot do."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from teachonce.cli.main import main
from teachonce.errors import ConfigError, RecordError
from teachonce.storage.address import Address, to_location
from teachonce.storage.files import open_storage
from teachonce.storage.local import LocalStorage
from teachonce.storage.remote import web_storage
from teachonce.storage.remote.file_index import INDEX_NAME, hash_file, put_file_index
from teachonce.storage.sealed_json import sealed_bytes
from teachonce.storage.storage import Storage
from tests.support.web_server import WebServer, serve

LARGE = bytes(range(251)) * 20_000
FILES = {"a.bin": b"12345", "b/c.bin": LARGE, "b/d/e.bin": b"", "b/ä b#%+&=;'.bin": b"odd"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "www" / "some" / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "www"


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def server(folder: Path, request: pytest.FixtureRequest) -> Iterator[WebServer]:
    with serve(folder, has_ranges=request.param) as server:
        yield server


def publish(folder: Path) -> None:
    storage = LocalStorage(folder)
    put_file_index(storage, {name: hash_file(storage, name) for name in storage.walk() if name != INDEX_NAME})


def opened(server: WebServer) -> Storage:
    return open_storage(f"{server.address}/some/folder", RecordError)


def test_files_are_read_by_name(server: WebServer) -> None:
    storage = opened(server)
    for name, content in FILES.items():
        assert storage.has(name) and storage.read(name) == content and storage.status(name).num_bytes == len(content)
        assert storage.map(name)[:] == content and len(storage.map(name)) == len(content)
        with storage.stream(name) as file:
            assert file.read() == content
    reader = storage.open_reader("b/c.bin")
    assert reader.read(70_000, 200_000) == LARGE[70_000:270_000] and reader.read(len(LARGE) - 2, 9) == LARGE[-2:]
    ordered, parts = storage.open_reader("b/c.bin", in_order=True), []
    while part := ordered.read(sum(map(len, parts)), 1_000_000):
        parts.append(part)
    assert b"".join(parts) == LARGE
    assert not storage.has("nowhere") and not storage.has("b/nowhere.bin")
    assert storage.local_path("b/c.bin").read_bytes() == LARGE
    again = pickle.loads(pickle.dumps(storage))
    assert again.read("a.bin") == b"12345" and again.raises is RecordError
    for ask in (storage.read, storage.status, storage.open_reader, storage.map):
        with pytest.raises(RecordError, match=rf"^{server.address}/some/folder/no/file: cannot be read: No such file"):
            ask("no/file")


def test_what_is_there_stands_in_the_list(folder: Path, server: WebServer) -> None:
    publish(folder / "some" / "folder")
    storage = opened(server)
    files, folders = storage.list_folder()
    assert (files, folders) == (["a.bin"], ["b"])
    assert {name.partition("/")[0] for name in storage.walk()} == {"a.bin", "b"}
    assert sorted(storage.walk()) == sorted(FILES) and sorted(storage.list_folder("b").folders) == ["d"]
    assert storage.is_folder() and storage.is_folder("b/d") and not storage.is_folder("b/q")
    assert not storage.is_folder("a.bin") and storage.statuses()["a.bin"].num_bytes == 5
    assert storage.local_path("b/d").is_dir() and (storage.local_path("b") / "c.bin").read_bytes() == LARGE
    with pytest.raises(RecordError, match=r"/some/folder/q: cannot be listed: No such file or directory"):
        storage.list_folder("q")
    below = open_storage(f"{server.address}/some/folder/b/d", RecordError)
    assert below.list_folder() == (["e.bin"], [])


def test_the_list_of_many_folders_is_read_once(folder: Path) -> None:
    publish(folder / "some" / "folder")
    with serve(folder) as server:
        opened(server).list_folder()
        server.requests.clear()
        for name in ("b", "b/d"):
            open_storage(f"{server.address}/some/folder/{name}").list_folder()
        assert server.requests == []
        # The folder itself is looked up again: there may be more by now.
        (folder / "some" / "folder" / "more.bin").write_bytes(b"more")
        publish(folder / "some" / "folder")
        assert "more.bin" in opened(server).list_folder().files


def test_without_a_list_nothing_is_listed(server: WebServer) -> None:
    storage = opened(server)
    for ask in (storage.list_folder, storage.is_folder, storage.statuses, lambda: list(storage.walk())):
        with pytest.raises(RecordError, match=rf"^{server.address}/some/folder: cannot be listed: .* no files.json"):
            ask()
    assert not storage.is_folder("a.bin")


@pytest.mark.parametrize(
    "given, name", [("my%20data", "my data"), ("my data", "my data"), ("a%2520b", "a%20b"), ("%C3%A4%3F%23", "ä?#")]
)
def test_an_address_is_what_a_browser_asks_for(given: str, name: str) -> None:
    """And what it is shown as, or written as, is the same address."""
    address = to_location(f"https://host:8000/{given}/c%41")
    assert isinstance(address, Address) and address.key == f"{name}/cA"
    for again in (to_location(str(address)), to_location(Path(str(address))), pickle.loads(pickle.dumps(address))):
        assert again == address
    bucket = to_location(f"s3://bucket/{given}")
    assert str(bucket) == f"s3://bucket/{given}", "where a % is a % in every tool"


@pytest.mark.parametrize("rest, mark", [("data?versionId=7", "%3F"), ("page#part", "%23")])
def test_a_query_is_refused(rest: str, mark: str) -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(rest)}: expected the address of .* written {mark}"):
        to_location(f"https://host/{rest}")


def test_the_server_is_as_it_is_given_and_a_path_is_utf8() -> None:
    address = to_location("http://user:p%2Fw@host:8000/a%20b")
    assert isinstance(address, Address) and (address.bucket, address.key) == ("user:p%2Fw@host:8000", "a b")
    assert to_location(str(address)) == address
    with pytest.raises(ConfigError, match="caf%E9: expected escapes of UTF-8"):
        to_location("https://host/caf%E9")


def test_files_of_an_address_with_escapes(folder: Path) -> None:
    (folder / "some").rename(folder / "so me%3F")
    with serve(folder) as server:
        storage = open_storage(f"{server.address}/so%20me%253F/folder", RecordError)
        assert storage.read("a.bin") == FILES["a.bin"]
        again = open_storage(storage.describe(""), RecordError)
        assert again.read("b/ä b#%+&=;'.bin") == b"odd"


def test_a_bucket_that_denies_what_it_does_not_have(folder: Path) -> None:
    """Where it may be read but not listed; of a folder that shows nothing at all the denial is said."""
    with serve(folder, missing=403) as server:
        storage = opened(server)
        with pytest.raises(RecordError, match=r"plan\.json: cannot be read: access denied"):
            storage.has("plan.json")
        assert storage.has("a.bin") and not storage.has("plan.001.json")
        with pytest.raises(RecordError, match=r"nowhere: cannot be read: access denied"):
            storage.read("nowhere")
        with pytest.raises(RecordError, match=r"some/folder/b: cannot be listed: access denied"):
            storage.list_folder("b")
        publish(folder / "some" / "folder")
        assert storage.list_folder("b").files == ["c.bin", "ä b#%+&=;'.bin"]
    # Another process, which asks for what is not there before anything else: the list is.
    with serve(folder, missing=403) as server:
        storage = opened(server)
        assert not storage.has("plan.json") and not storage.has("b/plan.json")
        assert storage.is_folder("b/d") and not storage.is_folder("e")


@pytest.mark.parametrize("change", ["flipped", "newer", "name", "text", "entry", "long", "nan"])
def test_a_damaged_list(folder: Path, change: str) -> None:
    publish(folder / "some" / "folder")
    path = folder / "some" / "folder" / INDEX_NAME
    storage = LocalStorage(path.parent)
    if change == "flipped":
        path.write_bytes(path.read_bytes().replace(b"a.bin", b"A.bin"))
    elif change == "name":
        put_file_index(storage, {"../x": hash_file(storage, "a.bin")})
    elif change == "text":
        path.write_text("nothing")
    else:
        entries = {"newer": [5, "0", 1], "entry": [-1, "0", 1], "long": [5, "0", 1, 1], "nan": [5, 0.5, None]}
        version = 2 if change == "newer" else 1
        path.write_bytes(sealed_bytes({"format_version": version, "files": {"a.bin": entries[change]}}))
    with serve(folder) as server, pytest.raises(RecordError, match=rf"{server.address}/some/folder/files.json: "):
        opened(server).list_folder()


def test_it_is_read_only(server: WebServer, capsys: pytest.CaptureFixture[str]) -> None:
    storage = opened(server)
    expected = rf"^{server.address}/some/folder/x.bin: a web server is read-only; write to a local path"
    for ask in (
        lambda: storage.put("x.bin"),
        lambda: storage.put_if_absent("x.bin"),
        lambda: storage.delete("x.bin"),
        lambda: storage.lock("x.bin", "written"),
    ):
        with pytest.raises(ConfigError, match=expected):
            ask()
    assert not storage.is_writable() and not storage.can_list
    storage.remove_temporaries()
    with pytest.raises(SystemExit) as end:
        main(["records", "--images", "images", "--out", f"{server.address}/some/folder"])
    line = capsys.readouterr().err
    assert end.value.code == 2 and line.startswith(f"teachonce: --out {server.address}") and "read-only" in line


def test_a_large_file_of_a_server_without_ranges(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_storage, "MAX_UNRANGED_BYTES", 1_000_000)
    with serve(folder, has_ranges=False) as server:
        expected = (
            rf"^{server.address}/some/folder/b/c.bin: cannot be read: this server does not support range requests"
        )
        with pytest.raises(RecordError, match=expected):
            opened(server).read("b/c.bin")
        assert opened(server).read("a.bin") == b"12345"


def test_a_file_that_changes_meanwhile(folder: Path) -> None:
    with serve(folder) as server:
        reader = opened(server).open_reader("b/c.bin")
        path = folder / "some" / "folder" / "b" / "c.bin"
        path.write_bytes(LARGE[::-1])
        os.utime(path, ns=(1, 1))
        with pytest.raises(RecordError, match="it was replaced while it was read"):
            reader.read(1_000_000, 10)


def test_the_list_itself_is_sealed_json(folder: Path) -> None:
    publish(folder / "some" / "folder")
    value = json.loads((folder / "some" / "folder" / INDEX_NAME).read_bytes())
    assert list(value) == ["format_version", "files", "xxh3"] and list(value["files"]) == sorted(FILES)
    assert value["files"]["a.bin"][0] == 5 and value["files"]["a.bin"][2] is None
