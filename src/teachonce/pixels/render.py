"""The single path from bytes to pixels: records read with their views, and views rendered at any size.

Teacher, student, evaluation and audit all read through a ``ViewReader`` and render with
``render_views``. A crop is rendered at the size and with the filter of the model; ``CENTER`` through its complete
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
from teachonce.store.join import JoinedRecords, StoreJoin, join_records
from teachonce.views.view import CENTER, View


@dataclass(frozen=True, slots=True)
class RecordView:
    """A record with one of its views; ``partner`` is there for a mixed one."""

    record: Record
    view: View
    partner: RecordView | None = None


class ViewReader:
    """Reads records together with their ``views``; safe to use from several threads, and picklable.

    Records must be in the views' stores, and in those of ``joins``, such as those of the logits beside the views.
    """

    def __init__(self, records: RecordSource, views: ViewSource, joins: Sequence[StoreJoin] = ()) -> None:
        self.records = records
        self.views = views
        self.joins = list({id(join.store): join for join in (*views.join(records), *joins)}.values())

    def join(self, locations: Sequence[Location], records: Sequence[Record]) -> JoinedRecords:
        """Where the stores have records that were read; raises StoreError for one that a store does not have."""
        return join_records(self.joins, locations, records)

    def fetch(self, shard: int, number: int) -> None:
        """Open the blocks of one view that the stores have of a shard, where their shards are those of the records."""
        for join in self.joins:
            join.fetch(shard, number)

    def read(self, locations: Sequence[Location], number: int) -> list[RecordView]:
        """View ``number`` of several records; raises as ``join`` and ``views_of``."""
        return self.views_of(self.join(locations, self.records.read_batch(locations)), number)

    def views_of(self, joined: JoinedRecords, number: int) -> list[RecordView]:
        """View ``number`` of records that were read.

        Raises StoreError where a partner is not that of its view, ImageError where there is no image.
        """
        views = self.views.views_of(joined, number)
        partners = self._read_partners(joined, number, views) if self.views.has_mix else {}
        return [
            RecordView(record, view, partners.get(index))
            for index, (record, view) in enumerate(zip(joined.records, views, strict=True))
        ]

    def _read_partners(self, joined: JoinedRecords, number: int, views: Sequence[View]) -> dict[int, RecordView]:
        """The partners by position in the records."""
        mixes = [(index, view.mix) for index, view in enumerate(views) if view.mix is not None]
        if not mixes:
            return {}
        locations = [
            self.views.locate_partner(
                joined.locations[index], mix.partner, joined.records[index].where, by_position=True
            )
            for index, mix in mixes
        ]
        partners = self.records.read_batch(locations)
        for at, (index, mix) in enumerate(mixes):
            if partners[at].key != mix.partner:
                where = joined.records[index].where
                locations[at] = self.views.locate_partner(joined.locations[index], mix.partner, where)
                partners[at] = self.records.read_record(*locations[at])
        for (index, mix), partner in zip(mixes, partners, strict=True):
            if partner.key != mix.partner:
                raise StoreError(
                    f"{partner.where}: key {partner.key:016x} ({partner.filename}), the mix of "
                    f"{joined.records[index].where} was made with key {mix.partner:016x}: the image has changed "
                    "since extraction; extract again"
                )
        own = self.views.views_of(self.join(locations, partners), number)
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
