"""Model SPECs: the text that names a model, its weights and its preprocessing.

``KIND:NAME,option=value,...``, such as ``torchvision:resnet50,weights=FILE,size=224,resize=256,mean=0.5/0.5/0.5``. A
comma begins an option only where a name and ``=`` follow, so that most paths may hold commas; after ``run:`` and
``onnx:`` a local path that is there, such as a run's folder ``lr=0.1,seed=3``, is the path as a whole. An option that a
kind does not know is an error: silently ignored, it would cost a complete run of the teacher.

Nothing is loaded here; ``models`` does that with one backend a kind, each of which hands back a ``LoadedModel``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, get_args

from teachonce.errors import ConfigError, ModelError, TeachonceError
from teachonce.models.options import EpochName
from teachonce.options import parse_integer, parse_number
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.runs.run import BEST_WEIGHTS, WEIGHTS_NAME, holds_run
from teachonce.storage.address import is_remote, to_location
from teachonce.storage.files import exists
from teachonce.suggestions import closest

if TYPE_CHECKING:
    import torch

NAMED_KINDS = ("timm", "torchvision", "onnx", "savedmodel", "run")
"""Kinds that are followed by ``:NAME``, a file or a folder."""
WALKTHROUGH_KINDS = ("amoebanet", "efficientnet")
"""The walkthrough's teachers, by their own names."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A parsed SPEC: ``options`` hold their values, already of the right type; as a string it is the text it was."""

    text: str
    kind: str
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text

    @property
    def title(self) -> str:
        """What a page is called after it: the architecture, or the last part of a path; no options."""
        return PurePath(self.name).name or self.kind

    @property
    def weights(self) -> str | None:
        """The value of ``weights=``, unresolved."""
        return self.options.get("weights")

    @property
    def names_weights(self) -> bool:
        """Whether it says which weights a student starts from."""
        return self.weights is not None or bool(self.options.get("pretrained"))

    @property
    def run_weights(self) -> str:
        """Of a run: the file of the last epoch's weights, or with ``epoch=best`` of the best one's."""
        return BEST_WEIGHTS if self.options.get("epoch") == "best" else WEIGHTS_NAME

    @property
    def elsewhere(self) -> tuple[str, str, dict[str, Any]]:
        """Kind, name and options without paths: equal for models that differ, at most, in where they lie."""
        name = "" if self.kind in ("onnx", "savedmodel", "run") else self.name
        return self.kind, name, {**self.options, "weights": None}

    @property
    def backbone(self) -> dict[str, Any]:
        """The options that say what an assembled ResNet is made of: with kind and name, the architecture."""
        return {name: value for name, value in self.options.items() if name in BACKBONE_OPTIONS}


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """What a backend hands back: a function of normalized images and what is known about the model."""

    forward: Callable[[torch.Tensor], torch.Tensor]
    """Logits [B, C] of normalized images [B, 3, H, W], float32, on any device."""
    preprocessing: Preprocessing
    weights_sha256: str
    default_offset: int | None = None
    classes_hash: str | None = None
    """``class_table.hash_classes`` of its classes; None where it does not know their names."""
    class_names: tuple[str, ...] | None = None
    """Their names by output, where they are known in full: files and runs of older versions have the hash alone."""
    class_texts: tuple[str, ...] | None = None
    """What people see of these names, where it is something else."""
    module: torch.nn.Module | None = None
    """The module itself, for the backends of PyTorch."""


def parse_model_spec(text: str) -> ModelSpec:
    """Read a SPEC; raises ConfigError that lists what is known, for an unknown kind, option or value."""
    head, *pieces = _split_options(text.strip())
    kind, _, name = head.partition(":")
    if kind in NAMED_KINDS:
        if not name:
            raise ConfigError(f"model {text!r}: expected a name or path after '{kind}:'")
    elif kind not in WALKTHROUGH_KINDS or name:
        raise ConfigError(
            f"model {text!r}: expected timm:NAME, torchvision:NAME, onnx:FILE, savedmodel:DIR, run:DIR, "
            f"amoebanet or efficientnet{_suggest(kind, (*NAMED_KINDS, *WALKTHROUGH_KINDS))}"
        )
    known = {option: parse for option, (parse, kinds) in _OPTIONS.items() if kind in kinds}
    options: dict[str, Any] = {}
    for piece in pieces:
        option, _, value = (part.strip() for part in piece.partition("="))
        if option not in known:
            raise ConfigError(
                f"model {text!r}: no option '{option}' for {kind}{_suggest(option, known)}; "
                f"expected one of {', '.join(known)}"
            )
        if option in options:
            raise ConfigError(f"model {text!r}: option '{option}' given twice")
        try:
            options[option] = known[option](value)
        except ValueError as error:
            raise ConfigError(f"model {text!r}: {option}={value}: {error}") from error
    if "crop" in options and "resize" in options:
        raise ConfigError(f"model {text!r}: resize= and crop= set the same thing; give only one of them")
    return ModelSpec(text=text, kind=kind, name=name, options=options)


def _split_options(text: str) -> list[str]:
    """``KIND:NAME`` and the options: of a path that is there with all its commas no part is an option.

    Of several readings the longest path wins, so that ``run:lr=0.1,seed=3,size=64`` has one option.
    """
    pieces = re.split(r",(?=\s*\w+=)", text)
    kind = pieces[0].partition(":")[0]
    if kind not in ("run", "onnx") or len(pieces) == 1:
        return pieces
    for end in range(len(text), len(pieces[0]), -1):
        if text[end : end + 1] in ("", ",") and _is_there(kind, text[len(kind) + 1 : end]):
            return [text[:end], *re.split(r",(?=\s*\w+=)", text[end:])[1:]]
    return pieces


def _is_there(kind: str, path: str) -> bool:
    with suppress(TeachonceError):  # of a name that no file system takes
        return not is_remote(path) and (holds_run(Path(path)) if kind == "run" else exists(Path(path)))
    return False


def path_spec(kind: Literal["run", "onnx"], path: Path, epoch: EpochName = "last") -> ModelSpec:
    """The SPEC of a run's folder or an ONNX file that is there, whatever characters its path has: ``parse_model_spec``
    of its text is the same. ``epoch``: whose weights, of a run.
    """
    options = {} if epoch == "last" else {"epoch": epoch}
    text = ",".join([f"{kind}:{path}", *(f"{name}={value}" for name, value in options.items())])
    return ModelSpec(text=text, kind=kind, name=str(path), options=options)


def parse_model(text: str) -> ModelSpec:
    """A model as people name it: a SPEC, the folder of a run, or the path of an ONNX file; raises ConfigError."""
    head = text.strip().partition(",")[0]
    kind, colon, _ = head.partition(":")
    if (colon and kind in NAMED_KINDS) or head in WALKTHROUGH_KINDS:
        return parse_model_spec(text)
    path = to_location(text)
    if path.suffix.lower() == ".onnx":
        return path_spec("onnx", path)
    if text and holds_run(path):
        return path_spec("run", path)
    close = _suggest(kind, (*NAMED_KINDS, *WALKTHROUGH_KINDS)) if colon else ""
    raise ConfigError(
        f"model {text!r}: is not the folder of a run (it has no config.json), expected one, the path of an .onnx file, "
        f"or a SPEC such as timm:NAME or run:DIR{close}"
    )


def override_preprocessing(preprocessing: Preprocessing, spec: ModelSpec) -> Preprocessing:
    """The model's own preprocessing with the options of its SPEC in place of what they name.

    ``crop=`` is the fraction of the resized side (central: of the image's side) that is kept; a new ``size=`` alone
    keeps that fraction. Raises ConfigError for options that contradict each other.
    """
    options = spec.options
    geometry = options.get("geometry", preprocessing.geometry)
    size_px = options.get("size", preprocessing.size_px)
    if "resize" in options and geometry == "central":
        raise ConfigError(f"model {spec.text!r}: resize= has no effect with geometry=central; give crop= instead")
    crop = options.get("crop")
    if crop is None:
        is_central = preprocessing.geometry == "central"
        crop = preprocessing.crop_frac if is_central else preprocessing.size_px / preprocessing.resize_px
    changes: dict[str, Any] = {
        "geometry": geometry,
        "size_px": size_px,
        # timm's arithmetic; the small number undoes the rounding of a fraction that came from whole pixels.
        "resize_px": options.get("resize", math.floor(size_px / crop + 1e-9)),
        "crop_frac": crop,
    }
    changes |= {name: options[name] for name in ("interpolation", "antialias", "mean", "std") if name in options}
    if "interpolation" in options and "antialias" not in options:
        changes["antialias"] = options["interpolation"] != "tf1_bilinear"
    if "range" in options:
        changes["value_range"] = options["range"]
    try:
        return dataclasses.replace(preprocessing, **changes)
    except ConfigError as error:
        raise ConfigError(f"model {spec.text!r}: {error}") from error


def resolve_size(spec: ModelSpec, path: Path, known_px: int | None, height: int | None, width: int | None) -> int:
    """A model's input size: known by its name, fixed in its file (``height`` and ``width``), or from ``size=``."""
    size_px = known_px or height or width or spec.options.get("size")
    if size_px is None:
        raise ConfigError(f"model {spec.text!r}: {path} has no fixed input size; give size=")
    if (height or size_px) != (width or size_px):
        raise ModelError(f"{path}: needs {width} x {height} pixels; only square inputs are supported")
    return size_px


def first_line(error: BaseException) -> str:
    """The class and the first line of a library's error, short enough for a message of one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _suggest(word: str, known: Iterable[str]) -> str:
    close = closest(word, known)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _parse_count(value: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,8}", value):
        raise ValueError("expected an integer of at least 1")
    return int(value)


def _parse_integer(value: str) -> int:
    number = parse_integer(value)
    if abs(number) >= 2**31:
        raise ValueError("expected a label of the data")
    return number


def _parse_fraction(value: str) -> float:
    number = _parse_number(value)
    if not 0 < number <= 1:
        raise ValueError("expected a fraction in (0, 1]")
    return number


def _parse_number(value: str) -> float:
    number = parse_number(value)
    if not abs(number) <= 1e30:
        raise ValueError("expected a finite number")
    return number


def _parse_rate(value: str) -> float:
    number = _parse_number(value)
    if not 0 <= number < 1:
        raise ValueError("expected a rate in [0, 1)")
    return number


def _parse_triple(value: str) -> tuple[float, float, float]:
    numbers = [_parse_number(part) for part in value.split("/")]
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise ValueError("expected R/G/B, such as 0.485/0.456/0.406, or one number")
    red, green, blue = numbers
    return red, green, blue


def _parse_switch(value: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError("expected 0 or 1")
    return value == "1"


def _parse_epoch(value: str) -> str:
    if value not in get_args(EpochName):
        raise ValueError("expected last or best")
    return value


def _parse_text(value: str) -> str:
    if not value:
        raise ValueError("expected a value")
    return value


def _parse_natural(value: str) -> int:
    if not value.isdecimal():
        raise ValueError("expected an integer of 0 or more")
    return int(value)


def _parse_branches(value: str) -> tuple[int, ...]:
    if value == "none":
        return ()
    numbers = [int(part) for part in value.split("/") if part.isdecimal()]
    if len(numbers) != 2 or value.count("/") != 1:
        raise ValueError("expected ALPHA/BETA, such as 2/4, or none")
    return tuple(numbers)


def _parse_keeps(value: str) -> tuple[float, ...]:
    if value == "none":
        return ()
    numbers = [_parse_number(part) for part in value.split("/")]
    if len(numbers) != 2:
        raise ValueError("expected BEGIN/END, such as 1.0/0.9, or none")
    return tuple(numbers)


def _parse_places(value: str) -> tuple[str, ...]:
    places = () if value == "none" else tuple(value.split("/"))
    if set(places) - {"sconv", "proj"} or len(set(places)) != len(places):
        raise ValueError("expected sconv, proj, sconv/proj or none")
    return places


BACKBONE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "num_filters": _parse_count,
    "big_little": _parse_branches,
    "use_resnet_d": _parse_switch,
    "use_se": _parse_switch,
    "use_sk": _parse_switch,
    "anti_alias": _parse_places,
    "anti_alias_filter": _parse_count,
    "drop_block_keep": _parse_keeps,
    "zero_gamma": _parse_switch,
    "global_pool": _parse_text,
    "embedding_size": _parse_natural,
    "use_last_downsample": _parse_switch,
}
"""The fields of ``BackboneOptions`` that a SPEC carries; depth is in the name, ``--bn-momentum`` is the training's."""

TRAINING_OPTIONS = ("drop_rate", "drop_path_rate")
"""Options of a student's network that act in training alone: dropout before its last layer, and stochastic depth."""

_ALL = (*NAMED_KINDS, *WALKTHROUGH_KINDS)
_TENSORFLOW = ("savedmodel", *WALKTHROUGH_KINDS)
_OPTIONS: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "weights": (_parse_text, ("timm", "torchvision", *WALKTHROUGH_KINDS)),
    "epoch": (_parse_epoch, ("run",)),
    "part": (_parse_text, ("timm", "torchvision")),
    "pretrained": (_parse_switch, ("timm", "torchvision")),
    **dict.fromkeys(TRAINING_OPTIONS, (_parse_rate, ("timm", "torchvision"))),
    "classes": (_parse_count, tuple(kind for kind in _ALL if kind != "run")),
    "offset": (_parse_integer, _ALL),
    "size": (_parse_count, _ALL),
    "resize": (_parse_count, _ALL),
    "crop": (_parse_fraction, _ALL),
    "geometry": (_parse_text, _ALL),
    "interpolation": (_parse_text, _ALL),
    "antialias": (_parse_switch, _ALL),
    "mean": (_parse_triple, _ALL),
    "std": (_parse_triple, _ALL),
    "range": (_parse_text, _ALL),
    "input": (_parse_text, ("onnx", *_TENSORFLOW)),
    "output": (_parse_text, ("onnx", *_TENSORFLOW)),
    "probs": (_parse_switch, ("onnx", *_TENSORFLOW)),
    "signature": (_parse_text, _TENSORFLOW),
    "trust": (_parse_switch, ("onnx", *_TENSORFLOW)),
    **{name: (parse, ("timm",)) for name, parse in BACKBONE_OPTIONS.items()},
}
