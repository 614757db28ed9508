"""Normalization inside an exported graph: pixels in as they are decoded, uint8 [batch, size, size, 3].

    images uint8 -> Cast float32 -> Transpose to [batch, 3, size, size] -> / 255 -> - mean -> / std -> the student

The operations and their order are those of ``normalize``, so the student sees the same bits. They are put in front of
the finished graph and not exported with it: the graph behind them is the same file's with the normalization outside,
and one that was quantized is quantized as it would be without them.

The metadata go on saying what images must go through on the way to the graph: size, resize and filter as before, mean 0
and std 1 of bytes, which is nothing. So ``onnx:FILE`` needs to know nothing of this. What is inside is noted under
``INSIDE_KEY``, for people.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from teachonce.errors import ConfigError, ModelError
from teachonce.models.classifier import Classifier
from teachonce.models.onnx_backend import PREPROCESSING_KEY
from teachonce.models.spec import first_line
from teachonce.pixels.preprocessing import Preprocessing

INSIDE_KEY = "teachonce.normalization_inside"
"""Metadata: the JSON of mean, std and value range that the graph applies itself."""
_PREFIX = "normalization_"


def without_normalization(preprocessing: Preprocessing) -> Preprocessing:
    """The same on the way to a graph that normalizes itself."""
    return dataclasses.replace(preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), value_range="byte")


def require_whole_pixels(student: Classifier) -> None:
    """Raise ConfigError for a student whose pixels are not rounded: in uint8 it would see others."""
    if not student.preprocessing.antialias:
        raise ConfigError(
            f"--preprocessing inside: {student.spec} sees pixels that are not rounded to 8 bits "
            f"(interpolation {student.preprocessing.interpolation} without antialiasing), expected an antialiased "
            "filter; export it with --preprocessing outside"
        )


def put_normalization_inside(content: bytes, preprocessing: Preprocessing) -> bytes:
    """An ONNX file of one input, normalized images, as one whose input are pixels; raises ModelError."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(content)
    graph = model.graph
    (images,) = graph.input
    shape = images.type.tensor_type.shape.dim
    batch, sides = shape[0].dim_param or shape[0].dim_value, [side.dim_value for side in shape[2:]]
    name, inner = images.name, f"{_PREFIX}images"
    for node in graph.node:
        node.input[:] = [inner if source == name else source for source in node.input]

    constants = {"mean": preprocessing.mean, "std": preprocessing.std}
    arrays = {key: np.array(values, np.float32).reshape(1, 3, 1, 1) for key, values in constants.items()}
    if preprocessing.value_range == "unit":
        arrays["most"] = np.array(255, np.float32)
    nodes = [
        helper.make_node("Cast", [name], [f"{_PREFIX}floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", [f"{_PREFIX}floats"], [f"{_PREFIX}planes"], perm=[0, 3, 1, 2]),
    ]
    last = f"{_PREFIX}planes"
    arithmetic = [("Div", "most", "units")] if "most" in arrays else []
    for operation, constant, result in [*arithmetic, ("Sub", "mean", "centered"), ("Div", "std", "images")]:
        nodes.append(helper.make_node(operation, [last, f"{_PREFIX}{constant}"], [f"{_PREFIX}{result}"]))
        last = f"{_PREFIX}{result}"
    assert last == inner

    behind = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *behind])
    graph.initializer.extend(numpy_helper.from_array(array, f"{_PREFIX}{key}") for key, array in arrays.items())
    images.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, [batch, *sides, 3]))
    _note(model, preprocessing)
    try:
        onnx.checker.check_model(model)
        return model.SerializeToString()
    except Exception as error:
        # The checker's and protobuf's (above 2 GB) errors share no base class.
        raise ModelError(f"--preprocessing inside: the graph cannot be extended ({first_line(error)})") from error


def _note(model: object, preprocessing: Preprocessing) -> None:
    entries = model.metadata_props  # type: ignore[attr-defined]  # onnx is imported where it is used
    for entry in entries:
        if entry.key == PREPROCESSING_KEY:
            entry.value = json.dumps(without_normalization(preprocessing).to_json())
    inside = {"mean": preprocessing.mean, "std": preprocessing.std, "value_range": preprocessing.value_range}
    entries.add(key=INSIDE_KEY, value=json.dumps(inside))
