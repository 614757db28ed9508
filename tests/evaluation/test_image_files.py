"""The images of a ``predict`` command, in their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from teachonce.errors import ConfigError, RecordError
from teachonce.evaluation.image_files import ImageFiles, check_images


def write_files(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def test_files_and_folders_in_the_order_they_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, "z.jpg", "odd", "a/c.JPG", "a/b/2.png", "a/b/10.png", "a/.hidden.jpg", "a/.folder/x.jpg")
    monkeypatch.chdir(tmp_path)
    files = ImageFiles([Path("z.jpg"), Path("a"), Path("odd"), Path("z.jpg")])
    found = [file.path for file in files]
    assert found == ["z.jpg", "a/c.JPG", "a/b/10.png", "a/b/2.png", "odd", "z.jpg"]
    assert len(files) == len(found) and [file.path for file in files] == found, "again"
    assert all(file.storage.read(file.name) == b"x" for file in files)
    with pytest.warns(UserWarning, match="ignored, .*such as .*odd"):
        assert [file.path for file in ImageFiles([Path()])] == ["z.jpg", "a/c.JPG", "a/b/10.png", "a/b/2.png"]
    with pytest.warns(UserWarning, match="ignored, .*such as .*odd"):
        assert len(ImageFiles([tmp_path / "a" / ".."])) == 4


def test_what_is_no_image_by_its_name_is_left_out_of_a_folder(tmp_path: Path) -> None:
    write_files(tmp_path, "a/b.jpg", "a/notes.txt", "a/empty/.keep")
    with pytest.warns(UserWarning, match="(ignored, .* as .*notes.txt|1 folder has no images and is left out: empty)"):
        assert [Path(file.path).name for file in ImageFiles([tmp_path / "a"])] == ["b.jpg"]


def test_what_is_no_image_beside_folders_alone_is_said_too(tmp_path: Path) -> None:
    write_files(tmp_path, "a/b.jpg", "c.heic")
    with pytest.warns(UserWarning, match=r"^1 file ignored, .* as .*/c.heic") as said:
        assert [Path(file.path).name for file in ImageFiles([tmp_path])] == ["b.jpg"]
    assert len(said) == 1


def test_a_folder_holds_names_of_any_bytes_too(tmp_path: Path) -> None:
    names = ["0.jpg", "a/caf\udce9.jpg", "a/x\ny.jpg", "b\n/\udcff\udcfe/1.jpg", "caf\u00e9/2.jpg"]
    write_files(tmp_path, *names)
    files = list(ImageFiles([tmp_path]))
    assert [file.path for file in files] == [f"{tmp_path}/{name}" for name in names]
    assert all(file.storage.read(file.name) == b"x" for file in files)


def test_what_is_not_there(tmp_path: Path) -> None:
    write_files(tmp_path, "a/notes.txt", "b/c/notes.txt")
    missing = tmp_path / "nowhere"
    for judge in (ImageFiles, check_images):
        with pytest.raises(ConfigError, match=f"{missing}: no such file or folder; expected an image or a folder"):
            judge([tmp_path / "a", missing] if judge is check_images else [missing])
    with pytest.raises(ConfigError, match=r"a: has no images \(.*\.jpg.*\), expected at least one"):
        ImageFiles([tmp_path / "a"])
    with pytest.raises(RecordError, match=r"c: has no images"):
        ImageFiles([tmp_path / "b"])


def test_images_at_an_address(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from teachonce.storage.files import open_storage
    from tests.support.object_stores import environment, new_bucket

    for name, value in environment(moto).items():
        monkeypatch.setenv(name, value)
    bucket = f"s3://{new_bucket(moto)}"
    for name in ("b.png", "in/a.jpg"):
        with open_storage(bucket).put(name) as file:
            file.write(name.encode())
    files = list(ImageFiles([Path(f"{bucket}/b.png"), Path(f"{bucket}/in"), Path(bucket)]))
    assert [file.path.removeprefix(bucket) for file in files] == ["/b.png", "/in/a.jpg", "/b.png", "/in/a.jpg"]
    assert [file.storage.read(file.name) for file in files] == [b"b.png", b"in/a.jpg"] * 2
