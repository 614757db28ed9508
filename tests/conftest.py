"""Fixtures that several test files share: the real data, where it is there."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes and dtypes in signatures are checked wherever a test calls these modules.
install_import_hook(["teachonce.losses", "teachonce.mixup", "teachonce.metrics"], "beartype.beartype")

# A busy machine is no failure; the number of examples bounds the time.
settings.register_profile("teachonce", deadline=None)
settings.load_profile("teachonce")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (TEACHONCE_SHARED_DATA, else ../shared/data beside the repository), or a skip."""
    folder = Path(os.environ.get("TEACHONCE_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


@pytest.fixture(scope="session")
def imagenet_sample(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/SYNSET/*.JPEG: 250 ImageNet images, one a class."""
    archive = shared_data / "imagenet-sample.tar"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in {shared_data}")
    folder = tmp_path_factory.mktemp("imagenet-sample")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder
