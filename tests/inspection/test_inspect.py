"""Inspect: a store's accuracy, entropy and calibration from its own bytes; runs and records by the same command."""

import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from teachonce.cli.main import main
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.inspection.config import InspectConfig
from teachonce.inspection.inspect import inspect
from teachonce.inspection.measures import measure_store
from teachonce.inspection.page import write_page
from teachonce.inspection.store import describe_usable, render_store, summarize_store
from teachonce.records.discovery import open_records
from teachonce.store.begin import begin_store
from teachonce.store.card import render_card
from teachonce.store.manifests import finalize_store
from teachonce.store.plan_files import holds_store, read_plan
from teachonce.store.store import Store
from tests.support.paths import GOLDEN
from tests.support.small_data import write_shards, write_store
from tests.support.small_models import write_color_teacher
from tests.support.small_stores import fill, make_plan


@pytest.fixture
def data(tmp_path):
    return write_shards(tmp_path / "data", sizes=(40, 23), num_classes=9)


@pytest.fixture
def store(tmp_path, data):
    logits = np.random.default_rng(0).normal(0, 2, (63, 8)).astype(np.float32)
    logits[np.arange(63), np.arange(63) % 8] += 4  # labels go 1, 2, .. 8, 1, ..: right more often than not
    return write_store(tmp_path / "store", data, logits, codec="float32")


def shown(capsys, *words) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_one_of_anything_is_singular(tmp_path):
    data = write_shards(tmp_path / "data", sizes=(1,), num_classes=2)
    store = write_store(tmp_path / "store", data, np.zeros((1, 1), np.float32), codec="float32")
    text = render_store(summarize_store(store.path))
    assert "1 record x 1 view in 1 shard" in text and ", 1 class, offset 1" in text
    assert describe_usable(summarize_store(store.path)) == "1 of 1 view"
    assert " of 1 files" not in text and "1 samples" not in text


def test_a_stores_numbers_are_those_of_torch(store):
    summary = summarize_store(store.path)
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


def test_what_the_codec_changes_is_in_the_summary(tmp_path, store, data):
    assert summarize_store(store.path)["codec_error"] == {} and summarize_store(store.path)["num_samples"] == 0
    assert "unknown: the store has no samples" in render_store(summarize_store(store.path))
    teacher = write_color_teacher(tmp_path / "teacher.onnx", num_classes=8)
    options = {"codec": "topk", "topk": 3, "offset": 1, "device": "cpu"}
    extract(ExtractConfig(data=data, teacher=teacher, out=tmp_path / "sparse", gate_samples=0, **options))
    summary = summarize_store(tmp_path / "sparse")
    assert summary["num_samples"] == 8 and list(summary["codec_error"]) == ["1", "2", "4"]
    for error in summary["codec_error"].values():
        assert 0 < error["mean"] < error["largest"] < 1 and 0 < error["tail_mass"] < 1
    (line,) = [line for line in render_store(summary).splitlines() if line.startswith("  error ")]
    assert f"{summary['codec_error']['2']['mean']:.2g} (largest" in line and "mean of 8 samples" in line
    assert sum(summary["bytes_per_view_by_column"].values()) == pytest.approx(summary["bytes_per_view"], abs=0.3)


def test_a_store_that_is_being_extended_is_usable_for_the_views_that_are_whole(tmp_path, data):
    teacher = write_color_teacher(tmp_path / "teacher.onnx", num_classes=8)
    options = {"codec": "float32", "offset": 1, "device": "cpu", "policy": "crop", "views": 2, "gate_samples": 0}
    extract(ExtractConfig(data=data, teacher=teacher, out=tmp_path / "crops", **options))
    before = summarize_store(tmp_path / "crops")
    assert before["is_finished"] and before["num_views"] == before["num_views_planned"] == 2
    begin_store(tmp_path / "crops", replace(read_plan(tmp_path / "crops"), view_groups=((0, 1), (2, 4))), 10)
    summary = summarize_store(tmp_path / "crops")
    assert not summary["is_finished"] and (summary["num_views"], summary["num_views_planned"]) == (2, 5)
    # The numbers are of the two views that are there.
    assert {key: summary[key] for key in ("top1", "ece", "bytes_per_view", "shards")} == {
        key: before[key] for key in ("top1", "ece", "bytes_per_view", "shards")
    }
    text = render_store(summary)
    assert "63 records x 2 views" in text
    assert (
        "6 of 10 files; usable for 2 of 5 views: the others are planned, not begun here (extract makes them, c" in text
    )
    name = next((tmp_path / "crops").glob("*.v000-001.arrow")).name.replace("v000-001", "v002-004")
    (tmp_path / "crops" / name).write_bytes(b"begun")
    text = render_store(summarize_store(tmp_path / "crops"))
    assert "7 of 10 files; usable for 2 of 5 views: run the same extract command to resume for the rest" in text


def test_records_that_are_being_added_are_not_counted_before_they_are_complete(tmp_path):
    path = shutil.copytree(GOLDEN / "store-v3-grown", tmp_path / "store")
    grown = summarize_store(path)
    assert grown["is_finished"] and grown["num_records"] == grown["num_records_planned"]
    (path / "manifest.records.001.json").unlink()
    summary = summarize_store(path)
    num_added = grown["num_records"] - summary["num_records"]
    assert num_added > 0 and not summary["is_finished"] and summary["num_records_planned"] == grown["num_records"]
    assert sum(shard["num_records"] for shard in summary["shards"]) == summary["num_records"]
    usable = f"usable for {summary['num_views']} of {grown['num_views']} views of {summary['num_records']} of "
    assert f"{usable}{grown['num_records']} records" in render_store(summary)
    assert usable.capitalize() in write_page(path, out=tmp_path / "page.html").read_text()


def test_a_store_is_inspected_while_it_is_extracted(tmp_path, data):
    """Whenever one looks, the numbers are those of the groups that were complete, and of no view beyond."""
    settings = {"codec": "float32", "offset": 1, "device": "cpu", "batch_size": 8, "gate_samples": 0}
    settings |= {"policy": "crop", "views": 6, "views_per_file": 1}
    teacher, path = write_color_teacher(tmp_path / "teacher.onnx", num_classes=8), tmp_path / "store"
    extraction = threading.Thread(
        target=extract, args=(ExtractConfig(data=data, teacher=teacher, out=path, **settings),)
    )
    extraction.start()
    looks, pages = [], []
    while extraction.is_alive():
        if holds_store(path):
            looks.append(summarize_store(path))
            if looks[-1]["num_views"] and len(pages) < 3:
                pages.append(write_page(path, data, tmp_path / f"{len(pages)}.html").read_text())
    extraction.join()
    looks.append(summarize_store(path))
    assert looks[-1]["is_finished"] and looks[-1]["num_views"] == 6
    seen = {look["num_views"] for look in looks}
    assert len(seen) > 2, "the extraction was looked at before its end"
    for look in looks:
        if look["num_views"]:
            expected = measure_store(Store(path, num_views=look["num_views"]))
            assert (look["top1"], look["entropy_nats"]) == (expected.top1, expected.entropy_nats)
        assert look["is_finished"] == (look["num_views"] == 6)
        assert render_store(look)
    assert pages and all("of 63 records" in page for page in pages)


def test_an_unfinished_store_shows_its_coverage(tmp_path, store):
    begin_store(tmp_path / "other", store.plan, views_per_file=1)
    text = render_store(summarize_store(tmp_path / "other"))
    assert "0 of 4 files; NOT finished" in text and "accuracy" not in text


def test_the_command_knows_what_it_inspects(store, data, capsys):
    text = shown(capsys, "inspect", store.path)
    assert "store of split train, 63 records x 1 view in 2 shards" in text and "train-00001-of-00002" in text
    assert json.loads(shown(capsys, "inspect", store.path, "--json"))["kind"] == "store"
    assert json.loads(shown(capsys, "inspect", data, "--json"))["kind"] == "records"
    assert "63" in shown(capsys, "inspect", data, "--split", "train")
    assert open_records(data, "train").num_records == 63


def test_a_trusted_store_is_read_without_hashes(store, data, capsys):
    """A logit that was changed since is found, unless the store is trusted; what has no hashes cannot be trusted."""
    path = store.path / f"{store.shards[0][0]}.v000-000.arrow"
    content = bytearray(path.read_bytes())
    place = content.index(store.read_logits(0, 0, [0])[0].tobytes())
    content[place] ^= 1  # the last bit of a mantissa
    path.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(store.path)])
    assert end.value.code == 1 and path.name in capsys.readouterr().err
    assert "63 records x 1 view" in shown(capsys, "inspect", store.path, "--trust")
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(data), "--trust"])
    assert end.value.code == 2 and "--trust: is for stores" in capsys.readouterr().err


def test_a_run(tmp_path, data, store, capsys):
    words = ["train", "--data", data, "--student", "timm:test_resnet", "--store", store.path, "--out", tmp_path / "run"]
    options = ["--size", 32, "--epochs", 1, "--batch-size", 16, "--device", "cpu", "--validation-split", "none"]
    shown(capsys, *words, *options)
    text = shown(capsys, "inspect", tmp_path / "run")
    assert "run of timm:test_resnet, 9 classes, finished" in text and "KD at temperature 1" in text
    assert "  classes   background, class0, class1, class2, class3, class4, class5, class6, ... (1 more)\n" in text
    assert "  classes   background, class0, class1, class2" in shown(capsys, "inspect", store.path)
    summary = json.loads(shown(capsys, "inspect", tmp_path / "run", "--json"))
    assert summary["kind"] == "run" and len(summary["metrics"]) == 1


def test_a_run_that_was_the_teacher_is_named_by_its_spec(tmp_path):
    """Not "run", which says nothing; an ONNX file is named too, a library's model without the options of its SPEC."""
    for spec, model, expected in (
        ("run:runs/big,offset=1", "run", "run:runs/big"),
        ("onnx:a/b.onnx,size=16", "onnx,output=x", "onnx:a/b.onnx"),
        ("timm:resnet50,weights=x", "timm:resnet50", "timm:resnet50"),
        ("amoebanet,dir=x", "amoebanet", "amoebanet"),
        ("none", "csv", "csv"),
    ):
        teacher = {"spec": spec, "model": model, "weights_sha256": "ab", "precision": "float32"}
        store = tmp_path / spec.replace("/", "-")
        plan = begin_store(store, make_plan(teacher=teacher), views_per_file=2)
        fill(store, plan)
        finalize_store(store)
        assert f"  teacher   {expected}, 7 classes" in inspect(InspectConfig(path=store)).text
        assert f"logits of `{expected}`" in render_card(Store(store), None)
