"""Photographs for measuring, as TFRecord shards: synthetic ones, an archive's or a folder's, with or without logits.

Synthetic photographs are smooth noise, 500 x 375 px, with detail enough for about 100 kB: what ImageNet's are on
average. Real ones are better where there are some, because the cost of a JPEG depends on what is in it.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from teachonce.pixels.decode import to_rgb_jpeg
from teachonce.records.class_table import ClassTable, write_classes
from teachonce.records.source import shard_name
from teachonce.records.tfrecord.framing import TFRecordWriter
from teachonce.records.tfrecord.tf_example import FeatureValue, encode_example

WIDTH_PX, HEIGHT_PX = 500, 375
NUM_CLASSES = 1001
"""ImageNet's, with background."""
_SUFFIXES = (".jpg", ".jpeg")


def write_photographs(folder: Path, count: int, num_shards: int = 2, *, with_logits: bool = False) -> Path:
    """Shards of ``count`` synthetic photographs of 1000 classes."""
    rng = np.random.default_rng(0)
    photographs = [draw_photograph(rng) for _ in range(count)]
    return write_jpegs(folder, photographs, [1 + i % 1000 for i in range(count)], num_shards, with_logits=with_logits)


def draw_photograph(rng: np.random.Generator) -> bytes:
    """One JPEG of smooth noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (38, 50, 3), np.uint8))
    smooth = coarse.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth, np.int16) + rng.integers(-12, 13, (HEIGHT_PX, WIDTH_PX, 3), np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def read_jpegs(source: Path, limit: int | None = None) -> tuple[list[bytes], list[int]]:
    """(JPEGs, labels from 1) of ``.../CLASS/NAME.jpg`` in a folder or a tar archive, in order of their names.

    With ``limit`` only that many, evenly over the classes. ValueError where there are none.
    """
    files: dict[str, bytes | Path] = {}
    if source.is_dir():
        files = {str(path): path for path in source.rglob("*") if path.suffix.lower() in _SUFFIXES}
    else:
        with tarfile.open(source) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and member.name.lower().endswith(_SUFFIXES):
                    files[member.name] = file.read()
    names = sorted(files)
    if not names:
        raise ValueError(f"{source}: no JPEGs, expected CLASS/NAME.jpg in a folder or a tar archive")
    if limit is not None and limit < len(names):
        names = [names[index * len(names) // limit] for index in range(limit)]
    classes = sorted({name.split("/")[-2] for name in names})
    contents = [files[name] for name in names]
    jpegs = [to_rgb_jpeg(item if isinstance(item, bytes) else item.read_bytes()) for item in contents]
    return jpegs, [1 + classes.index(name.split("/")[-2]) for name in names]


def write_jpegs(
    folder: Path,
    jpegs: Sequence[bytes],
    labels: Sequence[int],
    num_shards: int,
    *,
    num_classes: int = NUM_CLASSES,
    with_logits: bool = False,
) -> Path:
    """Shards ``train-*`` of the JPEGs in turn, with ``image/logit`` (``num_classes`` random floats) if wanted."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for shard in range(num_shards):
        with (folder / shard_name("train", shard, num_shards)).open("wb") as file:
            writer = TFRecordWriter(file)
            for index in range(shard, len(jpegs), num_shards):
                features: dict[str, FeatureValue] = {
                    "image/encoded": jpegs[index],
                    "image/class/label": labels[index],
                    "image/filename": f"{index}.jpg".encode(),
                }
                if with_logits:
                    features["image/logit"] = rng.normal(0, 3, num_classes).astype(np.float32)
                writer.write(encode_example(features))
    names = ("background", *(str(label) for label in range(num_classes - 1)))
    write_classes(folder, ClassTable(names, names, has_background=True))
    return folder
