"""The report is one page that needs nothing beside it."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from teachonce.evaluation.findings.per_class import ClassResult
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.runs.metrics import METRIC_COLUMNS, write_metrics
from teachonce.storage.files import write_json
from teachonce.training.report import draw_curves, write_report
from tests.support.chromium import measure_page
from tests.support.small_data import run_config

pytestmark = pytest.mark.curves

CONFIG = run_config("timm:x<y", Preprocessing(size_px=32)) | {
    "data": "data",
    "seed": 3,
    "kd_temp": 2.0,
    "store": "STORE",
    "versions": {"torch": "2"},
}
RESULT = {"top1": 0.8125, "top5": 0.99, "ece": 0.05, "train_loss": 1.5, "images_per_second": 1234.5,
          "num_parameters": 11_700_000}  # fmt: skip


def rows(num: int, **fixed) -> list[dict]:
    return [
        dict.fromkeys(METRIC_COLUMNS, 0.9 / (index + 1)) | {"epoch": index + 1, "step": 10 * index} | fixed
        for index in range(num)
    ]


@pytest.mark.parametrize("num_epochs", [1, 3, 100])
def test_page(tmp_path: Path, num_epochs: int) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    write_metrics(tmp_path, rows(num_epochs))
    page = write_report(tmp_path, RESULT).read_text()
    assert not re.search(r"""(src|href)=["'](?!#)""", page), "the page asks for something beside it"
    assert "top-5" not in page, "five classes"
    assert "timm:x&lt;y" in page and "x<y" not in page
    for text in ("81.25%", "1,234", "11.70 M", "at temperature 2", "STORE", "torch 2"):
        assert text in page
    assert page.count("<svg") == page.count("</svg>") == 3


def test_it_is_named_after_the_network_and_shows_only_what_was_in_force(tmp_path: Path) -> None:
    config = CONFIG | {
        "student": "timm:resnet18,weights=/a/b.safetensors",
        "mixup_alpha": 0.0,
        "crop_scale": [0.4, 1.0],
    }
    write_json(
        tmp_path / "config.json", config | {"label_weight": 0.0, "val_fraction": 0.0, "val_seed": 0, "store": []}
    )
    write_metrics(tmp_path, rows(2))
    page = write_report(tmp_path, RESULT | {"missing_records": 0, "kd_temp": 0}).read_text()
    assert "<h1>resnet18</h1>" in page and f"Run {tmp_path.name}: " in page
    for option, is_shown in (
        ("crop_scale", 1),
        ("label_weight", 1),
        ("mixup_alpha", 0),
        ("val_fraction", 0),
        ("store", 0),
    ):
        assert (option in page) == bool(is_shown), option
    assert "records left out" not in page and "<dt>temperature" not in page


def classes_of(*counts: tuple[int, int]) -> list[ClassResult]:
    return [
        ClassResult(label=label, name=f"class <{label}>", count=count, correct=correct)
        for label, (correct, count) in enumerate(counts)
    ]


def test_worst_classes_are_shown_where_the_counts_support_it(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    write_metrics(tmp_path, rows(2))
    page = write_report(tmp_path, RESULT, classes_of(*[(8, 12)] * 4, (0, 12))).read_text()
    assert "Below the rest beyond chance (95%, for all of 5 classes together)" in page
    assert "class &lt;4&gt;" in page and "0 of 12" in page and "0 to 24 %" in page and "class &lt;3&gt;" not in page
    assert "most often taken for" not in page and "validation_classes.csv" in page
    page = write_report(tmp_path, RESULT, classes_of(*[(8, 12)] * 4, (6, 12))).read_text()
    assert "None of 5 classes is below the rest beyond chance" in page and "class &lt;4&gt;, 6 of\n12 right" in page
    page = write_report(tmp_path, RESULT, classes_of(*[(90, 100)] * 40, *[(1, 100)] * 30)).read_text()
    assert "the 10 lowest of 30:" in page and page.count("1 of 100") == 10
    page = write_report(tmp_path, RESULT).read_text()
    assert "<h2>Classes" not in page and "validation_classes.csv" not in page


def test_the_command_of_the_page_has_what_chose_the_images(tmp_path: Path) -> None:
    chosen = {"validation_split": "validation", "validation_data": None, "val_fraction": 0.1, "val_seed": 3}
    write_json(tmp_path / "config.json", CONFIG | chosen | {"data": "my data", "labels": "names.txt"})
    write_metrics(tmp_path, rows(1))
    page = html.unescape(write_report(tmp_path, RESULT).read_text())
    assert (
        "teachonce evaluate --val-fraction 0.1 --val-seed 3 --labels names.txt --data 'my data' "
        f"--model run:{tmp_path} --html {tmp_path}/evaluation.html --overwrite</code>"
    ) in page
    write_json(tmp_path / "config.json", CONFIG | {"validation_split": None})
    assert "teachonce evaluate" not in write_report(tmp_path, RESULT).read_text()


def test_twenty_classes_have_a_top5(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", CONFIG | {"num_classes": 20, "data_classes": 20})
    write_metrics(tmp_path, rows(2))
    page = write_report(tmp_path, RESULT).read_text()
    assert page.count("top-5") >= 2 and "99.00%" in page


def test_curves_leave_out_what_is_not_there() -> None:
    without = dict.fromkeys(("validation_loss", "validation_top1", "validation_top5", "validation_ece"))
    labels_only = "".join(draw_curves(rows(3, kd_loss=0.0, label_loss=0.5, train_loss=0.5, **without)))
    assert "KD" not in labels_only and "validation" not in labels_only and "label (train)" in labels_only
    curves = draw_curves(rows(3))
    whole = "".join(curves)
    for text in ("KD (train)", "label (validation)", "top-1 (validation)", "top-5 (validation)"):
        assert text in whole
    assert len(curves) == 3 and all(ElementTree.fromstring(curve).tag.endswith("svg") for curve in curves)


def test_results_have_words_and_options_are_those_in_force(tmp_path: Path) -> None:
    write_json(
        tmp_path / "config.json", CONFIG | {"schedule": "cosine", "step_epochs": 30, "ema_decay": 0.0, "init": None}
    )
    write_metrics(tmp_path, rows(2))
    page = write_report(tmp_path, RESULT | {"seconds": 61.2}).read_text()
    assert "training speed" in page and "1,234 images/s" in page and "61 s" in page and "images_per_second" not in page
    assert "schedule" in page and "step_epochs" not in page and "<td>init" not in page


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_fits_a_phone(tmp_path: Path, width: int) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    write_metrics(tmp_path, rows(30))
    page = write_report(tmp_path, RESULT, classes_of(*[(8, 12)] * 4, (0, 12)))
    measured = measure_page(page, width, tmp_path)
    assert measured["width"] <= width and not measured["small"]


def test_the_same_curve_is_the_same_bytes() -> None:
    assert draw_curves(rows(4)) == draw_curves(rows(4))
