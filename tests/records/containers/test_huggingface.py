"""Hugging Face data, written as the datasets library writes it, read by pyarrow alone."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from teachonce.errors import ConfigError, LogitsError, RecordError
from teachonce.records.containers.huggingface import ArrowSource
from teachonce.records.discovery import find_splits, open_records
from teachonce.records.options import RecordOptions
from teachonce.records.source import NO_LABEL, RecordSource
from tests.support.small_data import encode_jpeg

NAMES = ("daisy", "rose", "tulip")
FEATURES = {"image": {"_type": "Image"}, "label": {"names": list(NAMES), "_type": "ClassLabel"}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def build_table(
    rows: Sequence[dict[str, Any]], features: dict[str, Any] | None = None, label_type: pa.DataType | None = None
) -> pa.Table:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES if features is None else features}})}
    schema = pa.schema([("image", image), ("label", label_type or pa.int64())], metadata)
    return pa.Table.from_pylist(list(rows), schema)


def named(names: Sequence[str]) -> dict[str, Any]:
    """Features of data with other classes."""
    return FEATURES | {"label": {"_type": "ClassLabel", "names": list(names)}}


def row(index: int, label: float | None, path: str | None = "") -> dict[str, Any]:
    return {"image": {"bytes": encode_jpeg(index), "path": f"n_{index}.jpg" if path == "" else path}, "label": label}


def write_parquet(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)
    return path


def write_saved(folder: Path, tables: Sequence[pa.Table]) -> Path:
    """As Dataset.save_to_disk: streams, in batches."""
    folder.mkdir(parents=True)
    for number, table in enumerate(tables):
        path = folder / f"data-{number:05d}-of-{len(tables):05d}.arrow"
        with path.open("wb") as file, ipc.new_stream(file, table.schema) as writer:
            for batch in table.to_batches(max_chunksize=2):
                writer.write_batch(batch)
    (folder / "state.json").write_text("{}")
    (folder / "dataset_info.json").write_text("{}")
    return folder


def write_parquet_folder(folder: Path) -> Path:
    for shard in range(2):
        rows = [row(10 * shard + index, index % 3) for index in range(5)]
        write_parquet(folder / f"data/train-{shard:05d}-of-00002-0a1b2c.parquet", build_table(rows))
    write_parquet(folder / "data/validation-00000-of-00001.parquet", build_table([row(50, 2)]))
    (folder / "README.md").write_text("a card")
    return folder


def read_all(source: RecordSource) -> list[tuple[str, int]]:
    assert isinstance(source, ArrowSource)
    streamed = [record for shard in range(len(source.shards)) for record in source.iter_shard(shard)]
    locations = [(shard, at) for shard, info in enumerate(source.shards) for at in range(info.num_records)]
    assert pickle.loads(pickle.dumps(source)).read_batch(locations) == streamed
    return [(record.filename, record.label) for record in streamed]


def test_an_arrow_file_whose_numbers_lead_elsewhere_is_refused(tmp_path: Path) -> None:
    """It would be read beyond its end: memory of something else."""
    write_saved(tmp_path / "d", [pa.table({"image": pa.array([b"0123456789"], pa.binary()), "label": [1]})])
    (file,) = (tmp_path / "d").glob("*.arrow")
    content = file.read_bytes()
    offsets = np.array([0, 10], np.int32).tobytes()
    at = content.rindex(offsets)  # of its last message, the batch
    file.write_bytes(content[:at] + np.array([0, 2**31 - 1], np.int32).tobytes() + content[at + len(offsets) :])
    with pytest.raises(RecordError, match="is not an Arrow file, or is damaged"):
        open_records(tmp_path / "d", "train")


def test_files_without_rows_are_no_shards(tmp_path: Path) -> None:
    """Some writers leave them, and a shard without records would never be done."""
    data = write_parquet_folder(tmp_path / "d")
    expected = read_all(open_records(data, "train"))
    for name in ("train-00", "train-more"):
        write_parquet(data / f"data/{name}.parquet", build_table([row(0, 0)]).slice(0, 0))
    source = open_records(data, "train")
    assert len(source.shards) == 2 and read_all(source) == expected
    for path in (data / "data").glob("train-*-0a1b2c.parquet"):
        path.unlink()
    with pytest.raises(RecordError, match="2 files of train without any row, expected images"):
        open_records(data, "train")


def test_a_folder_of_parquet(tmp_path: Path) -> None:
    data = write_parquet_folder(tmp_path / "d")
    assert find_splits(data) == ["train", "validation"]
    source = open_records(data, "train")
    expected = [(f"n_{10 * shard + index}.jpg", index % 3) for shard in range(2) for index in range(5)]
    assert read_all(source) == expected
    assert source.classes is not None and source.classes.names == NAMES
    assert source.read_record(1, 3).encoded == encode_jpeg(13)
    assert [shard.name for shard in source.shards] == [f"data-train-{n:05d}-of-00002-0a1b2c.parquet" for n in range(2)]
    assert read_all(open_records(data, "val")) == [("n_50.jpg", 2)]
    with pytest.raises(LogitsError, match="row 0: Hugging Face data holds no logits"):
        source.read_record(0, 0, with_logits=True)
    single = open_records(data / "data/validation-00000-of-00001.parquet", "train")
    assert read_all(single) == [("n_50.jpg", 2)]


def test_parquet_is_copied_once_and_again_when_it_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_parquet(tmp_path / "d/train.parquet", build_table([row(0, 1)]))
    assert len(read_all(open_records(tmp_path / "d", "train"))) == 1 and "copying Parquet" in capsys.readouterr().err
    assert len(read_all(open_records(tmp_path / "d", "train"))) == 1 and "copying" not in capsys.readouterr().err
    write_parquet(path, build_table([row(0, 1), row(1, 2)]))
    assert len(read_all(open_records(tmp_path / "d", "train"))) == 2


def test_a_saved_dataset_and_a_dict_of_them(tmp_path: Path) -> None:
    tables = [build_table([row(0, 0), row(1, 1), row(2, 2)]), build_table([row(3, 0)])]
    data = write_saved(tmp_path / "one", tables)
    source = open_records(data, "train")
    assert read_all(source) == [("n_0.jpg", 0), ("n_1.jpg", 1), ("n_2.jpg", 2), ("n_3.jpg", 0)]
    assert find_splits(data) == [] and source.classes is not None and source.classes.names == NAMES
    write_saved(tmp_path / "dict/train", tables)
    write_saved(tmp_path / "dict/test", [build_table([row(9, -1)])])
    (tmp_path / "dict/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert find_splits(tmp_path / "dict") == ["test", "train"]
    assert read_all(open_records(tmp_path / "dict", "train")) == read_all(source)
    test = open_records(tmp_path / "dict", "test")
    assert read_all(test) == [("n_9.jpg", NO_LABEL)] and test.labeled == "none"


def list_files(folder: Path, names: Sequence[str]) -> None:
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def test_a_saved_dataset_is_the_files_that_it_lists(tmp_path: Path) -> None:
    """Beside them what was saved there before, or is hidden, is no part of it."""
    data = write_saved(tmp_path / "d", [build_table([row(0, 0)]), build_table([row(1, 1)])])
    for name in ("data-00000-of-00001.arrow", "._data-00000-of-00002.arrow"):
        (data / name).write_bytes((data / "data-00000-of-00002.arrow").read_bytes())
    with pytest.raises(
        RecordError, match=r"shards of several sets \(data-00000-of-00001.arrow and data-00000-of-00002"
    ):
        open_records(data, "train")  # without a list
    list_files(data, ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"])
    assert read_all(open_records(data, "train")) == [("n_0.jpg", 0), ("n_1.jpg", 1)]
    list_files(data, ["data-00000-of-00001.arrow"])
    assert read_all(open_records(data, "train")) == [("n_0.jpg", 0)]
    list_files(data, ["data.arrow"])
    with pytest.raises(RecordError, match=r"/d/data.arrow: cannot be read"):
        open_records(data, "train")
    list_files(data, ["../e/data.arrow"])
    with pytest.raises(RecordError, match=r"state.json: a file: '../e/data.arrow' leads to another folder"):
        open_records(data, "train")
    list_files(data, [])
    with pytest.raises(RecordError, match=r"has no Arrow file, expected data-NNNNN-of-NNNNN.arrow"):
        open_records(data, "train")
    (data / "state.json").write_text("{")
    with pytest.raises(RecordError, match=r"state.json: is not JSON: .*; copy it again"):
        open_records(data, "train")


def test_a_saved_dict_is_the_splits_that_it_lists(tmp_path: Path) -> None:
    for split in ("train", "test", "validation"):
        write_saved(tmp_path / split, [build_table([row(0, 0)])])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert find_splits(tmp_path) == ["test", "train"]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "dev"]}')
    with pytest.warns(UserWarning, match=r"dataset_dict.json: names the split dev, which has no folder"):
        assert open_records(tmp_path, "train").num_records == 1


def test_minus_1_is_no_label_without_names_too(tmp_path: Path) -> None:
    table = pa.table({"image": [encode_jpeg(0), encode_jpeg(1)], "label": [-1, 3]})
    source = open_records(write_parquet(tmp_path / "d/train.parquet", table).parent, "train")
    assert [label for _, label in read_all(source)] == [NO_LABEL, 3] and source.labeled == "some"


@pytest.mark.parametrize("kind", ["parquet", "saved"])
@pytest.mark.parametrize("names", [NAMES, None])
def test_whole_numbers_as_floats_beside_missing_ones(tmp_path: Path, kind: str, names: Sequence[str] | None) -> None:
    rows = [row(0, 2.0), row(1, None), row(2, float("nan")), row(3, -1.0), row(4, 0.0)]
    table = build_table(rows, {} if names is None else named(names), pa.float64())
    if kind == "saved":
        write_saved(tmp_path / "d", [table])
    else:
        write_parquet(tmp_path / "d/train.parquet", table)
    source = open_records(tmp_path / "d", "train")
    assert [label for _, label in read_all(source)] == [2, NO_LABEL, NO_LABEL, NO_LABEL, 0]
    assert source.labeled == "some" and (source.classes is None) == (names is None)


def test_what_is_no_label_is_named(tmp_path: Path) -> None:
    data = write_saved(tmp_path / "d", [build_table([row(0, 0.5)], {}, pa.float64())])
    with pytest.raises(ConfigError, match=r"arrow: label is 0.5, expected a name or a whole number; name the column"):
        open_records(data, "train")


def test_images_by_path_and_without_names(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.jpg").write_bytes(encode_jpeg(7))
    by_path = {"image": {"bytes": None, "path": str(tmp_path / "elsewhere/a.jpg")}, "label": 0}
    data = write_saved(tmp_path / "d", [build_table([by_path, row(1, 1, path=None)])])
    source = open_records(data, "train")
    assert source.read_record(0, 0).encoded == encode_jpeg(7)
    assert read_all(source)[1] == ("data-00000-of-00001.arrow-1", 1)
    by_address = {"image": {"bytes": None, "path": "https://server/a.jpg"}, "label": 0}
    source = open_records(write_saved(tmp_path / "e", [build_table([by_address])]), "train")
    with pytest.raises(RecordError, match=r"row 0: image is the address https://server/a.jpg, expected the bytes"):
        source.read_record(0, 0)


def test_plain_columns_and_their_options(tmp_path: Path) -> None:
    table = pa.table({"jpg": [encode_jpeg(0), encode_jpeg(1)], "y": ["rose", "daisy"], "n": [3, 1]})
    write_parquet(tmp_path / "d/x.parquet", table)
    options = RecordOptions(image_feature="jpg", label_feature="y")
    source = open_records(tmp_path / "d", "train", options)
    assert [label for _, label in read_all(source)] == [1, 0]
    options = RecordOptions(image_feature="jpg", label_feature="n", label_offset=-1)
    assert [label for _, label in read_all(open_records(tmp_path / "d", "train", options))] == [2, 0]
    with pytest.warns(
        UserWarning, match=r"x.parquet: no column is known as the label, .* has y, n: name one with --la"
    ):
        assert [label for _, label in read_all(open_records(tmp_path / "d", "train"))] == [NO_LABEL, NO_LABEL]
    write_saved(tmp_path / "saved", [table])
    with pytest.warns(
        UserWarning, match=r"arrow: no column is known as the label, .* has y, n: name one with --label-"
    ):
        assert open_records(tmp_path / "saved", "train").labeled == "none"


def write_texts(folder: Path, kind: str) -> Path:
    """Data whose validation split lacks the first class, and whose test split has no labels."""
    splits = {"train": ["cat", "eel"], "validation": ["eel ", "fox"], "test": None}
    for split, labels in splits.items():
        columns = {"image": [encode_jpeg(len(split)), encode_jpeg(1)], **({"label": labels} if labels else {})}
        if kind == "parquet":
            write_parquet(folder / f"{split}.parquet", pa.table(columns))
        else:
            write_saved(folder / split, [pa.table(columns)])
    if kind == "saved":
        (folder / "dataset_dict.json").write_text("{}")
    return folder


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_texts_are_numbered_over_all_splits(tmp_path: Path, kind: str) -> None:
    data = write_texts(tmp_path / "d", kind)
    train, validation, test = (open_records(data, split) for split in ("train", "validation", "test"))
    assert [label for _, label in read_all(train)] == [0, 1]
    assert [label for _, label in read_all(validation)] == [1, 2]
    assert train.classes == validation.classes and train.classes is not None
    assert train.classes.names == ("cat", "eel", "fox") and test.labeled == "none"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_integers_are_positions_whatever_the_classes_are_called(tmp_path: Path, split: str) -> None:
    """Folders 0 to 10, sorted as texts: position 2 is the class called 10. A split may lack what would tell."""
    names = tuple(sorted(map(str, range(11))))
    assert names[2] == "10"
    for name, labels in {"train": [0, 2, 3, -1], "validation": [2, 3]}.items():
        rows = [row(index, label) for index, label in enumerate(labels)]
        write_parquet(tmp_path / f"d/data/{name}-00000-of-00001.parquet", build_table(rows, named(names)))
    source = open_records(tmp_path / "d", split)
    found = [record.label for record in source.iter_shard(0)]
    assert found == ([0, 2, 3, NO_LABEL] if split == "train" else [2, 3])


def test_the_datas_names_are_found_among_those_given(tmp_path: Path) -> None:
    """Of data of some of a teacher's classes: label 1 is "fox" there, and the teacher's 3."""
    write_parquet(
        tmp_path / "d/data/train-00000-of-00001.parquet",
        build_table([row(0, 1), row(1, 0), row(2, -1)], named(("ant", "fox"))),
    )
    (tmp_path / "all.txt").write_text("bee\nant\ncat\nfox\n")
    options = RecordOptions(labels=tmp_path / "all.txt")
    assert [record.label for record in open_records(tmp_path / "d", "train", options).iter_shard(0)] == [3, 1, NO_LABEL]
    (tmp_path / "all.txt").write_text("bee\nant\ncat\n")
    with pytest.raises(ConfigError, match="class fox is not among the 3 of --labels"):
        open_records(tmp_path / "d", "train", options)
    (tmp_path / "all.txt").write_text("Ameise\nFuchs\n")  # as many, and other words
    assert [record.label for record in open_records(tmp_path / "d", "train", options).iter_shard(0)] == [1, 0, NO_LABEL]


def test_the_ending_may_be_in_upper_case(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "T.PARQUET", pa.table({"image": [encode_jpeg(0)], "label": ["cat"]}))
    assert [label for _, label in read_all(open_records(path, "train"))] == [0]


def write_two(folder: Path, kind: str, tables: Sequence[pa.Table]) -> Path:
    """One split of two files."""
    if kind == "saved":
        return write_saved(folder, tables)
    for number, table in enumerate(tables):
        write_parquet(folder / f"train-{number}.parquet", table)
    return folder


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_a_number_is_one_class_in_all_files(tmp_path: Path, kind: str) -> None:
    """Numbered by the first file's names a dog of the second was a cat."""
    tables = [build_table([row(0, 0)], named(("cat", "dog"))), build_table([row(1, 0)], named(("dog", "cat")))]
    data = write_two(tmp_path / "d", kind, tables)
    message = r"1[^ ]*: has the same classes in another order: label 0 is dog, expected cat as in .*0\S*; write both"
    with pytest.raises(RecordError, match=message):
        open_records(data, "train")
    # Without names it is of those of the others, whichever comes first.
    data = write_two(tmp_path / "e", kind, [build_table([row(0, 1)], {}), tables[1]])
    source = open_records(data, "train")
    assert [label for _, label in read_all(source)] == [1, 0]
    assert source.classes is not None and source.classes.names == ("dog", "cat")


@pytest.mark.parametrize("kind", ["parquet", "saved"])
@pytest.mark.parametrize("lacking", [0, 1])
def test_a_label_that_only_some_files_have(tmp_path: Path, kind: str, lacking: int) -> None:
    """Were the first the one without, all images would have none."""
    tables = [pa.table({"image": [encode_jpeg(number)], "label": [number]}) for number in range(2)]
    tables[lacking] = tables[lacking].drop_columns(["label"])
    with pytest.raises(RecordError, match=r"1\S*: has (none|the column label) as the label, |has no column label"):
        open_records(write_two(tmp_path / "d", kind, tables), "train")


def test_the_image_is_the_column_of_its_name(tmp_path: Path) -> None:
    table = pa.table({"depth": [b"no jpeg"], "image": [encode_jpeg(3)], "label": [1]})
    write_parquet(tmp_path / "train.parquet", table)
    assert open_records(tmp_path, "train").read_record(0, 0).encoded == encode_jpeg(3)
    write_parquet(tmp_path / "train.parquet", table.rename_columns(["depth", "color", "label"]))
    with pytest.raises(ConfigError, match="has the images depth, color; name one with --image-feature"):
        open_records(tmp_path, "train")
    # Paths beside some bytes are a table.
    (tmp_path / "a.jpg").write_bytes(encode_jpeg(5))
    write_parquet(tmp_path / "t.parquet", pa.table({"phash": [b"12345678"], "path": ["a.jpg"], "label": [1]}))
    assert open_records(tmp_path / "t.parquet", "train").read_record(0, 0).encoded == encode_jpeg(5)


def test_two_labels_want_one_named(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": FEATURES["label"], "coarse": FEATURES["label"]}
    table = build_table([row(0, 1)], features).append_column("coarse", pa.array([2]))
    write_parquet(tmp_path / "d/x.parquet", table)
    with pytest.raises(ConfigError, match=r"has the labels label, coarse; name one with --label-feature"):
        open_records(tmp_path / "d", "train")
    with pytest.raises(ConfigError, match=r"x.parquet: has the labels label, coarse; name one with --label-feature"):
        open_records(tmp_path / "d/x.parquet", "train")
    with pytest.raises(ConfigError, match=r"--label-feature fine: .*x.parquet has image, label, coarse; give one"):
        open_records(tmp_path / "d/x.parquet", "train", RecordOptions(label_feature="fine"))
    assert read_all(open_records(tmp_path / "d", "train", RecordOptions(label_feature="coarse"))) == [("n_0.jpg", 2)]


def test_what_is_none(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a/x.parquet", pa.table({"text": ["a"]}))
    with pytest.raises(
        ConfigError, match=r"x.parquet: has the columns text \(string\), expected one of encoded images"
    ):
        open_records(tmp_path / "a", "train")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x.parquet").write_text("text" * 9)
    with pytest.raises(ConfigError, match=r"x.parquet: is not a Parquet file, or is damaged"):
        open_records(tmp_path / "b", "train")
    data = write_saved(tmp_path / "c", [build_table([{"image": None, "label": 0}])])
    with pytest.raises(RecordError, match=r"data-00000-of-00001.arrow row 0: image is null, expected an image"):
        open_records(data, "train").read_record(0, 0)
    path = data / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(RecordError, match=r"data-00000-of-00001.arrow: is not an Arrow file, or is damaged"):
        open_records(data, "train")
    path.unlink()
    with pytest.raises(RecordError, match=r"has no Arrow file, expected data-NNNNN-of-NNNNN.arrow"):
        open_records(data, "train")


def test_parquet_in_one_folder_of_any_name(tmp_path: Path) -> None:
    write_parquet_folder(tmp_path / "d/plain-32")
    write_parquet_folder(tmp_path / "d/.cache")
    assert (
        find_splits(tmp_path / "d") == ["train", "validation"]
        and open_records(tmp_path / "d", "train").num_records == 10
    )
    write_parquet_folder(tmp_path / "d/other")
    with pytest.raises(
        ConfigError, match=r"Parquet of several data sets, in other, plain-32; give one of them, such as .*d/other"
    ):
        find_splits(tmp_path / "d")
    write_parquet_folder(tmp_path / "deep/a/b/c")
    assert find_splits(tmp_path / "deep") == []
