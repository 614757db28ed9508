"""The views of a store as a source of views: what the student replays, ``verify`` audits, and a second teacher sees."""

from __future__ import annotations

from collections.abc import Sequence

from teachonce.records.source import Location, Record, RecordSource
from teachonce.store.checks import check_same_data
from teachonce.store.store import Store
from teachonce.views.columns import VIEW_COLUMNS, decode_views
from teachonce.views.order import ViewOrder
from teachonce.views.view import View


class StoredViews:
    """The views that a store's teacher was shown; ``order`` says which of them an epoch shows (default: one by one)."""

    def __init__(self, store: Store, order: ViewOrder | None = None) -> None:
        self.store = store
        self.order = order or ViewOrder(num_views=store.num_views)
        self.is_replay = store.policy.is_random
        self.has_mix = store.policy.mix is not None

    @property
    def stores(self) -> list[Store]:
        """The store."""
        return [self.store]

    def check_source(self, records: RecordSource) -> None:
        """Raise StoreError unless the store was made of these records."""
        check_same_data(self.store, records.describe())

    def number_of(self, epoch: int) -> int:
        """By the order."""
        return self.order.number_of(epoch)

    def views_of(self, locations: Sequence[Location], number: int, records: Sequence[Record]) -> list[View]:
        """As stored."""
        columns = self.store.gather_columns(locations, number)
        return decode_views({name: columns[name] for name in VIEW_COLUMNS & columns.keys()}, len(locations))

    def partner_row(self, shard: int, key: int) -> int:
        """By key; StoreError where the shard has no such record."""
        return self.store.find_row(shard, key)
