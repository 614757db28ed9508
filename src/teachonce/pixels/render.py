"""The one way from bytes to pixels: records read with their views, and views rendered at any size.

Teacher, student, evaluation and audit all read through a ``ViewReader`` and render with
``render_views``. A crop is rendered at the size and with the filter of the model; ``CENTER`` through its whole
evaluation preprocessing. A mixed view takes a second record: its partner is read and checked by key too, and is seen
through its own view of the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ImageError, StoreError
from teachonce.pixels.apply_view import finish_view
from teachonce.pixels.decode import decode_record
from teachonce.pixels.frames import FRAME, image_sizes, read_pixels, square_frames
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.view_sources import ViewSource
from teachonce.records.source import Location, Record, RecordSource
from teachonce.store.checks import check_keys
from teachonce.store.store import Store
from teachonce.views.view import CENTER, View


@dataclass(frozen=True, slots=True)
class RecordView:
    """A record with one of its views; ``partner`` is there for a mixed one."""

    record: Record
    view: View
    partner: RecordView | None = None


class ViewReader:
    """Reads records together with their ``views``; safe to use from several threads, and picklable.

    Records must be those of the views' stores, and of ``stores``, such as those of the logits beside the views.
    """

    def __init__(self, records: RecordSource, views: ViewSource, stores: Sequence[Store] = ()) -> None:
        self.records = records
        self.views = views
        self._stores = list({id(store): store for store in (*views.stores, *stores)}.values())

    def check(self, locations: Sequence[Location], records: Sequence[Record]) -> None:
        """Raise StoreError for a record that is not the one which a store has there."""
        for store in self._stores:
            check_keys(store, locations, records)

    def read(
        self, locations: Sequence[Location], number: int, records: Sequence[Record] | None = None
    ) -> list[RecordView]:
        """View ``number`` of several records, which may have been read, and then are ``check``ed by who read them.

        Raises StoreError where record or partner are not those of the views, ImageError where there is no image.
        """
        if records is None:
            records = self.records.read_batch(locations)
            self.check(locations, records)
        views = self.views.views_of(locations, number, records)
        partners = self._read_partners(locations, number, records, views) if self.views.has_mix else {}
        return [
            RecordView(record, view, partners.get(index))
            for index, (record, view) in enumerate(zip(records, views, strict=True))
        ]

    def _read_partners(
        self, locations: Sequence[Location], number: int, records: Sequence[Record], views: Sequence[View]
    ) -> dict[int, RecordView]:
        """The partners by position in ``records``."""
        mixes = [(index, view.mix) for index, view in enumerate(views) if view.mix is not None]
        if not mixes:
            return {}
        partner_locations = [
            (locations[index][0], self.views.partner_row(locations[index][0], mix.partner)) for index, mix in mixes
        ]
        partners = self.records.read_batch(partner_locations)
        for (index, mix), partner in zip(mixes, partners, strict=True):
            if partner.key != mix.partner:
                raise StoreError(
                    f"{partner.where}: key {partner.key:016x} ({partner.filename}), the mix of {records[index].where} "
                    f"was made with {mix.partner:016x}: the image changed since extraction; extract again"
                )
        self.check(partner_locations, partners)
        own = self.views.views_of(partner_locations, number, partners)
        return {
            index: RecordView(partner, view.without_mix())
            for (index, _), partner, view in zip(mixes, partners, own, strict=True)
        }


def render_views(
    record_views: Sequence[RecordView],
    preprocessing: Preprocessing,
    *,
    out: NDArray[np.uint8] | None = None,
    num_views: int = 1,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Pixels [N, size_px, size_px, 3] of N record views as ``preprocessing`` wants them, into ``out`` if given.

    uint8; float32 in 0..255 where nothing rounds them (``CENTER`` without antialiasing). Of ``preprocessing`` a crop
    takes size and filter. Each ``num_views`` items in turn are of one record, which is decoded once. Raises ImageError
    where an image does not decode, StoreError where a view is not of its image, with the record's place.
    """
    if not preprocessing.antialias:
        assert out is None and all(item.view == CENTER for item in record_views), "crops are antialiased"
        return _render_unrounded([item.record for item in record_views], preprocessing)
    if out is None:
        out = np.empty((len(record_views), preprocessing.size_px, preprocessing.size_px, 3), np.uint8)
    records = [item.record for item in record_views[::num_views]]
    read_pixels(
        [record.encoded for record in records],
        _frames(record_views, preprocessing),
        [record.where for record in records],
        out,
        interpolation=preprocessing.interpolation,
        num_frames=num_views,
    )
    partners = [item.partner for item in record_views if item.partner is not None]
    partner_pixels = iter(render_views(partners, preprocessing) if partners else ())
    for index, item in enumerate(record_views):
        if not item.view.is_crop:
            out[index] = finish_view(out[index], item.view, None if item.partner is None else next(partner_pixels))
    return out


def render_center(records: Sequence[Record], preprocessing: Preprocessing) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Records as a model's evaluation sees them: ``render_views`` of ``CENTER``."""
    return render_views([RecordView(record, CENTER) for record in records], preprocessing)


def _frames(record_views: Sequence[RecordView], preprocessing: Preprocessing) -> NDArray[Any]:
    boxes = [item.view.box for item in record_views]
    if None not in boxes:
        return square_frames(boxes, [item.view.flip for item in record_views], preprocessing.size_px)
    assert all(box is None for box in boxes), "views of one policy"
    records = [item.record for item in record_views]
    frames = np.zeros(len(records), FRAME)
    sizes = image_sizes([record.encoded for record in records], [record.where for record in records]).tolist()
    for index, (width, height) in enumerate(sizes):
        try:
            frames["box"][index], frames["resized"][index], frames["window"][index] = preprocessing.frame(width, height)
        except ImageError as error:
            raise error.at(records[index].where) from error
    return frames


def _render_unrounded(records: Sequence[Record], preprocessing: Preprocessing) -> NDArray[np.float32]:
    pixels = []
    for record in records:
        try:
            pixels.append(preprocessing.apply(decode_record(record)))
        except ImageError as error:
            raise error.at(record.where) from error
    return np.stack(pixels)
