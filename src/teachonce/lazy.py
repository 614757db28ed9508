"""Names of a package that are imported on first use (PEP 562), so that a package costs what is used of it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from teachonce.extras import missing_extras
from teachonce.llvm import keep_triton_out


def exports(package: str, homes: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names live in the modules ``homes`` (by name).

    A name whose module needs an extra that is not installed raises MissingExtraError, an ImportError.
    """
    keep_triton_out()
    names = sorted(homes)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        keep_triton_out()
        with missing_extras(f"{package}.{name}"):
            return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get, lambda: names, names
