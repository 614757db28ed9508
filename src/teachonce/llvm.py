"""TensorFlow and Triton in one process: each brings an LLVM, and the second of them to be loaded may end the process.

Triton, which PyTorch, torchvision and timm import at some later point, first and TensorFlow second get along. In the
other order LLVM aborts ("inconsistency in registered CommandLine options"), which no Python code can catch. So
TensorFlow is imported through here, after Triton; and where a user has imported it already, Triton is kept out: PyTorch
then takes it for not installed, and everything but ``torch.compile`` on a GPU works.
"""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, cast


def keep_triton_out() -> None:
    """Make Triton count as not installed, with a warning, where TensorFlow was imported and Triton was not."""
    if "tensorflow" not in sys.modules or "triton" in sys.modules or find_spec("triton") is None:
        return
    # An import of what is None here raises ModuleNotFoundError.
    cast("dict[str, Any]", sys.modules)["triton"] = None
    warnings.warn(
        "tensorflow was imported before Triton, which would crash the process when PyTorch loads it: Triton is "
        "disabled, so torch.compile does not work on a GPU here; to enable it, import triton before tensorflow",
        stacklevel=3,
    )


def import_tensorflow() -> Any:
    """The module ``tensorflow``, after Triton where there is one; raises ImportError where it is not installed."""
    # TensorFlow reads this at its import; unless told otherwise it reports its build on every start.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with suppress(ImportError):
        import triton  # noqa: F401
    import tensorflow

    return tensorflow
