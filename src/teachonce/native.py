"""The native library, where it was built: optional C code that does what Python does too, in a fraction of the time.

Built from ``native/*.c`` by ``pip install`` where there is a C compiler; without it, or with TEACHONCE_NATIVE=0, the
speed changes and nothing else. Here is what finds image, label and logits in serialised Examples; ``kernel`` makes
views.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOUND = np.dtype(
    [
        ("image", np.int64, 2),
        ("filename", np.int64, 2),
        ("logits", np.int64, 2),
        ("body", np.int64, 2),
        ("splice", np.int64, 2),
        ("label", np.int64),
        ("has_label", np.int32),
        ("status", np.int32),
    ]
)
"""struct found: start and end of what an Example holds, 0 and 0 for what it does not; status 0: found. ``splice``: what
a new ``image/logit`` takes the place of."""


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


def find_features(payloads: Sequence[bytes | memoryview]) -> NDArray[Any] | None:
    """Where image, filename, label and logits lie in serialised Examples (FOUND); None without the library."""
    library = load_library()
    if library is None:
        return None
    found = np.empty(len(payloads), FOUND)
    places = addresses(payloads)
    lengths = np.array([len(payload) for payload in payloads], np.int64)
    library.teachonce_find(places.ctypes.data, lengths.ctypes.data, len(payloads), found.ctypes.data)
    return found
