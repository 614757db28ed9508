"""Units of extraction: one shard x one group of views, which of them are missing, and bundles of them.

A unit is made whole or not at all (``extractor``); a job is a bundle of units, so that teacher batches are full
whatever the size of a shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from teachonce.store.manifests import missing_parts
from teachonce.store.plan import Plan

BUNDLE_BATCHES = 32
"""Teacher batches that a bundle of small units has at least: filling up its last one costs 1/64 on average."""


@dataclass(frozen=True)
class Unit:
    """One shard and one group of views: what is made or not made."""

    shard: int
    group: tuple[int, int]

    @property
    def num_views(self) -> int:
        """Views of the group."""
        return len(self.view_numbers)

    @property
    def view_numbers(self) -> range:
        """The numbers of the views."""
        return range(self.group[0], self.group[1] + 1)


def all_units(plan: Plan) -> list[Unit]:
    """The units of a plan, views first: all shards of the first group of views, then of the next."""
    return [Unit(shard, group) for group in plan.view_groups for shard in range(len(plan.shards))]


def missing_units(path: Path, plan: Plan) -> set[Unit]:
    """The units whose files are not all there."""
    return {Unit(shard, group) for shard, group in missing_parts(path, plan)}


def describe_units(plan: Plan, units: Sequence[Unit]) -> list[str]:
    """Units for people: train-00003-of-01024 views 0 to 9."""
    return [f"{plan.shards[unit.shard][0]} views {unit.group[0]} to {unit.group[1]}" for unit in units]


def bundle_units(plan: Plan, units: Sequence[Unit], batch_size: int) -> list[tuple[Unit, ...]]:
    """Units in bundles of one group of views each, none of fewer than ``BUNDLE_BATCHES`` batches if that can be."""
    sizes = [num_records for _, num_records in plan.shards]
    of_group: dict[tuple[int, int], list[Unit]] = {}
    for unit in units:
        of_group.setdefault(unit.group, []).append(unit)
    bundles: list[tuple[Unit, ...]] = []
    for group in plan.view_groups:
        bundle: list[Unit] = []
        num_rows = 0
        for unit in of_group.get(group, ()):
            bundle.append(unit)
            num_rows += sizes[unit.shard] * unit.num_views
            if num_rows >= BUNDLE_BATCHES * batch_size:
                bundles.append(tuple(bundle))
                bundle, num_rows = [], 0
        if bundle:
            bundles.append(tuple(bundle))
    return bundles
