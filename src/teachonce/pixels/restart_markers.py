"""Restart markers in JPEGs, put in without loss, so that a crop is decoded from its own part of the file alone.

The native library rewrites an image with Pillow's libjpeg (``native/rewrite.c``): the same coefficients, quantization
and metadata, as a baseline JPEG with Huffman tables of its own and a marker every few units of 8 or 16 pixels. Any
reader gets the same pixels; the kernel enters the file at the markers (``native/segments.c``). What was written is read
back and compared before it is given out. About 5 ms a photograph, whose file grows by 1 %.

Only 8-bit grayscale and color JPEGs without damage are rewritten, progressive ones too; others are not changed.
"""

from __future__ import annotations

from teachonce.errors import ConfigError
from teachonce.pixels.decode import Encoded
from teachonce.pixels.kernel import describe_decoder, load_kernel


def require_rewriter(option: str) -> None:
    """Raise ConfigError where nothing can rewrite images here; ``option`` begins the message."""
    kernel = load_kernel()
    if kernel is None or not kernel.can_rewrite:
        why = describe_decoder() if kernel is None else "Pillow's libjpeg does not give access to coefficients"
        raise ConfigError(
            f"{option}: needs the native library, found {why}; install teachonce with a C compiler and with "
            "Pillow's own wheel, or omit restart markers"
        )


def add_restart_markers(encoded: Encoded, *, by_row: bool) -> bytes | None:
    """The JPEG with a marker a row of units, or without ``by_row`` several a row; None: it is not changed.

    Between two markers are as many units as the largest divisor of a row's units from 4 to 8 says; a row that has none
    gets one marker. ``require_rewriter`` was asked before.
    """
    kernel = load_kernel()
    assert kernel is not None
    return kernel.rewrite(encoded, by_row=by_row) if encoded[:2] == b"\xff\xd8" else None
