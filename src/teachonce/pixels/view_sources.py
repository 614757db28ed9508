"""Where views come from: stored (``store.stored_views``), drawn as an extraction draws them, or the student's own.

A source says, for (shard, row), view number and record, what was or is to be done. The number is a function of the
epoch: which stored view it replays, or which one is drawn.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ConfigError, ImageError, RecordError
from teachonce.pixels.frames import image_sizes
from teachonce.records.data_keys import DataKeys, find_class_order
from teachonce.records.source import Location, Record, RecordSource, all_encoded, all_keys, all_places
from teachonce.rng import generator
from teachonce.store.join import JoinedRecords, StoreJoin
from teachonce.store.store import Store
from teachonce.terminal import plural
from teachonce.views.draw import draw_view, sample_view
from teachonce.views.policy import Policy
from teachonce.views.view import CENTER, View

KEPT_SHARDS = 64
"""Shards whose sorted keys are kept, of views that are mixed with partners: 10 kB a shard of ImageNet."""


MUCH_OWN_CLASS, MORE_OWN_CLASS = 0.5, 0.25
"""Where so many partners are of the record's own class, and so many more than in shuffled data, mixing hardly mixes
classes: of 1,300 images a class in shards of 1,024 it is 0.65, of 100 images a class 0.1."""


class ViewSource(Protocol):
    """What a reader and a dataset ask of views."""

    is_replay: bool
    """Whether these are stored views, so that nothing else about them is random."""
    has_mix: bool
    """Whether a view may be mixed with a partner's."""

    @property
    def stores(self) -> list[Store]:
        """The stores that the views come from."""

    def join(self, records: RecordSource) -> list[StoreJoin]:
        """The stores that a record must be in, joined with the records; StoreError where they are not of them."""

    def number_of(self, epoch: int) -> int:
        """The number of the view that every record shows in this epoch."""

    def views_of(self, joined: JoinedRecords, number: int) -> Sequence[View]:
        """View ``number`` of each record, with its mix if it has one."""

    def locate_partner(self, location: Location, key: int, where: str, *, by_position: bool = False) -> Location:
        """(shard, row), in the source, of the partner with this key of the record at ``location``.

        ``by_position`` it may be an outdated position: the caller compares the key of what it reads, and asks again
        without.
        """


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
        self._open_cache()

    def join(self, records: RecordSource) -> list[StoreJoin]:
        """Any records will do."""
        return []

    def number_of(self, epoch: int) -> int:
        """The epoch."""
        return epoch

    def views_of(self, joined: JoinedRecords, number: int) -> Sequence[View]:
        """Drawn by seed, key and number; a policy that mixes needs the keys of the records' shards."""
        if not self.policy.is_random:
            return [CENTER] * len(joined.records)
        views = []
        records = joined.records
        sizes = image_sizes(all_encoded(records), all_places(records)).tolist()
        for index, (key, (width, height)) in enumerate(zip(all_keys(records).tolist(), sizes, strict=True)):
            keys = self._partners(joined.locations[index][0], records[index]) if self.has_mix else None
            boxes = records[index].boxes if self.policy.needs_boxes else None
            try:
                views.append(draw_view(self.policy, self.seed, key, number, width, height, keys, boxes))
            except ImageError as error:
                raise error.at(records[index].where) from error
        return views

    def locate_partner(self, location: Location, key: int, where: str, *, by_position: bool = False) -> Location:
        """Of equal images the first of the record's shard."""
        shard, _ = location
        return shard, int(np.flatnonzero(self._keys.shard(shard) == np.uint64(key))[0])

    def _partners(self, shard: int, record: Record) -> NDArray[np.uint64]:
        """The keys of a record's shard, sorted, each once: what its view's mix is drawn from.

        Raises RecordError for a record that is none of them: the keys were read, or cached, before its image changed.
        """
        keys = self._shard_keys(shard)
        at = int(np.searchsorted(keys, np.uint64(record.key)))
        if at == len(keys) or int(keys[at]) != record.key:
            raise RecordError(
                f"{record.where}: key {record.key:016x} ({record.filename}), expected one of the keys that the "
                f"{len(keys)} images of its shard had: the image was changed after they were read; restore it, or "
                "touch its file and start again"
            )
        return keys

    def _shard_keys(self, shard: int) -> NDArray[np.uint64]:
        found = self._kept.get(shard)
        if found is None:
            found = np.unique(self._keys.shard(shard))
            with self._lock:
                while len(self._kept) >= KEPT_SHARDS:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[shard] = found
        return found

    def _open_cache(self) -> None:
        self._keys = DataKeys(self.records)
        self._kept: dict[int, NDArray[np.uint64]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("_keys", "_kept", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._open_cache()


class OwnViews:
    """A student's own augmentation: drawn by (seed, epoch, record key), unmixed, stored nowhere.

    Raises ConfigError for a policy that mixes: partners are of the record's shard, whose keys only DrawnViews read.
    """

    is_replay = False
    has_mix = False
    stores: list[Store] = []  # noqa: RUF012, always empty

    def __init__(self, policy: Policy, seed: int = 0) -> None:
        if policy.mix is not None:
            raise ConfigError(
                "OwnViews of a policy that mixes images: a student's own views are not mixed; give DrawnViews, or a "
                "policy without mix, and mix the batches"
            )
        self.policy = policy
        self.seed = seed

    def join(self, records: RecordSource) -> list[StoreJoin]:
        """Any records will do; ConfigError where crops are drawn by boxes that are not read."""
        _require_boxes(self.policy, records)
        return []

    def number_of(self, epoch: int) -> int:
        """The epoch."""
        return epoch

    def views_of(self, joined: JoinedRecords, number: int) -> Sequence[View]:
        """Drawn; each epoch other views."""
        views = []
        records = joined.records
        sizes = image_sizes(all_encoded(records), all_places(records)).tolist()
        for index, (key, (width, height)) in enumerate(zip(all_keys(records).tolist(), sizes, strict=True)):
            rng = generator(self.seed, "student view", number, key)
            boxes = records[index].boxes if self.policy.needs_boxes else None
            try:
                views.append(sample_view(rng, self.policy, width, height, boxes=boxes))
            except ImageError as error:
                raise error.at(records[index].where) from error
        return views

    def locate_partner(self, location: Location, key: int, where: str, *, by_position: bool = False) -> Location:
        """There are no partners."""
        raise AssertionError("a student's own views are not mixed")


def warn_of_own_class_partners(policy: Policy, records: RecordSource, where: object) -> None:
    """Warn where views are mixed with partners of their shard, and most of these are of the record's own class.

    Asked of sources that know their labels without reading records, as folders of images do, which are listed by class.
    """
    order = None if policy.mix is None else find_class_order(records)
    if order is None or order.own_class < max(MUCH_OWN_CLASS, order.own_class_shuffled + MORE_OWN_CLASS):
        return
    warnings.warn(
        f"{where}: its records are sorted by class, and partners of mixup and cutmix are of a record's own shard: "
        f"{order.num_single} of {plural(order.num_shards, 'shard')} hold one class alone, and {order.own_class:.0%} of "
        f"the partners are of the record's own class ({order.own_class_shuffled:.0%} if shuffled); write shuffled "
        "shards first (teachonce records) and use these as --data",
        stacklevel=3,
    )


def _require_boxes(policy: Policy, records: RecordSource) -> None:
    if policy.needs_boxes and not records.with_boxes:
        raise ConfigError("crops that show objects are drawn by the records' boxes: open_records(..., with_boxes=True)")
