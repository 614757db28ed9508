"""Sources of records: encoded images with labels and keys, in shards.

Images are not decoded here: must not import Pillow, stores or torch.
"""

from typing import TYPE_CHECKING

from teachonce.lazy import exports

if TYPE_CHECKING:
    from teachonce.records.class_space import ClassSpace as ClassSpace
    from teachonce.records.class_table import ClassTable as ClassTable
    from teachonce.records.discovery import open_records as open_records
    from teachonce.records.source import Record as Record
    from teachonce.records.source import RecordSource as RecordSource
    from teachonce.records.source import record_key as record_key

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "ClassSpace": "class_space",
        "ClassTable": "class_table",
        "Record": "source",
        "RecordSource": "source",
        "open_records": "discovery",
        "record_key": "source",
    },
)
