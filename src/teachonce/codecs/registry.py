"""The codecs by name, and as entries of a store's plan.

``codec_protocol`` says what a codec is; ``codec_dense`` keeps a number for every class, ``codec_topk`` keeps the
likeliest classes and the tail's mass.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from teachonce.codecs.codec import Codec, Columns
from teachonce.codecs.dense import Float16Codec, Float32Codec, Int8Codec
from teachonce.codecs.topk import TopKCodec
from teachonce.errors import ConfigError, StoreError

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
    "codec_to_json",
    "warn_of_estimates",
]

CODECS: dict[str, Callable[..., Codec]] = {
    codec.name: codec for codec in (Float32Codec, Float16Codec, Int8Codec, TopKCodec)
}


def build_codec(name: str, *, num_classes: int, k: int = 10) -> Codec:
    """The codec ``name`` for a teacher of ``num_classes``; ``k``, the classes that ``topk`` keeps, is for it alone.

    Raises ConfigError for a name that is not in ``CODECS``, and for a ``k`` below 1.
    """
    if name not in CODECS:
        raise ConfigError(f"codec {name!r} is not known; known: {', '.join(CODECS)}")
    return TopKCodec(k=k, num_classes=num_classes) if name == TopKCodec.name else CODECS[name]()


def warn_of_estimates(codec: Codec, what: str) -> None:
    """Warn where logits leave a store for readers that will take every class for what the teacher said."""
    if isinstance(codec, TopKCodec) and codec.num_tail:
        warnings.warn(
            f"{what}: codec topk kept {codec.num_kept} of {codec.num_classes} classes; the others get one estimated "
            "logit, right for temperature 1 alone; extract with int8 for other temperatures",
            stacklevel=3,
        )


def codec_to_json(codec: Codec) -> dict[str, Any]:
    """A codec as its entry in a plan: name and parameters."""
    return {"name": codec.name, **dataclasses.asdict(codec)}  # type: ignore[call-overload]  # Protocol, not dataclass


def codec_from_json(entry: Mapping[str, Any]) -> Codec:
    """The codec of a plan's entry; raises StoreError for one that this version does not know."""
    parameters = dict(entry)
    name = parameters.pop("name", None)
    if name not in CODECS:
        raise StoreError(f"codec {name!r} is not known here (known: {', '.join(CODECS)}); a newer teachonce wrote it?")
    try:
        return CODECS[name](**parameters)
    except (TypeError, ConfigError) as error:
        raise StoreError(f"codec {name!r} with parameters {parameters}: {error}") from error
