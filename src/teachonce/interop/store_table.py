"""A store's logits by record key, wherever the image is now: through the store's index."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import LogitsError
from teachonce.records.class_space import ClassSpace
from teachonce.records.source import NO_LABEL
from teachonce.store.store import Store


class StoreTable:
    """A ``LogitTable`` of a store's view 0, for data whose label of each of the store's is in ``new_labels`` [n]."""

    def __init__(self, store: Store, new_labels: NDArray[np.int64], view: int = 0) -> None:
        self.store = store
        self.view = view
        self.new_labels = new_labels
        self.class_space: ClassSpace = store.class_space.relabel(new_labels)

    def __len__(self) -> int:
        return self.store.num_records

    def digest(self) -> str:
        """The store's fingerprint."""
        return self.store.fingerprint

    def find_logits(self, *, key: int, filename: str, label: int | None = None) -> NDArray[np.float32]:
        """Logits of the image with this key. Equal images have equal keys and equal logits, so the first will do."""
        found = self.store.locations_of(key)
        if not found:
            raise LogitsError(
                f"{filename}: no logits in {self.store.path} (key {key:016x}): the image is missing there or has "
                "changed since; extract over this data"
            )
        stored = {int(self.store.read_labels(shard)[row]) for shard, row in found}
        labels = {int(self.new_labels[at]) if 0 <= at < len(self.new_labels) else -1 for at in stored}
        # As in a ``StoreJoin``, a record without a label fits any.
        if label not in {None, NO_LABEL, *labels} and NO_LABEL not in stored:
            known = sorted(labels - {-1})
            of_store = " and ".join(map(str, known)) if known else "a class that the data does not have"
            raise LogitsError(
                f"{filename}: label {label} here, {of_store} in {self.store.path}: the classes have a different "
                "order there; use the same --labels, or extract over this data"
            )
        shard, row = found[0]
        return self.store.read_logits(shard, self.view, [row])[0]
