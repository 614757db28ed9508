"""The kernel as installed, and built with plain loops."""

from __future__ import annotations

import ctypes

import pytest

from teachonce.pixels.kernel import Kernel, bind_kernel, describe_decoder, load_kernel
from tests.support.kernel_images import (
    CFLAGS,
    build_library,
)


@pytest.fixture(scope="session", params=["as installed", "plain loops"])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """As installed, or built with the options of ``make fuzz``; and with plain loops."""
    if request.param == "as installed" and not CFLAGS:
        found, reason = load_kernel(), describe_decoder()
    else:
        options = ["-DTEACHONCE_NO_AVX2"] if request.param == "plain loops" else []
        path = build_library(tmp_path_factory.mktemp("native"), *options)
        found, reason = bind_kernel(ctypes.CDLL(str(path)))
    assert found is not None, reason
    assert not found.counts_units, "only where it is asked for"
    return found
