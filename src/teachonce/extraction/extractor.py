"""Units of extraction: what the teacher says of one shard x one group of views, made once and whole or not at all.

A job is a bundle of units, so that teacher batches are full whatever the size of a shard: they cross from one unit into
the next, and only the last batch of a bundle is filled up, with repeats. So every batch has the same size, and a row's
logits do not depend on which rows share its batch (on a CPU bit for bit, measured; other batch sizes, thread counts or
devices sum in another order): a unit that is made again after a kill has the same bytes. A unit's files are written as
soon as its last row is answered.

One decode serves all views of a group. Decoding runs ahead of the teacher in threads, bounded, so memory does not grow
with the shard; results are encoded and written behind it in one more. The logits of a unit are held in memory until it
is written: shard size x views a file x classes x 4 bytes (ImageNet in 1024 shards, 10 views: 50 MB).
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.codecs.codec import Codec
from teachonce.codecs.registry import codec_from_json
from teachonce.engine.jobs import count_done
from teachonce.errors import LogitsError, RecordError, TeachonceError
from teachonce.extraction.units import Unit
from teachonce.models.classifier import Classifier
from teachonce.pixels.decode import decode_record
from teachonce.pixels.render import preprocess_images
from teachonce.pixels.render_views import DrawnViews, Looker, StoredViews, Views, render_looks
from teachonce.records.source import Record, RecordSource
from teachonce.rng import generator
from teachonce.storage.files import open_storage
from teachonce.store.arrow_files import (
    Sample,
    pixels_hash,
    records_file,
    samples_file,
    views_file,
    write_records,
    write_samples,
    write_views,
)
from teachonce.store.plan import Plan
from teachonce.store.store import Store
from teachonce.views.policy import CenterPolicy, CropPolicy
from teachonce.views.view import View

DECODE_AHEAD_BATCHES = 3
"""Batches of records that may be decoded before the teacher asks for them."""
LOOK_VIEWS = 16
"""Views that a thread makes at once: the records of a piece of work are as many as have so many views."""
WRITE_BEHIND_UNITS = 2
"""Units whose logits may wait for being written."""


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


Asked = tuple[Answers, int, Record]
"""A record of a unit, with its row."""


@dataclass
class _Looked:
    """Some records of units, the pixels [N, V, H, W, 3] of their views, and what is to be kept of them."""

    asked: list[Asked]
    pixels: NDArray[Any]
    views: list[list[View]]
    hashes: list[dict[tuple[int, int], tuple[int, int]]]


@dataclass
class Seconds:
    """Where the time of a bundle goes; parts that run side by side add up to more than the whole.

    ``teacher`` is what the extracting thread spends on asking and waiting for answers, ``wait`` what it waits for
    pixels: where that is not small, looking is what limits, not the teacher.
    """

    read: float = 0.0
    look: float = 0.0
    wait: float = 0.0
    teacher: float = 0.0
    encode_and_write: float = 0.0

    @contextmanager
    def count(self, part: str) -> Iterator[None]:
        """Add the time that the block takes to a part."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            # Threads may add at once; a lost addition of some milliseconds in a profile is no harm.
            setattr(self, part, getattr(self, part) + time.perf_counter() - begin)


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
        is_profiled: bool = False,
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
        self.is_profiled = is_profiled
        self.seconds = Seconds()

    def __call__(self, bundle: Sequence[Unit]) -> None:
        """Make the files of the units."""
        begin, self.seconds = time.perf_counter(), Seconds()
        queue = TeacherQueue(self.teacher, self.batch_size)
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            written: deque[Future[None]] = deque()
            try:
                for looked in self._looked(bundle):
                    for index, (answers, row, record) in enumerate(looked.asked):
                        for view, pixels in enumerate(looked.pixels[index]):
                            with self.seconds.count("teacher"):
                                complete = queue.put(pixels, record, answers, view, row)
                            self._write_behind(writer, written, complete)
                    count_done(looked.pixels.shape[0] * looked.pixels.shape[1])
            except RecordError:
                # A record that is damaged costs its own unit, not the one before whose last rows wait for a full batch.
                self._write_behind(writer, written, queue.finish())
                _wait_for(written, 0)
                raise
            with self.seconds.count("teacher"):
                complete = queue.finish()
            self._write_behind(writer, written, complete)
            _wait_for(written, 0)
        if self.is_profiled:
            self._print_profile(bundle, time.perf_counter() - begin)

    def _write_behind(
        self, writer: ThreadPoolExecutor, written: deque[Future[None]], complete: Sequence[Answers]
    ) -> None:
        for answers in complete:
            written.append(writer.submit(self._write, answers))
        _wait_for(written, WRITE_BEHIND_UNITS)

    def _print_profile(self, bundle: Sequence[Unit], whole: float) -> None:
        names = [self.plan.shards[unit.shard][0] for unit in bundle]
        num_views = sum(self.plan.shards[unit.shard][1] * unit.num_views for unit in bundle)
        parts = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in vars(self.seconds).items())
        more = f" to {names[-1]}" if len(names) > 1 else ""
        print(
            f"{names[0]}{more}: {num_views} views in {whole:.2f} s, {num_views / whole:.1f}/s; seconds: {parts} "
            f"(look: sum over {self.num_threads} threads)",
            file=sys.stderr,
            flush=True,
        )

    def _looked(self, bundle: Sequence[Unit]) -> Iterator[_Looked]:
        num_views = bundle[0].num_views
        chunk_size = max(1, LOOK_VIEWS // num_views)
        ahead = max(self.num_threads, DECODE_AHEAD_BATCHES * self.batch_size // (num_views * chunk_size))
        pending: deque[Future[_Looked]] = deque()

        def take() -> _Looked:
            with self.seconds.count("wait"):
                return self._keep(pending.popleft().result())

        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode") as pool:
            failure = None
            chunk: list[Asked] = []
            try:
                try:
                    for asked in self._timed_records(bundle):
                        chunk.append(asked)
                        if len(chunk) == chunk_size:
                            pending.append(pool.submit(self._look, chunk))
                            chunk = []
                            if len(pending) > ahead:
                                yield take()
                except RecordError as error:
                    failure = error  # what was read before it is good, and may complete an earlier unit
                if chunk:
                    pending.append(pool.submit(self._look, chunk))
                while pending:
                    yield take()
                if failure is not None:
                    raise failure
            finally:
                pool.shutdown(cancel_futures=True)

    def _timed_records(self, bundle: Sequence[Unit]) -> Iterator[Asked]:
        records = self._records(bundle)
        while True:
            with self.seconds.count("read"):
                asked = next(records, None)
            if asked is None:
                return
            yield asked

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

    def _look(self, asked: list[Asked]) -> _Looked:
        """In a thread: decode each record once, look through every view of the group."""
        with self.seconds.count("look"):
            group = asked[0][0].unit.group
            numbers = range(group[0], group[1] + 1)
            records = [record for _, _, record in asked]
            preprocessing = self.teacher.preprocessing
            if self.looker is None:
                encoded, places = [record.encoded for record in records], [record.where for record in records]
                pixels = preprocess_images(encoded, places, preprocessing)[:, None]
                return _Looked(asked, pixels, [], self._hash_samples(asked, pixels))
            rows = [(answers.unit.shard, row) for answers, row, _ in asked]
            self.looker.views.check(rows, records)
            by_view = [self.looker.look_all(rows, number, records) for number in numbers]
            looks = [look for looks in zip(*by_view, strict=True) for look in looks]
            flat = render_looks(looks, preprocessing.size_px, preprocessing.interpolation, num_views=len(numbers))
            pixels = flat.reshape(len(asked), len(numbers), *flat.shape[1:])
            views = [[look.view for look in looks] for looks in zip(*by_view, strict=True)]
            return _Looked(asked, pixels, views, self._hash_samples(asked, pixels))

    def _hash_samples(self, asked: list[Asked], pixels: NDArray[Any]) -> list[dict[tuple[int, int], tuple[int, int]]]:
        hashes = []
        for index, (answers, row, record) in enumerate(asked):
            views = [view for view in range(pixels.shape[1]) if (row, view) in answers.sampled]
            image = pixels_hash(np.asarray(decode_record(record))) if views else 0
            hashes.append({(row, view): (image, pixels_hash(pixels[index, view])) for view in views})
        return hashes

    def _keep(self, looked: _Looked) -> _Looked:
        for index, (answers, row, record) in enumerate(looked.asked):
            answers.keys[row], answers.labels[row] = record.key, record.label
            answers.filenames.append(record.filename)
            if looked.views:
                for kept, view in zip(answers.views, looked.views[index], strict=True):
                    kept.append(view)
            answers.hashes |= looked.hashes[index]
        return looked

    def _write(self, answers: Answers) -> None:
        with self.seconds.count("encode_and_write"):
            self._write_files(answers)

    def _write_files(self, answers: Answers) -> None:
        name, group = answers.name, answers.unit.group
        try:
            # The records go first, the views last: a view file never stands without what belongs to it.
            if not open_storage(self.path).has(records_file(name)):
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


def _wait_for(written: deque[Future[None]], count: int) -> None:
    """Until at most ``count`` are left to be written; raises what went wrong with one."""
    while len(written) > count:
        written.popleft().result()
