"""Folders of raw images for the tests of `records`, stores for those of `copy`."""

from __future__ import annotations

from pathlib import Path

import pytest

from teachonce.store.store import Store
from tests.support.copies import make_store
from tests.support.raw_images import CLASSES, write
from tests.support.small_data import encode_jpeg


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """17 images of three classes, sizes all different."""
    for number in range(17):
        name = CLASSES[number % 3]
        write(tmp_path / "images/train" / name / f"{name}_{number}.JPEG", encode_jpeg(number, 40 + number, 30))
    return tmp_path / "images"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store")
