"""ONNX files as teachers, through ONNX Runtime.

The layout (NCHW or NHWC), the input size and a fixed batch size are read from the file. A file that
``teachonce export`` wrote carries its preprocessing and offset as metadata; any other one is taken to want what most
exports from PyTorch want, a 0.875 center crop and ImageNet's mean and std. The gate of ``extract`` is there for when
that is wrong.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teachonce.errors import ConfigError, MissingExtraError, ModelError, NoGpuError
from teachonce.models.class_map import as_rows
from teachonce.models.spec import LoadedModel, ModelSpec, first_line, resolve_size
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.storage.files import locate
from teachonce.storage.hashes import hash_files

PREPROCESSING_KEY = "teachonce.preprocessing"
"""Metadata of exported models: the JSON of their ``Preprocessing``."""
OFFSET_KEY = "teachonce.offset"
"""Metadata of exported models: the data label of class 0."""

_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


def load_onnx(spec: ModelSpec, device: torch.device, num_threads: int | None) -> LoadedModel:
    """An ONNX file as a backend; raises ConfigError or ModelError with the path for what cannot be used."""
    return load_onnx_file(Path(spec.name), spec, device, num_threads)


def load_onnx_file(
    path: Path, spec: ModelSpec, device: torch.device, num_threads: int | None, *, size_px: int | None = None
) -> LoadedModel:
    """As ``load_onnx``, for a path from elsewhere than the SPEC's name, whose input size may be known."""
    storage, name = locate(path)
    if not storage.has(name):
        raise ConfigError(f"model {spec.text!r}: no file {path}")
    session = _start_session(storage.local_path(name), device, num_threads)
    source = _choose("input", [node.name for node in session.get_inputs()], spec)
    node = next(node for node in session.get_inputs() if node.name == source)
    result = _choose("output", [node.name for node in session.get_outputs()], spec)
    if len(node.shape) != 4 or node.type not in _INPUT_TYPES:
        raise ModelError(
            f"{path}: input '{source}' is {node.type} of shape {node.shape}; "
            "expected a batch of images in float or uint8"
        )
    batch, *dimensions = [size if isinstance(size, int) and size > 0 else None for size in node.shape]
    is_nhwc = dimensions[2] == 3 and dimensions[0] != 3
    height, width = dimensions[:2] if is_nhwc else dimensions[1:]
    dtype = _INPUT_TYPES[node.type]

    def forward(images: torch.Tensor) -> torch.Tensor:
        if is_nhwc:
            images = images.permute(0, 2, 3, 1)
        array = images.cpu().numpy()
        array = np.ascontiguousarray(array.round() if dtype == np.uint8 else array).astype(dtype, copy=False)
        parts = [session.run([result], {source: part})[0][:kept] for part, kept in _in_batches(array, batch)]
        return torch.from_numpy(as_rows(np.concatenate(parts).astype(np.float32, copy=False)))

    metadata = session.get_modelmeta().custom_metadata_map
    preprocessing = _read_preprocessing(metadata, path) or _common_preprocessing(
        resolve_size(spec, path, size_px, height, width)
    )
    offset = metadata.get(OFFSET_KEY)
    return LoadedModel(
        forward=forward,
        preprocessing=preprocessing,
        weights_sha256=hash_files(_model_files(path)),
        default_offset=None if offset is None else int(offset),
    )


def _start_session(path: Path, device: torch.device, num_threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("ONNX models need ONNX Runtime: pip install 'teachonce[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise NoGpuError(
                f"{path} on {device}: this ONNX Runtime has no CUDA; install onnxruntime-gpu or use --device cpu"
            )
        # float32 means float32, as in ``true_float32``.
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": 0}))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        # ONNX Runtime's errors share no base class but Exception; the cause stays in the message and in the chain.
        raise ModelError(f"{path}: no ONNX model that can be run ({first_line(error)})") from error


def _choose(option: str, names: list[str], spec: ModelSpec) -> str:
    wanted = spec.options.get(option)
    if wanted is None and (len(names) == 1 or "logits" in names):
        return names[0] if len(names) == 1 else "logits"
    if wanted not in names:
        found = f"no {option} '{wanted}'" if wanted else f"more than one {option}"
        raise ConfigError(f"model {spec.text!r}: {found}; give {option}= one of {', '.join(names)}")
    return wanted


def _in_batches(array: np.ndarray, batch: int | None) -> Any:
    """(part, how many of its rows count): all at once, or parts of a model's fixed batch size, the last one padded."""
    if batch is None:
        yield array, len(array)
        return
    for start in range(0, len(array), batch):
        part = array[start : start + batch]
        kept = len(part)
        if kept < batch:
            part = np.concatenate([part, np.repeat(part[-1:], batch - kept, axis=0)])
        yield part, kept


def _read_preprocessing(metadata: dict[str, str], path: Path) -> Preprocessing | None:
    if PREPROCESSING_KEY not in metadata:
        return None
    try:
        return Preprocessing.from_json(json.loads(metadata[PREPROCESSING_KEY]))
    except (ConfigError, ValueError) as error:
        raise ModelError(f"{path}: metadata {PREPROCESSING_KEY} is damaged: {error}") from error


def _common_preprocessing(size_px: int) -> Preprocessing:
    return Preprocessing(size_px=size_px, resize_px=math.floor(size_px / 0.875))


def _model_files(path: Path) -> list[tuple[str, Path]]:
    """The file and those beside it that hold its large tensors; the name of the file itself does not count."""
    import onnx

    files = {"": path}
    storage, name = locate(path)
    for tensor in onnx.load(storage.local_path(name), load_external_data=False).graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                files[entry.value] = path.parent / entry.value
    return list(files.items())
