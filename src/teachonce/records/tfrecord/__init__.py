"""TFRecord shards of tf.train.Example: framing, Examples, and the source of records over both."""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.records.tfrecord.source import TFRecordSource as TFRecordSource

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "TFRecordSource": "source",
    },
)
