"""The walkthrough's CSV: written, read back exactly, and refused with a name where a line is wrong."""

import json
import os
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachonce.errors import ConfigError, LogitsError, PlanMismatchError, StoreError
from teachonce.interop.config import ImportConfig, RecordsConfig
from teachonce.interop.convert import convert_records
from teachonce.interop.csv_files import export_csv, import_csv
from teachonce.interop.csv_lines import CsvLines
from teachonce.interop.csv_table import CsvTable, parse_numbers
from teachonce.interop.logit_table import open_logit_table
from teachonce.native import load_library
from teachonce.records.discovery import open_records
from teachonce.storage.sealed_json import SEAL, sealed_bytes
from teachonce.store.store import Store
from tests.support.kills import Killed, everything, killed_after
from tests.support.small_data import example, write_image_folder, write_shards, write_store

PLAN = "_teachonce_export.train.json"


@pytest.fixture
def data(tmp_path):
    return write_shards(tmp_path / "data", sizes=(5, 3, 4))


@pytest.fixture
def store(tmp_path, data):
    return write_store(tmp_path / "store", data)


@pytest.fixture
def csv(tmp_path, store):
    export_csv(store.path, tmp_path / "csv", csv_files=2)
    return tmp_path / "csv"


def run_import(csv, data, out, **options):
    import_csv(ImportConfig(csv=csv, data=data, out=out, **options))
    return Store(out)


def test_lines_are_basename_then_one_number_a_class(store, csv):
    assert sorted(path.name for path in csv.iterdir()) == ["_teachonce_export.train.json", "train-0.csv", "train-1.csv"]
    lines = (csv / "train-0.csv").read_text().splitlines()
    assert len(lines) == 9 and len((csv / "train-1.csv").read_text().splitlines()) == 3  # shards 0 and 2; shard 1
    name, *numbers = lines[0].split(",")
    assert name == "image_0.jpg"
    np.testing.assert_array_equal(np.array(numbers, np.float32), store.read_logits(0, 0, [0])[0])


def test_csv_to_store_and_back_is_exact(tmp_path, data, store, csv):
    again = run_import(csv, data, tmp_path / "again")
    assert again.class_space == store.class_space
    for shard in range(3):
        np.testing.assert_array_equal(again.read_keys(shard), store.read_keys(shard))
        np.testing.assert_array_equal(
            again.read_logits(shard, 0, slice(None)), store.read_logits(shard, 0, slice(None))
        )
    # A second import of the same CSV has nothing left to do.
    before = {path.name: path.stat().st_mtime_ns for path in again.path.glob("*.arrow")}
    run_import(csv, data, tmp_path / "again")
    assert {path.name: path.stat().st_mtime_ns for path in again.path.glob("*.arrow")} == before


def test_logits_by_image_from_either(store, csv, data):
    record = open_records(data, "train").read_record(1, 2)
    expected = [-np.inf, *store.read_logits(1, 0, [2])[0]]
    for path in (store.path, csv):
        table = open_logit_table(path, split="train", num_classes=4, background_logit=-np.inf)
        np.testing.assert_array_equal(table.logits_of(key=record.key, filename=record.filename), expected)
        with pytest.raises(LogitsError, match=r"elsewhere\.jpg: no"):
            table.logits_of(key=1, filename="elsewhere.jpg")
    zero = open_logit_table(csv, split="train", num_classes=4, background_logit=0.0)
    assert zero.logits_of(key=record.key, filename=record.filename)[0] == 0


def edit(csv, change):
    path = csv / "train-0.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: lines[1:], r"image_0\.jpg: no line in .*11 lines"),
        (lambda lines: [*lines[1:], lines[2]], r"image_2\.jpg: has two lines .*1 names are duplicated"),
        (
            lambda lines: [lines[0].rpartition(",")[0], *lines[1:]],
            r"line 2 \(image_1\.jpg\): 3 logits, expected a name and 2",
        ),
        (lambda lines: [*lines[:-1], lines[-1][: len(lines[-1]) // 3]], r"train-0\.csv line 9 "),
        (lambda lines: [lines[0].rpartition(",")[0] + ",nan", *lines[1:]], r"image_0\.jpg\): logit 2 is nan"),
        (lambda lines: [lines[0].rpartition(",")[0] + ",1e99", *lines[1:]], r"image_0\.jpg\): logit 2 is inf"),
        (lambda lines: [lines[0].rpartition(",")[0] + ",a cat", *lines[1:]], r"image_0\.jpg\): .*expected numbers"),
        (lambda lines: ["other.jpg" + lines[0][lines[0].index(",") :], *lines[1:]], r"image_0\.jpg: no line in"),
        (lambda lines: [], r"(: no line in|have no lines)"),
    ],
)
def test_wrong_lines_are_refused_with_the_name(tmp_path, data, csv, change, message):
    edit(csv, change)
    with pytest.raises(LogitsError, match=message):
        run_import(csv, data, tmp_path / "again")
    assert not list((tmp_path / "again").glob("manifest.*"))


def test_logits_that_the_codec_refuses_are_said_with_the_image(tmp_path, data, csv):
    edit(csv, lambda lines: [lines[0], lines[1].rpartition(",")[0] + ",1e30", *lines[2:]])
    name = (csv / "train-0.csv").read_text().splitlines()[1].partition(",")[0]
    with pytest.raises(
        LogitsError, match=rf"{csv}: train-\d+-of-\d+: (\S*/)?{name}: teacher logits in row \d+: .*float32"
    ):
        run_import(csv, data, tmp_path / "again", codec="float16")


def test_a_masked_class_is_told_from_a_fault(tmp_path, data, csv):
    edit(csv, lambda lines: [lines[0].rpartition(",")[0] + ",-inf", *lines[1:]])
    with pytest.raises(LogitsError, match=r"logit 2 is -inf, .*a class that the teacher masks needs a finite one"):
        run_import(csv, data, tmp_path / "again")


def shifted(csv, folder, by=1.0):
    """The same names, lines and widths: another teacher."""
    folder.mkdir()
    for path in csv.glob("*.csv"):
        lines = [line.split(",") for line in path.read_text().splitlines()]
        text = "".join(",".join([name, *(repr(float(v) + by) for v in values)]) + "\n" for name, *values in lines)
        (folder / path.name).write_text(text)
    return folder


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_csv_of_another_teacher_is_refused(tmp_path, data, csv):
    first = run_import(csv, data, tmp_path / "again")
    before = tree(first.path)
    other = shifted(csv, tmp_path / "other")
    with pytest.raises(
        PlanMismatchError, match=r"again: started from the CSV files of another teacher, or from others than"
    ):
        run_import(other, data, tmp_path / "again")
    assert tree(first.path) == before
    run_import(csv, data, tmp_path / "again")
    assert first.plan.teacher["csv_xxh3"] == CsvLines(csv, "train").digest and first.plan.teacher["drop"] == 0


def test_an_interrupted_import_is_not_finished_from_another_csv(tmp_path, data, csv):
    out = tmp_path / "again"
    edit(csv, lambda lines: [*lines[:-1], lines[-1].rpartition(",")[0] + ",nan"])  # of the last shard
    with pytest.raises(LogitsError, match="logit 2 is nan"):
        run_import(csv, data, out)
    before = tree(out)
    assert any(name.endswith(".v000-000.arrow") for name in before) and "manifest.json" not in before
    edit(csv, lambda lines: [*lines[:-1], lines[-1].rpartition(",")[0] + ",1.5"])
    with pytest.raises(PlanMismatchError, match="another teacher, or from others than"):
        run_import(csv, data, out)
    assert tree(out) == before


def test_another_drop_is_refused(tmp_path, data, store):
    """Both leave three numbers: of which classes, the count does not tell."""
    export_csv(store.path, tmp_path / "csv")
    path = tmp_path / "csv" / "train-0.csv"
    path.write_text("".join(line + ",0.25\n" for line in path.read_text().splitlines()))
    run_import(tmp_path / "csv", data, tmp_path / "again", drop=1)
    with pytest.raises(PlanMismatchError, match="started with --drop 1, now 0"):
        run_import(tmp_path / "csv", data, tmp_path / "again", drop=0)


def test_a_store_of_an_older_import_is_refused(tmp_path, data, csv):
    out = run_import(csv, data, tmp_path / "again").path
    plan = json.loads((out / "plan.json").read_text())
    del plan["teacher"]["csv_xxh3"], plan["teacher"]["drop"], plan[SEAL]
    (out / "plan.json").write_bytes(sealed_bytes(plan))
    with pytest.raises(PlanMismatchError, match="recorded by an older teachonce without their hash"):
        run_import(csv, data, out)


def two_of_one_name(folder):
    """A folder of images, two of which share a basename."""
    images = write_image_folder(folder)
    (images / "train/class0/train_0_1.jpg").rename(images / "train/class0/same.jpg")
    (images / "train/class2/train_2_3.jpg").rename(images / "train/class2/same.jpg")
    return images


def write_lines(folder, names):
    folder.mkdir()
    (folder / "train-0.csv").write_text("".join(f"{name},{index},1,2\n" for index, name in enumerate(names)))
    return folder


@pytest.mark.parametrize("foreign", [["foreign.jpg"], []])
def test_images_that_share_a_basename_are_refused(tmp_path, foreign):
    """With a foreign line besides, there are as many lines as images."""
    images = two_of_one_name(tmp_path / "images")
    names = sorted({path.name for path in images.rglob("*.jpg")})
    csv = write_lines(tmp_path / "csv", [*names, *foreign])
    with pytest.raises(
        LogitsError, match=r"class0/same\.jpg and class2/same\.jpg of .*images: two images have the same base"
    ):
        run_import(csv, images, tmp_path / "out")
    assert not list(tmp_path.glob("out/*.arrow"))
    with pytest.raises(
        LogitsError, match=r"class0/same\.jpg and class2/same\.jpg of .*images/train: two images have the same"
    ):
        convert_records(RecordsConfig(images=images, out=tmp_path / "records", logits=csv))
    assert not (tmp_path / "records").exists()


def test_a_basename_shared_by_two_shards_is_refused_with_both(tmp_path):
    payloads = [example(index, 1) for index in range(5)]
    payloads[4] = example(1, 1)
    data = write_shards(tmp_path / "data", sizes=(3, 2), payloads=payloads)
    csv = write_lines(tmp_path / "csv", [f"image_{index}.jpg" for index in range(5)])
    with pytest.raises(
        LogitsError, match=r"^image_1\.jpg and image_1\.jpg of .*data: two images have the same basename"
    ):
        run_import(csv, data, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("num_foreign", [1, 3])
def test_lines_of_images_that_the_data_lacks_are_refused(tmp_path, num_foreign):
    images = write_image_folder(tmp_path / "images")
    names = [path.name for path in sorted(images.rglob("*.jpg"))]
    csv = write_lines(tmp_path / "csv", [*names, *(f"foreign_{index}.jpg" for index in range(num_foreign))])
    message = rf"train-0\.csv byte \d+ \(foreign_\d\.jpg\): a line for an image .*\({num_foreign} of "
    with pytest.raises(LogitsError, match=message):
        run_import(csv, images, tmp_path / "out")
    with pytest.raises(LogitsError, match=message):
        convert_records(RecordsConfig(images=images, out=tmp_path / "records", logits=csv))
    assert not (tmp_path / "out").exists() and not (tmp_path / "records").exists()


def test_images_that_the_csv_lacks_are_refused(tmp_path):
    images = write_image_folder(tmp_path / "images")
    names = [path.name for path in sorted(images.rglob("*.jpg"))]
    for csv in (write_lines(tmp_path / "less", names[:-1]), write_lines(tmp_path / "other", [*names[:-1], "x.jpg"])):
        with pytest.raises(LogitsError, match=r"train_2_3\.jpg: no line in"):
            run_import(csv, images, tmp_path / "out")
        with pytest.raises(LogitsError, match=r"train_2_3\.jpg: no line in"):
            convert_records(RecordsConfig(images=images, out=tmp_path / "records", logits=csv))
    assert not list(tmp_path.glob("out/*.arrow")) and not (tmp_path / "records").exists()


def test_a_finished_part_of_an_import_counts_its_names_too(tmp_path):
    """Resuming reads the names of the shards that are whole from the store."""
    payloads = [example(index, 1) for index in range(5)]
    payloads[4] = example(1, 1)
    data = write_shards(tmp_path / "data", sizes=(3, 2), payloads=payloads)
    csv = write_lines(tmp_path / "csv", [f"image_{index}.jpg" for index in range(5)])
    for _ in range(2):
        with pytest.raises(LogitsError, match=r"^image_1\.jpg and image_1\.jpg of"):
            run_import(csv, data, tmp_path / "out")
        assert len(list(tmp_path.glob("out/*.v000-000.arrow"))) == 1


def test_wrong_commands(tmp_path, data, store, csv):
    with pytest.raises(ConfigError, match=r"neither a store nor a folder with train-\*\.csv"):
        open_logit_table(tmp_path, split="train", num_classes=4, background_logit=0.0)
    with pytest.raises(ConfigError, match="3 classes, the data 9: create the records with"):
        open_logit_table(csv, split="train", num_classes=9, background_logit=0.0)
    with pytest.raises(ConfigError, match="data of 4 classes, this data has 9"):
        open_logit_table(store.path, split="train", num_classes=9, background_logit=0.0)
    (csv / PLAN).unlink()
    with pytest.raises(ConfigError, match=r"train-0\.csv: exists; choose another --out or remove it"):
        export_csv(store.path, csv, csv_files=2)


def test_a_killed_import_says_what_resumes_it(tmp_path, data, csv, monkeypatch):
    with pytest.raises(Killed), killed_after(3, tmp_path / "out", monkeypatch):
        run_import(csv, data, tmp_path / "out")
    with pytest.raises(StoreError, match=r"2 of 6 files are there; run the same import command to resume"):
        Store(tmp_path / "out")


def test_a_killed_export_resumes(tmp_path, store, monkeypatch):
    whole = tmp_path / "whole"
    export_csv(store.path, whole, csv_files=3)
    expected = everything(whole)
    for num_files in range(4):
        out = tmp_path / f"killed-{num_files}"
        with pytest.raises(Killed), killed_after(num_files, out, monkeypatch):
            export_csv(store.path, out, csv_files=3)
        there = {path: path.stat().st_mtime_ns for path in out.glob("*.csv")}
        assert len(there) == max(0, num_files - 1)  # behind the plan
        export_csv(store.path, out, csv_files=3)
        assert everything(out) == expected
        assert {path: path.stat().st_mtime_ns for path in there} == there, "what is complete is kept"


def test_an_export_with_other_settings_or_files_is_refused(tmp_path, data, store, csv):
    """The files of two exports would be read as one."""
    before = everything(csv)
    for options, phrase in (
        ({"csv_files": 1}, "csv_files was 2, now 1"),
        ({"csv_files": 2, "background_logit": 0.0}, "background_logit was None, now 0.0"),
    ):
        with pytest.raises(
            PlanMismatchError, match=rf"{phrase}; choose another --out, or .* or remove {PLAN} and train"
        ):
            export_csv(store.path, csv, **options)
    other = write_store(tmp_path / "other", data, np.zeros((12, 3), np.float32))
    with pytest.raises(PlanMismatchError, match=rf"{csv}: was started with "):
        export_csv(other.path, csv, csv_files=2)
    assert everything(csv) == before
    (csv / "train-7.csv").write_text("a.jpg,1,2,3\n")
    with pytest.raises(
        ConfigError, match=r"train-7\.csv: is none of this export's files, train-0\.csv to train-1\.csv"
    ):
        export_csv(store.path, csv, csv_files=2)
    # Of the other split in the same folder there is a plan of its own.
    validation = write_store(
        tmp_path / "validation", write_shards(tmp_path / "data", split="validation"), split="validation"
    )
    assert [path.name for path in export_csv(validation.path, csv)] == ["validation-0.csv"]


def test_the_originals_padded_files_and_back(tmp_path, data, store):
    """The original writes 0 for the background of a teacher without one; read with drop=1 it is gone again."""
    export_csv(store.path, tmp_path / "padded", background_logit=0.0)
    line = (tmp_path / "padded" / "train-0.csv").read_text().splitlines()[0].split(",")
    assert len(line) == 1 + 4 and float(line[1]) == 0
    again = run_import(tmp_path / "padded", data, tmp_path / "again", drop=1)
    assert again.class_space == store.class_space
    np.testing.assert_array_equal(again.read_logits(1, 0, slice(None)), store.read_logits(1, 0, slice(None)))
    with pytest.raises(ConfigError, match="--drop 5: expected fewer than the 4 numbers"):
        run_import(tmp_path / "padded", data, tmp_path / "more", drop=5)


def test_shared_basenames_cannot_go_into_a_csv(tmp_path):
    images = write_image_folder(tmp_path / "images")
    for path in sorted((images / "train").glob("*/*.jpg")):
        path.rename(path.with_name(path.name[-5:]))
    store = write_store(tmp_path / "folder-store", images, offset=0)
    with pytest.raises(LogitsError, match="8 images share a basename"):
        export_csv(store.path, tmp_path / "out")


@pytest.mark.parametrize("drop", [0, 1])
def test_many_lines_at_once_are_the_same_as_one_by_one(tmp_path, drop):
    """Numbers in every notation that Python reads, in float64 as the reference has them: the same bits."""
    rng = np.random.default_rng(0)
    rows = [[repr(float(v)) for v in rng.normal(0, 10.0 ** rng.integers(-30, 30), 7)] for _ in range(200)]
    rows += [["1", "-0", "+3", " 4 ", "5e-3", ".5", "1E2"], ["1e+1", "2", "3", "4", "5", "6", "7"]]
    rows += [["1e-50", "0.1", "16777217", "1.00000017881393432617187499", "3.4e38", "-3.4e38", "1e-45"]]
    lines = [",".join([f"{index}.jpg", *row]) + ("\r\n" if index % 3 else "\n") for index, row in enumerate(rows)]
    (tmp_path / "train-0.csv").write_text("".join(lines), newline="")
    table = CsvTable(tmp_path, split="train", drop=drop)
    names = [f"folder/{index}.jpg" for index in rng.permutation(len(rows))]
    one_by_one = np.stack([table.find_logits(key=0, filename=name) for name in names])
    assert one_by_one.shape == (len(rows), 7 - drop)
    for count in (1, 50, len(names)):
        np.testing.assert_array_equal(table.find_all_logits(names[:count]), one_by_one[:count])


@pytest.mark.parametrize("text", ["", "1,,2", "1,a", '"1"', "0x10", "1;2", "nan,", "null", "1,", "1.5.5", "1e", "-"])
def test_what_is_no_list_of_numbers(text):
    for count in range(4):
        assert parse_numbers(text.encode(), count) is None


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_of_more_or_fewer_numbers(count):
    assert parse_numbers(b"1.5,-2", count) is None


@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_numbers_are_read_as_python_reads_them(numbers):
    found = parse_numbers(",".join(map(repr, numbers)).encode(), len(numbers))
    assert found is not None
    np.testing.assert_array_equal(found, np.array(numbers))


@pytest.mark.skipif(load_library() is None, reason="the native library was not built")
@given(st.lists(st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-(2**53), 2**53))))
def test_the_native_library_reads_numbers_as_python_does(numbers):
    """To the last bit, or leaves them: beyond 10^22 a power of ten is no double, nor digits beyond 2^53."""
    texts = [str(np.float32(number)) if isinstance(number, float) else str(number) for number in numbers]
    texts += ["0", "-0.0", "1e22", "1E-22", "9007199254740992", "0009.50", "123.4560e+2", "9007199254740991e-22"]
    texts += ["900719940000000.0", "-9007199254740992.000", "9007200000000000.0"]
    for text in texts:
        found = np.empty(1)
        count = load_library().teachonce_read_numbers(text.encode(), len(text), found.ctypes.data, 1)
        digits, _, exponent = text.lower().partition("e")
        whole, _, fraction = digits.partition(".")
        power = int(exponent or 0) - len(fraction)
        is_exact = -22 <= power <= 22 and abs(int(whole + fraction.rstrip("0"))) <= 1 << 53
        assert count == (1 if is_exact else -1), text
        assert count == -1 or found.tobytes() == np.array([float(text)]).tobytes(), text


@pytest.mark.skipif(load_library() is None, reason="the native library was not built")
@pytest.mark.parametrize(
    "text", ["9007199254740993", "1" * 20, "0." + "1" * 19, "1e23", "+1", ".5", "1.", " 1", "inf", ""]
)
def test_what_the_native_library_leaves_to_others(text):
    found = np.empty(1)
    assert load_library().teachonce_read_numbers(text.encode(), len(text), found.ctypes.data, 1) == -1


def test_a_file_that_changes_after_it_was_opened_is_refused(csv):
    lines = CsvLines(csv, "train")
    at = lines.find("image_0.jpg")
    assert lines.read(at)[0] == "image_0.jpg"
    file = csv / "train-0.csv"
    file.write_bytes(file.read_bytes().replace(b"image_0.jpg", b"image_\xff.jpg"))
    with pytest.raises(LogitsError, match=r"train-0\.csv byte 0: differs from when the file was opened"):
        lines.read(at)


def test_a_line_that_is_read_in_pieces_is_the_whole_line(csv, monkeypatch):
    lines = CsvLines(csv, "train")
    at = lines.find("image_0.jpg")
    expected, pread = lines.read(at), os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 3), offset))
    assert lines.read(at) == expected


@pytest.mark.parametrize("change", [lambda line: line[:-2] + line[-1:], lambda line: line.replace(b"1", b"2", 1)])
def test_a_number_that_changes_after_the_scan_is_refused(tmp_path, csv, change):
    """0.0027807057 without its last digit is a number too."""
    lines = CsvLines(csv, "train")
    file = csv / "train-0.csv"
    *before, last = file.read_bytes().splitlines(keepends=True)
    name = last.partition(b",")[0].decode()
    at = lines.find(name)
    assert lines.read(at)[0] == name
    name_bytes, comma, numbers = last.partition(b",")
    file.write_bytes(b"".join(before) + name_bytes + comma + change(numbers))
    with pytest.raises(LogitsError, match=r"differs from when the file was opened \(\d+ bytes, previously \d+\)"):
        lines.read(at)


@pytest.mark.parametrize("missing", [1, 2])
def test_a_read_that_comes_back_short_is_refused(csv, monkeypatch, missing):
    lines = CsvLines(csv, "train")
    at = lines.find("image_0.jpg")
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, size, offset)[:-missing] if size > 9 else b"")
    with pytest.raises(LogitsError, match="differs from when the file was opened"):
        lines.read(at)


def test_csv_files_as_spreadsheets_write_them(tmp_path, data, store, csv):
    """A byte order mark, quotes around every field, and paths as names: the same store."""
    plain = run_import(csv, data, tmp_path / "plain")
    for path in csv.iterdir():
        rows = [line.split(",") for line in path.read_text().splitlines()]
        lines = [",".join(f'"{cell}"' for cell in (f"train/some, folder/{row[0]}", *row[1:])) for row in rows]
        path.write_text("\ufeff" + "".join(f"{line}\r\n" for line in lines), encoding="utf-8")
    found = run_import(csv, data, tmp_path / "found")
    for shard in range(3):
        expected = plain.read_logits(shard, 0, slice(None))
        np.testing.assert_array_equal(found.read_logits(shard, 0, slice(None)), expected)


def test_the_first_name_of_a_csv_of_other_images_is_shown(tmp_path, data, csv):
    edit(csv, lambda lines: ["elsewhere.jpg,1,2,3\n", *lines[1:]])
    with pytest.raises(LogitsError, match=r"image_0\.jpg: no line in .* lines, the first of 'elsewhere\.jpg'"):
        run_import(csv, data, tmp_path / "out")


def test_what_python_alone_calls_a_number_is_none(tmp_path, data, csv):
    edit(csv, lambda lines: [lines[0].replace(",", ",1_0,", 1).rpartition(",")[0] + "\n", *lines[1:]])
    with pytest.raises(LogitsError, match=r"\(image_0\.jpg\): '1_0' is not a number; expected numbers"):
        run_import(csv, data, tmp_path / "out")


def test_an_import_says_the_top1_and_warns_of_shifted_classes(tmp_path, capsys):
    data = write_shards(tmp_path / "data", sizes=(9,))
    folder = tmp_path / "csv"
    for shift, top1 in ((0, 1.0), (1, 0.0)):
        rows = np.eye(3)[(np.arange(9) + shift) % 3]
        folder.mkdir(exist_ok=True)
        lines = [f"image_{at}.jpg,{','.join(map(str, row))}\n" for at, row in enumerate(rows)]
        (folder / "train-0.csv").write_text("".join(lines))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run_import(folder, data, tmp_path / f"store-{shift}", offset=1)
        assert f"import: top-1 {top1:.3f} of {folder} on 9 records" in capsys.readouterr().err
        assert [("near chance: are --offset" in str(warning.message)) for warning in caught] == [True] * shift


def test_more_classes_than_the_data_has_are_refused(tmp_path, data, csv):
    with pytest.raises(ConfigError, match="--num-classes 5: the data has 4 classes; omit it"):
        run_import(csv, data, tmp_path / "out", num_classes=5)


def test_csv_of_val_is_that_of_validation(tmp_path, data, csv):
    """Results call the split validation, so it is asked for by that name."""
    for path in sorted(csv.iterdir()):
        path.rename(path.with_name(path.name.replace("train", "val")))
    for path in sorted(data.glob("train-*")):
        path.rename(path.with_name(path.name.replace("train", "val")))
    for number, split in enumerate(("validation", "val")):
        assert run_import(csv, data, tmp_path / f"store-{number}", split=split).num_records == 12
