"""Names and texts of the labels of a dataset, kept as classes.json beside TFRecord shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from teachonce.errors import RecordError
from teachonce.storage.files import open_storage, read_json, write_json
from teachonce.storage.strict_json import convert_json, json_values

CLASSES_NAME = "classes.json"
BACKGROUND = "background"
"""Name of label 0 where the data has none of that label, as TFRecords of ImageNet."""


@dataclass(frozen=True)
class ClassTable:
    """Name and human text of every label, background (label 0) included where the data has one."""

    names: tuple[str, ...]
    texts: tuple[str, ...]
    has_background: bool


def hash_classes(names: Sequence[str]) -> str:
    """A hash of class names in the order of a model's outputs, to tell whether two models' outputs mean the same."""
    return xxhash.xxh3_128_hexdigest("\n".join(names).encode())


def write_classes(data: Path, classes: ClassTable) -> None:
    """Keep the class table beside the shards."""
    write_json(data / CLASSES_NAME, json_values(classes))


def read_classes(data: Path) -> ClassTable | None:
    """The class table beside the shards; None where there is none, as with records made elsewhere."""
    path = data / CLASSES_NAME
    if not open_storage(data).has(CLASSES_NAME):
        return None
    table = convert_json(read_json(path), ClassTable, path, RecordError, advice="create it again")
    if len(table.names) != len(table.texts) or not table.names:
        raise RecordError(f"{path}: {len(table.names)} names and {len(table.texts)} texts; create it again")
    return table
