"""The codecs by name, and as entries of a store's plan.

``codec`` says what a codec is and how one is added; ``dense`` keeps a number for every class, ``topk`` keeps the
most likely classes and the tail's mass.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from teachonce.codecs.codec import Codec, Columns
from teachonce.codecs.dense import Float16Codec, Float32Codec, Int8Codec
from teachonce.codecs.topk import TopKCodec
from teachonce.errors import ConfigError, StoreError, UnsupportedStoreError
from teachonce.storage.strict_json import convert_json

__all__ = [
    "CODECS",
    "Codec",
    "Columns",
    "Float16Codec",
    "Float32Codec",
    "Int8Codec",
    "TopKCodec",
    "build_codec",
    "codec_from_json",
    "warn_of_estimates",
]

CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Float32Codec, Float16Codec, Int8Codec, TopKCodec)}
"""The codecs that stores can have, by name. One of a program's own is entered before a store is made or opened:
``CODECS["fixed"] = FixedPointCodec``."""


def build_codec(name: str, *, num_classes: int, k: int = 10) -> Codec:
    """The codec ``name`` for a teacher of ``num_classes``; ``k``, the classes that ``topk`` keeps, is for it alone.

    Raises ConfigError for a name that is not in ``CODECS``, and for a ``k`` below 1.
    """
    if name not in CODECS:
        raise ConfigError(f"unknown codec {name!r}; known codecs: {', '.join(CODECS)}")
    given = {"num_classes": num_classes, "k": k}
    fields = {field.name for field in dataclasses.fields(CODECS[name])}  # type: ignore[arg-type]  # each is a dataclass
    return CODECS[name](**{field: value for field, value in given.items() if field in fields})


def warn_of_estimates(codec: Codec, what: str) -> None:
    """Warn where logits leave a store for readers that take the values of all classes for the teacher's."""
    num_kept = codec.num_kept
    if num_kept is not None and codec.num_tail:
        warnings.warn(
            f"{what}: codec {codec.name} kept {num_kept} of {num_kept + codec.num_tail} classes; the others get "
            "one estimated logit, correct only for temperature 1; extract with int8 for other temperatures",
            stacklevel=3,
        )


def codec_from_json(entry: Mapping[str, Any]) -> Codec:
    """The codec of a plan's entry; raises UnsupportedStoreError for one that this program does not know."""
    parameters = dict(entry)
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise StoreError(f"unknown codec {name!r} (known codecs: {', '.join(CODECS)})")
    if name not in CODECS:
        raise UnsupportedStoreError(
            f"unknown codec {name!r} (known codecs: {', '.join(CODECS)}); a codec of your own must be entered in "
            "teachonce.codecs.registry.CODECS before the store is opened (docs/guide/extending.md); a newer teachonce "
            "may have others"
        )
    return convert_json(parameters, CODECS[name], f"codec {name!r} with parameters {parameters}", StoreError)
