"""Small real data for tests: image files, TFRecord shards of them, and a store with given logits."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from teachonce.codecs.registry import build_codec
from teachonce.data.dataset import KDDataset
from teachonce.data.logit_sources import LogitSource, RecordLogits
from teachonce.data.stored_logits import StoredLogits
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.view_sources import DrawnViews, OwnViews, ViewSource
from teachonce.records.class_space import ClassSpace
from teachonce.records.class_table import ClassTable, write_classes
from teachonce.records.discovery import open_records
from teachonce.records.source import Record, RecordSource, shard_name
from teachonce.records.tfrecord.framing import TFRecordWriter, index_path, read_tfrecords
from teachonce.records.tfrecord.tf_example import encode_example
from teachonce.store.begin import begin_store
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import Group, Plan, describe_data, views_file
from teachonce.store.plan_files import read_plan
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from teachonce.store.tables import Sample, StoreWriter
from teachonce.views.options import ViewOrderName
from teachonce.views.order import ViewOrder
from teachonce.views.policy import CenterPolicy, CropPolicy, policy_to_json
from teachonce.views.view import View


# The same few images are asked for by most tests.
@lru_cache(maxsize=4096)
def encode_jpeg(index: int, width: int = 40, height: int = 30) -> bytes:
    """A JPEG whose content is a function of ``index``: smooth colors and a bright patch."""
    rng = np.random.default_rng(index)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def encode_scans(num_scans: int, comment: bytes = b"") -> bytes:
    """A sound progressive JPEG, gray, 16 x 16 px, in up to 883 scans: each coefficient is sent bit by bit.

    Annex G of T.81; all coefficients are 0, so each block of a scan is the code of one bit for nothing.
    """

    def segment(marker: int, *content: int) -> bytes:
        return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + bytes(content)

    no_codes = (1, *(0,) * 15, 0)  # one code, "0", of symbol 0
    steps = [
        (k, k, high, low) for k in range(1, 64) for high, low in [(0, 13), *((b + 1, b) for b in range(12, -1, -1))]
    ]
    scans = [segment(0xDA, 1, 1, 0, first, last, high << 4 | low) for first, last, high, low in [(0, 0, 0, 0), *steps]]
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xFE, *comment),
            segment(0xDB, 0, *(1,) * 64),
            segment(0xC2, 8, 0, 16, 0, 16, 1, 1, 0x11, 0),
            segment(0xC4, 0x00, *no_codes),
            segment(0xC4, 0x10, *no_codes),
            *(scan + b"\x0f" for scan in scans[:num_scans]),
            b"\xff\xd9",
        )
    )


def write_image_folder(folder: Path, split: str = "train", num_classes: int = 3, per_class: int = 4) -> Path:
    """SPLIT/CLASS/NAME.jpg with names that are unique over the classes."""
    for label in range(num_classes):
        for index in range(per_class):
            path = folder / split / f"class{label}" / f"{split}_{label}_{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_jpeg(1000 * label + index + (500 if split != "train" else 0)))
    return folder


def example(index: int, label: int, **features) -> bytes:
    """A serialized record; a feature given as None is left out."""
    values = {
        "image/encoded": encode_jpeg(index),
        "image/class/label": label,
        "image/filename": f"image_{index}.jpg".encode(),
    }
    for name, value in features.items():
        values["image/" + name] = value
    return encode_example({name: value for name, value in values.items() if value is not None})


def write_shards(folder: Path, sizes=(5, 3), split: str = "train", num_classes: int | None = 4, payloads=None) -> Path:
    """TFRecord shards; ``num_classes`` counts the background, labels go 1, 2, ..; None writes no classes.json."""
    folder.mkdir(parents=True, exist_ok=True)
    index = 0
    for shard, size in enumerate(sizes):
        with (folder / shard_name(split, shard, len(sizes))).open("wb") as file:
            writer = TFRecordWriter(file)
            for _ in range(size):
                label = 1 + index % ((num_classes or 4) - 1)
                writer.write(payloads[index] if payloads else example(index, label))
                index += 1
    if num_classes is not None:
        names = ("background", *(f"class{label}" for label in range(num_classes - 1)))
        write_classes(folder, ClassTable(names, names, has_background=True))
    return folder


def rewrite_shard(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Write a TFRecord shard again with other payloads."""
    payloads = change([bytes(payload) for _, payload in read_tfrecords(path)])
    index_path(path).unlink(missing_ok=True)  # as any program does that writes shards anew
    with path.open("wb") as file:
        writer = TFRecordWriter(file)
        for payload in payloads:
            writer.write(payload)


def change_image(path: Path, row: int) -> None:
    """Flip one bit of an image of a TFRecord shard, which stays as long as it was."""

    def change(payloads: list[bytes]) -> list[bytes]:
        payload = bytearray(payloads[row])
        payload[payload.index(b"\xff\xd9") - 10] ^= 1
        return [*payloads[:row], bytes(payload), *payloads[row + 1 :]]

    rewrite_shard(path, change)


def write_store(
    path: Path,
    source: RecordSource | Path,
    logits: np.ndarray | None = None,
    *,
    num_classes: int = 3,
    offset: int = 1,
    codec: str = "float32",
    split: str = "train",
    sample_rows: Sequence[int] = (),
) -> Store:
    """A finished store (policy center) over ``source`` with the given logits [N, C], or random ones.

    ``sample_rows`` of each shard have samples, without the hashes of pixels.
    """
    if isinstance(source, Path):
        source = open_records(source, split)
    if logits is None:
        logits = np.random.default_rng(0).normal(0, 3, (source.num_records, num_classes)).astype(np.float32)
    data_classes = len(source.classes.names) if source.classes is not None else logits.shape[1] + offset
    plan = Plan(
        teacher={"spec": "none", "model": "test", "precision": "float32"},
        class_space=ClassSpace(num_classes=logits.shape[1], offset=offset),
        data_classes=data_classes,
        **describe_data(source, data_classes),
        policy=policy_to_json(CenterPolicy()),
        codec=build_codec(codec, num_classes=logits.shape[1]).to_json(),
        view_groups=((0, 0),),
        num_samples=len(sample_rows),
    )
    begin_store(path, plan, views_per_file=1)
    first = 0
    writer = StoreWriter(path, plan, {"versions": {"teachonce": "0"}, "device": "cpu"})
    for shard, (name, num_records) in enumerate(plan.shards):
        records = list(source.iter_shard(shard))
        keys = np.array([record.key for record in records], np.uint64)
        labels = np.array([record.label for record in records], np.int32)
        writer.write_records(name, keys, [record.filename for record in records], labels)
        rows = logits[None, first : first + num_records]
        if sample_rows:
            samples = [Sample(row=row, view=0, image_xxh3=0, pixels_xxh3=0, logits=rows[0, row]) for row in sample_rows]
            writer.write_samples(name, (0, 0), keys, samples)
        writer.write_views(name, (0, 0), keys, labels, rows, None)
        first += num_records
    assert finalize_store(path)
    return Store(path)


def remove_manifests(path: Path) -> None:
    """Leave a store without its manifests, as one whose last worker was killed before it wrote them."""
    for file in (*path.glob("manifest.*"), *path.glob("index.*")):
        file.unlink()


@contextmanager
def forge(path: Path, *names: str, made_by: Mapping[str, Any] | None = None) -> Iterator[StoreWriter]:
    """Write files of a finished store anew as a forger does who keeps the books in order: hashes and manifests fit."""
    for name in names:
        (path / name).unlink()
    remove_manifests(path)
    plan = read_plan(path)
    yield StoreWriter(path, plan, made_by or {"versions": {"teachonce": "0"}, "device": "cpu"})
    assert finalize_store(path) == plan.num_views


def forge_views(
    path: Path, shard: int, logits: np.ndarray, views: Sequence[Sequence[View]] | None, group: Group | None = None
) -> None:
    """Other logits [V, N, C] and views [V][N] of a shard's group (the first one), in an otherwise sound store."""
    store = Store(path)
    group = group or store.plan.view_groups[0]
    keys, labels = store.read_keys(shard).copy(), store.read_labels(shard).copy()
    name, _ = store.shards[shard]
    with forge(path, views_file(name, group)) as writer:
        writer.write_views(name, group, keys, labels, logits, views)


def write_digits(folder: Path, num_train: int = 96, num_validation: int = 48, size_px: int = 16) -> Path:
    """Handwritten digits of scikit-learn (real scans, 8 x 8 px) as PNG files, SPLIT/DIGIT/NNNN.png.

    From its file: importing scikit-learn for ``load_digits``, which reads the same, takes a second or two.
    """
    found = find_spec("sklearn")
    assert found is not None and found.origin is not None, "scikit-learn is not installed"
    table = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    digits = np.loadtxt(table, delimiter=",", max_rows=num_train + num_validation)
    for index, (*values, target) in enumerate(digits):
        split = "train" if index < num_train else "validation"
        path = folder / split / str(int(target)) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (np.reshape(values, (8, 8)) * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.BICUBIC).save(path)
    return folder


def teacher_logits(source: RecordSource, num_classes: int = 10) -> np.ndarray:
    """Logits [N, C] of a teacher that is right and not too sure: 6 for the label, noise of 1.5 everywhere."""
    labels = [record.label for shard in range(len(source.shards)) for record in source.iter_shard(shard)]
    logits = np.random.default_rng(1).normal(0, 1.5, (len(labels), num_classes)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 6
    return logits


def build_dataset(
    records: RecordSource,
    *,
    size: int,
    store: Store | Path | Sequence[Store | Path] | None = None,
    use_record_logits: bool = False,
    seed: int = 0,
    policy: CropPolicy | None = None,
    own_views: bool = False,
    view_order: ViewOrderName = "sequential",
    online: Preprocessing | None = None,
    view_seed: int | None = None,
    temperature: float = 1.0,
    as_stored: bool = False,
    **options: Any,
) -> KDDataset:
    """The data set that most tests want: of stores their views, else the student's own or an online teacher's."""
    given = [] if store is None else [store] if isinstance(store, Store | Path) else list(store)
    stores = [item if isinstance(item, Store) else Store(item) for item in given]
    policy = policy or CropPolicy()
    logits: LogitSource | None = RecordLogits() if use_record_logits else None
    views: ViewSource
    if online is not None:
        views = DrawnViews(policy, seed if view_seed is None else view_seed, records)
    else:
        views = OwnViews(policy, seed)
    if stores:
        order = ViewOrder(num_views=min(item.num_views for item in stores), kind=view_order, seed=seed)
        logits = StoredLogits(stores, order, temperature=None if as_stored else temperature)
        if stores[0].policy.is_random and not own_views:
            views = StoredViews(stores[0], order)
    return KDDataset(records, views, logits, size=size, online=online, **options)


def run_config(student: str, preprocessing: Preprocessing, *, num_classes: int = 5, offset: int = 0) -> dict[str, Any]:
    """The content of a run's config.json that ``Run`` asks for: of a student that learned from labels."""
    return {
        "student": student,
        "num_classes": num_classes,
        "offset": offset,
        "data_classes": num_classes + offset,
        "size": preprocessing.size_px,
        "preprocessing": preprocessing.to_json(),
        "kd_temp": 0.0,
        "store": None,
    }


def write_as_folder(source: RecordSource, folder: Path, *, names: Callable[[Record], str] | None = None) -> Path:
    """The images of a source as FOLDER/SPLIT/CLASS/NAME; ``names`` says the class of each, default: as the source."""
    assert source.classes is not None
    classes = source.classes.names
    name_of = names or (lambda record: classes[record.label])
    for shard in range(len(source.shards)):
        for record in source.iter_shard(shard):
            path = folder / source.split / name_of(record) / record.filename.rpartition("/")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(record.encoded))
    return folder
