"""A store's logits by record key, wherever the image lies now: an index of 16 bytes a record."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import LogitsError
from teachonce.records.class_space import ClassSpace
from teachonce.records.source import ShardOffsets
from teachonce.store.store import Store


class StoreTable:
    """A ``LogitTable`` of a store's view 0; ``label_shift`` is added to the store's labels."""

    def __init__(self, store: Store, view: int = 0, label_shift: int = 0) -> None:
        self.store = store
        self.view = view
        self.label_shift = label_shift
        space = store.class_space
        self.class_space = ClassSpace(num_classes=space.num_classes, offset=space.offset + label_shift)
        sizes = [num_records for _, num_records in store.shards]
        keys = [store.read_keys(shard) for shard in range(len(sizes))]
        self._offsets = ShardOffsets(sizes)
        all_keys = np.concatenate(keys)
        self._order = np.argsort(all_keys, kind="stable")
        self._sorted_keys = all_keys[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def digest(self) -> str:
        """The store's fingerprint."""
        return self.store.fingerprint

    def find_logits(self, *, key: int, filename: str, label: int | None = None) -> NDArray[np.float32]:
        """Logits of the image with this key. Equal images have equal keys and equal logits, so the first will do."""
        at, end = (int(np.searchsorted(self._sorted_keys, np.uint64(key), side)) for side in ("left", "right"))
        if at == end:
            raise LogitsError(
                f"{filename}: no logits in {self.store.path} (key {key:016x}): the image is missing there or changed "
                "since; extract the teacher over this data"
            )
        found = [self._offsets.locate(int(index)) for index in self._order[at:end]]
        labels = {int(self.store.read_labels(shard)[row]) + self.label_shift for shard, row in found}
        if label is not None and label not in labels:
            raise LogitsError(
                f"{filename}: label {label} here, {' and '.join(map(str, sorted(labels)))} in {self.store.path}: the "
                "classes have another order there; use the same --labels, or extract over this data"
            )
        shard, row = found[0]
        return self.store.read_logits(shard, self.view, [row])[0]
