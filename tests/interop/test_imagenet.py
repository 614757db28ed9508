import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from teachonce.errors import ConfigError, RecordError
from teachonce.interop.imagenet import class_texts, open_boxes, read_image_labels, read_metadata
from teachonce.records.class_table import read_labels
from teachonce.records.image_listing import ImageListing, list_images


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def listing_of(root: Path, *names: str) -> ImageListing:
    for name in names:
        write(root / name, "")
    return list_images(root, sorted({name.partition("/")[0] for name in names}))


def test_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.txt", "\ufeffn01440764\r\nn01443537 \nn01484850\n\n")
    assert read_labels(path) == ("n01440764", "n01443537", "n01484850")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\na\n", r"labels.txt line 3: a is a duplicate \(of line 1\)"),
        ("a\n\nb\n", "labels.txt line 2: empty, expected a class name"),
        ("\n\n", "labels.txt: empty"),
        ("\udcff\n", "labels.txt: is not UTF-8 text"),
    ],
)
def test_bad_labels(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        read_labels(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.txt: cannot be read: No such file"):
        read_labels(tmp_path / "nowhere.txt")


def test_image_labels_need_a_line_an_image(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.txt", "b\na\nb\n")
    assert read_image_labels(path, 3) == ["b", "a", "b"]
    with pytest.raises(ConfigError, match="3 lines for 4 images"):
        read_image_labels(path, 4)
    with pytest.raises(ConfigError, match="line 2: empty"):
        read_image_labels(write(tmp_path / "gap.txt", "a\n\nb\n"), 3)


def test_metadata(tmp_path: Path) -> None:
    path = write(tmp_path / "metadata.txt", "n1\ttench, Tinca tinca\nn2\tgoldfish\nn2\tgoldfish\n")
    assert read_metadata(path) == {"n1": "tench, Tinca tinca", "n2": "goldfish"}
    assert class_texts(["n2", "n1"], read_metadata(path)) == ("goldfish", "tench, Tinca tinca")
    with pytest.raises(ConfigError, match="lacks 1 of 2 classes, such as n3"):
        class_texts(["n1", "n3"], read_metadata(path))
    with pytest.raises(ConfigError, match=r"metadata.txt line 1: 'n1 tench', expected 'synset<TAB>text'"):
        read_metadata(write(path, "n1 tench\n"))
    with pytest.raises(ConfigError, match="line 2: n1 has a different text than before"):
        read_metadata(write(path, "n1\ttench\nn1\tshark\n"))


def test_texts_come_from_timms_table_or_are_the_names() -> None:
    assert class_texts(["n01440764", "n99999999"]) == ("tench, Tinca tinca", "n99999999")
    assert class_texts(["cat", "n01440764"]) == ("cat", "n01440764")


def test_texts_without_torch() -> None:
    code = (
        "import sys; from teachonce.interop.imagenet import class_texts; class_texts(['n01440764'])\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_csv_boxes_by_basename_or_with_class(tmp_path: Path) -> None:
    path = write(
        tmp_path / "boxes.csv",
        "name,xmin,ymin,xmax,ymax\n1.JPEG,0.1,0.2,0.5,0.6\nb/2.JPEG,0,0,1,1\n1.JPEG,0.25,0.25,0.25,1.0\n\n",
    )
    boxes = open_boxes(path)
    expected = np.array([[0.1, 0.2, 0.5, 0.6], [0.25, 0.25, 0.25, 1.0]], np.float32)
    np.testing.assert_array_equal(boxes.find_boxes("a/1.JPEG"), expected)
    np.testing.assert_array_equal(boxes.find_boxes("b/2.JPEG"), [[0, 0, 1, 1]])
    assert boxes.find_boxes("a/2.JPEG").shape == (0, 4)
    assert boxes.has_any(listing_of(tmp_path / "one", "a/1.JPEG", "b/2.JPEG", "c/2.JPEG"))
    assert not boxes.has_any(listing_of(tmp_path / "other", "a/9.JPEG"))


def test_a_basename_that_fits_two_images_is_refused(tmp_path: Path) -> None:
    boxes = open_boxes(write(tmp_path / "boxes.csv", "1.JPEG,0,0,1,1\n"))
    with pytest.raises(RecordError, match=r"1.JPEG fits a/1.JPEG and b/1.JPEG; use CLASS/NAME"):
        boxes.has_any(listing_of(tmp_path / "images", "a/1.JPEG", "b/1.JPEG"))


@pytest.mark.parametrize("line", ["1.JPEG,0,0,1", "1.JPEG,0,0,1,x", "0,0,1,1", "1.JPEG,,0,0,1"])
def test_a_csv_line_that_cannot_be_read(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "boxes.csv", f"0.JPEG,0,0,1,1\n{line}\n")
    with pytest.raises(ConfigError, match=r"boxes.csv line 2: '.*', expected 'name,xmin,ymin,xmax,ymax'"):
        open_boxes(path)


@pytest.mark.parametrize("box", ["0.5,0,0.4,1", "0,0,1,1.01", "-0.1,0,1,1", "0,nan,1,1", "10,10,50,60"])
def test_a_box_outside_the_image(tmp_path: Path, box: str) -> None:
    path = write(tmp_path / "boxes.csv", f"1.JPEG,{box}\n")
    with pytest.raises(ConfigError, match=r"line 1 \(1.JPEG\): box .* in 0..1"):
        open_boxes(path)


XML = """<annotation><filename>%s</filename><size><width>200</width><height>100</height><depth>3</depth></size>
<object><name>n01440764</name><bndbox><xmin>50</xmin><ymin>10</ymin><xmax>100</xmax><ymax>100</ymax></bndbox></object>
<object><name>n01440764</name><bndbox><xmin>210</xmin><ymin>0</ymin><xmax>220</xmax><ymax>9</ymax></bndbox></object>
<object><name>n01440764</name><bndbox><xmin>180</xmin><ymin>-4</ymin><xmax>20</xmax><ymax>50</ymax></bndbox></object>
</annotation>"""


def test_xml_boxes_are_clipped_ordered_and_never_empty(tmp_path: Path) -> None:
    write(tmp_path / "xml" / "n01440764" / "n01440764_1.xml", XML)
    write(tmp_path / "xml" / "ILSVRC2012_val_00000001.xml", XML)
    boxes = open_boxes(tmp_path / "xml")
    expected = np.array([[0.25, 0.1, 0.5, 1.0], [0.1, 0.0, 0.9, 0.5]], np.float32)
    np.testing.assert_array_equal(boxes.find_boxes("n01440764/n01440764_1.JPEG"), expected)
    np.testing.assert_array_equal(boxes.find_boxes("ILSVRC2012_val_00000001.JPEG"), expected)
    np.testing.assert_array_equal(boxes.find_boxes("n01440764/ILSVRC2012_val_00000001.JPEG"), expected)
    assert boxes.find_boxes("n01440764/n01440764_2.JPEG").shape == (0, 4)
    assert boxes.has_any(listing_of(tmp_path / "one", "n01440764/n01440764_1.JPEG"))
    assert not boxes.has_any(listing_of(tmp_path / "other", "n01440764/n01440764_2.JPEG"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "no element found"),
        (XML.replace("<ymin>10</ymin>", ""), "no ymin"),
        (XML.replace("<width>200</width>", "<width>0</width>"), "size 0 x 100"),
        (XML.replace("<xmin>50</xmin>", "<xmin>left</xmin>"), "'left' is not a number"),
    ],
)
def test_xml_that_cannot_be_understood(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "a" / "1.xml", text)
    with pytest.raises(RecordError, match=f"a/1.xml: boxes cannot be read: {message}.*; expected ILSVRC's"):
        open_boxes(tmp_path).find_boxes("a/1.JPEG")


def test_digests_notice_another_file(tmp_path: Path) -> None:
    first = open_boxes(write(tmp_path / "1.csv", "1.JPEG,0,0,1,1\n")).digest()
    assert open_boxes(write(tmp_path / "2.csv", "1.JPEG,0,0,1,0.5\n")).digest() != first
    write(tmp_path / "xml" / "a" / "1.xml", XML)
    before = open_boxes(tmp_path / "xml").digest()
    write(tmp_path / "xml" / "a" / "2.xml", XML)
    assert open_boxes(tmp_path / "xml").digest() != before
