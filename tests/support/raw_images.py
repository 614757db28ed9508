"""Small folders of raw images and what the command makes of them, for the tests of `records`."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from teachonce.interop.config import RecordsConfig
from teachonce.interop.convert import convert_records
from teachonce.records.tfrecord.framing import read_tfrecords
from teachonce.records.tfrecord.tf_example import decode_example

CLASSES = ["n01440764", "n01443537", "n01484850"]


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def run(images: Path, out: Path, **options: Any) -> None:
    convert_records(RecordsConfig(**{"images": images, "out": out, "shards": 4, "num_workers": 1, **options}))


def shards_of(out: Path, split: str = "train") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob(f"{split}-*-of-*")) if path.suffix != ".idx"}


def examples_of(out: Path, split: str = "train") -> dict[str, dict[str, Any]]:
    """The decoded examples by file name."""
    paths = [path for path in sorted(out.glob(f"{split}-*-of-*")) if path.suffix != ".idx"]
    found = [decode_example(payload) for path in paths for _, payload in read_tfrecords(path)]
    return {example["image/filename"][0].decode(): example for example in found}
