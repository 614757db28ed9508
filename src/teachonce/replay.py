"""Looking at a record through one of its views: whoever looks, teacher, student or auditor, looks through this.

A view is either drawn (``DrawnViews``: the teacher's extraction, an online teacher) or read from a store
(``StoredViews``: the student, ``verify``, a second teacher over the same views). Both say, for (shard, row, view
number), what was or is to be done; ``look`` decodes the images that it takes, and ``Look.pixels`` gives the pixels at
any size. A mixed view takes a second record: its partner is read, checked by key and decoded too, and is seen through
its own view of the same number.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teachonce.errors import ImageError, StoreError, TeachonceError
from teachonce.images import Interpolation
from teachonce.join import check_key, decode_record
from teachonce.policies import CropPolicy, draw_view
from teachonce.records import Record, RecordSource
from teachonce.store import Store
from teachonce.views import View, apply_view


class Views(Protocol):
    """Where views come from."""

    def view_of(self, shard: int, row: int, number: int, record: Record, image: Image.Image) -> View:
        """View ``number`` of a record, with its mix if it has one."""

    def partner_row(self, shard: int, key: int) -> int:
        """The row, in this shard, of a mix's partner."""

    def check(self, shard: int, row: int, record: Record) -> None:
        """Raise StoreError where this is not the record that the views are of."""


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

    def view_of(self, shard: int, row: int, number: int, record: Record, image: Image.Image) -> View:
        """Drawn by seed, key and number; a policy that mixes reads the keys of the shard first, once."""
        keys = None
        if self.policy.mix is not None:
            self._read_keys(shard)
            keys = self._keys[shard]
        return draw_view(self.policy, self.seed, record.key, number, image.width, image.height, keys, record.boxes)

    def partner_row(self, shard: int, key: int) -> int:
        """Of equal images the first."""
        return self._rows[shard][key]

    def check(self, shard: int, row: int, record: Record) -> None:
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

    def view_of(self, shard: int, row: int, number: int, record: Record, image: Image.Image) -> View:
        """As stored."""
        return self.store.read_views(shard, number, [row])[0]

    def partner_row(self, shard: int, key: int) -> int:
        """By key; StoreError where the shard has no such record."""
        return self.store.find_row(shard, key)

    def check(self, shard: int, row: int, record: Record) -> None:
        """Key and label must be the store's."""
        check_key(self.store, shard, row, record)


@dataclass(frozen=True)
class Look:
    """A record seen through a view, decoded; ``partner`` is there for a mixed view."""

    record: Record
    image: Image.Image
    view: View
    partner: Look | None = None

    def pixels(self, size_px: int, interpolation: Interpolation = "bilinear") -> NDArray[np.uint8]:
        """[size_px, size_px, 3]; raises StoreError, with the record's place, where the view is not of this image."""
        partner_pixels = None if self.partner is None else self.partner.pixels(size_px, interpolation)
        try:
            return apply_view(self.image, self.view, size_px, interpolation, partner_pixels)
        except TeachonceError as error:
            raise error.at(self.record.where) from error


class Looker:
    """Looks at the records of a source through ``views``; safe to use from several threads, and picklable."""

    def __init__(self, source: RecordSource, views: Views) -> None:
        self.source = source
        self.views = views

    def look(
        self, shard: int, row: int, number: int, record: Record | None = None, image: Image.Image | None = None
    ) -> Look:
        """View ``number`` of a record, which may have been read and decoded already (and then is not checked again).

        Raises StoreError where record or partner are not those of the views, ImageError where they do not decode.
        """
        if record is None:
            record = self.source.read_record(shard, row)
            self.views.check(shard, row, record)
        if image is None:
            image = decode_record(record)
        try:
            view = self.views.view_of(shard, row, number, record, image)
        except ImageError as error:
            raise error.at(record.where) from error
        if view.mix is None:
            return Look(record, image, view)
        partner_row = self.views.partner_row(shard, view.mix.partner)
        partner = self.source.read_record(shard, partner_row)
        if partner.key != view.mix.partner:
            raise StoreError(
                f"{partner.where}: key {partner.key:016x} ({partner.filename}), the mix of {record.where} was made "
                f"with {view.mix.partner:016x}: the image changed since extraction; extract again"
            )
        self.views.check(shard, partner_row, partner)
        partner_image = decode_record(partner)
        own = self.views.view_of(shard, partner_row, number, partner, partner_image).without_mix()
        return Look(record, image, view, Look(partner, partner_image, own))
