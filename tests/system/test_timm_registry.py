"""Our networks in timm's registry: by an explicit call, once or twice, in whichever order things are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import teachonce, timm; teachonce.register_models()",
        "import timm, teachonce; teachonce.register_models(); teachonce.register_models()",
        "import teachonce; from timm.layers import SEModule; teachonce.register_models()",
        "from teachonce.models.spec import parse_model_spec; from teachonce.models.torch_backend import build_module; "
        "build_module(parse_model_spec('timm:test_resnet'), 3)",
        "from teachonce import register_models; register_models()",
    ],
)
def test_a_call_registers_them(code: str) -> None:
    check = "; import timm; assert timm.is_model('assemble_resnet50'); timm.create_model('tf_resnet50', num_classes=3)"
    subprocess.run([sys.executable, "-W", "error", "-c", code + check], check=True)


def test_importing_teachonce_changes_nothing_and_imports_neither_timm_nor_torch() -> None:
    code = "import sys; before = list(sys.meta_path); import teachonce; assert sys.meta_path == before; "
    code += "assert not {'timm', 'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
