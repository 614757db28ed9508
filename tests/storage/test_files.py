"""Files that are whole or absent."""

import errno
import os
from pathlib import Path

import pytest

from teachonce.errors import RecordError, TeachonceError
from teachonce.storage.files import atomic_write, read_json, remove_temporaries, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_the_block_ends(tmp_path):
    with atomic_write(tmp_path / "deep" / "a.bin") as file:
        file.write(b"half")
        assert "a.bin" not in names(tmp_path / "deep")
    assert (tmp_path / "deep" / "a.bin").read_bytes() == b"half"
    assert names(tmp_path / "deep") == ["a.bin"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(RecordError, match="mine"), atomic_write(tmp_path / "a.bin") as file:
        file.write(b"new")
        raise RecordError("mine")
    assert (tmp_path / "a.bin").read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_a_full_disk_is_one_line_with_the_path(tmp_path):
    expected = pytest.raises(TeachonceError, match=r"a\.bin: cannot be written: No space left")
    with expected, atomic_write(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_the_first_of_several_writers_wins(tmp_path):
    with atomic_write(tmp_path / "a.bin", overwrite=False) as slow:
        with atomic_write(tmp_path / "a.bin", overwrite=False) as fast:
            fast.write(b"first")
        slow.write(b"second")
    assert (tmp_path / "a.bin").read_bytes() == b"first" and names(tmp_path) == ["a.bin"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TeachonceError, match="cannot be written"), atomic_write(tmp_path / "file" / "a.bin"):
        pass


def test_files_follow_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "a.bin"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o644


def test_json_and_its_errors(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None]}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(TeachonceError, match=r"b\.json: is not JSON"):
        read_json(tmp_path / "b.json")
    with pytest.raises(TeachonceError, match=r"c\.json: cannot be read: No such file"):
        read_json(tmp_path / "c.json")
    with pytest.raises(ValueError):
        write_json(tmp_path / "d.json", float("nan"))
    assert names(tmp_path) == ["a.json", "b.json"]


def test_leftovers_of_a_kill_are_removed(tmp_path):
    (tmp_path / ".tmp-abc-a.bin").write_bytes(b"")
    (tmp_path / "a.bin").write_bytes(b"")
    remove_temporaries(tmp_path, older_than_seconds=60)
    assert len(names(tmp_path)) == 2
    remove_temporaries(tmp_path)
    assert names(tmp_path) == ["a.bin"]
