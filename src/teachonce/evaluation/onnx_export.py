"""Export a run's student as ONNX or safetensors, and prove that what was written answers as PyTorch does.

The exported model takes what the student takes: normalized images [batch, 3, size, size], float32, any batch size, as
``images``, and gives ``logits``; or, with its preprocessing inside, pixels [batch, size, size, 3] as they are decoded,
uint8 (``onnx_pixels``). Preprocessing, offset, and the names of the classes with their hash go along as metadata, so
that ``onnx:FILE`` needs no options; what people call the classes is in a labels.txt beside the file too, for programs
that read no metadata.

The file is read back, run, and compared before it gets its name. The tolerance is measured, not guessed: float32
rounds, and another runtime adds in another order, so both PyTorch and the runtime stray from the exact answer, by about
as much. PyTorch's own error is measured by running it in float64 as well. ``ROUNDING_FACTOR`` times that is allowed,
plus a few units in the last place of the largest logit; a wrong weight, layer or axis is orders of magnitude beyond it.
Safetensors hold the same numbers, so nothing is allowed there.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from teachonce.engine.progress import phase
from teachonce.errors import CheckError, ModelError
from teachonce.evaluation.config import PreprocessingPlace
from teachonce.evaluation.onnx_pixels import put_normalization_inside, require_whole_pixels, without_normalization
from teachonce.extras import require
from teachonce.models.classifier import Classifier, load_model
from teachonce.models.onnx_backend import (
    CLASS_NAMES_KEY,
    CLASS_TEXTS_KEY,
    CLASSES_KEY,
    OFFSET_KEY,
    PREPROCESSING_KEY,
)
from teachonce.models.options import EpochName
from teachonce.models.spec import first_line, parse_model_spec, path_spec
from teachonce.models.torch_backend import build_module, fit_weights, load_weights
from teachonce.pixels.preprocessing import normalize
from teachonce.records.class_table import LABELS_NAME, check_labels_file, write_labels_file
from teachonce.rng import generator
from teachonce.runs.run import Run
from teachonce.storage.files import atomic_write, check_free, locate
from teachonce.storage.scratch import scratch_folder

ROUNDING_FACTOR = 16
"""How many times PyTorch's own rounding error another runtime may differ."""
LAST_PLACES = 8
"""Units in the last place of the largest logit that it may differ beyond that."""
_INTERFACE = ("preprocessing", "default_offset", "classes_hash", "class_names", "class_texts", "num_classes")
PROBE_BATCHES = (1, 3)
"""Batch sizes that are compared: two, so that a batch size frozen into the graph is found."""


def export_run(
    run: Path,
    format: Literal["onnx", "safetensors"],
    out: Path,
    *,
    preprocessing: PreprocessingPlace = "outside",
    epoch: EpochName = "last",
    overwrite: bool = False,
) -> list[Path]:
    """Write the run's student to ``out``, checked, and return the paths of what was written.

    ``epoch``: of the last epoch, or of the one with the best validation top-1. Where its classes have names, labels.txt
    beside it has them; ``overwrite`` replaces both. Raises CheckError, and leaves no file, where it answers
    otherwise than the run; ConfigError for a folder that is not a finished run, an ``out`` that exists and is not to be
    overwritten, a labels.txt of another model, and pixels that ``preprocessing`` inside cannot take.
    """
    check_free(out, overwrite=overwrite)
    with phase("export", "loading the student"):
        student = load_model(path_spec("run", run, epoch))
    check_labels(student, out, overwrite=overwrite)
    if preprocessing == "inside":
        require_whole_pixels(student)
    with phase("export", f"writing {format}"):
        content = _to_onnx(student) if format == "onnx" else _to_safetensors(student)
        if preprocessing == "inside":
            content = put_normalization_inside(content, student.preprocessing)
    with scratch_folder() as folder:
        written = folder / f"model.{format}"
        written.write_bytes(content)
        with phase("export", "comparing its logits with PyTorch's"):
            if format == "onnx":
                check_onnx(student, written, preprocessing=preprocessing)
            else:
                check_safetensors(student, run, written)
    with atomic_write(out) as file:
        file.write(content)
    return [out, *write_labels(student, out, overwrite=overwrite)]


def check_labels(student: Classifier, out: Path, *, overwrite: bool) -> None:
    """Raise ConfigError where labels.txt beside ``out`` is another model's, unless that is overwritten too."""
    if student.class_names is not None and not overwrite:
        check_labels_file(out.with_name(LABELS_NAME), _all_names(student))


def write_labels(student: Classifier, out: Path, *, overwrite: bool) -> list[Path]:
    """Write labels.txt beside ``out`` and return its path; where no names are known none; one there is warned of."""
    path = out.with_name(LABELS_NAME)
    if student.class_names is None:
        storage, name = locate(path)
        if storage.has(name):  # the user's own, perhaps: it is left
            warnings.warn(
                f"{path}: has class names, and those of {out.name} are not known: check that they are its own",
                stacklevel=2,
            )
        return []
    write_labels_file(path, _all_names(student), overwrite=overwrite)
    return [path]


def _all_names(student: Classifier) -> list[str]:
    return [student.class_name(output) for output in range(student.num_classes)]


def check_onnx(student: Classifier, written: Path, *, preprocessing: PreprocessingPlace = "outside") -> None:
    """Run an exported file through ONNX Runtime; CheckError where it strays further than rounding can explain."""
    exported = load_model(path_spec("onnx", written))
    check_interface(student, exported, preprocessing)
    exact_module = copy.deepcopy(_module(student)).double()
    for batch_size in PROBE_BATCHES:
        pixels = _noise(student, batch_size)
        logits = student.collect_logits(student.logits(pixels))
        with torch.inference_mode():
            try:
                exact = exact_module(normalize(pixels, student.preprocessing).double()).numpy()
            except RuntimeError as error:
                raise ModelError(f"{student.spec}: cannot be run in float64 ({first_line(error)})") from error
        rounding = float(np.abs(logits - exact).max())
        allowed = ROUNDING_FACTOR * rounding + LAST_PLACES * float(np.spacing(np.abs(logits).max()))
        difference = float(np.abs(exported.collect_logits(exported.logits(pixels)) - logits).max())
        if not difference <= allowed:
            raise CheckError(
                f"{student.spec}: ONNX Runtime's logits of {batch_size} images differ from PyTorch's by "
                f"{difference:.3g}, expected at most {allowed:.3g} (PyTorch's own rounding is {rounding:.3g}); "
                "nothing was written"
            )


def check_interface(student: Classifier, exported: Classifier, preprocessing: PreprocessingPlace) -> None:
    """Raise CheckError where a file reads back as another model than the student, its weights aside."""
    expected = {name: getattr(student, name) for name in _INTERFACE}
    if preprocessing == "inside":
        expected["preprocessing"] = without_normalization(student.preprocessing)
    for name, value in expected.items():
        if getattr(exported, name) != value:
            raise CheckError(
                f"the exported ONNX model reads back with {name} {str(getattr(exported, name))[:200]}, expected "
                f"{str(value)[:200]}; nothing was written"
            )


def check_safetensors(student: Classifier, run: Path, written: Path) -> None:
    """Load exported weights into a fresh student; CheckError unless its logits are the same to the last bit."""
    opened = Run(run)
    module = build_module(parse_model_spec(opened.student), opened.num_classes, opened.size_px)
    fit_weights(module, load_weights(written), where=str(written))
    module.eval()
    if student.channels_last:
        module.to(memory_format=torch.channels_last)
    fresh = dataclasses.replace(student, module=module, forward=module)
    for batch_size in PROBE_BATCHES:
        pixels = _noise(student, batch_size)
        if not torch.equal(fresh.logits(pixels), student.logits(pixels)):
            raise CheckError(f"{student.spec}: exported safetensors give other logits; nothing was written")


def _to_safetensors(student: Classifier) -> bytes:
    from safetensors.torch import save

    # A copy each: safetensors refuses tensors that share memory.
    weights = {name: tensor.detach().contiguous().clone() for name, tensor in _module(student).state_dict().items()}
    return save(weights, metadata={"format": "pt", **_metadata(student)})


def _to_onnx(student: Classifier) -> bytes:
    require("onnx", "onnxruntime", "onnxscript", purpose="export-onnx")
    images = normalize(_noise(student, 2), student.preprocessing)
    try:
        # The exporter warns of its own deprecations, and onnxscript prints how many rules it applied.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _module(student),
                (images,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        assert program is not None
        model = program.model_proto
        for key, value in _metadata(student).items():
            model.metadata_props.add(key=key, value=value)
        return model.SerializeToString()
    except Exception as error:
        # The exporter, the tracer and protobuf (above 2 GB) raise what they like; the cause stays in the message.
        raise ModelError(f"{student.spec}: cannot be exported as ONNX ({first_line(error)})") from error


def _metadata(student: Classifier) -> dict[str, str]:
    found = {
        PREPROCESSING_KEY: json.dumps(student.preprocessing.to_json()),
        OFFSET_KEY: str(student.default_offset or 0),
    }
    if student.classes_hash is not None:
        found[CLASSES_KEY] = student.classes_hash
    if student.class_names is not None:
        found[CLASS_NAMES_KEY] = json.dumps(student.class_names)
    if student.class_texts is not None:
        found[CLASS_TEXTS_KEY] = json.dumps(student.class_texts)
    return found


def _noise(student: Classifier, batch_size: int) -> torch.Tensor:
    size_px = student.preprocessing.size_px
    pixels: NDArray[np.uint8] = generator(0, "export", batch_size).integers(
        0, 256, (batch_size, size_px, size_px, 3), np.uint8
    )
    return torch.from_numpy(pixels)


def _module(student: Classifier) -> nn.Module:
    assert student.module is not None
    return student.module
