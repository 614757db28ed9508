"""Units of extraction: one shard x one group of views, which of them are missing or made, and bundles of them.

A unit is made complete or not at all (``extractor``); a job is a bundle of units, so that teacher batches are full
whatever the size of a shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from teachonce.records.source import RecordSource
from teachonce.storage.files import open_storage
from teachonce.store.manifests import missing_parts
from teachonce.store.plan import Plan, records_file

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


class Preparation(NamedTuple):
    """What there is before the first unit; crosses from a cluster's worker to the program that leads the work."""

    plan: Plan
    source: RecordSource
    """The records in the shards and rows of the plan."""
    missing: set[Unit]
    device: str
    """The teacher's."""


@dataclass(frozen=True)
class UnitCounts:
    """What became of units that were to be made."""

    num_made: int = 0
    num_skipped: int = 0
    """Another worker had made them when it was their turn."""
    num_twice: int = 0
    """Another worker made them meanwhile, so that what was made here is of no use."""

    def __add__(self, other: UnitCounts) -> UnitCounts:
        return UnitCounts(
            self.num_made + other.num_made,
            self.num_skipped + other.num_skipped,
            self.num_twice + other.num_twice,
        )


def all_units(plan: Plan) -> list[Unit]:
    """The units of a plan, views first: all shards of the first group of views, then of the next."""
    return [Unit(shard, group) for group in plan.view_groups for shard in range(len(plan.shards))]


def missing_units(path: Path, plan: Plan) -> set[Unit]:
    """The units whose files are not all there."""
    return {Unit(shard, group) for shard, group in missing_parts(path, plan)}


def describe_units(plan: Plan, units: Sequence[Unit]) -> list[str]:
    """Units as text: train-00003-of-01024 views 0 to 9."""
    return [f"{plan.shards[unit.shard][0]} views {unit.group[0]} to {unit.group[1]}" for unit in units]


def is_made(path: Path, plan: Plan, unit: Unit) -> bool:
    """Whether all files of one unit are there by now; the folder is not listed."""
    storage, (name, _) = open_storage(path), plan.shards[unit.shard]
    # The views are written last: without them one question is enough.
    return all(storage.has(file) for file in (*reversed(plan.group_files(name, unit.group)), records_file(name)))


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
