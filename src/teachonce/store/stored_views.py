"""The views of a store as a source of views: what the student replays, ``verify`` audits, and a second teacher sees."""

from __future__ import annotations

from collections.abc import Sequence

from teachonce.errors import ConfigError
from teachonce.records.source import Location, RecordSource
from teachonce.store.join import JoinedRecords, StoreJoin
from teachonce.store.store import Store
from teachonce.terminal import plural
from teachonce.views.columns import decode_views
from teachonce.views.order import ViewOrder
from teachonce.views.view import View


def choose_order(order: ViewOrder | None, num_views: int, where: object) -> ViewOrder:
    """The order that was given, or that of all views one by one; ConfigError for one of more views than there are.

    Now, and not in the epoch that asks for the first of them.
    """
    if order is not None and order.num_views > num_views:
        raise ConfigError(
            f"{where}: an order of {plural(order.num_views, 'view')}, expected at most {num_views}, which there are; "
            f"give ViewOrder(num_views={num_views}, ...)"
        )
    return order or ViewOrder(num_views=num_views)


class StoredViews:
    """The views that a store's teacher was shown; ``order`` says which of them an epoch shows (default: one by one).

    Raises ConfigError for an order of views that the store does not have.
    """

    def __init__(self, store: Store, order: ViewOrder | None = None) -> None:
        self.store = store
        self.order = choose_order(order, store.num_views, store.path)
        self.is_replay = store.policy.is_random
        self.has_mix = store.policy.mix is not None
        self._join: StoreJoin | None = None

    @property
    def stores(self) -> list[Store]:
        """The store."""
        return [self.store]

    def join(self, records: RecordSource) -> list[StoreJoin]:
        """The store with the records; raises StoreError unless it knows them."""
        if self._join is None:
            self._join = StoreJoin(self.store, records)
        elif self._join.source is not records:
            raise ConfigError(
                f"{self.store.path}: its views are already joined with other records; create one StoredViews per "
                "dataset"
            )
        return [self._join]

    def number_of(self, epoch: int) -> int:
        """By the order."""
        return self.order.number_of(epoch)

    def views_of(self, joined: JoinedRecords, number: int) -> Sequence[View]:
        """As stored."""
        return decode_views(joined.columns_in(self.store, number), len(joined.records))

    def locate_partner(self, location: Location, key: int, where: str, *, by_position: bool = False) -> Location:
        """By key, through the index; StoreError where the data has no such record."""
        assert self._join is not None, "joined with the records"
        return self._join.locate_key(key, where, by_position=by_position)
