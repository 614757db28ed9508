"""ONNX files as teachers, through ONNX Runtime.

The layout (NCHW or NHWC), the input size and a fixed batch size are read from the file. A file that
``export-onnx`` wrote carries its preprocessing, offset, and its classes' names with a hash as metadata; any other one
is taken to want what most exports from PyTorch want, a 0.875 center crop and ImageNet's mean and std, or, where its
input is uint8, pixels as they are. The gate of ``extract`` is there for when that is wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teachonce.errors import ConfigError, ModelError, NoGpuError
from teachonce.extras import require
from teachonce.models.output_rows import as_rows
from teachonce.models.spec import LoadedModel, ModelSpec, first_line, resolve_size
from teachonce.pixels.preprocessing import PIXELS_AS_THEY_ARE, Preprocessing
from teachonce.records.class_table import hash_classes
from teachonce.storage.address import to_location
from teachonce.storage.files import atomic_write, hash_files, locate
from teachonce.storage.local import LocalStorage
from teachonce.storage.scratch import scratch_folder
from teachonce.storage.strict_json import convert_json, parse_json

PREPROCESSING_KEY = "teachonce.preprocessing"
"""Metadata of exported models: the JSON of their ``Preprocessing``."""
OFFSET_KEY = "teachonce.offset"
"""Metadata of exported models: the data label of class 0."""
CLASSES_KEY = "teachonce.classes_hash"
"""Metadata of exported models: ``class_table.hash_classes`` of their classes, where their names are known."""
CLASS_NAMES_KEY = "teachonce.classes"
"""Metadata of exported models: their classes' names in the order of their outputs, as a JSON array."""
CLASS_TEXTS_KEY = "teachonce.class_texts"
"""Metadata of exported models: what people see of these names, where it is something else, as a JSON array."""

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")
"""Whose operators ONNX Runtime brings along: ONNX's, and its own for what was optimized or quantized."""

_BLOCK_BYTES = 4 << 20
_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


def load_onnx(spec: ModelSpec, device: torch.device, num_threads: int | None) -> LoadedModel:
    """An ONNX file as a backend; raises ConfigError or ModelError with the path for what cannot be used."""
    return load_onnx_file(to_location(spec.name), spec, device, num_threads)


def load_onnx_file(
    path: Path, spec: ModelSpec, device: torch.device, num_threads: int | None, *, size_px: int | None = None
) -> LoadedModel:
    """As ``load_onnx``, for a path from elsewhere than the SPEC's name, whose input size may be known."""
    storage, name = locate(path)
    if not storage.has(name):
        raise ConfigError(f"model {spec.text!r}: no file {path}")
    files = _model_files(path, spec)
    with _side_by_side(files) as local:
        session = _start_session(local, device, num_threads)
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
        resolve_size(spec, path, size_px, height, width), takes_bytes=dtype == np.uint8
    )
    return LoadedModel(
        forward=forward,
        preprocessing=preprocessing,
        weights_sha256=hash_files(files),
        default_offset=_read_offset(metadata, path),
        classes_hash=metadata.get(CLASSES_KEY),
        class_names=_read_class_names(metadata, path),
        class_texts=_read_names(metadata, CLASS_TEXTS_KEY, path),
    )


@contextmanager
def _side_by_side(files: Sequence[tuple[str, Path]]) -> Iterator[Path]:
    """The model's file on this machine, with those of its large tensors where it expects them, while the block runs."""
    (_, path), *others = files
    storage, name = locate(path)
    if not others or isinstance(storage, LocalStorage):
        yield storage.local_path(name)
        return
    outside = next((place for place, _ in others if _leads_out(place)), None)
    if outside is not None:
        raise ModelError(
            f"{path}: has tensors in {outside!r}, outside of its own folder; from an address none are read there"
        )
    with scratch_folder() as folder:
        for place, file in ((name.rpartition("/")[2], path), *others):
            there, source = locate(file)
            with there.stream(source) as content, atomic_write(folder / place) as target:
                while block := content.read(_BLOCK_BYTES):
                    target.write(block)
        yield folder / name.rpartition("/")[2]


def _start_session(path: Path, device: torch.device, num_threads: int | None) -> Any:
    require("onnxruntime", purpose=str(path))
    import onnxruntime

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
        raise ModelError(f"{path}: not an ONNX model that can be run ({first_line(error)})") from error


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
        return Preprocessing.from_json(parse_json(metadata[PREPROCESSING_KEY]))
    except (ConfigError, ValueError) as error:
        raise ModelError(f"{path}: metadata {PREPROCESSING_KEY} is damaged: {error}") from error


def _read_offset(metadata: dict[str, str], path: Path) -> int | None:
    text = metadata.get(OFFSET_KEY)
    if text is None:
        return None
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise ModelError(f"{path}: metadata {OFFSET_KEY} is damaged: {text[:40]!r}, expected an integer")
    return int(text)


def _read_class_names(metadata: dict[str, str], path: Path) -> tuple[str, ...] | None:
    names = _read_names(metadata, CLASS_NAMES_KEY, path)
    if names is not None and hash_classes(names) != metadata.get(CLASSES_KEY):
        raise ModelError(
            f"{path}: metadata {CLASS_NAMES_KEY} has other names than those that {CLASSES_KEY} is the hash of; export "
            "the model again"
        )
    return names


def _read_names(metadata: dict[str, str], key: str, path: Path) -> tuple[str, ...] | None:
    text = metadata.get(key)
    if text is None:
        return None
    try:
        return convert_json(parse_json(text), tuple[str, ...], "names", ConfigError)
    except (ConfigError, ValueError) as error:
        raise ModelError(f"{path}: metadata {key} is damaged: {error}") from error


def _common_preprocessing(size_px: int, *, takes_bytes: bool) -> Preprocessing:
    found = Preprocessing(size_px=size_px, resize_px=math.floor(size_px / 0.875))
    return replace(found, **PIXELS_AS_THEY_ARE) if takes_bytes else found


def _model_files(path: Path, spec: ModelSpec) -> list[tuple[str, Path]]:
    """The file and those beside it that hold its large tensors; the name of the file itself does not count.

    Raises ModelError for operators that ONNX Runtime does not bring along, and for tensors in files elsewhere, unless
    the SPEC says ``trust=1``: both make it run or read what is not this model.
    """
    import onnx

    files = {"": path}
    storage, name = locate(path)
    try:
        model = onnx.load(storage.local_path(name), load_external_data=False)
    except Exception as error:
        # protobuf's DecodeError has moved between its versions.
        raise ModelError(f"{path}: not an ONNX model that can be run ({first_line(error)})") from error
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                files[entry.value] = path.parent / entry.value
    if spec.options.get("trust"):
        return list(files.items())
    advice = "or add trust=1 to its SPEC if you trust its author"
    custom = _custom_operators(model)
    if custom:
        shown = ", ".join(custom[:8]) + (", ..." if len(custom) > 8 else "")
        raise ModelError(f"{path}: has operators outside of ONNX ({shown}); export it without them, {advice}")
    for location in files:
        if _leads_out(location):
            raise ModelError(
                f"{path}: has tensors in {location!r}, outside of its own folder; move them there, {advice}"
            )
    return list(files.items())


def _leads_out(location: str) -> bool:
    return Path(location).is_absolute() or ".." in Path(location).parts


def _custom_operators(model: Any) -> list[str]:
    """DOMAIN:NAME of the operators that neither ONNX, nor ONNX Runtime, nor the model itself defines."""
    own = {(function.domain, function.name) for function in model.functions}
    nodes = (node for node in _nodes(model) if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own)
    return sorted({f"{node.domain}:{node.op_type}" for node in nodes})


def _nodes(model: Any) -> Iterator[Any]:
    """The nodes of a model, of its functions, and of the graphs within nodes (branches, loops)."""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            waiting += [inner for graph in (attribute.g, *attribute.graphs) for inner in graph.node]


def _tensors(model: Any) -> Iterator[Any]:
    """All tensors of a model, wherever they are."""
    attributes = [attribute for node in _nodes(model) for attribute in node.attribute]
    graphs = [model.graph, *(graph for attribute in attributes for graph in (attribute.g, *attribute.graphs))]
    sparse = [tensor for graph in graphs for tensor in graph.sparse_initializer]
    for graph in graphs:
        yield from graph.initializer
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
