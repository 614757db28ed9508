"""Copies of objects for libraries that open files: complete, made once, and nobody else's to change."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from teachonce.errors import ModelError, TeachonceError
from teachonce.storage.local import LocalStorage
from teachonce.storage.remote.local_copy import local_copy


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    (tmp_path / "there" / "folder").mkdir(parents=True)
    (tmp_path / "there" / "folder" / "weights").write_bytes(b"weights")
    return LocalStorage(tmp_path / "there", ModelError)


def test_a_copy_is_made_once(storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = local_copy(storage, "folder/weights")
    assert copy.is_relative_to(tmp_path / "cache" / "teachonce" / "copies") and copy.read_bytes() == b"weights"
    inode = copy.stat().st_ino
    assert local_copy(storage, "folder/weights").stat().st_ino == inode
    folder = local_copy(storage, "folder")
    assert [path.name for path in folder.iterdir()] == ["weights"]


@pytest.fixture
def without_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TMPDIR of a user without a home, as containers with any number for a user have them."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def test_of_a_user_without_a_home(storage: LocalStorage, without_home: Path) -> None:
    for _ in range(2):
        assert local_copy(storage, "folder/weights").read_bytes() == b"weights"
    (folder,) = without_home.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700


def _as_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to("elsewhere")


@pytest.mark.parametrize("change", [lambda folder: folder.mkdir(mode=0o700) or folder.chmod(0o777), _as_link])
def test_a_folder_that_others_can_write_to(
    storage: LocalStorage, without_home: Path, change: Callable[[Path], None]
) -> None:
    """Whoever was first could put weights of their own there."""
    local_copy(storage, "folder/weights")
    (folder,) = without_home.iterdir()
    folder.rename(without_home / "before")
    change(folder)
    with pytest.raises(TeachonceError, match=f"^{folder}: others can write to it; remove it, or set XDG_CACHE_HOME"):
        local_copy(storage, "folder/weights")
