"""JPEGs told sound without decoding: only such that the decoder accepts, whatever was done to them."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from teachonce.errors import ImageError
from teachonce.pixels.decode import MAX_PIXELS, check_jpeg, decode_image
from teachonce.pixels.jpeg_structure import sound_jpeg_size
from tests.support.small_data import encode_jpeg

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 44, 3), np.uint8))


def encode(image: Image.Image = PICTURE, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def find_segment(encoded: bytes, marker: int) -> int:
    return encoded.index(bytes((0xFF, marker)))


SOUND = {
    "4:2:0": encode(subsampling=2),
    "4:2:2": encode(subsampling=1),
    "4:4:4": encode(subsampling=0),
    "own tables": encode(optimize=True, quality=30),
    "grey": encode(PICTURE.convert("L")),
    "comment, exif, profile": encode(comment=b"\xff\xd9 not the end", exif=Image.Exif(), icc_profile=b"x" * 70_000),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_encoders_write_is_sound_and_has_its_size(name):
    assert sound_jpeg_size(SOUND[name]) == (44, 30) == check_jpeg(SOUND[name])


@pytest.mark.parametrize(
    "encoded",
    [
        encode(progressive=True),
        encode(PICTURE.convert("CMYK")),
        encode(restart_marker_blocks=1),
        SOUND["4:2:0"] + b"\n",
        SOUND["4:2:0"].replace(b"\xff\xdb", b"\xff\xff\xdb", 1),  # a fill byte
    ],
    ids=["progressive", "cmyk", "restart markers", "bytes after the end", "fill byte"],
)
def test_of_rarer_ones_nothing_is_said_though_they_decode(encoded):
    assert sound_jpeg_size(encoded) is None
    assert check_jpeg(encoded) == (44, 30)


@pytest.mark.parametrize("cut", [*range(1, 40), 200, 400, 620])
def test_a_truncated_one_is_never_sound(cut):
    encoded = SOUND["4:2:0"]
    assert sound_jpeg_size(encoded[:-cut]) is None
    assert sound_jpeg_size(encoded[:cut]) is None


def test_nothing_at_all():
    for encoded in (b"", b"\xff\xd8", b"\xff\xd9", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xda\x00\x02\xff\xd9"):
        assert sound_jpeg_size(encoded) is None


def change(encoded: bytes, at: int, new: bytes) -> bytes:
    return encoded[:at] + new + encoded[at + len(new) :]


@pytest.mark.parametrize(
    ("marker", "offset", "new"),
    [
        (0xC4, 4, b"\x04"),  # a table of number 4
        (0xC4, 5, b"\x02"),  # two codes of one bit: nothing is left for longer ones
        (0xC4, 5, b"\x01\x03"),  # one code of one bit and three of two
        (0xC4, 21, b"\x10"),  # a DC difference of 16 bits
        (0xC4, 4, b"\x03"),  # defined as another table than the scan uses
        (0xDB, 4, b"\x04"),
        (0xDB, 4, b"\x01"),  # the luma's quantization is missing
        (0xC0, 4, b"\x0c"),  # 12 bits a sample
        (0xC0, 5, b"\x00\x00"),  # no lines
        (0xC0, 9, b"\x04"),
        (0xC0, 11, b"\x31"),
        (0xDA, 5, b"\x07"),  # a component that the frame does not have
        (0xDA, 6, b"\x33"),  # with tables that are not there
    ],
)
def test_headers_that_contradict_themselves(marker, offset, new):
    encoded = SOUND["4:2:0"]
    damaged = change(encoded, find_segment(encoded, marker) + offset, new)
    assert damaged != encoded and len(damaged) == len(encoded)
    assert sound_jpeg_size(damaged) is None


def test_too_many_pixels_are_left_to_the_decoder_which_refuses_them():
    encoded = SOUND["4:2:0"]
    at = find_segment(encoded, 0xC0) + 5
    assert sound_jpeg_size(change(encoded, at, (9000).to_bytes(2, "big") * 2)) == (9000, 9000)
    bomb = change(encoded, at, (30_000).to_bytes(2, "big") * 2)
    assert MAX_PIXELS < 30_000**2 and sound_jpeg_size(bomb) is None
    with pytest.raises(ImageError, match="30000 x 30000"):
        check_jpeg(bomb)


def test_a_segment_that_pillow_trips_over_is_not_sound():
    damaged = SOUND["4:2:0"][:2] + b"\xff\xed\x00\x16Photoshop 3.0\x008BIM\x03\xed" + SOUND["4:2:0"][2:]
    with pytest.raises(ImageError, match="no readable header"):
        check_jpeg(damaged)
    assert sound_jpeg_size(damaged) is None


EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["set", "delete", "insert", "end"]),
        st.one_of(st.sampled_from([b"\xff", b"\x00", b"\xff\xd9", b"\xff\xd0", b"\xff\xc4"]), st.binary(max_size=9)),
    ),
    min_size=1,
    max_size=6,
)


def damage(encoded: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    for where, kind, new in edits:
        # Half of the places in the header, which is where the rules are.
        at = int(where * 2 * min(len(encoded), 640)) if where < 0.5 else int((where - 0.5) * 2 * len(encoded))
        if kind == "set":
            encoded = change(encoded, at, new)
        elif kind == "delete":
            encoded = encoded[:at] + encoded[at + len(new) :]
        elif kind == "insert":
            encoded = encoded[:at] + new + encoded[at:]
        else:
            encoded = encoded[:at] + b"\xff\xd9"
    return encoded


@settings(max_examples=1500)
@given(st.sampled_from(sorted(SOUND)), EDITS)
@example("4:2:0", [(0.99, "set", b"\xff\xe1")])
@example("4:2:0", [(0.99, "end", b"")])
def test_what_is_said_to_be_sound_decodes_whatever_was_done_to_it(name, edits):
    encoded = damage(SOUND[name], edits)
    size = sound_jpeg_size(encoded)
    if size is not None:
        assert check_jpeg(encoded) == size
        assert decode_image(encoded).size == size


def test_damaged_coefficients_pass_here_as_they_pass_the_decoder():
    """libjpeg mends them with a warning; that they went through is no worse than before."""
    encoded = encode_jpeg(1, 200, 150)
    start = find_segment(encoded, 0xDA) + 20
    damaged = change(encoded, start + 100, bytes(50))
    assert sound_jpeg_size(damaged) == (200, 150) == check_jpeg(damaged)


def test_real_images_need_no_decoding(imagenet_sample: Path):
    images = [path.read_bytes() for path in sorted(imagenet_sample.rglob("*.JPEG"))]
    assert [sound_jpeg_size(encoded) for encoded in images] == [check_jpeg(encoded) for encoded in images]
