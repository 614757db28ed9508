import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from teachonce.errors import ConfigError, ImageError, LogitsError, PlanMismatchError, RecordError, TeachonceError
from teachonce.interop.config import MergeConfig, RecordsConfig
from teachonce.interop.convert import check_arrived, convert_records
from teachonce.interop.merge import merge
from teachonce.pixels.decode import decode_image
from teachonce.records.discovery import open_records
from teachonce.records.source import record_key
from teachonce.records.tfrecord.framing import index_path, read_tfrecords
from teachonce.records.tfrecord.tf_example import decode_example
from tests.support.kills import dead_writer, everything, temporary
from tests.support.small_data import encode_jpeg, write_shards, write_store

CLASSES = ["n01440764", "n01443537", "n01484850"]


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def make_bomb() -> bytes:
    """A small JPEG whose header says 30,000 x 30,000 pixels."""
    encoded = bytearray(encode_jpeg(3))
    at = encoded.index(b"\xff\xc0") + 5
    encoded[at : at + 4] = (30_000).to_bytes(2, "big") * 2
    return bytes(encoded)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """17 images of three classes, sizes all different."""
    for number in range(17):
        name = CLASSES[number % 3]
        write(tmp_path / "images/train" / name / f"{name}_{number}.JPEG", encode_jpeg(number, 40 + number, 30))
    return tmp_path / "images"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(images: Path, out: Path, **options: Any) -> None:
    convert_records(RecordsConfig(**{"images": images, "out": out, "shards": 4, "num_workers": 1, **options}))


def shards_of(out: Path, split: str = "train") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob(f"{split}-*-of-*")) if path.suffix != ".idx"}


def examples_of(out: Path, split: str = "train") -> dict[str, dict[str, Any]]:
    """The decoded examples by file name."""
    paths = [path for path in sorted(out.glob(f"{split}-*-of-*")) if path.suffix != ".idx"]
    found = [decode_example(payload) for path in paths for _, payload in read_tfrecords(path)]
    return {example["image/filename"][0].decode(): example for example in found}


def test_the_schema_field_by_field(images: Path, out: Path) -> None:
    run(images, out)
    examples = examples_of(out)
    assert len(examples) == 17
    example = {name: list(value) for name, value in examples["n01443537_4.JPEG"].items()}
    assert example == {
        "image/encoded": [(images / "train/n01443537/n01443537_4.JPEG").read_bytes()],
        "image/height": [30],
        "image/width": [44],
        "image/colorspace": [b"RGB"],
        "image/channels": [3],
        "image/format": [b"JPEG"],
        "image/filename": [b"n01443537_4.JPEG"],
        "image/class/label": [2],
        "image/class/synset": [b"n01443537"],
        "image/class/text": [b"goldfish, Carassius auratus"],
        "image/object/bbox/xmin": [],
        "image/object/bbox/ymin": [],
        "image/object/bbox/xmax": [],
        "image/object/bbox/ymax": [],
        "image/object/bbox/label": [],
    }
    assert [len(list(read_tfrecords(out / name))) for name in shards_of(out)] == [4, 4, 4, 5]
    assert json.loads((out / "classes.json").read_text()) == {
        "names": ["background", *CLASSES],
        "texts": ["background", "tench, Tinca tinca", "goldfish, Carassius auratus",
                  "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"],
        "has_background": True,
    }  # fmt: skip
    assert all(index_path(out / name).exists() for name in shards_of(out))


def test_the_result_is_a_record_source(images: Path, out: Path) -> None:
    run(images, out)
    source = open_records(out, "train")
    found = {record.filename: record for shard in range(4) for record in source.iter_shard(shard)}
    assert source.classes is not None and source.classes.names[1:] == tuple(CLASSES)
    for number in range(17):
        record = found[f"{CLASSES[number % 3]}_{number}.JPEG"]
        assert record.label == 1 + number % 3 and record.key == record_key(encode_jpeg(number, 40 + number, 30))


def test_tensorflow_reads_the_result_field_by_field(tensorflow: Any, images: Path, out: Path, tmp_path: Path) -> None:
    boxes = write(tmp_path / "boxes.csv", "n01440764_3.JPEG,0.1,0.2,0.3,0.4\nn01440764_3.JPEG,0.5,0.5,1,1\n")
    run(images, out, boxes=boxes)
    tf = tensorflow
    strings = ("encoded", "colorspace", "format", "filename", "class/synset", "class/text")
    features = {f"image/{name}": tf.io.FixedLenFeature([], tf.string) for name in strings}
    numbers = ("height", "width", "channels", "class/label")
    features |= {f"image/{name}": tf.io.FixedLenFeature([], tf.int64) for name in numbers}
    corners = ("xmin", "ymin", "xmax", "ymax")
    features |= {f"image/object/bbox/{name}": tf.io.VarLenFeature(tf.float32) for name in corners}
    features["image/object/bbox/label"] = tf.io.VarLenFeature(tf.int64)
    ours = examples_of(out)
    dataset = tf.data.TFRecordDataset([str(out / name) for name in shards_of(out)])
    num_seen = 0
    for theirs in dataset.map(lambda payload: tf.io.parse_single_example(payload, features)):
        example = ours[theirs["image/filename"].numpy().decode()]
        assert theirs.keys() == example.keys()
        for name, value in theirs.items():
            dense = tf.sparse.to_dense(value) if isinstance(value, tf.sparse.SparseTensor) else [value.numpy()]
            np.testing.assert_array_equal(np.asarray(dense), np.asarray(example[name]))
        pixels = tf.io.decode_jpeg(theirs["image/encoded"], channels=3).numpy()
        assert pixels.shape == (example["image/height"][0], example["image/width"][0], 3)
        num_seen += 1
    assert num_seen == 17


def test_the_order_is_shuffled_and_a_function_of_the_seed_alone(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "1")
    run(images, tmp_path / "2", num_workers=2)
    run(images, tmp_path / "3", seed=1)
    assert shards_of(tmp_path / "1") == shards_of(tmp_path / "2")
    orders = [list(examples_of(tmp_path / name)) for name in "13"]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1] and orders[0] != sorted(orders[0])


def test_a_rerun_makes_only_what_is_missing(images: Path, out: Path, tmp_path: Path) -> None:
    run(images, out)
    whole = shards_of(out)
    (out / "train-00002-of-00004").unlink()
    index_path(out / "train-00001-of-00004").unlink()
    temporary(out, dead_writer(), "train-00002-of-00004")
    neighbor = temporary(out, name="validation-00000-of-00001")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("train-*-of-00004")}
    run(images, out)
    assert shards_of(out) == whole
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert list(out.glob(".tmp-*")) == [neighbor]
    # And nothing at all when all is there, even if the images are gone but for their names.
    for path in images.rglob("*.JPEG"):
        path.write_bytes(b"")
    run(images, out)
    assert shards_of(out) == whole


def test_shards_that_a_cluster_made_elsewhere_are_said(images: Path, out: Path) -> None:
    convert_records(RecordsConfig(images=images, out=out, shards=2))
    config = RecordsConfig(images=images, out=out, shards=2, engine="ray")
    names = ["train-00000-of-00002", "train-00001-of-00002"]
    check_arrived(config, names)
    (out / names[1]).unlink()
    with pytest.raises(
        RecordError, match=rf"^{out}: 1 shards that workers wrote are missing here \(first: {names[1]}\)"
    ):
        check_arrived(config, names)


@pytest.mark.parametrize("name", ["records", "merge"])
def test_workers_of_a_job_array_make_the_same_shards(images: Path, tmp_path: Path, name: str) -> None:
    """Each alone makes all; the second finds nothing to do."""
    data = tmp_path / "data"
    store = write_store(tmp_path / "store", write_shards(data))
    for out, worker in (("whole", "0/1"), ("array", "1/2"), ("array", "0/2")):
        if name == "records":
            convert_records(RecordsConfig(images=images, out=tmp_path / out, shards=3, worker=worker))
        else:
            merge(MergeConfig(store=store.path, data=data, out=tmp_path / out, worker=worker))
    assert everything(tmp_path / "whole") == everything(tmp_path / "array")


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"shards": 3}, "shards was 4, now 3"),
        ({"seed": 5}, "seed was 0, now 5; order was "),
        ({"labels": "n01484850\nn01443537\nn01440764\n"}, "labels was "),
        ({"boxes": "n01440764_3.JPEG,0,0,1,1\n"}, "boxes was None, now "),
    ],
)
def test_another_conversion_is_refused_with_what_differs(
    images: Path, out: Path, tmp_path: Path, options: dict[str, Any], difference: str
) -> None:
    run(images, out)
    before = shards_of(out)
    for name in ("labels", "boxes"):
        if name in options:
            options = {name: write(tmp_path / f"{name}.txt", options[name])}
    expected = rf"^{out}: was started with a different plan: .*{difference}.*the train shards and records\.train\.json$"
    with pytest.raises(PlanMismatchError, match=expected):
        run(images, out, **options)
    assert shards_of(out) == before


def test_other_images_and_foreign_shards_are_refused(images: Path, out: Path, tmp_path: Path) -> None:
    run(images, out)
    write(images / "train" / CLASSES[0] / "new.JPEG", encode_jpeg(99))
    with pytest.raises(PlanMismatchError, match=r"images was 17, now 18; image names was"):
        run(images, out)
    (out / "records.train.json").unlink()
    with pytest.raises(PlanMismatchError, match="holds train shards that this command did not write"):
        run(images, out)
    (out / "train-00000-of-00004").unlink()
    with pytest.raises(PlanMismatchError, match="holds train shards that this command did not write"):
        run(images, out)


def test_two_splits_share_a_folder_and_its_classes(images: Path, out: Path) -> None:
    write(images / "validation" / CLASSES[2] / "v1.JPEG", encode_jpeg(50))
    write(images / "validation" / CLASSES[1] / "v2.JPEG", encode_jpeg(51))
    run(images, out)
    run(images, out, split="validation", shards=1)
    labels = {name: example["image/class/label"][0] for name, example in examples_of(out, "validation").items()}
    assert labels == {"v1.JPEG": 3, "v2.JPEG": 2}  # the classes are train's, one of which validation lacks
    (images / "train").rename(images / "training")
    (images / "validation").rename(images / "test")
    with pytest.raises(PlanMismatchError, match=r"other classes \(4, label 1 is n01440764\) than now \(3, .* --labels"):
        run(images, out, split="test", shards=2)


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
    """R = (255 - C) (255 - K) / 255 with Adobe's inverted numbers turned over, rounded; so docs/guide/data.md says."""
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


def test_labels_from_a_file(images: Path, out: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "labels.txt", "n01484850\nn99999999\nn01443537\nn01440764\n")
    metadata = write(
        tmp_path / "metadata.txt", "".join(f"{name}\ttext of {name}\n" for name in [*CLASSES, "n99999999"])
    )
    run(images, out, labels=labels, metadata=metadata)
    example = examples_of(out)["n01484850_2.JPEG"]
    assert example["image/class/label"].tolist() == [1]
    assert example["image/class/text"] == [b"text of n01484850"]
    classes = open_records(out, "train").classes
    assert classes is not None and len(classes.names) == 5 and classes.names[4] == "n01440764"


def test_labels_that_do_not_fit(images: Path, out: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "labels.txt", "n01484850\nn01443537\n")
    with pytest.raises(RecordError, match=r"n01440764_0.JPEG: class n01440764 is not among the 2 of .*labels.txt"):
        run(images, out, labels=labels)
    with pytest.raises(ConfigError, match="line 3: n01484850 is doubled"):
        run(images, out, labels=write(labels, "n01484850\nn01443537\nn01484850\n"))
    with pytest.raises(ConfigError, match="the metadata lacks 2 of 3 classes, such as n01443537"):
        run(images, out, metadata=write(tmp_path / "metadata.txt", "n01440764\ttench\n"))
    write(images / "validation/n00000001/1.JPEG", encode_jpeg(1))
    with pytest.raises(RecordError, match=r"class n00000001 is not among the 3 of .*images/train"):
        run(images, out, split="validation", shards=1)
    assert not out.exists()


def test_a_flat_validation_folder(images: Path, out: Path, tmp_path: Path) -> None:
    for number in range(1, 6):
        write(images / f"validation/ILSVRC2012_val_{number:08d}.JPEG", encode_jpeg(number))
    lines = [CLASSES[number] for number in (2, 0, 2, 1, 0)]
    answers = write(tmp_path / "answers.txt", "\n".join(lines) + "\n")
    run(images, out, split="validation", image_labels=answers, shards=2)
    found = {name: example["image/class/label"][0] for name, example in examples_of(out, "validation").items()}
    assert found == {f"ILSVRC2012_val_{number + 1:08d}.JPEG": 1 + CLASSES.index(lines[number]) for number in range(5)}
    with pytest.raises(ConfigError, match=r"validation: no class folders; .* give --image-labels"):
        run(images, out, split="validation", shards=2)
    with pytest.raises(ConfigError, match="4 lines for 5 images"):
        run(images, out, split="validation", image_labels=write(answers, "\n".join(lines[:4])), shards=2)
    with pytest.raises(RecordError, match=r"val_00000004.JPEG: class 490 is not among .* ILSVRC's own class numbers"):
        run(images, out, split="validation", image_labels=write(answers, "\n".join([*lines[:3], "490", lines[4]])))
    with pytest.raises(ConfigError, match=r"train has class folders; leave the option out"):
        run(images, out, image_labels=answers)


def test_a_flat_folder_alone_takes_its_classes_from_the_answers(out: Path, tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"flat/validation/{number}.JPEG", encode_jpeg(number))
    run(tmp_path / "flat", out, split="validation", image_labels=write(tmp_path / "a.txt", "dog\ncat\ndog"), shards=1)
    assert {name: example["image/class/label"][0] for name, example in examples_of(out, "validation").items()} == {
        "0.JPEG": 2,
        "1.JPEG": 1,
        "2.JPEG": 2,
    }


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
    with pytest.raises(PlanMismatchError, match=r"boxes was \w+, now \w+"):
        run(images, out, boxes=tmp_path / "xml")


def test_boxes_that_fit_no_image_are_said(images: Path, out: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="it has no box for any image of .*train"):
        run(images, out, boxes=write(tmp_path / "boxes.csv", "else.JPEG,0,0,1,1\n"))


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encode_jpeg(3)[:-300], r"JPEG image of 40 x 30 pixels cannot be decoded .*truncated"),
        (b"just a text file named .JPEG", "begin with b'just a t': expected a JPEG"),
        (b"", "0 bytes: expected a JPEG"),
        (make_bomb(), "JPEG image of 30000 x 30000 pixels, more than the"),
        (encode(decode_image(encode_jpeg(3)), "PNG")[:-200], "PNG image of 40 x 30 pixels cannot be decoded"),
    ],
)
def test_an_image_that_cannot_be_decoded_stops_with_its_path(
    images: Path, out: Path, content: bytes, message: str, num_workers: int
) -> None:
    bad = write(images / "train" / CLASSES[1] / "n01443537_4.JPEG", content)
    with pytest.raises(ImageError, match=rf"^{bad}: .*{message}") as caught:
        run(images, out, num_workers=num_workers)
    assert "\n" not in str(caught.value)
    # Nothing half-written; once the image is mended, the same command finishes the work.
    assert not list(out.glob(".tmp-*")) and len(shards_of(out)) < 4
    write(bad, encode_jpeg(4, 44, 30))
    run(images, out)
    assert len(examples_of(out)) == 17


def test_a_missing_image_and_empty_folders(images: Path, out: Path, tmp_path: Path) -> None:
    link = images / "train" / CLASSES[0] / "link.JPEG"
    link.symlink_to("nowhere")
    with pytest.raises(RecordError, match=rf"^{link}: cannot be read: No such file"):
        run(images, out)
    (images / "train/n01494475").mkdir()
    with pytest.raises(RecordError, match="train/n01494475: has no images"):
        run(images, tmp_path / "other")
    (tmp_path / "empty/train").mkdir(parents=True)
    with pytest.raises(ConfigError, match="empty/train: no class folders"):
        run(tmp_path / "empty", tmp_path / "other")


def test_wrong_commands(images: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"images/test: no such folder; .*images has train; give another --split"):
        run(images, out, split="test")
    with pytest.raises(ConfigError, match="nowhere has no split"):
        run(tmp_path / "nowhere", out)
    with pytest.raises(ConfigError, match="--shards 18: more than the 17 images"):
        run(images, out, shards=18)
    with pytest.raises(TeachonceError, match="file: is not a folder, or holds train shards"):
        run(images, write(tmp_path / "file", "in the way"))


def write_csv(folder: Path, images: Path, num_classes: int = 3) -> dict[str, list[float]]:
    rows = {path.name: [number + 0.5] * num_classes for number, path in enumerate(sorted(images.rglob("*.JPEG")))}
    lines = [",".join([name, *map(str, row)]) for name, row in rows.items()]
    write(folder / "train-0.csv", "\n".join(lines[:9]) + "\n")
    write(folder / "train-1.csv", "\n".join(lines[9:]) + "\n")
    return rows


@pytest.mark.parametrize("num_workers", [1, 2])
def test_logits_from_the_walkthroughs_csv(images: Path, out: Path, tmp_path: Path, num_workers: int) -> None:
    rows = write_csv(tmp_path / "logits", images)
    run(images, out, logits=tmp_path / "logits", num_workers=num_workers)
    for name, example in examples_of(out).items():
        assert example["image/logit"].tolist() == [-np.inf, *rows[name]]
    record = open_records(out, "train").read_record(0, 0, with_logits=True)
    assert record.logits is not None and len(record.logits) == 4
    run(images, tmp_path / "zero", logits=tmp_path / "logits", background_logit=0.0)
    assert all(example["image/logit"][0] == 0 for example in examples_of(tmp_path / "zero").values())


def test_logits_that_miss_or_double_an_image(images: Path, out: Path, tmp_path: Path) -> None:
    logits = tmp_path / "logits"
    write_csv(logits, images)
    lines = (logits / "train-1.csv").read_text().splitlines()
    write(logits / "train-1.csv", "\n".join(lines[:-1]) + "\n")
    missing = lines[-1].partition(",")[0]
    with pytest.raises(LogitsError, match=rf"{missing}: no line in .*16 lines"):
        run(images, out, logits=logits)
    assert not out.exists()
    write(logits / "train-1.csv", "\n".join([*lines, lines[0]]) + "\n")
    with pytest.raises(LogitsError, match=f"{lines[0].partition(',')[0]}: has two lines"):
        run(images, tmp_path / "doubled", logits=logits)
    write(logits / "train-1.csv", "\n".join(lines) + "\n")
    write(images / "train" / CLASSES[1] / "n01440764_0.JPEG", encode_jpeg(60))
    with pytest.raises(
        LogitsError, match=r"^n01440764/n01440764_0.JPEG and n01443537/n01440764_0.JPEG of .*two images"
    ):
        run(images, tmp_path / "collision", logits=logits)


def test_logits_from_a_store_of_the_image_folder(images: Path, tmp_path: Path) -> None:
    """The store's keys are those of the raw files, the converted ones included; labels move by the background."""
    png = encode(decode_image(encode_jpeg(7)), "PNG")
    write(images / "train" / CLASSES[0] / "png.JPEG", png)
    source = open_records(images, "train")
    logits = np.random.default_rng(0).normal(size=(18, 3)).astype(np.float32)
    store = write_store(tmp_path / "store", source, logits, offset=0)
    run(images, tmp_path / "out", logits=store.path)
    examples = examples_of(tmp_path / "out")
    for row, record in enumerate(source.iter_shard(0)):
        example = examples[record.filename.rpartition("/")[2]]
        np.testing.assert_array_equal(example["image/logit"], [-np.inf, *logits[row]])
    # Classes in another order have other numbers and the same names.
    labels = write(tmp_path / "labels.txt", "\n".join(reversed(CLASSES)))
    run(images, tmp_path / "reversed", logits=store.path, labels=labels)
    examples = examples_of(tmp_path / "reversed")
    for row, record in enumerate(source.iter_shard(0)):
        example = examples[record.filename.rpartition("/")[2]]
        np.testing.assert_array_equal(example["image/logit"], [-np.inf, *logits[row][::-1]])
        assert example["image/class/label"] == 3 - record.label
    # Another teacher's store has files of the same names and sizes; its logits are others all the same.
    other = write_store(tmp_path / "other-store", source, logits + 1, offset=0)
    with pytest.raises(PlanMismatchError, match="logits was"):
        run(images, tmp_path / "out", logits=other.path)


INTERRUPTED = """
import os, sys
from pathlib import Path
from teachonce.interop import convert
from teachonce.records.tfrecord import tf_example as example
from teachonce.interop.config import RecordsConfig
count = 0
def encode(features):
    global count
    count += 1
    if count == {stop}:
        {how}
    return example.encode_example(features)
convert.encode_example = encode
convert.convert_records(RecordsConfig(images=Path(sys.argv[1]), out=Path(sys.argv[2]), shards=4, num_workers=1))
"""


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), 9)", "raise KeyboardInterrupt", "raise MemoryError"])
def test_interrupted_in_the_middle_of_a_shard(images: Path, out: Path, tmp_path: Path, how: str) -> None:
    run(images, tmp_path / "whole")
    whole = shards_of(tmp_path / "whole")
    code = INTERRUPTED.format(stop=11, how=how)
    process = subprocess.run([sys.executable, "-c", code, str(images), str(out)], stderr=subprocess.DEVNULL)
    assert process.returncode != 0
    assert shards_of(out) == dict(list(whole.items())[:2])
    before = {name: (out / name).stat().st_mtime_ns for name in shards_of(out)}
    run(images, out)
    assert shards_of(out) == whole
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert not list(out.glob(".tmp-*"))


WORKERS = """
import sys
from pathlib import Path
from teachonce.interop.config import RecordsConfig
from teachonce.interop.convert import convert_records
if __name__ == "__main__":
    convert_records(RecordsConfig(images=Path(sys.argv[1]), out=Path(sys.argv[2]), shards=60, num_workers=2))
"""


@pytest.mark.slow
def test_killed_with_its_workers_and_finished(out: Path, tmp_path: Path) -> None:
    for number in range(600):
        write(tmp_path / f"many/train/{number % 3}/{number}.jpg", encode_jpeg(number, 400, 300))
    script = write(tmp_path / "convert.py", WORKERS)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "many"), str(out)], start_new_session=True)
    wait_until(lambda: len(list(out.glob("train-*-of-00060"))) >= 5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 5 <= len(list(out.glob("train-*-of-00060"))) < 60
    run(tmp_path / "many", out, shards=60, num_workers=2)
    run(tmp_path / "many", tmp_path / "whole", shards=60)
    assert shards_of(out) == shards_of(tmp_path / "whole")


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


PEAK = """
import sys
from pathlib import Path
from teachonce.interop.config import RecordsConfig
from teachonce.interop.convert import convert_records
convert_records(RecordsConfig(images=Path(sys.argv[1]), out=Path(sys.argv[2]), shards=2, num_workers=1))
# Not ru_maxrss: that begins with what the forking parent had.
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """400 MB of images against 4 MB: the peak may differ by one image and some listing, not by the data."""
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), np.uint8)
    large = encode(Image.fromarray(noise), "JPEG", quality=95)
    peaks = []
    for count in (4, 400):
        folder = tmp_path / f"images{count}/train/a"
        write(folder / "0.jpg", large)
        for number in range(1, count):
            os.link(folder / "0.jpg", folder / f"{number}.jpg")
        arguments = [str(folder.parent.parent), str(tmp_path / f"out{count}")]
        process = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
        peaks.append(int(process.stdout) * 1024)
    total = sum(path.stat().st_size for path in (tmp_path / "out400").glob("train-*-of-00002"))
    assert total > 400e6 and total == pytest.approx(400 * len(large), rel=0.01)
    assert peaks[1] - peaks[0] < 20e6
    assert peaks[1] < 400e6


def test_nothing_here_imports_torch() -> None:
    code = "import sys, teachonce.interop.convert; print('torch' in sys.modules, 'tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"


def test_imagenet(imagenet_sample: Path, tmp_path: Path, capsys: Any) -> None:
    """250 real images: grayscale ones keep their bytes, and every image is what the folder holds."""
    run(imagenet_sample, tmp_path / "out", shards=8, num_workers=2)
    examples = examples_of(tmp_path / "out")
    assert len(examples) == 250
    num_kept = 0
    for path in imagenet_sample.rglob("*.JPEG"):
        example = examples[path.name]
        num_kept += example["image/encoded"][0] == path.read_bytes()
        with Image.open(path) as image:
            assert image.size == (example["image/width"][0], example["image/height"][0])
        assert example["image/class/synset"][0].decode() == path.parent.name
    converted = capsys.readouterr().err
    assert num_kept == 250 or f"{250 - num_kept} images were not RGB" in converted
