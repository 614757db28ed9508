"""plan.json and the plans that follow it: immutable files, each with a hash over itself and that of the one before.

    plan.json        the first, put before anything is extracted
    plan.001.json    more views, or records that were added to the data
    plan.002.json    ...

Each name is put once, and the first of several writers wins; so machines that extend a store at once end with one plan.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from teachonce.errors import StoreError
from teachonce.storage.files import open_storage, read_json, write_json
from teachonce.storage.sealed_json import parse_sealed, write_sealed
from teachonce.store import legacy
from teachonce.store.plan import ADVICE, FORMAT_VERSION, RESTORE, Plan

PLAN_NAME = "plan.json"
CONFIG_NAME = "extract.config.json"
"""The options of the call that began the store, for ``extract --config``; no part of the format."""
OTHERS_NOT_HERE = "the others are planned, not begun here (extract makes them, copy with more --views brings them)"
"""Said of views whose files nobody has begun, and of those that a copy of a part left out."""


class SealedPlan(NamedTuple):
    """A plan and the hash that its file ends with."""

    plan: Plan
    seal: str


def plan_file(revision: int) -> str:
    """Name of the plan that follows ``revision`` others."""
    return f"plan.{revision:03d}.json" if revision else PLAN_NAME


def holds_store(path: Path) -> bool:
    """Whether a store was started in this folder."""
    storage = open_storage(path)
    return storage.has(PLAN_NAME) or storage.has(legacy.MANIFEST_NAME)


def check_holds_store(path: Path) -> None:
    """Raise StoreError where there is no such folder, or no store was started in it."""
    if holds_store(path):
        return
    found = f"is not a store (it has no {PLAN_NAME})" if open_storage(path).is_folder() else "no such folder"
    raise StoreError(f"{path}: {found}; expected a store, which extract or import writes; check the path")


def read_plans(path: Path) -> list[SealedPlan]:
    """The plans of a store, in their order; raises StoreError where one is damaged or follows another than it says.

    A store of format 1 or 2 has one, without a hash.
    """
    storage = open_storage(path, StoreError)
    content = storage.find(PLAN_NAME)
    if legacy.is_legacy_plan(storage, content):
        return [SealedPlan(legacy.read_plan(path), "")]
    if content is None:
        check_holds_store(path)
        content = storage.read(PLAN_NAME)  # begun meanwhile
    plans: list[SealedPlan] = []
    while content is not None:
        where = storage.describe(plan_file(len(plans)))
        value, seal = parse_sealed(content, where, StoreError, RESTORE)
        if "follows" not in value and value.get("format_version") == FORMAT_VERSION:
            raise StoreError(f"{where}: object missing required field `follows`; {ADVICE}")
        follows = value.pop("follows", None)
        expected = plans[-1].seal if plans else None
        if follows != expected:
            raise StoreError(f"{where}: follows the plan with hash {follows}, expected {expected}; {ADVICE}")
        plans.append(SealedPlan(Plan.from_json(value, where), seal))
        _check_follows(plans, where)
        name = plan_file(len(plans))
        # Mostly there is none, which a server says faster than it sends the page that says so.
        content = storage.read(name) if storage.has(name) else None
    return plans


def read_plan(path: Path) -> Plan:
    """The latest plan of a store, finished or not; raises StoreError where there is none that can be read."""
    return read_plans(path)[-1].plan


def put_plan(path: Path, plan: Plan, earlier: list[SealedPlan]) -> None:
    """Put a plan behind the earlier ones, where no other process has put one."""
    value: dict[str, Any] = {**plan.to_json(), "follows": earlier[-1].seal if earlier else None}
    write_sealed(open_storage(path), plan_file(len(earlier)), value)


def put_config(path: Path, options: dict[str, Any]) -> None:
    """Keep the options that a store is started with, where no other worker has kept its own."""
    if not open_storage(path).has(CONFIG_NAME):
        write_json(path / CONFIG_NAME, options, overwrite=False)


def read_options(path: Path) -> dict[str, Any]:
    """The options that a store was started with, as JSON has them; {} where nothing says them."""
    return read_json(path / CONFIG_NAME) if open_storage(path).has(CONFIG_NAME) else {}


def resuming_command(path: Path, plan: Plan) -> str:
    """What completes a store, as a phrase behind "run"."""
    if plan.teacher.get("model") == "csv":
        return "the same import command"
    if open_storage(path).has(CONFIG_NAME):
        return "the same extract command"
    return "the command that made it (extract, copy or upgrade)"


def _check_follows(plans: list[SealedPlan], where: str) -> None:
    if len(plans) == 1:
        return
    before, after = plans[-2].plan, plans[-1].plan
    continues = (
        before.identity == after.identity
        and (before.identified, before.num_samples) == (after.identified, after.num_samples)
        and after.view_groups[: len(before.view_groups)] == before.view_groups
        and after.shards[: len(before.shards)] == before.shards
        and after.parts[: len(before.parts)] == before.parts
    )
    if not continues:
        raise StoreError(f"{where}: does not continue the plan before it; {ADVICE}")
