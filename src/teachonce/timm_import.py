"""Our networks under their names in timm, as soon as both packages are imported, in whichever order.

``import teachonce`` must not import torch, and timm has no way to announce networks of other packages. So where timm
is not there yet, its import is waited for: a finder that finds nothing itself, lets timm be loaded as usual, and then
imports ``teachonce.timm_names``, which registers them. It removes itself with that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def register_with_timm() -> None:
    """Register our names now where timm is imported, else when it will be."""
    if "timm" in sys.modules:
        import_module("teachonce.timm_names")
    else:
        sys.meta_path.insert(0, _TimmFinder())


class _TimmFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    """timm's own loader, and our names after it."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module looks as if nobody had been in between: its sources are found, it can be reloaded.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        import_module("teachonce.timm_names")
