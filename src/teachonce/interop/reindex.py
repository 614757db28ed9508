"""``teachonce reindex``: TFRecord shards whose JPEGs get restart markers, so that crops decode from their own part.

Each image is rewritten without loss (``pixels.restart_markers``), all else of its record is copied. A record keeps its
key, as a feature beside the hash of its new bytes, so stores that were made for the original shards are joined with the
new ones, and the other way round. Shards keep their names and their order; they appear complete, and a rerun makes only
those that are missing. Nothing here imports torch.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from teachonce.engine.jobs import run_jobs
from teachonce.engine.machine import num_cores
from teachonce.engine.options import Engine
from teachonce.engine.progress import Advance, phase, progress
from teachonce.errors import ConfigError
from teachonce.interop.config import MarkerName, ReindexConfig
from teachonce.pixels.decode import Encoded
from teachonce.pixels.restart_markers import add_restart_markers, require_rewriter
from teachonce.records.discovery import OWN_SHARDS, check_own_shards, open_records
from teachonce.records.source import RecordSource, record_key, split_in_names
from teachonce.records.tfrecord.framing import TFRecordWriter, describe_record, is_whole, read_tfrecords
from teachonce.records.tfrecord.rewrite import begin_rewrite, rewrite_shard
from teachonce.records.tfrecord.source import ENCODED_XXH3, ORIGINAL_KEY, decode_tfrecord, key_feature
from teachonce.records.tfrecord.tf_example import FeatureValue, replace_feature
from teachonce.records.written_files import list_written
from teachonce.storage.files import open_storage
from teachonce.storage.remote.file_index import ListedFile
from teachonce.terminal import plural, print_note

WORKER_BYTES = 1 << 27
"""Bytes of records for which it pays to start one more process: it takes about as long as to rewrite half of them."""


def reindex(config: ReindexConfig) -> None:
    """Write each shard of the data with restart markers in its images; complete shards are kept.

    Raises ConfigError where the data are no TFRecords or nothing can rewrite here, PlanMismatchError where the output
    was started from other data, RecordError with the place of a record that is damaged.
    """
    require_rewriter("reindex")
    with phase("reindex", "opening the data"):
        instead = f"use records --restart {config.restart}"
        check_own_shards(config.data, "reindex", instead)
        source = open_records(config.data, config.split)
    if source.format != "tfrecord":  # a split beside shards of others
        raise ConfigError(f"{config.data}: reindex copies {OWN_SHARDS}, found {config.split}/ with images; {instead}")
    begin_rewrite("reindex", config.data, config.out, source, {"restart": config.restart})
    sizes = [info.num_records for info in source.shards]
    jobs = [shard for shard, info in enumerate(source.shards) if not is_whole(config.out / info.name)]
    done = sum(sizes) - sum(sizes[shard] for shard in jobs)
    build = partial(_ShardRewriter, config, source)
    num_bytes = sum(source.shards[shard].num_bytes for shard in jobs)
    num_workers = config.num_workers or min(num_cores(), num_bytes // WORKER_BYTES)
    with progress("reindex", sum(sizes), done=done, unit="records") as advance:
        engine = Engine(num_workers=num_workers)
        written = [found for _, found in run_jobs(build, jobs, engine=engine, report=advance)]
    num_left = sum(found.num_left for found in written)
    open_storage(config.out).remove_temporaries()
    split = split_in_names(source)
    list_written(config.out, split, {name: entry for found in written for name, entry in found.files.items()})
    print_note(f"{config.out}: {plural(sum(sizes), split + ' record')} in {plural(len(sizes), 'shard')}")
    if num_left:
        which = f"{num_left} images{of_this_run(done)}"
        print_note(f"reindex: {which} could not be given restart markers and were left unchanged")


def of_this_run(num_done: int) -> str:
    """For a count of what a run found, which begins with ``num_done`` records of earlier runs: of what it is."""
    return " of the shards written by this run" if num_done else ""


def rewritten_features(encoded: Encoded, restart: MarkerName, key: int) -> dict[str, FeatureValue] | None:
    """What changes of a record with this key whose image gets restart markers: nothing where it has these already.

    None where the image cannot be given any.
    """
    rewritten = add_restart_markers(encoded, by_row=restart == "row")
    if rewritten is None:
        return None
    if rewritten == encoded:
        return {}
    return {
        "image/encoded": rewritten,
        ENCODED_XXH3: key_feature(record_key(rewritten)),
        ORIGINAL_KEY: key_feature(key),
    }


class _WrittenShard(NamedTuple):
    """What a worker says of a shard that it wrote."""

    num_left: int
    """Images that were not changed."""
    files: dict[str, ListedFile]
    """Shard and index; nothing where another process wrote them meanwhile."""


class _ShardRewriter:
    def __init__(self, config: ReindexConfig, source: RecordSource, worker_index: int) -> None:
        self.out = config.out
        self.restart = config.restart
        self.source = source
        self.num_classes = None if source.classes is None else len(source.classes.names)

    def __call__(self, shard: int, report: Advance) -> _WrittenShard:
        """Write one shard and its index."""
        info = self.source.shards[shard]
        location = info.path
        assert location is not None
        path = self.out / info.name
        if is_whole(path):  # by another process, meanwhile
            report(info.num_records)
            return _WrittenShard(0, {})
        num_left = 0

        def write(writer: TFRecordWriter) -> int:
            nonlocal num_left
            num_rows = 0
            for row, (offset, payload) in enumerate(read_tfrecords(location)):
                record = decode_tfrecord(payload, describe_record(location, row, offset), num_classes=self.num_classes)
                changes = rewritten_features(record.encoded, self.restart, record.key)
                example: bytes | memoryview = payload
                for name, value in (changes or {}).items():
                    example = replace_feature(example, name, value)
                writer.write(example)
                num_left += changes is None
                num_rows += 1
                report(1)
            return num_rows

        files = rewrite_shard(info, path, write)
        return _WrittenShard(num_left, files)
