"""Teacher logits looked up by image: in a store (by record key) or in the walkthrough's CSV files (by basename).

Both keep an index of a few bytes an image and read the logits on demand, so memory does not grow with the number of
classes (the walkthrough's own merge keeps every logit in one dict, about 41 GB for ImageNet).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ConfigError
from teachonce.interop.csv_table import CsvTable
from teachonce.interop.store_table import StoreTable, check_one_logit
from teachonce.records.class_space import ClassSpace, map_logits
from teachonce.records.image_folder import IMAGE_FILE_FORMATS
from teachonce.store.join import invert_labels, label_map
from teachonce.store.plan_files import holds_store
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


def open_logit_table(
    path: Path, *, split: str, num_classes: int, background_logit: float, class_names: Sequence[str] | None = None
) -> MappedTable:
    """The logits of ``path``, a store or a folder of SPLIT-*.csv, for data of ``num_classes`` (background included).

    Classes of a store are found by ``class_names`` where both have names; else a store of image files has labels
    from 0 and no background, and is moved by 1.
    """
    table: LogitTable
    if holds_store(path):
        store = Store(path)
        view = check_one_logit(store, has_view=False)
        if store.plan.class_names is not None and class_names is not None:
            new_labels = invert_labels(store, label_map(store, class_names, num_classes))
        else:
            new_labels = np.arange(store.plan.data_classes)
            if store.plan.data["format"] in IMAGE_FILE_FORMATS and store.plan.data_classes == num_classes - 1:
                new_labels += 1
            elif store.plan.data_classes != num_classes:
                raise ConfigError(
                    f"{path}: logits for data of {store.plan.data_classes} classes, this data has {num_classes} "
                    "(background included); give the store of this data"
                )
        table = StoreTable(store, new_labels, view)
    else:
        table = CsvTable(path, split=split, data_classes=num_classes)
    return MappedTable(table, num_classes, background_logit)
