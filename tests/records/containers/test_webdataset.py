"""WebDataset tars: read by row, by an index that is made once."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from teachonce.errors import ConfigError, LogitsError, RecordError
from teachonce.records.containers import webdataset
from teachonce.records.containers.webdataset import TarSource, expand_braces
from teachonce.records.discovery import find_splits, open_records
from teachonce.records.options import RecordOptions
from teachonce.records.source import NO_LABEL, RecordSource
from teachonce.storage.local import LocalStorage
from tests.support.small_data import encode_jpeg

Members = Sequence[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_tar(path: Path, members: Members, format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), sum(content) % 10**6
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(index: int, label: object) -> Members:
    return [(f"{index:06d}.jpg", encode_jpeg(index)), (f"{index:06d}.cls", str(label).encode())]


def write_tars(folder: Path, sizes: Sequence[int] = (3, 4), split: str = "train") -> Path:
    index = 0
    for number, size in enumerate(sizes):
        members = [member for row in range(index, index + size) for member in sample(row, row % 3)]
        write_tar(folder / f"{split}-{number:06d}.tar", members)
        index += size
    return folder


def labels_of(source: RecordSource) -> dict[str, int]:
    assert isinstance(source, TarSource)
    return {record.filename: record.label for shard in range(len(source.shards)) for record in source.iter_shard(shard)}


def test_images_and_their_classes(tmp_path: Path) -> None:
    data = write_tars(tmp_path / "d")
    write_tars(data, (2,), "val")
    source = open_records(data, "train")
    assert labels_of(source) == {f"{index:06d}.jpg": index % 3 for index in range(7)}
    assert [(shard.name, shard.num_records) for shard in source.shards] == [
        ("train-000000.tar", 3),
        ("train-000001.tar", 4),
    ]
    record = source.read_record(1, 2)
    assert record.encoded == encode_jpeg(5) and record.where == f"{data}/train-000001.tar: 000005.jpg"
    assert find_splits(data) == ["train", "val"] and open_records(data, "validation").num_records == 2
    with pytest.raises(LogitsError, match="a tar holds no logits"):
        source.read_record(0, 0, with_logits=True)
    assert open_records(data / "train-000001.tar", "train").num_records == 4


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_folders_and_endings(tmp_path: Path, format: int) -> None:
    long = "a" * 60 + "/" + "b" * 90
    members = [
        ("./n01/0.JPG", encode_jpeg(0)),
        ("./n01/0.txt", b"a caption"),
        ("./n01/0.cls", b" rose\n"),
        ("./n01/._1.jpg", b"what a Mac leaves"),
        ("n01/1.a.seg.png", encode_jpeg(2)),
        ("n01/1.cls", b"daisy"),
        ("n02/1.webp", encode_jpeg(3)),
        ("n02/1.json", b'{"label": "rose", "width": 3}'),
        (f"{long}.jpeg", encode_jpeg(4)),
        ("notes.txt", b"no image"),
    ]
    with pytest.warns(
        UserWarning, match=r"any.tar: 1 sample without an image left out, .* \.txt \(1\), such as notes.txt"
    ):
        source = open_records(write_tar(tmp_path / "d/any.tar", members, format).parent, "train")
    expected = {"n01/0.jpg": 1, "n01/1.a.seg.png": 0, "n02/1.webp": 1, f"{long}.jpeg": NO_LABEL}
    assert labels_of(source) == expected
    assert source.classes is not None and source.classes.names == ("daisy", "rose") and source.labeled == "some"


IMAGES = [(f"{index}.jpg", encode_jpeg(index)) for index in range(3)]
LABELS = [(f"{index}.cls", str(5 + index).encode()) for index in range(3)]


@pytest.mark.parametrize("members", [IMAGES + LABELS, LABELS + IMAGES, IMAGES[:2] + LABELS[::-1] + IMAGES[2:]])
@pytest.mark.parametrize("is_remote", [False, True])
def test_labels_that_do_not_lie_beside_their_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: Members, is_remote: bool
) -> None:
    """As ``tar cf x.tar *.jpg *.cls`` leaves them; images keep their order."""
    if is_remote:
        monkeypatch.setattr(LocalStorage, "requests_at_once", 2)  # read in one stream
    source = open_records(write_tar(tmp_path / "d/x.tar", members).parent, "train")
    assert list(labels_of(source).items()) == [("0.jpg", 5), ("1.jpg", 6), ("2.jpg", 7)] and source.labeled == "all"


def test_of_labels_in_several_places_that_beside_the_image_counts(tmp_path: Path) -> None:
    """Images of one name that lie apart stay two records: they may be of two tars, one appended to the other."""
    members = [
        *sample(0, 1),
        ("000001.jpg", encode_jpeg(1)),
        ("000000.cls", b"2"),
        ("000001.json", b'{"fine": 8}'),
        ("000000.png", encode_jpeg(2)),
        ("000001.cls", b"3"),
        ("000009.cls", b"4"),
    ]
    data = write_tar(tmp_path / "d/x.tar", members).parent
    expected = {"000000.jpg": 1, "000001.jpg": 3, "000000.png": 2}
    with pytest.warns(
        UserWarning, match=r"x.tar: 1 sample without an image left out, .* \.cls \(1\), such as 000009.cls"
    ):
        assert labels_of(open_records(data, "train")) == expected
    write_tar(data / "x.tar", members[2:5])
    with pytest.warns(UserWarning, match=r"1 sample without an image left out"):
        assert labels_of(open_records(data, "train", RecordOptions(label_feature="fine"))) == {"000001.jpg": 8}


def test_classes_are_numbered_over_all_splits(tmp_path: Path) -> None:
    write_tar(tmp_path / "d/train-0.tar", [*sample(0, "cat"), *sample(1, "eel")])
    write_tar(tmp_path / "d/val-0.tar", sample(2, "eel"))
    assert labels_of(open_records(tmp_path / "d", "val")) == {"000002.jpg": 1}
    (tmp_path / "labels.txt").write_text("eel\nowl\ncat\n")
    options = RecordOptions(labels=tmp_path / "labels.txt")
    assert labels_of(open_records(tmp_path / "d", "train", options)) == {"000000.jpg": 2, "000001.jpg": 0}


def test_fields_of_json(tmp_path: Path) -> None:
    members = [("0.jpg", encode_jpeg(0)), ("0.json", json.dumps({"key": "0", "y": 4}).encode())]
    data = write_tar(tmp_path / "d/x.tar", members).parent
    with pytest.warns(UserWarning, match=r"x.tar: no field of the json is known as the label, .* has key, y: name one"):
        assert labels_of(open_records(data, "train")) == {"0.jpg": NO_LABEL}
    assert labels_of(open_records(data, "train", RecordOptions(label_feature="y", label_offset=-1))) == {"0.jpg": 3}
    with pytest.raises(ConfigError, match=r"--label-feature z: .*x.tar: 0.json has key, y; give one of these"):
        open_records(data, "train", RecordOptions(label_feature="z"))


def test_texts_that_are_no_labels_are_said_once_a_split(tmp_path: Path) -> None:
    for split, label in (("train", b"1"), ("val", b"2")):
        for number in range(2):
            members = [("0.jpg", encode_jpeg(0)), ("0.txt", label)]
            write_tar(tmp_path / f"d/{split}-{number}.tar", members)
    with pytest.warns(
        UserWarning, match=r"val-0.tar: no sample has a label, has NAME.txt: labels .* from NAME.cls"
    ) as said:
        assert open_records(tmp_path / "d", "val").labeled == "none"
    assert len(said) == 1
    write_tar(tmp_path / "d/val-1.tar", [*members, ("0.cls", b"3")])
    assert open_records(tmp_path / "d", "val").labeled == "some"
    write_tar(tmp_path / "d/val-1.tar", [("0.jpg", encode_jpeg(0)), ("0.cls", b"-1"), ("0.txt", b"text")])
    write_tar(tmp_path / "d/val-0.tar", [("0.jpg", encode_jpeg(0)), ("0.json", b'{"label": null}'), ("0.txt", b"text")])
    assert open_records(tmp_path / "d", "val").labeled == "none"


def test_whole_numbers_as_floats_and_none(tmp_path: Path) -> None:
    texts = ['{"label": 3.0}', '{"label": NaN}', '{"label": null}', "4.0", "null", '{"label": -1}']
    members: list[tuple[str, bytes]] = []
    for index, text in enumerate(texts):
        members += [(f"{index}.jpg", encode_jpeg(index)), (f"{index}.json", text.encode())]
    data = write_tar(tmp_path / "d/x.tar", members).parent
    assert list(labels_of(open_records(data, "train")).values()) == [3, -1, -1, 4, -1, -1]


def test_texts_of_labels_are_as_in_other_containers(tmp_path: Path) -> None:
    """A byte order mark and spaces are no part of them, NaN is none."""
    members: list[tuple[str, bytes]] = []
    for index, text in enumerate((b"\xef\xbb\xbf1", b"2\r\n", b"nan", b"")):
        members += [(f"{index}.jpg", encode_jpeg(index)), (f"{index}.cls", text)]
    data = write_tar(tmp_path / "d/x.tar", members).parent
    source = open_records(data, "train")
    assert list(labels_of(source).values()) == [1, 2, -1, -1] and source.classes is None
    assert list(labels_of(open_records(data, "train", RecordOptions(label_feature="cls"))).values()) == [1, 2, -1, -1]
    texts = (b'\xef\xbb\xbf{"label": "cat"}', b'{"label": "cat "}', b'{"label": " NaN"}')
    members = [("0.jpg", encode_jpeg(0)), ("1.jpg", encode_jpeg(1)), ("2.jpg", encode_jpeg(2))]
    write_tar(data / "x.tar", [*members, *((f"{index}.json", text) for index, text in enumerate(texts))])
    source = open_records(data, "train")
    assert list(labels_of(source).values()) == [1, 1, 0]
    assert source.classes is not None and source.classes.names == ("NaN", "cat")


def test_the_option_wins_over_cls(tmp_path: Path) -> None:
    members = [
        *sample(0, 5),
        ("000000.json", b'{"label": 8, "fine": 3}'),
        *sample(1, 5),
        ("000001.json", b'{"fine": 2}'),
    ]
    data = write_tar(tmp_path / "d/x.tar", members).parent

    def labels(option: str | None) -> list[int]:
        return list(labels_of(open_records(data, "train", RecordOptions(label_feature=option))).values())

    assert (labels(None), labels("fine"), labels("cls")) == ([5, 5], [3, 2], [5, 5])
    with pytest.raises(ConfigError, match=r"--label-feature fin: .*x.tar: 000000.json has cls, label, fine; give one"):
        labels("fin")
    write_tar(data / "x.tar", sample(0, 5))
    assert labels("cls") == [5]
    with pytest.raises(ConfigError, match=r"--label-feature fine: .*x.tar: 000000 has cls; give one of these"):
        labels("fine")
    write_tar(data / "x.tar", [("0.jpg", encode_jpeg(0)), ("0.json", b"4")])
    assert labels(None) == [4]
    with pytest.raises(ConfigError, match=r"--label-feature fine: .*x.tar: 0.json has nothing"):
        labels("fine")


def test_patterns(tmp_path: Path) -> None:
    write_tars(tmp_path / "d", (1, 1, 1, 1))
    source = open_records(tmp_path / "d/train-{000001..000003}.tar", "train")
    assert [shard.name for shard in source.shards] == [f"train-{number:06d}.tar" for number in (1, 2, 3)]
    assert open_records(tmp_path / "d/{train,train}-000000.tar", "train").num_records == 1
    with pytest.raises(RecordError, match=r"train-000004.tar: no such tar; copy it again, or give another pattern"):
        open_records(tmp_path / "d/train-{000003..000004}.tar", "train")
    with pytest.raises(ConfigError, match=r"stands for names such as x0.zip; expected tars"):
        open_records(tmp_path / "d/x{0..2}.zip", "train")
    assert expand_braces("a{2..0}-{x,y}.tar") == [f"a{n}-{w}.tar" for n in (2, 1, 0) for w in "xy"]
    with pytest.raises(ConfigError, match=r"stands for more than 1,048,576 names"):
        expand_braces("{0..99999999}.tar")


def test_the_index_is_made_once_and_again_for_another_tar(tmp_path: Path) -> None:
    data = write_tars(tmp_path / "d", (3,))
    path, index = data / "train-000000.tar", data / "train-000000.tar.index.json"
    assert labels_of(open_records(data, "train"))
    before = index.read_bytes(), index.stat().st_mtime_ns
    assert labels_of(open_records(data, "train")) and (index.read_bytes(), index.stat().st_mtime_ns) == before
    write_tar(path, [member for row in range(3) for member in sample(row + 10, 2)])
    assert labels_of(open_records(data, "train")) == {f"{row + 10:06d}.jpg": 2 for row in range(3)}
    for damage in (
        b"",
        b"{}",
        b"[1]",
        index.read_bytes()[:-9],
        index.read_bytes().replace(b'"format_version":5', b'"format_version":4'),
    ):
        index.write_bytes(damage)
        os.utime(path)
        assert len(labels_of(open_records(data, "train"))) == 3
        assert json.loads(index.read_bytes())["format_version"] == 5


def test_a_tar_of_the_same_size_with_another_label_is_indexed_again(tmp_path: Path) -> None:
    """First and last image, their headers and the size are the same: only a cls in between differs."""
    data = write_tar(tmp_path / "d/x.tar", [*sample(0, 0), *sample(1, 1), *sample(2, 2)]).parent
    assert list(labels_of(open_records(data, "train")).values()) == [0, 1, 2]
    size = (data / "x.tar").stat().st_size
    write_tar(data / "x.tar", [*sample(0, 0), *sample(1, 7), *sample(2, 2)])
    assert (data / "x.tar").stat().st_size == size
    assert list(labels_of(open_records(data, "train")).values()) == [0, 7, 2]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_where_nothing_can_be_written_the_index_lies_in_the_cache(tmp_path: Path) -> None:
    data = write_tars(tmp_path / "d", (3,))
    data.chmod(0o555)
    assert len(labels_of(open_records(data, "train"))) == 3
    assert list((tmp_path / "cache/teachonce").glob("*.index.json"))


def test_damage_is_named(tmp_path: Path) -> None:
    data = write_tars(tmp_path / "d", (3,))
    path = data / "train-000000.tar"
    content = path.read_bytes()
    source = open_records(data, "train")
    path.write_bytes(content[: source.read_record(0, 2).encoded and content.rindex(b"000002.jpg") + 600])
    with pytest.raises(RecordError, match=r"train-000000.tar: 000002.jpg: 88 of \d+ bytes are there: the tar was cut"):
        list(open_source_again(source).iter_shard(0))
    with pytest.raises(RecordError, match=r"train-000000.tar: (is not a tar, or is damaged|000002.jpg ends behind)"):
        open_records(data, "train")
    path.write_bytes(b"no tar" * 200)
    with pytest.raises(RecordError, match=r"train-000000.tar: is not a tar, or is damaged"):
        open_records(data, "train")
    write_tar(path, [("readme.txt", b"text")])
    with pytest.raises(RecordError, match=r"train-000000.tar: holds no image"):
        open_records(data, "train")
    write_tar(path, [("0.jpg", encode_jpeg(0)), ("0.cls", b"\xff\xfe")])
    with pytest.raises(RecordError, match=r"0.cls is not UTF-8 text, expected a label"):
        open_records(data, "train")
    write_tar(path, [("0.jpg", encode_jpeg(0)), ("0.json", b'{"label": [1]}')])
    with pytest.raises(RecordError, match=r"0.json: label is \[1\], expected a name or a whole number"):
        open_records(data, "train")
    write_tar(path, [("0.jpg", encode_jpeg(0)), ("0.json", b"[1]")])
    with pytest.raises(RecordError, match=r"0.json: is \[1\], expected a name or a whole number"):
        open_records(data, "train")
    with pytest.raises(ConfigError, match=r"--image-feature x: a tar's images are found by their endings"):
        open_records(data, "train", RecordOptions(image_feature="x"))


def test_images_of_one_key_are_counted(tmp_path: Path) -> None:
    """What has the same name up to the first dot is one sample, also where the dot is one of a time."""
    members = [(f"Screenshot {minute}.{second}.png", encode_jpeg(second)) for minute in (10, 11) for second in range(3)]
    write_tar(tmp_path / "d" / "train-000000.tar", members)
    with pytest.warns(UserWarning, match=r"train-000000.tar: 4 images left out, such as Screenshot 10.1.png"):
        assert open_records(tmp_path / "d", "train").num_records == 2
    webdataset._open_all.cache_clear()  # as another command, which finds the index
    with pytest.warns(UserWarning, match=r"train-000000.tar: 4 images left out"):
        assert open_records(tmp_path / "d", "train").num_records == 2


def test_samples_without_an_image_that_is_read_are_counted(tmp_path: Path) -> None:
    """As files of other endings in a folder are."""
    endings = ("jpg", "tif", "gif", "tif", "jfif")
    images = [(f"{index}.{ending}", encode_jpeg(index)) for index, ending in enumerate(endings)]
    labels = [(f"{index}.cls", b"3") for index in range(5)]
    side_by_side = [member for pair in zip(images, labels, strict=True) for member in pair]
    data = tmp_path / "d"
    for members in (side_by_side, images + labels, labels + images):
        write_tar(data / "x.tar", members)
        with pytest.warns(
            UserWarning,
            match=r"d/x.tar: 4 samples without an image left out, most with the extension \.tif \(2\), \.\w+ \(1\), "
            r"\.\w+ \(1\), such as 1.tif: images have one of \.bmp, ",
        ):
            assert labels_of(open_records(data, "train")) == {"0.jpg": 3}
    write_tar(data / "y.tar", [*side_by_side[-4:], *sample(5, 3)])
    with pytest.warns(UserWarning, match=r"/d: 6 samples without .*, such as 1.tif in x.tar: images"):
        assert open_records(data, "train").num_records == 2


def write_links(path: Path, links: Sequence[tuple[str, str, bytes]]) -> Path:
    """Two images and their labels, and behind each a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in [*sample(0, 3), *sample(1, 4)]:
            info = tarfile.TarInfo(f"./a/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return path


@pytest.mark.parametrize("is_remote", [False, True])
def test_links_stand_for_the_files_that_the_tar_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_remote: bool
) -> None:
    """What GNU tar writes for a file that it has already, as programs make of equal labels; named, or by a path."""
    if is_remote:
        monkeypatch.setattr(LocalStorage, "requests_at_once", 2)  # read in one stream
    links = [
        ("./a/2.jpg", "./a/000000.jpg", tarfile.LNKTYPE),
        ("./a/2.cls", "./a/000001.cls", tarfile.LNKTYPE),
        ("b/3.jpg", "../a/000001.jpg", tarfile.SYMTYPE),
        ("b/3.cls", "../a/./000000.cls", tarfile.SYMTYPE),
        ("b/readme.txt", "/nowhere", tarfile.SYMTYPE),
    ]
    source = open_records(write_links(tmp_path / "d/x.tar", links).parent, "train")
    assert labels_of(source) == {"a/000000.jpg": 3, "a/000001.jpg": 4, "a/2.jpg": 4, "b/3.jpg": 3}
    assert [source.read_record(0, row).encoded for row in range(4)] == [encode_jpeg(index) for index in (0, 1, 0, 1)]


def test_links_to_what_the_tar_does_not_have_are_counted(tmp_path: Path) -> None:
    links = [
        ("a/2.jpg", "/data/2.jpg", tarfile.SYMTYPE),
        ("a/2.cls", "a/000001.cls", tarfile.LNKTYPE),
        ("a/3.jpg", "a/4.jpg", tarfile.LNKTYPE),
        ("a/000001.json", "a/000001.jpg", tarfile.LNKTYPE),
    ]
    data = write_links(tmp_path / "d/x.tar", links).parent
    said = r"x.tar: 3 links left out, such as a/2.jpg: the tar does not hold what they lead to, .* --dereference$"
    with pytest.warns(UserWarning, match=said) as warned:
        assert open_records(data, "train").num_records == 2
    assert len(warned) == 1
    with tarfile.open(data / "x.tar", "w") as tar:
        info = tarfile.TarInfo("0.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/data/0.jpg"
        tar.addfile(info)
    with pytest.raises(RecordError, match=r"x.tar: holds no image but 1 link, such as 0.jpg: .* --dereference$"):
        open_records(data, "train")


@pytest.mark.parametrize("order", [1, -1])
def test_an_ending_without_a_dot_is_that_of_the_image(tmp_path: Path, order: int) -> None:
    """WebDataset takes the ending for the field's name: mask.png is another one of the sample."""
    members = [("0.mask.png", encode_jpeg(1)), ("0.png", encode_jpeg(0)), ("0.zoom.png", encode_jpeg(2))][::order]
    data = write_tar(tmp_path / "d/x.tar", [*members, ("0.cls", b"3")]).parent
    with pytest.warns(UserWarning, match=r"x.tar: 2 images left out, such as 0.(mask|zoom).png: "):
        source = open_records(data, "train")
    assert labels_of(source) == {"0.png": 3} and source.read_record(0, 0).encoded == encode_jpeg(0)


def test_names_that_are_not_utf8_or_break_lines_are_refused(tmp_path: Path) -> None:
    """As those of a folder are; of what is no image the name is of no account."""
    data = tmp_path / "d"
    write_tar(data / "x.tar", [*sample(0, 1), ("a\udce9.jpg", encode_jpeg(1))], tarfile.GNU_FORMAT)
    with pytest.raises(RecordError, match=r"x.tar: a\\udce9\.jpg: the name b'a\\xe9\.jpg' is not UTF-8; rename it$"):
        open_records(data, "train")
    write_tar(data / "x.tar", [("a\nb.jpg", encode_jpeg(1))])
    with pytest.raises(RecordError, match=r"x.tar: a\\nb\.jpg: the name has a line break"):
        open_records(data, "train")
    write_tar(data / "x.tar", [*sample(0, 1), ("n\udce9.txt", b"text")], tarfile.GNU_FORMAT)
    with pytest.warns(UserWarning, match=r"1 sample without an image left out, .* such as n\\udce9\.txt"):
        assert open_records(data, "train").num_records == 1


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_tar_that_ends_before_its_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_remote: bool
) -> None:
    """tarfile takes what it does not understand for the end, and says nothing."""
    if is_remote:
        monkeypatch.setattr(LocalStorage, "requests_at_once", 2)  # read in one stream
    data = write_tars(tmp_path / "d", (4,))
    path = data / "train-000000.tar"
    content = path.read_bytes()
    second, third = (content.index(f"00000{number}.jpg".encode()) for number in (1, 2))
    path.write_bytes(content[:second] + b"\xff" + content[second + 1 :])
    with pytest.raises(RecordError, match=r"train-000000.tar: behind 000000 byte \d+ is no header of a member"):
        open_records(data, "train")
    path.write_bytes(content[:third])
    with pytest.raises(RecordError, match=r"train-000000.tar: behind 000001 the file ends: it was cut short"):
        open_records(data, "train")
    path.write_bytes(content[: third + 100])
    with pytest.raises(RecordError, match=r"train-000000.tar: "):
        open_records(data, "train")
    path.write_bytes(content)
    assert len(labels_of(open_records(data, "train"))) == 4


def open_source_again(source: RecordSource) -> RecordSource:
    """As in a process of a worker, which opens the files itself."""
    import pickle

    copy: RecordSource = pickle.loads(pickle.dumps(source))
    return copy
