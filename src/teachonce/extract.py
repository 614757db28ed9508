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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.classes import ClassSpace, resolve_offset
from teachonce.codec import CODECS, Codec, codec_from_json, codec_to_json
from teachonce.config import ExtractConfig
from teachonce.dataset import decode_record
from teachonce.errors import ConfigError, LogitsError, RecordError, TeachonceError
from teachonce.files import remove_temporaries
from teachonce.gate import check_gate
from teachonce.launch import num_cores, run_jobs, take_part
from teachonce.models import Classifier, load_model, parse_model_spec
from teachonce.preprocessing import Preprocessing
from teachonce.progress import progress
from teachonce.records import Record, RecordSource, open_records
from teachonce.rng import generator
from teachonce.shard_files import records_file, views_file, write_records, write_views
from teachonce.store import (
    MANIFEST_NAME,
    Plan,
    Store,
    begin_store,
    finalise_store,
    group_views,
    missing_files,
)
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
    source = open_records(config.data, config.split)
    device = _worker_device(config.device, 0, 1)
    teacher = load_model(config.teacher, device=device, precision=config.precision, compile=config.compile)
    plan = begin_store(config.out, build_plan(config, source, teacher), config.views_per_file)
    units = take_part(missing_units(config.out, plan), *config.worker_part())
    _say(
        f"{config.out}: {_count_units(plan) - len(missing_units(config.out, plan))} of {_count_units(plan)} units done"
    )
    if units:
        if config.gate_samples:
            check_gate(teacher, source, plan.class_space, config)
        _extract_units(config, plan, source, teacher, units)
    return _finish(config.out, plan)


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
            "model": parse_model_spec(config.teacher).identity,
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


def missing_units(path: Path, plan: Plan) -> list[Unit]:
    """The units whose files are not all there, views first: all shards of the first group, then of the next."""
    missing = set(missing_files(path, plan))
    return [
        Unit(shard, group)
        for group in plan.view_groups
        for shard, (name, _) in enumerate(plan.shards)
        if views_file(name, group) in missing or records_file(name) in missing
    ]


def library_versions() -> dict[str, str]:
    """Versions of what makes pixels and logits, for the manifest."""
    names = ("teachonce", "torch", "torchvision", "timm", "pillow", "numpy", "pyarrow", "onnxruntime", "tensorflow")
    found = {"python": sys.version.split()[0]}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class ViewReader:
    """Pixels of a record's views, as the teacher looks at them."""

    def __init__(self, policy: Policy, seed: int, preprocessing: Preprocessing) -> None:
        self.policy = policy
        self.seed = seed
        self.preprocessing = preprocessing

    def read_views(self, record: Record, group: tuple[int, int]) -> tuple[list[NDArray], list[View]]:
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
        logits = np.empty((num_records, num_views, self.teacher.num_classes), np.float32)
        flat_logits = logits.reshape(num_records * num_views, -1)
        keys = np.empty(num_records, np.uint64)
        labels = np.empty(num_records, np.int32)
        filenames: list[str] = []
        views: list[list[View]] = [[] for _ in range(num_views)]
        places: list[str] = []
        batch: list[NDArray] = []
        done = 0
        for row, (record, pixels, record_views) in enumerate(self._decoded(unit)):
            keys[row], labels[row] = record.key, record.label
            filenames.append(record.filename)
            for view, drawn in zip(views, record_views, strict=bool(record_views)):
                view.append(drawn)
            for view_pixels in pixels:
                batch.append(view_pixels)
                places.append(record.where)
                if len(batch) == self.batch_size:
                    done = self._run_teacher(batch, places, flat_logits, done)
        if batch:
            done = self._run_teacher(batch, places, flat_logits, done)
        if done != num_records * num_views:
            raise RecordError(f"{done // num_views} records, the plan says {num_records}: the data changed; begin anew")
        # The records go first: a view file never stands without the records that it was made for.
        if not (self.path / records_file(name)).exists():
            write_records(self.path / records_file(name), keys, filenames, labels)
        has_views = not isinstance(self.reader.policy, CenterPolicy)
        view_logits = np.ascontiguousarray(logits.swapaxes(0, 1))
        write_views(
            self.path / views_file(name, unit.group), keys, self.codec, view_logits, views if has_views else None
        )
        return done

    def _decoded(self, unit: Unit) -> Iterator[tuple[Record, list[NDArray], list[View]]]:
        num_views = unit.group[1] - unit.group[0] + 1
        ahead = max(self.num_threads, DECODE_AHEAD_BATCHES * self.batch_size // num_views)
        pending: deque[tuple[Record, Future[tuple[list[NDArray], list[View]]]]] = deque()
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

    def _run_teacher(self, batch: list[NDArray], places: list[str], flat_logits: NDArray[np.float32], done: int) -> int:
        logits = self.teacher.logits(torch.from_numpy(np.stack(batch))).cpu().numpy()
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            bad = int(np.flatnonzero(~finite)[0])
            raise LogitsError(
                f"{places[bad]}: the teacher's logits are not finite "
                f"({np.count_nonzero(~np.isfinite(logits[bad]))} of {logits.shape[1]} classes); check its weights, its "
                "input range (mean, std, range) and --precision"
            )
        flat_logits[done : done + len(batch)] = logits
        done += len(batch)
        batch.clear()
        places.clear()
        return done


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
        for _, num_done in run_jobs(build, units, num_workers):
            advance(num_done)


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
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda" and num_workers > 1:
        return f"cuda:{worker_index % torch.cuda.device_count()}"
    return device


def _count_units(plan: Plan) -> int:
    return len(plan.shards) * len(plan.view_groups)


def _finish(path: Path, plan: Plan) -> bool:
    manifest_is_current = (path / MANIFEST_NAME).exists() and Store(path).plan == plan
    if not manifest_is_current and not finalise_store(path, library_versions()):
        missing = len(missing_units(path, plan))
        _say(f"{path}: {missing} of {_count_units(plan)} units are left to other workers; the last one finishes it")
        return False
    if not manifest_is_current:
        remove_temporaries(path)
    store = Store(path)
    _say(
        f"{path}: whole: {store.num_records:,} records x {store.num_views} views, {store.num_bytes():,} bytes "
        f"({store.num_bytes() / store.num_records / store.num_views:,.0f} a view)"
    )
    return True


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
