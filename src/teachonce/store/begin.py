"""Beginning a store, or agreeing with the one that is there: the first plan, more views, and data that has grown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from teachonce.errors import PlanMismatchError, StoreError
from teachonce.records.source import describe_shard_changes
from teachonce.storage.files import open_storage
from teachonce.storage.resume import Say, plan_differences
from teachonce.store.manifests import Manifests
from teachonce.store.plan import FORMAT_VERSION, Group, Part, Plan, group_views
from teachonce.store.plan_files import SealedPlan, holds_store, put_plan, read_plans

MAY_DIFFER = frozenset(
    {"format_version", "identity", "view_groups", "teacher.spec", "shards", "parts", "num_samples", "data.shards"}
)
"""More views and records may be added, and the teacher's weights may be elsewhere today: what the teacher is, its
model and the weights' hash say."""

_INPUTS: Mapping[str, Say] = {
    "teacher.weights_sha256": "the teacher's weights (--teacher)",
    "teacher.csv_xxh3": "the CSV files",
    "data.shards": lambda old, new: describe_shard_changes(old["shards"], new["shards"]),
}
"""Fields that say by a hash or a list what a store was started with, and what messages call them."""


class DataToday(Protocol):
    """The data that a store is extended with, which may be other data than its plan was made for."""

    def find_added(self, plan: Plan) -> Sequence[tuple[str, int]]:
        """The shards (name, records) that the data has beyond the plan; raises where it is other data."""

    def check_has_all(self, plan: Plan) -> None:
        """Raise where the data lacks records of the plan: then these cannot get more views."""


def begin_store(path: Path, plan: Plan, views_per_file: int | None, today: DataToday | None = None) -> Plan:
    """Write the plan, or agree with the one that is there, which is followed by another if this one has more views.

    Views that the one that is there lacks are grouped by ``views_per_file``; None: as in ``plan``, whose files are made
    already, and which is refused where the one that is there has the same views in other groups.
    Where the data is another than the latest plan's, ``today`` says what it has beyond it; without it other data is
    refused. Several workers may begin or extend the same store at once: they end with one plan. Raises
    PlanMismatchError naming each field that differs, and StoreError where ``path`` holds something that is not a store.
    """
    if not holds_store(path):
        check_store_folder(path)
        put_plan(path, plan, [])
    while True:
        plans = read_plans(path)
        latest = plans[-1].plan
        _check_agrees(path, latest, plan, knows_data=today is not None)
        if views_per_file is None:
            groups = _continue_groups(path, latest, plan)
        else:
            groups = group_views(plan.num_views, views_per_file, latest.view_groups)
        extended = latest.extend(view_groups=groups)
        has_other_data = plan.data["shards"] != latest.data["shards"]
        lacks_views = extended != latest or Manifests(path, plans).visible()[0] < latest.num_views
        if today is not None and lacks_views and (has_other_data or len(latest.parts) > 1):
            today.check_has_all(latest)
        if has_other_data:
            assert today is not None
            extended = _add_shards(path, plans, extended, plan.data, today.find_added(latest))
        if extended == latest:
            return latest
        put_plan(path, extended, plans)


def _continue_groups(path: Path, old: Plan, new: Plan) -> tuple[Group, ...]:
    """The groups of the longer of two plans; raises PlanMismatchError where it does not begin with the other's."""
    shorter, longer = sorted((old.view_groups, new.view_groups), key=len)
    if longer[: len(shorter)] == shorter:
        return longer
    here, there = next(pair for pair in zip(old.view_groups, new.view_groups, strict=False) if pair[0] != pair[1])
    raise PlanMismatchError(
        f"{path}: has a file of views {here[0]} to {here[1]}, expected one of {there[0]} to {there[1]}: it got views "
        "in other groups meanwhile; choose another --out"
    )


def check_agrees(path: Path, plan: Plan) -> None:
    """Raise PlanMismatchError where a store was started with another plan; views and data aside, which may be
    others."""
    if holds_store(path):
        _check_agrees(path, read_plans(path)[-1].plan, plan, knows_data=True)


def check_store_folder(path: Path, option: str = "--out") -> None:
    """Raise StoreError where ``path``, which was given as ``option``, is neither a store nor a place for one."""
    storage = open_storage(path)
    is_foreign = storage.has()
    if storage.is_folder():
        listing = storage.list_folder()
        is_foreign = any(name[0] != "." for name in (*listing.files, *listing.folders))
    # Another process may begin at the same time, so the plan is checked last.
    if is_foreign and not holds_store(path):
        raise StoreError(f"{path}: exists and is not a store; choose another {option}")


def _check_agrees(path: Path, old: Plan, new: Plan, *, knows_data: bool) -> None:
    if old.format_version != FORMAT_VERSION:
        raise PlanMismatchError(
            f"{path}: a store of format version {old.format_version}, this teachonce writes {FORMAT_VERSION}: it "
            f"can be read and trained from, but not extended; 'teachonce upgrade {path}' converts it to format "
            f"{FORMAT_VERSION}"
        )
    # Names that the data did not have when the store was started, or their number, say nothing against it: how many
    # classes the teacher was mapped to is another field.
    names = {"class_names"} if old.class_names is None or new.class_names is None else set()
    if None in (old.data.get("num_classes"), new.data.get("num_classes")):
        names.add("data.num_classes")
    may_differ = MAY_DIFFER | names | ({"data.format"} if knows_data else set())
    if not knows_data:
        may_differ -= {"data.shards"}
    differences = plan_differences(old.to_json(), new.to_json(), frozenset(may_differ), hashes=_INPUTS)
    if differences:
        raise PlanMismatchError(
            f"{path}: was started with a different plan: {'; '.join(differences)}; choose another --out, or the "
            "same settings"
        )


def _add_shards(
    path: Path, plans: list[SealedPlan], plan: Plan, data: dict[str, Any], added: Sequence[tuple[str, int]]
) -> Plan:
    if not added:
        return plan
    part = Part(len(plan.shards), Manifests(path, plans).visible()[0])
    number = len(plan.parts)
    shards = tuple((f"{name}.p{number:03d}", count) for name, count in added)
    taken = {name for name, _ in plan.shards}
    for name, _ in shards:
        if name in taken:
            raise PlanMismatchError(
                f"{path}: the records added to shard {name} would need the name of an existing shard of the store; "
                "rename the shards of the data"
            )
    return plan.extend(data=data, shards=plan.shards + shards, parts=(*plan.parts, part))
