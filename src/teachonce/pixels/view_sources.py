"""Where views come from: stored (``store.stored_views``), drawn as an extraction draws them, or the student's own.

A source says, for (shard, row), view number and record, what was or is to be done. The number is a function of the
epoch: which stored view it replays, or which one is drawn.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ConfigError, ImageError
from teachonce.pixels.frames import image_sizes
from teachonce.records.source import Location, Record, RecordSource
from teachonce.rng import generator
from teachonce.store.store import Store
from teachonce.views.draw import draw_view, sample_view
from teachonce.views.policy import Policy
from teachonce.views.view import CENTER, View


class ViewSource(Protocol):
    """What a reader and a data set ask of views."""

    is_replay: bool
    """Whether these are stored views, so that nothing else about them is random."""
    has_mix: bool
    """Whether a view may be mixed with a partner's."""

    @property
    def stores(self) -> list[Store]:
        """The stores whose keys a record must have."""

    def check_source(self, records: RecordSource) -> None:
        """Raise StoreError where the views are not of these records."""

    def number_of(self, epoch: int) -> int:
        """The number of the view that every record shows in this epoch."""

    def views_of(self, locations: Sequence[Location], number: int, records: Sequence[Record]) -> list[View]:
        """View ``number`` of each record, with its mix if it has one."""

    def partner_row(self, shard: int, key: int) -> int:
        """The row, in this shard, of a mix's partner."""


class DrawnViews:
    """Views drawn now by ``views.draw.draw_view``, as an extraction draws them: view e is that of epoch e."""

    is_replay = False
    stores: list[Store] = []  # noqa: RUF012, always empty

    def __init__(self, policy: Policy, seed: int, records: RecordSource) -> None:
        self.policy = policy
        self.seed = seed
        self.records = records
        self.has_mix = policy.mix is not None
        _require_boxes(policy, records)
        self._lock = threading.Lock()
        self._rows: dict[int, dict[int, int]] = {}
        self._keys: dict[int, NDArray[np.uint64]] = {}

    def check_source(self, records: RecordSource) -> None:
        """Any will do."""

    def number_of(self, epoch: int) -> int:
        """The epoch."""
        return epoch

    def views_of(self, locations: Sequence[Location], number: int, records: Sequence[Record]) -> list[View]:
        """Drawn by seed, key and number; a policy that mixes reads the keys of the shard first, once."""
        if not self.policy.is_random:
            return [CENTER] * len(records)
        views = []
        sizes = image_sizes([record.encoded for record in records], [record.where for record in records]).tolist()
        for (shard, _), record, (width, height) in zip(locations, records, sizes, strict=True):
            keys = self._shard_keys(shard) if self.has_mix else None
            try:
                views.append(draw_view(self.policy, self.seed, record.key, number, width, height, keys, record.boxes))
            except ImageError as error:
                raise error.at(record.where) from error
        return views

    def partner_row(self, shard: int, key: int) -> int:
        """Of equal images the first."""
        return self._rows[shard][key]

    def _shard_keys(self, shard: int) -> NDArray[np.uint64]:
        with self._lock:
            if shard not in self._keys:
                rows: dict[int, int] = {}
                for row, record in enumerate(self.records.iter_shard(shard)):
                    rows.setdefault(record.key, row)
                self._rows[shard] = rows
                self._keys[shard] = np.array(sorted(rows), np.uint64)
            return self._keys[shard]

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()


class OwnViews:
    """A student's own augmentation: drawn by (seed, epoch, record key), unmixed, stored nowhere."""

    is_replay = False
    has_mix = False
    stores: list[Store] = []  # noqa: RUF012, always empty

    def __init__(self, policy: Policy, seed: int = 0) -> None:
        self.policy = policy
        self.seed = seed

    def check_source(self, records: RecordSource) -> None:
        """ConfigError where crops are drawn by boxes that are not read."""
        _require_boxes(self.policy, records)

    def number_of(self, epoch: int) -> int:
        """The epoch."""
        return epoch

    def views_of(self, locations: Sequence[Location], number: int, records: Sequence[Record]) -> list[View]:
        """Drawn; each epoch other views."""
        views = []
        sizes = image_sizes([record.encoded for record in records], [record.where for record in records]).tolist()
        for record, (width, height) in zip(records, sizes, strict=True):
            rng = generator(self.seed, "student view", number, record.key)
            try:
                views.append(sample_view(rng, self.policy, width, height, boxes=record.boxes))
            except ImageError as error:
                raise error.at(record.where) from error
        return views

    def partner_row(self, shard: int, key: int) -> int:
        """There are no partners."""
        raise AssertionError("a student's own views are not mixed")


def _require_boxes(policy: Policy, records: RecordSource) -> None:
    if policy.needs_boxes and not records.with_boxes:
        raise ConfigError("crops that show objects are drawn by the records' boxes: open_records(..., with_boxes=True)")
