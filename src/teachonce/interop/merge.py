"""Merge: TFRecords in, TFRecords with ``image/logit`` out (step 2 of the walkthrough, from a store).

Some 64 records and their logits are in memory at a time, about 15 MB whatever the data's size; the walkthrough's own
merge holds every logit of ImageNet in one dict (about 41 GB). Images are copied as they are. Every record is found in
the store by its key, so an added or changed image stops the merge with its place, and its shard does
not appear; records that were removed from the data, or are in another order, do no harm.

A store beside the records needs no merge at all (``train --store``); this is for readers that know only TFRecords.
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.codecs.registry import warn_of_estimates
from teachonce.engine.buffers import BufferPool
from teachonce.engine.chunked import chunked
from teachonce.engine.jobs import describe_start, order_for_worker, run_jobs
from teachonce.engine.options import Engine
from teachonce.engine.progress import Advance, phase, progress
from teachonce.engine.stop_between_units import check_stop, stopping_gently
from teachonce.errors import ConfigError, StoreError
from teachonce.interop.config import MergeConfig
from teachonce.interop.convert import check_arrived
from teachonce.interop.store_table import check_one_logit
from teachonce.records.class_space import ClassSpace, map_logits
from teachonce.records.discovery import OWN_SHARDS, check_own_shards, open_records
from teachonce.records.source import Location, Record, RecordSource, split_in_names
from teachonce.records.tfrecord.framing import TFRecordWriter, describe_records, is_whole, read_blocks
from teachonce.records.tfrecord.native_examples import find_features
from teachonce.records.tfrecord.rewrite import begin_rewrite, begin_shard
from teachonce.records.tfrecord.source import decode_tfrecord, take_apart
from teachonce.records.tfrecord.tf_example import encode_float_entries, replace_feature, splice_entry
from teachonce.records.written_files import list_written
from teachonce.storage.files import open_storage
from teachonce.storage.names import check_component
from teachonce.storage.remote.file_index import ListedFile
from teachonce.store.join import StoreJoin
from teachonce.store.plan_files import read_options
from teachonce.store.store import Store
from teachonce.views.columns import VIEW_COLUMNS

MERGE_WORKER_BYTES = 1 << 29
"""Bytes of records for which it pays to start one more process: it takes about as long as to merge half of them."""
SHARDS_IN_TURN = 8
"""Shards that are one worker's job, at most: of each but the last, the wait for the disk costs no time."""
MERGE_BLOCK_RECORDS = 64
"""Records whose logits are decoded at once: a quarter of a megabyte for 1000 classes."""


def merge(config: MergeConfig) -> None:
    """Write each shard of the data with the store's logits inserted; complete shards are kept.

    Raises StoreError where data and store do not belong together, ConfigError where the store's logits are of no image
    alone, PlanMismatchError where the output was started from another store.
    """
    with phase("merge", "opening the store"):
        store = Store(config.store, trust=config.trust)
    view = check_one_logit(store, config.view)
    split = check_component(store.plan.data["split"], f"{config.store}: the plan's split", StoreError)
    with phase("merge", "opening the data"):
        instead = f"use records --logits {config.store}"
        check_own_shards(config.data, "merge", instead)
        source = open_records(config.data, split)
    if source.format != "tfrecord":  # a split beside shards of others
        raise ConfigError(f"{config.data}: merge copies {OWN_SHARDS}, found {split}/ with images; {instead}")
    join = StoreJoin(store, source, advice=_advice(store))
    warn_of_estimates(store.codec, f"{config.store} -> {config.out}")
    target = ClassSpace(num_classes=_count_classes(store, source))
    plan = {
        "store": store.fingerprint,
        "view": view,
        "background_logit": str(config.background_logit),
        "num_classes": target.num_classes,
    }
    # Records have texts and boxes besides the images, which the store knows: so the data is in the plan.
    begin_rewrite("merge", config.data, config.out, source, plan, is_data_new=True)
    shards = order_for_worker(range(len(source.shards)), *config.worker_part())
    missing = [shard for shard in shards if not is_whole(config.out / source.shards[shard].name)]
    sizes = [info.num_records for info in source.shards]
    done = sum(sizes) - sum(sizes[shard] for shard in missing)
    build = partial(_ShardMerger, config, join, target, view)
    num_bytes = sum(source.shards[shard].num_bytes for shard in missing)
    engine = config.choose_engine(num_bytes // MERGE_WORKER_BYTES)
    jobs = _in_turn(missing, engine)
    start = describe_start(engine.num_workers, len(jobs))
    with (
        stopping_gently(config.grace_seconds),
        progress("merge", sum(sizes), done=done, unit="records", phase=start) as advance,
    ):
        written = [found for _, found in run_jobs(build, jobs, engine=engine, report=advance)]
    check_arrived(config, [source.shards[shard].name for shard in missing])
    open_storage(config.out).remove_temporaries()
    files = {name: entry for found in written for name, entry in found.items()}
    list_written(config.out, split_in_names(source), files, is_alone=config.worker_part()[1] == 1)


class _ShardMerger:
    def __init__(self, config: MergeConfig, join: StoreJoin, target: ClassSpace, view: int, worker_index: int) -> None:
        self.config = config
        self.view = view
        self.join = join
        self.store = join.store
        self.target = target
        self.buffers = BufferPool()

    def __call__(self, shards: Sequence[int], report: Advance) -> dict[str, ListedFile]:
        """Merge some shards; while one waits for the disk the next is written."""
        written: dict[str, ListedFile] = {}
        with ThreadPoolExecutor(1, thread_name_prefix="end") as pool:
            ending: list[Future[dict[str, ListedFile]]] = []
            for shard in shards:
                check_stop()
                info = self.join.source.shards[shard]
                path = self.config.out / info.name
                if is_whole(path):  # by another process, meanwhile
                    report(info.num_records)
                    continue
                assert info.path is not None
                ending.append(pool.submit(begin_shard(info, path, partial(self._write, shard, info.path, report))))
                if len(ending) > 1:
                    written |= ending.pop(0).result()
            for last in ending:
                written |= last.result()
        return written

    def _write(self, shard: int, location: Path, report: Advance, writer: TFRecordWriter) -> int:
        num_rows = 0
        decode = partial(decode_tfrecord, num_classes=self.target.num_classes)
        frames = (frame for block in read_blocks(location, self.buffers) for frame in block)
        for block in chunked(frames, MERGE_BLOCK_RECORDS):
            payloads = [payload for _, payload in block]
            where = describe_records(location, num_rows, [offset for offset, _ in block])
            found = find_features(payloads)
            records = take_apart(payloads, where, found, decode, num_classes=self.target.num_classes)
            logits = self._read_logits([(shard, num_rows + index) for index in range(len(block))], records)
            writer.write_block(_insert(payloads, found, logits))
            num_rows += len(block)
            report(len(block))
        return num_rows

    def _read_logits(self, locations: Sequence[Location], records: Sequence[Record]) -> NDArray[np.float32]:
        stored = self.join.locate(locations, records)
        columns = self.store.gather_columns(stored, self.view)
        logits = self.store.codec.decode_logits(
            {name: values for name, values in columns.items() if name not in VIEW_COLUMNS}
        )
        return map_logits(logits, self.join.class_space, self.target, self.config.background_logit)


def _insert(
    payloads: Sequence[memoryview], found: NDArray[Any] | None, logits: NDArray[np.float32]
) -> Iterator[Sequence[bytes | memoryview]]:
    """Each Example with its logits, in parts."""
    if found is None:
        yield from (
            [replace_feature(payload, "image/logit", row)] for payload, row in zip(payloads, logits, strict=True)
        )
        return
    entries = encode_float_entries("image/logit", logits)
    places = zip(found["status"].tolist(), found["body"].tolist(), found["splice"].tolist(), strict=True)
    for index, (status, body, splice) in enumerate(places):
        if status == 0:
            yield splice_entry(payloads[index], body, splice, entries[index])
        else:
            yield [replace_feature(payloads[index], "image/logit", logits[index])]


def _in_turn(shards: Sequence[int], engine: Engine) -> list[list[int]]:
    """The shards of each job: a few, but not so many that workers are idle at the end."""
    if engine.name != "local":
        return [[shard] for shard in shards]
    most = len(shards) // (4 * engine.num_workers) if engine.num_workers > 1 else SHARDS_IN_TURN
    return list(chunked(shards, min(SHARDS_IN_TURN, max(1, most))))


def _advice(store: Store) -> str:
    """What to do about records that the store does not have."""
    options = read_options(store.path)
    if options.get("val_fraction"):
        return (
            f"the store was extracted with --val-fraction {options['val_fraction']}, and merge copies whole splits; "
            "train from the store, or extract over all of this data"
        )
    return f"give the data of {store.path}, or extract over this data"


def _count_classes(store: Store, source: RecordSource) -> int:
    return store.plan.data_classes if source.classes is None else len(source.classes.names)
