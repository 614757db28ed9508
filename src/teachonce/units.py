"""Units of extraction: what the teacher says of one shard x one group of views, made once and whole or not at all.

A job is a bundle of units, so that teacher batches are full whatever the size of a shard: they cross from one unit into
the next, and only the last batch of a bundle is filled up, with repeats. So every batch has the same size, and a row's
logits do not depend on which rows share its batch (on a CPU bit for bit, measured; other batch sizes, thread counts or
devices sum in another order): a unit that is made again after a kill has the same bytes. A unit's files are written as
soon as its last row is answered.

One decode serves all views of a group. Decoding runs ahead of the teacher in threads (Pillow lets go of the GIL),
bounded, so memory does not grow with the shard. The logits of a unit are held in memory until it is written: shard size
x views a file x classes x 4 bytes (ImageNet in 1024 shards, 10 views: 50 MB).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.codec import Codec, codec_from_json
from teachonce.errors import LogitsError, RecordError, TeachonceError
from teachonce.join import decode_record
from teachonce.launch import count_done
from teachonce.models import Classifier
from teachonce.policies import CenterPolicy, CropPolicy
from teachonce.records import Record, RecordSource
from teachonce.replay import DrawnViews, Looker, StoredViews, Views
from teachonce.rng import generator
from teachonce.shard_files import (
    Sample,
    pixels_hash,
    records_file,
    samples_file,
    views_file,
    write_records,
    write_samples,
    write_views,
)
from teachonce.store import Store
from teachonce.store_plan import Plan, missing_files
from teachonce.views import View

DECODE_AHEAD_BATCHES = 3
"""Batches of records that may be decoded before the teacher asks for them."""
BUNDLE_BATCHES = 32
"""Teacher batches that a bundle of small units has at least: filling up its last one costs 1/64 on average."""


@dataclass(frozen=True)
class Unit:
    """One shard and one group of views: what is made or not made."""

    shard: int
    group: tuple[int, int]

    @property
    def num_views(self) -> int:
        """Views of the group."""
        return self.group[1] - self.group[0] + 1


def all_units(plan: Plan) -> list[Unit]:
    """The units of a plan, views first: all shards of the first group of views, then of the next."""
    return [Unit(shard, group) for group in plan.view_groups for shard in range(len(plan.shards))]


def missing_units(path: Path, plan: Plan) -> set[Unit]:
    """The units whose files are not all there."""
    missing = set(missing_files(path, plan))
    files = plan.unit_files()
    names = [name for name, _ in plan.shards]
    return {unit for unit in all_units(plan) if missing.intersection(files[names[unit.shard], unit.group])}


def bundle_units(plan: Plan, units: Sequence[Unit], batch_size: int) -> list[tuple[Unit, ...]]:
    """Units in bundles of one group of views each, none of fewer than ``BUNDLE_BATCHES`` batches if that can be."""
    sizes = [num_records for _, num_records in plan.shards]
    bundles: list[tuple[Unit, ...]] = []
    for group in plan.view_groups:
        bundle: list[Unit] = []
        for unit in [unit for unit in units if unit.group == group]:
            bundle.append(unit)
            if sum(sizes[u.shard] * u.num_views for u in bundle) >= BUNDLE_BATCHES * batch_size:
                bundles.append(tuple(bundle))
                bundle = []
        if bundle:
            bundles.append(tuple(bundle))
    return bundles


class Answers:
    """What is known of one unit so far: its records, views and samples as they are decoded, its logits as they come."""

    def __init__(self, unit: Unit, name: str, num_records: int, num_classes: int, num_samples: int) -> None:
        self.unit = unit
        self.name = name
        self.keys = np.empty(num_records, np.uint64)
        self.labels = np.empty(num_records, np.int32)
        self.filenames: list[str] = []
        self.views: list[list[View]] = [[] for _ in range(unit.num_views)]
        self.hashes: dict[tuple[int, int], tuple[int, int]] = {}
        self.logits = np.empty((unit.num_views, num_records, num_classes), np.float32)
        self.num_left = num_records * unit.num_views
        rng = generator(0, "sample", name, unit.group[0])
        chosen = rng.permutation(self.num_left)[:num_samples]
        self.sampled = {(int(flat) % num_records, int(flat) // num_records) for flat in chosen}

    def samples(self) -> list[Sample]:
        """The sampled (row, view) in order, complete once all logits are there."""
        return [
            Sample(row, self.unit.group[0] + view, *self.hashes[row, view], self.logits[view, row])
            for row, view in sorted(self.sampled)
        ]


@dataclass
class _Decoded:
    """One record of a unit, with the pixels of its views and what is to be kept of them."""

    answers: Answers
    row: int
    record: Record
    pixels: list[NDArray[Any]]
    views: list[View]
    hashes: dict[tuple[int, int], tuple[int, int]]


class TeacherQueue:
    """Collects pixels into full batches, asks the teacher, and keeps one batch in flight so that copies overlap."""

    def __init__(self, teacher: Classifier, batch_size: int) -> None:
        self.teacher = teacher
        self.batch_size = batch_size
        self._waiting: list[tuple[NDArray[Any], Record, Answers, int, int]] = []
        self._in_flight: tuple[torch.Tensor, list[Any]] | None = None

    def put(self, pixels: NDArray[Any], record: Record, answers: Answers, view: int, row: int) -> list[Answers]:
        """Add the pixels of one view; asks when a batch is full. Returns the units that are complete now."""
        self._waiting.append((pixels, record, answers, view, row))
        return self._ask() if len(self._waiting) == self.batch_size else []

    def finish(self) -> list[Answers]:
        """Ask for the rest, in a batch filled up with repeats; returns the units that are complete now."""
        complete = self._ask() if self._waiting else []
        return complete + self._collect()

    def _ask(self) -> list[Answers]:
        pixels = [item[0] for item in self._waiting]
        pixels += pixels[-1:] * (self.batch_size - len(pixels))
        batch = torch.from_numpy(np.stack(pixels))
        if self.teacher.device.type == "cuda":
            batch = batch.pin_memory()
        asked = self.teacher.logits(batch), self._waiting
        complete = self._collect()
        self._in_flight = asked
        self._waiting = []
        return complete

    def _collect(self) -> list[Answers]:
        if self._in_flight is None:
            return []
        pending, asked = self._in_flight
        self._in_flight = None
        logits = pending.cpu().numpy()
        finite = np.isfinite(logits).all(axis=1)
        complete = []
        for index, (_, record, answers, view, row) in enumerate(asked):
            if not finite[index]:
                num_bad = np.count_nonzero(~np.isfinite(logits[index]))
                raise LogitsError(
                    f"{record.where}: the teacher's logits are NaN or infinite in {num_bad} of {logits.shape[1]} "
                    "classes; check its weights, its input range (mean, std, range) and --precision"
                )
            answers.logits[view, row] = logits[index]
            answers.num_left -= 1
            if answers.num_left == 0:
                complete.append(answers)
        return complete


class UnitExtractor:
    """Does bundles of units with one teacher, in one process."""

    def __init__(
        self,
        path: Path,
        plan: Plan,
        source: RecordSource,
        teacher: Classifier,
        batch_size: int,
        num_threads: int,
        views_of: Store | None = None,
    ) -> None:
        self.path = path
        self.plan = plan
        self.source = source
        self.teacher = teacher
        self.codec: Codec = codec_from_json(plan.codec)
        self.policy, seed = plan.read_policy()
        self.looker: Looker | None = None
        if isinstance(self.policy, CropPolicy):
            views: Views = DrawnViews(self.policy, seed, source) if views_of is None else StoredViews(views_of)
            self.looker = Looker(source, views)
        self.batch_size = batch_size
        self.num_threads = num_threads

    def __call__(self, bundle: Sequence[Unit]) -> None:
        """Make the files of the units."""
        queue = TeacherQueue(self.teacher, self.batch_size)
        try:
            for decoded in self._decoded(bundle):
                for view, pixels in enumerate(decoded.pixels):
                    self._write_all(queue.put(pixels, decoded.record, decoded.answers, view, decoded.row))
                count_done(len(decoded.pixels))
        except RecordError:
            # A record that is damaged costs its own unit, not the one before whose last rows wait for a full batch.
            self._write_all(queue.finish())
            raise
        self._write_all(queue.finish())

    def _decoded(self, bundle: Sequence[Unit]) -> Iterator[_Decoded]:
        num_views = bundle[0].num_views
        ahead = max(self.num_threads, DECODE_AHEAD_BATCHES * self.batch_size // num_views)
        pending: deque[Future[_Decoded]] = deque()
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode") as pool:
            failure = None
            try:
                try:
                    for answers, row, record in self._records(bundle):
                        pending.append(pool.submit(self._decode, answers, row, record))
                        if len(pending) > ahead:
                            yield self._keep(pending.popleft().result())
                except RecordError as error:
                    failure = error  # what was read before it is good, and may complete an earlier unit
                while pending:
                    yield self._keep(pending.popleft().result())
                if failure is not None:
                    raise failure
            finally:
                pool.shutdown(cancel_futures=True)

    def _records(self, bundle: Sequence[Unit]) -> Iterator[tuple[Answers, int, Record]]:
        for unit in bundle:
            name, num_records = self.plan.shards[unit.shard]
            answers = Answers(unit, name, num_records, self.teacher.num_classes, self.plan.num_samples)
            row = -1
            try:
                for row, record in enumerate(self.source.iter_shard(unit.shard)):
                    if row == num_records:
                        break
                    if not 0 <= record.label < self.plan.data_classes:
                        raise RecordError(
                            f"{record.where}: label {record.label}, expected 0 to {self.plan.data_classes - 1}; give "
                            "--num-classes or --offset that fit the data"
                        )
                    yield answers, row, record
                if row + 1 != num_records:
                    raise RecordError(
                        f"other than {num_records} records, which the plan says: the data changed; begin anew"
                    )
            except TeachonceError as error:
                raise error.at(name) from error

    def _decode(self, answers: Answers, row: int, record: Record) -> _Decoded:
        """Read in a thread: decode once, look through every view of the group."""
        unit = answers.unit
        preprocessing = self.teacher.preprocessing
        if self.looker is not None:
            self.looker.views.check(unit.shard, row, record)
        image = decode_record(record)
        decoded = _Decoded(answers, row, record, [], [], {})
        for view in range(unit.num_views):
            if self.looker is None:
                try:
                    pixels: NDArray[Any] = preprocessing.apply(image)
                except TeachonceError as error:
                    raise error.at(record.where) from error
            else:
                look = self.looker.look(unit.shard, row, unit.group[0] + view, record, image)
                pixels = look.pixels(preprocessing.size_px, preprocessing.interpolation)
                decoded.views.append(look.view)
            if (row, view) in answers.sampled:
                decoded.hashes[row, view] = pixels_hash(np.asarray(image)), pixels_hash(pixels)
            decoded.pixels.append(pixels)
        return decoded

    def _keep(self, decoded: _Decoded) -> _Decoded:
        answers, record = decoded.answers, decoded.record
        answers.keys[decoded.row], answers.labels[decoded.row] = record.key, record.label
        answers.filenames.append(record.filename)
        for kept, view in zip(answers.views, decoded.views, strict=bool(decoded.views)):
            kept.append(view)
        answers.hashes |= decoded.hashes
        return decoded

    def _write_all(self, complete: Sequence[Answers]) -> None:
        for answers in complete:
            self._write(answers)

    def _write(self, answers: Answers) -> None:
        name, group = answers.name, answers.unit.group
        try:
            # The records go first, the views last: a view file never stands without what belongs to it.
            if not (self.path / records_file(name)).exists():
                write_records(self.path / records_file(name), answers.keys, answers.filenames, answers.labels)
            if self.plan.num_samples:
                write_samples(self.path / samples_file(name, group), answers.samples())
            path = self.path / views_file(name, group)
            if isinstance(self.policy, CenterPolicy):
                write_views(path, answers.keys, self.codec, answers.logits, None)
            else:
                write_views(path, answers.keys, self.codec, answers.logits, answers.views, self.policy.layout)
        except TeachonceError as error:
            raise error.at(name) from error
