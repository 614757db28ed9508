"""Makes bundles of units: records rendered ahead in threads, the teacher run on full batches, files written behind.

Teacher batches cross from one unit of a bundle into the next, and only the last one of a bundle is filled up, with
repeats. So every batch has the same size, and a row's logits do not depend on which rows share its batch (on a CPU bit
for bit, measured; other batch sizes, thread counts or devices sum in another order): a unit that is made again after a
kill has the same bytes. A unit's files are written as soon as its last row is answered.

One decode serves all views of a group. Rendering runs ahead of the teacher in threads, bounded, so memory does not grow
with the shard; results are encoded and written behind it in one more. The logits of a unit are held in memory until it
is written: shard size x views a file x classes x 4 bytes (ImageNet in 1024 shards, 10 views: 50 MB).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from teachonce.engine.chunked import chunked
from teachonce.engine.prefetch import prefetch, take_ahead
from teachonce.engine.progress import Advance
from teachonce.engine.stop import is_stopping
from teachonce.errors import RecordError, StoreError, TeachonceError
from teachonce.extraction.made_by import made_by
from teachonce.extraction.seconds import Seconds
from teachonce.extraction.teacher_queue import TeacherQueue
from teachonce.extraction.unit_result import UnitResult
from teachonce.extraction.units import Unit, UnitCounts, is_made
from teachonce.models.classifier import Classifier
from teachonce.pixels.decode import decode_record
from teachonce.pixels.render import RecordView, ViewReader, render_views
from teachonce.pixels.view_sources import DrawnViews, ViewSource
from teachonce.records.source import Record, RecordSource
from teachonce.store.plan import Plan
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from teachonce.store.tables import pixels_hash
from teachonce.terminal import print_line

AHEAD_BATCHES = 3
"""Batches of records that may be rendered before the teacher needs them."""
CHUNK_VIEWS = 16
"""Views that a thread renders at once: the records of a piece of work are as many as have so many views."""
READ_AHEAD_CHUNKS = 4
"""Pieces of work whose records are read before they are rendered."""
WRITE_BEHIND_UNITS = 2
"""Units whose logits may wait for being written."""


class PendingRecord(NamedTuple):
    """A record on its way to the teacher, and the unit that waits for its logits."""

    result: UnitResult
    row: int
    record: Record


class RenderedRecords(NamedTuple):
    """Some pending records, by view what they show, the pixels [N, V, H, W, 3], and the hashes of those sampled."""

    pending: list[PendingRecord]
    by_view: list[list[RecordView]]
    pixels: NDArray[Any]
    hashes: list[dict[tuple[int, int], tuple[int, int]]]


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
        policy, seed = plan.read_policy()
        views: ViewSource = DrawnViews(policy, seed, source) if views_of is None else StoredViews(views_of)
        self.reader = ViewReader(source, views)
        self.made_by = made_by(teacher)
        kind = self.made_by["device"]
        self.device = kind if kind == teacher.device.type else f"{teacher.device} ({kind})"
        """A description of the teacher's device."""
        self.batch_size = batch_size
        self.num_threads = num_threads
        self.is_profiled = is_profiled
        self.seconds = Seconds()
        self._num_skipped = self._num_twice = 0

    def __call__(self, bundle: Sequence[Unit], report: Advance = lambda count: None) -> UnitCounts:
        """Make the files of the units that are not there by now; ``report`` is called with the views that are done.

        Where this process is asked to stop, no further unit is started.
        """
        begin, self.seconds = time.perf_counter(), Seconds()
        self._num_skipped = self._num_twice = 0
        queue = TeacherQueue(self.teacher, self.batch_size)
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            writes: deque[Future[None]] = deque()
            try:
                with closing(self.seconds.timed("wait", self._render_ahead(bundle, report))) as rendered_ahead:
                    for rendered in rendered_ahead:
                        self._enqueue(queue, rendered, writer, writes)
                        report(rendered.pixels.shape[0] * rendered.pixels.shape[1])
            except (RecordError, StoreError):
                # What is wrong with a record costs its own unit, not the one before whose last rows wait for a full
                # batch.
                self._write_behind(writer, writes, queue.finish())
                _wait_for(writes, 0)
                raise
            with self.seconds.count("teacher"):
                complete = queue.finish()
            self._write_behind(writer, writes, complete)
            _wait_for(writes, 0)
        if self.is_profiled:
            self._print_profile(bundle, time.perf_counter() - begin)
        num_made = len(bundle) - self._num_skipped - self._num_twice
        return UnitCounts(num_made, self._num_skipped, self._num_twice)

    def _missing(self, bundle: Sequence[Unit], report: Advance) -> Iterator[Unit]:
        """The units that are not there when it is their turn: other workers, or another command, may make them too."""
        for unit in bundle:
            if is_stopping():
                return
            if is_made(self.path, self.plan, unit):
                self._num_skipped += 1
                report(self.plan.shards[unit.shard][1] * unit.num_views)
            else:
                yield unit

    def _render_ahead(self, bundle: Sequence[Unit], report: Advance) -> Iterator[RenderedRecords]:
        num_views = bundle[0].num_views
        chunk_size = max(1, CHUNK_VIEWS // num_views)
        ahead = max(self.num_threads, AHEAD_BATCHES * self.batch_size // (num_views * chunk_size))
        # No chunk holds rows of two units: what cannot be read or rendered costs its own unit, not the one before.
        chunks = (
            chunk
            for unit in self._missing(bundle, report)
            for chunk in chunked(self.seconds.timed("read", self._read(unit)), chunk_size)
        )
        # Elsewhere than on this machine the next shard is looked for and opened by requests, which the teacher, in this
        # thread, need not wait for.
        taken = take_ahead(chunks, READ_AHEAD_CHUNKS)
        return prefetch(taken, self._render, threads=self.num_threads, ahead=ahead)

    def _read(self, unit: Unit) -> Iterator[PendingRecord]:
        """The records of a unit in order; what is wrong with one names its shard."""
        name, num_records = self.plan.shards[unit.shard]
        result = UnitResult(unit, name, num_records, self.teacher.num_classes, self.plan.num_samples)
        row = -1
        try:
            for row, record in enumerate(self.source.iter_shard(unit.shard)):
                if row == num_records:
                    break
                self.plan.check_label(record)
                yield PendingRecord(result, row, record)
            if row + 1 != num_records:
                raise RecordError(f"not {num_records} records as planned: the data changed; start again")
        except TeachonceError as error:
            raise error.at(name) from error

    def _render(self, pending: list[PendingRecord]) -> RenderedRecords:
        """In a thread: decode each record once, render every view of the group."""
        with self.seconds.count("look"):
            unit = pending[0].result.unit
            locations = [(item.result.unit.shard, item.row) for item in pending]
            records = [item.record for item in pending]
            joined = self.reader.join(locations, records)
            by_view = [self.reader.views_of(joined, number) for number in unit.view_numbers]
            record_views = [item for of_record in zip(*by_view, strict=True) for item in of_record]
            flat = render_views(record_views, self.teacher.preprocessing, num_views=unit.num_views)
            pixels = flat.reshape(len(pending), unit.num_views, *flat.shape[1:])
            hashes = [_hash_samples(item, of_record) for item, of_record in zip(pending, pixels, strict=True)]
            return RenderedRecords(pending, by_view, pixels, hashes)

    def _enqueue(
        self, queue: TeacherQueue, rendered: RenderedRecords, writer: ThreadPoolExecutor, writes: deque[Future[None]]
    ) -> None:
        for index, (result, row, record) in enumerate(rendered.pending):
            result.add_record(
                row, record, [of_view[index].view for of_view in rendered.by_view], rendered.hashes[index]
            )
            for view, pixels in enumerate(rendered.pixels[index]):
                with self.seconds.count("teacher"):
                    complete = queue.put(pixels, record, result, view, row)
                self._write_behind(writer, writes, complete)

    def _write_behind(
        self, writer: ThreadPoolExecutor, writes: deque[Future[None]], complete: Sequence[UnitResult]
    ) -> None:
        for result in complete:
            writes.append(writer.submit(self._write, result))
        _wait_for(writes, WRITE_BEHIND_UNITS)

    def _write(self, result: UnitResult) -> None:
        with self.seconds.count("encode_and_write"):
            if is_made(self.path, self.plan, result.unit):
                self._num_twice += 1
                return
            result.write(self.path, self.plan, self.made_by)

    def _print_profile(self, bundle: Sequence[Unit], whole: float) -> None:
        names = [self.plan.shards[unit.shard][0] for unit in bundle]
        num_views = sum(self.plan.shards[unit.shard][1] * unit.num_views for unit in bundle)
        more = f" to {names[-1]}" if len(names) > 1 else ""
        print_line(
            f"{names[0]}{more}: {num_views} views in {whole:.2f} s, {num_views / whole:.1f}/s; seconds: "
            f"{self.seconds} (look: decoding and transforms, sum over {self.num_threads} threads)",
        )


def _hash_samples(pending: PendingRecord, pixels: NDArray[Any]) -> dict[tuple[int, int], tuple[int, int]]:
    """(hash of the decoded image, hash of the pixels) of the sampled (row, view) of a record."""
    views = [view for view in range(len(pixels)) if (pending.row, view) in pending.result.sampled]
    image = pixels_hash(np.asarray(decode_record(pending.record))) if views else 0
    return {(pending.row, view): (image, pixels_hash(pixels[view])) for view in views}


def _wait_for(writes: deque[Future[None]], count: int) -> None:
    """Until at most ``count`` are left to be written; raises what went wrong with one."""
    while len(writes) > count:
        writes.popleft().result()
