"""Numbers to bytes and back: how a row of teacher logits is stored.

Needs NumPy and msgspec alone; must not import records, stores or (when it is imported) torch.
"""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.codecs.codec import Codec as Codec
    from teachonce.codecs.dense import DenseCodec as DenseCodec
    from teachonce.codecs.dense import Float16Codec as Float16Codec
    from teachonce.codecs.dense import Float32Codec as Float32Codec
    from teachonce.codecs.dense import Int8Codec as Int8Codec
    from teachonce.codecs.registry import CODECS as CODECS
    from teachonce.codecs.registry import build_codec as build_codec
    from teachonce.codecs.topk import TopKCodec as TopKCodec

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "CODECS": "registry",
        "Codec": "codec",
        "DenseCodec": "dense",
        "Float16Codec": "dense",
        "Float32Codec": "dense",
        "Int8Codec": "dense",
        "TopKCodec": "topk",
        "build_codec": "registry",
    },
)
