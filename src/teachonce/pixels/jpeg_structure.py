"""JPEGs that are sure to decode, recognized by their structure: no coefficient is read, no pixel is made.

Checking an image by decoding it takes about a millisecond, ten times as long as copying it. What libjpeg refuses is
little: a file that ends too early, a header that contradicts itself, a Huffman table that is not a prefix code. Damaged
coefficients it repairs with an unseen warning, so decoding finds no more than that either. Here the same is read
off the structure, for the JPEGs that are nearly all of every dataset: sequential, Huffman-coded, one scan, one or
three components. Of any other (progressive, restart markers, bytes after the end, an odd table) nothing is said, and
the caller decodes it.

So this only skips work whose result is known: what is called sound here, the decoder accepts (``check_jpeg``), which
tests/pixels/test_jpeg_structure.py holds with damage of every kind. The rules are those of ITU-T T.81 annex B
(segments) and C.2 (Huffman codes; no code may consist of ones alone).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from teachonce.errors import ImageError
from teachonce.pixels.decode import MAX_PIXELS, image_size

START, END = b"\xff\xd8", b"\xff\xd9"
MAX_JPEG_SIDE_PX = 65_500
"""libjpeg's limit; the format would allow 35 more."""

_SEQUENTIAL = (0xC0, 0xC1)
_HUFFMAN, _SCAN, _QUANTIZATION, _COMMENT, _APP0, _APP15 = 0xC4, 0xDA, 0xDB, 0xFE, 0xE0, 0xEF
_QUANTIZATION_BYTES = 65
# Of 2^16 codes of 16 bits, a code of length i + 1 takes so many.
_CODE_SHARES = tuple(1 << (15 - index) for index in range(16))


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a scan needs: (width, height) in pixels, component ids in order, a bit for each quantization table."""

    size: tuple[int, int]
    ids: bytes
    quantization: int


def sound_jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels of a grayscale or RGB JPEG that all decoders accept; None where only decoding can
    tell."""
    num_bytes = len(encoded)
    if encoded[:2] != START or encoded[-2:] != END:
        return None
    position = 2
    frame: _Frame | None = None
    quantization = huffman = 0  # a bit for each table that is defined
    is_header_plain = True
    # Every step leaves four bytes, marker and length.
    while position + 4 <= num_bytes and encoded[position] == 0xFF:
        marker = encoded[position + 1]
        end = position + 2 + (encoded[position + 2] << 8 | encoded[position + 3])
        segment = encoded[position + 4 : end]
        if end < position + 4 or end > num_bytes:
            return None
        if marker == _HUFFMAN:
            tables = _read_huffman(segment)
            if not tables:
                return None
            huffman |= tables
        elif marker == _QUANTIZATION:
            tables = _read_quantization(segment)
            if not tables:
                return None
            quantization |= tables
        elif marker in _SEQUENTIAL:
            if frame is not None:
                return None
            frame = _read_frame(segment)
            if frame is None:
                return None
        elif marker == _SCAN:
            if frame is None or not _is_whole_scan(segment, frame, quantization, huffman):
                return None
            if not _is_plain_data(encoded, end) or not (is_header_plain or _opens(encoded)):
                return None
            return frame.size
        elif _APP0 <= marker <= _APP15:
            is_header_plain = is_header_plain and not _is_read_by_pillow(marker, segment)
        elif marker != _COMMENT:
            return None
        position = end
    return None


def _read_frame(segment: bytes) -> _Frame | None:
    """Of 8 bits a sample, one component or three, the first at most twice as fine as the others in each direction."""
    if len(segment) < 9 or segment[0] != 8 or segment[5] not in (1, 3) or len(segment) != 6 + 3 * segment[5]:
        return None
    height, width = segment[1] << 8 | segment[2], segment[3] << 8 | segment[4]
    if not (0 < width <= MAX_JPEG_SIDE_PX and 0 < height <= MAX_JPEG_SIDE_PX and width * height <= MAX_PIXELS):
        return None
    ids, samplings, tables = segment[6::3], segment[7::3], segment[8::3]
    if len(set(ids)) != len(ids) or samplings[0] not in (0x11, 0x12, 0x21, 0x22) or max(tables) > 3:
        return None
    if samplings[1:] != b"\x11" * (len(ids) - 1):
        return None
    quantization = 0
    for table in tables:
        quantization |= 1 << table
    return _Frame((width, height), ids, quantization)


def _read_quantization(segment: bytes) -> int:
    """A bit for each table of a segment of tables of 8 bits; 0 where it holds anything else."""
    tables = 0
    if len(segment) % _QUANTIZATION_BYTES:
        return 0
    for index in segment[::_QUANTIZATION_BYTES]:
        if index > 3:
            return 0
        tables |= 1 << index
    return tables


@lru_cache(256)  # most encoders use the tables of T.81 annex K, the others make their own for each image
def _read_huffman(segment: bytes) -> int:
    """A bit for each table of a segment: 0 to 3 for DC, 16 to 19 for AC; 0 where one of them is no prefix code."""
    tables = position = 0
    while position < len(segment):
        kind = segment[position]
        counts = segment[position + 1 : position + 17]
        num_symbols = sum(counts)
        end = position + 17 + num_symbols
        if kind & 0xEC or len(counts) < 16 or num_symbols > 256 or end > len(segment):
            return 0
        # Only if some code is left over is the one of ones alone free, at every length.
        if sum(map(int.__mul__, counts, _CODE_SHARES)) >= 1 << 16:
            return 0
        if kind < 0x10 and num_symbols and max(segment[position + 17 : end]) > 15:
            return 0
        tables |= 1 << kind
        position = end
    return tables


def _is_whole_scan(segment: bytes, frame: _Frame, quantization: int, huffman: int) -> bool:
    """Whether a scan's header takes all components, all coefficients, and tables that are there."""
    count = len(frame.ids)
    if segment[:1] != bytes((count,)) or segment[1 : 1 + 2 * count : 2] != frame.ids:
        return False
    if segment[1 + 2 * count :] != b"\x00\x3f\x00" or frame.quantization & ~quantization:
        return False
    return all(
        table & 0xCC == 0 and huffman >> (table >> 4) & 1 and huffman >> (16 + (table & 15)) & 1
        for table in segment[2 : 2 + 2 * count : 2]
    )


def _is_plain_data(encoded: bytes, start: int) -> bool:
    """Whether from ``start`` on there are coded coefficients up to the marker of the end, and no other marker."""
    data = np.frombuffer(encoded, np.uint8)[start:]
    if len(data) < 2:
        return False
    # Two passes over all bytes: collecting the few bytes of ones first takes half as long again.
    return not ((data[:-2] == 0xFF) & (data[1:-1] != 0)).any()


def _is_read_by_pillow(marker: int, segment: bytes) -> bool:
    """Whether Pillow parses this application segment in a way that damage there would be an error."""
    if marker == 0xE0:
        return len(segment) < 7 and segment.startswith(b"JFIF")
    if marker == 0xE2:
        return len(segment) < 14 and segment.startswith(b"ICC_PROFILE")
    return marker == 0xED or (marker == 0xEE and len(segment) < 7 and segment.startswith(b"Adobe"))


def _opens(encoded: bytes) -> bool:
    try:
        image_size(encoded)
    except ImageError:
        return False
    return True
