"""Teacher logits looked up by image: in a store (by record key) or in the walkthrough's CSV files (by basename).

Both keep an index of a few bytes an image and read the logits when asked, so memory does not grow with the number of
classes (the walkthrough's own merge keeps every logit in one dict, about 41 GB for ImageNet).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ConfigError
from teachonce.interop.csv_table import CsvTable
from teachonce.interop.store_table import StoreTable
from teachonce.records.class_space import ClassSpace, map_logits
from teachonce.store.plan import holds_store
from teachonce.store.store import Store


class LogitTable(Protocol):
    """Teacher logits in the teacher's own class space."""

    class_space: ClassSpace

    def __len__(self) -> int: ...

    def digest(self) -> str:
        """What identifies the logits, to notice others on a re-run."""

    def find_logits(self, *, key: int, filename: str, label: int | None = None) -> NDArray[np.float32]:
        """Logits [C] of an image; LogitsError naming it where there are none, or where its label is known and another.

        The label catches classes in another order, which would give every image the logits of wrong classes.
        """


class MappedTable:
    """A table's logits in the class space of the data; the classes the teacher lacks get ``background_logit``."""

    def __init__(self, table: LogitTable, num_classes: int, background_logit: float) -> None:
        self.table = table
        self.num_classes = num_classes
        self.background_logit = background_logit

    def logits_of(self, *, key: int, filename: str, label: int | None = None) -> NDArray[np.float32]:
        """Logits [num_classes] of an image; raises as ``LogitTable.find_logits``."""
        logits = self.table.find_logits(key=key, filename=filename, label=label)
        target = ClassSpace(num_classes=self.num_classes)
        return map_logits(logits, self.table.class_space, target, self.background_logit)


def open_logit_table(path: Path, *, split: str, num_classes: int, background_logit: float) -> MappedTable:
    """The logits of ``path``, a store or a folder of SPLIT-*.csv, for data of ``num_classes`` (background included).

    A store of an image folder has labels from 0 and no background; for TFRecords of the same images it is moved by 1.
    """
    table: LogitTable
    if holds_store(path):
        store = Store(path)
        if store.policy.is_random:
            raise ConfigError(
                f"{path}: holds what the teacher said of random views (policy {store.policy.name}), which is "
                "nothing to put beside whole images; give a store of policy center"
            )
        is_of_folder = store.plan.data["format"] == "folder"
        label_shift = int(is_of_folder and store.plan.data_classes == num_classes - 1)
        table = StoreTable(store, label_shift=label_shift)
        if store.plan.data_classes + label_shift != num_classes:
            raise ConfigError(
                f"{path}: logits for data of {store.plan.data_classes} classes, this data has {num_classes} "
                "(background included); give the store of this data"
            )
    else:
        table = CsvTable(path, split=split, data_classes=num_classes)
    return MappedTable(table, num_classes, background_logit)
