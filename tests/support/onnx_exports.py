"""PyTorch's ONNX exporter, run once for each network: that takes seconds, and many tests export the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class OnceForEachNetwork:
    """In the place of ``torch.onnx.export``: what that gave for the same network, shapes and options comes back.

    As a ``model_proto`` of its own each time, as callers add to it. What else a program has is left out, so that who
    needs more finds that it is missing.
    """

    def __init__(self, export: Callable[..., Any]) -> None:
        self._export = export
        self._models: dict[str, bytes] = {}

    def __call__(self, module: nn.Module, images: tuple[torch.Tensor, ...], **options: Any) -> SimpleNamespace:
        import onnx

        key = _hash_call(module, images, options)
        if key not in self._models:
            self._models[key] = self._export(module, images, **options).model_proto.SerializeToString()
        return SimpleNamespace(model_proto=onnx.ModelProto.FromString(self._models[key]))


def _hash_call(module: nn.Module, images: tuple[torch.Tensor, ...], options: dict[str, Any]) -> str:
    shapes = [(image.shape, image.dtype, image.stride()) for image in images]
    digest = hashlib.sha256(f"{type(module)} {module.training} {module} {shapes} {sorted(options.items())}".encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
