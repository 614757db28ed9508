"""The native library, where it was built: optional C code that does what Python does too, in a fraction of the time.

Built from ``native/*.c`` by ``pip install`` where there is a C compiler; without it, or with TEACHONCE_NATIVE=0, the
speed changes and nothing else. Here is what finds image, label and logits in serialized Examples; ``kernel`` makes
views.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library, None without one."""
    if os.environ.get("TEACHONCE_NATIVE", "1") == "0":
        return None
    paths = [path for suffix in EXTENSION_SUFFIXES if (path := Path(__file__).with_name(f"_native{suffix}")).exists()]
    try:
        library = ctypes.CDLL(str(paths[0])) if paths else None
    except OSError:
        return None
    if library is not None:
        library.teachonce_find.restype = None
        library.teachonce_find.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    return library


def addresses(buffers: Sequence[bytes | memoryview]) -> NDArray[np.uint64]:
    """Where the bytes lie [n], 0 for none; good while the buffers live."""
    return np.array([_address(item) if item else 0 for item in buffers], np.uint64)


def _address(buffer: bytes | memoryview) -> int:
    if isinstance(buffer, memoryview) and not buffer.readonly:
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))  # four times as fast as through NumPy
    return np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
