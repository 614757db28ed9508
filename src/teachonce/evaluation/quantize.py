"""Quantization of an exported ONNX file to 8-bit integers, by ONNX Runtime's own quantizer.

Static, in the QDQ form that every runtime for phones reads: activations unsigned with one range a tensor, weights
signed with one scale an output channel, ranges of activations from images that the student is shown. Unsigned
activations, because processors of x86 multiply those with signed weights and have to convert signed ones: on one with
AVX2 alone ``test_resnet`` took 0.9 of the float's time with them and 1.6 with signed ones. The same processors add two
products in 16 bits, which saturates in silence: a SqueezeNet lost 1.35 points of top-1 with weights of 8 bits and 0.20
with 7 (LOG.md). Phones do not saturate; 7 bits are the default because then what is measured here is what they get.

Nothing is trained here: accuracy is what is left of it, and ``export_int8`` measures that. Nagel et al. 2021,
arXiv:2106.08295, section 3, is the method.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ModelError
from teachonce.extras import require
from teachonce.models.spec import first_line

Calibration = Literal["minmax", "percentile"]
_PERCENTILE_OPTIONS = {"CalibTensorRangeSymmetric": False}
"""By default the range is symmetric, by the percentile of |x|: one negative value among nonnegative ones would take
half of the integers. Without, half of the 0.001 % that ONNX Runtime's 99.999 leaves is cut on each side."""


def require_quantizer() -> None:
    """Raise MissingExtraError where ONNX Runtime's quantizer is not installed."""
    require("onnx", "onnxruntime", purpose="--int8")


def quantize_onnx(
    float_file: Path,
    int8_file: Path,
    images: Iterable[NDArray[np.float32]],
    *,
    calibration: Calibration = "minmax",
    weight_bits: Literal[7, 8] = 7,
) -> None:
    """Write ``float_file`` in integers; ``images`` [3, H, W] are normalized. Metadata stays; raises ModelError.

    ``int8_file``'s folder holds the prepared graph for the time being (shapes inferred, batch norms folded).
    """
    require_quantizer()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    prepared = int8_file.with_name(f"prepared-{int8_file.name}")
    try:
        with _quiet():
            # ONNX's own shape inference is enough for a fixed size; the symbolic one fails in older versions.
            quant_pre_process(float_file, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                int8_file,
                _Reader(_input_name(float_file), images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=weight_bits == 7,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=methods[calibration],
                extra_options=_PERCENTILE_OPTIONS if calibration == "percentile" else {},
            )
            _drop_unused_domains(int8_file)
    except Exception as error:
        # The quantizer raises what it likes; the cause stays in the message and in the chain.
        raise ModelError(f"{float_file.name}: cannot be quantized ({first_line(error)})") from error
    finally:
        prepared.unlink(missing_ok=True)


class _Reader:
    """What the quantizer asks for images, one at a time; its interface is this one method."""

    def __init__(self, name: str, images: Iterable[NDArray[np.float32]]) -> None:
        self._name = name
        self._images: Iterator[NDArray[np.float32]] = iter(images)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch of one image; None at the end."""
        image = next(self._images, None)
        return None if image is None else {self._name: image[None]}


def _drop_unused_domains(path: Path) -> None:
    """Declare only domains that have an operator in the file: the quantizer declares all that ONNX Runtime knows.

    To a reader, a declared domain is one that the file needs.
    """
    import onnx

    model = onnx.load(path)
    used = _domains(model.graph) | {domain for function in model.functions for domain in _domains(function)}
    kept = [opset for opset in model.opset_import if opset.domain in used | {""}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.save(model, path)


def _domains(graph: Any) -> set[str]:
    """The domains of a graph's operators, of those within its branches and loops too."""
    found = set()
    for node in graph.node:
        found.add(node.domain)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found |= _domains(inner)
    return found


def _input_name(path: Path) -> str:
    import onnx

    return onnx.load(path, load_external_data=False).graph.input[0].name


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's prints and its log lines, which it writes to the root logger."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)
