"""The same photographs read from every container: per second of CPU time, and what training's loader makes of them.

    python -m benchmarks.containers [--records 512] [--rounds 9] [--out FILE.md]

Synthetic photographs (500 x 375 px) lie in TFRecord shards, class folders, WebDataset tars and Hugging Face data
(Parquet, Arrow). ``read``: batches of 64 records at random places, with their keys, from the page cache. ``load``: the
same batches as training makes them, random resized crops to 224 in 2 threads. Rates are per second of CPU time, which
others that use the machine touch less. Containers take turns in each round, so that a machine that drifts does so for
all; what is quoted is the median over rounds of the ratio to the TFRecords of the same round, with the least and the
most.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import ipc

from teachonce.data.dataset import KDDataset
from teachonce.data.loader import Loader
from teachonce.data.sampler import EpochBatches
from teachonce.engine.buffers import BufferPool
from teachonce.pixels.view_sources import OwnViews
from teachonce.records.class_space import ClassSpace
from teachonce.records.class_table import ClassTable, write_classes
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource
from teachonce.records.tfrecord.framing import TFRecordWriter
from teachonce.records.tfrecord.tf_example import encode_example
from teachonce.views.policy import CropPolicy

BATCH = 64
SHARD = 128
CLASSES = 10


def photograph(index: int) -> bytes:
    """A JPEG of about 100 kB whose content is a function of ``index``."""
    rng = np.random.default_rng(index)
    coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(coarse, np.int16) + rng.integers(-16, 17, (375, 500, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def write_all(folder: Path, images: list[bytes]) -> dict[str, Path]:
    """The images in each container, labels by their number."""
    names = tuple(f"c{label}" for label in range(CLASSES))
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    schema = pa.schema(
        [("image", image), ("label", pa.int64())], {"huggingface": json.dumps({"info": {"features": features}})}
    )
    for kind in ("tfrecord", "tar", "parquet", "arrow"):
        (folder / kind).mkdir()
    count = -(-len(images) // SHARD)
    for shard in range(count):
        part = list(enumerate(images))[shard * SHARD : (shard + 1) * SHARD]
        name = f"train-{shard:05d}-of-{count:05d}"
        with (folder / "tfrecord" / name).open("wb") as file:
            writer = TFRecordWriter(file)
            for index, content in part:
                name_of = f"{index}.jpg".encode()
                writer.write(
                    encode_example(
                        {"image/encoded": content, "image/class/label": index % CLASSES, "image/filename": name_of}
                    )
                )
        with tarfile.open(folder / "tar" / f"train-{shard:06d}.tar", "w") as tar:
            for index, content in part:
                for suffix, text in (("jpg", content), ("cls", str(index % CLASSES).encode())):
                    info = tarfile.TarInfo(f"{index:06d}.{suffix}")
                    info.size = len(text)
                    tar.addfile(info, io.BytesIO(text))
        rows = [
            {"image": {"bytes": content, "path": f"{index}.jpg"}, "label": index % CLASSES} for index, content in part
        ]
        table = pa.Table.from_pylist(rows, schema)
        pq.write_table(table, folder / "parquet" / f"{name}.parquet")
        with ipc.new_stream(folder / "arrow" / f"data-{shard:05d}-of-{count:05d}.arrow", schema) as stream:
            stream.write_table(table, max_chunksize=100)
    for index, content in enumerate(images):
        path = folder / "folder" / "train" / names[index % CLASSES] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_classes(folder / "tfrecord", ClassTable(names, names, has_background=False))
    for name in ("state.json", "dataset_info.json"):
        (folder / "arrow" / name).write_text("{}")
    return {kind: folder / kind for kind in ("tfrecord", "folder", "tar", "parquet", "arrow")}


def read(source: RecordSource) -> float:
    """Records a second of CPU time, in batches at random places."""
    order = np.random.default_rng(0).permutation(source.num_records)
    pool = BufferPool()
    start = time.process_time()
    for first in range(0, len(order), BATCH):
        source.read_batch(source.locate_all(order[first : first + BATCH]), buffers=pool)
    return source.num_records / (time.process_time() - start)


def load(source: RecordSource) -> float:
    """Images a second of CPU time of training's loader."""
    dataset = KDDataset(source, OwnViews(CropPolicy()), size=224, class_space=ClassSpace(num_classes=CLASSES))
    batches = EpochBatches(source.num_records, BATCH, shuffle=True)
    start = time.process_time()
    for _ in Loader(dataset, batches, 2):
        pass
    return source.num_records / (time.process_time() - start)


def measure(sources: dict[str, RecordSource], work: Callable[[RecordSource], float], rounds: int) -> list[str]:
    """Lines of a table: by container the median rate, and its ratio to the TFRecords."""
    rates: dict[str, list[float]] = {kind: [] for kind in sources}
    for source in sources.values():
        work(source)
    for _ in range(rounds):
        for kind, source in sources.items():
            rates[kind].append(work(source))
    lines = []
    for kind, found in rates.items():
        ratios = [rate / base for rate, base in zip(found, rates["tfrecord"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {work.__name__} | {kind} | {statistics.median(found):,.0f} | {spread} |")
    return lines


def main() -> None:
    """Write the files, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        places = write_all(Path(name), [photograph(index) for index in range(options.records)])
        sources = {kind: open_records(place, "train") for kind, place in places.items()}
        lines = ["| what | container | records per CPU s | of TFRecords (least to most) |", "|---|---|---|---|"]
        for work in (read, load):
            lines += measure(sources, work, options.rounds)
    text = "\n".join(lines)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
