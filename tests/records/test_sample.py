"""Samples of records: those of the gate have labels, wherever the data has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from teachonce.records.discovery import open_records
from teachonce.records.options import RecordOptions
from teachonce.records.sample import MAX_DRAWS, sample_labeled, sample_locations
from teachonce.records.source import NO_LABEL, RecordSource
from teachonce.records.tfrecord.tf_example import encode_example
from tests.records.containers.test_huggingface import write_saved
from tests.records.tfrecord.test_foreign import write_shard

NUM_RECORDS = 2000
ALL = np.arange(NUM_RECORDS) % 7
FEW = np.where(np.arange(NUM_RECORDS) % 10 == 3, ALL, NO_LABEL)
LAST = np.where(np.arange(NUM_RECORDS) < NUM_RECORDS - 2, NO_LABEL, ALL)


def open_labels(folder: Path, labels: Sequence[int], *, are_known: bool) -> RecordSource:
    """Records of these labels, which are known without reading them in Arrow files and not in TFRecords."""
    images = [b"%d" % index for index in range(len(labels))]
    halves = [slice(None, len(labels) // 2), slice(len(labels) // 2, None)]
    if are_known:
        tables = [pa.table({"image": pa.array(images[half], pa.binary()), "label": labels[half]}) for half in halves]
        return open_records(write_saved(folder, tables), "train")
    for number, half in enumerate(halves):
        pairs = zip(images[half], map(int, labels[half]), strict=True)
        payloads = [encode_example({"image": image, "label": label}) for image, label in pairs]
        write_shard(folder / f"train.tfrecord-{number:05d}-of-00002", payloads)
    return open_records(folder, "train", RecordOptions(image_feature="image", label_feature="label"))


@pytest.mark.parametrize("are_known", [True, False])
@pytest.mark.parametrize("count", [10, 256, NUM_RECORDS + 1])
def test_of_labeled_data_any_records(tmp_path: Path, are_known: bool, count: int) -> None:
    source = open_labels(tmp_path / "d", ALL, are_known=are_known)
    records, num_read = sample_labeled(source, count, seed=3)
    assert records == source.read_batch(sample_locations(source, count, seed=3))
    assert num_read == len(records) == min(count, NUM_RECORDS)


@pytest.mark.parametrize("are_known", [True, False])
def test_of_partly_labeled_data_as_many_with_labels(tmp_path: Path, are_known: bool) -> None:
    source = open_labels(tmp_path / "d", FEW, are_known=are_known)
    records, num_read = sample_labeled(source, 50, seed=3)
    rows = [int(record.encoded) for record in records]
    assert len(records) == 50 and rows == sorted(set(rows)) and [record.label for record in records] == [*FEW[rows]]
    # Drawn among all with labels: the mean of 50 of them is within 4 standard errors of that of all.
    assert abs(np.mean(rows) - NUM_RECORDS / 2) < 4 * NUM_RECORDS / np.sqrt(12 * 50)
    assert num_read == 50 if are_known else 300 < num_read <= 50 * MAX_DRAWS
    assert sample_labeled(source, 50, seed=3)[0] == records and sample_labeled(source, 50, seed=4)[0] != records
    records, num_read = sample_labeled(source, 300, seed=3)
    assert len(records) == 200 and num_read == (200 if are_known else NUM_RECORDS)


@pytest.mark.parametrize("are_known", [True, False])
def test_where_labels_are_too_few_reading_ends(tmp_path: Path, are_known: bool) -> None:
    source = open_labels(tmp_path / "d", LAST, are_known=are_known)
    records, num_read = sample_labeled(source, 5, seed=0)
    assert (len(records), num_read) == ((2, 2) if are_known else (0, 5 * MAX_DRAWS))


def test_the_same_records_whether_labels_are_known_or_not(tmp_path: Path) -> None:
    known, unknown = (open_labels(tmp_path / str(flag), FEW, are_known=flag) for flag in (True, False))
    rows = [[record.encoded for record in sample_labeled(source, 50, seed=3)[0]] for source in (known, unknown)]
    assert rows[0] == rows[1]
