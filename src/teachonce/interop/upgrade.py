"""Upgrade: a store of format 1 or 2 as one of format 3, without the teacher.

The stored columns are copied as they are, each file compared with its hash in the old manifest first. What the old
formats did not have is made of what is there: the index of the keys, a hash of each block, and how often the most
likely class is the label. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from teachonce.engine.progress import phase, progress
from teachonce.errors import ConfigError, StoreError
from teachonce.interop.config import UpgradeConfig
from teachonce.records.discovery import open_records
from teachonce.records.options import RecordOptions
from teachonce.storage.files import open_storage
from teachonce.store.begin import begin_store
from teachonce.store.card import copy_card
from teachonce.store.manifests import finalize_store
from teachonce.store.plan import FORMAT_VERSION, Group, Plan, records_file, samples_file, views_file
from teachonce.store.plan_files import check_holds_store, put_plan, read_plan, read_plans
from teachonce.store.store import Store
from teachonce.store.tables import StoreWriter, count_hits, to_batch
from teachonce.terminal import plural, print_note

ROWS_AT_ONCE = 1024
COMPARED_RECORDS = 256
"""Of the data that gives the names: of so many keys and labels are compared with the store's."""
_NO_OPTIONS = RecordOptions()


def upgrade(config: UpgradeConfig) -> None:
    """Write the store of format 3; files that are there already are kept, so an interrupted upgrade resumes.

    An old store that has got more views since is upgraded further. Raises ConfigError for a store that is of format 3,
    StoreError where the old one is unfinished or damaged, PlanMismatchError where the new one has these views in other
    groups.
    """
    check_holds_store(config.store)
    if read_plan(config.store).format_version == FORMAT_VERSION:
        raise ConfigError(f"{config.store}: is already of format {FORMAT_VERSION}; nothing to do")
    # Of "." and "..", which have no name of their own, what they stand for.
    path = config.store if config.store.name not in ("", "..") else config.store.resolve()
    out = config.out or path.with_name(f"{path.resolve().name}-v{FORMAT_VERSION}")
    with phase("upgrade", "opening the store"):
        store = Store(config.store)
        versions = store.versions
        plan = _begin(config, store, out)
    writer = StoreWriter(out, plan, {"versions": versions, "device": "unknown"})
    with progress("upgrade", store.num_records * store.num_views, unit="views") as advance:
        for shard, (_, num_records) in enumerate(store.shards):
            _copy_records(store, writer, out, shard)
            for group in store.plan.view_groups:
                _copy_group(store, writer, out, shard, group)
                advance(num_records * (group[1] - group[0] + 1))
    finalize_store(out)
    open_storage(out).remove_temporaries()
    copy_card(config.store, out)
    num_views = Store(out).num_views
    if num_views < store.num_views:
        raise StoreError(
            f"{out}: {num_views} views are complete, expected the {store.num_views} of {config.store}: files were "
            "removed meanwhile; run the same upgrade again"
        )
    print_note(
        f"{out}: format {FORMAT_VERSION}: {plural(store.num_records, 'record')} x {plural(store.num_views, 'view')}"
    )


def _begin(config: UpgradeConfig, store: Store, out: Path) -> Plan:
    names = None if config.data is None else read_names(config.data, store, config)
    plan = replace(store.plan, format_version=FORMAT_VERSION, class_names=names)
    # By the old store's own groups: its files are copied one by one.
    plan = begin_store(out, plan, views_per_file=None)
    while names is not None and plan.class_names is None:
        # Begun without names: they are those of the last plan. Another process may put one at the same time.
        put_plan(out, plan.extend(class_names=names), read_plans(out))
        plan = read_plan(out)
    return plan


def read_names(data: Path, store: Store, options: RecordOptions = _NO_OPTIONS) -> tuple[str, ...]:
    """The names of the data's classes; ConfigError where there are none, or it is not the data of the store."""
    source = open_records(data, store.plan.data["split"], options)
    if source.classes is None or len(source.classes.names) != store.plan.data_classes:
        found = "no class names" if source.classes is None else f"{len(source.classes.names)} classes"
        raise ConfigError(f"{data}: {found}, expected the {store.plan.data_classes} classes of the store")
    count = min(COMPARED_RECORDS, source.num_records)
    records = source.read_batch([source.locate(index * source.num_records // count) for index in range(count)])
    known = 0
    for record in records:
        labels = {int(store.read_labels(shard)[row]) for shard, row in store.locations_of(record.key)}
        known += bool(labels)
        if labels and record.label not in labels:
            raise ConfigError(
                f"{data}: {record.where}: label {record.label} ({record.filename}), the store {store.path} has "
                f"{min(labels)}: its classes are numbered differently; give the data from which the store was "
                "extracted"
            )
    if 2 * known <= count:
        raise ConfigError(
            f"{data}: the store {store.path} has only {known} of {count} compared records: other data; give the "
            "data from which the store was extracted"
        )
    return source.classes.names


def _copy_records(store: Store, writer: StoreWriter, out: Path, shard: int) -> None:
    name, _ = store.shards[shard]
    if not open_storage(out).has(records_file(name)):
        writer.write_records(name, store.read_keys(shard), store.read_filenames(shard), store.read_labels(shard))


def _copy_group(store: Store, writer: StoreWriter, out: Path, shard: int, group: Group) -> None:
    shard_name, _ = store.shards[shard]
    storage = open_storage(out)
    keys, labels = store.read_keys(shard), store.read_labels(shard)
    if store.plan.num_samples and not storage.has(samples_file(shard_name, group)):
        samples = store.read_samples(shard, group)
        if not samples:
            raise StoreError(
                f"{store.path / samples_file(shard_name, group)}: has no samples: damaged; restore the file"
            )
        writer.write_samples(shard_name, group, keys, samples)
    if storage.has(views_file(shard_name, group)):
        return
    batches, hits = [], []
    for view in range(group[0], group[1] + 1):
        columns = store.read_columns(shard, view)
        batches.append(to_batch({column: np.array(values) for column, values in columns.items()}))
        parts = (slice(first, first + ROWS_AT_ONCE) for first in range(0, len(labels), ROWS_AT_ONCE))
        offset = store.class_space.offset
        hits.append(sum(count_hits(store.read_logits(shard, view, rows), labels[rows], offset) for rows in parts))
    writer.write_columns(shard_name, group, keys, batches, hits)
