"""The native library, where it was built: optional C code that does what Python does too, in a fraction of the time.

It comes with the wheel, or is built from ``native/*.c`` by ``pip install`` where there is a C compiler; without it, or
with TEACHONCE_NATIVE=0, the speed changes and nothing else. It knows nothing of Python, so one file serves every
version. Here is what finds image, label and logits in serialized Examples, and what
reads numbers; ``kernel`` makes views.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teachonce.on_demand import OnDemand

Buffer = bytes | memoryview
"""Bytes that were read: of their own, or a view of the buffer that they were read into."""

LAYOUT_VERSION = 4
"""Of what is handed over to the library; ``native/layout.h``."""
_FUNCTIONS = ("teachonce_layout", "teachonce_find", "teachonce_read_frames", "teachonce_read_numbers")
"""What is called here and by readers of records; ``kernel`` asks for its own."""


class Buffers(OnDemand[Buffer]):
    """Bytes that lie in memory at ``addresses`` [n], ``num_bytes`` [n] of each; valid as long as this is."""

    def __init__(
        self, addresses: NDArray[np.uint64], num_bytes: NDArray[np.int64], make: Callable[[int], Buffer] | None = None
    ) -> None:
        super().__init__(len(addresses), make)
        self.addresses = addresses
        self.num_bytes = num_bytes


class Parts(Buffers):
    """Parts of one array of bytes, from ``begins`` to ``ends`` [n]."""

    def __init__(self, data: NDArray[np.uint8], begins: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        super().__init__(data.ctypes.data + begins.astype(np.uint64), ends - begins)
        self._data, self._begins, self._ends = data, begins, ends

    def __iter__(self) -> Iterator[Buffer]:
        buffer = self._data.data
        return (buffer[begin:end] for begin, end in zip(self._begins.tolist(), self._ends.tolist(), strict=True))

    def within(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> Parts:
        """A part of each part, from ``begins`` to ``ends`` [n] counted in it."""
        return Parts(self._data, self._begins + begins, self._begins + ends)

    def _item(self, index: int) -> Buffer:
        return self._data.data[self._begins[index] : self._ends[index]]


def is_switched_off() -> bool:
    """Whether the user has switched it off (TEACHONCE_NATIVE=0)."""
    return os.environ.get("TEACHONCE_NATIVE") == "0"


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library; None without one, with a warning unless it was switched off."""
    if is_switched_off():
        return None
    path = Path(__file__).with_name("_native.so")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        warn_of_slowness(
            str(error) if path.exists() else "it was not built; install a wheel, or install with a C compiler"
        )
        return None
    missing = [name for name in _FUNCTIONS if not hasattr(library, name)]
    # In a checkout the library of another commit may be left: its structs are others, though its names are the same.
    if missing or library.teachonce_layout() != LAYOUT_VERSION:
        warn_of_slowness("it was built from other sources; install again")
        return None
    library.teachonce_read_frames.restype = None
    library.teachonce_read_frames.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    library.teachonce_find.restype = None
    library.teachonce_find.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    library.teachonce_read_numbers.restype = ctypes.c_int64
    library.teachonce_read_numbers.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64]
    return library


def warn_of_slowness(reason: str) -> None:
    """Say, in the first of a command's processes alone, that Python does what the native library is for."""
    if parent_process() is None:
        warnings.warn(
            f"the native library is not used ({reason}): reading records and rendering views are slower, results "
            "are the same; set TEACHONCE_NATIVE=0 to silence this warning",
            stacklevel=3,
        )


def addresses(buffers: Sequence[Buffer]) -> NDArray[np.uint64]:
    """Addresses of the bytes [n], 0 for none; valid during the lifetime of the buffers."""
    if isinstance(buffers, Buffers):
        return buffers.addresses
    return np.array([_address(item) if item else 0 for item in buffers], np.uint64)


def lengths(buffers: Sequence[Buffer]) -> NDArray[np.int64]:
    """How many bytes each has [n]."""
    if isinstance(buffers, Buffers):
        return buffers.num_bytes
    return np.fromiter(map(len, buffers), np.int64, len(buffers))


def _address(buffer: Buffer) -> int:
    if isinstance(buffer, memoryview) and not buffer.readonly:
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))  # four times as fast as through NumPy
    return np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
