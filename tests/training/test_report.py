"""The report is one page that needs nothing beside it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from teachonce.pixels.preprocessing import Preprocessing
from teachonce.runs.metrics import METRIC_COLUMNS, write_metrics
from teachonce.storage.files import write_json
from teachonce.training.report import draw_curves, write_report
from tests.support.small_data import run_config

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
    assert "timm:x&lt;y" in page and "x<y" not in page
    for text in ("81.25%", "1,234", "11.70 M", "at temperature 2", "STORE", "torch 2"):
        assert text in page
    assert page.count("<svg") == page.count("</svg>") == 1


def test_curves_leave_out_what_is_not_there() -> None:
    without = dict.fromkeys(("validation_loss", "validation_top1", "validation_top5", "validation_ece"))
    labels_only = draw_curves(rows(3, kd_loss=0.0, label_loss=0.5, train_loss=0.5, **without))
    assert "KD" not in labels_only and "validation" not in labels_only and "label (train)" in labels_only
    whole = draw_curves(rows(3))
    for text in ("KD (train)", "label (validation)", "top-1 (validation)", "top-5 (validation)"):
        assert text in whole
    assert ElementTree.fromstring(whole).tag.endswith("svg")


def test_the_same_curve_is_the_same_bytes() -> None:
    assert draw_curves(rows(4)) == draw_curves(rows(4))
