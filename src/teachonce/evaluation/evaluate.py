"""Evaluation: what any model knows of labeled records, by class, and beside another model or a stored teacher.

The model sees each record through its own preprocessing, and its logits are compared in the class space of the data,
where a class that it does not know has no mass: a record of such a class counts as wrong. A model of fewer than five
classes has them all in its top 5, so that is 1 where it knows every record's class. Data set and loader are those of
training, so decoding runs ahead of the models in threads, bounded: memory does not grow with the data. A second model
(``--against``) and what a store's teacher said (``--store``) are compared on the same images, in the same pass.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from teachonce.data.loader import Batch
from teachonce.engine.machine import num_cores
from teachonce.engine.progress import Advance, phase, progress
from teachonce.errors import ConfigError, LogitsError, RecordError
from teachonce.evaluation.compared_records import TEACHER_PROBS, ComparedRecords, StoredTeacher
from teachonce.evaluation.config import EvaluateConfig
from teachonce.evaluation.findings.paired import PairedCounts
from teachonce.evaluation.findings.per_class import encode_csv
from teachonce.evaluation.findings.tally import Findings, Tally
from teachonce.evaluation.outputs import check_outputs
from teachonce.evaluation.trained_images import warn_of_trained_images
from teachonce.models.classifier import Classifier, load_model
from teachonce.models.own_classes import resolve_model_offset
from teachonce.models.pending import PendingLogits
from teachonce.records.class_space import ClassSpace, map_logits
from teachonce.records.class_table import shown_names
from teachonce.records.discovery import open_records
from teachonce.records.source import RecordSource, require_labels
from teachonce.storage.files import locate
from teachonce.store.store import Store


class Evaluated(NamedTuple):
    """A model, and the data label of its class 0."""

    classifier: Classifier
    offset: int


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Run ``teachonce evaluate``, and write ``--csv`` and ``--html``; returns what was found as JSON values.

    ``model``, ``split`` and ``offset`` come first, then those of ``Findings.to_json`` and ``images_per_second``.
    Raises ConfigError for options that do not fit the data, StoreError for a store of other records, and what
    ``evaluate_model`` does.
    """
    check_outputs(config)
    with phase("evaluate", "opening the data"):
        source = open_records(config.data, config.split, config)
        store = None if config.store is None else Store(config.store)
    require_labels(source, "an evaluation", "evaluate on a labeled --split")
    model = _load(config.model, config, source, config.offset, "--offset")
    # An offset of the second model is given in its SPEC: there is no option for it.
    against = None if config.against is None else _load(config.against, config, source, None, None)
    start = time.perf_counter()
    with progress("evaluate", source.num_records) as advance:
        findings = evaluate_model(
            model.classifier,
            source,
            model.offset,
            against=against,
            store=store,
            batch_size=config.batch_size,
            advance=advance,
        )
    seconds = time.perf_counter() - start
    if config.csv is not None:
        _write(config.csv, encode_csv(findings.classes))
    if config.html is not None:
        from teachonce.evaluation.findings.page import render_findings

        with phase("evaluate", "writing the page"):
            page = render_findings(findings, source, model=config.model, data=str(config.data))
        _write(config.html, page.encode())
    return {
        "model": config.model,
        "split": config.split,
        "offset": model.offset,
        **findings.to_json(),
        "images_per_second": findings.num_records / seconds,
    }


def evaluate_model(
    classifier: Classifier,
    source: RecordSource,
    offset: int,
    *,
    against: Evaluated | None = None,
    store: Store | None = None,
    batch_size: int = 64,
    num_threads: int | None = None,
    advance: Advance | None = None,
) -> Findings:
    """Run one model, or two on the same images, over all records, beside what the store's teacher said of them.

    ``offset`` is the data label of the model's class 0; ``advance`` is called with the images done. Raises RecordError
    or ImageError with the record's place, LogitsError for logits that are not finite, StoreError for a store that
    does not know the records.
    """
    if source.num_records == 0:
        raise RecordError(f"{source.split}: has no records")
    models = [Evaluated(classifier, offset), *([] if against is None else [against])]
    num_classes = classifier.num_classes + offset if source.classes is None else len(source.classes.names)
    data_space = ClassSpace(num_classes=num_classes)
    num_known = [
        _count_known(model, num_classes, option)
        for model, option in zip(models, ("--offset", "--against: offset"), strict=False)
    ]
    teacher = None if store is None else StoredTeacher(store, source, data_space)
    others = [] if against is None else [PairedCounts(str(against.classifier.spec), "model", num_classes)]
    if teacher is not None:
        _check_shared(models[0], teacher, data_space)
        others.append(PairedCounts(str(teacher.store.path), "teacher", num_classes, teacher.describe()))
    tally = Tally(
        num_classes,
        num_known_classes=num_known[0],
        first_known_label=max(models[0].offset, 0),
        names=shown_names(source.classes),
        others=others,
    )
    dataset = ComparedRecords(
        source,
        [model.classifier.preprocessing for model in models],
        data_space,
        teacher,
        page_locked=any(model.classifier.device.type == "cuda" for model in models),
    )
    spaces = [ClassSpace(num_classes=model.classifier.num_classes, offset=model.offset) for model in models]
    num_threads = num_cores() if num_threads is None else num_threads
    # One batch is in flight while the next is put together: on a GPU nothing waits for the copy back.
    in_flight: tuple[list[PendingLogits], Batch] | None = None

    def count(logits: Sequence[PendingLogits], batch: Batch) -> None:
        found = [
            torch.from_numpy(map_logits(_collect(model, pending, batch, source), space, data_space))
            for model, pending, space in zip(models, logits, spaces, strict=True)
        ]
        other_probs = [to_probabilities(other) for other in found[1:]]
        if teacher is not None:
            other_probs.append(batch[TEACHER_PROBS])
        tally.update(found[0], batch["labels"], batch["indices"], other_probs)

    for batch in dataset.batches(batch_size=batch_size, num_workers=num_threads):
        asked = [
            PendingLogits(model.classifier.logits(batch[name]))
            for model, name in zip(models, dataset.pixels_names, strict=True)
        ]
        if in_flight is not None:
            count(*in_flight)
        in_flight = asked, batch
        if advance is not None:
            advance(len(batch["labels"]))
    assert in_flight is not None
    count(*in_flight)
    return tally.findings()


def to_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax [B, C] in float64: two logits that differ in float32 do so there, and the largest one stays it."""
    return torch.softmax(logits.double(), dim=1)


def _load(spec: str, config: EvaluateConfig, source: RecordSource, offset: int | None, option: str | None) -> Evaluated:
    with phase("evaluate", f"loading {spec}"):
        classifier = load_model(spec, device=config.device, precision=config.precision)
    if classifier.spec.kind == "run":
        warn_of_trained_images(classifier.spec.name, config.split, config)
    names = None if source.classes is None else source.classes.names
    num_classes = None if names is None else len(names)
    knows_offset = offset is not None or classifier.default_offset is not None
    if num_classes is None and not knows_offset:
        # As in ``extract``: a guess would shift every label, and of some of the classes nothing would show it.
        asked = "--offset" if option is not None else "offset= in its SPEC"
        raise ConfigError(
            f"{config.data}: the number of classes is unknown (no classes.json): give {asked}, the data label of the "
            f"first class of {spec} (ImageNet TFRecords: 1; labels that count from 0: 0)"
        )
    return Evaluated(classifier, resolve_model_offset(classifier, names, num_classes, offset, option=option))


def _count_known(model: Evaluated, num_classes: int, option: str) -> int:
    """Classes of the data that the model knows; ConfigError where that is none."""
    first, last = max(model.offset, 0), min(model.classifier.num_classes + model.offset, num_classes)
    if last <= first:
        raise ConfigError(f"{option} {model.offset}: leaves {model.classifier.spec} and the data no class in common")
    return last - first


def _check_shared(model: Evaluated, teacher: StoredTeacher, data_space: ClassSpace) -> None:
    """Raise ConfigError where the model knows no class of the data that the store's teacher knows too."""
    known = ClassSpace(num_classes=model.classifier.num_classes, offset=model.offset).labels()
    taught = teacher.known_labels()
    if not (np.isin(known, taught) & np.isin(known, data_space.labels())).any():
        raise ConfigError(
            f"--store {teacher.store.path}: its teacher knows {len(taught):,} of the data's {data_space.num_classes:,} "
            f"classes, {model.classifier.spec} none of these, so there is nothing to compare; give the store of a "
            "teacher with the model's classes"
        )


def _collect(model: Evaluated, logits: PendingLogits, batch: Batch, source: RecordSource) -> Any:
    try:
        return model.classifier.collect_logits(logits)
    except LogitsError as error:
        first, last = (source.read_record(*source.locate(int(batch["indices"][at]))).where for at in (0, -1))
        raise error.at(f"{first} to {last}") from error


def _write(path: Path, content: bytes) -> None:
    storage, name = locate(path)
    with storage.put(name) as file:
        file.write(content)
    # What a killed evaluation left there.
    storage.remove_temporaries()
