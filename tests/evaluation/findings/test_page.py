"""The page of an evaluation: what it shows is what was found, and nothing of it is loaded from anywhere."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from teachonce.evaluation.config import EvaluateConfig
from teachonce.evaluation.evaluate import Evaluated, evaluate, evaluate_model
from teachonce.evaluation.findings.page import CLASSES_SHOWN, _list_changes, render_findings
from teachonce.evaluation.findings.paired import ClassChange
from teachonce.evaluation.findings.per_class import ClassResult
from teachonce.evaluation.findings.tally import Findings
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.models.classifier import load_model
from teachonce.records.class_table import ClassTable, write_classes
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource
from teachonce.store.store import Store
from tests.inspection.test_page import PageReader, section
from tests.support.chromium import measure_page
from tests.support.small_data import write_shards
from tests.support.small_models import COLORS, color_example, write_color_shards, write_color_teacher

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records, a model that confuses two of the four classes, and the store of one that does not."""
    folder = tmp_path_factory.mktemp("evaluation")
    data = write_color_shards(folder / "data", split="validation")
    right = write_color_teacher(folder / "right.onnx")
    write_color_teacher(folder / "wrong.onnx", order=[1, 0, 2, 3])
    extract(ExtractConfig(data=data, split="validation", teacher=right, out=folder / "store", device="cpu"))
    return folder


def spec(folder: Path, name: str) -> str:
    return f"onnx:{folder / name}.onnx,size=16,resize=16"


@pytest.fixture(scope="module")
def source(folder: Path) -> RecordSource:
    return open_records(folder / "data", "validation")


@pytest.fixture(scope="module")
def findings(folder: Path, source: RecordSource) -> Findings:
    right = load_model(spec(folder, "right"))
    return evaluate_model(
        load_model(spec(folder, "wrong")), source, 1, against=Evaluated(right, 1), store=Store(folder / "store")
    )


def read(text: str):
    return PageReader(text).root


def test_the_page_shows_what_was_found(findings: Findings, source: RecordSource) -> None:
    text = render_findings(findings, source, model="onnx:some/folder/wrong.onnx", data="data")
    assert "<h1>wrong.onnx</h1>" in text and "onnx:some/folder/wrong.onnx on " in text
    page = read(text)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text), "the page asks for something beside it"
    assert [element.attributes["id"] for element in page.find("section")] == [
        "classes", "confusions", "calibration", "mistakes", "model", "teacher",
    ]  # fmt: skip
    # 33 images: 9 of color 0, 8 of each other; colors 0 and 1 are taken for each other.
    classes = section(page, "classes")
    assert "Below the rest beyond chance (95%, for all classes together): 2 of 4 classes" in classes.text
    rows = [[cell.text for cell in row.find("td")] for row in classes.find("tr") if row.find("td")]
    assert [row[:3] for row in rows[:2]] == [["class0", "0 of 9", "0.0%"], ["class1", "0 of 8", "0.0%"]]
    assert rows[0][3] == "0 to 30 %" and rows[0][4] == "class1 (9)" and len(rows) == 2 + 4
    pairs = section(page, "confusions").find("article")
    assert [pair.find("p")[0].text for pair in pairs] == ["class0 taken for class1", "class1 taken for class0"]
    assert [len(pair.find("img")) for pair in pairs] == [3, 3] and "9 of 9 images (100%)" in pairs[0].text
    (matrix,) = section(page, "confusions").find("table")
    cells = [[cell.text for cell in row.find("td")] for row in matrix.find("tr")[1:]]
    assert cells == [["0", "9", "0", "0"], ["8", "0", "0", "0"], ["0", "0", "8", "0"], ["0", "0", "0", "8"]]
    cards = section(page, "mistakes").find("article")
    assert len(cards) == 17 and "The 17 wrong answers" in section(page, "mistakes").text
    confidences = [float(card.find("span", class_="prob")[0].text) for card in cards]
    assert confidences == sorted(confidences, reverse=True)
    assert len(section(page, "calibration").find("svg")) == 1
    assert "top-5" not in page.text, "four classes"
    (numbers,) = page.find("div", class_="numbers")[:1]
    assert numbers.text.startswith("48.48%top-1 (95%: ")


def test_other_models_stand_beside_it(findings: Findings, source: RecordSource) -> None:
    page = read(render_findings(findings, source, model="onnx:wrong", data="data"))
    for name, other in (("model", "the other"), ("teacher", "the teacher")):
        beside = section(page, name)
        assert f"This model is worse than {other}, beyond chance" in beside.text
        table = beside.find("table")[0]
        cells = [[cell.text for cell in row.find("td")[1:]] for row in table.find("tr")[1:]]
        assert cells == [["16", "0"], ["17", "0"]]
        lost = [[cell.text for cell in row.find("td")] for row in beside.find("table")[1].find("tr")[1:]]
        assert [row[:3] for row in lost] == [["class0", "-9", "9"], ["class1", "-8", "8"]]
        assert all(row[3].endswith(" *") for row in lost)
        cards = beside.find("article")
        assert len(cards) == 12 and "Of 17 images the 12 of whose label" in beside.text
        bars = [line.find("span")[0].text for line in cards[0].find("li")]
        assert len(bars) == 3 and bars[1] == bars[2], "this model's choice and the label, then the label by the other"
    assert "Where this model fails though the teacher knows" in page.text
    assert "its complete images" in section(page, "teacher").text


def test_a_model_that_is_always_right_has_no_mistakes(folder: Path, source: RecordSource) -> None:
    found = evaluate_model(load_model(spec(folder, "right")), source, 1)
    page = read(render_findings(found, source, model="timm:m", data="d"))
    assert "None: every answer is right." in section(page, "mistakes").text
    assert "None: every answer is right." in section(page, "confusions").text
    assert "No class is below the rest beyond chance" in section(page, "classes").text
    assert not page.find("img")


def test_classes_that_changed_beyond_chance_come_first_and_all_are_counted() -> None:
    def change(label: int, lost: int, p_value: float) -> ClassChange:
        return ClassChange(label=label, name=f"class{label}", count=90, only_model=20, only_other=20 + lost,
                           p_value=p_value, is_beyond_chance=p_value < 1e-6)  # fmt: skip

    listed = _list_changes([change(label, 40 - label, 1e-9 if label == 25 else 0.01) for label in range(30)])
    assert (listed["num_classes"], listed["num_beyond"], len(listed["rows"])) == (30, 1, 10)
    assert [row[0] for row in listed["rows"][:2]] == ["class25", "class0"]


def test_classes_that_the_model_does_not_know_are_counted_where_they_have_images(
    findings: Findings, source: RecordSource
) -> None:
    """A background class without images is unknown to most models, and hid the notice of one with images."""
    counts = (0, 10, 10, 10, 0)
    classes = [ClassResult(label=at, name=f"class{at}", count=count, correct=0) for at, count in enumerate(counts)]
    for first, known, unknown in ((1, 2, 1), (1, 3, 0), (2, 1, 2), (0, 5, 0)):
        some = replace(findings, classes=classes, num_known_classes=known, first_known_label=first, confusions=[],
                       num_pairs=0, comparisons=[], mistakes=())  # fmt: skip
        assert some.to_json()["num_unknown_classes"] == unknown
        text = read(render_findings(some, source, model="timm:m", data="d")).text
        assert (f"does not know {unknown} of the classes with images" in text) == bool(unknown)


def test_many_classes_are_folded_and_have_no_matrix(findings: Findings, source: RecordSource) -> None:
    classes = [ClassResult(label=label, name=f"class{label}", count=10, correct=label % 11) for label in range(300)]
    many = replace(findings, classes=classes, num_records=3000, num_known_classes=300, comparisons=[])
    page = read(render_findings(many, source, model="timm:m", data="d"))
    (details,) = section(page, "classes").find("details")
    assert "open" not in details.attributes and len(details.find("tr")) == 301 > CLASSES_SHOWN
    assert len(section(page, "calibration").find("svg")) == 2
    rows = [replace(pair, choice=label) for label, pair in enumerate(findings.confusions * 20, 5)]
    wide = read(render_findings(replace(many, confusions=rows, num_pairs=len(rows)), source, model="timm:m", data="d"))
    assert not wide.find("table", class_="matrix") and len(section(wide, "confusions").find("article")) == 8
    assert "The most frequent of 40 confusions" in section(wide, "confusions").text
    assert len(section(wide, "confusions").find("tr")) == 1 + 22
    assert "top-5" in page.text
    failed = [replace(result, count=100, correct=1 if result.label < 54 else 90) for result in classes]
    page = read(render_findings(replace(many, classes=failed, num_records=30_000), source, model="timm:m", data="d"))
    assert "for all classes together): 54 of 300 classes, the 10 lowest of them." in section(page, "classes").text
    assert len(section(page, "classes").find("table")[0].find("tr")) == 11


def test_what_the_data_says_is_text_and_never_html(tmp_path: Path) -> None:
    wild = "<script>alert('x')</script>"
    payloads = [color_example(index, 1 + index % 2, COLORS[(index + 1) % 2]) for index in range(8)]
    data = write_shards(tmp_path / "d", sizes=(8,), split="validation", payloads=payloads, num_classes=None)
    write_classes(
        data, ClassTable(("background", wild, 'b"c', "c", "d"), ("", wild, 'b"c', "c", "d"), has_background=True)
    )
    teacher = write_color_teacher(tmp_path / "t.onnx")
    evaluate(EvaluateConfig(data=data, model=teacher, against=teacher, html=tmp_path / "page.html", device="cpu"))
    text = (tmp_path / "page.html").read_text()
    assert wild not in text and not read(text).find("script") and wild in read(text).text


def test_the_same_findings_are_the_same_page(folder: Path, source: RecordSource, findings: Findings) -> None:
    pages = {render_findings(findings, source, model="timm:m", data="d") for _ in range(2)}
    again = evaluate_model(
        load_model(spec(folder, "wrong")),
        source,
        1,
        against=Evaluated(load_model(spec(folder, "right")), 1),
        store=Store(folder / "store"),
        batch_size=5,
    )
    assert np.allclose(again.reliability, findings.reliability)
    pages.add(
        render_findings(
            replace(again, reliability=findings.reliability, ece=findings.ece), source, model="timm:m", data="d"
        )
    )
    assert len(pages) == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_fits_its_window_and_can_be_read(
    findings: Findings, source: RecordSource, tmp_path: Path, width: int
) -> None:
    """With a SPEC and class names that are longer than a phone is wide."""
    long = "a-name-of-a-class-without-any-space-in-it-that-is-longer-than-a-phone"
    classes = [replace(result, name=f"{long}{result.label}", wrong_name=long) for result in findings.classes]
    confusions = [replace(pair, choice=label % 4) for label, pair in enumerate(findings.confusions * 20)]
    named = replace(
        findings,
        classes=classes,
        names=tuple(f"a_name_{result.name}".replace("-", "_") for result in classes),
        confusions=confusions,
        num_pairs=len(confusions),
    )
    page = tmp_path / "page.html"
    page.write_text(render_findings(named, source, model=f"timm:resnet50,weights=/{'deep/' * 30}file", data="d" * 200))
    measured = measure_page(page, width, tmp_path)
    assert measured["width"] <= width, measured
    assert not measured["small"]
