"""Whichever of timm, teachonce and a module of ours comes first, our names are there; and torch stays away."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = "; import timm; assert timm.is_model('assemble_resnet50') and timm.__spec__.loader is timm.__loader__"


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import teachonce, timm",
        "import timm, teachonce",
        "import teachonce; from timm.layers import SEModule",
        "import teachonce.backbone_layers",
        "import teachonce.backbone_blocks",
        "import teachonce.backbones",
        "import teachonce.timm_names",
    ],
)
def test_the_order_of_imports_does_not_matter(code: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", code + CHECK], check=True)


def test_importing_teachonce_imports_neither_timm_nor_torch() -> None:
    code = "import teachonce, sys; assert not {'timm', 'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
