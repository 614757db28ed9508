"""A teacher that tests can reason about: it names the color of an image, exactly, as a tiny ONNX model."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from teachonce.pixels.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from teachonce.records.tfrecord.tf_example import encode_example
from tests.support.small_data import write_shards

COLORS = np.array([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.85, 0.85, 0.15]], np.float32)
SHARPNESS = 6.0


def color_logits(mean_colors: np.ndarray) -> np.ndarray:
    """What the teacher says of mean colors [N, 3] in 0..1: linear, largest for the nearest of COLORS."""
    return SHARPNESS * (2 * mean_colors @ COLORS.T - (COLORS**2).sum(axis=1))


def write_color_teacher(
    path: Path, *, nan_above: float | None = None, order: list[int] | None = None, num_classes: int = len(COLORS)
) -> str:
    """An ONNX file with the color teacher for inputs normalized with ImageNet's mean and std; returns its SPEC.

    ``nan_above``: logits are NaN for images whose mean red is above this; ``order``: its classes in another order;
    ``num_classes``: further classes that no image resembles.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    # x = (color - mean) / std, so color = x * std + mean; both are folded into the linear layer.
    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    colors = COLORS[order] if order is not None else COLORS
    weight = (2 * SHARPNESS * colors * std).astype(np.float32)
    bias = (2 * SHARPNESS * colors @ mean - SHARPNESS * (colors**2).sum(axis=1)).astype(np.float32)
    num_more = num_classes - len(COLORS)
    weight = np.concatenate([weight, np.zeros((num_more, 3), np.float32)])
    bias = np.concatenate([bias, np.full(num_more, -9, np.float32)])
    constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "weight", "bias"], ["clean"], transB=1),
    ]
    if nan_above is not None:
        # log(limit - red) is NaN above the limit; times 0 it changes nothing below.
        limit = np.array([[(nan_above - mean[0]) / std[0]]], np.float32)
        constants += [
            numpy_helper.from_array(limit, "limit"),
            numpy_helper.from_array(np.array([[1.0], [0.0], [0.0]], np.float32), "red_of"),
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        ]
        nodes += [
            helper.make_node("MatMul", ["features", "red_of"], ["red"]),
            helper.make_node("Sub", ["limit", "red"], ["below"]),
            helper.make_node("Log", ["below"], ["log"]),
            helper.make_node("Mul", ["log", "zero"], ["poison"]),
            helper.make_node("Add", ["clean", "poison"], ["logits"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["clean"], ["logits"]))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", num_classes])
    graph = helper.make_graph(nodes, "colour", [images], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return f"onnx:{path},size=16,resize=16"


def color_example(
    index: int, label: int, color: np.ndarray, width: int = 24, height: int = 20, boxes: np.ndarray | None = None
) -> bytes:
    """A record whose image has the given mean color, with a pattern that makes each image another.

    ``boxes`` [N, 4]: xmin, ymin, xmax, ymax.
    """
    features = {
        "image/encoded": _color_jpeg(index, tuple(np.asarray(color).tolist()), width, height),
        "image/class/label": label,
        "image/filename": f"image_{index}.jpg".encode(),
    }
    for column, side in enumerate(("xmin", "ymin", "xmax", "ymax") if boxes is not None else ()):
        features[f"image/object/bbox/{side}"] = np.asarray(boxes, np.float32)[:, column]
    return encode_example(features)


@lru_cache(maxsize=4096)
def _color_jpeg(index: int, color: tuple[float, ...], width: int, height: int) -> bytes:
    noise = np.random.default_rng(index).uniform(-0.06, 0.06, (5, 6, 3))
    pixels = np.clip((color + noise) * 255, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_color_shards(
    folder: Path, sizes=(20, 13), split: str = "train", first_index: int = 0, rotate: int = 0, boxes=None
) -> Path:
    """Shards whose label is the color's index + 1 (0 is background), or another one with ``rotate``.

    ``boxes`` are those of every record.
    """
    payloads = [
        color_example(index, 1 + (index + rotate) % len(COLORS), COLORS[index % len(COLORS)], boxes=boxes)
        for index in range(first_index, first_index + sum(sizes))
    ]
    return write_shards(folder, sizes=sizes, split=split, num_classes=len(COLORS) + 1, payloads=payloads)


def small_student(spec: str) -> str:
    """A recipe's student without weights, which would be downloaded, and the walkthrough's networks of few filters."""
    student = spec.removesuffix(",pretrained=1")
    return f"{student},num_filters=8" if "assemble_resnet" in student else student
