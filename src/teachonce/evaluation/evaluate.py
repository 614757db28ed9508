"""Evaluation: top-1, top-5 and expected calibration error of any model on labelled records.

The model sees each record through its own preprocessing, and its logits are compared in the class space of the data,
where a class that it does not know has no mass: a record of such a class counts as wrong. A model of fewer than five
classes has them all in its top 5, so that is 1 where it knows every record's class. Decoding runs ahead of the model in
threads, bounded, so memory does not grow with the data.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.engine.cores import num_cores
from teachonce.engine.progress import Advance, progress
from teachonce.errors import ConfigError, LogitsError, RecordError
from teachonce.evaluation.config import EvaluateConfig
from teachonce.losses.metrics import ClassifierMetrics
from teachonce.models.classifier import Classifier, load_model
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.render import preprocess_images
from teachonce.records.class_space import ClassSpace, map_logits, resolve_offset
from teachonce.records.discovery import open_records
from teachonce.records.source import Record, RecordSource

BATCHES_AHEAD = 2


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Run ``teachonce evaluate``; returns what ``evaluate_model`` does, after the model, split and offset."""
    source = open_records(config.data, config.split)
    classifier = load_model(config.model, device=config.device, precision=config.precision)
    offset = classifier.default_offset if config.offset is None else config.offset
    data_classes = None if source.classes is None else len(source.classes.names)
    offset = resolve_offset(classifier.num_classes, data_classes, offset, model=config.model)
    with progress("evaluate", source.num_records) as advance:
        result = evaluate_model(classifier, source, offset, batch_size=config.batch_size, advance=advance)
    return {"model": config.model, "split": config.split, "offset": offset, **result}


def evaluate_model(
    classifier: Classifier,
    source: RecordSource,
    offset: int,
    *,
    batch_size: int = 64,
    num_threads: int | None = None,
    advance: Advance | None = None,
) -> dict[str, float | int]:
    """``top1``, ``top5`` and ``ece`` (15 bins) as fractions, ``num_records`` and ``images_per_second`` (all included).

    ``offset`` is the data label of the model's class 0; ``advance`` is called with the images done. Raises RecordError
    or ImageError with the record's place, LogitsError for logits that are not finite.
    """
    model_space = ClassSpace(num_classes=classifier.num_classes, offset=offset)
    num_classes = classifier.num_classes + offset if source.classes is None else len(source.classes.names)
    data_space = ClassSpace(num_classes=num_classes)
    first_class, last_class = max(offset, 0), min(classifier.num_classes + offset, num_classes)
    if last_class <= first_class:
        raise ConfigError(f"--offset {offset}: leaves {classifier.spec} and the data no class in common")
    metrics = ClassifierMetrics(num_classes, top5_classes=last_class - first_class)
    start = time.perf_counter()
    num_records = 0
    # One batch is in flight while the next is put together: on a GPU nothing waits for the copy back.
    pending: tuple[torch.Tensor, list[Record]] | None = None
    for pixels, records in _batches(classifier.preprocessing, source, batch_size, num_threads or num_cores()):
        _check_labels(records, num_classes)
        asked = classifier.logits(pixels), records
        if pending is not None:
            _count(metrics, classifier, *pending, model_space, data_space)
        pending = asked
        num_records += len(records)
        if advance is not None:
            advance(len(records))
    if pending is None:
        raise RecordError(f"{source.split}: holds no record")
    _count(metrics, classifier, *pending, model_space, data_space)
    seconds = time.perf_counter() - start
    computed = metrics.compute()
    return {
        "top1": computed["top1"],
        "top5": computed["top5"],
        "ece": computed["ece"],
        "num_records": num_records,
        "images_per_second": num_records / seconds,
    }


def _count(
    metrics: ClassifierMetrics,
    classifier: Classifier,
    logits: torch.Tensor,
    records: list[Record],
    model_space: ClassSpace,
    data_space: ClassSpace,
) -> None:
    try:
        collected = classifier.collect_logits(logits)
    except LogitsError as error:
        raise error.at(f"{records[0].where} to {records[-1].where}") from error
    mapped = map_logits(collected, model_space, data_space)
    metrics.update(torch.from_numpy(mapped), torch.tensor([record.label for record in records]))


def _check_labels(records: list[Record], num_classes: int) -> None:
    for record in records:
        if not 0 <= record.label < num_classes:
            raise RecordError(
                f"{record.where}: label {record.label}, expected 0 to {num_classes - 1}; give the --offset that fits "
                "model and data"
            )


def _batches(
    preprocessing: Preprocessing, source: RecordSource, batch_size: int, num_threads: int
) -> Iterator[tuple[torch.Tensor, list[Record]]]:
    """(pixels [B, H, W, 3], records) in the order of the source."""

    def read_pixels(record: Record) -> NDArray[np.uint8] | NDArray[np.float32]:
        return preprocess_images([record.encoded], [record.where], preprocessing)[0]

    waiting: deque[tuple[Record, Future[NDArray[np.uint8] | NDArray[np.float32]]]] = deque()

    def take_batch() -> tuple[torch.Tensor, list[Record]]:
        taken = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
        return torch.from_numpy(np.stack([future.result() for _, future in taken])), [record for record, _ in taken]

    with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as pool:
        try:
            for shard in range(len(source.shards)):
                for record in source.iter_shard(shard):
                    waiting.append((record, pool.submit(read_pixels, record)))
                    if len(waiting) == BATCHES_AHEAD * batch_size:
                        yield take_batch()
            while waiting:
                yield take_batch()
        finally:
            # What was asked for in vain, after an error, is not decoded any more.
            for _, future in waiting:
                future.cancel()
