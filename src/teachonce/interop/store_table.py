"""A store's logits by record key, wherever the image is now: through the store's index."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ConfigError, LogitsError
from teachonce.records.class_space import ClassSpace
from teachonce.records.source import NO_LABEL
from teachonce.store.store import Store


def check_one_logit(store: Store, view: int | None = None, *, has_view: bool = True) -> int:
    """The view whose logits may stand for an image in what has one vector of logits for each: records and CSV.

    Such readers know neither crops nor partners. So ConfigError where views are mixed with other images, or are random
    and none was asked for by its number (``view``; ``has_view``: the command has --view); one that was gets a warning.
    """
    if view is not None and not 0 <= view < store.num_views:
        raise ConfigError(f"--view {view}: expected 0 to {store.num_views - 1}, the views of {store.path}")
    if store.policy.mix is not None:
        raise ConfigError(
            f"{store.path}: its views are mixed with other images, so its logits are of no image alone; give a store "
            "of policy center, or train from this one (train --store)"
        )
    if store.policy.is_random and view is None:
        or_view = f", or --view 0 to {store.num_views - 1} for those of one random view" if has_view else ""
        raise ConfigError(
            f"{store.path}: holds logits of random views (policy {store.policy.name}), which do not belong to full "
            f"images; give a store of policy center{or_view}"
        )
    view = view or 0
    if store.policy.is_random:
        warnings.warn(
            f"{store.path}: view {view} is a random crop, which readers of its logits alone cannot reproduce; train "
            "from the store instead",
            stacklevel=3,
        )
    return view


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
