"""Teachers and students by SPEC: every backend becomes a ``Classifier``, from pixels to logits.

``load_model`` runs the model once on noise before it returns it. That gives the class count of any backend, and it
catches here, in a second, what would otherwise be found after hours or never: an input size that does not fit, several
outputs, NaN, and probabilities where logits are expected (their softmax would be almost uniform).

float32 is float32 on every device, whatever PyTorch's settings allow it to use instead (``true_float32``): a store that
a GPU made is verified on a CPU. What is less is requested by ``precision``, as PyTorch's autocast.

Not included: training (``train``), and the choice of data classes (``records.class_space``).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from teachonce.engine.machine import keep_freed_memory
from teachonce.errors import ConfigError, LogitsError, ModelError, NoGpuError
from teachonce.llvm import keep_triton_out
from teachonce.models.options import Precision
from teachonce.models.pending import PendingLogits
from teachonce.models.spec import (
    WALKTHROUGH_KINDS,
    LoadedModel,
    ModelSpec,
    first_line,
    override_preprocessing,
    parse_model_spec,
)
from teachonce.models.torch_backend import (
    build_module,
    build_pretrained_module,
    fit_weights,
    load_library_model,
    load_weights,
    wrap_module,
)
from teachonce.models.true_float32 import true_float32
from teachonce.pixels.preprocessing import Preprocessing, normalize
from teachonce.rng import generator
from teachonce.runs.run import open_finished_run
from teachonce.storage.address import to_location

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A model that is ready to run; made by ``load_model``."""

    spec: ModelSpec
    num_classes: int
    preprocessing: Preprocessing
    default_offset: int | None
    """Data label of class 0 where the model or its SPEC says so; ``own_classes`` compares it with the data."""
    classes_hash: str | None = None
    """``class_table.hash_classes`` of its classes; None where it does not know their names."""
    class_names: tuple[str, ...] | None = None
    """Their names by output, where they are known in full."""
    class_texts: tuple[str, ...] | None = None
    """What people see of these names, where it is something else; ``class_name`` has one for every output."""
    weights_sha256: str
    device: torch.device
    precision: Precision = "float32"
    channels_last: bool = False
    module: nn.Module | None = field(default=None, repr=False)
    """The PyTorch module (not compiled, evaluation mode, on ``device``), where there is one."""
    forward: Callable[[Tensor], Tensor] = field(repr=False)
    """Logits of normalized images [B, 3, H, W]."""

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits [B, C], float32, of pixels [B, H, W, 3] (uint8, or float in 0..255), from any device.

        They are where the backend leaves them (PyTorch: on ``device``), without a gradient, and nothing is waited for;
        ``collect_logits`` brings them home and checks them.
        """
        with ExitStack() as settings:
            settings.enter_context(torch.inference_mode())
            settings.enter_context(true_float32())
            settings.enter_context(self._autocast())
            images = normalize(pixels.to(self.device, non_blocking=self.device.type == "cuda"), self.preprocessing)
            if self.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            logits = self.forward(images).float()
        # Out of inference mode, whose own tensors no loss may keep for its backward pass.
        return logits.clone()

    def collect_logits(self, logits: Tensor | PendingLogits) -> NDArray[np.float32]:
        """Logits as an array on the CPU; raises LogitsError where one is NaN or infinite.

        Where the next batch is requested before these are collected, they must be ``PendingLogits``.
        """
        array = logits.wait() if isinstance(logits, PendingLogits) else logits.cpu().numpy()
        damaged = ~np.isfinite(array).all(axis=1)
        if damaged.any():
            advice = (
                "use --precision float32 or bf16" if self.precision == "fp16" else "check its weights and its input"
            )
            raise LogitsError(
                f"{self.spec}: NaN or infinite logits for {damaged.sum()} of {len(array)} images; {advice}"
            )
        return array

    def class_name(self, output: int) -> str:
        """What people call an output's class, or where it has no name the label that it stands for, as a number."""
        names = self.class_names if self.class_texts is None else self.class_texts
        if names is not None and output < len(names):
            return names[output]
        return str(self.label_of(output))

    def label_of(self, output: int) -> int:
        """The data label that an output stands for, as the model or its SPEC says; else the output's own number."""
        return output + (self.default_offset or 0)

    def _autocast(self) -> torch.autocast:
        if self.precision == "float32":
            # Off, and not merely not on: an online teacher runs within the student's autocast.
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, dtype=_AUTOCAST[self.precision])


def load_model(
    model: str | ModelSpec,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    compile: bool = False,
    num_threads: int | None = None,
    or_cpu: bool = False,
) -> Classifier:
    """The model that a SPEC (as text, or parsed) names, with its weights, in evaluation mode.

    ``num_threads`` is the backend's for one operation (PyTorch: of the whole process). Images and the weights of
    convolutions are channels-last, which CPUs and GPUs compute fastest; on a CPU the process keeps the memory that it
    frees. A backend that was built without a GPU is used on the CPU, with a warning, where the device is ``auto``, or
    with ``or_cpu``.
    Raises ConfigError for an invalid SPEC, ModelError for weights or a model that do not fit, LogitsError for one whose
    logits are not finite.
    """
    keep_triton_out()
    spec = model if isinstance(model, ModelSpec) else parse_model_spec(model)
    target = resolve_device(str(device))
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    try:
        loaded = _load_backend(spec, target, num_threads)
    except NoGpuError as error:
        if not (or_cpu or str(device) == "auto"):
            raise
        warnings.warn(f"{error}; the CPU is used", stacklevel=2)
        target = torch.device("cpu")
        loaded = _load_backend(spec, target, num_threads)
    if target.type == "cpu" and loaded.module is not None:
        # Not for TensorFlow: of eight workers side by side each would keep what it needed at its peak.
        keep_freed_memory()
    channels_last = target.type in ("cpu", "cuda") and loaded.module is not None
    forward = loaded.forward
    if loaded.module is not None:
        loaded.module.to(target)
        if channels_last:
            loaded.module.to(memory_format=torch.channels_last)
    elif precision != "float32" or compile:
        setting = "--compile" if compile else f"--precision {precision}"
        warnings.warn(f"{setting} has no effect on {spec}, only on PyTorch models", stacklevel=2)
        precision = "float32"
    if spec.options.get("probs"):
        forward = _take_logarithm(forward)
    classifier = Classifier(
        spec=spec,
        num_classes=0,
        preprocessing=override_preprocessing(loaded.preprocessing, spec),
        default_offset=spec.options.get("offset", loaded.default_offset),
        classes_hash=loaded.classes_hash,
        class_names=loaded.class_names,
        class_texts=loaded.class_texts,
        weights_sha256=loaded.weights_sha256,
        device=target,
        precision=precision,
        channels_last=channels_last,
        module=loaded.module,
        forward=forward,
    )
    num_classes = _probe_classes(classifier)
    if compile and loaded.module is not None:
        forward = _compile(loaded.module)
    return dataclasses.replace(classifier, num_classes=num_classes, forward=forward)


def build_student(student: str | ModelSpec, num_classes: int, *, size_px: int | None = None) -> nn.Module:
    """The architecture of a SPEC (as text, or parsed) with ``num_classes`` outputs, in training mode on the CPU.

    Fresh weights from PyTorch's global generator, so seed that first; with ``pretrained=1`` or ``weights=FILE`` the
    library's or the file's, where a last layer of other classes is new and small, with a warning. ``size_px`` goes to
    architectures made for one input size.
    """
    keep_triton_out()
    spec = student if isinstance(student, ModelSpec) else parse_model_spec(student)
    if spec.kind not in ("timm", "torchvision"):
        raise ConfigError(f"model {spec.text!r}: a student must be timm:NAME or torchvision:NAME")
    if spec.names_weights:
        module = build_pretrained_module(spec, num_classes, size_px)
    else:
        module = build_module(spec, num_classes, size_px)
    return module.train()


def resolve_device(name: str) -> torch.device:
    """The device of ``--device``: auto takes a GPU where there is one; raises ConfigError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps") from error
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= available.get(device.type, 0):
        raise ConfigError(
            f"--device {name}: this machine's PyTorch sees {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    return device


def _load_backend(spec: ModelSpec, device: torch.device, num_threads: int | None) -> LoadedModel:
    if spec.kind in ("timm", "torchvision"):
        return load_library_model(spec)
    if spec.kind == "run":
        return _load_run(to_location(spec.name), spec)
    if spec.kind == "onnx":
        from teachonce.models.onnx_backend import load_onnx

        return load_onnx(spec, device, num_threads)
    from teachonce.models.savedmodel_backend import load_savedmodel, load_walkthrough_teacher

    load = load_walkthrough_teacher if spec.kind in WALKTHROUGH_KINDS else load_savedmodel
    return load(spec, device, num_threads)


def _load_run(run: Path, spec: ModelSpec) -> LoadedModel:
    """A run's student, with the weights and the preprocessing that its training left behind."""
    weights_name = spec.run_weights
    opened = open_finished_run(run, requested_by=f"model {spec.text!r}", weights_name=weights_name)
    module = build_module(parse_model_spec(opened.student), opened.num_classes, opened.size_px)
    path = run / weights_name
    fit_weights(module, load_weights(path), where=str(path))
    return wrap_module(
        module,
        opened.preprocessing,
        default_offset=opened.offset,
        classes_hash=opened.classes_hash,
        class_names=opened.class_names,
        class_texts=opened.class_texts,
    )


def _probe_classes(classifier: Classifier) -> int:
    """The class count, from one run on noise; raises what the module's text lists."""
    from teachonce.models.savedmodel_backend import expected_classes

    spec, size_px = classifier.spec, classifier.preprocessing.size_px
    noise = generator(0, "probe").integers(0, 256, (2, size_px, size_px, 3), np.uint8)
    try:
        logits = classifier.logits(torch.from_numpy(noise))
    except Exception as error:
        # Each backend has errors of its own; the cause stays in the message and in the chain.
        raise ModelError(
            f"{spec}: does not run on {size_px} x {size_px} pixels ({first_line(error)}); check size="
        ) from error
    if logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < 2:
        raise ModelError(f"{spec}: returns shape {list(logits.shape)} for two images; expected [2, classes]")
    array = classifier.collect_logits(logits)
    if not spec.options.get("probs") and array.min() >= 0 and np.allclose(array.sum(axis=1), 1, atol=1e-3):
        advice = "give output=, or add probs=1 to take their logarithm" if classifier.module is None else ""
        raise ModelError(f"{spec}: its outputs are probabilities, expected logits; {advice}".rstrip("; "))
    if spec.options.get("probs"):
        _check_probabilities(spec, np.exp(array))
    expected = expected_classes(spec)
    if expected is not None and array.shape[1] != expected:
        raise ModelError(f"{spec}: has {array.shape[1]} classes, expected {expected}; give classes=")
    return array.shape[1]


def _check_probabilities(spec: ModelSpec, found: NDArray[np.float32]) -> None:
    """Raise ModelError for outputs that are no probabilities; warn of some that are rounded, as a quantized softmax's.

    Rounded to steps of 1/256, small ones are 0: their sum is less than 1, and they are probabilities still.
    """
    sums = found.sum(axis=1)
    is_exact = np.allclose(sums, 1, atol=1e-2)
    if not is_exact and (sums.max() > 1.5 or not _has_steps(found)):
        raise ModelError(
            f"{spec}: its outputs sum to {sums[0]:.4g}, probabilities to 1; leave out probs=1, or give output="
        )
    if not is_exact:
        warnings.warn(
            f"{spec}: its outputs sum to {sums[0]:.4g}, probabilities to 1: rounded, as of a quantized softmax, small "
            "ones are lost; a model that gives logits teaches more",
            stacklevel=3,
        )


def _has_steps(found: NDArray[np.float32]) -> bool:
    """Whether all values are whole multiples of one step, as what was quantized is; small logits are not."""
    values = found[found > 1e-30]
    steps = [float(values.min()) / divisor for divisor in range(1, 9)] if values.size else []
    return any(np.allclose(values / step, np.round(values / step), rtol=0, atol=0.01) for step in steps)


def _compile(module: nn.Module) -> Callable[[Tensor], Tensor]:
    # For one batch size, which all batches of an extraction have.
    compiled = torch.compile(module, dynamic=False)

    def forward(images: Tensor) -> Tensor:
        with warnings.catch_warnings():
            # Compiling advises TF32, which is what ``true_float32`` is there to prevent.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores .* available but not enabled.*")
            return compiled(images)

    return forward


def _take_logarithm(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Logits from probabilities, up to a constant that no softmax sees; zeros count as the smallest normal float32."""
    return lambda images: forward(images).float().clamp_min(torch.finfo(torch.float32).tiny).log()
