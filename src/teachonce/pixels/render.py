"""The single path from bytes to pixels: records read with their views, and views rendered at any size.

Teacher, student, evaluation and audit all read through a ``ViewReader`` and render with
``render_views``. A crop is rendered at the size and with the filter of the model; ``CENTER`` through its complete
evaluation preprocessing. A mixed view takes a second record: its partner is read and checked by key too, and is seen
through its own view of the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ImageError, StoreError
from teachonce.on_demand import OnDemand
from teachonce.pixels.apply_view import finish_view
from teachonce.pixels.decode import decode_record
from teachonce.pixels.frames import FRAME, image_sizes, read_pixels, square_frames
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.pixels.view_sources import ViewSource
from teachonce.records.source import Location, Record, RecordSource, all_encoded, all_places
from teachonce.store.join import JoinedRecords, StoreJoin, join_records
from teachonce.views.columns import Crops
from teachonce.views.view import CENTER, View


@dataclass(frozen=True, slots=True)
class RecordView:
    """A record with one of its views; ``partner`` is there for a mixed one."""

    record: Record
    view: View
    partner: RecordView | None = None


class RecordViews(OnDemand[RecordView]):
    """One view of each record of a batch, with the mixed ones' ``partners`` by position; each on demand."""

    def __init__(
        self, records: Sequence[Record], views: Sequence[View], partners: Mapping[int, RecordView] | None = None
    ) -> None:
        assert len(records) == len(views)
        super().__init__(len(records))
        self.records = records
        self.views = views
        self.partners = partners or {}

    def _item(self, index: int) -> RecordView:
        return RecordView(self.records[index], self.views[index], self.partners.get(index))

    @classmethod
    def of(cls, items: Sequence[RecordView]) -> RecordViews:
        """The same views."""
        if isinstance(items, cls):
            return items
        partners = {index: item.partner for index, item in enumerate(items) if item.partner is not None}
        return cls([item.record for item in items], [item.view for item in items], partners)


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

    def read(self, locations: Sequence[Location], number: int) -> RecordViews:
        """View ``number`` of several records; raises as ``join`` and ``views_of``."""
        return self.views_of(self.join(locations, self.records.read_batch(locations)), number)

    def views_of(self, joined: JoinedRecords, number: int) -> RecordViews:
        """View ``number`` of records that were read.

        Raises StoreError where a partner is not that of its view, ImageError where there is no image.
        """
        views = self.views.views_of(joined, number)
        partners = self._read_partners(joined, number, views) if self.views.has_mix else {}
        return RecordViews(joined.records, views, partners)

    def _read_partners(self, joined: JoinedRecords, number: int, views: Sequence[View]) -> dict[int, RecordView]:
        """The partners by position in the records."""
        mixes = [(index, view.mix) for index, view in enumerate(views) if view.mix is not None]
        if not mixes:
            return {}
        places = all_places(joined.records)
        locations = [
            self.views.locate_partner(joined.locations[index], mix.partner, places[index], by_position=True)
            for index, mix in mixes
        ]
        partners = list(self.records.read_batch(locations))
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
    seen = RecordViews.of(record_views)
    if not preprocessing.antialias:
        assert out is None and all(view == CENTER for view in seen.views), "crops are antialiased"
        return _render_unrounded(seen.records, preprocessing)
    if out is None:
        out = np.empty((len(seen), preprocessing.size_px, preprocessing.size_px, 3), np.uint8)
    records = seen.records if num_views == 1 else seen.records[::num_views]
    read_pixels(
        all_encoded(records),
        _frames(seen, preprocessing),
        all_places(records),
        out,
        interpolation=preprocessing.interpolation,
        num_frames=num_views,
    )
    if isinstance(seen.views, Crops):
        return out
    partners = dict(sorted(seen.partners.items()))
    partner_pixels = iter(render_views(list(partners.values()), preprocessing) if partners else ())
    for index, view in enumerate(seen.views):
        if not view.is_crop:
            out[index] = finish_view(out[index], view, next(partner_pixels) if index in partners else None)
    return out


def render_center(records: Sequence[Record], preprocessing: Preprocessing) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Records as a model's evaluation sees them: ``render_views`` of ``CENTER``."""
    return render_views(RecordViews(records, [CENTER] * len(records)), preprocessing)


def _frames(seen: RecordViews, preprocessing: Preprocessing) -> NDArray[Any]:
    views, records = seen.views, seen.records
    if isinstance(views, Crops):
        return square_frames(views.boxes, views.flips, preprocessing.size_px)
    boxes = [view.box for view in views]
    if None not in boxes:
        return square_frames(boxes, [view.flip for view in views], preprocessing.size_px)
    assert all(box is None for box in boxes), "views of one policy"
    frames = np.zeros(len(records), FRAME)
    sizes = image_sizes(all_encoded(records), all_places(records)).tolist()
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
