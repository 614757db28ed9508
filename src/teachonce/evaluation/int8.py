"""A student for a phone: ``export-onnx --int8`` writes float and int8 ONNX side by side and measures both.

    float ONNX (checked against PyTorch) -> calibrate and quantize -> evaluate both -> agreement -> latency -> files

Both are measured as the files that they are, through ONNX Runtime, on the same pixels: those of the student's own
preprocessing. With a store of random views the agreement with the teacher is on exactly those views; with one of whole
images, or the records' logits, on the student's view of them. Latencies are taken in turn, so that a busy machine slows
both alike. A loss of accuracy is reported, but not repaired and not a failure: the files are there to be examined.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.data.dataset import EvalDataset, KDDataset
from teachonce.data.logit_sources import LogitSource, RecordLogits
from teachonce.data.stored_logits import StoredLogits
from teachonce.engine.machine import num_cores
from teachonce.engine.progress import phase, progress
from teachonce.evaluation.config import ExportOnnxConfig
from teachonce.evaluation.findings.answers import make_answers
from teachonce.evaluation.findings.paired import PairedCounts
from teachonce.evaluation.int8_table import Comparison, Measurement
from teachonce.evaluation.onnx_export import check_interface, check_labels, export_run, write_labels
from teachonce.evaluation.onnx_pixels import put_normalization_inside, require_whole_pixels
from teachonce.evaluation.quantize import quantize_onnx, require_quantizer
from teachonce.evaluation.trained_images import warn_of_trained_images
from teachonce.losses.metrics import ClassifierMetrics
from teachonce.models.classifier import Classifier, load_model
from teachonce.models.onnx_backend import load_onnx
from teachonce.models.own_classes import resolve_model_offset
from teachonce.models.spec import path_spec
from teachonce.pixels.preprocessing import Preprocessing, normalize
from teachonce.pixels.render import render_center
from teachonce.pixels.view_sources import OwnViews, ViewSource
from teachonce.records.class_space import ClassSpace
from teachonce.records.class_table import shown_names
from teachonce.records.discovery import open_records
from teachonce.records.image_listing import known_as
from teachonce.records.source import RecordSource, require_labels
from teachonce.storage.files import atomic_write, check_can_be_made, check_free
from teachonce.storage.scratch import scratch_folder
from teachonce.store.store import Store
from teachonce.store.stored_views import StoredViews
from teachonce.views.policy import CropPolicy

BATCH_SIZE = 64
LATENCY_RUNS = 100
"""Single images that each file is timed with, or fewer where these would take longer than ``LATENCY_SECONDS``."""
LATENCY_SECONDS = 20.0
WARM_UP_RUNS = 5
MISFIT_ADVICE = "data of the student's classes"
"""What to give where a label is none of them: this command has no option for the classes."""


def export_int8(config: ExportOnnxConfig) -> Comparison:
    """Write ``config.out`` and ``int8_path(config.out)``, complete or not at all, and say how they compare.

    Raises ConfigError for invalid data or outputs, ModelError for a student that cannot be quantized,
    CheckError where a file does not read back as the student.
    """
    require_quantizer()
    assert config.data is not None
    outputs = config.out, int8_path(config.out)
    for out in outputs:
        check_free(out, overwrite=config.overwrite)
        check_can_be_made(out)
    student = load_model(path_spec("run", config.run, config.epoch))
    check_labels(student, config.out, overwrite=config.overwrite)
    if config.preprocessing == "inside":
        require_whole_pixels(student)
    calibration = open_records(config.data, config.split, config)
    measured = open_records(config.validation_data or config.data, config.validation_split, config)
    require_labels(measured, "the comparison", "give a labeled --validation-split")
    warn_of_trained_images(config.run, config.validation_split, config)
    space = _class_space(student, measured)
    validation = EvalDataset(measured, student.preprocessing, space, misfit_advice=MISFIT_ADVICE)
    taught, teacher = None, None
    if config.store is not None or config.logits is not None:
        taught = _open_teacher(config, student)
        teacher = _describe_teacher(taught, config.store)
    with scratch_folder() as folder:
        files = folder / "float.onnx", folder / "int8.onnx"
        export_run(config.run, "onnx", files[0], epoch=config.epoch)
        with phase("export", f"calibrating on {min(config.calibration_images, calibration.num_records)} images"):
            quantize_onnx(
                files[0],
                files[1],
                read_images(calibration, student.preprocessing, config.calibration_images),
                calibration=config.calibration,
                weight_bits=config.weight_bits,
            )
        if config.preprocessing == "inside":
            # Not before: what the quantizer would make of the normalization costs accuracy.
            for file in files:
                file.write_bytes(put_normalization_inside(file.read_bytes(), student.preprocessing))
        models = [load_model(path_spec("onnx", file)) for file in files]
        for model in models:
            check_interface(student, model, config.preprocessing)
        found = _compare(
            models,
            files,
            validation,
            taught,
            teacher,
            agreement_images=config.agreement_images,
            weight_bits=config.weight_bits,
        )
        for file, out in zip(files, outputs, strict=True):
            with atomic_write(out) as written:
                written.write(file.read_bytes())
    write_labels(student, config.out, overwrite=config.overwrite)
    return found


def int8_path(out: Path) -> Path:
    """Where the integers go: student.onnx -> student.int8.onnx."""
    return out.with_name(f"{out.name.removesuffix('.onnx')}.int8.onnx")


def spaced_indices(num_records: int, wanted: int) -> NDArray[np.int64]:
    """At most ``wanted`` record numbers, evenly spaced: of a split sorted by class they have all classes."""
    return np.unique(np.linspace(0, num_records - 1, min(wanted, num_records)).round().astype(np.int64))


def read_images(source: RecordSource, preprocessing: Preprocessing, wanted: int) -> Iterator[NDArray[np.float32]]:
    """Normalized images [3, H, W] of evenly spaced records, as the student sees them at evaluation."""
    for locations in _parts(source.locate_all(spaced_indices(source.num_records, wanted))):
        pixels = render_center(source.read_batch(locations), preprocessing)
        yield from normalize(torch.from_numpy(pixels), preprocessing).numpy()


def _class_space(student: Classifier, records: RecordSource, store: Store | None = None) -> ClassSpace:
    """The student's outputs as labels of these records; where they have no names, their labels are the store's."""
    names = None if records.classes is None else records.classes.names
    num_classes = None if names is None else len(names)
    if names is None and store is not None:
        names, num_classes = store.plan.class_names, store.plan.data_classes
    offset = resolve_model_offset(student, names, num_classes, option=None)
    return ClassSpace(num_classes=student.num_classes, offset=offset)


def _open_teacher(config: ExportOnnxConfig, student: Classifier) -> KDDataset:
    """What a store says of its split, or without one the logits of the records of ``config.split``.

    Its records may number the classes otherwise than those of the validation do: a folder from 0, TFRecords from 1.
    """
    assert config.data is not None
    preprocessing = student.preprocessing
    store = None if config.store is None else Store(config.store)
    # The most likely class is that of any temperature.
    logits: LogitSource = RecordLogits() if store is None else StoredLogits([store], temperature=1.0)
    # Without stored views the pixels are not those of the dataset's (see ``_measure_agreement``).
    replays = store is not None and store.policy.is_random
    views: ViewSource = StoredViews(store) if store is not None and replays else OwnViews(CropPolicy())
    records = open_records(config.data, config.split if store is None else store.plan.data["split"], config)
    return KDDataset(
        records,
        views,
        logits,
        size=preprocessing.size_px,
        interpolation=preprocessing.interpolation if preprocessing.antialias else "bilinear",
        class_space=_class_space(student, records, store),
        misfit_advice=MISFIT_ADVICE,
    )


def _compare(
    models: Sequence[Classifier],
    files: Sequence[Path],
    validation: EvalDataset,
    taught: KDDataset | None,
    teacher: str | None,
    *,
    agreement_images: int,
    weight_bits: int,
) -> Comparison:
    num_classes = models[0].num_classes
    metrics = [ClassifierMetrics(num_classes) for _ in models]
    num_records = len(validation)
    counts = PairedCounts("float", "model", num_classes)
    with progress("evaluate", num_records) as advance:
        for batch in validation.batches(batch_size=BATCH_SIZE, num_workers=num_cores()):
            labels, indices = batch["labels"], batch["indices"].numpy()
            logits = [_predict(model, batch["pixels"]) for model in models]
            for one, metric in zip(logits, metrics, strict=True):
                metric.update(one, labels)
            answers = [
                make_answers(indices, labels.numpy(), one.argmax(dim=1).numpy(), torch.softmax(one, dim=1).numpy())
                for one in logits
            ]
            counts.update(answers[1], answers[0])
            advance(len(labels))
    agreements, num_teacher = _measure_agreement(models, taught, agreement_images)
    with phase("export", "measuring the time of single images"):
        latencies, num_runs = measure_latencies(files, models[0].preprocessing)
    paired, measured = counts.result(), []
    _, only_int8, only_float, _ = paired.totals
    for index, name in enumerate(("float", "int8")):
        computed = metrics[index].compute()
        measured.append(
            Measurement(
                name=name,
                top1=computed["top1"],
                top5=computed["top5"],
                agreement_teacher=agreements[index],
                agreement_float=1.0 if index == 0 else paired.agreement,
                num_bytes=files[index].stat().st_size,
                latency_ms=latencies[index],
            )
        )
    return Comparison(
        float32=measured[0],
        int8=measured[1],
        num_records=num_records,
        num_classes=num_classes,
        only_float_right=only_float,
        only_int8_right=only_int8,
        class_changes=tuple(
            paired.changes(shown_names(validation.records.classes), first_label=validation.class_space.offset)
        ),
        weight_bits=weight_bits,
        num_latency_runs=num_runs,
        teacher=teacher,
        num_teacher_records=num_teacher,
    )


def _describe_teacher(taught: KDDataset, store_path: Path | None) -> str:
    if store_path is None:
        return f"image/logit of {known_as(taught.records.split)}"
    return f"{store_path}, {'its stored views' if taught.views.is_replay else 'whole images'}"


def _measure_agreement(
    models: Sequence[Classifier], taught: KDDataset | None, wanted: int
) -> tuple[list[float | None], int]:
    """How often each model has the teacher's most likely class, and of how many records."""
    if taught is None:
        return [None for _ in models], 0
    indices = spaced_indices(len(taught), wanted).tolist()
    same = [0 for _ in models]
    with progress("agreement", len(indices)) as advance:
        for part in _parts(indices):
            items = [(index, 0) for index in part]
            batch = taught.__getitems__(items)
            # Without stored views the dataset's own pixels are random crops, which the teacher never saw. Labels are
            # not asked for: the teacher's split need not have any.
            pixels = (
                batch["pixels"]
                if taught.views.is_replay
                else _whole_pixels(taught.records, part, models[0].preprocessing)
            )
            teacher_classes = batch["teacher_logits"].argmax(dim=1)
            for index, model in enumerate(models):
                same[index] += int((_predict(model, pixels).argmax(dim=1) == teacher_classes).sum())
            advance(len(part))
    return [count / len(indices) for count in same], len(indices)


def _whole_pixels(records: RecordSource, indices: Sequence[int], preprocessing: Preprocessing) -> torch.Tensor:
    """The pixels that an evaluation would have of these records."""
    locations = records.locate_all(np.array(indices, np.int64))
    return torch.from_numpy(render_center(records.read_batch(locations), preprocessing))


def measure_latencies(files: Sequence[Path], preprocessing: Preprocessing) -> tuple[list[float], int]:
    """Median milliseconds of a single image for each file, asked in turn with one thread; and of how many images."""
    cpu, size_px = torch.device("cpu"), preprocessing.size_px
    forwards = [load_onnx(path_spec("onnx", file), cpu, 1).forward for file in files]
    image = normalize(torch.full((1, size_px, size_px, 3), 128, dtype=torch.uint8), preprocessing)
    times: list[list[float]] = [[] for _ in files]
    for forward in forwards:
        for _ in range(WARM_UP_RUNS):
            forward(image)
    end = time.perf_counter() + LATENCY_SECONDS
    while len(times[0]) < LATENCY_RUNS and (not times[0] or time.perf_counter() < end):
        for forward, taken in zip(forwards, times, strict=True):
            start = time.perf_counter()
            forward(image)
            taken.append(time.perf_counter() - start)
    return [1000 * statistics.median(taken) for taken in times], len(times[0])


def _predict(model: Classifier, pixels: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(model.collect_logits(model.logits(pixels)))


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), BATCH_SIZE):
        yield items[start : start + BATCH_SIZE]
