"""``teachonce predict``: what a model says of images that nobody labeled.

    names -> batches of files -> threads: read, decode, the model's own preprocessing -> logits -> most likely classes

Decoder, preprocessing and threads are those of ``evaluate``, so the pixels are the ones that a model was measured on;
EXIF orientation is ignored, as in training. A file that is no image costs its own result and no other: the images of
its batch are done one by one. Results come in the order of the images, as they are made, and memory does not grow with
their number.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teachonce.data.loader import BATCHES_AHEAD
from teachonce.engine.machine import num_cores
from teachonce.engine.prefetch import overlap, prefetch
from teachonce.engine.progress import phase, progress
from teachonce.errors import ImageError, LogitsError, TeachonceError
from teachonce.evaluation.config import PredictConfig
from teachonce.evaluation.image_files import ImageFile, ImageFiles
from teachonce.models.classifier import Classifier, load_model
from teachonce.models.pending import PendingLogits
from teachonce.models.spec import parse_model
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.render import render_center
from teachonce.records.source import NO_LABEL, Record
from teachonce.storage.files import atomic_write, check_free, create_file
from teachonce.terminal import print_line, print_text, print_written, visible


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of one image: its most likely outputs with their probabilities, or why it says nothing."""

    path: str
    outputs: tuple[int, ...] = ()
    probs: tuple[float, ...] = ()
    error: TeachonceError | None = None


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """How many images there were, and how many of them have no result."""

    num_images: int
    num_failed: int


@dataclass
class _Batch:
    """Files with their pixels, those that failed aside; errors are by position."""

    files: Sequence[ImageFile]
    pixels: torch.Tensor | None = None
    errors: dict[int, TeachonceError] = field(default_factory=dict)


def predict(config: PredictConfig) -> Predicted:
    """Print the most likely classes of each image, or write them; an image that cannot be read is a line on stderr.

    Raises ConfigError for a model or paths that cannot be meant, before an image is read, and at the end where another
    made the file of ``--csv`` meanwhile.
    """
    files = ImageFiles(config.images)
    with phase("predict", "loading the model"):
        classifier = load_model(parse_model(config.model), device=config.device, precision=config.precision)
    num_failed = 0
    gone: BrokenPipeError | None = None
    with ExitStack() as outputs:
        shows: list[Callable[[Prediction], None]] = []
        if config.json:
            shows.append(lambda found: print_text(json.dumps(describe(found, classifier))))
        if config.csv is not None:
            check_free(config.csv, "--csv", overwrite=config.overwrite)
            opened = atomic_write(config.csv) if config.overwrite else create_file(config.csv, "--csv")
            file = outputs.enter_context(opened)
            # A name that is no UTF-8 is written with escapes.
            text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
            outputs.callback(text.detach)  # and not closed: the file is its storage's to finish
            shows.append(_csv_rows(text, classifier, min(config.top, classifier.num_classes)))
        if not shows:
            shows.append(lambda found: _print_found(found, classifier))
        with progress("predict", len(files)) as advance:
            for found in predict_images(classifier, files, top=config.top, batch_size=config.batch_size):
                if found.error is not None:
                    num_failed += 1
                    print_line(f"teachonce: {found.error}")
                for show in list(shows):
                    try:
                        show(found)
                    except BrokenPipeError as error:
                        if config.csv is None:
                            raise
                        # The reader of stdout has gone (`| head`), and the table is not his.
                        gone = error
                        shows.remove(show)
                advance(1)
    if gone is not None:
        raise gone
    if config.csv is not None:
        print_written(config.csv, is_json=config.json)
    return Predicted(num_images=len(files), num_failed=num_failed)


def predict_images(
    classifier: Classifier,
    files: ImageFiles,
    *,
    top: int = 5,
    batch_size: int = 64,
    num_threads: int | None = None,
) -> Iterator[Prediction]:
    """A ``Prediction`` of each file, in their order; one that fails has its error, with its place."""
    num_threads = num_cores() if num_threads is None else num_threads
    preprocessing, is_pinned = classifier.preprocessing, classifier.device.type == "cuda"
    batches = prefetch(
        _cut(files, batch_size),
        lambda part: _read_batch(part, preprocessing, is_pinned=is_pinned),
        threads=num_threads,
        ahead=num_threads * BATCHES_AHEAD,
    )
    # As in ``evaluate``: one batch is in flight while the next is put together.
    in_flight: tuple[_Batch, PendingLogits | None] | None = None
    for batch in batches:
        asked = None if batch.pixels is None else PendingLogits(classifier.logits(batch.pixels))
        if in_flight is not None:
            yield from _rank(classifier, *in_flight, top)
        in_flight = batch, asked
    if in_flight is not None:
        yield from _rank(classifier, *in_flight, top)


def describe(found: Prediction, classifier: Classifier) -> dict[str, Any]:
    """A prediction as JSON values: ``top``, most likely first, each with label, class name and probability."""
    if found.error is not None:
        return {"image": found.path, "error": str(found.error)}
    return {
        "image": found.path,
        "top": [
            {"label": classifier.label_of(output), "class": classifier.class_name(output), "probability": prob}
            for output, prob in zip(found.outputs, found.probs, strict=True)
        ],
    }


def _print_found(found: Prediction, classifier: Classifier) -> None:
    if found.error is None:
        ranked = zip(found.outputs, found.probs, strict=True)
        classes = ", ".join(f"{classifier.class_name(output)} {prob:.4f}" for output, prob in ranked)
        # Whole, as ``--json`` has it: a path that is cut names no file.
        print_text(visible(f"{found.path}: {classes}"))


def _csv_rows(text: io.TextIOBase, classifier: Classifier, top: int) -> Callable[[Prediction], None]:
    """Writes the header, and then a row an image that has a result."""
    writer = csv.writer(text, lineterminator="\n")
    columns = ("label", "class", "probability")
    suffixes = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    writer.writerow(["image", *(f"{column}{suffix}" for suffix in suffixes for column in columns)])

    def write(found: Prediction) -> None:
        if found.error is None:
            row: list[Any] = [found.path]
            for output, prob in zip(found.outputs, found.probs, strict=True):
                row += [classifier.label_of(output), classifier.class_name(output), prob]
            writer.writerow(row)

    return write


def _cut(files: ImageFiles, batch_size: int) -> Iterator[list[ImageFile]]:
    coming = iter(files)
    while part := list(islice(coming, batch_size)):
        yield part


def _read_batch(files: Sequence[ImageFile], preprocessing: Preprocessing, *, is_pinned: bool) -> _Batch:
    batch = _Batch(files)
    records: dict[int, Record] = {}
    for position, read in enumerate(_read_files(files)):
        if isinstance(read, Record):
            records[position] = read
        else:
            batch.errors[position] = read
    pixels = _render(records, preprocessing, batch.errors)
    if pixels is not None:
        batch.pixels = torch.from_numpy(pixels)
        if is_pinned:
            batch.pixels = batch.pixels.pin_memory()
    return batch


def _read_files(files: Sequence[ImageFile]) -> Iterator[Record | TeachonceError]:
    """The content of each file as a record, or why there is none; of a remote storage several at once."""
    for _, part in groupby(files, key=lambda file: id(file.storage)):
        same_storage = list(part)
        yield from overlap(same_storage[0].storage, same_storage, _read_file)


def _read_file(file: ImageFile) -> Record | TeachonceError:
    try:
        return Record(file.storage.read(file.name), NO_LABEL, file.name, 0, file.path)
    except TeachonceError as error:
        return error


def _render(
    records: dict[int, Record], preprocessing: Preprocessing, errors: dict[int, TeachonceError]
) -> NDArray[Any] | None:
    """Pixels [n, size, size, 3] of the records that are images; the others' errors are added. None where n is 0."""
    if not records:
        return None
    try:
        return render_center(list(records.values()), preprocessing)
    except ImageError:
        rendered = []
        for position, record in records.items():
            try:
                rendered.append(render_center([record], preprocessing))
            except ImageError as error:
                errors[position] = error
        return np.concatenate(rendered) if rendered else None


def _rank(classifier: Classifier, batch: _Batch, logits: PendingLogits | None, top: int) -> Iterator[Prediction]:
    rows = iter([] if logits is None else list(logits.wait()))
    for position, file in enumerate(batch.files):
        error = batch.errors.get(position)
        if error is None:
            row = next(rows).astype(np.float64)
            if np.isfinite(row).all():
                # Equal ones in the order of the outputs.
                outputs = np.argsort(-row, kind="stable")[:top]
                weights = np.exp(row - row.max())
                probs = weights[outputs] / weights.sum()
                yield Prediction(path=file.path, outputs=tuple(outputs.tolist()), probs=tuple(probs.tolist()))
                continue
            error = LogitsError(
                f"{file.path}: NaN or infinite logits of {classifier.spec}; check the image and weights"
            )
        yield Prediction(path=file.path, error=error)
