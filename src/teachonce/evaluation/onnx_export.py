"""Export a run's student as ONNX or safetensors, and prove that what was written answers as PyTorch does.

The exported model takes what the student takes: normalized images [batch, 3, size, size], float32, any batch size, as
``images``, and gives ``logits``. Preprocessing, offset and a hash of the classes' names go along as metadata, so that
``onnx:FILE`` needs no options.

The file is read back, run, and compared before it gets its name. The tolerance is measured, not guessed: float32
rounds, and another runtime adds in another order, so both PyTorch and the runtime stray from the exact answer, by about
as much. PyTorch's own error is measured by running it in float64 as well. ``ROUNDING_FACTOR`` times that is allowed,
plus a few units in the last place of the largest logit; a wrong weight, layer or axis is orders of magnitude beyond it.
Safetensors hold the same numbers, so nothing is allowed there.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from teachonce.engine.progress import phase
from teachonce.errors import CheckError, ConfigError, ModelError
from teachonce.extras import require
from teachonce.models.classifier import Classifier, load_model
from teachonce.models.onnx_backend import CLASSES_KEY, OFFSET_KEY, PREPROCESSING_KEY
from teachonce.models.spec import first_line, parse_model_spec, path_spec
from teachonce.models.torch_backend import build_module, fit_weights, load_weights
from teachonce.pixels.preprocessing import normalize
from teachonce.rng import generator
from teachonce.runs.run import Run
from teachonce.storage.files import atomic_write, exists
from teachonce.storage.scratch import scratch_folder

ROUNDING_FACTOR = 16
"""How many times PyTorch's own rounding error another runtime may differ."""
LAST_PLACES = 8
"""Units in the last place of the largest logit that it may differ beyond that."""
PROBE_BATCHES = (1, 3)
"""Batch sizes that are compared: two, so that a batch size frozen into the graph is found."""


def export_run(run: Path, format: Literal["onnx", "safetensors"], out: Path) -> None:
    """Write the run's student to ``out``, checked; raises CheckError, and leaves no file, where it answers otherwise.

    Raises ConfigError for a folder that is not a finished run or an ``out`` that exists.
    """
    if exists(out):
        raise ConfigError(f"{out}: exists; remove it or choose another --out")
    with phase("export", "loading the student"):
        student = load_model(path_spec("run", run))
    with phase("export", f"writing {format}"):
        content = _to_onnx(student) if format == "onnx" else _to_safetensors(student)
    with scratch_folder() as folder:
        written = folder / f"model.{format}"
        written.write_bytes(content)
        with phase("export", "comparing its logits with PyTorch's"):
            if format == "onnx":
                check_onnx(student, written)
            else:
                check_safetensors(student, run, written)
    with atomic_write(out) as file:
        file.write(content)


def check_onnx(student: Classifier, written: Path) -> None:
    """Run an exported file through ONNX Runtime; CheckError where it strays further than rounding can explain."""
    exported = load_model(path_spec("onnx", written))
    for name in ("preprocessing", "default_offset", "classes_hash"):
        if getattr(exported, name) != getattr(student, name):
            raise CheckError(f"the exported ONNX model reads back with another {name}; nothing was written")
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
        with warnings.catch_warnings():
            # The exporter warns of its own deprecations.
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
    return found if student.classes_hash is None else found | {CLASSES_KEY: student.classes_hash}


def _noise(student: Classifier, batch_size: int) -> torch.Tensor:
    size_px = student.preprocessing.size_px
    pixels: NDArray[np.uint8] = generator(0, "export", batch_size).integers(
        0, 256, (batch_size, size_px, size_px, 3), np.uint8
    )
    return torch.from_numpy(pixels)


def _module(student: Classifier) -> nn.Module:
    assert student.module is not None
    return student.module
