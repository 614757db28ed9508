"""Encoded images: how they become pixels, and what is refused.

The one place where image bytes are opened, so that the decoder can be swapped here and nowhere else. Pillow decodes:
libjpeg-turbo's accurate integer DCT and smooth chroma upsampling, the pixels that torchvision's and timm's own
evaluation see. The format is found from the content, never from a file name (ILSVRC has a PNG named .JPEG), and only
JPEG, PNG, WebP, BMP and PPM are opened: Pillow's other plug-ins include ones that run programs.

Deliberate choices, each as TensorFlow's decoders and the walkthrough do it: the EXIF orientation is ignored, because
labels, boxes and the published accuracies belong to the pixels as stored; alpha is dropped, not blended; of 16 bits
the upper 8 are kept. The size is read from the header and judged before any pixel is decoded.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, WebPImagePlugin

from teachonce.errors import ImageError
from teachonce.records.source import Record

MAX_PIXELS = 89_478_485
"""Width x height above which an image is refused: 256 MiB as RGB. It is where Pillow begins to warn; the largest image
of ILSVRC-2012 has 61 million."""

MAX_SCANS = 100
"""Scans above which a JPEG is refused: each costs a pass over all blocks (18 ms of a large photograph) and may take 11
bytes, so that a small file could cost minutes. libjpeg's own progressive images have 10 scans, optimizers' about 20.
zune-jpeg's limit is 100 too; libjpeg-turbo's fuzzers stop at 500, which would be 9 seconds."""

Encoded = bytes | memoryview
"""An image as it is stored."""

_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd8\x01]", re.DOTALL)
_ORIENTATION_TAG = 0x0112

_PLAIN_MODES = ("RGB", "L")
"""Pillow's modes of the JPEGs that every reader decodes to RGB."""

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "tf1_bilinear"]
"""Pillow's filters by name, and TensorFlow 1's bilinear (no half-pixel centers, see ``resize_image``)."""

_PILLOW_FILTERS = {
    name: getattr(Image.Resampling, name.upper()) for name in get_args(Interpolation) if name != "tf1_bilinear"
}

# What Pillow's plug-ins raise on damaged input: mostly the first three, which tests/pixels/test_decode.py provokes; the
# others have been seen in some version or come from the modules that they call.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class _JpegFile(JpegImagePlugin.JpegImageFile):
    """A JPEG whose EXIF block stays unread: broken ones are common, would only warn, and say nothing we use."""

    def _read_dpi_from_exif(self) -> None:
        pass


def decode_image(encoded: Encoded) -> Image.Image:
    """The image as RGB, 8 bits a channel; grayscale, palette, CMYK, alpha and 16-bit images are converted.

    Raises ImageError for bytes that are no image, for a truncated or damaged one, and for one of more than MAX_PIXELS
    pixels; the caller adds where the bytes came from.
    """
    image = _open_image(encoded)
    _check_scans(image, encoded)
    try:
        image.load()
        return _to_rgb(image)
    except _DECODER_ERRORS as error:
        raise _damaged(image, image.size, encoded, error) from error


def decode_record(record: Record) -> Image.Image:
    """The record's image, RGB; raises ImageError with the record's place."""
    try:
        return decode_image(record.encoded)
    except ImageError as error:
        raise error.at(record.where) from error


def image_size(encoded: Encoded) -> tuple[int, int]:
    """(width, height) in pixels from the header alone; raises ImageError as ``decode_image`` does for the header."""
    return _open_image(encoded).size


def exif_orientation(encoded: Encoded) -> int:
    """1 to 8, how viewers turn the image (1: not at all), as its EXIF block says; 1 where that is absent or broken."""
    try:
        found = _open_image(encoded).getexif().get(_ORIENTATION_TAG, 1)
    except _DECODER_ERRORS:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def check_end(encoded: Encoded) -> None:
    """Raise ImageError for a JPEG or PNG whose end is missing, as after a copy that was cut short.

    Of a JPEG the end marker is looked for behind the header of its first scan (ITU-T T.81, B.2.1), in whose data it
    cannot stand; a PNG without its last chunk at the end is decoded. Damage in between is found by ``check_image``.
    """
    content = bytes(encoded)
    if content.startswith(b"\xff\xd8"):
        at = 2
        while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] != b"\xda":
            # Fill bytes stand between segments; a segment's length follows its marker.
            is_fill = content[at + 1 : at + 2] == b"\xff"
            at += 1 if is_fill else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        is_complete = content.find(b"\xff\xd9", at) >= 0
        if not is_complete:
            raise ImageError(f"truncated: {len(content):,} bytes without the end of the image")
    elif content.startswith(b"\x89PNG") and b"IEND" not in content[-64:]:
        # More may follow the end, or pixels be complete without it.
        decode_image(content)


def check_jpeg(encoded: Encoded) -> tuple[int, int]:
    """(width, height) of a JPEG that holds all its pixels; raises ImageError as ``decode_image`` does.

    Every coefficient is read, the pixels are made at an eighth of the size: two thirds of the time of decoding.
    """
    image = _open_image(encoded)
    size = image.size
    _check_scans(image, encoded)
    try:
        image.draft(None, (1, 1))
        image.load()
    except _DECODER_ERRORS as error:
        raise _damaged(image, size, encoded, error) from error
    return size


class CheckedImage(NamedTuple):
    """What an image is that was checked down to its last byte."""

    format: str
    """JPEG, PNG, WEBP, BMP or PPM."""
    size: tuple[int, int]
    """(width, height) in pixels."""
    is_plain: bool
    """Whether it is a JPEG in RGB or grayscale."""


def check_image(encoded: Encoded) -> CheckedImage:
    """What an image of any kind is that holds all its pixels; raises ImageError as ``decode_image`` does.

    A JPEG in RGB or grayscale is checked as by ``check_jpeg``, any other image decoded as it will be by readers.
    """
    image = _open_image(encoded)
    assert image.format is not None
    is_plain = image.format == "JPEG" and image.mode in _PLAIN_MODES
    size = check_jpeg(encoded) if is_plain else decode_image(encoded).size
    return CheckedImage(image.format, size, is_plain)


def to_rgb_jpeg(encoded: bytes) -> bytes:
    """The image as a JPEG that every reader decodes to RGB: JPEG in RGB or grayscale unchanged, all else encoded again.

    A re-encoded image (PNG, CMYK, ...) has quality 100 and full chroma resolution. Of an unchanged one only the header
    is read: what is truncated further down passes here and is found by ``decode_image``.
    """
    image = _open_image(encoded)
    if image.format == "JPEG" and image.mode in _PLAIN_MODES:
        return encoded
    buffer = io.BytesIO()
    decode_image(encoded).save(buffer, "JPEG", quality=100, subsampling=0)
    return buffer.getvalue()


def resize_image(
    image: Image.Image,
    width: int,
    height: int,
    *,
    box: tuple[int, int, int, int] | None = None,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Pixels [height, width, 3] of the image, or of its ``box`` (left, top, right, bottom) cut out first.

    With ``antialias``: Pillow's resize, rounded to uint8, columns first and then rows, whatever the proportions: so did
    Pillow itself (and with it torchvision) until version 12; version 13 takes the rows first where the height shrinks
    much more than the width, with other rounding, and pixels must not depend on a version.
    Without (``bilinear`` and ``tf1_bilinear`` only): two by two pixels are mixed however much the image shrinks, as
    float32 in 0..255, the same bits as TensorFlow. ``bilinear`` is ``tf.image.resize`` (half-pixel centers),
    ``tf1_bilinear`` is TensorFlow 1's ``tf.image.resize_bilinear``: output pixel i looks at i * scale instead of
    (i + 0.5) * scale - 0.5, which shifts the picture up and left by up to half an input pixel times the scale.
    """
    if box is not None and box != (0, 0, *image.size):
        image = image.crop(box)
    if antialias or interpolation == "nearest":
        for size in ((width, image.height), (width, height)):
            if image.size != size:
                image = image.resize(size, _PILLOW_FILTERS[interpolation])
        return np.array(image)
    assert interpolation in ("bilinear", "tf1_bilinear"), interpolation
    return _resize_plain_bilinear(np.asarray(image), width, height, half_pixel=interpolation == "bilinear")


def _resize_plain_bilinear(
    pixels: NDArray[np.uint8], width: int, height: int, *, half_pixel: bool
) -> NDArray[np.float32]:
    top_rows, bottom_rows, row_weights = _neighbors(pixels.shape[0], height, half_pixel)
    left_columns, right_columns, column_weights = _neighbors(pixels.shape[1], width, half_pixel)

    def mix_columns(rows: NDArray[np.intp]) -> NDArray[np.float32]:
        lines = pixels[rows]
        left = lines[:, left_columns].astype(np.float32)
        right = lines[:, right_columns].astype(np.float32)
        return left + (right - left) * column_weights[:, None]

    top = mix_columns(top_rows)
    return top + (mix_columns(bottom_rows) - top) * row_weights[:, None, None]


def _neighbors(
    num_in: int, num_out: int, half_pixel: bool
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    # float32 throughout, as in TensorFlow's kernel: the same rounding gives the same bits.
    scale = np.float32(num_in) / np.float32(num_out)
    position = np.arange(num_out, dtype=np.float32)
    position = (position + np.float32(0.5)) * scale - np.float32(0.5) if half_pixel else position * scale
    floor = np.floor(position)
    first = floor.astype(np.intp)
    return first.clip(0, num_in - 1), (first + 1).clip(0, num_in - 1), position - floor


def _open_image(encoded: Encoded) -> ImageFile.ImageFile:
    """The opened image, header read and size judged, no pixel decoded.

    The plug-in is called directly: ``Image.open`` warns of large images instead of leaving the decision to us.
    """
    plugin = _find_plugin(encoded)
    try:
        image = plugin(io.BytesIO(encoded))
    except _DECODER_ERRORS as error:
        name = plugin.format
        raise ImageError(
            f"{len(encoded)} bytes that start like a {name} but have no readable header ({error}); replace it or "
            "remove it"
        ) from error
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"a {image.format} image of {width} x {height} pixels, which is empty; remove it")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"a {image.format} image of {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed; "
            "scale it down or remove it"
        )
    return image


def _check_scans(image: ImageFile.ImageFile, encoded: Encoded) -> None:
    content = bytes(encoded) if image.format == "JPEG" else b""
    # Every scan has this marker. It may occur elsewhere too, in metadata, so only many of them are worth a closer
    # check.
    if content.count(_SCAN) <= MAX_SCANS:
        return
    num_scans = count_scans(content)
    if num_scans > MAX_SCANS:
        width, height = image.size
        raise ImageError(
            f"a JPEG image of {width} x {height} pixels in {num_scans} scans, more than the {MAX_SCANS} allowed; "
            "save it again or remove it"
        )


def count_scans(encoded: bytes) -> int:
    """Scans of a JPEG, up to its end or to where no marker follows."""
    num_scans, at = 0, 2
    # Markers are 0xFF and neither 0 nor 0xFF, which fills; those of 0xD0 to 0xD7, restarts, are within a scan.
    while match := _MARKER.search(encoded, at):
        at, marker = match.end(), match[0][1:]
        if marker == b"\xd9":
            break
        num_scans += marker == _SCAN[1:]
        at += int.from_bytes(encoded[at : at + 2], "big")
    return num_scans


def _find_plugin(encoded: Encoded) -> type[ImageFile.ImageFile]:
    head = bytes(encoded[:16])
    if head.startswith(b"\xff\xd8\xff"):
        return _JpegFile
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if head.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    if head[:1] == b"P" and head[1:2] in b"23456" and head[2:3] in b" \t\r\n":
        return PpmImagePlugin.PpmImageFile
    found = f"{len(encoded)} bytes that begin with {head[:8]!r}" if encoded else "0 bytes"
    raise ImageError(f"{found}: expected a JPEG, PNG, WebP, BMP or PPM image; replace it or remove it")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        # A plain Image instead of a file's: it pickles, and releases the encoded bytes.
        return image.copy()
    if image.mode.startswith("I"):
        # 16-bit grayscale (mode I;16, or I in older Pillow): Pillow's own conversion clips at 255 instead of scaling.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P":
        # Straight to RGB, Pillow warns of palettes with an alpha table.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _damaged(image: ImageFile.ImageFile, size: tuple[int, int], encoded: Encoded, error: Exception) -> ImageError:
    width, height = size
    return ImageError(
        f"a {image.format} image of {width} x {height} pixels cannot be decoded from its {len(encoded)} bytes "
        f"({error}); replace it or remove it"
    )
