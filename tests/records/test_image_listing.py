import warnings
from pathlib import Path

import pytest

from teachonce.errors import RecordError
from teachonce.records.image_listing import find_class_folders, find_data_classes, known_as, list_images


def make_tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def test_listing_is_by_class_then_name(tmp_path: Path) -> None:
    make_tree(tmp_path, "b/2.jpg", "b/10.JPEG", "B/z.png", "a/é.jpeg", ".hidden/x.jpg", "a/.DS_Store")
    assert find_class_folders(tmp_path) == ["B", "a", "b"]
    listing = list_images(tmp_path, ["B", "a", "b"])
    assert list(listing.relative_names()) == ["B/z.png", "a/é.jpeg", "b/10.JPEG", "b/2.jpg"]
    assert [listing.basename(index) for index in range(len(listing))] == ["z.png", "é.jpeg", "10.JPEG", "2.jpg"]
    assert listing.path(1).read_bytes() == b"x"
    assert listing.folder_of.tolist() == [0, 1, 2, 2]


def test_a_selection_keeps_its_order(tmp_path: Path) -> None:
    listing = list_images(make_tree(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg"), ["a", "b"])
    part = listing.select([2, 0])
    assert list(part.relative_names()) == ["b/3.jpg", "a/1.jpg"]
    assert part.digest() != listing.select([0, 2]).digest() == listing.select([0, 2]).digest()


def test_a_flat_folder_and_links(tmp_path: Path) -> None:
    make_tree(tmp_path, "1.jpg", "sub/2.jpg", "sub.jpg/x.jpg")
    (tmp_path / "0.jpg").symlink_to("nowhere")
    # The broken link stays in the list: that its image is missing must come out, not shrink the data.
    assert list(list_images(tmp_path, [""]).relative_names()) == ["0.jpg", "1.jpg"]


def test_what_holds_no_image_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path, "a/1.jpg")
    (tmp_path / "b").mkdir()
    with pytest.raises(RecordError, match=r"b: has no images \(.bmp, .jpeg, .jpg, .*expected at least one"):
        list_images(tmp_path, ["a", "b"])
    make_tree(tmp_path, "c/images/notes.txt")
    with pytest.raises(RecordError, match=r"c: has no images"):
        list_images(tmp_path, ["a", "c"])
    with pytest.raises(RecordError, match="nowhere: cannot be listed"):
        find_class_folders(tmp_path / "nowhere")


def test_images_lie_at_any_depth_below_their_class_as_for_imagefolder(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    names = ["a/9.jpg", "a/deep/er/1.png", "a/deep-er/0.jpg", "a/deep/2.JPG", "b/images/3.jpeg", "c c/x/y/z/4.bmp"]
    make_tree(tmp_path, *names, "b/notes.md", "b/images/boxes.txt")
    folders = find_class_folders(tmp_path)
    with pytest.warns(match="2 files ignored"):
        listing = list_images(tmp_path, folders)
    expected = torchvision.datasets.ImageFolder(tmp_path)
    assert [str(path) for path, _ in expected.samples] == [str(tmp_path / name) for name in listing.relative_names()]
    assert [label for _, label in expected.samples] == listing.class_of(folders).tolist()
    assert expected.classes == folders


def test_a_link_that_leads_back_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path, "a/1.jpg")
    (tmp_path / "a/again").symlink_to(tmp_path / "a")
    with pytest.raises(RecordError, match="is 32 folders below its class; a link leads back"):
        list_images(tmp_path, ["a"])


def test_other_files_are_left_out_with_a_warning(tmp_path: Path) -> None:
    make_tree(tmp_path, "a/1.jpg", "a/2.tiff", "a/notes.txt", "a/Thumbs.db", "a/desktop.ini")
    with pytest.warns(UserWarning, match=r"2 files ignored, most with the extension \.t\w+ \(1\), \.t"):
        assert len(list_images(tmp_path, ["a"])) == 1


def test_what_windows_leaves_is_no_news(tmp_path: Path) -> None:
    make_tree(tmp_path, "a/1.jpg", "a/Thumbs.db", "a/desktop.ini", "a/.DS_Store")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list_images(tmp_path, ["a"])) == 1


def test_names_that_are_not_utf8_or_break_lines_are_refused(tmp_path: Path) -> None:
    make_tree(tmp_path, "a/x\udcff.jpg", "b/x\ny.jpg")
    with pytest.raises(RecordError, match=r"/a/x\\udcff\.jpg: the name b'x\\xff\.jpg' is not UTF-8; rename it$"):
        list_images(tmp_path, ["a"])
    with pytest.raises(RecordError, match=r"/b/x\\ny\.jpg: the name has a line break, expected one line; rename it$"):
        list_images(tmp_path, ["b"])
    make_tree(tmp_path, "c/d\n/1.jpg", "\udcff/1.jpg")
    with pytest.raises(RecordError, match=r"/c/d\\n: the name has a line break"):
        list_images(tmp_path, ["c"])
    with pytest.raises(RecordError, match=r"/\\udcff: the name b'\\xff' is not UTF-8"):
        find_class_folders(tmp_path)
    folders = find_class_folders(tmp_path, any_names=True)
    names = list(list_images(tmp_path, folders, any_names=True).relative_names())
    assert names == ["a/x\udcff.jpg", "b/x\ny.jpg", "c/d\n/1.jpg", "\udcff/1.jpg"]


def test_the_classes_of_train_are_the_datas(tmp_path: Path) -> None:
    make_tree(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "validation/b/1.jpg", "test/c/1.jpg")
    assert find_data_classes(tmp_path, "validation") == ["a", "b"]
    (tmp_path / "train").rename(tmp_path / "training")
    assert find_data_classes(tmp_path, "validation") == ["a", "b"]
    (tmp_path / "training").rename(tmp_path / "Train")
    assert find_data_classes(tmp_path, "validation") == ["a", "b"]
    (tmp_path / "Train").rename(tmp_path / "other")
    assert find_data_classes(tmp_path, "validation") == ["b"]


def test_results_call_a_split_by_one_name() -> None:
    named = {
        "val": "validation",
        "Valid": "validation",
        "VALIDATION": "validation",
        "training": "train",
        "Train": "train",
    }
    assert {name: known_as(name) for name in named} == named
    assert known_as("test") == "test" and known_as("Even") == "Even"
