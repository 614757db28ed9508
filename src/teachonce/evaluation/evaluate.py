"""Evaluation: top-1, top-5 and expected calibration error of any model on labeled records.

The model sees each record through its own preprocessing, and its logits are compared in the class space of the data,
where a class that it does not know has no mass: a record of such a class counts as wrong. A model of fewer than five
classes has them all in its top 5, so that is 1 where it knows every record's class. Data set and loader are those of
training, so decoding runs ahead of the model in threads, bounded: memory does not grow with the data.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from teachonce.data.dataset import EvalDataset
from teachonce.data.loader import Batch, Loader
from teachonce.data.sampler import EpochBatches
from teachonce.engine.machine import num_cores
from teachonce.engine.progress import Advance, phase, progress
from teachonce.errors import ConfigError, LogitsError, RecordError
from teachonce.evaluation.config import EvaluateConfig
from teachonce.evaluation.trained_images import warn_of_trained_images
from teachonce.losses.metrics import ClassifierMetrics
from teachonce.models.classifier import Classifier, load_model
from teachonce.models.own_classes import resolve_model_offset
from teachonce.models.pending import PendingLogits
from teachonce.records.class_space import ClassSpace, map_logits
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource, require_labels


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Run ``teachonce evaluate``; returns what ``evaluate_model`` does, after the model, split and offset."""
    with phase("evaluate", "opening the data"):
        source = open_records(config.data, config.split, config)
    require_labels(source, "an evaluation", "evaluate on a labeled --split")
    with phase("evaluate", "loading the model"):
        classifier = load_model(config.model, device=config.device, precision=config.precision)
    if classifier.spec.kind == "run":
        warn_of_trained_images(classifier.spec.name, config.split, config)
    names = None if source.classes is None else source.classes.names
    offset = resolve_model_offset(classifier, names, None if names is None else len(names), config.offset)
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
    if source.num_records == 0:
        raise RecordError(f"{source.split}: has no records")
    first_class, last_class = max(offset, 0), min(classifier.num_classes + offset, num_classes)
    if last_class <= first_class:
        raise ConfigError(f"--offset {offset}: leaves {classifier.spec} and the data no class in common")
    metrics = ClassifierMetrics(num_classes, top5_classes=last_class - first_class)
    start = time.perf_counter()
    num_threads = num_cores() if num_threads is None else num_threads
    batches = EpochBatches(source.num_records, batch_size, shuffle=False)
    # One batch is in flight while the next is put together: on a GPU nothing waits for the copy back.
    in_flight: tuple[PendingLogits, Batch] | None = None
    page_locked = classifier.device.type == "cuda"
    dataset = EvalDataset(source, classifier.preprocessing, data_space, page_locked=page_locked)
    for batch in Loader(dataset, batches, num_threads):
        asked = PendingLogits(classifier.logits(batch["pixels"])), batch
        if in_flight is not None:
            _count(metrics, classifier, *in_flight, source, model_space, data_space)
        in_flight = asked
        if advance is not None:
            advance(len(batch["labels"]))
    assert in_flight is not None
    _count(metrics, classifier, *in_flight, source, model_space, data_space)
    seconds = time.perf_counter() - start
    computed = metrics.compute()
    return {
        "top1": computed["top1"],
        "top5": computed["top5"],
        "ece": computed["ece"],
        "num_records": source.num_records,
        "images_per_second": source.num_records / seconds,
    }


def _count(
    metrics: ClassifierMetrics,
    classifier: Classifier,
    logits: PendingLogits,
    batch: Batch,
    source: RecordSource,
    model_space: ClassSpace,
    data_space: ClassSpace,
) -> None:
    try:
        collected = classifier.collect_logits(logits)
    except LogitsError as error:
        first, last = (source.read_record(*source.locate(int(batch["indices"][at]))).where for at in (0, -1))
        raise error.at(f"{first} to {last}") from error
    metrics.update(torch.from_numpy(map_logits(collected, model_space, data_space)), batch["labels"])
