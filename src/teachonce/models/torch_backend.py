"""Models of timm and torchvision, and weights from files.

Weights load without executing anything: safetensors, or ``torch.load(weights_only=True)``, found by content. Names and
sizes of other origins are adapted where it is known how (``adapt_weights``). A file that does not fit the architecture
then is refused with the names that differ; it is never loaded in part. The one exception is requested: a student whose
class count differs from its weights file's gets a fresh last layer, and a warning.
Weights of our own backbones may also be the original's TensorFlow variables (``tf_weights``).

Preprocessing is the library's own: timm's data configuration of the architecture's default weights, torchvision's
transforms of its ``DEFAULT`` weights. A checkpoint that wants other numbers says so in its SPEC.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from teachonce.errors import ConfigError, ModelError
from teachonce.models.adapt_weights import Weights, adapt_weights, required_names
from teachonce.models.spec import TRAINING_OPTIONS, LoadedModel, ModelSpec, first_line
from teachonce.pixels.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from teachonce.storage.address import to_location
from teachonce.storage.files import locate
from teachonce.suggestions import closest

# Wrappers around the weights in checkpoints of timm and of common training scripts; averaged weights first, as in timm.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")
NEW_LAYER_STD = 0.01
# How the weights of the auxiliary classifiers begin that torchvision's two Inceptions have beside the real one.
_AUXILIARY = {"googlenet": "aux1.", "inception_v3": "AuxLogits."}
# torchvision's names of timm's options.
_RATES = {"drop_rate": "dropout", "drop_path_rate": "stochastic_depth_prob"}


def load_library_model(spec: ModelSpec) -> LoadedModel:
    """A teacher of timm or torchvision, in evaluation mode on the CPU, with its own preprocessing."""
    if spec.options.get("pretrained") is False and spec.weights is None:
        raise ConfigError(f"model {spec.text!r}: a teacher needs weights; give weights=FILE with pretrained=0")
    if spec.weights is None and "classes" in spec.options:
        raise ConfigError(
            f"model {spec.text!r}: classes= needs weights=FILE, because the pretrained head has fixed classes"
        )
    if unused := [name for name in TRAINING_OPTIONS if name in spec.options]:
        raise ConfigError(f"model {spec.text!r}: {unused[0]}= acts in training, and a teacher is not trained; omit it")
    if spec.kind == "timm":
        module, preprocessing = _load_timm(spec)
    else:
        module, preprocessing = _load_torchvision(spec)
    return wrap_module(module, preprocessing, class_names=_library_names(spec, module))


def _library_names(spec: ModelSpec, module: nn.Module) -> tuple[str, ...] | None:
    """Texts of the classes of a library's own weights; None for weights from elsewhere, whose classes nobody knows.

    torchvision lists them with the weights; timm tells an edition of ImageNet by how many classes there are. No hash is
    made of them (``own_classes``): data has other names for the same classes.
    """
    if spec.kind == "torchvision":
        is_own = spec.weights is None or _is_torchvision_name(spec)
        return (
            tuple(_torchvision_weights(spec).meta["categories"]) if is_own and "classes" not in spec.options else None
        )
    from timm.data import ImageNetInfo, infer_imagenet_subset

    edition = infer_imagenet_subset(module) if spec.weights is None else None
    return None if edition is None else tuple(ImageNetInfo(edition).label_descriptions())


def wrap_module(
    module: nn.Module,
    preprocessing: Preprocessing,
    default_offset: int | None = None,
    classes_hash: str | None = None,
    class_names: tuple[str, ...] | None = None,
    class_texts: tuple[str, ...] | None = None,
) -> LoadedModel:
    """A module as a backend's result."""
    module.eval()
    return LoadedModel(
        forward=module,
        preprocessing=preprocessing,
        weights_sha256=hash_weights(module.state_dict()),
        default_offset=default_offset,
        classes_hash=classes_hash,
        class_names=class_names,
        class_texts=class_texts,
        module=module,
    )


def build_module(spec: ModelSpec, num_classes: int, size_px: int | None = None) -> nn.Module:
    """The architecture with fresh weights (from PyTorch's global generator) and ``num_classes`` outputs.

    ``size_px`` goes to architectures that are made for one input size (most vision transformers).
    """
    if spec.kind == "timm":
        return _create_timm(spec, num_classes, size_px, pretrained=False)
    if spec.kind == "torchvision":
        return _create_torchvision(spec, num_classes, size_px, initialize=True, weights=None)
    raise ConfigError(f"model {spec.text!r}: a student is timm:NAME or torchvision:NAME")


def build_pretrained_module(spec: ModelSpec, num_classes: int, size_px: int | None = None) -> nn.Module:
    """As ``build_module``, from the SPEC's ``weights=FILE`` or the library's pretrained weights.

    The last layer is new (``small_layer``), with a warning, where the weights have another number of classes.
    """
    is_file = spec.weights is not None and not _is_torchvision_name(spec)
    if spec.kind == "timm" and not is_file:
        # timm replaces the head itself, and interpolates position embeddings.
        module = _create_timm(spec, num_classes, size_px, pretrained=True)
        num_before = _timm_config(module)["num_classes"]
        if num_before != num_classes:
            try:
                names = make_timms_layer_small(module)
            except ModelError as error:
                raise error.at(spec.text) from error
            _warn_of_new_layer(spec, names, num_before, num_classes)
        return module
    module = build_module(spec, num_classes, size_px)
    weights = _load_weights_for(module, spec) if is_file else _fetch_torchvision(spec)
    weights = _adapt(module, _without_auxiliary(spec, weights), spec)
    fresh = _last_layer_of_other_classes(module, weights, num_classes)
    if fresh:
        _warn_of_new_layer(spec, fresh, weights[fresh[0]].shape[0], num_classes)
        own = module.state_dict()
        weights = weights | small_layer({name: own[name] for name in fresh})
    fit_weights(module, weights, where=spec.text)
    return module


def library_mean_std(spec: ModelSpec) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of the pixels, of values in 0..1, that a student of the library's pretrained weights wants."""
    if spec.kind == "timm":
        from timm.models import get_pretrained_cfg

        entry = get_pretrained_cfg(spec.name)
        if entry is None:
            return IMAGENET_MEAN, IMAGENET_STD
        return tuple(entry.mean), tuple(entry.std)  # type: ignore[return-value]
    if spec.name in _AUXILIARY:
        # What torchvision computes of ImageNet's within these networks, where the weights are its own.
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    preset = _torchvision_weights(spec).transforms()
    return tuple(preset.mean), tuple(preset.std)


def small_layer(weights: Weights) -> Weights:
    """A new last layer behind trained ones: as the architecture draws it, but small, so that no class is preferred.

    Standard deviation 0.01 or less, no biases: Girshick et al. 2014, arXiv:1311.2524, and torchvision's MobileNets.
    What architectures begin with can be thirty times as large: timm's EfficientNets draw 10 classes from -0.32 to 0.32.
    Then the first loss is 5.2 instead of 2.3, and it is mostly the trained layers that are changed to lower it. Not
    zero: a last layer with ReLU behind it (SqueezeNet) would stay there.
    """
    return {
        name: _scale_down(tensor) if tensor.ndim > 1 else torch.zeros_like(tensor) for name, tensor in weights.items()
    }


def make_timms_layer_small(module: nn.Module) -> list[str]:
    """``small_layer`` for the last layer, or layers, of one of timm's networks; returns the names of their tensors."""
    found = _timm_config(module).get("classifier") or ()
    layers = (found,) if isinstance(found, str) else found
    prefixes = tuple(f"{layer}." for layer in layers)
    weights = {name: tensor for name, tensor in module.state_dict().items() if name.startswith(prefixes)}
    if not weights:
        raise ModelError(
            "timm does not say which layer of this network is the last one, so it cannot be made for other classes; "
            "choose another network"
        )
    module.load_state_dict(small_layer(weights), strict=False)
    return list(weights)


def _timm_config(module: nn.Module) -> Any:
    return module.pretrained_cfg


def _scale_down(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * (NEW_LAYER_STD / tensor.std(correction=0).clamp(min=NEW_LAYER_STD))


def _warn_of_new_layer(spec: ModelSpec, names: Sequence[str], num_before: int, num_classes: int) -> None:
    warnings.warn(
        f"{spec.text}: new last layer ({', '.join(names)}), because the weights have {num_before} classes instead of "
        f"{num_classes}",
        stacklevel=4,
    )


def load_weights(path: Path) -> Weights:
    """Tensors by name from safetensors or a PyTorch checkpoint (its averaged weights where it has both).

    Raises ConfigError for a missing file, ModelError for one that holds no weights or would have to execute code.
    """
    storage, name = locate(path)
    if not storage.has(name):
        found = "is a folder" if storage.is_folder(name) else "no such file"
        raise ConfigError(f"weights={path}: {found}; expected safetensors or a PyTorch checkpoint")
    head, local_path = storage.open_reader(name).read(0, 9), storage.local_path(name)
    try:
        if head[8:] == b"{":
            return _unwrap(load_file(local_path), path)
        # timm's own checkpoints hold an argparse.Namespace, which only stores values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            content = torch.load(local_path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise ModelError(
                f"{path}: is neither safetensors nor a PyTorch checkpoint that holds only tensors; save the "
                "model's state_dict() as safetensors"
            ) from error
        raise ModelError(
            f"{path}: holds {refused[1]} besides tensors, and reading those could execute code, so it is refused; "
            "save the model's state_dict() as safetensors"
        ) from error
    except Exception as error:
        # PyTorch takes any text for a pickle of old and raises what its opcodes come to: IndexError, struct.error, ...
        raise ModelError(
            f"{path}: not readable weights ({first_line(error)}); expected safetensors or a PyTorch checkpoint"
        ) from error
    return _unwrap(content, path)


def fit_weights(module: nn.Module, weights: Weights, *, where: str, advice: str | None = None) -> None:
    """Load the weights, all of them and nothing else; raises ModelError with some of the names that differ.

    ``advice`` is for callers who know what to do then.
    """
    own = module.state_dict()
    missing = [name for name in required_names(own) if name not in weights]
    unexpected = [name for name in weights if name not in own]
    misshapen = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if not (missing or unexpected or misshapen):
        state: OrderedDict[str, torch.Tensor] = OrderedDict(weights)
        # The layout is the present one, as names and shapes have shown. Files of tensors alone do not say so, and
        # torchvision's MnasNet refuses what does not.
        state._metadata = own._metadata  # type: ignore[attr-defined]
        module.load_state_dict(state, strict=False)
        return
    found = []
    if missing:
        found.append(f"{len(missing)} of {len(own)} tensors missing ({_abbreviate(missing)})")
    if unexpected:
        found.append(f"{len(unexpected)} unexpected ({_abbreviate(unexpected)})")
    if misshapen:
        shapes = [f"{name} {list(weights[name].shape)} instead of {list(own[name].shape)}" for name in misshapen]
        found.append(f"{len(misshapen)} of another shape ({_abbreviate(shapes)})")
    likely = "give the architecture they were trained with"
    first_sizes = {weights[name].shape[:1] for name in misshapen}
    is_head = all(weights[name].shape[1:] == own[name].shape[1:] for name in misshapen)
    if missing or unexpected:
        likely += ", or a file without the unexpected ones" if not (missing or misshapen) else ""
    elif is_head and len(first_sizes) == 1 and len(misshapen) <= 2:
        likely = f"add classes={next(iter(first_sizes))[0]} if that is the number of their classes"
    elif not is_head:
        likely = "give the size or architecture they were trained with"
    raise ModelError(f"{where}: the weights do not fit the model: {'; '.join(found)}; {advice or likely}")


def hash_weights(weights: Weights) -> str:
    """SHA-256 over names, types, shapes and values, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _adapt(module: nn.Module, weights: Weights, spec: ModelSpec) -> Weights:
    return adapt_weights(module, weights, where=spec.text, part=spec.options.get("part"))


def _load_timm(spec: ModelSpec) -> tuple[nn.Module, Preprocessing]:
    from timm.data import resolve_model_data_config

    module = _create_timm(spec, spec.options.get("classes"), spec.options.get("size"), pretrained=spec.weights is None)
    if spec.weights is not None:
        fit_weights(module, _adapt(module, _load_weights_for(module, spec), spec), where=spec.text)
    if getattr(module, "num_classes", None) == 0:
        raise ModelError(
            f"{spec.text}: has no last layer: what it returns are features, not logits of classes; choose a checkpoint "
            "that was fine-tuned (timm names them in1k and the like), or train one of it (train --student)"
        )
    config = resolve_model_data_config(module)
    _, height, width = config["input_size"]
    geometry = {"center": "shorter", "squash": "squash"}.get(config["crop_mode"])
    if height != width or geometry is None:
        raise ModelError(
            f"{spec.text}: needs {width} x {height} pixels with crop mode '{config['crop_mode']}'; only square "
            "inputs with center or squash are supported; choose another model"
        )
    return module, Preprocessing(
        size_px=height,
        geometry=geometry,  # type: ignore[arg-type]
        resize_px=math.floor(height / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _load_weights_for(module: nn.Module, spec: ModelSpec) -> Weights:
    """The SPEC's ``weights=FILE``, with TensorFlow's variables under the module's names."""
    from teachonce.models.assembled_resnet.tf_weights import convert_tf_variables, is_tf_weights, read_tf_variables

    path = to_location(str(spec.weights))
    if is_tf_weights(path):
        return convert_tf_variables(module, read_tf_variables(path), where=spec.text)
    return load_weights(path)


def _create_timm(spec: ModelSpec, num_classes: int | None, size_px: int | None, *, pretrained: bool) -> nn.Module:
    import timm

    from teachonce.models.assembled_resnet.registry import MODEL_NAMES, register_models

    register_models()

    if not timm.is_model(spec.name):
        close = closest(spec.name, timm.list_models(), 3)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise ConfigError(f"model {spec.text!r}: timm has no '{spec.name}'; {hint}")
    arguments: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if spec.backbone and spec.name not in MODEL_NAMES:
        raise ConfigError(
            f"model {spec.text!r}: {', '.join(spec.backbone)} are options only of the assembled ResNets; give one "
            f"of {', '.join(MODEL_NAMES)}"
        )
    arguments |= spec.backbone | {name: spec.options[name] for name in TRAINING_OPTIONS if name in spec.options}
    try:
        config = timm.get_pretrained_cfg(spec.name)
    except RuntimeError as error:
        raise ConfigError(f"model {spec.text!r}: timm cannot build it ({first_line(error)})") from error
    if size_px is not None and config is not None and config.fixed_input_size:
        arguments["img_size"] = size_px
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    # The hub's client prints each of its tries; what came of them is said below, in one line.
    hub_log.setLevel(logging.ERROR)
    try:
        return timm.create_model(spec.name, pretrained=pretrained, **arguments)
    except Exception as error:
        # The hub's client raises whatever its transport does; the cause stays in the message and in the chain.
        if pretrained:
            raise ModelError(
                f"{spec.text}: the pretrained weights cannot be downloaded ({first_line(error)}); download them "
                "elsewhere and give weights=FILE"
            ) from error
        raise ConfigError(f"model {spec.text!r}: timm cannot build it ({first_line(error)})") from error
    finally:
        hub_log.setLevel(level)


def _load_torchvision(spec: ModelSpec) -> tuple[nn.Module, Preprocessing]:
    member = _torchvision_weights(spec)
    if spec.weights is not None and not _is_torchvision_name(spec):
        weights = load_weights(to_location(spec.weights))
    else:
        weights = _fetch_torchvision(spec)
    preset = member.transforms()
    size_px, resize_px = preset.crop_size[0], preset.resize_size[0]
    num_classes = spec.options.get("classes", len(member.meta["categories"]))
    module = _create_torchvision(
        spec, num_classes, spec.options.get("size", size_px), initialize=False, weights=weights
    )
    fit_weights(module, _adapt(module, weights, spec), where=spec.text)
    return module, Preprocessing(
        size_px=size_px,
        resize_px=resize_px,
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _create_torchvision(
    spec: ModelSpec, num_classes: int, size_px: int | None, *, initialize: bool, weights: Weights | None
) -> nn.Module:
    import torchvision

    _require_torchvision(spec)
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if spec.name in _AUXILIARY:
        auxiliary = _AUXILIARY[spec.name]
        arguments["aux_logits"] = weights is not None and any(name.startswith(auxiliary) for name in weights)
        arguments["init_weights"] = initialize
        # What torchvision does with pretrained weights: they were trained on values in -1..1.
        arguments["transform_input"] = weights is not None
    arguments |= {_RATES[name]: spec.options[name] for name in TRAINING_OPTIONS if name in spec.options}
    if size_px is not None and spec.name.startswith("vit_"):
        arguments["image_size"] = size_px
    if size_px is not None and spec.name.startswith("maxvit"):
        arguments["input_size"] = (size_px, size_px)
    try:
        return torchvision.models.get_model(spec.name, weights=None, **arguments)
    except Exception as error:
        # Architectures assert and raise what they like; the cause stays in the message and in the chain.
        raise ConfigError(f"model {spec.text!r}: torchvision cannot build it ({first_line(error)})") from error


def _fetch_torchvision(spec: ModelSpec) -> Weights:
    member = _torchvision_weights(spec)
    try:
        return _unwrap(member.get_state_dict(progress=False, check_hash=True, weights_only=True), Path(member.url))
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"{spec.text}: the pretrained weights cannot be downloaded from {member.url} ({first_line(error)}); "
            "download them elsewhere and give weights=FILE"
        ) from error


def _torchvision_weights(spec: ModelSpec) -> Any:
    """The weights' entry in torchvision: of the name in ``weights=`` (such as IMAGENET1K_V1), else DEFAULT."""
    import torchvision

    _require_torchvision(spec)
    entries = torchvision.models.get_model_weights(spec.name)
    return entries[spec.weights] if spec.weights in entries.__members__ else entries["DEFAULT"]


def _is_torchvision_name(spec: ModelSpec) -> bool:
    if spec.kind != "torchvision" or spec.weights is None:
        return False
    return _torchvision_weights(spec).name == spec.weights or spec.weights == "DEFAULT"


def _require_torchvision(spec: ModelSpec) -> None:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if spec.name not in names:
        close = closest(spec.name, names, 3)
        hint = f"did you mean {', '.join(close)}?" if close else "see torchvision.models.list_models()"
        raise ConfigError(f"model {spec.text!r}: torchvision has no classifier '{spec.name}'; {hint}")


def _without_auxiliary(spec: ModelSpec, weights: Weights) -> Weights:
    """Students have no auxiliary classifiers: their loss sees one output."""
    if spec.kind != "torchvision" or spec.name not in _AUXILIARY:
        return weights
    return {name: tensor for name, tensor in weights.items() if not name.lower().startswith("aux")}


def _last_layer_of_other_classes(module: nn.Module, weights: Weights, num_classes: int) -> list[str]:
    own = module.state_dict()
    names = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    widths = {weights[name].shape[:1] for name in names}
    is_head = len(widths) == 1 and all(
        own[name].shape[:1] == (num_classes,) and own[name].shape[1:] == weights[name].shape[1:] for name in names
    )
    return names if is_head else []


def _unwrap(content: Any, path: Path) -> Weights:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in content.items())
    ):
        raise ModelError(f"{path}: expected tensors by name (a state_dict), found {_describe(content)}")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return content


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dictionary with {_abbreviate([repr(name) for name in content])}" if content else "nothing"
    return f"a {type(content).__name__}"


def _abbreviate(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
