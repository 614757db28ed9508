"""A teacher of colors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.small_models import write_color_teacher


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return write_color_teacher(tmp_path / "teacher.onnx")
