"""Which view an epoch shows: two orders are the same where every epoch agrees, and not where the first ones do."""

from __future__ import annotations

import itertools

from teachonce.views.order import ViewOrder


def test_orders_are_the_same_where_every_epoch_agrees() -> None:
    orders = [
        ViewOrder(num_views=num_views, kind=kind, seed=seed)
        for num_views in (1, 2, 3)
        for kind in ("sequential", "permuted")
        for seed in (0, 1, 2)
    ]
    for one, other in itertools.product(orders, repeat=2):
        # Two that differ agree in some 60 epochs once in 2^30 pairs, where they have two views.
        agrees = all(one.number_of(epoch) == other.number_of(epoch) for epoch in range(60))
        assert one.is_same(other) == agrees


def test_a_permuted_order_that_begins_one_by_one_is_another() -> None:
    one_by_one, permuted = ViewOrder(num_views=2), ViewOrder(num_views=2, kind="permuted", seed=1)
    assert [permuted.number_of(epoch) for epoch in range(6)] == [0, 1, 0, 1, 0, 1]
    assert not permuted.is_same(one_by_one) and permuted.number_of(6) == 1
