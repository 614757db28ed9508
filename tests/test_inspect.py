"""Inspect: a store's accuracy, entropy and calibration from its own bytes; runs and records by the same command."""

import json

import numpy as np
import pytest
import torch
from small_data import write_shards, write_store
from torchmetrics.classification import MulticlassCalibrationError

from teachonce.cli import main
from teachonce.inspect_store import render_store, summarise_store
from teachonce.records import open_records
from teachonce.store_plan import begin_store


@pytest.fixture
def data(tmp_path):
    return write_shards(tmp_path / "data", sizes=(40, 23), num_classes=9)


@pytest.fixture
def store(tmp_path, data):
    logits = np.random.default_rng(0).normal(0, 2, (63, 8)).astype(np.float32)
    logits[np.arange(63), np.arange(63) % 8] += 2  # labels go 1, 2, .. 8, 1, ..: right more often than not
    return write_store(tmp_path / "store", data, logits, codec="float32")


def shown(capsys, *words) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_a_stores_numbers_are_those_of_torch(store):
    summary = summarise_store(store.path)
    logits = torch.from_numpy(np.concatenate([store.read_logits(shard, 0, slice(None)) for shard in range(2)]))
    labels = torch.from_numpy(np.concatenate([store.read_labels(shard) for shard in range(2)])).long() - 1
    probs = logits.double().softmax(dim=1)
    assert summary["top1"] == pytest.approx(float((logits.argmax(dim=1) == labels).double().mean()))
    top5 = (logits.topk(5).indices == labels[:, None]).any(dim=1).double().mean()
    assert summary["top5"] == pytest.approx(float(top5))
    assert summary["entropy_nats"] == pytest.approx(float(-(probs * probs.log()).sum(dim=1).mean()))
    reference = MulticlassCalibrationError(num_classes=8, n_bins=15)
    assert summary["ece"] == pytest.approx(float(reference(probs, labels)), abs=1e-6)
    assert [shard["num_records"] for shard in summary["shards"]] == [40, 23]
    assert summary["bytes_per_view_by_column"]["codec"] == 32
    assert summary["is_finished"] and summary["files_present"] == summary["files_planned"] == 4


def test_an_unfinished_store_shows_its_coverage(tmp_path, store):
    begin_store(tmp_path / "other", store.plan, views_per_file=1)
    text = render_store(summarise_store(tmp_path / "other"))
    assert "0 of 4 files; NOT finished" in text and "accuracy" not in text


def test_the_command_knows_what_it_looks_at(store, data, capsys):
    text = shown(capsys, "inspect", store.path)
    assert "store of split train, 63 records x 1 views in 2 shards" in text and "train-00001-of-00002" in text
    assert json.loads(shown(capsys, "inspect", store.path, "--json"))["kind"] == "store"
    assert json.loads(shown(capsys, "inspect", data, "--json"))["kind"] == "records"
    assert "63" in shown(capsys, "inspect", data, "--split", "train")
    assert open_records(data, "train").num_records == 63


def test_a_run(tmp_path, data, store, capsys):
    words = ["train", "--data", data, "--student", "timm:test_resnet", "--store", store.path, "--out", tmp_path / "run"]
    options = ["--size", 32, "--epochs", 1, "--batch-size", 16, "--device", "cpu", "--validation-split", "none"]
    shown(capsys, *words, *options)
    text = shown(capsys, "inspect", tmp_path / "run")
    assert "run of timm:test_resnet, 9 classes, finished" in text and "KD at temperature 1" in text
    summary = json.loads(shown(capsys, "inspect", tmp_path / "run", "--json"))
    assert summary["kind"] == "run" and len(summary["metrics"]) == 1
