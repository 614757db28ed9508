"""Views of JPEGs at nearly the speed of decoding them, where the native library was built.

``native/views.c`` decodes with the very library that Pillow decodes with, whose functions are looked up in Pillow at
run time, and does Pillow's arithmetic. So whether it is there changes no pixel; what it does not do it leaves to
Pillow. It is used only after it has given Pillow's own pixels for a small test image. Calls release the GIL.
"""

from __future__ import annotations

import ctypes
import functools
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from teachonce.errors import ImageError
from teachonce.native import LAYOUT_VERSION, addresses, is_switched_off, load_library, warn_of_slowness
from teachonce.pixels.decode import MAX_PIXELS, image_size, resize_image

OLDEST_LIBJPEG_TURBO = 2, 1
"""Older ones never end at some skips over the rows of a progressive image (its ChangeLog, 2.0.0 [5])."""

VIEW = np.dtype(
    [
        ("out", np.uint64),
        ("box", np.int32, 4),
        ("resized", np.int32, 2),
        ("window", np.int32, 4),
        ("flip", np.int32),
        ("filter", np.int32),
    ]
)
"""struct view: address of the output; box of the source; (width, height) that it is resized to; window of that as
(left, top, width, height); flip; filter."""
SOURCE = np.dtype(
    [
        ("bytes", np.uint64),
        ("num_bytes", np.int64),
        ("width", np.int32),
        ("height", np.int32),
        ("first_view", np.int32),
        ("num_views", np.int32),
        ("status", np.int32),
        ("unused", np.int32),
    ]
)
"""struct source: address and length of an image; width and height for ``measure``; its views; status 0: done."""
FILTERS = {"box": 0, "bilinear": 1, "bicubic": 2}

# Pillow's own, in the order of struct jpeg_library: what views need, and what rewriting needs too.
_JPEG_FUNCTIONS = (
    "jpeg_std_error",
    "jpeg_CreateDecompress",
    "jpeg_mem_src",
    "jpeg_read_header",
    "jpeg_start_decompress",
    "jpeg_crop_scanline",
    "jpeg_skip_scanlines",
    "jpeg_read_scanlines",
    "jpeg_abort_decompress",
    "jpeg_destroy_decompress",
)
_REWRITING_FUNCTIONS = (
    "jpeg_save_markers",
    "jpeg_read_coefficients",
    "jpeg_CreateCompress",
    "jpeg_copy_critical_parameters",
    "jpeg_write_coefficients",
    "jpeg_write_marker",
    "jpeg_finish_compress",
    "jpeg_destroy_compress",
)


class Kernel:
    """The part that makes pixels; ``can_rewrite`` where Pillow's libjpeg has what that needs."""

    def __init__(self, library: ctypes.CDLL, *, can_rewrite: bool = False, counts_units: bool = False) -> None:
        self.can_rewrite = can_rewrite
        self.counts_units = counts_units
        self._rewrite = library.teachonce_rewrite
        self._rewrite.restype = ctypes.c_int64
        self._rewrite.argtypes = [
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int32,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_int64,
        ]
        self._render = library.teachonce_render
        self._render.restype = None
        self._render.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64]
        self._measure = library.teachonce_measure
        self._measure.restype = None
        self._measure.argtypes = [ctypes.c_void_p, ctypes.c_int64]

    def render(self, sources: NDArray[Any], views: NDArray[Any]) -> None:
        """Fill the outputs of ``views`` (VIEW) from ``sources`` (SOURCE), and each source's status.

        The addresses must be good while this runs; nothing else can go wrong: what is not in order keeps a status.
        """
        assert sources.dtype == SOURCE and views.dtype == VIEW
        assert sources.flags.c_contiguous and views.flags.c_contiguous
        self._render(sources.ctypes.data, len(sources), views.ctypes.data, MAX_PIXELS)

    def measure(self, sources: NDArray[Any]) -> None:
        """Fill width and height of images from their headers, and each source's status."""
        assert sources.dtype == SOURCE and sources.flags.c_contiguous
        self._measure(sources.ctypes.data, len(sources))

    def rewrite(self, encoded: bytes | memoryview, *, by_row: bool) -> bytes | None:
        """A JPEG with restart markers, one a row of its units with ``by_row``; None where it is not changed."""
        assert self.can_rewrite
        try:
            image_size(encoded)
        except ImageError:
            return None  # a file that Pillow refuses must not become one that it reads
        # What would grow to more than twice its size is not worth it; a header takes a few hundred bytes.
        out = np.empty(2 * len(encoded) + 4096, np.uint8)
        address = addresses([encoded])[0]
        written = self._rewrite(int(address), len(encoded), by_row, MAX_PIXELS, out.ctypes.data, len(out))
        return out[:written].tobytes() if written else None


def load_kernel() -> Kernel | None:
    """What makes views natively; None where nothing does that gives Pillow's pixels (``describe_decoder`` says why)."""
    return _load_kernel()[0]


def describe_decoder() -> str:
    """What makes pixels here, for manifests: "native, libjpeg-turbo 3.1.2", or "pillow (why not native)"."""
    kernel, reason = _load_kernel()
    version = features.version_feature("libjpeg_turbo") or "libjpeg"
    return f"native, libjpeg-turbo {version}" if kernel is not None else f"pillow ({reason})"


@functools.cache
def _load_kernel() -> tuple[Kernel | None, str]:
    library = load_library()
    if library is None:
        return None, "switched off" if is_switched_off() else "the kernel was not built"
    kernel, reason = bind_kernel(library)
    if kernel is None:
        warn_of_slowness(reason)
    return kernel, reason


def bind_kernel(library: ctypes.CDLL, counting: Sequence[bool] = (False,)) -> tuple[Kernel | None, str]:
    """The kernel of a library, once it has been given Pillow's libjpeg and proved itself; else None, and why.

    ``counting``, in turn until one holds: whether it counts the units between restart markers itself, which is faster
    and relies on more of libjpeg-turbo than its interface (``native/decoding.c``). Off: in some damaged files
    its pixels are not Pillow's.
    """
    version = features.version_feature("libjpeg_turbo")
    if version is None or tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_LIBJPEG_TURBO:
        return None, f"Pillow's libjpeg-turbo is {version or 'another libjpeg'}, 2.1 or newer is needed"
    try:
        pillow = ctypes.CDLL(Image.core.__file__)
        functions = [_find(pillow, name) for name in _JPEG_FUNCTIONS]
    except OSError as error:
        return None, f"{type(error).__name__} while binding Pillow's libjpeg"
    if not all(functions):
        return None, "Pillow's libjpeg lacks functions"
    if not hasattr(library, "teachonce_rewrite"):
        return None, "the kernel was built from other sources; reinstall"
    rewriting = [_find(pillow, name) for name in _REWRITING_FUNCTIONS]
    functions += rewriting
    pointers = (ctypes.c_void_p * len(functions))(*functions)
    for counts_units in counting:
        if library.teachonce_bind(pointers, ctypes.c_int32(counts_units)) != LAYOUT_VERSION:
            return None, "Pillow's libjpeg has an incompatible interface"
        kernel = Kernel(library, can_rewrite=all(rewriting), counts_units=counts_units)
        if _gives_pillows_pixels(kernel):
            return kernel, ""
    return None, "the kernel's results differ from Pillow's on this machine"


def _find(library: ctypes.CDLL, name: str) -> int | None:
    """The address of a function; None where there is none."""
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value if hasattr(library, name) else None


_PROBES: tuple[dict[str, Any], ...] = (
    {"subsampling": "4:2:0"},
    {"subsampling": "4:2:0", "restart_marker_blocks": 5},
    {"subsampling": "4:2:2", "progressive": True},
)


def _gives_pillows_pixels(kernel: Kernel) -> bool:
    """Small JPEGs with subsampled chroma of each kind that is decoded here, through boxes that grow and shrink."""
    waves = np.sin(np.arange(96)[:, None, None] * np.arange(70)[None, :, None] / (37.0 + 11 * np.arange(3)))
    drawn = Image.fromarray(np.rint(127 + 127 * waves).astype(np.uint8))
    return all(_is_pillows(kernel, drawn, options) for options in _PROBES)


def _is_pillows(kernel: Kernel, drawn: Image.Image, options: Mapping[str, Any]) -> bool:
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=90, **options)
    encoded = buffer.getvalue()
    with Image.open(io.BytesIO(encoded)) as image:
        for box in ((0, 0, 70, 96), (23, 41, 31, 49), (5, 3, 70, 80)):
            out = np.zeros((24, 32, 3), np.uint8)
            views = np.array([(out.ctypes.data, box, (32, 24), (0, 0, 32, 24), 0, FILTERS["bilinear"])], VIEW)
            sources = np.zeros(1, SOURCE)
            sources["bytes"], sources["num_bytes"], sources["num_views"] = addresses([encoded]), len(encoded), 1
            kernel.render(sources, views)
            if sources["status"][0] != 0 or not np.array_equal(out, resize_image(image, 32, 24, box=box)):
                return False
    return True
