"""The original TensorFlow variables as weights of the assembled ResNet.

Read from an ``.npz`` of arrays by variable name (``resnet_model/conv2d/kernel``; a leading ``NNN|`` and a trailing
``:0`` are dropped) or from a TensorFlow checkpoint, for which TensorFlow must be installed.

TensorFlow numbers layers in the order in which they are made, within a scope. So the names follow from walking through
our layers in their order, which is the same, with this table:

    ours                                        scope          layer                variables: ours <- TensorFlow's
    Conv2d                                                     conv2d, conv2d_1 ..  weight OIHW <- kernel HWIO
    BatchNorm                                                  batch_normalization  weight, bias, running_mean,
                                                               and .._1 ..          running_var <- gamma, beta,
                                                                                    moving_mean, moving_variance
    SelectiveConv.attention                     sk_block ..    sk_fc_1, sk_fc_2     weight <- kernel
      (fc_reduce, bn, fc_select)                               batch_normalization
    Bottleneck.se (fc1, fc2)                    se_block ..    seblock_dense_1, _2  weight <- kernel
    embedding (linear, bn)                                     embedding_dense, embedding_dense_batch_normalization
    fc                                                         dense                weight, bias <- kernel^T, bias

    with Big-Little only:  stem.convs           stage0
                           stem.bn              stage0_1
                           stem.pool            stage0/pool
                           stages.0.big         stage1/big1, likewise little and merge, and stages 1 and 2
                           stages.3             stage4

Variables outside ``resnet_model/`` (the step counter) and an optimizer's slots are no weights and are left out.
Everything else must fit: all of the network's variables and no others.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import SEModule
from timm.layers.selective_kernel import SelectiveKernelAttn
from torch import nn

from teachonce.errors import ConfigError, ModelError
from teachonce.extras import missing_extras
from teachonce.llvm import import_tensorflow
from teachonce.models.assembled_resnet.network import AssembledResNet
from teachonce.storage.files import locate

Variables = dict[str, NDArray[Any]]

_ROOT = "resnet_model/"
# What optimizers keep beside each variable, by the end of its name.
_SLOTS = ("/Momentum", "/Adam", "/Adam_1", "/RMSProp", "/RMSProp_1", "/ExponentialMovingAverage")

_CONV = {"weight": "kernel"}
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_DENSE = {"weight": "kernel", "bias": "bias"}
# Layers with a name of their own, by the end of ours; the others are numbered.
_NAMED = {
    "attention.fc_reduce": ("sk_fc_1", _CONV),
    "attention.fc_select": ("sk_fc_2", _CONV),
    "se.fc1": ("seblock_dense_1", _CONV),
    "se.fc2": ("seblock_dense_2", _CONV),
    "embedding.linear": ("embedding_dense", _CONV),
    "embedding.bn": ("embedding_dense_batch_normalization", _NORM),
}
_BIG_LITTLE_SCOPES = {
    "stem.convs": "stage0/",
    "stem.bn": "stage0_1/",
    "stem.pool": "stage0/pool/",
    **{
        f"stages.{index}.{branch}": f"stage{index + 1}/{branch}{index + 1}/"
        for index in range(3)
        for branch in ("big", "little", "merge")
    },
    "stages.3": "stage4/",
}


def is_tf_weights(path: Path) -> bool:
    """Whether a path is an ``.npz`` or the prefix of a TensorFlow checkpoint (``PREFIX.index`` exists)."""
    return path.suffix == ".npz" or _has_index(path)


def read_tf_variables(path: Path) -> Variables:
    """The network's variables by their names below ``resnet_model/``, from an ``.npz`` or a checkpoint's prefix.

    Raises ConfigError for a missing file, MissingExtraError for a checkpoint without TensorFlow, ModelError for a file
    that cannot be read or holds none.
    """
    content = _read_npz(path) if path.suffix == ".npz" else _read_checkpoint(path)
    variables = {}
    for key, array in content.items():
        name = re.sub(r"^\d+\|", "", key).removesuffix(":0")
        if name.startswith(_ROOT) and not name.endswith(_SLOTS):
            variables[name.removeprefix(_ROOT)] = array
    if not variables:
        raise ModelError(
            f"{path}: no variables below {_ROOT} among {len(content)}; expected those of the original code"
        )
    return variables


def name_tf_variables(module: AssembledResNet) -> dict[str, str]:
    """TensorFlow's names (below ``resnet_model/``) and ours, in the order of creation; the table is the module's."""
    names: dict[str, str] = {}
    numbers: Counter[str] = Counter()
    scopes = {"": ""} | (_BIG_LITTLE_SCOPES if module.options.big_little is not None else {})

    def number(name: str) -> str:
        numbers[name] += 1
        return name if numbers[name] == 1 else f"{name}_{numbers[name] - 1}"

    for ours, layer in module.named_modules():
        owners = [prefix for prefix in scopes if not prefix or ours == prefix or ours.startswith(f"{prefix}.")]
        scope = scopes[max(owners, key=len)]
        if isinstance(layer, SelectiveKernelAttn | SEModule):
            block = "sk_block" if isinstance(layer, SelectiveKernelAttn) else "se_block"
            scopes[ours] = f"{number(scope + block)}/"
            continue
        special = _NAMED.get(".".join(ours.split(".")[-2:]))
        if special is not None:
            name, variables = scope + special[0], special[1]
        elif isinstance(layer, nn.Conv2d):
            name, variables = number(f"{scope}conv2d"), _CONV
        elif isinstance(layer, nn.BatchNorm2d):
            name, variables = number(f"{scope}batch_normalization"), _NORM
        elif isinstance(layer, nn.Linear):
            name, variables = number(f"{scope}dense"), _DENSE
        else:
            continue
        names |= {f"{name}/{theirs}": f"{ours}.{tensor}" for tensor, theirs in variables.items()}
    return names


def convert_tf_variables(module: nn.Module, variables: Variables, *, where: str) -> dict[str, torch.Tensor]:
    """The module's tensors, without batch norm's step counters, which nothing reads.

    Raises ModelError with TensorFlow's names for what is missing, surplus or misshapen, or for another module. Only the
    classifier's width is left to the caller, because a student may have other classes.
    """
    if not isinstance(module, AssembledResNet):
        raise ModelError(
            f"{where}: TensorFlow variables fit only tf_resnet*, tf_*resnet* and assemble_resnet* of teachonce; "
            "give safetensors or a PyTorch checkpoint"
        )
    names = name_tf_variables(module)
    own = module.state_dict()
    weights: dict[str, torch.Tensor] = {}
    misshapen = []
    for theirs, ours in names.items():
        if theirs not in variables:
            continue
        weights[ours] = tensor = _to_torch_layout(variables[theirs], own[ours].ndim)
        is_head = ours.startswith("fc.")
        if tensor.shape[is_head:] != own[ours].shape[is_head:]:
            expected = list(_to_tf_layout(own[ours]).shape)
            misshapen.append(f"{theirs} {list(variables[theirs].shape)} instead of {expected}")
    missing = [name for name in names if name not in variables]
    surplus = [name for name in variables if name not in names]
    found = []
    if missing:
        found.append(f"{len(missing)} of {len(names)} variables missing ({_abbreviate(missing)})")
    if surplus:
        found.append(f"{len(surplus)} surplus ({_abbreviate(surplus)})")
    if misshapen:
        found.append(f"{len(misshapen)} of another shape ({_abbreviate(misshapen)})")
    if found:
        raise ModelError(f"{where}: the variables do not fit: {'; '.join(found)}; give the architecture they belong to")
    return weights


def _to_torch_layout(array: NDArray[Any], num_axes: int) -> torch.Tensor:
    """Kernels have input and output channels last in TensorFlow and first in PyTorch; a 1x1 kernel may be a matrix."""
    tensor = torch.from_numpy(np.asarray(array, np.float32).copy())
    if tensor.ndim == 4:
        tensor = tensor.permute(3, 2, 0, 1)
        if num_axes == 2 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
    elif tensor.ndim == 2:
        tensor = tensor.T
    return tensor.contiguous()


def _to_tf_layout(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor


def _read_npz(path: Path) -> Variables:
    storage, name = locate(path)
    if not storage.has(name):
        raise ConfigError(f"weights={path}: no such file")
    try:
        with np.load(storage.local_path(name), allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{path}: is not an .npz that holds only arrays ({error}); save it with numpy.savez"
        ) from error


def _read_checkpoint(path: Path) -> Variables:
    prefix = _index_file(path).with_suffix("")
    storage, name = locate(prefix)
    if not _has_index(path):
        raise ConfigError(f"weights={path}: no such checkpoint, {prefix}.index is missing")
    with missing_extras(f"weights={path}: a checkpoint (variables saved as .npz do not)"):
        tensorflow = import_tensorflow()
    try:
        reader = tensorflow.train.load_checkpoint(str(storage.local_path(name)))
        names = [name for name in reader.get_variable_to_shape_map() if name.startswith(_ROOT)]
        return {name: np.asarray(reader.get_tensor(name)) for name in names if not name.endswith(_SLOTS)}
    except (tensorflow.errors.OpError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})") from error


def _has_index(path: Path) -> bool:
    if not path.name:
        return False  # "/" and ".": folders without a name, which have no siblings
    storage, name = locate(_index_file(path))
    return storage.has(name)


def _index_file(path: Path) -> Path:
    """The checkpoint's ``PREFIX.index``, whether the prefix or that file was named; prefixes hold dots themselves."""
    return path if path.suffix == ".index" else path.with_name(f"{path.name}.index")


def _abbreviate(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
