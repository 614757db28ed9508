"""Weights as found in files, adapted to the module that they are for.

Four things are done, each only where the names or shapes do not fit as they are:

- names of older versions are renamed: ``denselayer1.norm.1`` in torchvision's own DenseNet files, ``mlp.linear_1`` in
  its older vision transformers;
- of a file that holds more than the network, such as a checkpoint of Lightning with ``model.*`` beside
  ``criterion.weight``, the part that covers the architecture is taken, and what is left over is said. Where several
  parts do (a teacher beside its student, averaged weights beside the last), none is guessed: ``part=`` names one;
- timm's own conversion of a model's files (its ``checkpoint_filter_fn``) is applied, which resamples position
  embeddings and bias tables of another input size and knows the names of the original codes;
- position embeddings of torchvision's vision transformers are resampled in the same way, which torchvision leaves to
  its user: bicubic, with antialiasing, the class token as it is.

What was made so is still fitted as a whole, by ``torch_backend.fit_weights``; nothing is loaded in part.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from teachonce.errors import ConfigError, ModelError

Weights = dict[str, torch.Tensor]

_OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(\.mlp)\.linear_2\."), r"\1.3."),
)
_TORCHVISION_POSITIONS = "encoder.pos_embedding"


def adapt_weights(module: nn.Module, weights: Weights, *, where: str, part: str | None = None) -> Weights:
    """The weights under the module's names and in its shapes, as far as the module's text says.

    Warns of tensors that are left out and of those that are resampled. ``part`` names the part of the file that is
    meant; raises ConfigError where it is not there, ModelError where none is named and several would do.
    """
    own = module.state_dict()
    weights = _choose_part(own, _rename(own, weights), where, part)
    found = _convert_as_timm(module, own, _resample_positions(module, own, weights))
    changed = [
        f"{name} {list(weights[name].shape)} to {list(tensor.shape)}"
        for name, tensor in found.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if changed:
        warnings.warn(
            f"{where}: resampled as timm does, because the size differs from the weights': {_abbreviate(changed)}",
            stacklevel=3,
        )
    return found


def required_names(own: Mapping[str, torch.Tensor]) -> list[str]:
    """A module's tensors but the counters of batch norm, which checkpoints before PyTorch 0.4.1 do not have."""
    return [name for name in own if not name.endswith("num_batches_tracked")]


def _rename(own: Weights, weights: Weights) -> Weights:
    renamed = {}
    for name, tensor in weights.items():
        new = name
        for pattern, replacement in _OLD_NAMES:
            new = pattern.sub(replacement, new)
        # A name that the module has itself is not an old one, whatever prefix it carries in the file.
        renamed[name if _has_end(own, name) or not _has_end(own, new) else new] = tensor
    return renamed


def _has_end(own: Weights, name: str) -> bool:
    """Whether the name, or what is left of it behind one of its dots, is the module's."""
    while name:
        if name in own:
            return True
        name = name.partition(".")[2]
    return False


def _choose_part(own: Weights, weights: Weights, where: str, part: str | None) -> Weights:
    names = required_names(own)
    if part is not None:
        prefix = part.rstrip(".") + "."
        if not any(name.startswith(prefix) for name in weights):
            raise ConfigError(
                f"model {where!r}: part={part}: no tensor of the file has this prefix; there are {_list_parts(weights)}"
            )
        return _take(weights, prefix, where)
    if not names or all(name in weights for name in names):
        return weights
    end = f".{names[0]}"
    prefixes = [name.removesuffix(names[0]) for name in weights if name.endswith(end)]
    covering = [prefix for prefix in prefixes if all(prefix + name in weights for name in names)]
    if not covering:
        return weights
    if len(covering) > 1:
        parts = ", ".join(prefix.rstrip(".") for prefix in covering)
        raise ModelError(
            f"{where}: the file holds this architecture {len(covering)} times; choose one with part= ({parts})"
        )
    return _take(weights, covering[0], where)


def _take(weights: Weights, prefix: str, where: str) -> Weights:
    left = [name for name in weights if not name.startswith(prefix)]
    if left:
        warnings.warn(
            f"{where}: the tensors below '{prefix.rstrip('.')}' are loaded, {len(left)} others are ignored "
            f"({_abbreviate(left)})",
            stacklevel=4,
        )
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _list_parts(weights: Weights) -> str:
    return _abbreviate(sorted({name.partition(".")[0] for name in weights}))


def _resample_positions(module: nn.Module, own: Weights, weights: Weights) -> Weights:
    name = _TORCHVISION_POSITIONS
    if name not in own or name not in weights or not type(module).__module__.startswith("torchvision."):
        return weights
    old, new = weights[name], own[name]
    if old.shape == new.shape or old.ndim != 3 or old.shape[::2] != new.shape[::2]:
        return weights
    side, new_side = (int((length - 1) ** 0.5) for length in (old.shape[1], new.shape[1]))
    if side < 1 or side * side != old.shape[1] - 1:
        return weights
    from timm.layers import resample_abs_pos_embed

    return weights | {name: resample_abs_pos_embed(old, new_size=[new_side, new_side], num_prefix_tokens=1)}


def _convert_as_timm(module: nn.Module, own: Weights, weights: Weights) -> Weights:
    """What timm's own conversion makes of the weights, where they fit the better for it."""
    num_misfits = _count_misfits(own, weights)
    convert = getattr(sys.modules.get(type(module).__module__), "checkpoint_filter_fn", None)
    if num_misfits == 0 or convert is None or not type(module).__module__.startswith("timm."):
        return weights
    try:
        converted = convert(dict(weights), module)
    except Exception:
        # Written for files of one origin, it raises what it likes on others; then they are refused as they are.
        return weights
    is_weights = isinstance(converted, dict) and all(isinstance(item, torch.Tensor) for item in converted.values())
    return dict(converted) if is_weights and _count_misfits(own, converted) < num_misfits else weights


def _count_misfits(own: Weights, weights: Weights) -> int:
    missing = sum(name not in weights or weights[name].shape != own[name].shape for name in required_names(own))
    return missing + sum(name not in own for name in weights)


def _abbreviate(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
