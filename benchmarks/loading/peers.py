"""The pipelines that ``loading.py`` compares, ours and the peers', each as it is meant to be used on a CPU.

    python -m benchmarks.loading.peers NAME --work DIR --num-classes C     (started by the package, not by hand)

A pipeline is a function of a ``Setting`` that gives batches for ever: pixels of a random resized crop (area 0.08 to 1,
aspect 3/4 to 4/3) and flip, uint8 unless its name says otherwise, labels, and the teacher's logits. It runs in a
process of its own and takes orders on standard input: a line with seconds is answered with images and seconds, as JSON.

A peer reads its own format where it has one (WebDataset tar, FFCV beton with the same JPEG bytes, a folder), made
before the clock starts, and joins the logits from there; tf.data and DALI read the very TFRecords that ours reads.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
AHEAD_BATCHES = 4
"""Batches that a pipeline may prepare ahead, where that can be set: two a worker, PyTorch's default."""
MIN_BATCHES = 6
"""That a turn has at least: two worker processes hand over batches in pairs, so fewer say little."""
NOT_INSTALLED = 3
"""Exit status of a pipeline whose library is not there."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is loaded, and with what."""

    work: Path
    num_classes: int
    batch_size: int = 64
    size: int = 224
    num_workers: int = 2

    @property
    def shards(self) -> list[str]:
        """TFRecord shards of an epoch."""
        return [str(path) for path in sorted((self.work / "epoch").glob("train-*-of-?????"))]


Pipeline = Callable[[Setting], Iterator[tuple[Any, Any, Any]]]


def ours(setting: Setting, *, from_store: bool, records_folder: str = "epoch") -> Iterator[tuple[Any, Any, Any]]:
    """teachonce: stored views and int8 logits of a store, or views drawn now and ``image/logit``."""
    from teachonce import CropPolicy, KDDataset, OwnViews, RecordLogits, Store, StoredLogits, StoredViews, open_records

    records = open_records(setting.work / records_folder, "train")
    if from_store:
        # As the trainer does it: a store's logits cross to the device as they are stored, and are decoded there.
        store = Store(setting.work / "store")
        dataset = KDDataset(records, StoredViews(store), StoredLogits([store]), size=setting.size)
    else:
        dataset = KDDataset(records, OwnViews(CropPolicy()), RecordLogits(), size=setting.size)
    loader = dataset.batches(batch_size=setting.batch_size, epoch=0, num_workers=setting.num_workers, drop_last=True)
    for epoch in itertools.count():
        loader.batches.set_epoch(epoch)
        for batch in loader:
            yield batch["pixels"], batch["labels"], batch["teacher0_codes" if from_store else "teacher_logits"]


def tfdata(setting: Setting, *, antialias: bool, dtype: str) -> Iterator[tuple[Any, Any, Any]]:
    """tf.data with AUTOTUNE; decodes only the crop's part of the JPEG, as its own ImageNet pipelines do."""
    import tensorflow as tf

    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
        "image/logit": tf.io.FixedLenFeature([setting.num_classes], tf.float32),
    }

    def transform(serialized: Any) -> Any:
        record = tf.io.parse_single_example(serialized, features)
        encoded = record["image/encoded"]
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.0,
            area_range=AREA,
            aspect_ratio_range=ASPECT,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        pixels = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
        pixels = tf.image.resize(pixels, (setting.size, setting.size), antialias=antialias)
        if dtype == "uint8":
            pixels = tf.cast(tf.clip_by_value(pixels + 0.5, 0, 255), tf.uint8)
        return tf.image.random_flip_left_right(pixels), record["image/class/label"], record["image/logit"]

    options = tf.data.Options()
    options.deterministic = False
    options.threading.private_threadpool_size = setting.num_workers
    shards = tf.data.Dataset.from_tensor_slices(setting.shards).shuffle(len(setting.shards)).repeat()
    dataset = shards.interleave(tf.data.TFRecordDataset, cycle_length=8, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.shuffle(256).map(transform, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(setting.batch_size, drop_remainder=True).prefetch(AHEAD_BATCHES).with_options(options)
    yield from dataset


def webdataset(setting: Setting) -> Iterator[tuple[Any, Any, Any]]:
    """WebDataset tars, Pillow, torchvision's transforms, 2 worker processes."""
    import webdataset as wds

    folder = setting.work / "webdataset"
    folder.mkdir(exist_ok=True)
    urls = [str(folder / f"train-{index}.tar") for index in range(8)]
    records = _read_unique(setting)
    for index, url in enumerate(urls):
        with tarfile.open(url, "w") as tar:
            for number, (encoded, label, logits) in enumerate(records[index::8]):
                array = io.BytesIO()
                np.save(array, logits)
                for suffix, content in (("jpg", encoded), ("cls", b"%d" % label), ("npy", array.getvalue())):
                    member = tarfile.TarInfo(f"{index}_{number}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    dataset = wds.WebDataset(urls, resampled=True, shardshuffle=False, nodesplitter=None).shuffle(256).decode("pil")
    dataset = dataset.to_tuple("jpg", "cls", "npy").map_tuple(_torchvision_transform(setting), _same, _same)
    dataset = dataset.batched(setting.batch_size, partial=False)
    yield from wds.WebLoader(dataset, batch_size=None, num_workers=setting.num_workers)


def torchvision_folder(setting: Setting) -> Iterator[tuple[Any, Any, Any]]:
    """The plain way: ImageFolder, Pillow, RandomResizedCrop, DataLoader with 2 worker processes."""
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder

    folder, logits = _write_folder(setting, "torchvision")
    dataset = ImageFolder(str(folder), transform=_torchvision_transform(setting))
    joined: Any = _Joined(dataset, logits)
    # One epoch without end, so that none ends within a measurement.
    sampler = RandomSampler(joined, num_samples=1_000_000)
    yield from DataLoader(joined, setting.batch_size, sampler=sampler, num_workers=setting.num_workers)


def ffcv(setting: Setting) -> Iterator[tuple[Any, Any, Any]]:
    """FFCV: a beton with the JPEGs as they are, its fused crop decoder, 2 threads; it flips, and gives NHWC uint8."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.ndarray import NDArrayDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    from benchmarks.loading.ffcv_files import JpegField, write_beton

    records = _read_unique(setting)
    path = write_beton(setting.work / "train.beton", records, setting.num_classes)
    crop = RandomResizedCropRGBImageDecoder((setting.size, setting.size), scale=AREA, ratio=ASPECT)
    loader = Loader(
        str(path),
        batch_size=setting.batch_size,
        num_workers=setting.num_workers,
        order=OrderOption.RANDOM,
        indices=np.tile(np.arange(len(records)), 64),
        os_cache=True,
        drop_last=True,
        batches_ahead=AHEAD_BATCHES,
        custom_fields={"image": JpegField},
        pipelines={
            "image": [crop, RandomHorizontalFlip(), ToTensor()],
            "label": [IntDecoder(), ToTensor()],
            "logits": [NDArrayDecoder(), ToTensor()],
        },
    )
    while True:
        yield from loader


def dali(setting: Setting, *, partial_decode: bool) -> Iterator[tuple[Any, Any, Any]]:
    """DALI's CPU operators, 2 threads, antialiased; its decoder decodes the crop only, or the whole image."""
    from nvidia.dali import fn, pipeline_def, tfrecord, types

    from teachonce.records.tfrecord.framing import index_path, load_index

    for shard in setting.shards:
        load_index(Path(shard))

    @pipeline_def(batch_size=setting.batch_size, num_threads=setting.num_workers, device_id=None)
    def build() -> Any:
        record = fn.readers.tfrecord(
            path=setting.shards,
            index_path=[str(index_path(Path(shard))) for shard in setting.shards],
            features={
                "image/encoded": tfrecord.FixedLenFeature((), tfrecord.string, ""),
                "image/class/label": tfrecord.FixedLenFeature([1], tfrecord.int64, -1),
                "image/logit": tfrecord.FixedLenFeature([setting.num_classes], tfrecord.float32, 0.0),
            },
            random_shuffle=True,
            initial_fill=256,
        )
        encoded = record["image/encoded"]
        crop = {"random_area": list(AREA), "random_aspect_ratio": list(ASPECT)}
        resize = {"interp_type": types.INTERP_LINEAR, "antialias": True, "size": [setting.size, setting.size]}
        if partial_decode:
            pixels = fn.decoders.image_random_crop(encoded, device="cpu", output_type=types.RGB, **crop)
            pixels = fn.resize(pixels, **resize)
        else:
            pixels = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
            pixels = fn.random_resized_crop(pixels, **crop, **resize)
        pixels = fn.flip(pixels, horizontal=fn.random.coin_flip())
        return pixels, record["image/class/label"], record["image/logit"]

    pipe = build(prefetch_queue_depth=2)
    pipe.build()
    while True:
        yield tuple(output.as_tensor() for output in pipe.run())


def grain(setting: Setting) -> Iterator[tuple[Any, Any, Any]]:
    """grain with 2 worker processes around the best of the libraries: simplejpeg and torch's antialiased resize."""
    import simplejpeg  # noqa: F401  # the workers need it
    from absl import flags
    from grain import MapDataset, MultiprocessingOptions, ReadOptions

    from benchmarks.loading.decoding import GrainTransform

    flags.FLAGS.mark_as_parsed()  # its workers ask for absl's flags
    folder, logits = _write_folder(setting, "grain")
    paths = sorted(folder.glob("*/*.jpg"))
    items = [(str(path), int(path.parent.name), row) for path, row in zip(paths, logits, strict=True)]
    dataset = MapDataset.source(items).seed(0).shuffle().repeat(1000).random_map(GrainTransform(setting.size))
    batches = dataset.batch(setting.batch_size).to_iter_dataset(ReadOptions(num_threads=1, prefetch_buffer_size=2))
    yield from batches.mp_prefetch(MultiprocessingOptions(num_workers=setting.num_workers, per_worker_buffer_size=2))


OURS: dict[str, Pipeline] = {
    "ours, store": partial(ours, from_store=True),
    "ours, store, restart markers": partial(ours, from_store=True, records_folder="marked-epoch"),
    "ours, image/logit": partial(ours, from_store=False),
}
PEERS: dict[str, dict[str, Pipeline]] = {
    "tfdata": {
        "tf.data, no antialiasing, float32 (its default)": partial(tfdata, antialias=False, dtype="float32"),
        "tf.data, no antialiasing": partial(tfdata, antialias=False, dtype="uint8"),
        "tf.data, antialiased": partial(tfdata, antialias=True, dtype="uint8"),
    },
    "webdataset": {"WebDataset, Pillow": webdataset},
    "ffcv": {"FFCV, area filter": ffcv},
    "dali": {
        "DALI, image_random_crop, antialiased": partial(dali, partial_decode=True),
        "DALI, random_resized_crop, antialiased": partial(dali, partial_decode=False),
    },
    "torchvision": {"torch DataLoader, torchvision": torchvision_folder},
    "grain": {"grain, simplejpeg, torch": grain},
}
"""Variants by the names of ``--peers``."""


class _Joined:
    """A map-style data set with a row of logits beside each item."""

    def __init__(self, dataset: Any, logits: np.ndarray) -> None:
        self.dataset = dataset
        self.logits = logits

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any, Any]:
        return *self.dataset[index], self.logits[index]


def _same(value: Any) -> Any:
    return value


def _torchvision_transform(setting: Setting) -> Any:
    from torchvision import transforms

    crop = transforms.RandomResizedCrop(setting.size, scale=AREA, ratio=ASPECT)
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.PILToTensor()])


def _read_unique(setting: Setting) -> list[tuple[bytes, int, np.ndarray]]:
    """(JPEG, label, logits) of the records, each once, whatever the number of links to its shard."""
    from teachonce import open_records

    source = open_records(setting.work / "epoch", "train")
    first = {Path(shard).resolve(): index for index, shard in reversed(list(enumerate(setting.shards)))}
    records = [r for index in sorted(first.values()) for r in source.iter_shard(index, with_logits=True)]
    return [(bytes(record.encoded), record.label, np.asarray(record.logits)) for record in records]


def _write_folder(setting: Setting, name: str) -> tuple[Path, np.ndarray]:
    """(LABEL/N.jpg, logits [N, C] in order of the sorted paths)."""
    folder = setting.work / name
    rows = {}
    for number, (encoded, label, logits) in enumerate(_read_unique(setting)):
        path = folder / f"{label:04d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
        rows[path] = logits
    return folder, np.stack([rows[path] for path in sorted(rows)])


def check_batch(batch: tuple[Any, Any, Any], setting: Setting) -> None:
    """Raise ValueError where a pipeline does not deliver what all of them must."""
    shapes = [np.asarray(part).shape for part in batch]
    count, size = setting.batch_size, setting.size
    is_right = shapes[0] in ((count, size, size, 3), (count, 3, size, size)) and shapes[2] == (
        count,
        setting.num_classes,
    )
    if not is_right or int(np.prod(shapes[1])) != count:
        raise ValueError(f"pixels, labels and logits of shapes {shapes}, expected {count} images of {size} px")


def main() -> None:
    """Build one pipeline, warm it up, then run it as long as each line of standard input says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--num-classes", type=int, required=True)
    parser.add_argument("--warm-up-seconds", type=float, default=3.0)
    flags = parser.parse_args()
    # Libraries print; the answers go where the parent reads, everything else to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    setting = Setting(work=flags.work, num_classes=flags.num_classes)
    pipelines = OURS | {name: pipeline for variants in PEERS.values() for name, pipeline in variants.items()}
    try:
        batches = pipelines[flags.name](setting)
        check_batch(next(batches), setting)
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(NOT_INSTALLED)
    run(batches, flags.warm_up_seconds, setting)
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        print(json.dumps(run(batches, float(line), setting)), file=answers)
    # Worker processes and threads of five libraries: the quickest way out is the surest.
    os._exit(0)


def run(batches: Iterator[Any], seconds: float, setting: Setting) -> tuple[int, float]:
    """(images, seconds) of as many batches as begin within ``seconds``, and at least MIN_BATCHES."""
    start = time.perf_counter()
    count = 0
    while count < MIN_BATCHES or time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return count * setting.batch_size, time.perf_counter() - start


if __name__ == "__main__":
    main()
