"""Where the walkthrough's teachers come from when no ``weights=`` says so.

1. ``TEACHONCE_SAVEDMODELS`` names a folder of SavedModels: ``amoebanet/`` and ``efficientnet/`` in it.
2. ``amoebanet``: the module that the walkthrough's code names, as TensorFlow Hub has it; from its cache
   (``TFHUB_CACHE_DIR``, else where the library keeps it), else by ``tensorflow_hub``'s resolver, where that package is
   installed.
3. ``efficientnet``: the same network with the same training (AutoAugment, ImageNet alone) under timm's name.

Nothing is guessed: where none of these has it, the caller says in one line what to give. ``tensorflow_hub`` is no
dependency, because its last release does not import beside current versions of setuptools, and what is in its cache is
found without it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from teachonce.errors import ConfigError
from teachonce.models.spec import ModelSpec, first_line
from teachonce.storage.files import open_storage

FOLDER_VARIABLE = "TEACHONCE_SAVEDMODELS"
"""Environment variable: a folder of SavedModels, one a teacher."""
HUB_MODULES = {"amoebanet": "https://tfhub.dev/google/imagenet/amoebanet_a_n18_f448/classification/1"}
"""The walkthrough's own handles, for teachers that timm does not have."""
TIMM_NAMES = {"efficientnet": "tf_efficientnet_b7.aa_in1k"}


def find_savedmodel(spec: ModelSpec) -> Path | None:
    """The folder of a teacher's SavedModel; None for one that timm has and that no folder was given for.

    Raises ConfigError that says what to give, where there is none.
    """
    if os.environ.get(FOLDER_VARIABLE):
        folder = Path(os.environ[FOLDER_VARIABLE])
        if open_storage(folder / spec.kind).has("saved_model.pb"):
            return folder / spec.kind
    if spec.kind in TIMM_NAMES:
        return None
    handle = HUB_MODULES[spec.kind]
    cached = _hub_cache() / hashlib.sha1(handle.encode(), usedforsecurity=False).hexdigest()
    if open_storage(cached).has("saved_model.pb"):
        return cached
    try:
        # A package without types that need not be there.
        from tensorflow_hub import resolve  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        reason = f"{handle} is not in {_hub_cache()}, and tensorflow_hub is not available ({first_line(error)})"
        raise ConfigError(describe_missing(spec, reason)) from error
    try:
        return Path(resolve(handle))
    except Exception as error:
        # The resolver raises whatever its transport, its archive and its cache do.
        raise ConfigError(describe_missing(spec, f"{handle}: {first_line(error)}")) from error


def describe_missing(spec: ModelSpec, reason: str) -> str:
    """One line: the weights are not to be had, why, and what to give."""
    return (
        f"model {spec.text!r}: its weights cannot be downloaded ({reason}); give weights=DIR (the walkthrough's "
        "scripts: --saved_model=DIR), the folder of its TensorFlow SavedModel or TF1 hub module, or "
        f"{FOLDER_VARIABLE}=FOLDER with {spec.kind}/ in it"
    )


def _hub_cache() -> Path:
    """Where tensorflow_hub keeps its modules, each under the SHA-1 of its handle."""
    return Path(os.environ.get("TFHUB_CACHE_DIR") or Path(tempfile.gettempdir()) / "tfhub_modules")
