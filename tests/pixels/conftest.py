"""The kernel as installed, and built with plain loops."""

from __future__ import annotations

import ctypes

import pytest

from teachonce.pixels.kernel import Kernel, bind_kernel, describe_decoder, load_kernel
from tests.support.kernel_images import CFLAGS, build_library, find_compiler

KERNELS = ["as installed", "plain loops"]


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    """As installed, or built with the options of ``make fuzz``; and with plain loops where there is a compiler."""
    if CFLAGS:
        installed = bind_kernel(ctypes.CDLL(str(build_library(tmp_path_factory.mktemp("native")))))
    else:
        installed = load_kernel(), describe_decoder()
    both = [installed]
    if find_compiler() is not None:
        path = build_library(tmp_path_factory.mktemp("native"), "-DTEACHONCE_NO_AVX2")
        both.append(bind_kernel(ctypes.CDLL(str(path))))
    found = []
    for kernel, reason in both:
        assert kernel is not None, reason
        assert not kernel.counts_units, "only where it is asked for"
        found.append(kernel)
    return found


@pytest.fixture(scope="session", params=range(len(KERNELS)), ids=KERNELS)
def kernel(request: pytest.FixtureRequest, kernels: list[Kernel]) -> Kernel:
    """One of them after the other."""
    if request.param >= len(kernels):
        pytest.skip("no C compiler")
    return kernels[request.param]
