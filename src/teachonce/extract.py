"""Extraction: the teacher looks once at every view of every record, and the store keeps what it said.

The unit of work is one shard x one group of views. It is a pure function of (plan, shard, group): its batches never
cross a shard, so a unit that is made again after a kill has the same bytes. What exists under its final name is
skipped before anything is decoded. Decoding runs ahead of the teacher in threads (Pillow lets go of the GIL), bounded,
so memory does not grow with the shard.

One decode serves all views of a group. The logits of a unit are held in memory until it is written: shard size x views
a file x classes x 4 bytes (ImageNet in 1024 shards, 10 views: 50 MB).
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.classes import ClassSpace, resolve_offset
from teachonce.codec import CODECS, Codec, codec_from_json, codec_to_json
from teachonce.config import ExtractConfig
from teachonce.errors import CheckError, ConfigError, LogitsError, RecordError, TeachonceError
from teachonce.files import remove_temporaries
from teachonce.gate import check_gate
from teachonce.join import decode_record
from teachonce.launch import count_done, num_cores, run_jobs, take_part
from teachonce.model_spec import ModelSpec, parse_model_spec
from teachonce.models import Classifier, load_model, resolve_device
from teachonce.preprocessing import Preprocessing
from teachonce.progress import progress
from teachonce.records import Record, RecordSource, open_records
from teachonce.rng import generator
from teachonce.shard_files import records_file, views_file, write_records, write_views
from teachonce.store import (
    MANIFEST_NAME,
    PLAN_NAME,
    Plan,
    Store,
    begin_store,
    check_store_folder,
    finalise_store,
    group_views,
    missing_files,
)
from teachonce.versions import library_versions
from teachonce.views import (
    CenterPolicy,
    CropPolicy,
    Policy,
    View,
    apply_view,
    policy_from_json,
    policy_to_json,
    sample_view,
)

DECODE_AHEAD_BATCHES = 3
"""Batches of records that may be decoded before the teacher asks for them."""

DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Unit:
    """One shard and one group of views: what is made or not made."""

    shard: int
    group: tuple[int, int]


def extract(config: ExtractConfig) -> bool:
    """Make the store, or this worker's part of it; True when the store is whole and its manifest written.

    Raises CheckError when the gate does not hold, PlanMismatchError when the store was begun with another plan, and
    RecordError, LogitsError or StoreError, with the place, for what is wrong with a record, the teacher or a file.
    """
    check_store_folder(config.out)
    source = open_records(config.data, config.split)
    teacher = load_model(config.teacher, device=config.device, precision=config.precision, compile=config.compile)
    plan = build_plan(config, source, teacher)
    is_gated = config.gate_samples == 0
    if not is_gated and not (config.out / PLAN_NAME).exists():
        # Before the plan is written: a teacher that is refused must not leave a store that refuses the right one.
        check_gate(teacher, source, plan.class_space, config)
        is_gated = True
    plan = begin_store(config.out, plan, config.views_per_file)
    missing = missing_units(config.out, plan)
    # Parts are taken of all units, not of the missing ones: those shrink while other workers are at it.
    units = [unit for unit in take_part(all_units(plan), *config.worker_part()) if unit in missing]
    num_units = _count_units(plan)
    _say(f"{config.out}: {num_units - len(missing)} of {num_units} units done, {len(units)} to do here")
    if units:
        if not is_gated:
            check_gate(teacher, source, plan.class_space, config)
        _extract_units(config, plan, source, teacher, units)
    elif config.expect_top1 is not None and not missing:
        _check_stored_top1(config)
    return _finish(config.out, plan, config.worker_part()[1], has_new_files=bool(units))


def build_plan(config: ExtractConfig, source: RecordSource, teacher: Classifier) -> Plan:
    """The plan of an extraction; raises ConfigError where teacher and data have no explicit common class space."""
    data_classes = config.num_classes or (len(source.classes.names) if source.classes is not None else None)
    offset = config.offset if config.offset is not None else teacher.default_offset
    if data_classes is None and offset is None:
        raise ConfigError(
            f"{config.data}: does not say how many classes it has (no classes.json): give --num-classes (ImageNet "
            "TFRecords: 1001) or --offset (the data label of the teacher's class 0)"
        )
    offset = resolve_offset(teacher.num_classes, data_classes, offset, model=config.teacher)
    policy: Policy = CenterPolicy()
    if config.policy == "crop":
        policy = CropPolicy(scale=config.crop_scale, ratio=config.crop_ratio, flip_prob=config.flip_prob)
    seed = {} if isinstance(policy, CenterPolicy) else {"seed": config.seed}
    return Plan(
        teacher={
            "spec": config.teacher,
            "model": teacher_identity(parse_model_spec(config.teacher)),
            "weights_sha256": teacher.weights_sha256,
            "precision": config.precision,
            "preprocessing": teacher.preprocessing.to_json(),
        },
        class_space=ClassSpace(num_classes=teacher.num_classes, offset=offset),
        data_classes=data_classes or teacher.num_classes + offset,
        data=source.describe(),
        policy=policy_to_json(policy) | seed,
        codec=codec_to_json(CODECS[config.codec]()),
        view_groups=group_views(config.views, config.views_per_file),
    )


def all_units(plan: Plan) -> list[Unit]:
    """The units of a plan, views first: all shards of the first group of views, then of the next."""
    return [Unit(shard, group) for group in plan.view_groups for shard in range(len(plan.shards))]


def missing_units(path: Path, plan: Plan) -> set[Unit]:
    """The units whose files are not all there."""
    missing = set(missing_files(path, plan))
    names = [name for name, _ in plan.shards]
    return {
        unit
        for unit in all_units(plan)
        if views_file(names[unit.shard], unit.group) in missing or records_file(names[unit.shard]) in missing
    }


def teacher_identity(spec: ModelSpec) -> str:
    """What a SPEC names, wherever its files lie; the weights themselves are identified by their hash."""
    name = f":{spec.name}" if spec.kind in ("timm", "torchvision") else ""
    outputs = [f",{key}={spec.options[key]}" for key in ("signature", "output", "probs") if key in spec.options]
    return spec.kind + name + "".join(outputs)


class ViewReader:
    """Pixels of a record's views, as the teacher looks at them."""

    def __init__(self, policy: Policy, seed: int, preprocessing: Preprocessing) -> None:
        self.policy = policy
        self.seed = seed
        self.preprocessing = preprocessing

    def read_views(self, record: Record, group: tuple[int, int]) -> tuple[list[NDArray[Any]], list[View]]:
        """(pixels [H, W, 3] of each view of the group, the views drawn: none for ``center``); one decode."""
        image = decode_record(record)
        if isinstance(self.policy, CenterPolicy):
            try:
                return [self.preprocessing.apply(image)], []
            except TeachonceError as error:
                raise error.at(record.where) from error
        views = [
            sample_view(generator(self.seed, "view", record.key, view), self.policy, image.width, image.height)
            for view in range(group[0], group[1] + 1)
        ]
        size_px, interpolation = self.preprocessing.size_px, self.preprocessing.interpolation
        return [apply_view(image, view, size_px, interpolation) for view in views], views


class TeacherQueue:
    """Collects pixels into batches, asks the teacher, and keeps one batch in flight so that copies overlap."""

    def __init__(self, teacher: Classifier, batch_size: int, total: int) -> None:
        self.teacher = teacher
        self.batch_size = batch_size
        self.logits = np.empty((total, teacher.num_classes), np.float32)
        self._num_done = 0
        self._pixels: list[NDArray[Any]] = []
        self._records: list[Record] = []
        self._in_flight: tuple[torch.Tensor, list[Record]] | None = None

    def put(self, pixels: NDArray[Any], record: Record) -> None:
        """Add the pixels of one view; runs the teacher when a batch is full."""
        self._pixels.append(pixels)
        self._records.append(record)
        if len(self._pixels) == self.batch_size:
            self._ask()

    def finish(self) -> NDArray[np.float32]:
        """Ask for the rest and return all logits [total, C] in the order of ``put``."""
        if self._pixels:
            self._ask()
        self._collect()
        assert self._num_done == len(self.logits)
        return self.logits

    def _ask(self) -> None:
        batch = torch.from_numpy(np.stack(self._pixels))
        if self.teacher.device.type == "cuda":
            batch = batch.pin_memory()
        asked = self.teacher.logits(batch), self._records
        self._collect()
        self._in_flight = asked
        self._pixels, self._records = [], []

    def _collect(self) -> None:
        if self._in_flight is None:
            return
        pending, records = self._in_flight
        logits = pending.cpu().numpy()
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            bad = int(np.flatnonzero(~finite)[0])
            num_bad = np.count_nonzero(~np.isfinite(logits[bad]))
            raise LogitsError(
                f"{records[bad].where}: the teacher's logits are NaN or infinite in {num_bad} of {logits.shape[1]} "
                "classes; check its weights, its input range (mean, std, range) and --precision"
            )
        self.logits[self._num_done : self._num_done + len(logits)] = logits
        self._num_done += len(logits)
        self._in_flight = None


class UnitExtractor:
    """Does units with one teacher, in one process."""

    def __init__(
        self, path: Path, plan: Plan, source: RecordSource, teacher: Classifier, batch_size: int, num_threads: int
    ) -> None:
        policy = dict(plan.policy)
        seed = policy.pop("seed", 0)
        self.path = path
        self.plan = plan
        self.source = source
        self.teacher = teacher
        self.codec: Codec = codec_from_json(plan.codec)
        self.reader = ViewReader(policy_from_json(policy), seed, teacher.preprocessing)
        self.batch_size = batch_size
        self.num_threads = num_threads

    def __call__(self, unit: Unit) -> int:
        """Make the unit's files; returns the number of views that the teacher saw."""
        name, num_records = self.plan.shards[unit.shard]
        try:
            return self._extract(unit, name, num_records)
        except TeachonceError as error:
            raise error.at(name) from error

    def _extract(self, unit: Unit, name: str, num_records: int) -> int:
        num_views = unit.group[1] - unit.group[0] + 1
        keys = np.empty(num_records, np.uint64)
        labels = np.empty(num_records, np.int32)
        filenames: list[str] = []
        views: list[list[View]] = [[] for _ in range(num_views)]
        teacher = TeacherQueue(self.teacher, self.batch_size, num_records * num_views)
        row = -1
        for row, (record, pixels, record_views) in enumerate(self._decoded(unit)):
            if row == num_records:
                break
            keys[row], labels[row] = record.key, record.label
            filenames.append(record.filename)
            for view, drawn in zip(views, record_views, strict=bool(record_views)):
                view.append(drawn)
            for view_pixels in pixels:
                teacher.put(view_pixels, record)
            count_done(num_views)
        if row + 1 != num_records:
            raise RecordError(f"other than {num_records} records, which the plan says: the data changed; begin anew")
        logits = teacher.finish().reshape(num_records, num_views, -1).swapaxes(0, 1)
        # The records go first: a view file never stands without the records that it was made for.
        if not (self.path / records_file(name)).exists():
            write_records(self.path / records_file(name), keys, filenames, labels)
        has_views = not isinstance(self.reader.policy, CenterPolicy)
        write_views(self.path / views_file(name, unit.group), keys, self.codec, logits, views if has_views else None)
        return num_records * num_views

    def _decoded(self, unit: Unit) -> Iterator[tuple[Record, list[NDArray[Any]], list[View]]]:
        num_views = unit.group[1] - unit.group[0] + 1
        ahead = max(self.num_threads, DECODE_AHEAD_BATCHES * self.batch_size // num_views)
        pending: deque[tuple[Record, Future[tuple[list[NDArray[Any]], list[View]]]]] = deque()
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode") as pool:
            try:
                for record in self.source.iter_shard(unit.shard):
                    if not 0 <= record.label < self.plan.data_classes:
                        raise RecordError(
                            f"{record.where}: label {record.label}, expected 0 to {self.plan.data_classes - 1}; give "
                            "--num-classes or --offset that fit the data"
                        )
                    pending.append((record, pool.submit(self.reader.read_views, record, unit.group)))
                    if len(pending) > ahead:
                        done, future = pending.popleft()
                        yield done, *future.result()
                while pending:
                    done, future = pending.popleft()
                    yield done, *future.result()
            finally:
                pool.shutdown(cancel_futures=True)


def _extract_units(
    config: ExtractConfig, plan: Plan, source: RecordSource, teacher: Classifier, units: list[Unit]
) -> None:
    build: Callable[[int], UnitExtractor]
    num_workers = min(config.num_workers, len(units))
    if num_workers == 1:
        threads = config.decode_threads or num_cores()
        extractor = UnitExtractor(config.out, plan, source, teacher, config.batch_size, threads)
        build = partial(_same, extractor)
    else:
        build = partial(_build_extractor, replace(config, num_workers=num_workers), plan, source)
    sizes = [num_records for _, num_records in plan.shards]
    total = sum(sizes[unit.shard] * (unit.group[1] - unit.group[0] + 1) for unit in units)
    with progress("extract", total, unit="views") as advance:
        for _ in run_jobs(build, units, num_workers, advance):
            pass


def _build_extractor(config: ExtractConfig, plan: Plan, source: RecordSource, worker_index: int) -> UnitExtractor:
    threads = max(1, num_cores() // config.num_workers)
    torch.set_num_threads(threads)
    teacher = load_model(
        config.teacher,
        device=_worker_device(config.device, worker_index, config.num_workers),
        precision=config.precision,
        compile=config.compile,
    )
    return UnitExtractor(config.out, plan, source, teacher, config.batch_size, config.decode_threads or threads)


def _same(extractor: UnitExtractor, worker_index: int) -> UnitExtractor:
    return extractor


def _worker_device(device: str, worker_index: int, num_workers: int) -> str:
    resolved = resolve_device(device)
    if resolved.type == "cuda" and resolved.index is None and num_workers > 1:
        return f"cuda:{worker_index % torch.cuda.device_count()}"
    return str(resolved)


def _count_units(plan: Plan) -> int:
    return len(plan.shards) * len(plan.view_groups)


def _check_stored_top1(config: ExtractConfig) -> None:
    """The gate of a store that is whole: by its own logits. Raises CheckError below ``expect_top1``."""
    store = Store(config.out, is_partial=True)
    num_hits = 0
    for shard in range(len(store.shards)):
        predicted = store.read_logits(shard, 0, slice(None)).argmax(axis=1) + store.class_space.offset
        num_hits += int((predicted == store.read_labels(shard)).sum())
    top1 = num_hits / store.num_records
    assert config.expect_top1 is not None
    if top1 < config.expect_top1:
        raise CheckError(
            f"{config.out}: is whole, and its logits have top-1 {top1:.3f}, expected at least {config.expect_top1}; "
            "extract with another teacher or other settings into another --out"
        )


def _finish(path: Path, plan: Plan, num_parts: int, *, has_new_files: bool) -> bool:
    manifest_is_current = not has_new_files and (path / MANIFEST_NAME).exists() and Store(path).plan == plan
    if not manifest_is_current and not finalise_store(path, library_versions()):
        missing = len(missing_units(path, plan))
        _say(f"{path}: {missing} of {_count_units(plan)} units are left to other workers; the last one finishes it")
        return False
    if not manifest_is_current:
        # Other workers may be writing their own, equal manifest at this moment; alone, nothing is in use.
        remove_temporaries(path, older_than_seconds=0.0 if num_parts == 1 else DAY_SECONDS)
    store = Store(path)
    _say(
        f"{path}: whole: {store.num_records:,} records x {store.num_views} views, {store.num_bytes():,} bytes "
        f"({store.num_bytes() / store.num_records / store.num_views:,.0f} a view)"
    )
    return True


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
