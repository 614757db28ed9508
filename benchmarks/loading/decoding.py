"""One core: decoding with crop and resize, ours against what libraries can do; and small images (``small.py``).

    python -m benchmarks.loading.decoding --work DIR     (started by the package, which makes DIR)

All ways render the same records through the same boxes, in turn, in one process bound to one core.

``LibraryRenderer`` is the yardstick that code of our own has to beat by 1.15: the fastest way found that needs nothing
but wheels. It cuts the height in the JPEG's header to the last row that the box needs, so that libjpeg-turbo stops
there, decodes into a buffer that is used again, and lets PyTorch's native antialiased uint8 resize write where the
batch wants it. Its pixels are those of a full decode and the same resize, bit for bit
(tests/system/test_loading_benchmark.py).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from teachonce import KDDataset, Store, StoredLogits, StoredViews, open_records
from teachonce.pixels.decode import Encoded, decode_image
from teachonce.pixels.frames import read_pixels, square_frames
from teachonce.records.source import Record, RecordSource
from teachonce.views.draw import draw_view
from teachonce.views.policy import CropPolicy
from teachonce.views.view import View

SIZE_PX = 224
BATCH_SIZE = 64
_START_OF_FRAME = {0xC0, 0xC1, 0xC2}
_ALONE = {0x01, *range(0xD0, 0xD9)}
CONTEXT_ROWS = 2
"""Rows below the box that smooth chroma upsampling looks at."""


def cut_height(encoded: Encoded, num_rows: int) -> tuple[bytearray, int]:
    """The JPEG with a header that says ``num_rows`` rows, or as many as it has; and that number.

    A decoder then stops early, and complains of the bytes that are left. ValueError for bytes without a frame header.
    """
    position = 2
    while position + 9 <= len(encoded):
        marker = encoded[position + 1]
        if encoded[position] != 0xFF:
            break
        if marker == 0xFF:
            position += 1
            continue
        if marker in _START_OF_FRAME:
            (height,) = struct.unpack_from(">H", encoded, position + 5)
            num_kept = min(height, num_rows)
            short = bytearray(encoded)
            struct.pack_into(">H", short, position + 5, num_kept)
            return short, num_kept
        if marker in _ALONE:
            position += 2
            continue
        position += 2 + struct.unpack_from(">H", encoded, position + 2)[0]
    raise ValueError(f"{len(encoded)} bytes without a JPEG frame header")


class LibraryRenderer:
    """Decode, crop, resize, flip with simplejpeg and PyTorch alone; keeps its buffer, so one a thread."""

    def __init__(self) -> None:
        import simplejpeg

        self._decode = simplejpeg.decode_jpeg
        self._buffer = np.empty(0, np.uint8)

    def __call__(self, encoded: Encoded, view: View, out: np.ndarray, width: int) -> None:
        """Write the view's pixels into ``out`` [H, W, 3], uint8, contiguous; ``width`` is the image's."""
        assert view.box is not None
        left, top, right, bottom = view.box
        short, num_rows = cut_height(encoded, bottom + CONTEXT_ROWS)
        if len(self._buffer) < num_rows * width * 3:
            self._buffer = np.empty(num_rows * width * 3, np.uint8)
        # Not strict: the bytes below the cut are left over, which is meant.
        pixels = self._decode(short, "RGB", buffer=self._buffer, strict=False)
        box = torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1).unsqueeze(0)
        size = list(out.shape[:2])
        # A view of a square of NHWC memory has channels_last strides, for which PyTorch's kernel is native.
        target = torch.from_numpy(np.empty_like(out) if view.flip else out)
        resize = torch.ops.aten._upsample_bilinear2d_aa.out
        resize(box, size, False, out=target.permute(2, 0, 1).unsqueeze(0))
        if view.flip:
            out[:] = target.numpy()[:, ::-1]


class GrainTransform:
    """Random crop and flip for grain's workers, by ``LibraryRenderer``."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._render: LibraryRenderer | None = None

    def __call__(self, item: tuple[str, int, np.ndarray], rng: np.random.Generator) -> tuple[Any, int, np.ndarray]:
        """(pixels, label, logits)."""
        from simplejpeg import decode_jpeg_header

        if self._render is None:
            torch.set_num_threads(1)
            self._render = LibraryRenderer()
        path, label, logits = item
        encoded = Path(path).read_bytes()
        height, width = decode_jpeg_header(encoded)[:2]
        view = draw_view(CropPolicy(), int(rng.integers(1 << 62)), 0, 0, width, height, None)
        out = np.empty((self.size, self.size, 3), np.uint8)
        self._render(encoded, view, out, width)
        return out, label, logits


def render_with_teachonce(encoded: Encoded, view: View, out: np.ndarray) -> None:
    """teachonce: decode, crop, resize and flip one image into ``out``."""
    read_pixels([encoded], square_frames([view.box], [view.flip], len(out)), [""], out[None])


def render_with_pillow(encoded: Encoded, view: View, out: np.ndarray) -> None:
    """Pillow: whole decode, then the box resized."""
    image = (
        Image.open(io.BytesIO(encoded)).convert("RGB").crop(view.box).resize(out.shape[:2], Image.Resampling.BILINEAR)
    )
    out[:] = np.asarray(image)[:, ::-1] if view.flip else np.asarray(image)


def photograph_ways(records: list[Record], views: list[View], widths: list[int]) -> dict[str, Callable[[int], None]]:
    """The ways by name, each a function of the number of a record; the first is the reference."""
    out = np.empty((BATCH_SIZE, SIZE_PX, SIZE_PX, 3), np.uint8)
    ways: dict[str, Callable[[int], None]] = {}
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        print("simplejpeg: not installed, skipped")
    else:
        render_with_library = LibraryRenderer()
        buffer = np.empty(max(len(decode_jpeg(r.encoded).ravel()) for r in records), np.uint8)

        def full(i: int) -> None:
            decode_jpeg(records[i].encoded, "RGB", buffer=buffer)

        def library(i: int) -> None:
            render_with_library(records[i].encoded, views[i], out[i % BATCH_SIZE], widths[i])

        ways["bare full decode, libjpeg-turbo (simplejpeg)"] = full
        ways["simplejpeg to the last needed row + torch resize into out="] = library

    def pillow_full(i: int) -> None:
        Image.open(io.BytesIO(records[i].encoded)).convert("RGB").load()

    def pillow(i: int) -> None:
        render_with_pillow(records[i].encoded, views[i], out[i % BATCH_SIZE])

    def own(i: int) -> None:
        render_with_teachonce(records[i].encoded, views[i], out[i % BATCH_SIZE])

    return {**ways, "bare full decode, Pillow": pillow_full, "Pillow": pillow, OURS: own}


OURS = "**ours**"


def compare(
    ways: dict[str, Iterator[int]], rounds: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Images/s of each way in each round; a way is an iterator that gives the number of images just done."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        next(way)
    for _ in range(rounds):
        for name, way in ways.items():
            start, count = clock(), 0
            while clock() - start < seconds:
                count += next(way)
            rates[name].append(count / (clock() - start))
    return rates


def in_turn(way: Callable[[int], None], num_records: int, stride: int = 16) -> Iterator[int]:
    """Do the records in order for ever, ``stride`` at a time."""
    first = 0
    while True:
        for i in range(first, first + stride):
            way(i % num_records)
        first += stride
        yield stride


def whole_batches(source: RecordSource, store: Path, size: int, batch_size: int) -> Iterator[int]:
    """The public API on one core: records read and checked, joined with the store, as batches."""
    opened = Store(store)
    dataset = KDDataset(source, StoredViews(opened), StoredLogits([opened]), size=size)
    epoch = 0
    while True:
        for batch in dataset.batches(batch_size=batch_size, epoch=epoch):
            yield len(batch["labels"])
        epoch += 1


def measure_photographs(work: Path, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Images/s by way."""
    source = open_records(work / "epoch", "train")
    records = [record for shard in range(3) for record in source.iter_shard(shard)]
    sizes = [decode_image(record.encoded).size for record in records]
    views = [draw_view(CropPolicy(), 0, r.key, 0, *size, None) for r, size in zip(records, sizes, strict=True)]
    ways = photograph_ways(records, views, [width for width, _ in sizes])
    turns = {name: in_turn(way, len(records)) for name, way in ways.items()}
    whole = "ours, read, checked, joined with the store, in batches of 64"
    turns[whole] = whole_batches(source, work / "store", SIZE_PX, BATCH_SIZE)
    if (work / "marked-epoch").exists():
        marked = open_records(work / "marked-epoch", "train")
        turns[f"{whole}, restart markers"] = whole_batches(marked, work / "store", SIZE_PX, BATCH_SIZE)
    return compare(turns, rounds, seconds)


def main() -> None:
    """Measure what there is in the folder and print it as JSON, on one core."""
    from benchmarks.loading.small import measure as measure_small

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    flags = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    measured = {"photographs": measure_photographs(flags.work, flags.rounds, flags.seconds)}
    if (flags.work / "small").exists():
        measured["small"] = measure_small(flags.work, flags.rounds, flags.seconds)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
