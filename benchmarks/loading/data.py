"""What every pipeline of ``loading.py`` reads: shards with ``image/logit``, a long epoch of them, a store.

    WORK/records   shards of about 1,000 photographs (or none, where ``--data`` gives some)
    WORK/epoch     links to them, many to each, so that an epoch is long and its end costs nobody anything
    WORK/marked, WORK/marked-epoch   the same records with restart markers in their photographs
    WORK/store     4 stored views of policy crop of every record of WORK/epoch, int8, random logits
    WORK/small     32 px photographs; WORK/small-store their store

Nothing is downloaded and no teacher is asked: what the logits are does not change how fast they are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.photographs import read_jpegs, write_jpegs, write_photographs
from teachonce.codecs.registry import build_codec
from teachonce.interop.config import ReindexConfig
from teachonce.interop.reindex import reindex
from teachonce.pixels.decode import image_size
from teachonce.records.class_space import ClassSpace
from teachonce.records.class_table import read_classes, write_classes
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource, shard_name
from teachonce.records.tfrecord.source import find_shards
from teachonce.store.begin import begin_store
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import Plan, describe_data
from teachonce.store.tables import StoreWriter
from teachonce.views.draw import draw_view
from teachonce.views.policy import CropPolicy, policy_to_json

NUM_RECORDS = 1000
NUM_SHARDS = 8
NUM_VIEWS = 4
EPOCH_RECORDS = 8000
SEED = 0


def prepare_photographs(work: Path, data: Path | None, images: Path | None) -> RecordSource:
    """Make WORK/epoch and WORK/store from shards, images or nothing; returns the records of one epoch.

    Raises LogitsError where the shards of ``data`` lack ``image/logit``.
    """
    if data is None:
        data = work / "records"
        if images is None:
            write_photographs(data, NUM_RECORDS, NUM_SHARDS, with_logits=True)
        else:
            jpegs, labels = read_jpegs(images)
            times = -(-NUM_RECORDS // len(jpegs))
            write_jpegs(data, jpegs * times, labels * times, NUM_SHARDS, with_logits=True)
    source = open_records(data, "train")
    source.read_record(0, 0, with_logits=True)
    times = -(-EPOCH_RECORDS // source.num_records)
    link_epoch(data, work / "epoch", times)
    reindex(ReindexConfig(data=data, out=work / "marked"))
    link_epoch(work / "marked", work / "marked-epoch", times)
    epoch = open_records(work / "epoch", "train")
    write_crop_store(work / "store", epoch)
    return epoch


def prepare_small(work: Path, images: Path, count: int = 5000) -> RecordSource:
    """Make WORK/small and WORK/small-store of ``count`` small images of a folder or archive."""
    jpegs, labels = read_jpegs(images, count)
    num_classes = 1 + max(labels)
    source = open_records(write_jpegs(work / "small", jpegs, labels, 4, num_classes=num_classes), "train")
    write_crop_store(work / "small-store", source)
    return source


def link_epoch(data: Path, folder: Path, times: int) -> None:
    """``folder``: the shards of ``data``, each ``times`` times, and the class table."""
    shards = find_shards(data, "train") * times
    folder.mkdir(parents=True)
    for index, path in enumerate(shards):
        (folder / shard_name("train", index, len(shards))).symlink_to(path.resolve())
    classes = read_classes(data)
    if classes is not None:
        write_classes(folder, classes)


def num_classes_of(source: RecordSource) -> int:
    """Classes of the data with background: the class table's, else the logits'."""
    if source.classes is not None:
        return len(source.classes.names)
    logits = source.read_record(0, 0, with_logits=True).logits
    assert logits is not None
    return len(logits)


def write_crop_store(path: Path, source: RecordSource) -> None:
    """A whole store over ``source``: random crops and flips as an extraction draws them, random logits, int8."""
    num_classes = num_classes_of(source)
    policy = CropPolicy()
    codec = build_codec("int8", num_classes=num_classes)
    group = (0, NUM_VIEWS - 1)
    plan = Plan(
        teacher={"spec": "none", "model": "random", "precision": "float32"},
        class_space=ClassSpace(num_classes=num_classes),
        data_classes=num_classes,
        **describe_data(source, num_classes),
        policy={**policy_to_json(policy), "seed": SEED},
        codec=codec.to_json(),
        view_groups=(group,),
    )
    begin_store(path, plan, views_per_file=NUM_VIEWS)
    writer = StoreWriter(path, plan)
    rng = np.random.default_rng(2)
    for shard, (name, num_records) in enumerate(plan.shards):
        records = list(source.iter_shard(shard))
        keys = np.array([record.key for record in records], np.uint64)
        labels = np.array([record.label for record in records], np.int32)
        sizes = [image_size(record.encoded) for record in records]
        views = [
            [
                draw_view(policy, SEED, record.key, view, *size, None)
                for record, size in zip(records, sizes, strict=True)
            ]
            for view in range(NUM_VIEWS)
        ]
        logits = rng.normal(0, 3, (NUM_VIEWS, num_records, num_classes)).astype(np.float32)
        writer.write_records(name, keys, [record.filename for record in records], labels)
        writer.write_views(name, group, keys, labels, logits, views)
    assert finalize_store(path) == NUM_VIEWS
