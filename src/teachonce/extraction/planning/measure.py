"""What a plan measures: a sample of records goes through the stages of an extraction, and each is timed.

    SubsetSource      the sample as a source of one shard: views, stores and readers work on it as on all records
    run_teacher       records read, decoded and rendered in threads; the teacher run on full batches
    try_codec         the result as a real store in a temporary folder: exact bytes, encoding, reading back, distortion

One view of each record is rendered, and not all that the extraction would make: its costs are those of any other, and
the numbers V, V + 1, .. are never drawn, so the sampled views are among the extraction's own. A mixed view takes its
partner from the sample instead of its shard, which costs the same and avoids reading complete shards.

A cold disk is read at random places here and in order there, so the first plan over cold data overrates the reading.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.codecs.codec import Codec
from teachonce.codecs.softmax import total_variation
from teachonce.engine.prefetch import prefetch
from teachonce.engine.progress import Advance
from teachonce.errors import LogitsError
from teachonce.extraction.made_by import made_by
from teachonce.extraction.planning.costs import TEMPERATURES, mean_and_worst
from teachonce.models.classifier import Classifier
from teachonce.pixels.render import ViewReader, render_views
from teachonce.pixels.view_sources import DrawnViews
from teachonce.records.key_index import KeyIndex
from teachonce.records.sample import SubsetSource
from teachonce.records.source import Record
from teachonce.storage.files import open_storage
from teachonce.store.begin import begin_store
from teachonce.store.manifests import index_file
from teachonce.store.plan import Plan, records_file, samples_file, views_file
from teachonce.store.store import Store
from teachonce.store.tables import Sample, StoreWriter, write_index
from teachonce.views.columns import VIEW_COLUMNS
from teachonce.views.view import View

MIN_TEACHER_SECONDS = 1.0
"""An accelerator is timed for at least so long: a few batches take it milliseconds."""
TRIAL_ROWS = 2048
"""Rows that a trial store has at least, so that opening and syncing its file does not count as encoding."""
MAX_TRIAL_VIEWS = 10


@dataclass(frozen=True)
class SampleResult:
    """The teacher's logits of one view of each sampled record, and what they took; seconds as in ``costs``."""

    keys: NDArray[np.uint64]
    filenames: list[str]
    labels: NDArray[np.int32]
    views: list[View]
    logits: NDArray[np.float32]
    """[N, C]."""
    read_seconds: float
    decode_seconds: float
    look_seconds: float
    teacher_seconds: float
    batch_seconds: tuple[float, ...]
    """Of each full batch of the teacher."""
    made_by: dict[str, Any]
    """As ``extraction.made_by``."""


@dataclass(frozen=True)
class CodecTrial:
    """What a codec did to the result. Bytes are exact, of columns as stored in a file or of a file's rest."""

    codec: Codec
    codec_bytes: int
    """A view."""
    view_bytes: int
    """A view: the columns of its parameters."""
    file_bytes: float
    """A view file's own, whatever it holds."""
    batch_bytes: float
    """Of each view in a file, whatever its rows."""
    write_seconds: float
    read_back_seconds: float
    total_variation: dict[str, dict[str, float]]
    """Mean and worst over the sample, by temperature."""


def run_teacher(
    subset: SubsetSource, plan: Plan, teacher: Classifier, *, batch_size: int, num_threads: int, advance: Advance
) -> SampleResult:
    """Run the teacher on one view of each record of the sample; raises what an extraction would."""
    render = _build_render(subset, plan, teacher)
    rendered: list[_Rendered] = []
    parts: list[NDArray[np.float32]] = []
    read_seconds = 0.0
    batch_seconds: list[float] = []
    render((0, _read(subset, 0, plan)))  # the first image costs what is set up for all: tables, libraries, keys
    for start in range(0, subset.num_records, batch_size):
        rows = range(start, min(start + batch_size, subset.num_records))
        begin = time.perf_counter()
        pending = [(row, _read(subset, row, plan)) for row in rows]
        read_seconds += time.perf_counter() - begin
        batch = list(prefetch(pending, render, threads=num_threads, ahead=len(pending)))
        # Filled up with repeats, as in an extraction: every batch is a full one.
        pixels = [item.pixels for item in batch]
        tensor = torch.from_numpy(np.stack(pixels + pixels[-1:] * (batch_size - len(pixels))))
        if teacher.device.type == "cuda":
            tensor = tensor.pin_memory()
        try:
            if start == 0:
                _timed_logits(teacher, tensor)
            logits, seconds = _timed_logits(teacher, tensor)
        except LogitsError as error:
            raise error.at(f"{batch[0].record.where} to {batch[-1].record.where}") from error
        batch_seconds.append(seconds)
        parts.append(logits[: len(batch)])
        rendered += [item.without_pixels() for item in batch]
        advance(len(batch))
    while teacher.device.type != "cpu" and sum(batch_seconds) < MIN_TEACHER_SECONDS:
        batch_seconds.append(_timed_logits(teacher, tensor)[1])
    count = len(rendered)
    return SampleResult(
        keys=np.array([item.record.key for item in rendered], np.uint64),
        filenames=[item.record.filename for item in rendered],
        labels=np.array([item.record.label for item in rendered], np.int32),
        views=[item.view for item in rendered],
        logits=np.concatenate(parts),
        read_seconds=read_seconds / count,
        decode_seconds=sum(item.decode_seconds for item in rendered) / count,
        look_seconds=sum(item.look_seconds for item in rendered) / count,
        teacher_seconds=sum(batch_seconds) / (len(batch_seconds) * batch_size),
        batch_seconds=tuple(batch_seconds),
        made_by=made_by(teacher),
    )


def _timed_logits(teacher: Classifier, pixels: torch.Tensor) -> tuple[NDArray[np.float32], float]:
    """Logits, and the seconds that they took; bringing them home waits for the device."""
    begin = time.perf_counter()
    return teacher.collect_logits(teacher.logits(pixels)), time.perf_counter() - begin


PendingRow = tuple[int, Record]


@dataclass(frozen=True)
class _Rendered:
    record: Record
    pixels: NDArray[Any]
    view: View
    decode_seconds: float
    look_seconds: float

    def without_pixels(self) -> _Rendered:
        """What is kept of it: neither pixels nor the image."""
        return replace(self, pixels=self.pixels[:0], record=replace(self.record, encoded=b""))


def _build_render(subset: SubsetSource, plan: Plan, teacher: Classifier) -> Callable[[PendingRow], _Rendered]:
    policy, seed = plan.read_policy()
    reader = ViewReader(subset, DrawnViews(policy, seed, subset))

    def render(pending: PendingRow) -> _Rendered:
        row, record = pending
        number = row % plan.num_views
        begin = time.perf_counter()
        record_views = reader.views_of(reader.join([(0, row)], [record]), number)
        pixels = render_views(record_views, teacher.preprocessing)[0]
        one = time.perf_counter() - begin
        if not policy.is_random:
            return _Rendered(record, pixels, record_views[0].view, one, 0.0)
        # A second view of the same record costs a second rendering, and no second decoding.
        again = reader.views_of(reader.join([(0, row)], [record]), number)
        render_views([*record_views, *again], teacher.preprocessing, num_views=2)
        view_seconds = min(max(time.perf_counter() - begin - 2 * one, 0.0), one)
        return _Rendered(record, pixels, record_views[0].view, one - view_seconds, view_seconds)

    return render


def _read(subset: SubsetSource, row: int, plan: Plan) -> Record:
    record = subset.read_record(0, row)
    plan.check_label(record)
    return record


def try_codec(folder: Path, plan: Plan, codec: Codec, result: SampleResult) -> CodecTrial:
    """Store the answers with a codec in an empty ``folder``, each as several equal views, and read them back.

    ``plan`` is that of an extraction of the sample. Raises LogitsError where the codec refuses a row.
    """
    count = len(result.keys)
    num_views = min(MAX_TRIAL_VIEWS, max(2, -(-TRIAL_ROWS // count)))
    sizes = []
    for views_written in (1, num_views):
        store, seconds = _write_trial(folder / f"views-{views_written}", plan, codec, result, views_written)
        file_name = views_file(store.shards[0][0], (0, views_written - 1))
        sizes.append(open_storage(store.path).status(file_name).num_bytes)
    columns = store.read_columns(0, 0)
    widths = {name: values.nbytes // count for name, values in columns.items()}
    row_bytes = sum(widths.values())
    batch_bytes = (sizes[1] - sizes[0]) / (num_views - 1) - count * row_bytes
    stored = store.read_rows(0, 0, slice(None))
    begin = time.perf_counter()
    for row in range(count):
        store.read_logits(0, 0, [row])
    read_back = time.perf_counter() - begin
    return CodecTrial(
        codec=codec,
        codec_bytes=sum(width for name, width in widths.items() if name not in VIEW_COLUMNS),
        view_bytes=sum(width for name, width in widths.items() if name in VIEW_COLUMNS),
        file_bytes=sizes[0] - batch_bytes - count * row_bytes,
        batch_bytes=batch_bytes,
        write_seconds=seconds / (count * num_views),
        read_back_seconds=read_back / count,
        total_variation={
            str(t): mean_and_worst(total_variation(result.logits, codec.decode_logits(stored, t), t))
            for t in TEMPERATURES
        },
    )


def _write_trial(path: Path, plan: Plan, codec: Codec, result: SampleResult, num_views: int) -> tuple[Store, float]:
    """The store, and the seconds that its view file took."""
    count, num_classes = result.logits.shape
    group = (0, num_views - 1)
    plan = replace(plan, codec=codec.to_json(), view_groups=(group,), num_samples=0)
    begin_store(path, plan, views_per_file=num_views)
    name = plan.shards[0][0]
    writer = StoreWriter(path, plan, result.made_by)
    writer.write_records(name, result.keys, result.filenames, result.labels)
    begin = time.perf_counter()
    logits = np.broadcast_to(result.logits, (num_views, count, num_classes))
    writer.write_views(name, group, result.keys, result.labels, logits, [result.views] * num_views)
    seconds = time.perf_counter() - begin
    return Store(path, is_partial=True), seconds


def measure_side_files(folder: Path, plan: Plan, result: SampleResult, num_samples: int) -> dict[str, float]:
    """Bytes of the other files than views: a record, a sample, and a key in the index, each with its file."""
    name = plan.shards[0][0]
    records_name, samples_name = records_file(name), samples_file(name, (0, 0))
    count, num_classes = result.logits.shape
    writer = StoreWriter(folder, plan, result.made_by)
    writer.write_records(name, result.keys, result.filenames, result.labels)
    samples = [Sample(row % count, 0, 0, 0, result.logits[row % count]) for row in range(num_samples)]
    writer.write_samples(name, (0, 0), result.keys, samples)
    # Key, label, offset of the name, name; row, view, two hashes, logits before the codec: as in
    # docs/reference/store-format.md.
    record_bytes = 8 + 4 + 4 + float(np.mean([len(name.encode()) for name in result.filenames]))
    sample_bytes = 4 + 4 + 8 + 8 + 4 * num_classes
    index_name = index_file(0)
    write_index(folder, index_name, KeyIndex.build([result.keys]), plan.identity)
    storage = open_storage(folder)
    index_bytes = 8 + 4 + 4
    return {
        "index_bytes": float(index_bytes),
        "index_file_bytes": storage.status(index_name).num_bytes - float(count * index_bytes),
        "record_bytes": record_bytes,
        "records_file_bytes": storage.status(records_name).num_bytes - count * record_bytes,
        "sample_bytes": float(sample_bytes),
        "samples_file_bytes": storage.status(samples_name).num_bytes - float(num_samples * sample_bytes),
    }
