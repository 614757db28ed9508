"""Verify: a verdict on a store, against its data and its teacher.

Five checks, each named in the verdict. ``files``: every byte of the store is the one that was written; all damaged
blocks are listed, and the index is that of the records. ``keys``: every record of the data is in the store, by key;
the store may have more. ``top1``: the most likely class is the label as often as at extraction, so the offset between
both is that of the extraction. ``pixels``: the store's own samples are replayed; the hash of the decoded image says
whether the decoder is the one of the extraction, the hash of the pixels at the teacher's size whether crop, resize,
operations and mix are. ``logits``: for another sample, fresh teacher logits agree with the stored ones within the
codec's bound plus the arithmetic's tolerance; the record with the largest difference is named. So a verdict says what
differs: order, decoder, resize, weights, or the arithmetic.

Only ``logits`` runs the teacher (``fresh_logits``): without it nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from teachonce.engine.buffers import BufferPool
from teachonce.engine.chunked import chunked
from teachonce.engine.jobs import run_jobs
from teachonce.engine.machine import num_cores
from teachonce.engine.options import Engine
from teachonce.engine.prefetch import prefetch
from teachonce.engine.progress import Advance, phase, progress
from teachonce.errors import CheckError, ConfigError, TeachonceError, UnreadableError, UnsupportedStoreError
from teachonce.extraction.config import VerifyConfig
from teachonce.extraction.differences import describe_versions, rounding
from teachonce.extras import require
from teachonce.models.spec import parse_model_spec
from teachonce.pixels.decode import decode_record
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.render import ViewReader, render_views
from teachonce.records.discovery import open_records
from teachonce.records.source import Location, RecordSource
from teachonce.store.join import StoreJoin
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from teachonce.store.tables import Sample, count_hits, pixels_hash
from teachonce.terminal import print_note

MAX_TOP1_BLOCKS = 256
VERIFY_BLOCK_RECORDS = 64
"""Records whose logits are compared at once."""
VERIFY_BLOCK_BYTES = 16 << 20
"""Of records that are read and compared at once."""
VERIFY_THREADS = 2
"""That read and compare, of one process; of more each would wait for Python's lock as often as it has it."""
VERIFY_WORKER_BYTES = 1 << 30
"""Bytes of records for which it pays to start one more process: it takes about as long as to check half of them."""


@dataclass
class Verdict:
    """Whether a store is sound, why not, and what was checked."""

    is_sound: bool = False
    reason: str = ""
    num_files: int = 0
    num_keys: int = 0
    """Records of the data, each found in the store by its key."""
    num_absent: int = 0
    """Images of the store that the data does not have; they do no harm."""
    num_top1: int = 0
    """Blocks (a view of a shard) whose top-1 was compared with that of the extraction."""
    num_pixels: int = 0
    """Samples of the store whose pixels were made again; a store of format 1 has none."""
    num_logits: int = 0
    """Records whose logits were recomputed."""
    largest_error: float | None = None
    """Largest |fresh - stored| logit of the sample."""
    largest_excess: float | None = None
    """Largest ratio of an error to what codec and arithmetic allow; above 1 is unsound."""

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return asdict(self)


def verify(config: VerifyConfig) -> Verdict:
    """Check a store. What does not hold is in the verdict.

    Raises ConfigError for a wrong command, UnsupportedStoreError for a store that this program cannot judge,
    UnreadableError where a server is lost before the store's files are read.
    """
    verdict = Verdict()
    try:
        _check(config, verdict)
    except (ConfigError, UnsupportedStoreError, UnreadableError):
        raise
    except TeachonceError as error:
        verdict.reason = str(error)
        return verdict
    verdict.is_sound = True
    verdict.reason = "sound"
    return verdict


def check_all_keys(join: StoreJoin) -> int:
    """Read every record of the data and find it in the store; StoreError for the first that is not there.

    Returns their number.
    """
    source = join.source
    num_bytes = sum(info.num_bytes for info in source.shards)
    num_workers = min(num_cores(), num_bytes // VERIFY_WORKER_BYTES)
    with progress("verify", source.num_records, unit="records") as advance:
        if num_workers <= VERIFY_THREADS:
            checker, blocks = _KeyChecker(join), _blocks(source, range(len(source.shards)))
            for count in prefetch(blocks, checker.check, threads=VERIFY_THREADS, ahead=VERIFY_THREADS):
                advance(count)
        else:
            build = partial(_KeyChecker, join)
            engine = Engine(num_workers=num_workers)
            for _ in run_jobs(build, list(range(len(source.shards))), engine=engine, report=advance):
                pass
    return source.num_records


class _KeyChecker:
    def __init__(self, join: StoreJoin, worker_index: int = 0) -> None:
        self.join = join
        self.buffers = BufferPool()

    def __call__(self, shard: int, report: Advance) -> None:
        for block in _blocks(self.join.source, [shard]):
            report(self.check(block))

    def check(self, locations: Sequence[Location]) -> int:
        """Read some records and find them in the store; returns their number. Thread-safe."""
        self.join.locate(locations, self.join.source.read_batch(locations, buffers=self.buffers))
        return len(locations)


def _blocks(source: RecordSource, shards: Iterable[int]) -> Iterator[list[Location]]:
    """The places of all records of some shards, of about ``VERIFY_BLOCK_BYTES`` at a time."""
    for shard in shards:
        info = source.shards[shard]
        num_blocks = max(1, round(info.num_bytes / VERIFY_BLOCK_BYTES))
        for rows in chunked(range(info.num_records), max(1, min(1024, -(-info.num_records // num_blocks)))):
            yield [(shard, row) for row in rows]


def check_top1(store: Store, count: int) -> int:
    """Of up to ``count`` blocks (a view of a shard), spread evenly, how often the most likely class is the label.

    Raises CheckError where it is not as often as at extraction: then labels, logits, or the offset between the
    teacher's classes and the labels are not those of the extraction. Returns the number of blocks.
    """
    num_blocks = len(store.shards) * store.num_views
    chosen = np.unique(np.linspace(0, num_blocks - 1, min(count, num_blocks)).astype(np.int64)).tolist()
    num_checked = 0
    for block in chosen:
        view, shard = divmod(block, len(store.shards))
        group = store.plan.group_of(view)
        recorded = store.read_hits(shard, group)
        if recorded is None:
            continue
        labels = store.read_labels(shard)
        expected, found = recorded[view - group[0]], 0
        for first in range(0, len(labels), VERIFY_BLOCK_RECORDS):
            rows = slice(first, first + VERIFY_BLOCK_RECORDS)
            found += count_hits(store.read_logits(shard, view, rows), labels[rows], store.class_space.offset)
        if found != expected:
            raise CheckError(
                f"{store.path}: {store.shards[shard][0]} view {view}: the most likely class is the label of "
                f"{found} of {len(labels)} records, at extraction it was of {expected}: labels, logits or the "
                "offset have changed; extract again"
            )
        num_checked += 1
    return num_checked


def check_pixels(join: StoreJoin, count: int) -> int:
    """Replay up to ``count`` of the store's own samples, of records that the data has; returns how many.

    Raises CheckError for the first whose decoded image, pixels at the teacher's size, or logits behind the codec are
    not those of the extraction: it says which of the three.
    """
    store = join.store
    samples = _choose_samples(join, count)
    preprocessing = Preprocessing.from_json(store.plan.teacher["preprocessing"]) if samples else None
    reader = ViewReader(join.source, StoredViews(store), [join])
    for location, shard, sample in samples:
        assert preprocessing is not None
        (record_view,) = reader.read([location], sample.view)
        pixels = render_views([record_view], preprocessing)[0]
        where = f"{record_view.record.where} ({record_view.record.filename}) view {sample.view}"
        if pixels_hash(np.asarray(decode_record(record_view.record))) != sample.image_xxh3:
            raise CheckError(
                f"{where}: the same bytes decode to other pixels than at extraction: another decoder "
                f"({describe_versions(store, 'pillow', 'decoder')}); use that version, or extract again"
            )
        if pixels_hash(pixels) != sample.pixels_xxh3:
            raise CheckError(
                f"{where}: the image decodes as at extraction, but its view differs: another resize, crop or "
                f"operation ({describe_versions(store, 'pillow', 'decoder', 'numpy', 'teachonce')}), or the "
                "stored view was changed; extract again"
            )
        columns = store.read_rows(shard, sample.view, [sample.row])
        # After a kill, or of several writers at once, sample and views may be of two: equal but for the rounding.
        slack = rounding(store, sample.logits[None])
        errors, allowed = store.codec.compare_logits(columns, sample.logits[None], slack)
        if not (errors <= allowed).all():
            raise CheckError(
                f"{where}: the stored logits differ from the teacher's by {errors.max():.4g}, more than codec "
                f"{store.codec.name} allows: the view file was changed; extract again"
            )
    return len(samples)


def _choose_samples(join: StoreJoin, count: int) -> list[tuple[Location, int, Sample]]:
    """(location in the data, shard of the store, sample), from sample files spread evenly over the store.

    Only the files that are needed are opened.
    """
    files = join.store.sample_files()
    num_files = min(len(files), max(1, count // max(1, join.store.plan.num_samples)))
    found: list[tuple[Location, int, Sample]] = []
    for at in np.unique(np.linspace(0, len(files) - 1, num_files).astype(np.int64)).tolist() if files else ():
        shard, group = files[at]
        keys = join.store.read_keys(shard)
        for sample in join.store.read_samples(shard, group):
            location = None
            if sample.view < join.store.num_views:
                location = _find_sampled(join, (shard, sample.row), int(keys[sample.row]))
            if location is not None:
                found.append((location, shard, sample))
    chosen = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(np.int64)).tolist()
    return [found[at] for at in chosen]


def _find_sampled(join: StoreJoin, stored: Location, key: int) -> Location | None:
    """Where the data has the record of a row of the store, if joining leads back to this very row; else None.

    Equal images have rows of their own, and where views are mixed or drawn by boxes, views of their own.
    """
    if join.has_positions and join.source.read_record(*stored).key == key:
        return stored
    return join.find_in_source(key) if join.store.locations_of(key)[0] == stored else None


def _check(config: VerifyConfig, verdict: Verdict) -> None:
    store = Store(config.store)
    teacher = _find_teacher(config, store)
    if teacher is not None:
        require("torch", purpose=f"recomputing logits with {teacher} (--teacher none skips this)")
    with phase("verify", "comparing every byte of the store's files with their hashes"):
        verdict.num_files = store.check_files()
        store.check_index()
    with phase("verify", "opening the data"):
        source = open_records(config.data, store.plan.data["split"], config)
    join = StoreJoin(
        store, source, advice="give the data from which it was extracted, or extract over this data to add them"
    )
    verdict.num_keys = check_all_keys(join)
    verdict.num_absent = join.count_absent()
    with phase("verify", "comparing labels and likeliest classes"):
        verdict.num_top1 = check_top1(store, MAX_TOP1_BLOCKS)
    if config.samples == 0:
        return
    with phase("verify", "rendering sampled views again"):
        verdict.num_pixels = check_pixels(join, config.samples)
    if teacher is None:
        if config.teacher is None:
            print_note("verify: the logits were imported from CSV and have no teacher; give --teacher to compare")
        return
    from teachonce.extraction.fresh_logits import compare_fresh_logits

    found = compare_fresh_logits(join, config, teacher)
    verdict.num_logits, verdict.largest_error, verdict.largest_excess = found


def _find_teacher(config: VerifyConfig, store: Store) -> str | None:
    """The SPEC of the teacher to run, None for none."""
    spec = config.teacher or store.plan.teacher["spec"]
    if config.samples == 0 or spec == "none":
        return None
    if config.teacher is None and parse_model_spec(spec).options.get("trust"):
        # A store may be anybody's: it does not say whose programs are run here.
        raise ConfigError(
            f"{store.path}: its plan says to trust the teacher {spec}, which may run any code; if you do, give "
            "--teacher with this SPEC, or --teacher none"
        )
    return spec
