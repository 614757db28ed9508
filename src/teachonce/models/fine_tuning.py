"""Fine-tuning: a student that starts from what an earlier run left behind (``train --init RUN``).

The run brings its weights, and mean, std and filter of its pixels, because the weights were made for those. The last
layer is kept only where it means the same: as many classes, under the same names. Five other classes fit the old layer
just as well, and a student that begins with "cat" for "ship" is worse than one that begins with nothing; so the names
are compared, and where they are not known the counts. Which tensors the last layer is made of is seen by building the
architecture once more with another class count: whatever changes its shape is the head, however many parts it has and
whatever a library calls them. All the rest must fit to the last tensor; nothing is loaded in part.

Not included: weights from a file (the SPEC's ``weights=FILE``), and freezing layers.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from teachonce.errors import ConfigError, ModelError
from teachonce.models.spec import ModelSpec, override_preprocessing, parse_model_spec
from teachonce.models.torch_backend import Weights, build_module, fit_weights, hash_weights, load_weights, small_layer
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.runs.run import open_finished_run
from teachonce.storage.files import locate

_PIXEL_FIELDS = ("interpolation", "antialias", "mean", "std", "value_range")


@dataclass(frozen=True, kw_only=True)
class InitialRun:
    """A finished run that a student starts from."""

    path: Path
    num_classes: int
    size_px: int
    """Side of the pixels that it was trained on."""
    preprocessing: Preprocessing
    classes_hash: str | None
    """``class_table.hash_classes`` of its classes; None for runs that did not know them."""
    weights: Weights = field(repr=False)
    weights_sha256: str


def open_initial_run(path: Path, student: ModelSpec) -> InitialRun:
    """The run of ``--init``; raises ConfigError where it is none or of another architecture than ``student``.

    ModelError for a run whose files are damaged.
    """
    for option in ("weights", "pretrained"):
        if option in student.options:
            raise ConfigError(
                f"--init {path}: --student {student} has {option}=, which also sets the initial weights; give "
                "only one of them"
            )
    storage, name = locate(path)
    if storage.has(name):
        raise ConfigError(
            f"--init {path}: is a file, expected the folder of a finished run; for a file of weights give "
            f"--student {student},weights={path}"
        )
    run = open_finished_run(path, requested_by=f"--init {path}")
    try:
        found = parse_model_spec(run.student)
    except ConfigError as error:
        raise ModelError(f"{path}: is not from a run ({error}); train again") from error
    if (found.kind, found.name) != (student.kind, student.name):
        raise ConfigError(
            f"--init {path}: holds a {found.kind}:{found.name}, expected the {student.kind}:{student.name} of "
            f"--student; give --student {found.kind}:{found.name}, or a run of the other"
        )
    if _forward_options(found) != _forward_options(student):
        raise ConfigError(
            f"--init {path}: holds a {found}, expected the {student} of --student; give the same architecture "
            "options, or a run of the other"
        )
    weights = load_weights(run.weights_path)
    return InitialRun(
        path=path,
        num_classes=run.num_classes,
        size_px=run.size_px,
        preprocessing=run.preprocessing,
        classes_hash=run.classes_hash,
        weights=weights,
        weights_sha256=hash_weights(weights),
    )


def initial_preprocessing(initial: InitialRun, size_px: int, resize_px: int, student: ModelSpec) -> Preprocessing:
    """The run's pixels at another size; options of the student's SPEC override them, with a warning."""
    own = {name: getattr(initial.preprocessing, name) for name in _PIXEL_FIELDS}
    preprocessing = override_preprocessing(Preprocessing(size_px=size_px, resize_px=resize_px, **own), student)
    changed = [
        f"{name} {getattr(preprocessing, name)} instead of {value}"
        for name, value in own.items()
        if getattr(preprocessing, name) != value
    ]
    if changed:
        warnings.warn(
            f"--student {student}: {', '.join(changed)}, a different input than the weights of {initial.path} "
            "were trained for",
            stacklevel=3,
        )
    return preprocessing


def start_from(
    student: nn.Module,
    initial: InitialRun,
    spec: ModelSpec,
    *,
    num_classes: int,
    size_px: int,
    classes_hash: str | None,
) -> str:
    """Load the run's weights into a fresh ``student``; returns a phrase that says what was taken and what is new.

    Raises ModelError where a tensor beside the head does not fit, such as the position embeddings of another size.
    """
    weights, phrase = initial.weights, "all weights are reused, including the last layer"
    is_same_count = initial.num_classes == num_classes
    is_other = classes_hash is not None and initial.classes_hash not in (None, classes_hash)
    if not is_same_count or is_other:
        own = student.state_dict()
        head = _head_names(own, spec, num_classes, size_px)
        weights = weights | small_layer({name: own[name] for name in head})
        reason = (
            f"its {num_classes} classes have different names"
            if is_same_count
            else f"the run has {initial.num_classes} classes, this data {num_classes}"
        )
        phrase = f"new last layer ({', '.join(head)}): {reason}; all other weights are reused"
    if initial.size_px != size_px:
        phrase += f"; trained at {initial.size_px} px, now at {size_px}"
    is_other_size = initial.size_px != size_px
    advice = f"it was trained at {initial.size_px} px: give --size {initial.size_px}" if is_other_size else None
    fit_weights(student, weights, where=f"--init {initial.path}", advice=advice)
    return phrase


def _forward_options(spec: ModelSpec) -> dict[str, object]:
    """What the network computes; where weights begin and what DropBlock drops may change from run to run."""
    return {name: value for name, value in spec.backbone.items() if name not in ("zero_gamma", "drop_block_keep")}


def _head_names(own: Weights, spec: ModelSpec, num_classes: int, size_px: int) -> list[str]:
    """The tensors whose shape depends on the class count."""
    # The other options of the SPEC say where weights and pixels come from.
    architecture = dataclasses.replace(spec, options=spec.backbone)
    with torch.random.fork_rng(devices=[]):
        other = build_module(architecture, num_classes + 1, size_px).state_dict()
    head = [name for name, tensor in own.items() if name not in other or other[name].shape != tensor.shape]
    assert head, f"{spec}: no tensor depends on the number of classes"
    return head
