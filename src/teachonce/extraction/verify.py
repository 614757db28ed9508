"""Verify: a verdict on a store, against its data and its teacher.

Five checks, each named in the verdict. ``files``: every byte of the store is the one that was written; all damaged
blocks are listed. ``keys``: every record of the data is in the store, by key; the store may have more. ``top1``: the
likeliest class is the label as often as at extraction, so the offset between both is that of the extraction.
``pixels``: the store's own samples are replayed; the hash of the decoded image says whether the decoder is the one of
the extraction, the hash of the pixels at the teacher's size whether crop, resize, operations and mix are. ``logits``:
for another sample, fresh teacher logits agree with the stored ones within the codec's bound plus the arithmetic's
tolerance; the record that lies furthest out is named. So a verdict says what differs: order, decoder, resize, weights,
or the arithmetic.

The arithmetic's tolerance comes from the dtype: a network is a long chain of sums whose order changes with batch
size, threads and device, so relative to the row's largest logit a few thousand units of the last place are allowed in
float32 and a few in the half precisions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.engine.buffers import BufferPool
from teachonce.engine.cores import num_cores
from teachonce.engine.jobs import run_jobs
from teachonce.engine.progress import Advance, phase, progress
from teachonce.errors import CheckError, ConfigError, TeachonceError
from teachonce.extraction.config import VerifyConfig
from teachonce.models.classifier import Classifier, load_model
from teachonce.pixels.decode import decode_record
from teachonce.pixels.frames import pixel_versions
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.render import RecordView, ViewReader, render_views
from teachonce.records.discovery import open_records
from teachonce.records.source import Location
from teachonce.rng import generator
from teachonce.storage.resume import plan_differences
from teachonce.store.join import StoreJoin
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from teachonce.store.tables import Sample, count_hits, pixels_hash
from teachonce.terminal import print_note

MAX_TOP1_BLOCKS = 256
VERIFY_BLOCK_RECORDS = 64
"""Records that are read and compared at once."""
VERIFY_WORKER_BYTES = 1 << 30
"""Bytes of records for which it pays to start one more process: it takes about as long as to check half of them."""
RELATIVE_TOLERANCE = {"float32": 2.0**-12, "bf16": 2.0**-5, "fp16": 2.0**-8}
DEVICE_TOLERANCE = {"mps": 2.0**-10}
"""Where a device is known to be coarser than its precision, or nobody has measured that it is not (Apple's)."""


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
    """Records whose logits were computed afresh."""
    largest_error: float | None = None
    """Largest |fresh - stored| logit of the sample."""
    largest_excess: float | None = None
    """Largest ratio of an error to what codec and arithmetic allow; above 1 is unsound."""

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return asdict(self)


def verify(config: VerifyConfig) -> Verdict:
    """Check a store. What does not hold is in the verdict; only a wrong command raises (ConfigError)."""
    verdict = Verdict()
    try:
        _check(config, verdict)
    except ConfigError:
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
    jobs = list(range(len(source.shards)))
    num_bytes = sum(info.num_bytes for info in source.shards)
    num_workers = min(num_cores(), num_bytes // VERIFY_WORKER_BYTES)
    build = partial(_KeyChecker, join)
    with progress("verify", source.num_records, unit="records") as advance:
        for _ in run_jobs(build, jobs, num_workers=num_workers, report=advance):
            pass
    return source.num_records


class _KeyChecker:
    def __init__(self, join: StoreJoin, worker_index: int) -> None:
        self.join = join
        self.source = join.source
        self.buffers = BufferPool()

    def __call__(self, shard: int, report: Advance) -> None:
        num_records = self.source.shards[shard].num_records
        for first in range(0, num_records, VERIFY_BLOCK_RECORDS):
            locations = [(shard, row) for row in range(first, min(first + VERIFY_BLOCK_RECORDS, num_records))]
            self.join.locate(locations, self.source.read_batch(locations, buffers=self.buffers))
        report(num_records)


def check_top1(store: Store, count: int) -> int:
    """Of up to ``count`` blocks (a view of a shard), spread evenly, how often the likeliest class is the label.

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
                f"{store.path}: {store.shards[shard][0]} view {view}: the likeliest class is the label of {found} of "
                f"{len(labels)} records, at extraction of {expected}: labels, logits or the offset were changed; "
                "extract again"
            )
        num_checked += 1
    return num_checked


def check_logits(
    join: StoreJoin, teacher: Classifier, positions: list[tuple[int, int, int]], batch_size: int
) -> tuple[float, float]:
    """Compare fresh logits of some (shard, row, view), by the data's shards, with the stored ones.

    Returns (largest error, largest excess).

    Raises CheckError naming the record that lies furthest out, when it lies beyond codec and arithmetic.
    """
    store = join.store
    precision = store.plan.teacher.get("precision", "float32")
    reader = ViewReader(join.source, StoredViews(store), [join])
    largest_error, largest_excess, worst = 0.0, 0.0, ""
    for start in range(0, len(positions), batch_size):
        chosen = positions[start : start + batch_size]
        record_views = [_read_view(reader, (shard, row), view) for shard, row, view in chosen]
        pixels = render_views(record_views, teacher.preprocessing)
        fresh = teacher.collect_logits(teacher.logits(torch.from_numpy(pixels)))
        stored = join.locate([(shard, row) for shard, row, _ in chosen], [item.record for item in record_views])
        rows = [store.read_rows(shard, view, [row]) for (shard, row), (_, _, view) in zip(stored, chosen, strict=True)]
        columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        slack = _rounding(store, fresh)
        errors, allowed = store.codec.compare_logits(columns, fresh, slack)
        # A NaN, fresh or stored, must not pass as a comparison that is merely false.
        with np.errstate(invalid="ignore"):
            ratios = errors / allowed
        excess = np.where(np.isnan(ratios), np.inf, ratios).max(axis=1)
        largest_error = max(largest_error, float(errors.max()))
        at = int(excess.argmax())
        if excess[at] > largest_excess:
            largest_excess = float(excess[at])
            record = record_views[at].record
            worst = (
                f"{record.where} ({record.filename}) view {chosen[at][2]}: fresh and stored logits differ by "
                f"{errors[at].max():.4g}, {excess[at]:.1f} times what codec {store.codec.name} and "
                f"{precision} allow"
            )
    if largest_excess > 1:
        raise CheckError(
            f"{worst}: the pixels are the teacher's, so weights or arithmetic differ "
            f"({_versions(store, 'torch', 'onnxruntime', 'tensorflow')}), or the store was changed; extract again"
            if store.plan.num_samples
            else f"{worst}: another decoder, library or device? or the store was changed; extract again"
        )
    return largest_error, largest_excess


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
        record_view = _read_view(reader, location, sample.view)
        pixels = render_views([record_view], preprocessing)[0]
        where = f"{record_view.record.where} ({record_view.record.filename}) view {sample.view}"
        if pixels_hash(np.asarray(decode_record(record_view.record))) != sample.image_xxh3:
            raise CheckError(
                f"{where}: the same bytes decode to other pixels than at extraction: another decoder "
                f"({_versions(store, 'pillow', 'decoder')}); use that version, or extract again"
            )
        if pixels_hash(pixels) != sample.pixels_xxh3:
            raise CheckError(
                f"{where}: the image decodes as at extraction, its view differs: another resize, crop or operation "
                f"({_versions(store, 'pillow', 'decoder', 'numpy', 'teachonce')}), or the stored view was changed; "
                "extract again"
            )
        columns = store.read_rows(shard, sample.view, [sample.row])
        # After a kill, or of several writers at once, sample and views may be of two: equal but for the rounding.
        slack = _rounding(store, sample.logits[None])
        errors, allowed = store.codec.compare_logits(columns, sample.logits[None], slack)
        if not (errors <= allowed).all():
            raise CheckError(
                f"{where}: the stored logits differ from what the teacher said by {errors.max():.4g}, more than codec "
                f"{store.codec.name} allows: the view file was changed; extract again"
            )
    return len(samples)


def _rounding(store: Store, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """By how much [N] the logits [N, C] of two extractions may differ: what the arithmetic's precision leaves open.

    The widest of what made the store's files counts.
    """
    tolerance = RELATIVE_TOLERANCE[store.plan.teacher.get("precision", "float32")]  # imported logits have none
    devices = [str(made.get("device")) for made in store.made_by]
    tolerance = max(tolerance, *(DEVICE_TOLERANCE.get(device, 0.0) for device in devices))
    return tolerance * np.abs(logits).max(axis=1).astype(np.float64) + 1e-6


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
            location = join.find_in_source(int(keys[sample.row])) if sample.view < join.store.num_views else None
            if location is not None:
                found.append((location, shard, sample))
    chosen = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(np.int64)).tolist()
    return [found[at] for at in chosen]


def _check(config: VerifyConfig, verdict: Verdict) -> None:
    store = Store(config.store)
    verdict.num_files = store.check_files()
    source = open_records(config.data, store.plan.data["split"])
    join = StoreJoin(store, source, advice="give the data that it was made of, or extract over this data to add them")
    verdict.num_keys = check_all_keys(join)
    verdict.num_absent = join.count_absent()
    verdict.num_top1 = check_top1(store, MAX_TOP1_BLOCKS)
    if config.samples == 0:
        return
    verdict.num_pixels = check_pixels(join, config.samples)
    if config.teacher == "none":
        return
    spec = config.teacher or store.plan.teacher["spec"]
    if spec == "none":
        print_note("verify: logits imported from CSV, no teacher to ask; give --teacher to compare")
        return
    try:
        precision = store.plan.teacher.get("precision", "float32")
        with phase("verify", "loading the teacher"):
            teacher = load_model(spec, device=config.device, precision=precision)
    except TeachonceError as error:
        if config.teacher is not None:
            raise
        raise type(error)(
            f"{error}; this is the teacher of the store's plan, {spec}, whose paths count from the folder where it was "
            "extracted: give --teacher with where it is now, or --samples 0 to check without it"
        ) from error
    _check_teacher(store, teacher)
    positions = _draw_positions(join, config)
    verdict.num_logits = len(positions)
    verdict.largest_error, verdict.largest_excess = check_logits(join, teacher, positions, config.batch_size)


def _check_teacher(store: Store, teacher: Classifier) -> None:
    found = {"weights_sha256": teacher.weights_sha256, "preprocessing": teacher.preprocessing.to_json()}
    expected = {name: store.plan.teacher[name] for name in found if store.plan.teacher.get(name) is not None}
    differences = plan_differences(expected, {name: found[name] for name in expected})
    if differences:
        raise CheckError(f"{store.path}: another teacher than the one that was asked: {'; '.join(differences)}")
    if teacher.num_classes != store.class_space.num_classes:
        raise CheckError(
            f"{store.path}: logits of {store.class_space.num_classes} classes, the teacher has {teacher.num_classes}"
        )


def _read_view(reader: ViewReader, location: Location, view: int) -> RecordView:
    (found,) = reader.read([location], view)
    return found


def _versions(store: Store, *names: str) -> str:
    """Library versions at extraction against those of today, as a phrase."""
    then, now = store.versions, pixel_versions()
    changed = [
        f"{name} {then.get(name, 'unknown')} at extraction, {now.get(name, 'none')} now"
        for name in names
        if then.get(name) != now.get(name)
    ]
    return "; ".join(changed) or f"the same {', '.join(name for name in names if name in now)} as at extraction"


def _draw_positions(join: StoreJoin, config: VerifyConfig) -> list[tuple[int, int, int]]:
    """(shard, row, view), shard and row of the data."""
    rng = generator(config.seed, "verify")
    total = join.source.num_records * join.store.num_views
    # choice without replacement would permute all of ImageNet's views for a few hundred; doubles are harmless here.
    flat = np.unique(rng.integers(0, total, config.samples)) if config.samples < total else np.arange(total)
    views, indices = np.divmod(flat, join.source.num_records)
    locations = join.source.locate_all(indices)
    return [(shard, row, view) for (shard, row), view in zip(locations, views.tolist(), strict=True)]
