"""TFRecords of other writers: TensorFlow Datasets, the official models, gzip, any names."""

from __future__ import annotations

import gzip
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from teachonce.errors import ConfigError, RecordError
from teachonce.records.discovery import find_splits, named_splits, open_records
from teachonce.records.options import RecordOptions
from teachonce.records.source import NO_LABEL, RecordSource
from teachonce.records.tfrecord.framing import TFRecordWriter
from teachonce.records.tfrecord.tf_example import encode_example
from tests.support.small_data import encode_jpeg, example


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_shard(path: Path, payloads: list[bytes], *, packed: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = TFRecordWriter(file)
        for payload in payloads:
            writer.write(payload)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def tfds_example(index: int, label: int) -> bytes:
    return encode_example({"image": encode_jpeg(index), "label": label, "file_name": f"n_{index}.JPEG".encode()})


def write_tfds(folder: Path) -> Path:
    """What tfds.load leaves: NAME/VERSION/NAME-SPLIT.tfrecord-NNNNN-of-NNNNN with features.json and names."""
    for shard in range(2):
        payloads = [tfds_example(10 * shard + index, index % 3) for index in range(4)]
        write_shard(folder / f"flowers-train.tfrecord-{shard:05d}-of-00002", payloads)
    write_shard(folder / "flowers-validation.tfrecord-00000-of-00001", [tfds_example(50, 2)])
    (folder / "features.json").write_text("{}")
    (folder / "dataset_info.json").write_text("{}")
    (folder / "label.labels.txt").write_text("daisy\nrose\ntulip\n")
    return folder


def read_all(source: RecordSource) -> list[tuple[str, int]]:
    streamed = [record for shard in range(len(source.shards)) for record in source.iter_shard(shard)]
    locations = [(shard, row) for shard, info in enumerate(source.shards) for row in range(info.num_records)]
    assert pickle.loads(pickle.dumps(source)).read_batch(locations) == streamed
    return [(record.filename, record.label) for record in streamed]


def test_the_datas_names_are_found_among_those_given(tmp_path: Path) -> None:
    """Of data of some of a teacher's classes: its numbers are positions of its own names."""
    data = write_tfds(tmp_path / "flowers/3.0.1")
    (tmp_path / "all.txt").write_text("tulip\noak\nrose\ndaisy\n")
    source = open_records(data, "train", RecordOptions(labels=tmp_path / "all.txt"))
    assert [label for _, label in read_all(source)][:4] == [3, 2, 0, 3]
    (tmp_path / "all.txt").write_text("tulip\noak\n")
    with pytest.raises(ConfigError, match="class daisy is not among the 2 of --labels"):
        read_all(open_records(data, "train", RecordOptions(labels=tmp_path / "all.txt")))


def test_tensorflow_datasets(tmp_path: Path) -> None:
    data = write_tfds(tmp_path / "flowers/3.0.1")
    assert find_splits(data) == ["train", "validation"]
    source = open_records(data, "train")
    assert read_all(source)[:5] == [
        ("n_0.JPEG", 0),
        ("n_1.JPEG", 1),
        ("n_2.JPEG", 2),
        ("n_3.JPEG", 0),
        ("n_10.JPEG", 0),
    ]
    assert source.classes is not None and source.classes.names == ("daisy", "rose", "tulip")
    assert [shard.name for shard in source.shards] == [f"flowers-train.tfrecord-{i:05d}-of-00002" for i in range(2)]
    assert read_all(open_records(data, "validation")) == [("n_50.JPEG", 2)]
    (data / "flowers-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(RecordError, match=r"flowers-train.tfrecord-00001-of-00002 is missing, of 2 shards"):
        open_records(data, "train")


@pytest.mark.parametrize(
    ("labels", "labeled"),
    [([-1] * 5, "none"), ([0, -1, 2, -1, 1], "some"), ([0, 1, 2, 0, 1], "all"), ([*[1] * 300, *[-1] * 5], "some")],
)
@pytest.mark.parametrize("offset", [0, 1])
def test_a_label_of_minus_1_is_none(tmp_path: Path, labels: list[int], labeled: str, offset: int) -> None:
    """As imagenet2012's test split has it; an offset moves the labels that there are."""
    data = write_tfds(tmp_path / "flowers/3.0.1")
    write_shard(data / "flowers-test.tfrecord-00000-of-00001", [tfds_example(0, label) for label in labels])
    source = open_records(data, "test", RecordOptions(label_offset=offset))
    expected = [label if label == NO_LABEL else label + offset for label in labels]
    assert source.labeled == labeled and [label for _, label in read_all(source)] == expected
    assert pickle.loads(pickle.dumps(source)).labeled == labeled


def test_whole_numbers_as_floats_and_none(tmp_path: Path) -> None:
    found = [*np.array([[2], [np.nan], [-1]], np.float32), b"", b"rose"]
    payloads = [encode_example({"image": encode_jpeg(0), "label": label}) for label in found]
    data = write_tfds(tmp_path / "flowers/3.0.1")
    write_shard(data / "flowers-test.tfrecord-00000-of-00001", payloads)
    assert [label for _, label in read_all(open_records(data, "test"))] == [2, NO_LABEL, NO_LABEL, NO_LABEL, 1]
    payloads = [encode_example({"image": encode_jpeg(0), "label": np.array([0.5], np.float32)})]
    write_shard(data / "flowers-dev.tfrecord-00000-of-00001", payloads)
    with pytest.raises(RecordError, match=r"record 0 .*: label is 0.5, expected a name or a whole number"):
        read_all(open_records(data, "dev"))


def test_other_labels_below_0_are_refused(tmp_path: Path) -> None:
    for label, offset in ((-2, 0), (0, -1), (-2, 1)):
        data = write_tfds(tmp_path / f"{label}{offset}")
        write_shard(data / "flowers-test.tfrecord-00000-of-00001", [tfds_example(0, label)])
        with pytest.raises(RecordError, match=rf"record 0 .*: label {label + offset}, expected 0 "):
            read_all(open_records(data, "test", RecordOptions(label_offset=offset)))


def test_records_without_the_labels_feature_have_none(tmp_path: Path) -> None:
    """As a table without such a column: what there is instead is said."""
    payloads = [encode_example({"image": encode_jpeg(i), "kind": b"cat", "id": b"n%d" % i}) for i in range(3)]
    path = write_shard(tmp_path / "d/all.tfrecord", payloads)
    source = open_records(path.parent, "train", RecordOptions(image_feature="image"))
    assert read_all(source) == [(f"n{i}", NO_LABEL) for i in range(3)]
    with pytest.warns(UserWarning, match=r"all.tfrecord: no feature is known as the label, .* has kind: name one with"):
        assert source.labeled == "none"
    path = write_shard(tmp_path / "e/all.tfrecord", [encode_example({"image": encode_jpeg(0), "id": b"n0"})])
    assert open_records(path.parent, "train", RecordOptions(image_feature="image")).labeled == "none"
    payloads += [encode_example({"image": encode_jpeg(i), "image/class/label": i}) for i in range(2)]
    path = write_shard(tmp_path / "f/all.tfrecord", payloads)
    assert open_records(path.parent, "train", RecordOptions(image_feature="image")).labeled == "some"


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.tfrecord", "val.tfrecord"], ["train", "val"]),
        (["part-000.tfrecords", "part-001.tfrecords"], []),
        (["00-192x192-462.tfrec", "01-192x192-9.tfrec"], []),
        (["train-00000-of-00002.gz", "train-00001-of-00002.gz"], ["train"]),
        (["x_train_0.tfrecord.gz", "x_train_1.tfrecord.gz", "x_test_0.tfrecord.gz"], ["test", "train"]),
    ],
)
def test_any_shard_names(tmp_path: Path, names: list[str], splits: list[str]) -> None:
    for index, name in enumerate(names):
        write_shard(tmp_path / "d" / name, [example(index, 1)], packed=name.endswith(".gz"))
    assert find_splits(tmp_path / "d") == splits and named_splits(tmp_path / "d") == (splits or ["train"])
    source = open_records(tmp_path / "d", "train")
    assert len(read_all(source)) == sum("train" in name or not splits for name in names)
    single = open_records(tmp_path / "d" / names[0], "train")
    assert read_all(single) == [("image_0.jpg", 1)]


def test_labels_from_1_and_other_features(tmp_path: Path) -> None:
    """The official models' ImageNet: TF-slim's schema with labels 1 to 1000 for a model of 1000 classes."""
    data = tmp_path / "d"
    write_shard(data / "train-00000-of-00001", [example(index, 1 + index) for index in range(3)])
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    source = open_records(data, "train", RecordOptions(label_offset=-1, labels=tmp_path / "labels.txt"))
    assert [label for _, label in read_all(source)] == [0, 1, 2]
    assert source.classes is not None and source.classes.names == ("a", "b", "c")
    with pytest.raises(
        RecordError, match=r"train-00000-of-00001 record 2 .*label 3, expected 0 to 2 \(with --label-off"
    ):
        read_all(open_records(data, "train", RecordOptions(labels=tmp_path / "labels.txt")))

    payloads = [encode_example({"img": encode_jpeg(i), "kind": name}) for i, name in enumerate((b"c", b"a"))]
    write_shard(tmp_path / "e/data.tfrecord", payloads)
    options = RecordOptions(image_feature="img", label_feature="kind", labels=tmp_path / "labels.txt")
    source = open_records(tmp_path / "e", "train", options)
    assert [label for _, label in read_all(source)] == [2, 0]
    assert source.read_record(0, 1).encoded == encode_jpeg(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            r"data.tfrecord record 0 .*: no image/encoded, found boxes, img, kind; .* with --image-feature",
        ),
        (
            {"image_feature": "img", "label_feature": "species"},
            r"no species, found boxes, img, kind; name the feature with --label-feature",
        ),
        (
            {"image_feature": "img", "label_feature": "kind"},
            r"class 'cat' is not in a list of classes; give the --labels",
        ),
        ({"image_feature": "img", "label_feature": "boxes"}, r"boxes holds 2 values, expected one"),
        ({"image_feature": "boxes", "label_feature": "kind"}, r"boxes holds 2 values, expected one"),
    ],
)
def test_what_the_features_are_not(tmp_path: Path, options: dict[str, str], message: str) -> None:
    features = {"img": encode_jpeg(0), "kind": b"cat", "boxes": np.ones(2, np.float32)}
    write_shard(tmp_path / "d/data.tfrecord", [encode_example(features)])
    with pytest.raises(RecordError, match=message):
        read_all(open_records(tmp_path / "d", "train", RecordOptions(**options)))  # type: ignore[arg-type]


def test_packed_shards_are_unpacked_once_and_their_damage_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_shard(tmp_path / "d/train.tfrecord.gz", [example(index, 1) for index in range(5)], packed=True)
    source = open_records(tmp_path / "d", "train")
    assert len(read_all(source)) == 5 and "unpacking into" in capsys.readouterr().err
    read_all(open_records(tmp_path / "d", "train"))
    assert "unpacking" not in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RecordError, match=r"train.tfrecord.gz: is not a gzip file, or was cut short"):
        open_records(tmp_path / "d", "train")
    path.write_bytes(b"text")
    with pytest.raises(RecordError, match=r"train.tfrecord.gz: is not a gzip file, or was cut short"):
        open_records(tmp_path / "d", "train")


def write_mixed(folder: Path) -> None:
    write_shard(folder / "train.tfrecord", [example(0, 1)])
    write_shard(folder / "more.tfrecord", [example(0, 1)])


def write_half_packed(folder: Path) -> None:
    write_shard(folder / "train_0.tfrecord", [example(0, 1)])
    write_shard(folder / "train_1.tfrecord.gz", [example(0, 1)], packed=True)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_mixed, r"more.tfrecord has no split in its name .*, others have"),
        (write_half_packed, r"1 of 2 train shards are compressed; expected all or none"),
    ],
)
def test_sets_that_cannot_be_meant(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    write(tmp_path / "d")
    with pytest.raises(ConfigError, match=message):
        open_records(tmp_path / "d", "train")


def test_keys_and_labels_that_are_kept_are_those_of_the_feature(tmp_path: Path) -> None:
    """Two images in one record have two keys: what one reading keeps in the cache is not the other's."""
    payloads = [encode_example({"a": encode_jpeg(i), "b": encode_jpeg(100 + i), "x": i % 2, "y": 1}) for i in range(20)]
    write_shard(tmp_path / "d/t.tfrecord", payloads)
    found = []
    for image, label in (("a", "x"), ("b", "x"), ("b", "y")):
        options = RecordOptions(image_feature=image, label_feature=label, val_fraction=0.3)
        train, validation = (open_records(tmp_path / "d", split, options) for split in ("train", "validation"))
        found.append({name for source in (train, validation) for name in read_all(source)})
        for source in (train, validation):
            known = source.known_keys(0)
            assert known is not None and known.tolist() == [record.key for record in source.iter_shard(0)]
    assert {label for _, label in found[0]} == {0, 1} and {label for _, label in found[2]} == {1}
    shutil.rmtree(tmp_path / "d")
