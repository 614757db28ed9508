"""``teachonce records``: raw images to TFRecord shards (steps 0 and 2 of the walkthrough).

The schema is TF-slim's for ImageNet (``build_imagenet_data.py``), so that its readers understand the result: labels
from 1 with background 0, boxes relative to the image, ``image/logit`` where logits are given. What is neither an RGB
nor a grayscale JPEG (ILSVRC has a PNG named .JPEG, and 22 images in CMYK) is found by its content and becomes an RGB
JPEG; every other image keeps its bytes, and with ``--keep`` all do, so that a record's key is that of the file. Such
records say in ``image/format`` what they hold; channels and color space stay those that a reader gets who asks for
three channels, as they always were of grayscale JPEGs. With ``--restart`` JPEGs are rewritten without loss, and records
say of which bytes (``reindex``): their key stays the same. Each image is read once and checked down to its last byte:
by its structure where that is enough (``jpeg_structure``), else by decoding it.

What goes into which shard is a function of the plan, which is written first: names of the images, classes, seed,
shuffled order. A shard is written by one process, appears when it is complete, and is kept by a re-run; a re-run with
another plan is refused. One image is in memory at a time; the list of images takes about 30 bytes each.

Images are not resized: that is the reader's decision, and it can be made only once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.engine.jobs import describe_start, order_for_worker, run_jobs
from teachonce.engine.progress import Advance, phase, progress
from teachonce.engine.stop_between_units import stopping_gently
from teachonce.errors import ConfigError, ImageError, LogitsError, PlanMismatchError, RecordError
from teachonce.interop.config import MergeConfig, RecordsConfig
from teachonce.interop.csv_join import LineClaims
from teachonce.interop.csv_table import CsvTable
from teachonce.interop.imagenet import BoxReader, class_texts, open_boxes, read_image_labels, read_metadata
from teachonce.interop.logit_table import MappedTable, open_logit_table
from teachonce.interop.reindex import of_this_run, rewritten_features
from teachonce.pixels.decode import CheckedImage, check_image, check_jpeg, to_rgb_jpeg
from teachonce.pixels.jpeg_structure import sound_jpeg_size
from teachonce.pixels.restart_markers import require_rewriter
from teachonce.records.class_table import (
    BACKGROUND,
    CLASSES_NAME,
    ClassTable,
    describe_classes,
    read_classes,
    read_labels,
    write_classes,
)
from teachonce.records.discovery import IMAGE_FOLDERS, find_kind, find_splits, match_split
from teachonce.records.folder_layout import find_image_splits
from teachonce.records.image_listing import (
    TRAIN_NAMES,
    ImageListing,
    find_class_folders,
    find_data_classes,
    find_train_folder,
    list_images,
)
from teachonce.records.source import parse_shard_name, record_key, shard_name
from teachonce.records.tfrecord.framing import TFRecordWriter, delete_index, index_path, is_whole, write_index
from teachonce.records.tfrecord.tf_example import FeatureValue, encode_example
from teachonce.records.written_files import list_written
from teachonce.rng import generator
from teachonce.storage.files import atomic_write, exists, open_storage
from teachonce.storage.names import check_component
from teachonce.storage.remote.file_index import ListedFile
from teachonce.storage.resume import PlanFile
from teachonce.storage.storage import Storage
from teachonce.terminal import plural, print_note

WORKER_IMAGES = 2000
"""Images for which it pays to start one more process: it takes about as long as to write half of them."""
CLAIMED_IMAGES = 4096
"""Names that are looked up at once in a CSV."""

_NO_BOXES = np.empty((0, 4), np.float32)


@dataclass(frozen=True)
class ShardJob:
    """The images of one shard in their order, with their labels."""

    name: str
    listing: ImageListing
    labels: NDArray[np.int32]


class WrittenShard(NamedTuple):
    """What a worker says of a shard that it wrote."""

    num_others: int
    """Images that are no JPEG in RGB or grayscale."""
    num_unmarked: int
    """Images that could not be given the restart markers requested."""
    files: dict[str, ListedFile]
    """Shard and index; nothing where another process wrote them meanwhile."""


def convert_records(config: RecordsConfig) -> None:
    """Write the shards of a split that are not there yet.

    Raises ConfigError or RecordError where images, classes, boxes and logits do not fit together, ImageError with the
    path of an image that cannot be decoded, PlanMismatchError where ``out`` holds the shards of another conversion.
    """
    if config.restart != "off":
        require_rewriter(f"--restart {config.restart}")
    with phase("records", "listing the images"):
        listing, labels, classes = list_labeled_images(config)
    if len(listing) < config.shards:
        raise ConfigError(f"--shards {config.shards}: more than the {len(listing)} images of {listing.root}")
    with phase("records", "reading boxes and logits"):
        boxes = _open_boxes(config, listing)
        table = _open_logits(config, listing, classes.names)
    order = generator(config.seed, "records", config.split).permutation(len(listing))
    _begin(config, _build_plan(config, listing, labels, classes, boxes, table, order), classes)

    bounds = np.linspace(0, len(listing), config.shards + 1).astype(np.int64)
    names = [shard_name(config.split, shard, config.shards) for shard in range(config.shards)]
    jobs = []
    for shard in order_for_worker(range(config.shards), *config.worker_part()):
        if not is_whole(config.out / names[shard]):
            chosen = order[bounds[shard] : bounds[shard + 1]]
            jobs.append(ShardJob(names[shard], listing.select(chosen), labels[chosen]))
    done = len(listing) - sum(len(job.listing) for job in jobs)
    build = partial(_ShardWriter, config, classes, boxes, table)
    engine = config.choose_engine(sum(len(job.listing) for job in jobs) // WORKER_IMAGES)
    start = describe_start(engine.num_workers, len(jobs))
    with (
        stopping_gently(config.grace_seconds),
        progress("records", len(listing), done=done, phase=start) as advance,
    ):
        written = [found for _, found in run_jobs(build, jobs, engine=engine, report=advance)]
    num_others = sum(found.num_others for found in written)
    num_unmarked = sum(found.num_unmarked for found in written)
    check_arrived(config, [job.name for job in jobs])
    open_storage(config.out).remove_temporaries()
    files = {name: entry for found in written for name, entry in found.files.items()}
    list_written(config.out, config.split, files, is_alone=config.worker_part()[1] == 1)
    print_note(f"{config.out}: {plural(len(listing), config.split + ' record')} in {plural(config.shards, 'shard')}")
    if num_others:
        done_to = "kept unchanged" if config.keep else "re-encoded"
        which = f"{num_others} images{of_this_run(done)}"
        print_note(f"records: {which} were not RGB or grayscale JPEGs and were {done_to}")
    if num_unmarked:
        which = f"{num_unmarked} images{of_this_run(done)}"
        print_note(f"records: {which} could not be given restart markers and were left unchanged")


def list_labeled_images(config: RecordsConfig) -> tuple[ImageListing, NDArray[np.int32], ClassTable]:
    """The images of the split in sorted order, their labels (from 1), and the classes with background 0.

    Raises ConfigError or RecordError where there are none, or where one has a class that the labels do not know, or
    that is called as label 0 is.
    """
    root = _find_root(config)
    listing, names, name_of = _list_flat(config, root) if config.image_labels else _list_folders(root)
    if config.labels is not None:
        known, origin = _read_classes(config.labels), config.labels
    else:
        has_splits = root != config.images
        known = tuple((has_splits and find_data_classes(config.images, root.name)) or names)
        origin = config.images / (find_train_folder(config.images) or root.name)
    if BACKGROUND in {*known, *names}:
        raise ConfigError(
            f"{root if BACKGROUND in names else origin}: a class is called {BACKGROUND}, as label 0 of the records, "
            "which no image has; rename the class"
        )
    label_of = {name: label for label, name in enumerate(known, 1)}
    unknown = [number for number, name in enumerate(names) if name not in label_of]
    if unknown:
        first = int(np.flatnonzero(np.isin(name_of, unknown))[0])
        hint = (
            "; ILSVRC's own class numbers have another order; give synsets" if names[name_of[first]].isdecimal() else ""
        )
        raise RecordError(
            f"{listing.path(first)}: class {names[name_of[first]]} is not among the {len(known)} of {origin}{hint}; "
            "give the --labels of this data"
        )
    texts = class_texts(known, read_metadata(config.metadata) if config.metadata is not None else None)
    classes = ClassTable((BACKGROUND, *known), (BACKGROUND, *texts), has_background=True)
    return listing, np.array([label_of[name] for name in names], np.int32)[name_of], classes


def _read_classes(path: Path) -> tuple[str, ...]:
    """The classes that a labels file lists; a first line of background is label 0, which the records have anyway."""
    names = read_labels(path)
    if BACKGROUND in names[1:]:
        raise ConfigError(
            f"--labels {path} line {names.index(BACKGROUND) + 1}: {BACKGROUND} is label 0 of the records; move it to "
            "the first line or remove it, or rename the class if it has images"
        )
    if names[0] != BACKGROUND:
        return names
    if len(names) == 1:
        raise ConfigError(f"--labels {path}: has {BACKGROUND} alone, expected one class name a line")
    print_note(f"--labels {path}: line 1, {BACKGROUND}, is label 0; the {len(names) - 1:,} classes count from 1")
    return names[1:]


def _find_root(config: RecordsConfig) -> Path:
    """The folder of the split, which may have another name for it; of images in no splits, the training split, theirs.

    Shards are named after the split that was asked for.
    """
    root = config.images / check_component(config.split, "--split", ConfigError)
    images = open_storage(config.images)
    if images.is_folder(config.split):
        return root
    if exists(config.images) and (kind := find_kind(config.images)) not in (None, IMAGE_FOLDERS):
        raise ConfigError(
            f"{config.images}: records makes TFRecords of {IMAGE_FOLDERS}, SPLIT/CLASS or CLASS, found {kind}; other "
            "commands read them as they are: give them as --data"
        )
    if not images.is_folder():
        raise ConfigError(f"{config.images}: no such folder; expected SPLIT/CLASS or CLASS folders of images")
    if splits := find_splits(config.images):
        if name := match_split(splits, config.split):
            return config.images / name
        raise ConfigError(f"{root}: no such folder; {config.images} has {', '.join(splits)}; give another --split")
    has_images = find_image_splits(config.images, images.list_folder()) == []
    if has_images and config.split.lower() in TRAIN_NAMES:
        return config.images
    advice = "its images are --split train; " if has_images else ""
    raise ConfigError(
        f"{root}: no such folder; {config.images} has no splits; {advice}move the class folders of {config.split} "
        "below it"
    )


def _list_folders(root: Path) -> tuple[ImageListing, list[str], NDArray[np.int32]]:
    """Images, class names, and which of them each image has."""
    folders = find_class_folders(root, warns=True)
    if not folders:
        raise ConfigError(f"{root}: no class folders; for a flat folder of images give --image-labels")
    listing = list_images(root, folders)
    return listing, folders, listing.class_of(folders)


def _list_flat(config: RecordsConfig, root: Path) -> tuple[ImageListing, list[str], NDArray[np.int32]]:
    assert config.image_labels is not None
    if find_class_folders(root):
        raise ConfigError(f"--image-labels {config.image_labels}: {root} has class folders; leave the option out")
    listing = list_images(root, [""])
    image_classes = read_image_labels(config.image_labels, len(listing))
    names = sorted(set(image_classes))
    number_of = {name: number for number, name in enumerate(names)}
    return listing, names, np.array([number_of[name] for name in image_classes], np.int32)


def _open_boxes(config: RecordsConfig, listing: ImageListing) -> BoxReader | None:
    if config.boxes is None:
        return None
    boxes = open_boxes(config.boxes)
    if not boxes.has_any(listing):
        warnings.warn(f"--boxes {config.boxes}: it has no box for any image of {listing.root}", stacklevel=3)
    return boxes


def _open_logits(config: RecordsConfig, listing: ImageListing, names: Sequence[str]) -> MappedTable | None:
    if config.logits is None:
        return None
    table = open_logit_table(
        config.logits,
        split=config.split,
        num_classes=len(names),
        background_logit=config.background_logit,
        class_names=names,
    )
    if isinstance(table.table, CsvTable):
        claims = LineClaims(table.table.lines, listing.root, listing.relative_name)
        for first in range(0, len(listing), CLAIMED_IMAGES):
            images = range(first, min(first + CLAIMED_IMAGES, len(listing)))
            claims.claim([listing.relative_name(index) for index in images], first)
        claims.check_all()
    elif len(table.table) != len(listing):
        found = f"--logits {config.logits}: of {len(table.table)} images"
        warnings.warn(f"{found}, {listing.root} has {len(listing)}: of other data?", stacklevel=3)
    return table


def _build_plan(
    config: RecordsConfig,
    listing: ImageListing,
    labels: NDArray[np.int32],
    classes: ClassTable,
    boxes: BoxReader | None,
    table: MappedTable | None,
    order: NDArray[np.int64],
) -> dict[str, Any]:
    return {
        "format": 1,
        "split": config.split,
        "shards": config.shards,
        "seed": config.seed,
        "keep": config.keep,
        "restart": config.restart,
        "images": len(listing),
        "image names": listing.digest(),
        "labels": xxhash.xxh3_128_hexdigest(labels.tobytes()),
        # The drawn order, not the seed alone: another NumPy may draw another one, and shards of two orders would
        # hold some images twice and others never.
        "order": xxhash.xxh3_128_hexdigest(order.astype("<i8").tobytes()),
        "boxes": None if boxes is None else boxes.digest(),
        "logits": None if table is None else table.table.digest(),
        "background logit": None if config.logits is None else str(config.background_logit),
    }


def _begin(config: RecordsConfig, plan: dict[str, Any], classes: ClassTable) -> None:
    """Write plan and classes, or compare with what an earlier run wrote; remove what it left half-written."""
    name = f"records.{config.split}.json"
    plan_file = PlanFile(
        folder=config.out,
        name=name,
        foreign=PlanMismatchError(
            f"{config.out}: is not a folder, or holds {config.split} shards that this command did not write (no "
            f"{name}); choose another --out"
        ),
        is_foreign=lambda names: any(shard and shard[0] == config.split for shard in map(parse_shard_name, names)),
        advice=f"choose another --out, or remove the {config.split} shards and {name}",
        defaults={"keep": False, "restart": "off"},
        hashes={
            "image names": "the names of the images",
            "labels": "the labels of the images",
            "order": "the order of the images (drawn by --seed)",
            "boxes": "the boxes (--boxes)",
            "logits": "the logits (--logits)",
        },
    )
    plan_file.check(plan)
    old_classes = read_classes(config.out)
    if old_classes is None:
        write_classes(config.out, classes)
    elif old_classes != classes:
        raise PlanMismatchError(
            f"{config.out / CLASSES_NAME}: other classes ({describe_classes(old_classes)}) than now "
            f"({describe_classes(classes)}); give the same --labels and --metadata for every split, or another --out"
        )
    plan_file.begin(plan)
    open_storage(config.out).remove_temporaries()


def check_arrived(config: RecordsConfig | MergeConfig, names: Sequence[str]) -> None:
    """Raise RecordError where shards that a cluster's workers made are not here."""
    missing = [name for name in names if not is_whole(config.out / name)] if config.engine != "local" else []
    if missing:
        raise RecordError(
            f"{config.out}: {len(missing)} shards that workers wrote are missing here (first: {missing[0]}): "
            "--out must be a folder that all nodes of the cluster share under this name"
        )


class _ShardWriter:
    def __init__(
        self,
        config: RecordsConfig,
        classes: ClassTable,
        boxes: BoxReader | None,
        table: MappedTable | None,
        worker_index: int,
    ) -> None:
        self.out = config.out
        self.keep = config.keep
        self.restart = config.restart
        self.classes = classes
        self.boxes = boxes
        self.table = table

    def __call__(self, job: ShardJob, report: Advance) -> WrittenShard:
        """Write one shard and its index."""
        path = self.out / job.name
        if is_whole(path):  # by another process, meanwhile
            report(len(job.listing))
            return WrittenShard(0, 0, {})
        images = open_storage(job.listing.root, RecordError)
        num_others = num_unmarked = 0
        delete_index(path)  # of an older shard of this name
        # Another process's that came first stays: it has the same bytes, and may be read already.
        with atomic_write(path, overwrite=False) as file:
            writer = TFRecordWriter(file)
            for index, label in enumerate(job.labels.tolist()):
                try:
                    features, is_other, is_unmarked = self._build_features(images, job.listing, index, label)
                except (ImageError, LogitsError) as error:
                    raise error.at(str(job.listing.path(index))) from error
                num_others += is_other
                num_unmarked += is_unmarked
                writer.write(encode_example(features))
                report(1)
        listed_index = write_index(index_path(path), writer.index)
        return WrittenShard(num_others, num_unmarked, {job.name: writer.listed, index_path(path).name: listed_index})

    def _build_features(
        self, images: Storage, listing: ImageListing, index: int, label: int
    ) -> tuple[dict[str, FeatureValue], bool, bool]:
        """What a record holds; whether its image was none that is written as it is, and can have no restart markers."""
        original = _read_image(images, listing.relative_name(index))
        encoded, image = _check_image(original, keep=self.keep)
        width, height = image.size
        boxes = _NO_BOXES
        if self.boxes is not None:
            boxes = self.boxes.find_boxes(listing.relative_name(index))
        basename = listing.basename(index)
        features: dict[str, FeatureValue] = {
            "image/height": height,
            "image/width": width,
            "image/colorspace": b"RGB",
            "image/channels": 3,
            "image/class/label": label,
            "image/class/synset": self.classes.names[label].encode(),
            "image/class/text": self.classes.texts[label].encode(),
            "image/object/bbox/xmin": boxes[:, 0],
            "image/object/bbox/ymin": boxes[:, 1],
            "image/object/bbox/xmax": boxes[:, 2],
            "image/object/bbox/ymax": boxes[:, 3],
            "image/object/bbox/label": np.full(len(boxes), label, np.int64),
            "image/format": image.format.encode(),
            "image/filename": basename.encode(),
            "image/encoded": encoded,
        }
        if self.table is not None:
            features["image/logit"] = _find_logits(self.table, original, encoded, basename, label)
        is_unmarked = False
        if self.restart != "off":
            changes = rewritten_features(encoded, self.restart, record_key(encoded))
            is_unmarked = changes is None
            features |= changes or {}
        return features, not image.is_plain, is_unmarked


def _check_image(original: bytes, *, keep: bool) -> tuple[bytes, CheckedImage]:
    """The bytes to write, the very ``original`` or encoded again, and what they are; raises ImageError."""
    size = sound_jpeg_size(original)
    if size is not None:
        return original, CheckedImage("JPEG", size, is_plain=True)
    if keep:
        return original, check_image(original)
    encoded = to_rgb_jpeg(original)
    return encoded, CheckedImage("JPEG", check_jpeg(encoded), is_plain=encoded is original)


def _read_image(images: Storage, name: str) -> bytes:
    try:
        return images.read(name)
    except RecordError as error:
        raise RecordError(f"{error}; restore it and start again") from error


def _find_logits(table: MappedTable, original: bytes, encoded: bytes, basename: str, label: int) -> NDArray[np.float32]:
    try:
        return table.logits_of(key=record_key(encoded), filename=basename, label=label)
    except LogitsError:
        # A store that was extracted from the image folder knows the image by its bytes there.
        if encoded is original:
            raise
        return table.logits_of(key=record_key(original), filename=basename, label=label)
