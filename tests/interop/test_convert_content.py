"""What is in the records: images encoded again or kept as they are, and bounding boxes."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from teachonce.errors import ConfigError, ImageError, PlanMismatchError
from teachonce.pixels.decode import decode_image
from teachonce.records.discovery import open_records
from tests.support.raw_images import CLASSES, encode, examples_of, run, shards_of, write
from tests.support.small_data import encode_jpeg, write_store


def test_pngs_and_cmyk_become_rgb_jpegs_whatever_their_name(images: Path, out: Path, capsys: Any) -> None:
    picture = decode_image(encode_jpeg(7))
    folder = images / "train" / CLASSES[0]
    originals = {
        "png.JPEG": encode(picture, "PNG"),
        "cmyk.JPEG": encode(picture.convert("CMYK"), "JPEG"),
        "alpha.png": encode(picture.convert("RGBA"), "PNG"),
        "grey.JPEG": encode(picture.convert("L"), "JPEG"),
    }
    for name, content in originals.items():
        write(folder / name, content)
    run(images, out)
    examples = examples_of(out)
    for name, content in originals.items():
        example = examples[name]
        encoded = example["image/encoded"][0]
        stored = Image.open(io.BytesIO(encoded))
        assert (stored.format, stored.size) == ("JPEG", (40, 30))
        assert (example["image/width"][0], example["image/height"][0]) == (40, 30)
        assert example["image/channels"][0] == 3 and example["image/colorspace"] == [b"RGB"]
        if name == "grey.JPEG":
            assert encoded == content and stored.mode == "L"
            assert decode_image(encoded).mode == "RGB"
        else:
            assert stored.mode == "RGB"
            # Quality 100 without chroma subsampling is within a few gray levels of the original.
            difference = np.asarray(decode_image(encoded), int) - np.asarray(decode_image(content), int)
            assert abs(difference).max() <= 6
    assert "3 images were not RGB or grayscale JPEGs" in capsys.readouterr().err


def encode_png16(samples: np.ndarray, color_type: int) -> bytes:
    """A PNG of 16 bits a sample, which Pillow writes in gray only."""
    rows = samples.astype(">u2").reshape(len(samples), -1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", samples.shape[1], len(samples), 16, color_type, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND": b"",
    }
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encode_cmyk(*, as_ycck: bool = False) -> bytes:
    """A JPEG in CMYK with four different channels; Adobe's marker says so, or that the same numbers are YCCK."""
    ramp = Image.fromarray(np.linspace(0, 255, 1200).reshape(30, 40).astype(np.uint8))
    black = Image.fromarray(np.linspace(0, 90, 1200).reshape(30, 40).astype(np.uint8))
    picture = Image.merge("CMYK", [ramp, ramp.rotate(90), ramp.rotate(180), black])
    encoded = bytearray(encode(picture, "JPEG", quality=95, subsampling=0))
    transform = encoded.index(b"Adobe") + 11
    assert encoded[transform] == 0
    encoded[transform] = 2 if as_ycck else 0
    return bytes(encoded)


def make_images() -> dict[str, bytes]:
    """An image of each kind that is no JPEG in RGB or grayscale, by file name; the ending says the true format."""
    picture = decode_image(encode_jpeg(7))
    alpha = Image.fromarray(np.arange(1200).reshape(30, 40).astype(np.uint8))
    palette = picture.quantize(64)
    samples = np.random.default_rng(0).integers(0, 1 << 16, (30, 40, 4))
    return {
        "rgb.png": encode(picture, "PNG"),
        "palette.png": encode(palette, "PNG"),
        "palette_transparent.png": encode(palette, "PNG", transparency=3),
        "gray.png": encode(picture.convert("L"), "PNG"),
        "bits.png": encode(picture.convert("1"), "PNG"),
        "alpha.png": encode(Image.merge("RGBA", [*picture.split(), alpha]), "PNG"),
        "gray_alpha.png": encode(Image.merge("LA", [picture.convert("L"), alpha]), "PNG"),
        "gray16.png": encode_png16(samples[..., 0], 0),
        "rgb16.png": encode_png16(samples[..., :3], 2),
        "alpha16.png": encode_png16(samples, 6),
        "cmyk.jpeg": encode_cmyk(),
        "ycck.jpeg": encode_cmyk(as_ycck=True),
        "rgb.webp": encode(picture, "WEBP", lossless=True),
        "rgb.bmp": encode(picture, "BMP"),
        "rgb.ppm": encode(picture, "PPM"),
    }


@pytest.fixture
def mixed_images(images: Path) -> Path:
    """``images``, and one of each kind of ``make_images`` under the name NAME.FORMAT.JPEG, as if all were JPEGs."""
    for name, content in make_images().items():
        write(images / "train" / CLASSES[0] / f"{name}.JPEG", content)
    return images


def test_kept_images_keep_their_bytes_and_decode_to_the_pixels_of_the_file(
    mixed_images: Path, out: Path, capsys: Any
) -> None:
    run(mixed_images, out, keep=True)
    examples = examples_of(out)
    for name, content in make_images().items():
        example = examples[f"{name}.JPEG"]
        assert example["image/encoded"] == [content], name
        assert example["image/format"] == [name.partition(".")[2].upper().encode()]
        assert (example["image/width"].tolist(), example["image/height"].tolist()) == ([40], [30])
        assert example["image/channels"].tolist() == [3] and example["image/colorspace"] == [b"RGB"]
        pixels = np.asarray(decode_image(example["image/encoded"][0]))
        reference = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        if name == "gray16.png":
            # Pillow's conversion clips 16-bit gray at 255; ours keeps the upper 8 bits, as TensorFlow's.
            reference = (np.asarray(Image.open(io.BytesIO(content))) >> 8).astype(np.uint8)[..., None].repeat(3, axis=2)
        np.testing.assert_array_equal(pixels, reference, err_msg=name)
    # What would have been kept anyway is what it was.
    assert examples["n01443537_4.JPEG"]["image/format"] == [b"JPEG"]
    assert (
        f"{len(make_images())} images were not RGB or grayscale JPEGs and were kept unchanged"
        in capsys.readouterr().err
    )


def test_kept_records_have_the_keys_of_the_image_folder(mixed_images: Path, tmp_path: Path) -> None:
    def keys_of(data: Path) -> dict[str, int]:
        source = open_records(data, "train")
        records = [record for shard in range(len(source.shards)) for record in source.iter_shard(shard)]
        return {record.filename.rpartition("/")[2]: record.key for record in records}

    run(mixed_images, tmp_path / "kept", keep=True)
    run(mixed_images, tmp_path / "plain")
    folder, kept, plain = (keys_of(path) for path in (mixed_images, tmp_path / "kept", tmp_path / "plain"))
    assert kept == folder
    assert {name for name in folder if plain[name] != folder[name]} == {f"{name}.JPEG" for name in make_images()}


def test_cmyk_becomes_rgb_without_a_color_profile() -> None:
    """R = (255 - C) (255 - K) / 255 with Adobe's inverted numbers turned over, rounded: docs/reference/pixels.md."""
    for as_ycck in (False, True):
        encoded = encode_cmyk(as_ycck=as_ycck)
        cmyk = np.asarray(Image.open(io.BytesIO(encoded)), int)
        assert cmyk.shape == (30, 40, 4)
        expected = np.rint((255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255)
        np.testing.assert_array_equal(np.asarray(decode_image(encoded)), expected)


def test_tensorflow_reads_kept_images(tensorflow: Any, mixed_images: Path, out: Path) -> None:
    run(mixed_images, out, keep=True)
    examples = examples_of(out)
    names = [name for name in make_images() if not name.endswith((".ppm", ".webp"))]
    for name in names:
        encoded = examples[f"{name}.JPEG"]["image/encoded"][0]
        ours = np.asarray(decode_image(encoded), int)
        theirs = tensorflow.io.decode_image(encoded, channels=3).numpy().astype(int)
        assert theirs.shape == (30, 40, 3), name
        if name.endswith(".jpeg"):
            # TensorFlow's default DCT is the fast one; with the accurate one a level of rounding is left.
            theirs = tensorflow.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE").numpy().astype(int)
            assert abs(theirs - ours).max() <= 1, name
        else:
            np.testing.assert_array_equal(theirs, ours, err_msg=name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encode_cmyk()[:-400], "JPEG image of 40 x 30 pixels cannot be decoded"),
        (encode_png16(np.ones((30, 40)), 0)[:-30], "PNG image of 40 x 30 pixels cannot be decoded"),
        (encode(decode_image(encode_jpeg(3)), "WEBP")[:-40], "WEBP"),
        (encode(decode_image(encode_jpeg(3)), "BMP")[:-40], "BMP image of 40 x 30 pixels cannot be decoded"),
        (encode(decode_image(encode_jpeg(3)), "GIF"), "begin with b'GIF87a.*: expected a JPEG, PNG, WebP, BMP or PPM"),
        (encode_jpeg(3)[:-300], "JPEG image of 40 x 30 pixels cannot be decoded"),
    ],
    ids=["cmyk", "png", "webp", "bmp", "gif", "rgb"],
)
def test_a_damaged_image_is_not_kept(images: Path, out: Path, content: bytes, message: str) -> None:
    bad = write(images / "train" / CLASSES[1] / "n01443537_4.JPEG", content)
    with pytest.raises(ImageError, match=rf"^{bad}: .*{message}"):
        run(images, out, keep=True)
    assert not list(out.glob(".tmp-*")) and len(shards_of(out)) < 4


def test_kept_and_encoded_images_are_not_mixed(mixed_images: Path, tmp_path: Path) -> None:
    for before, now in ((False, True), (True, False)):
        out = tmp_path / str(before)
        run(mixed_images, out, keep=before)
        with pytest.raises(PlanMismatchError, match=rf"keep was {before}, now {now}; choose another --out, or remove"):
            run(mixed_images, out, keep=now)
    # The plan of a version that kept none.
    plan = tmp_path / "False/records.train.json"
    content = json.loads(plan.read_text())
    del content["keep"]
    plan.write_text(json.dumps(content))
    (tmp_path / "False/train-00001-of-00004").unlink()
    run(mixed_images, tmp_path / "False")
    assert len(shards_of(tmp_path / "False")) == 4
    with pytest.raises(PlanMismatchError, match="keep was False, now True"):
        run(mixed_images, tmp_path / "False", keep=True)


def test_boxes_from_csv_and_from_xml(images: Path, tmp_path: Path) -> None:
    csv = write(
        tmp_path / "boxes.csv", "n01440764_3.JPEG,0.25,0.5,0.75,1.0\nn01440764_3.JPEG,0,0,0.5,0.5\nelse.JPEG,0,0,1,1\n"
    )
    run(images, tmp_path / "csv", boxes=csv)
    xml = """<annotation><size><width>80</width><height>60</height></size>
      <object><bndbox><xmin>20</xmin><ymin>30</ymin><xmax>60</xmax><ymax>60</ymax></bndbox></object>
      <object><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object></annotation>"""
    write(tmp_path / "xml-boxes/n01440764/n01440764_3.xml", xml)
    run(images, tmp_path / "xml", boxes=tmp_path / "xml-boxes")
    assert shards_of(tmp_path / "csv") == shards_of(tmp_path / "xml")
    example = examples_of(tmp_path / "csv")["n01440764_3.JPEG"]
    found = [example[f"image/object/bbox/{name}"].tolist() for name in ("xmin", "ymin", "xmax", "ymax", "label")]
    assert found == [[0.25, 0.0], [0.5, 0.0], [0.75, 0.5], [1.0, 0.5], [1, 1]]


def test_other_boxes_of_the_same_names_are_another_conversion(images: Path, out: Path, tmp_path: Path) -> None:
    xml = "<a><size><width>80</width><height>60</height></size></a>"
    path = write(tmp_path / "xml/n01440764/n01440764_3.xml", xml)
    run(images, out, boxes=tmp_path / "xml")
    run(images, out, boxes=tmp_path / "xml")
    write(path, xml.replace("80", "90"))
    with pytest.raises(
        PlanMismatchError,
        match=r"out: was started with other inputs: the boxes \(--boxes\): not the same then and now; choose another",
    ):
        run(images, out, boxes=tmp_path / "xml")


def test_boxes_that_fit_no_image_are_said(images: Path, out: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="it has no box for any image of .*train"):
        run(images, out, boxes=write(tmp_path / "boxes.csv", "else.JPEG,0,0,1,1\n"))


def test_a_first_line_of_background_is_label_0(images: Path, tmp_path: Path, capsys: Any) -> None:
    # Lists of ImageNet have 1,000 lines or 1,001; the records are the same.
    lines = [*reversed(CLASSES)]
    run(images, tmp_path / "1000", labels=write(tmp_path / "labels.txt", "\n".join(lines)))
    capsys.readouterr()
    listed = write(tmp_path / "listed.txt", "\n".join(["background", *lines]))
    run(images, tmp_path / "1001", labels=listed)
    assert "line 1, background, is label 0; the 3 classes count from 1" in capsys.readouterr().err
    assert shards_of(tmp_path / "1001") == shards_of(tmp_path / "1000")
    classes = open_records(tmp_path / "1001", "train").classes
    assert classes is not None and classes.names == ("background", *lines)


def test_a_class_called_background(images: Path, out: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "labels.txt", "\n".join([*CLASSES, "background"]))
    with pytest.raises(ConfigError, match=r"labels.txt line 4: background is label 0 .*; move it to the first line or"):
        run(images, out, labels=labels)
    with pytest.raises(ConfigError, match="has background alone"):
        run(images, out, labels=write(labels, "background\n"))
    write(images / "train/background/1.JPEG", encode_jpeg(1))
    with pytest.raises(ConfigError, match=r"images/train: a class is called background, .* rename the class"):
        run(images, out)
    with pytest.raises(ConfigError, match="images/train: a class is called background"):
        run(images, out, labels=write(labels, "\n".join(["background", *CLASSES])))
    write(images / "validation" / CLASSES[0] / "1.JPEG", encode_jpeg(1))
    with pytest.raises(ConfigError, match="images/train: a class is called background"):
        run(images, out, split="validation", shards=1)
    assert not out.exists()


def test_logits_from_a_store_of_a_table_of_the_images(images: Path, out: Path) -> None:
    """Its labels are numbers from 0, without names: they move by the background, as those of a folder do."""
    paths = sorted((images / "train").rglob("*.JPEG"))
    rows = [f"train/{path.parent.name}/{path.name},{CLASSES.index(path.parent.name)}" for path in paths]
    source = open_records(write(images / "images.csv", "\n".join(["path,label", *rows])), "train")
    logits = np.random.default_rng(0).normal(size=(17, 3)).astype(np.float32)
    run(images, out, logits=write_store(out.parent / "store", source, logits, offset=0).path)
    examples = examples_of(out)
    for path, expected in zip(paths, logits, strict=True):
        np.testing.assert_array_equal(examples[path.name]["image/logit"], [-np.inf, *expected])
