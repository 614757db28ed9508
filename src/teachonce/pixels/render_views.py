"""Looking at a record through one of its views: whoever looks, teacher, student or auditor, looks through this.

A view is either drawn (``DrawnViews``: the teacher's extraction, an online teacher) or read from a store
(``StoredViews``: the student, ``verify``, a second teacher over the same views). Both say, for (shard, row, view
number), what was or is to be done; ``look`` reads the records that it takes, and ``Look.pixels`` and ``render_looks``
make the pixels at any size. A mixed view takes a second record: its partner is read and checked by key too, and is seen
through its own view of the same number.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ImageError, StoreError
from teachonce.pixels.apply_view import finish_view
from teachonce.pixels.decode import Interpolation
from teachonce.pixels.render import image_sizes, read_pixels, square_frames
from teachonce.records.source import Record, RecordSource
from teachonce.store.checks import check_keys
from teachonce.store.store import Store
from teachonce.views.columns import VIEW_COLUMNS, decode_views
from teachonce.views.draw import draw_view
from teachonce.views.policy import CropPolicy
from teachonce.views.view import View

Place = tuple[int, int]
"""(shard, row)."""


class Views(Protocol):
    """Where views come from."""

    def views_of(self, places: Sequence[Place], number: int, records: Sequence[Record]) -> list[View]:
        """View ``number`` of each record, with its mix if it has one."""

    def partner_row(self, shard: int, key: int) -> int:
        """The row, in this shard, of a mix's partner."""

    def check(self, places: Sequence[Place], records: Sequence[Record]) -> None:
        """Raise StoreError where a record is not the one that the views are of."""


class DrawnViews:
    """Views drawn now, by ``policies.draw_view``."""

    def __init__(self, policy: CropPolicy, seed: int, source: RecordSource) -> None:
        self.policy = policy
        self.seed = seed
        self.source = source
        if policy.needs_boxes:
            source.read_boxes()
        self._lock = threading.Lock()
        self._rows: dict[int, dict[int, int]] = {}
        self._keys: dict[int, NDArray[np.uint64]] = {}

    def views_of(self, places: Sequence[Place], number: int, records: Sequence[Record]) -> list[View]:
        """Drawn by seed, key and number; a policy that mixes reads the keys of the shard first, once."""
        sizes = image_sizes([record.encoded for record in records], [record.where for record in records]).tolist()
        views = []
        for (shard, _), record, (width, height) in zip(places, records, sizes, strict=True):
            keys = None
            if self.policy.mix is not None:
                self._read_keys(shard)
                keys = self._keys[shard]
            try:
                views.append(draw_view(self.policy, self.seed, record.key, number, width, height, keys, record.boxes))
            except ImageError as error:
                raise error.at(record.where) from error
        return views

    def partner_row(self, shard: int, key: int) -> int:
        """Of equal images the first."""
        return self._rows[shard][key]

    def check(self, places: Sequence[Place], records: Sequence[Record]) -> None:
        """Any record will do."""

    def _read_keys(self, shard: int) -> None:
        with self._lock:
            if shard in self._keys:
                return
            rows: dict[int, int] = {}
            for row, record in enumerate(self.source.iter_shard(shard)):
                rows.setdefault(record.key, row)
            self._rows[shard] = rows
            self._keys[shard] = np.array(sorted(rows), np.uint64)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()


class StoredViews:
    """The views of a store; raises StoreError at once where its policy stores none."""

    def __init__(self, store: Store) -> None:
        if not isinstance(store.policy, CropPolicy):
            raise StoreError(
                f"{store.path}: policy {store.policy.name} stores no views to look through; extract with --policy crop"
            )
        self.store = store

    def views_of(self, places: Sequence[Place], number: int, records: Sequence[Record]) -> list[View]:
        """As stored."""
        columns = self.store.gather_columns(places, number)
        return decode_views({name: values for name, values in columns.items() if name in VIEW_COLUMNS})

    def partner_row(self, shard: int, key: int) -> int:
        """By key; StoreError where the shard has no such record."""
        return self.store.find_row(shard, key)

    def check(self, places: Sequence[Place], records: Sequence[Record]) -> None:
        """Key and label must be the store's."""
        check_keys(self.store, places, records)


@dataclass(frozen=True, slots=True)
class Look:
    """A record seen through a view; ``partner`` is there for a mixed view."""

    record: Record
    view: View
    partner: Look | None = None

    def pixels(self, size_px: int, interpolation: Interpolation = "bilinear") -> NDArray[np.uint8]:
        """[size_px, size_px, 3]; raises as ``render_looks``."""
        return render_looks([self], size_px, interpolation)[0]


def render_looks(
    looks: Sequence[Look],
    size_px: int,
    interpolation: Interpolation = "bilinear",
    *,
    out: NDArray[np.uint8] | None = None,
    num_views: int = 1,
) -> NDArray[np.uint8]:
    """Pixels [N, size_px, size_px, 3] of N looks, into ``out`` if given.

    Each ``num_views`` looks in turn are of one record, which is decoded once. Raises ImageError where an image does not
    decode, StoreError where a view is not of its image, with the record's place.
    """
    if out is None:
        out = np.empty((len(looks), size_px, size_px, 3), np.uint8)
    frames = square_frames([look.view.box for look in looks], [look.view.flip for look in looks], size_px)
    records = [look.record for look in looks[::num_views]]
    read_pixels(
        [record.encoded for record in records],
        frames,
        [record.where for record in records],
        out,
        interpolation=interpolation,
        num_frames=num_views,
    )
    partners = [look.partner for look in looks if look.partner is not None]
    partner_pixels = iter(render_looks(partners, size_px, interpolation) if partners else ())
    for index, look in enumerate(looks):
        if not look.view.is_crop:
            out[index] = finish_view(out[index], look.view, None if look.partner is None else next(partner_pixels))
    return out


class Looker:
    """Looks at the records of a source through ``views``; safe to use from several threads, and picklable."""

    def __init__(self, source: RecordSource, views: Views) -> None:
        self.source = source
        self.views = views

    def look(self, shard: int, row: int, number: int) -> Look:
        """View ``number`` of a record; raises as ``look_all``."""
        return self.look_all([(shard, row)], number)[0]

    def look_all(self, places: Sequence[Place], number: int, records: Sequence[Record] | None = None) -> list[Look]:
        """View ``number`` of several records, which may have been read already (and then are not checked again).

        Raises StoreError where record or partner are not those of the views, ImageError where there is no image.
        """
        if records is None:
            records = self.source.read_batch(places)
            self.views.check(places, records)
        views = self.views.views_of(places, number, records)
        partners = self._read_partners(places, number, records, views)
        return [
            Look(record, view, partners.get(index))
            for index, (record, view) in enumerate(zip(records, views, strict=True))
        ]

    def _read_partners(
        self, places: Sequence[Place], number: int, records: Sequence[Record], views: Sequence[View]
    ) -> dict[int, Look]:
        mixes = [(index, view.mix) for index, view in enumerate(views) if view.mix is not None]
        if not mixes:
            return {}
        partner_places = [
            (places[index][0], self.views.partner_row(places[index][0], mix.partner)) for index, mix in mixes
        ]
        partners = self.source.read_batch(partner_places)
        for (index, mix), partner in zip(mixes, partners, strict=True):
            if partner.key != mix.partner:
                raise StoreError(
                    f"{partner.where}: key {partner.key:016x} ({partner.filename}), the mix of {records[index].where} "
                    f"was made with {mix.partner:016x}: the image changed since extraction; extract again"
                )
        self.views.check(partner_places, partners)
        own = self.views.views_of(partner_places, number, partners)
        return {
            index: Look(partner, view.without_mix())
            for (index, _), partner, view in zip(mixes, partners, own, strict=True)
        }
