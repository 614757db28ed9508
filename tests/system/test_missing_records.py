"""Data that is not the store's to the record: refused with a count, or trained on as far as it goes."""

from __future__ import annotations

import json
import shutil

import pytest

from teachonce.cli.main import main
from tests.support.small_data import write_shards
from tests.support.small_models import COLORS, color_example, write_color_shards, write_color_teacher
from tests.system.test_bad_input import extract, fails, train

# The command line shows it as a line of its own.
pytestmark = pytest.mark.filterwarnings("default:.*they are left out:UserWarning")


def run(*words: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def old(folder):
    return write_color_shards(folder / "old", sizes=(9, 6))


@pytest.fixture(scope="module")
def extracted(folder, old):
    """Over 15 of the 20 records of ``data``."""
    teacher = write_color_teacher(folder / "teacher.onnx")
    run(*extract(old, teacher, folder / "store", "--policy", "crop", "--views", 2, "--gate-samples", 0))
    return folder / "store"


@pytest.fixture
def store(tmp_path, extracted):
    return shutil.copytree(extracted, tmp_path / "store")


@pytest.fixture(scope="module")
def data(folder):
    payloads = [color_example(index, 1 + index % 4, COLORS[index % 4]) for index in range(20)]
    order = [17, *range(8), 18, 19, *range(8, 17)]
    return write_shards(folder / "data", (11, 9), num_classes=5, payloads=[payloads[index] for index in order])


def result(path):
    return json.loads((path / "result.json").read_text())


def test_it_is_refused_with_the_count(tmp_path, capsys, data, store):
    words = train(data, tmp_path / "run", "--store", store)
    line = fails(
        capsys, words, 1, r"15 of 20 records are in the store; 5 are not \(first: image_17\.jpg\); give the data of"
    )
    assert line.endswith("(train --missing skip leaves them out)") and not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("in_memory", [False, True])
def test_skipped_records_are_counted(tmp_path, capsys, data, store, in_memory):
    words = train(data, tmp_path / "run", "--store", store, "--missing", "skip", *(["--in-memory"] * in_memory))
    run(*words)
    err = capsys.readouterr().err
    assert (
        "warning: " in err
        and "15 of 20 records are in the store; 5 are not (first: image_17.jpg); they are left out" in err
    )
    found = result(tmp_path / "run")
    assert found["missing_records"] == 5
    assert found["steps"] == 4, "batches of 4 of 15 records; of 20 there were 5"


def test_skipping_where_nothing_is_missing(tmp_path, capsys, old, store):
    run(*train(old, tmp_path / "run", "--store", store, "--missing", "skip"))
    assert result(tmp_path / "run")["missing_records"] == 0
    run(*train(old, tmp_path / "refuse", "--store", store))
    assert result(tmp_path / "refuse")["missing_records"] == 0
    left, right = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "refuse"))
    assert left["train_loss"] == right["train_loss"]


def test_where_nothing_is_known_nothing_is_skipped(tmp_path, capsys, store):
    other = write_color_shards(tmp_path / "other", sizes=(5,), first_index=100)
    words = train(other, tmp_path / "run", "--store", store, "--missing", "skip")
    fails(capsys, words, 1, "0 of 5 records are in the store; 5 are not .* a store of other data")


def test_the_option_is_one_of_stores(tmp_path, capsys, data):
    fails(capsys, train(data, tmp_path / "run", "--missing", "skip"), 2, "--missing skip")


def test_the_same_command_again_goes_on(tmp_path, capsys, data, store):
    words = train(data, tmp_path / "run", "--store", store, "--missing", "skip")
    for _ in range(2):
        run(*words)
        assert "they are left out (--missing skip)" in capsys.readouterr().err
    assert result(tmp_path / "run")["missing_records"] == 5


def test_what_is_skipped_changes_no_other_record(tmp_path, data, store):
    """The student of the records that are left is the one of data that never had the others."""
    fewer = tmp_path / "fewer"
    payloads = [color_example(index, 1 + index % 4, COLORS[index % 4]) for index in (*range(8), *range(8, 15))]
    write_shards(fewer, (8, 7), num_classes=5, payloads=payloads)
    run(*train(fewer, tmp_path / "a", "--store", store))
    run(*train(data, tmp_path / "b", "--store", store, "--missing", "skip"))
    assert result(tmp_path / "a")["train_loss"] == pytest.approx(result(tmp_path / "b")["train_loss"], rel=1e-6)
