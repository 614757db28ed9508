"""The questions to exported logits in the guide: DuckDB and polars answer them, and give the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from teachonce.cli.main import main
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from tests.support.paths import ROOT
from tests.support.small_data import write_image_folder
from tests.support.small_models import write_color_teacher

GUIDE = (ROOT / "docs" / "guide" / "stores.md").read_text()
SQL = re.findall(r"```sql\n(.*?)```", GUIDE, flags=re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the export of the guide, of a teacher of the images' colors, which contradicts labels."""
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "data", num_classes=4, per_class=6)
    teacher = write_color_teacher(tmp_path / "teacher.onnx")
    options: dict[str, Any] = {"policy": "crop", "views": 3, "device": "cpu", "gate_samples": 0, "offset": 0}
    extract(ExtractConfig(data=tmp_path / "data", teacher=teacher, out=tmp_path / "store", **options))
    (line,) = re.findall(r"^teachonce (export-logits store --out logits --top .*)$", GUIDE, flags=re.MULTILINE)
    # The guide's store has more classes than this one.
    with pytest.raises(SystemExit) as end:
        main(line.replace("--top 5", "--top 2").split())
    assert end.value.code == 0
    return tmp_path


def test_there_are_three_questions() -> None:
    assert len(SQL) == len(PYTHON) == 3


def test_the_columns_that_the_questions_need(here: Path) -> None:
    table = pq.read_table(here / "logits")
    assert table.column_names == ["key", "filename", "label", "view", "box", "flip", "classes", "logits", "rest"]
    assert table.num_rows == 24 * 3


@pytest.mark.parametrize("number", range(3))
def test_both_give_the_same(here: Path, number: int) -> None:
    asked = duckdb.sql(SQL[number])
    rows = asked.fetchall()
    variables: dict[str, Any] = {}
    exec(PYTHON[number], variables)
    result = variables["result"]
    assert asked.columns == result.columns
    assert len(rows) == result.height > 0
    for found, expected in zip(rows, result.rows(), strict=True):
        assert found == pytest.approx(expected, abs=1e-6)
    # And what they say is so.
    table = pq.read_table(here / "logits")
    teacher = np.array(table["classes"].to_pylist())[:, 0]
    is_right, view = teacher == table["label"].to_numpy(), table["view"].to_numpy()
    if number == 0:
        assert rows == [(v, pytest.approx(is_right[view == v].mean())) for v in range(3)]
    elif number == 1:
        names = np.array(table["filename"].to_pylist())
        doubted = [name for name in sorted(set(names)) if len({*teacher[names == name]}) == 1]
        doubted = [name for name in doubted if not is_right[names == name].any()]
        assert [row[0] for row in rows] == doubted and {row[3] for row in rows} == {3}
    else:
        assert sum(row[1] for row in rows) == table.num_rows
