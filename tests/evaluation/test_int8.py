"""Float and int8 side by side: the files, the figures (against `evaluate` and against the store), and refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from teachonce.cli.main import main
from teachonce.errors import ConfigError, MissingExtraError
from teachonce.evaluation.config import EvaluateConfig, ExportOnnxConfig
from teachonce.evaluation.evaluate import evaluate
from teachonce.evaluation.int8 import (
    _measure_agreement,
    _open_teacher,
    _predict,
    export_int8,
    int8_path,
    read_images,
    spaced_indices,
)
from teachonce.evaluation.int8_table import Comparison
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.interop.config import MergeConfig, RecordsConfig
from teachonce.interop.convert import convert_records
from teachonce.interop.merge import merge
from teachonce.models.classifier import load_model
from teachonce.pixels.preprocessing import normalize
from teachonce.pixels.render import render_center
from teachonce.records.discovery import open_records
from teachonce.store.store import Store
from teachonce.training.train import train
from tests.support.raw_images import write
from tests.support.small_data import encode_jpeg, teacher_logits, write_store
from tests.support.small_models import write_color_teacher
from tests.training.test_train import config

pytest.importorskip("onnxruntime")

pytestmark = [pytest.mark.usefixtures("onnx_exports"), pytest.mark.xdist_group("onnx")]


@pytest.fixture(scope="module")
def run(digits: Path, digits_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "run"
    train(config(digits, out, store=digits_store, epochs=20, lr=0.1))
    return out


def settings(run: Path, digits: Path, out: Path, **more: Any) -> ExportOnnxConfig:
    return ExportOnnxConfig(run=run, int8=True, data=digits, out=out, **({"calibration_images": 64} | more))


@pytest.fixture(scope="module")
def exported(run: Path, digits: Path, digits_store: Path) -> tuple[Path, Comparison]:
    out = run.parent / "student.onnx"
    return out, export_int8(settings(run, digits, out, store=digits_store))


def test_both_files_evaluate_to_the_tables_figures(exported: tuple[Path, Comparison], digits: Path) -> None:
    out, found = exported
    for path, row in ((out, found.float32), (int8_path(out), found.int8)):
        # The file itself is a model: no options, any batch size.
        result = evaluate(EvaluateConfig(data=digits, model=f"onnx:{path}", device="cpu", batch_size=7))
        assert (result["top1"], result["top5"]) == pytest.approx((row.top1, row.top5), abs=1e-6)
        assert path.stat().st_size == row.num_bytes
        assert row.latency_ms > 0
    change = found.int8.top1 - found.float32.top1
    assert found.top1_change_points == pytest.approx(100 * change, abs=1e-4)
    assert found.num_records == 48


def test_the_student_has_learned_and_int8_still_knows(exported: tuple[Path, Comparison]) -> None:
    found = exported[1]
    assert found.float32.top1 > 0.3, "ten classes: chance is 0.1, and a student of nothing would show no damage"
    assert found.int8.agreement_float > 0.8
    assert found.int8.num_bytes < 0.45 * found.float32.num_bytes, "a quarter, and scales and names"


def test_int8_has_integer_weights_and_the_same_interface(run: Path, exported: tuple[Path, Comparison]) -> None:
    import onnx

    student, int8 = load_model(f"run:{run}"), load_model(f"onnx:{int8_path(exported[0])}")
    assert int8.preprocessing == student.preprocessing
    assert (int8.num_classes, int8.default_offset) == (10, 0)
    model = onnx.load(int8_path(exported[0]))
    kinds = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    largest = max(model.graph.initializer, key=lambda item: np.prod(item.dims))
    assert largest.data_type == onnx.TensorProto.INT8


def test_agreement_with_a_store_of_whole_images(run: Path, digits: Path, exported: tuple[Path, Comparison]) -> None:
    out, found = exported
    source = open_records(digits, "train")
    teacher = teacher_logits(source).argmax(axis=1)
    for path, row in ((out, found.float32), (int8_path(out), found.int8)):
        model = load_model(f"onnx:{path}")
        images = np.stack(list(read_images(source, model.preprocessing, source.num_records)))
        classes = model.forward(torch.from_numpy(images)).argmax(dim=1).numpy()
        assert row.agreement_teacher == pytest.approx((classes == teacher).mean())
    assert found.num_teacher_records == 96 and found.teacher is not None and "whole images" in found.teacher


def test_agreement_needs_no_labels(tmp_path: Path) -> None:
    """The teacher's split may be images alone: a store's logits say what is to be agreed with."""
    for number in range(6):
        write(tmp_path / "photos" / f"{number}.jpg", encode_jpeg(number))
    model = load_model(write_color_teacher(tmp_path / "teacher.onnx"), device="cpu")
    source = open_records(tmp_path / "photos", "train")
    pixels = torch.from_numpy(render_center(list(source.iter_shard(0)), model.preprocessing))
    store = write_store(tmp_path / "store", source, _predict(model, pixels).numpy(), offset=0)
    options = settings(tmp_path, tmp_path / "photos", tmp_path / "out.onnx", store=store.path)
    taught = _open_teacher(options, model)
    assert _measure_agreement([model], taught, 6) == ([1.0], 6)


def test_agreement_with_the_records_logits_is_that_of_their_store(
    run: Path, digits: Path, exported: tuple[Path, Comparison], tmp_path: Path
) -> None:
    records, merged = tmp_path / "records", tmp_path / "merged"
    for split in ("train", "validation"):
        convert_records(RecordsConfig(images=digits, split=split, out=records))
    source = open_records(records, "train")
    store = write_store(tmp_path / "store", source, teacher_logits(source, 11)[:, 1:], offset=1)
    merge(MergeConfig(store=store.path, data=records, out=merged))
    again = tmp_path / "run"
    again.mkdir()
    resolved = json.loads((run / "config.json").read_text())
    (again / "config.json").write_text(json.dumps({**resolved, "offset": 1}))
    (again / "student.safetensors").write_bytes((run / "student.safetensors").read_bytes())
    options = {"validation_data": records, "logits": "records"}
    found = export_int8(settings(again, merged, tmp_path / "student.onnx", **options))
    # A validation of folders says nothing of where the classes begin in the records that the teacher saw.
    options = {"validation_data": digits, "store": store.path}
    by_store = export_int8(settings(again, records, tmp_path / "other.onnx", **options))
    assert found.teacher == "image/logit of train"
    assert found.float32.agreement_teacher == by_store.float32.agreement_teacher
    assert found.int8.agreement_teacher == by_store.int8.agreement_teacher
    # Records with a background class and an offset, folders without: the same images, the same figures.
    assert found.float32.top1 == by_store.float32.top1 == exported[1].float32.top1


def test_agreement_with_stored_views_is_on_those_views(run: Path, digits: Path, tmp_path: Path) -> None:
    """A teacher that is the student itself: on its own views it agrees wherever float32 is float32."""
    views = tmp_path / "views"
    extract(
        ExtractConfig(
            data=digits, teacher=f"run:{run}", out=views, policy="crop", views=1, crop_scale=(0.3, 0.5), device="cpu"
        )
    )
    found = export_int8(settings(run, digits, tmp_path / "student.onnx", store=views, agreement_images=40))
    assert found.float32.agreement_teacher == 1.0
    assert found.int8.agreement_teacher is not None and 0.7 < found.int8.agreement_teacher <= 1.0
    assert found.num_teacher_records == 40 and found.teacher is not None and "its stored views" in found.teacher
    # Small crops are other pixels than the whole image: looking at that instead would show.
    student, source = load_model(f"run:{run}"), open_records(digits, "train")
    images = np.stack(list(read_images(source, student.preprocessing, 40)))
    whole = student.forward(torch.from_numpy(images)).argmax(dim=1).numpy()
    store = Store(views)
    teacher = np.concatenate([store.read_logits(shard, 0, slice(None)) for shard in range(len(store.shards))]).argmax(
        axis=1
    )
    assert (whole == teacher[spaced_indices(96, 40)]).mean() < 1.0


def test_calibration_images_are_the_students_evaluation_pixels(run: Path, digits: Path) -> None:
    student, source = load_model(f"run:{run}"), open_records(digits, "train")
    images = list(read_images(source, student.preprocessing, 10))
    assert len(images) == 10 and images[0].shape == (3, 16, 16) and images[0].dtype == np.float32
    labels = {record.label for record in source.read_batch(source.locate_all(spaced_indices(96, 30)))}
    assert labels == set(range(10)), "a split sorted by class, all of it"
    records = source.read_batch(source.locate_all(spaced_indices(96, 10)))
    from teachonce.pixels.render import render_center

    pixels = render_center([records[3]], student.preprocessing)
    expected = normalize(torch.from_numpy(pixels), student.preprocessing).numpy()[0]
    np.testing.assert_array_equal(images[3], expected)


@pytest.mark.parametrize("num_records, wanted, count", [(96, 10, 10), (5, 64, 5), (1, 1, 1), (7, 7, 7)])
def test_spaced_indices(num_records: int, wanted: int, count: int) -> None:
    found = spaced_indices(num_records, wanted)
    assert len(found) == count and found[0] == 0 and found[-1] == (num_records - 1 if count > 1 else 0)
    assert np.ptp(np.diff(found)) <= 1 if count > 2 else True


def test_the_command_prints_a_table_or_json(
    run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export-onnx", str(run), "--int8", "--data", str(digits), "--calibration-images", "16"]
    for more in ([], ["--json"]):
        out = tmp_path / f"student{len(more)}.onnx"
        with pytest.raises(SystemExit) as end:
            main([*command, "--out", str(out), *more])
        assert end.value.code == 0
        shown = capsys.readouterr()
        printed, paths = shown.out, f"{out}\n{int8_path(out)}\n{tmp_path / 'labels.txt'}\n"
        if more:
            assert shown.err.endswith(paths)
            value = json.loads(printed)
            assert value["int8"]["num_bytes"] == int8_path(out).stat().st_size and value["teacher"] is None
        else:
            assert printed.startswith("| file ") and printed.endswith(paths) and str(out) not in shown.err
            assert "points of top-1 on 48 records" in printed


@pytest.mark.parametrize("name", ["student.onnx", "student.int8.onnx"])
def test_outputs_that_exist_are_kept(run: Path, digits: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"{name}: exists; remove it, choose another --out, or give --overwrite"):
        export_int8(settings(run, digits, tmp_path / "student.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_data_of_other_classes_leaves_nothing(run: Path, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        export_int8(settings(run, tmp_path / "nowhere", tmp_path / "out" / "student.onnx"))
    more = tmp_path / "more"
    for label in range(12):
        for split in ("train", "validation"):
            (more / split / f"{label:02d}").mkdir(parents=True)
            image = next((digits / split / str(label % 10)).iterdir())
            (more / split / f"{label:02d}" / image.name).write_bytes(image.read_bytes())
    with pytest.raises(
        ConfigError,
        match=r"its 10 classes differ in names or order from the 12 of the data .*; give a model for this data$",
    ):
        export_int8(settings(run, more, tmp_path / "out" / "student.onnx"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"int8": True}, "--int8 without --data: expected --data"),
        ({"int8": True, "data": Path("d"), "store": Path("s"), "logits": "records"}, "--logits records: expected not"),
        ({"data": Path("d"), "json": True}, "--data d: applies only with --int8, found no --int8"),
        ({"json": True}, "--json: applies only with --int8, found no --int8"),
        ({"int8": True, "data": Path("d"), "calibration_images": 0}, "--calibration-images 0: expected at least 1"),
    ],
)
def test_settings_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ExportOnnxConfig(**({"run": Path("run"), "out": Path("o")} | options))
    assert message in str(error.value)


def test_without_the_extra_it_says_what_to_install(
    run: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"--int8 needs onnxruntime.*pip install 'teachonce\[onnx\]'"):
        export_int8(settings(run, digits, tmp_path / "student.onnx"))


def test_with_the_preprocessing_inside_nothing_else_changes(
    exported: tuple[Path, Comparison], run: Path, digits: Path, tmp_path: Path
) -> None:
    outside, before = exported
    inside = tmp_path / "student.onnx"
    found = export_int8(settings(run, digits, inside, preprocessing="inside"))
    assert (found.float32.top1, found.int8.top1) == (before.float32.top1, before.int8.top1)
    assert found.int8.agreement_float == before.int8.agreement_float
    result = evaluate(EvaluateConfig(data=digits, model=f"onnx:{int8_path(inside)}", device="cpu", batch_size=7))
    assert result["top1"] == pytest.approx(found.int8.top1, abs=1e-6)
    # The integers are the same: the graph behind the normalization is.
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8))
    logits = [load_model(f"onnx:{int8_path(path)}").logits(pixels).numpy() for path in (outside, inside)]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-5)
    assert (tmp_path / "labels.txt").read_text().splitlines() == list("0123456789")
