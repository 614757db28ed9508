"""Bad input, as a user meets it: one line, exit code 1 or 2, nothing lost: the table of docs/reference/errors.md."""

import hashlib
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from teachonce.cli.main import main
from teachonce.interop.csv_files import export_csv
from teachonce.records.tfrecord.framing import FOOTER_BYTES, HEADER_BYTES
from teachonce.storage.sealed_json import SEAL, sealed_bytes
from tests.support.paths import DOCS, ROOT
from tests.support.small_data import encode_jpeg, example, write_image_folder, write_shards, write_store
from tests.support.small_models import write_color_shards, write_color_teacher

ERRORS_PAGE = DOCS / "reference" / "errors.md"


def tree(folder: Path) -> dict[str, str]:
    """Names and hashes of all files but the indices, which are made when missing."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".idx"
    }


def fails(capsys, words, code, *phrases) -> str:
    """Run a command that must end with ``code`` and one line that has all ``phrases``."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("teachonce: ")]
    lines = [line for line in lines if not line.startswith("teachonce: warning")]
    assert end.value.code == code, lines
    assert len(lines) == 1, lines
    for phrase in phrases:
        assert re.search(phrase, lines[0]), (phrase, lines[0])
    return lines[0]


@pytest.fixture
def teacher(tmp_path):
    return write_color_teacher(tmp_path / "teacher.onnx")


def extract(data, teacher, out, *more):
    return ["extract", "--data", data, "--teacher", teacher, "--out", out, "--device", "cpu", *more]


def train(data, out, *more):
    words = ["train", "--data", data, "--student", "timm:test_resnet", "--out", out, "--size", 32, "--epochs", 1]
    return [*words, "--batch-size", 4, "--device", "cpu", "--validation-split", "none", *more]


def test_an_empty_folder(tmp_path, capsys, teacher):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    fails(capsys, ["records", "--images", tmp_path / "empty", "--out", tmp_path / "o"], 2, "no class folders")
    (tmp_path / "void").mkdir()
    fails(capsys, extract(tmp_path / "void", teacher, tmp_path / "s"), 2, "no records at all, expected train-NNNNN")
    fails(capsys, ["inspect", tmp_path / "void"], 2, "no records")
    fails(capsys, ["inspect", tmp_path / "nowhere"], 2, "no such folder")
    assert not (tmp_path / "o").exists() and not (tmp_path / "s").exists()


def test_what_never_ends(tmp_path, capsys, teacher):
    """A pipe, a device or a file of a terabyte, as an image or as a text file."""
    images = write_image_folder(tmp_path / "images", num_classes=4)
    bad = min((images / "train").iterdir()) / "bad.jpg"
    pipe, labels = tmp_path / "pipe", tmp_path / "labels.txt"
    os.mkfifo(pipe)
    with labels.open("wb") as file:
        file.truncate(1 << 40)
    for target, phrase in (
        (pipe, "is a named pipe"),
        (Path("/dev/zero"), "is a device"),
        (labels, "1,099,511,627,776"),
    ):
        bad.symlink_to(target)
        found = rf"bad\.jpg: cannot be read: {phrase}.*expected"
        fails(
            capsys,
            ["records", "--images", images, "--out", tmp_path / "o", "--shards", 1, "--num-workers", 1],
            1,
            found,
        )
        fails(capsys, extract(images, teacher, tmp_path / "s", "--offset", 0), 1, found)
        bad.unlink()
    bad.symlink_to("nowhere.jpg")
    records = ["records", "--images", images, "--out", tmp_path / "o", "--shards", 1, "--num-workers", 1]
    for words in (records, train(images, tmp_path / "run"), extract(images, teacher, tmp_path / "s", "--offset", 0)):
        fails(capsys, words, 1, r"bad\.jpg: cannot be read: No such file.*, the file is a broken link to nowhere\.jpg")
    assert not (tmp_path / "run").exists() and not (tmp_path / "s").exists()
    bad.unlink()
    words = ["records", "--images", images, "--out", tmp_path / "new", "--labels"]
    fails(capsys, [*words, pipe], 2, "pipe: cannot be read: is a named pipe, expected a regular file")
    fails(capsys, [*words, "/dev/zero"], 2, "zero: cannot be read: is a device, expected a regular file")
    fails(capsys, [*words, labels], 2, r"labels\.txt line 1: more than 1,048,576 characters without a line break")
    with (tmp_path / "train-0.csv").open("wb") as file:
        file.truncate(1 << 40)
    words = ["import", tmp_path, "--data", write_shards(tmp_path / "data"), "--out", tmp_path / "new"]
    fails(capsys, words, 1, r"train-0\.csv line 1: more than 16,777,216 bytes without a line break")
    assert not (tmp_path / "new").exists()


def test_an_unknown_class(tmp_path, capsys):
    images = write_image_folder(tmp_path / "images")
    (tmp_path / "labels.txt").write_text("class0\nclass2\n")
    words = ["records", "--images", images, "--out", tmp_path / "o", "--labels", tmp_path / "labels.txt"]
    fails(capsys, words, 1, r"class1/train_1_0\.jpg: class class1 is not among the 2 of .*labels\.txt", "--labels")


def jpeg_with_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = bytearray(encode_jpeg(0))
    start_of_frame = data.index(b"\xff\xc0")
    data[start_of_frame + 5 : start_of_frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "content, phrase",
    [
        (encode_jpeg(3)[:-200], "cannot be decoded"),
        (b"I am a text file, whatever they call me.\n", "bytes that begin with b'I am a"),
        (b"", "0 bytes"),
        (jpeg_with_size(30_000, 30_000), "30000 x 30000 pixels, more than"),
    ],
    ids=["truncated", "text", "empty", "bomb"],
)
def test_what_is_no_image(tmp_path, capsys, teacher, content, phrase):
    images = write_image_folder(tmp_path / "images", num_classes=4)
    (images / "train" / "class1" / "bad.JPEG").write_bytes(content)
    before = tree(images)
    place = r"class1/bad\.JPEG: "
    fails(capsys, ["records", "--images", images, "--out", tmp_path / "o", "--num-workers", 1], 1, place, phrase)
    fails(capsys, extract(images, teacher, tmp_path / "s", "--gate-samples", 0), 1, place, phrase)
    assert tree(images) == before
    assert not list((tmp_path / "o").glob("train-*-of-*")) and not list((tmp_path / "s").glob("*.arrow"))
    assert not list(tmp_path.rglob(".tmp-*"))


def damaged(raw: bytes, damage: str) -> bytes:
    data = bytearray(raw)
    (length,) = struct.unpack("<Q", data[:8])
    flip_at = {"length": 0, "length crc": 8, "data": HEADER_BYTES + 50, "data crc": HEADER_BYTES + length}
    if damage == "zero":
        return b""
    if damage == "truncated":
        return bytes(data[: len(data) - FOOTER_BYTES - 7])
    data[flip_at[damage]] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    "damage, phrase",
    [
        ("zero", r"train-00001-of-00002: is empty \(0 bytes\)"),
        ("truncated", r"train-00001-of-00002 record \d+ \(byte \d+\): truncated"),
        ("length", r"record 0 \(byte 0\): wrong checksum of the length"),
        ("length crc", r"record 0 \(byte 0\): wrong checksum of the length"),
        ("data", r"record 0 \(byte 0\): wrong checksum of the data"),
        ("data crc", r"record 0 \(byte 0\): wrong checksum of the data"),
    ],
)
def test_damaged_tfrecords(tmp_path, capsys, teacher, damage, phrase):
    data = write_color_shards(tmp_path / "data")
    shard = data / "train-00001-of-00002"
    shard.write_bytes(damaged(shard.read_bytes(), damage))
    before = tree(data)
    fails(capsys, extract(data, teacher, tmp_path / "s", "--gate-samples", 0), 1, phrase)
    fails(capsys, ["inspect", data], 1, phrase)
    assert tree(data) == before


@pytest.mark.parametrize("feature, phrase", [("encoded", "no image/encoded"), ("class/label", "no image/class/label")])
def test_a_record_without_image_or_label(tmp_path, capsys, teacher, feature, phrase):
    payloads = [example(0, 1), example(1, 1, **{feature: None})]
    data = write_shards(tmp_path / "data", sizes=(2,), num_classes=5, payloads=payloads)
    fails(capsys, extract(data, teacher, tmp_path / "s", "--gate-samples", 0), 1, r"record 1 \(byte \d+\)", phrase)


def test_records_without_logits_or_with_wrong_ones(tmp_path, capsys):
    plain = write_shards(tmp_path / "plain", sizes=(8,))
    fails(capsys, train(plain, tmp_path / "r", "--logits", "records"), 1, r"record \d+ .*no image/logit", "--store")
    narrow = [example(index, 1, logit=np.zeros(3, np.float32)) for index in range(8)]
    data = write_shards(tmp_path / "narrow", sizes=(8,), payloads=narrow)
    fails(capsys, train(data, tmp_path / "r2", "--logits", "records"), 1, r"record \d+ .*has 3 classes, the data 4")
    broken = [example(index, 1, logit=np.full(4, np.nan, np.float32)) for index in range(8)]
    data = write_shards(tmp_path / "nan", sizes=(8,), payloads=broken)
    fails(capsys, train(data, tmp_path / "r3", "--logits", "records"), 1, r"record \d+ .*logit 0 is nan")


def test_a_label_out_of_range(tmp_path, capsys, teacher):
    data = write_shards(tmp_path / "data", sizes=(2,), num_classes=5, payloads=[example(0, 1), example(1, 5)])
    fails(
        capsys, extract(data, teacher, tmp_path / "s", "--gate-samples", 0), 1, "record 1", "label 5, expected 0 to 4"
    )


@pytest.mark.filterwarnings("ignore:.*contradicts them more often:UserWarning")  # random logits are no teacher
def test_a_store_of_other_data(tmp_path, capsys):
    store = write_store(tmp_path / "store", write_shards(tmp_path / "data", sizes=(6, 4)))
    more = write_shards(tmp_path / "more", sizes=(6, 5))
    fails(capsys, train(more, tmp_path / "r", "--store", store.path), 1, "10 of 11 records are in the store; 1 are not")
    payloads = [example(index + 70, 1) for index in range(10)]
    other = write_shards(tmp_path / "other", sizes=(6, 4), payloads=payloads)
    for words in (
        train(other, tmp_path / "r2", "--store", store.path),
        ["merge", store.path, "--data", other, "--out", tmp_path / "m"],
    ):
        fails(capsys, words, 1, "0 of 10 records are in the store; 10 are not")


@pytest.mark.parametrize(
    "change, phrase",
    [
        (lambda lines: lines[1:], r"image_0\.jpg: no line in .*7 lines"),
        (lambda lines: [*lines[1:], lines[3]], "has two lines"),
        (lambda lines: [lines[0].rpartition(",")[0], *lines[1:]], r"line 2 .*expected a name and"),
        (lambda lines: [lines[0].rpartition(",")[0] + ",nan", *lines[1:]], r"image_0\.jpg\): logit 2 is nan"),
    ],
    ids=["missing", "doubled", "short", "nan"],
)
def test_wrong_csv(tmp_path, capsys, change, phrase):
    data = write_shards(tmp_path / "data")
    store = write_store(tmp_path / "store", data)
    (path,) = export_csv(store.path, tmp_path / "csv")
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    fails(capsys, ["import", tmp_path / "csv", "--data", data, "--out", tmp_path / "again"], 1, phrase)
    assert not list((tmp_path / "again").glob("*.arrow"))


def test_a_teacher_with_nan_outputs(tmp_path, capsys):
    data = write_color_shards(tmp_path / "data")
    teacher = write_color_teacher(tmp_path / "nan.onnx", nan_above=0.6)
    words = extract(data, teacher, tmp_path / "s", "--gate-samples", 0)
    fails(capsys, words, 1, r"record \d+ \(byte \d+\)", "NaN or infinite", "check its weights")
    assert not list((tmp_path / "s").glob("*.arrow"))


def test_weights_of_another_architecture(tmp_path, capsys):
    from torchvision.models import squeezenet1_1

    data = write_color_shards(tmp_path / "data")
    save_file(squeezenet1_1().state_dict(), tmp_path / "w.safetensors")
    spec = f"torchvision:resnet18,weights={tmp_path / 'w.safetensors'}"
    fails(
        capsys, extract(data, spec, tmp_path / "s", "--offset", 1), 1, r"w\.safetensors", "resnet18|do not fit|missing"
    )
    spec = f"torchvision:resnet18,weights={tmp_path / 'nowhere.safetensors'}"
    fails(capsys, extract(data, spec, tmp_path / "s", "--offset", 1), 2, r"nowhere\.safetensors")


class Malicious:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['TEACHONCE_TEST_MARK']}",)


def test_a_pickle_that_would_execute_code(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TEACHONCE_TEST_MARK", str(tmp_path / "executed"))
    data = write_color_shards(tmp_path / "data")
    torch.save({"weight": Malicious()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious()))
    for name in ("evil.pt", "plain.pt"):
        spec = f"torchvision:resnet18,weights={tmp_path / name}"
        fails(capsys, extract(data, spec, tmp_path / "s", "--offset", 1), 1, name)
    assert not (tmp_path / "executed").exists()


def test_an_output_that_exists(tmp_path, capsys, teacher):
    data = write_color_shards(tmp_path / "data")
    store = write_store(tmp_path / "store", data, num_classes=4)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    before = tree(foreign)
    fails(capsys, extract(data, teacher, foreign, "--gate-samples", 0), 1, "exists and is not a store")
    fails(capsys, ["merge", store.path, "--data", data, "--out", foreign], 2, "exists and is not empty")
    fails(capsys, train(data, foreign), 1, "exists and is not a run")
    images = write_image_folder(tmp_path / "images")
    fails(capsys, ["records", "--images", images, "--out", data], 1, "did not write|other classes")
    (path,) = export_csv(store.path, tmp_path / "other")
    (tmp_path / "csv").mkdir()
    path.rename(tmp_path / "csv" / path.name)
    fails(
        capsys, ["export-logits", store.path, "--format", "csv", "--out", tmp_path / "csv"], 2, r"train-0\.csv: exists"
    )
    assert tree(foreign) == before


def test_an_output_that_cannot_be_written(tmp_path, capsys, teacher):
    data = write_color_shards(tmp_path / "data")
    store = write_store(tmp_path / "store", data, num_classes=4)
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "out"
    images = write_image_folder(tmp_path / "images")
    for words in (
        extract(data, teacher, below, "--gate-samples", 0),
        ["merge", store.path, "--data", data, "--out", below],
        ["records", "--images", images, "--out", below],
        train(data, below),
    ):
        fails(capsys, words, 1, "cannot be written: Not a directory")


FULL_DISK = """
import resource, sys
from teachonce.cli.main import main
if __name__ == "__main__":
    # Files may grow to this many bytes: what a full disk does, without one.
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
    main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_full_disk_and_then_space_again(tmp_path, teacher):
    data = write_color_shards(tmp_path / "data", sizes=(400, 400))
    words = [str(w) for w in extract(data, teacher, tmp_path / "s", "--gate-samples", 0, "--codec", "float32")]

    def run(limit_bytes):
        command = [sys.executable, "-c", FULL_DISK, str(limit_bytes), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    full = run(6_000)
    assert full.returncode == 1 and "cannot be written: File too large; free space" in full.stderr, full.stderr
    assert "Traceback" not in full.stderr
    assert not list((tmp_path / "s").glob("*.arrow")) and not list((tmp_path / "s").glob(".tmp-*"))
    again = run(10_000_000)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "s" / "manifest.v000-000.json").exists()


def error_rows(text: str) -> list[str]:
    """The rows of the tables of the errors page, without their heads."""
    return [line for line in text.splitlines() if line.startswith("| ") and line != "| input | what happens | exit |"]


def rows_without_tests(text: str) -> list[str]:
    """Rows that are not three cells with the names of tests, which are there, in a comment in the last."""
    return [row for row in error_rows(text) if not has_tests(row)]


def has_tests(row: str) -> bool:
    cells = re.fullmatch(r"\| [^|]+ \| [^|]+ \| (?:\d+(?:, \d+)* )?<!-- ([^|]+) --> \|", row)
    names = [re.fullmatch(r"((?:\w+/)*test_\w+\.py)::(test_\w+)", word) for word in cells[1].split()] if cells else []
    return bool(names) and all(name is not None and is_test(*name.groups()) for name in names)


def is_test(file: str, name: str) -> bool:
    path = ROOT / "tests" / file
    return path.is_file() and f"def {name}(" in path.read_text()


def test_the_tables_in_the_docs_name_a_test_for_each_row():
    text = ERRORS_PAGE.read_text()
    assert len(error_rows(text)) >= 230
    assert not rows_without_tests(text)


def test_rows_without_tests_are_seen():
    here = "system/test_bad_input.py::test_rows_without_tests_are_seen"
    right = [f"| a | b | 1, 2 <!-- {here} {here} --> |", f"| a | b | <!-- {here} --> |"]
    wrong = [
        "| a | b | 1 |",
        "| a | b | 1 <!-- --> |",
        f"| a | b | 1 | `{here}` |",
        f"| a | b | 1 <!-- {here}_not --> |",
        f"| a | b | 1 <!-- {here} system/test_not_there.py::test_a --> |",
        f"| a | b | 1 <!-- {here}, {here} --> |",
    ]
    head = ["| input | what happens | exit |", "|---|---|---|"]
    assert rows_without_tests("\n".join([*head, *right, *wrong])) == wrong


HOSTILE_NAMES = ["../../elsewhere", "..", "/elsewhere", "a/b", "..\\elsewhere", "a\0b", "a\nb", ""]


@pytest.mark.parametrize("split", HOSTILE_NAMES)
def test_a_split_that_leads_out_of_the_folder(tmp_path, capsys, split):
    """A store's JSON may come from anybody: nothing is written, or looked for, beside where the user said."""
    data = write_shards(tmp_path / "data")
    store = write_store(tmp_path / "store", data)
    plan = json.loads((store.path / "plan.json").read_text())
    plan["data"]["split"] = split
    del plan[SEAL]
    (store.path / "plan.json").write_bytes(sealed_bytes(plan))
    before = tree(tmp_path)
    out = tmp_path / "deep" / "er" / "out"
    for words in (
        ["export-logits", store.path, "--format", "csv", "--out", out],
        ["merge", store.path, "--data", data, "--out", out],
    ):
        fails(capsys, words, 1, "split", "expected the name of one file or folder")
    assert tree(tmp_path) == before and not out.exists()


@pytest.mark.parametrize("split", [name for name in HOSTILE_NAMES if "\0" not in name])
def test_a_split_of_the_command_line_that_is_no_name(tmp_path, capsys, teacher, split):
    images = write_image_folder(tmp_path / "images")
    data = write_shards(tmp_path / "data")
    before = tree(tmp_path)
    out = tmp_path / "out"
    for words in (
        ["records", "--images", images, "--out", out, "--split", split],
        ["import", tmp_path, "--data", data, "--out", out, "--split", split],
        extract(data, teacher, out, "--split", split),
        ["evaluate", "--data", data, "--model", teacher, "--split", split],
        train(data, out, "--split", split),
    ):
        fails(capsys, words, 2, "split", "expected the name of one file or folder")
    assert tree(tmp_path) == before and not out.exists()
