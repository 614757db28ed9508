"""Single files by their path: written whole, read as JSON."""

import pickle
import resource
from pathlib import Path

import pytest

from teachonce.errors import ConfigError, RecordError, TeachonceError
from teachonce.storage.address import to_location
from teachonce.storage.files import atomic_write, create_file, exists, locate, open_storage, read_json, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_the_block_ends(tmp_path):
    with atomic_write(tmp_path / "deep" / "a.bin") as file:
        file.write(b"half")
        assert "a.bin" not in names(tmp_path / "deep")
    assert (tmp_path / "deep" / "a.bin").read_bytes() == b"half"
    assert names(tmp_path / "deep") == ["a.bin"]


def test_a_full_disk_is_one_line_with_the_path(tmp_path):
    expected = pytest.raises(TeachonceError, match=r"a\.bin: cannot be written: File too large; free space or choose")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with expected, atomic_write(tmp_path / "a.bin") as file:
            file.write(bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


def test_the_first_of_several_writers_wins(tmp_path):
    with atomic_write(tmp_path / "a.bin", overwrite=False) as slow:
        with atomic_write(tmp_path / "a.bin", overwrite=False) as fast:
            fast.write(b"first")
        slow.write(b"second")
    assert (tmp_path / "a.bin").read_bytes() == b"first" and names(tmp_path) == ["a.bin"]


def test_a_result_whose_name_was_taken_meanwhile_is_said(tmp_path):
    path = tmp_path / "out.csv"
    taken = pytest.raises(ConfigError, match=r"--csv .*out\.csv: another command made this file meanwhile")
    with taken, create_file(path, "--csv") as file:
        file.write(b"ours")
        path.write_bytes(b"another's")
    assert path.read_bytes() == b"another's"
    with pytest.raises(ConfigError, match=r"--csv .*out\.csv: exists"), create_file(path, "--csv"):
        pass
    with create_file(tmp_path / "free.csv", "--csv") as file:
        file.write(b"some")
        file.write(memoryview(b" lines"))
    assert (tmp_path / "free.csv").read_bytes() == b"some lines"


def test_a_location_and_a_single_file(tmp_path, monkeypatch):
    storage, name = locate(tmp_path / "folder" / "a.bin", RecordError)
    assert (storage, name) == (open_storage(str(tmp_path / "folder"), RecordError), "a.bin")
    monkeypatch.chdir(tmp_path)
    write_json(Path("a.json"), 1)
    storage, name = locate(Path("a.json"))
    assert storage.describe(name) == "a.json" and storage.read(name) == b"1\n"
    assert exists(Path("a.json")) and exists(tmp_path) and exists(Path()) and not exists(Path("b.json"))


def test_json_and_its_errors(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None]}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(TeachonceError, match=r"b\.json: is not JSON"):
        read_json(tmp_path / "b.json")
    (tmp_path / "b.json").write_text("[" * 200_000)
    with pytest.raises(TeachonceError, match=r"b\.json: is not JSON: nested more than 64 deep"):
        read_json(tmp_path / "b.json")
    with pytest.raises(TeachonceError, match=r"c\.json: cannot be read: No such file"):
        read_json(tmp_path / "c.json")
    with pytest.raises(ValueError):
        write_json(tmp_path / "d.json", float("nan"))
    assert names(tmp_path) == ["a.json", "b.json"]


@pytest.mark.parametrize("address", ["s3://bucket/store", "gs://b", "https://host/a/b", "az://x"])
def test_an_address_is_no_local_folder(tmp_path, monkeypatch, address):
    """It would be a folder called "s3:" in the working folder, and the data in it where nobody looks."""
    monkeypatch.chdir(tmp_path)
    for location in (address, Path(address)):
        assert str(to_location(location)) == address == open_storage(location).describe()
    with pytest.raises(
        ConfigError, match=r"^ftp://host/a: unknown scheme ftp, expected s3://, gs://, .* or a local path"
    ):
        open_storage("ftp://host/a")
    with pytest.raises(ConfigError, match="no bucket, expected s3://BUCKET/FOLDER"):
        open_storage("s3://")
    assert open_storage("C:/data").describe() == "C:/data"
    assert names(tmp_path) == []


def test_an_address_is_joined_and_sent_as_a_path_and_never_opened_as_one():
    address = to_location("s3://bucket/data/part")
    assert str(address / "a b.bin") == "s3://bucket/data/part/a b.bin" and str(address.parent) == "s3://bucket/data"
    assert (address.scheme, address.bucket, address.key) == ("s3", "bucket", "data/part")
    again = pickle.loads(pickle.dumps(address))
    assert again == address and type(again) is type(address) and str(again.with_name("x")) == "s3://bucket/data/x"
    assert str(address.resolve()) == str(address.absolute()) == str(address) and address != Path("bucket/data/part")
    for touch in (address.exists, address.is_dir, address.read_bytes, address.mkdir, address.open, address.unlink):
        with pytest.raises(TypeError, match="is not a local path"):
            touch()
