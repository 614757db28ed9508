"""TensorFlow SavedModels and TF1 hub modules as teachers, through ``tf.saved_model``.

A TF1 hub module is a SavedModel with two graphs, of which the one without tags is for inference; its signatures are
called ``default`` and ``image_classification`` and take ``images`` [B, H, W, 3] in 0..1. The input size is read from
the signature. Where the SPEC does not say otherwise, pixels are prepared as for the walkthrough's teachers: the central
87.5 % of each side, TensorFlow 1's plain bilinear resize, values in 0..1.

``amoebanet`` and ``efficientnet`` are those teachers: the same with their own size and class count. ``weights=`` says
where they lie (a folder as above, or an ONNX file); without it they come from where they are published
(``walkthrough_weights``).

A SavedModel is a program: TensorFlow's graphs can read and write files. Those that do are refused, with the names of
the operations, unless the SPEC says ``trust=1`` (``savedmodel_graph``).
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teachonce.errors import ConfigError, ModelError, NoGpuError, TeachonceError
from teachonce.extras import missing_extras
from teachonce.llvm import import_tensorflow
from teachonce.models.output_rows import as_rows
from teachonce.models.savedmodel_graph import find_outside_operations
from teachonce.models.spec import LoadedModel, ModelSpec, first_line, parse_model_spec, resolve_size
from teachonce.models.torch_backend import load_library_model
from teachonce.models.walkthrough_weights import TIMM_NAMES, describe_missing, find_savedmodel
from teachonce.pixels.preprocessing import PIXELS_AS_THEY_ARE, Preprocessing
from teachonce.storage.address import to_location
from teachonce.storage.files import hash_files, locate, open_storage
from teachonce.storage.storage import Storage

_SIGNATURES = ("image_classification", "serving_default", "default")
_OUTPUTS = ("logits", "default")
_INPUTS = ("images",)

# Input size, class count and offset of the walkthrough's teachers.
_WALKTHROUGH = {"amoebanet": (331, 1001, 0), "efficientnet": (600, 1000, 1)}


def load_savedmodel(spec: ModelSpec, device: torch.device, num_threads: int | None) -> LoadedModel:
    """A SavedModel folder as a backend; raises ConfigError or ModelError with the path for what cannot be used."""
    return _load_folder(to_location(spec.name), spec, device, num_threads, size_px=None)


def load_walkthrough_teacher(spec: ModelSpec, device: torch.device, num_threads: int | None) -> LoadedModel:
    """``amoebanet`` or ``efficientnet`` from the folder or ONNX file in ``weights=``, or from where they are published.

    ``efficientnet`` may be timm's network too (its own weights, or a .safetensors of them), under the walkthrough's
    pixels.
    """
    size_px, _, offset = _WALKTHROUGH[spec.kind]
    path = find_savedmodel(spec) if spec.weights is None else to_location(spec.weights)
    if path is None or (spec.kind in TIMM_NAMES and path.suffix == ".safetensors"):
        return _load_timm_teacher(spec, size_px, offset)
    storage, name = locate(path)
    if storage.has(name):
        from teachonce.models.onnx_backend import load_onnx_file

        model = load_onnx_file(path, spec, device, num_threads, size_px=size_px)
    else:
        model = _load_folder(path, spec, device, num_threads, size_px=size_px)
    return LoadedModel(
        forward=model.forward,
        preprocessing=_walkthrough_preprocessing(size_px),
        weights_sha256=model.weights_sha256,
        default_offset=offset,
    )


def _load_timm_teacher(spec: ModelSpec, size_px: int, offset: int) -> LoadedModel:
    idle = [name for name in ("input", "output", "signature", "probs") if name in spec.options]
    if idle:
        raise ConfigError(f"model {spec.text!r}: {idle[0]}= is for a SavedModel or an ONNX file; give weights=DIR")
    name = f"timm:{TIMM_NAMES[spec.kind]}"
    options = {} if spec.weights is None else {"weights": spec.weights}
    try:
        model = load_library_model(dataclasses.replace(parse_model_spec(name), text=spec.text, options=options))
    except ModelError as error:
        if spec.weights is not None:
            raise
        reason = str(error).removeprefix(f"{spec.text}: ")
        raise ConfigError(describe_missing(spec, f"{name}: {reason}")) from error
    # The SavedModel takes 0..1 and has this normalization inside.
    own = model.preprocessing
    pixels = dataclasses.replace(_walkthrough_preprocessing(size_px), mean=own.mean, std=own.std)
    return dataclasses.replace(model, preprocessing=pixels, default_offset=offset)


def expected_classes(spec: ModelSpec) -> int | None:
    """The class count that a SPEC promises: ``classes=``, or that of a teacher known by name."""
    known = _WALKTHROUGH.get(spec.kind)
    return spec.options.get("classes", known[1] if known else None)


def _walkthrough_preprocessing(size_px: int) -> Preprocessing:
    return Preprocessing(
        size_px=size_px,
        geometry="central",
        crop_frac=0.875,
        interpolation="tf1_bilinear",
        antialias=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def _load_folder(
    path: Path, spec: ModelSpec, device: torch.device, num_threads: int | None, *, size_px: int | None
) -> LoadedModel:
    storage = open_storage(path)
    if not storage.has("saved_model.pb"):
        raise ConfigError(f"model {spec.text!r}: {path} has no saved_model.pb; expected a SavedModel folder")
    tensorflow = _start_tensorflow(device, num_threads)
    try:
        meta_graph, tags = _find_graph(storage)
        _refuse_outside_operations(meta_graph, path, spec, is_only=tags is None)
        model = tensorflow.saved_model.load(str(storage.local_path()), tags=tags)
    except TeachonceError:
        raise
    except Exception as error:
        # TensorFlow raises its own, protobuf's and Python's errors here; the cause stays in the message and the chain.
        raise ModelError(f"{path}: not a SavedModel that can be loaded ({first_line(error)})") from error
    signature = _choose("signature", list(model.signatures), _SIGNATURES, spec)
    function = model.signatures[signature]
    source = _choose("input", list(function.structured_input_signature[1]), _INPUTS, spec)
    result = _choose("output", list(function.structured_outputs), _OUTPUTS, spec)
    tensor = function.structured_input_signature[1][source]
    dimensions = [None] * 4 if tensor.shape.rank is None else list(tensor.shape)
    if len(dimensions) != 4:
        raise ModelError(f"{path}: input '{source}' has shape {dimensions}; expected a batch of images")
    is_nchw = dimensions[1] == 3 and dimensions[3] != 3
    height, width = dimensions[2:] if is_nchw else dimensions[1:3]
    size_px = resolve_size(spec, path, size_px, height, width)
    own_pixels = PIXELS_AS_THEY_ARE if tensor.dtype.is_integer else {}
    place = f"/GPU:{device.index or 0}" if device.type == "cuda" else "/CPU:0"

    def forward(images: torch.Tensor) -> torch.Tensor:
        # TensorFlow itself would run some graphs on other sizes than their signature's, silently.
        if images.shape[-1] != (width or images.shape[-1]):
            raise ModelError(f"{path} is made for {width} x {height} pixels")
        array = (images if is_nchw else images.permute(0, 2, 3, 1)).cpu().numpy()
        if tensor.dtype.is_integer:
            array = array.round()
        array = np.ascontiguousarray(array, dtype=tensor.dtype.as_numpy_dtype)
        with tensorflow.device(place):
            logits = function(**{source: tensorflow.constant(array)})[result]
        return torch.from_numpy(as_rows(np.array(logits.numpy(), np.float32)))

    # The function reads variables that ``model`` owns; without this they would be collected.
    forward.model = model  # type: ignore[attr-defined]
    names = [name for name in storage.walk() if name.rpartition("/")[2] != "fingerprint.pb"]
    return LoadedModel(
        forward=forward,
        preprocessing=dataclasses.replace(_walkthrough_preprocessing(size_px), **own_pixels),
        weights_sha256=hash_files((name, path / name) for name in names),
    )


def _start_tensorflow(device: torch.device, num_threads: int | None) -> Any:
    with missing_extras("a SavedModel"):
        tensorflow = import_tensorflow()
    gpus = tensorflow.config.list_physical_devices("GPU")
    if device.type == "cuda" and not gpus:
        raise NoGpuError(f"a SavedModel on {device}: this TensorFlow sees no GPU; use --device cpu")
    # float32 means float32, as in ``true_float32``; nothing but teachers runs on TensorFlow here.
    tensorflow.config.experimental.enable_tensor_float_32_execution(False)
    # RuntimeError: TensorFlow has started already in this process, with other settings.
    with suppress(RuntimeError):
        for gpu in gpus:
            tensorflow.config.experimental.set_memory_growth(gpu, True)
        if num_threads is not None:
            tensorflow.config.threading.set_intra_op_parallelism_threads(num_threads)
    return tensorflow


def _refuse_outside_operations(meta_graph: Any, path: Path, spec: ModelSpec, *, is_only: bool) -> None:
    found = [] if spec.options.get("trust") else find_outside_operations(meta_graph, is_only=is_only)
    if found:
        shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
        raise ModelError(
            f"{path}: its graph has operations other than arithmetic ({shown}), which may read or write files or "
            "run other code; export it without them, or add trust=1 to its SPEC if you trust its author"
        )


def _find_graph(storage: Storage) -> tuple[Any, list[str] | None]:
    """The graph to load and its tags: the only one, the untagged one of a TF1 hub module, or the one for serving."""
    from tensorflow.core.protobuf import saved_model_pb2

    content = saved_model_pb2.SavedModel()
    try:
        content.ParseFromString(storage.read("saved_model.pb"))
    except Exception as error:
        # protobuf's DecodeError has moved between its versions.
        raise ModelError(f"{storage.describe('saved_model.pb')}: is damaged ({first_line(error)})") from error
    tag_sets = [sorted(graph.meta_info_def.tags) for graph in content.meta_graphs]
    if len(tag_sets) == 1:
        return content.meta_graphs[0], None
    for tags in ([], ["serve"]):
        if tags in tag_sets:
            return content.meta_graphs[tag_sets.index(tags)], tags
    raise ModelError(
        f"{storage.describe()}: has graphs with tags {tag_sets}; expected one without tags or one with 'serve'"
    )


def _choose(option: str, names: list[str], preferred: tuple[str, ...], spec: ModelSpec) -> str:
    wanted = spec.options.get(option)
    if wanted is None:
        choices = names if len(names) == 1 else [name for name in preferred if name in names]
        if choices:
            return choices[0]
    elif wanted in names:
        return wanted
    found = f"no {option} '{wanted}'" if wanted else f"{'no' if not names else 'more than one'} {option}"
    known = f"; give {option}= one of {', '.join(sorted(names))}" if names else "; export it with signatures"
    raise ConfigError(f"model {spec.text!r}: {found}{known}")
