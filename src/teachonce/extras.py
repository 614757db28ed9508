"""Extras: the parts of an installation that not everybody needs, and the one line that names the missing one.

``pip install teachonce`` brings what reads, inspects, checks, merges, imports and converts. Every other library belongs
to an extra of pyproject.toml. Where one is missing, Python's own ModuleNotFoundError becomes a MissingExtraError with
the extra and the command that installs it: in the names that packages export (``from teachonce import KDDataset``),
in the command line, and where a function asks for libraries before it imports them (``require``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from teachonce.errors import MissingExtraError

EXTRAS = {
    "torch": ("torch", "torchvision", "timm", "safetensors", "torchmetrics", "jaxtyping"),
    "train": ("lightning", "tensorboard", "scipy"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "tensorflow": ("tensorflow",),
    "pages": ("matplotlib", "jinja2"),
    "remote": ("obstore",),
    "huggingface": ("huggingface_hub",),
    "ray": ("ray",),
    "demo": ("sklearn",),
}
"""By extra: the modules that it brings, by the names that they are imported by."""
ALONE = ("wandb",)
"""Modules of no extra, for those who use what they belong to anyway; each is installed under its own name."""
_EXTRA_OF = {module: extra for extra, modules in EXTRAS.items() for module in modules}


def require(*modules: str, purpose: str) -> None:
    """Raise MissingExtraError for the first of ``modules`` that is not installed; nothing is imported for it.

    ``purpose`` begins the message: what needs them, such as "--int8" or the path of a file. For what would otherwise
    be missed only after the work, and for options that a command's own extras do not cover.
    """
    for name in modules:
        if find_spec(name) is None:
            raise _missing(purpose, name)


@contextmanager
def missing_extras(purpose: str, extra: str | None = None) -> Iterator[None]:
    """Turn the ModuleNotFoundError of a module of an extra, imported meanwhile, into a MissingExtraError.

    ``extra`` is what the message names where the purpose needs more than the extra of that module.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        # By its exact name: a library that lacks a submodule is installed, and broken.
        if error.name not in _EXTRA_OF:
            raise
        raise _missing(purpose, error.name, extra) from error


def _missing(purpose: str, module: str, extra: str | None = None) -> MissingExtraError:
    package = module if module in ALONE else f"'teachonce[{extra or _EXTRA_OF[module]}]'"
    return MissingExtraError(f"{purpose} needs {module}, which is not installed: pip install {package}")
