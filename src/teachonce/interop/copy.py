"""``teachonce copy``: a store, records or a run from one place to another, local folders, object stores, web servers.

Every byte is checked in transit by the hashes that its kind has, and nothing damaged is put. A copy that was
interrupted is completed by the same command; what makes the target complete for its readers comes last. What is in a
folder of the three kinds is in ``copying``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from teachonce.errors import ConfigError
from teachonce.interop.config import CopyConfig, parse_span
from teachonce.interop.copying.folders import copy_images, copy_records, copy_run
from teachonce.interop.copying.stores import copy_store
from teachonce.interop.copying.transfer import Copied, CopyJob
from teachonce.records.discovery import match_split, named_splits
from teachonce.records.folder_layout import find_image_splits
from teachonce.records.image_listing import known_as
from teachonce.records.source import parse_shard_name
from teachonce.runs.run import holds_run
from teachonce.storage.address import READ_ONLY, Address, read_only_error
from teachonce.storage.files import exists, open_storage
from teachonce.storage.storage import Listing
from teachonce.store.plan_files import holds_store
from teachonce.terminal import print_note


def copy(config: CopyConfig) -> None:
    """Copy what is at ``config.source``, or the part that is requested, and say what was done.

    Raises ConfigError where there is nothing to copy or the target cannot be written, else as the kinds' functions:
    RecordError or StoreError for what is damaged, PlanMismatchError where something else is at the target.
    """
    if config.source.resolve() == config.target.resolve():
        raise ConfigError(f"{config.target}: is the source itself; choose another target")
    if not open_storage(config.target).can_list:
        raise ConfigError(f"{config.target}: a web server is read-only; copy to a local path, s3://, gs:// or az://")
    job = CopyJob(
        source=config.source,
        target=config.target,
        views=parse_span("--views", config.views),
        shards=parse_span("--shards", config.shards),
        split=config.split,
        transfers=config.transfers,
        trust=config.trust,
    )
    if isinstance(job.target, Address) and job.target.scheme in READ_ONLY:
        raise read_only_error(job.target)
    copied = _copy(job)
    print_note(
        f"{config.target}: complete: {copied.what}, {copied.num_files:,} files, {copied.num_bytes:,} bytes: "
        f"{copied.num_new:,} copied, {copied.num_files - copied.num_new:,} already there"
    )


def _copy(job: CopyJob) -> Copied:
    if holds_store(job.source):
        if job.split is not None:
            raise ConfigError(f"--split {job.split}: is for records, {job.source} is a store")
        return copy_store(job)
    if job.views is not None:
        raise ConfigError(f"--views {job.views}: is for stores, which {job.source} is not")
    if holds_run(job.source):
        return copy_run(job)
    storage = open_storage(job.source)
    if storage.is_folder():
        listing = storage.list_folder()
        shards = {shard[0] for shard in map(parse_shard_name, listing.files) if shard}
        if job.split in shards:
            return copy_records(job)
        if job.split is None and shards:
            return _copy_all(job, sorted(shards), listing)
        splits = find_image_splits(job.source, listing) or []
        name = None if job.split is None else match_split(sorted({*shards, *splits}), job.split)
        if name in shards:
            return copy_records(replace(job, split=name))
        if name in splits or (job.split is None and splits):
            return copy_images(replace(job, split=name))
        if job.split is not None and (shards or splits):
            raise ConfigError(f"--split {job.split}: {job.source} has {', '.join(sorted({*shards, *splits}))}")
        if named_splits(job.source):
            raise _not_copied(job)
        raise ConfigError(f"{job.source}: holds no store, records or run, so there is nothing to copy; check the path")
    if exists(job.source):
        raise _not_copied(job)
    raise ConfigError(f"{job.source}: no such folder; expected a store, records or a run; check the path")


def _copy_all(job: CopyJob, shards: Sequence[str], listing: Listing) -> Copied:
    """Every split of a folder of TFRecords: others may be folders of images beside them."""
    found = (listing.folders and find_image_splits(job.source, listing)) or []
    known = {known_as(name).lower() for name in shards}
    images = [name for name in sorted(found) if known_as(name).lower() not in known]  # readers take the shards
    if not images or job.shards is not None:
        return copy_records(job)
    first, second = copy_records(job), copy_images(job, images)
    return Copied(f"{first.what}; {second.what}", *map(sum, zip(first[1:], second[1:], strict=True)))


def _not_copied(job: CopyJob) -> ConfigError:
    return ConfigError(
        f"{job.source}: copy takes a store, a run, TFRecord shards SPLIT-NNNNN-of-NNNNN or SPLIT/CLASS folders of "
        "images; copy tars, Parquet, tables and other data with the tools of the place that they lie in"
    )
