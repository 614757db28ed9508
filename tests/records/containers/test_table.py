"""Tables of image files: CSV, JSONL and Parquet say the same, and what they cannot mean is one line."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from teachonce.errors import ConfigError, RecordError
from teachonce.records.discovery import find_splits, named_splits, open_records
from teachonce.records.options import RecordOptions
from teachonce.records.source import NO_LABEL, RecordSource
from tests.support.small_data import encode_jpeg

KINDS = ("csv", "jsonl", "parquet")
PATHS = ("images/b.jpg", "images/a.jpg", "c, d.jpg", "images/e.jpg")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for index, name in enumerate(PATHS):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(encode_jpeg(index))
    return tmp_path / "data"


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def listed(source: RecordSource) -> list[tuple[str, int]]:
    assert source.format == "table"
    return [
        (record.filename, record.label) for shard in range(len(source.shards)) for record in source.iter_shard(shard)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_splits(data: Path, kind: str) -> None:
    rows = [
        {"path": path, "label": label, "split": split}
        for path, label, split in zip(
            PATHS, ("dog", "cat", "dog", "ant"), ("train", "train", "val", "train"), strict=True
        )
    ]
    table = write_table(data / f"all.{kind}", rows)
    train = open_records(table, "train")
    assert listed(train) == [("images/b.jpg", 2), ("images/a.jpg", 1), ("images/e.jpg", 0)]
    validation = open_records(table, "validation")
    assert listed(validation) == [("c, d.jpg", 2)]
    assert train.classes == validation.classes and train.classes is not None
    assert train.classes.names == ("ant", "cat", "dog")
    assert find_splits(table) == ["train", "val"]
    assert train.read_record(0, 0).encoded == encode_jpeg(0)
    with pytest.raises(ConfigError, match="only train, val, expected test"):
        open_records(table, "test")
    (data / "labels.txt").write_text("eel\ndog\nant\ncat\n")
    assert [label for _, label in listed(open_records(table, "train", RecordOptions(labels=data / "labels.txt")))] == [
        1,
        3,
        2,
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_no_splits(data: Path, kind: str) -> None:
    rows = [{"file": path, "y": label} for path, label in zip(PATHS, (3, 1, 3, 2), strict=True)]
    table = write_table(data / f"all.{kind}", rows)
    with pytest.warns(UserWarning, match=rf"all.{kind}: no column is known as the label, .* has y: name one with --la"):
        assert listed(open_records(table, "train")) == [(path, NO_LABEL) for path in PATHS]
    source = open_records(table, "train", RecordOptions(label_feature="y", label_offset=-1))
    assert [label for _, label in listed(source)] == [2, 0, 2, 1]
    assert source.classes is None and source.labeled == "all" and named_splits(table) == ["train"]
    (data / "labels.txt").write_text("eel\ndog\nant\n")
    options = RecordOptions(label_feature="y", label_offset=-1, labels=data / "labels.txt")
    assert open_records(table, "train", options).classes is not None
    with pytest.raises(ConfigError, match=r"label 3, expected 0 to 2 \(with --label-offset added\)"):
        open_records(table, "train", RecordOptions(label_feature="y", labels=data / "labels.txt"))
    with pytest.raises(ConfigError, match=rf"--label-feature z: .*all.{kind} has file, y; give one of these"):
        open_records(table, "train", RecordOptions(label_feature="z"))
    with pytest.raises(ConfigError, match=r"has no splits, found no validation"):
        open_records(table, "validation")


def write_csv(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_whole_numbers_as_other_programs_write_them(data: Path) -> None:
    """Beside missing values a column of integers is one of floats."""
    rows = "images/a.jpg,10.0", "images/b.jpg,2.0", "images/e.jpg,"
    source = open_records(write_csv(data / "t.csv", "path,label", *rows), "train")
    assert [label for _, label in listed(source)] == [10, 2, NO_LABEL] and source.classes is None


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_as_floats_beside_missing_ones(data: Path, kind: str) -> None:
    """What a pandas frame has where some labels are missing: float64 with NaN."""
    labels = (10.0, "" if kind == "csv" else math.nan, 2.0, -1.0)
    rows = [{"path": path, "label": label} for path, label in zip(PATHS, labels, strict=True)]
    source = open_records(write_table(data / f"t.{kind}", rows), "train")
    assert [label for _, label in listed(source)] == [10, NO_LABEL, 2, NO_LABEL]
    assert source.classes is None and source.labeled == "some"


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_labels_that_are_all_missing(data: Path, kind: str) -> None:
    table = write_table(data / f"t.{kind}", [{"path": path, "label": None} for path in PATHS])
    assert open_records(table, "train").labeled == "none"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.0, 1.5]), r"t.parquet: row 2: label is 1.5, expected a name or a whole number"),
        (pa.array([True, False]), r"t.parquet: column label is of bool, expected names or whole numbers"),
    ],
)
def test_what_a_column_of_labels_cannot_hold(data: Path, column: pa.Array, message: str) -> None:
    pq.write_table(pa.table({"path": PATHS[:2], "label": column}), data / "t.parquet")
    with pytest.raises(ConfigError, match=message):
        open_records(data / "t.parquet", "train")


def test_columns_of_no_concern_may_hold_line_breaks_and_have_one_name(data: Path) -> None:
    rows = 'images/a.jpg,cat,"two\n\nlines",', '"images/b.jpg", "dog","a ""quote""",3'
    source = open_records(write_csv(data / "t.csv", "path,label,text,text", *rows), "train")
    assert listed(source) == [("images/a.jpg", 0), ("images/b.jpg", 1)]


def test_doubled_columns_of_parquet(data: Path) -> None:
    columns = [pa.array(["images/a.jpg"]), pa.array(["cat"]), pa.array(["dog"])]
    pq.write_table(pa.table(columns, names=["path", "label", "label"]), data / "t.parquet")
    with pytest.raises(ConfigError, match=r"t.parquet: has 2 columns label, expected one"):
        open_records(data / "t.parquet", "train")


def test_keys_that_the_first_row_lacks(data: Path) -> None:
    """Some programs leave out what is null."""
    rows = [{"path": PATHS[0]}, {"path": PATHS[1], "label": "dog"}, {"path": PATHS[2], "label": "cat"}]
    table = data / "t.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [label for _, label in listed(open_records(table, "train"))] == [NO_LABEL, 1, 0]
    table.write_text(table.read_text() + json.dumps({"path": PATHS[3], "split": "val"}) + "\n")
    with pytest.raises(ConfigError, match="row 1 has no split, others have"):
        open_records(table, "train")


def test_spellings_of_one_class_and_of_one_split(data: Path) -> None:
    rows = "images/a.jpg,cat ,train ", "images/b.jpg, cat,train", "images/e.jpg,dog,val"
    source = open_records(write_csv(data / "t.csv", "path,label,split", *rows), "train")
    assert source.num_records == 2 and source.classes is not None and source.classes.names == ("cat", "dog")
    for first, second in (("train", "Train"), ("val", "validation"), ("training", "train")):
        write_csv(data / "t.csv", "path,split", f"images/a.jpg,{first}", f"images/b.jpg,{second}")
        with pytest.raises(ConfigError, match=r"the splits \w+ and \w+ are one by their names"):
            open_records(data / "t.csv", "train")


@pytest.mark.parametrize("kind", KINDS)
def test_spaces_around_a_class_are_no_part_of_it(data: Path, kind: str) -> None:
    rows = [{"path": path, "label": label} for path, label in zip(PATHS, ("cat", "cat ", " dog", "dog"), strict=True)]
    assert [label for _, label in listed(open_records(write_table(data / f"t.{kind}", rows), "train"))] == [0, 0, 1, 1]


def test_nan_and_null_of_a_csv_are_no_label(data: Path) -> None:
    labels = (0, "NaN", "null", 1)
    rows = [{"path": path, "label": label} for path, label in zip(PATHS, labels, strict=True)]
    source = open_records(write_table(data / "t.csv", rows), "train")
    assert [label for _, label in listed(source)] == [0, NO_LABEL, NO_LABEL, 1] and source.classes is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_ending_of_a_table_may_be_in_upper_case(data: Path, kind: str) -> None:
    table = write_table(data / f"t.{kind}", [{"path": path, "label": "cat"} for path in PATHS])
    table = table.rename(data / f"T.{kind.upper()}")
    assert listed(open_records(table, "train")) == [(path, 0) for path in PATHS]


@pytest.mark.parametrize("kind", KINDS)
def test_some_labels_may_be_absent(data: Path, kind: str) -> None:
    labels = ("dog", None, "cat", None)
    table = write_table(data / f"t.{kind}", [{"path": p, "label": n} for p, n in zip(PATHS, labels, strict=True)])
    source = open_records(table, "train")
    assert [label for _, label in listed(source)] == [1, NO_LABEL, 0, NO_LABEL] and source.labeled == "some"


@pytest.mark.parametrize("header", ["path, label, split", "Path,Label,Split", " PATH ,\tlabel ,split"])
def test_headers_of_other_spelling(data: Path, header: str) -> None:
    (data / "t.csv").write_text(f"\n{header}\nimages/a.jpg, dog, train\n\n   \nimages/b.jpg,cat,train\n")
    source = open_records(data / "t.csv", "train")
    assert listed(source) == [("images/a.jpg", 1), ("images/b.jpg", 0)]
    assert source.classes is not None and source.classes.names == ("cat", "dog")
    assert listed(open_records(data / "t.csv", "train", RecordOptions(label_feature="LABEL"))) == listed(source)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("t.txt", PATHS[:2]),
        ("t.csv", ("path", *PATHS[:2])),
        ("t.jsonl", tuple(json.dumps({"path": path}) for path in PATHS[:2])),
    ],
)
def test_blank_lines_do_not_count(data: Path, name: str, lines: tuple[str, ...]) -> None:
    (data / name).write_text("\n" + "\n \n\n".join(lines) + "\n\n")
    assert listed(open_records(data / name, "train")) == [(path, NO_LABEL) for path in PATHS[:2]]


def test_a_list_of_paths_has_no_labels(data: Path) -> None:
    (data / "list.txt").write_text("\n".join(PATHS) + "\n\n")
    source = open_records(data / "list.txt", "train")
    assert listed(source) == [(path, NO_LABEL) for path in PATHS]
    assert source.labeled == "none" and source.classes is None


def test_paths_may_lead_elsewhere(data: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    rows = [{"path": "../data/images/a.jpg", "label": "x"}, {"path": str(data / "c, d.jpg"), "label": "y"}]
    source = open_records(write_table(tmp_path / "tables/t.csv", rows), "train")
    assert listed(source) == [("images/a.jpg", 0), ("c, d.jpg", 1)]
    assert source.read_record(0, 1).where == str(data / "c, d.jpg")


def test_a_table_that_was_changed_is_read_again(data: Path) -> None:
    table = write_table(data / "t.csv", [{"path": "images/a.jpg"}])
    assert open_records(table, "train").num_records == 1
    write_table(table, [{"path": "images/a.jpg"}, {"path": "images/b.jpg"}])
    assert open_records(table, "train").num_records == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", r"t.csv: is empty, expected a header with path"),
        ("t.csv", "a,b\n1,2\n", r"t.csv: has the columns a, b, expected a header with path, .*--image-feature"),
        ("t.csv", "path,label\nimages/a.jpg\n", r"t.csv line 2: 1 fields, expected 2: path, label"),
        ("t.csv", "path,label\n,cat\n", r"t.csv line 2: path is '', expected the path of an image"),
        ("t.csv", "path,label\n", r"t.csv: has no row"),
        ("t.csv", "path,split\nimages/a.jpg,train\nimages/b.jpg,\n", r"row 2 has no split, others have"),
        (
            "t.csv",
            "path\nimages/a.jpg\ns3://bucket/x.jpg\n",
            r"t.csv: row 2: s3://bucket/x.jpg is an address, expected a path relative to the table; .* as --data$",
        ),
        ("t.csv", "path,split\nimages/a.jpg,a/b\n", r"split: 'a/b' leads to another folder"),
        ("t.csv", 'path,label\na.jpg,a\n"b.jpg,a\nc.jpg,b\n', r"t.csv line 3: is no row of CSV: .* mend its quotes$"),
        ("t.csv", 'path,label\na.jpg,a\nb.jpg,"a\nc.jpg,b\n', r"t.csv line 3: is no row of CSV: .* mend its quotes$"),
        (
            "t.csv",
            'path,label\na.jpg,a\n\nb.jpg,"a\nc.jpg,b\nd.jpg,a"\n',
            r"t.csv line 4: label is 'a\\nc.jpg,b\\nd.jpg,a', with a line break .* mend the quotes$",
        ),
        ("t.csv", 'path,split\na.jpg,"train\nb.jpg,val"\n', r"t.csv line 2: split is 'train\\nb.jpg,val', with a line"),
        ("t.csv", 'path,label\na.jpg,a\n"b.jpg\nc.jpg",b\n', r"t.csv line 3: path is 'b.jpg\\nc.jpg', with a line"),
        ("t.csv", 'path,label,text\na.jpg,a,"b\nc.jpg,a,"b"\n', r"t.csv line 2: is no row of CSV: ',' expected after"),
        ("t.csv", "path,label,label\na.jpg,a,b\n", r"t.csv: has 2 columns label, expected one; rename the others"),
        ("t.csv", "path,path,label\na.jpg,b.jpg,b\n", r"t.csv: has 2 columns path, expected one"),
        ("t.csv", "path,label,,,split,split\na.jpg,b,,,x,y\n", r"t.csv: has 2 columns split, expected one"),
        ("t.jsonl", "{]\n", r"t.jsonl line 1: is not JSON"),
        ("t.jsonl", "[1]\n", r"t.jsonl line 1: is not a JSON object"),
        ("t.jsonl", '{"path": "images/a.jpg", "label": 1.5}\n', r"line 1: label is 1.5, expected a name or a whole"),
        ("t.jsonl", '{"path": "images/a.jpg", "split": 2}\n', r"line 1: split is 2, expected the name of a split"),
        ("t.csv", "path,label\n\nimages/a.jpg\n", r"t.csv line 3: 1 fields, expected 2"),
        (
            "x.tar.gz",
            "text",
            r"x.tar.gz: is a file of no known kind; expected .*\.txt\), .* a tar \(.tar, not compressed\)",
        ),
        ("t.parquet", "text", r"t.parquet: is not a Parquet file that can be read"),
        (
            "t.list",
            "images/a.jpg",
            r"t.list: is a file of no known kind; expected a folder of records, a table of images",
        ),
    ],
)
def test_what_is_no_table(data: Path, name: str, text: str, message: str) -> None:
    (data / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        open_records(data / name, "train")
    assert "\n" not in str(error.value)


def test_missing_images_and_options_without_effect(data: Path) -> None:
    table = write_table(data / "t.csv", [{"path": "images/nowhere.jpg"}])
    with pytest.raises(RecordError, match=r"nowhere.jpg: cannot be read: No such file"):
        open_records(table, "train")
    table = write_table(data / "t.csv", [{"path": "images/a.jpg", "label": "cat"}])
    with pytest.raises(
        ConfigError, match=r"--label-offset 1: is for labels that are numbers, .* has names, such as cat"
    ):
        open_records(table, "train", RecordOptions(label_offset=1))
    (data / "list.txt").write_text("images/a.jpg\n")
    with pytest.raises(ConfigError, match=r"--label-feature x: .*list.txt is a list of paths and has no columns"):
        open_records(data / "list.txt", "train", RecordOptions(label_feature="x"))
    with pytest.raises(ConfigError, match=r"--label-offset -1: .* is a folder of images, which has no features"):
        open_records(data, "train", RecordOptions(label_offset=-1))
