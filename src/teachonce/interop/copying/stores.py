"""Copying a store: what its manifests list, each file against its hashes; manifests last.

Of a part of the views (``--views 0:10``) the manifests of the later groups stay behind: readers see the views whose
manifests are there, and the same copy with more views adds to it. Of a part of the shards (``--shards 0:100``) a plan
is made that has these shards alone: a store of its own, of the same identity, whose view files are the source's byte
for byte and whose manifests are made of their heads as always, then compared with the source's.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from teachonce.engine.progress import phase, progress
from teachonce.errors import ConfigError, PlanMismatchError, StoreError
from teachonce.interop.copying.transfer import ArrowItem, Copied, CopyJob, Item, sizes_of, sum_up
from teachonce.storage.block_file import FileEntry
from teachonce.storage.files import open_storage
from teachonce.storage.remote.file_index import ListedFile
from teachonce.storage.sealed_json import sealed_bytes
from teachonce.storage.storage import Storage
from teachonce.store import legacy
from teachonce.store.begin import check_store_folder
from teachonce.store.card import copy_card
from teachonce.store.manifests import Manifests, finalize_store, manifest_name
from teachonce.store.plan import Group, Part, Plan, records_file
from teachonce.store.plan_files import CONFIG_NAME, SealedPlan, plan_file, read_plans
from teachonce.store.store import Store
from teachonce.terminal import plural


class _Part(NamedTuple):
    """What is copied of a store of format 3."""

    plans: list[SealedPlan]
    """Those of the source that count, as they are written at the target."""
    contents: list[bytes]
    """Their bytes."""
    entries: dict[str, FileEntry]
    """Of the shards' files, and of the indices that are copied as they are."""
    manifests: list[str]
    """That are copied as they are, in order; none where the target's own are made."""
    num_views: int
    num_records: int

    def listed(self) -> list[tuple[int, Group | None]]:
        """Part and group of each manifest that the target has in the end."""
        plan = self.plans[-1].plan
        groups = [group for group in plan.view_groups if group[1] < self.num_views]
        return [(number, group) for group in (None, *groups) for number in range(len(plan.parts))]


def copy_store(job: CopyJob) -> Copied:
    """Copy a store, or a part of it; raises StoreError for a damaged file or an unfinished store.

    ConfigError for a part that cannot be a store, PlanMismatchError where another store is at the target.
    """
    check_store_folder(job.target, "TARGET")
    if legacy.is_legacy(job.source):
        return _copy_legacy(job)
    with phase("copy", "listing the files"):
        part = _select(job)
    source, target = open_storage(job.source, StoreError), open_storage(job.target, StoreError)
    _put_plans(job.target, part)
    _put_options(source, target)
    own = [manifest_name(number, group) for number, group in part.listed()]
    present = sizes_of(target, [*part.entries, *own])
    listed = _check_manifests(job, part, [name for name in own if name in present])
    items = [
        ArrowItem(name=name, num_bytes=entry.num_bytes, entry=entry, may_replace=name in listed)
        for name, entry in part.entries.items()
    ]
    with progress("copy", sum(item.num_bytes for item in items), unit="bytes") as advance:
        moved = job.mover(source, target, advance).move_all(items, present)
    for name in part.manifests:
        if name not in present:
            _put_same(source.read(name), target, name)
    if not part.manifests:
        finalize_store(job.target)
        _compare_entries(job.target, part)
    target.remove_temporaries()
    copy_card(job.source, job.target)
    num_views = Store(job.target).num_views
    if num_views < part.num_views:
        raise StoreError(
            f"{job.target}: {num_views} views are complete, expected {part.num_views}: files were removed meanwhile"
        )
    return sum_up(f"store of {plural(part.num_records, 'record')} x {plural(part.num_views, 'view')}", moved)


def _select(job: CopyJob) -> _Part:
    """Plans, manifests and files of what is requested; every one of them is checked here by its own hash."""
    store = Store(job.source)
    plans = read_plans(job.source)  # after it: another process may be extending it
    manifests = Manifests(job.source, plans)
    num_views = _choose_views(job, store)
    chosen = _choose_shards(job, store)
    groups = [group for group in store.plan.view_groups if group[1] < num_views]
    parts = range(store.num_parts)
    kept = {store.shards[shard][0] for shard in chosen}
    entries: dict[str, FileEntry] = {}
    for part in parts:
        names = [store.shards[shard][0] for shard in store.plan.part_shards(part)]
        if not kept.intersection(names):
            continue
        for group in (None, *groups):
            files = manifests.read(part, group).content.files
            for name in names:
                if name in kept:
                    own = [records_file(name)] if group is None else store.plan.group_files(name, group)
                    entries |= {file: files[file] for file in own}
            if group is None and job.shards is None:
                entries |= {name: entry for name, entry in files.items() if name not in entries}
    num_records = sum(store.shards[shard][1] for shard in chosen)
    if job.shards is not None:
        own_plans, contents = _restrict_plans(plans, kept)
        return _Part(own_plans, contents, entries, [], num_views, num_records)
    storage = open_storage(job.source, StoreError)
    contents = [storage.read(plan_file(number)) for number in range(len(plans))]
    names = [manifest_name(part, group) for group in (None, *groups) for part in parts]
    return _Part(plans, contents, entries, names, num_views, num_records)


def _choose_views(job: CopyJob, store: Store) -> int:
    if job.views is None:
        return store.num_views
    ends = [group[1] + 1 for group in store.plan.view_groups if group[1] < store.num_views]
    if job.views.first != 0 or job.views.end not in ends:
        possible = ", ".join(f"0:{end}" for end in ends)
        raise ConfigError(
            f"--views {job.views}: a store has views from 0 on, several per file: {job.source} can be copied with "
            f"--views {possible}"
        )
    chosen = set(_choose_shards(job, store))
    parts = [
        part for number, part in enumerate(store.plan.parts) if chosen.intersection(store.plan.part_shards(number))
    ]
    # The first of them becomes part 0, which needs none.
    needed = max((part.min_views for part in (parts if job.shards is None else parts[1:])), default=0)
    if needed > job.views.end:
        raise ConfigError(
            f"--views {job.views}: records that were added to {job.source} later have at least {needed} views; "
            f"give --views 0:{needed} or more"
        )
    return job.views.end


def _choose_shards(job: CopyJob, store: Store) -> range:
    if job.shards is None:
        return range(len(store.shards))
    if not 0 <= job.shards.first < job.shards.end <= len(store.shards):
        raise ConfigError(
            f"--shards {job.shards}: expected a part of 0:{len(store.shards)}, the shards of {job.source}"
        )
    return range(job.shards.first, job.shards.end)


def _restrict_plans(plans: list[SealedPlan], kept: set[str]) -> tuple[list[SealedPlan], list[bytes]]:
    """The chain of plans with these shards alone, from the first plan on that has any of them."""
    found: list[SealedPlan] = []
    contents: list[bytes] = []
    for plan, _ in plans:
        if not any(name in kept for name, _ in plan.shards):
            continue
        own = _restrict(plan, kept)
        content = sealed_bytes({**own.to_json(), "follows": found[-1].seal if found else None})
        contents.append(content)
        found.append(SealedPlan(own, content[-len('"\n}\n') - 32 : -len('"\n}\n')].decode()))
    return found, contents


def _restrict(plan: Plan, kept: set[str]) -> Plan:
    shards: list[tuple[str, int]] = []
    parts: list[Part] = []
    for number, part in enumerate(plan.parts):
        own = [plan.shards[shard] for shard in plan.part_shards(number) if plan.shards[shard][0] in kept]
        if own:
            parts.append(Part(len(shards), part.min_views) if parts else Part(0, 0))
            shards += own
    described = {name: (name, count, num_bytes) for name, count, num_bytes in plan.data["shards"]}
    # Of data that has grown since, the shards are others than the store's: then their bytes are not known.
    own_data = [
        described[name] if name in described and described[name][1] == count else (name, count, 0)
        for name, count in shards
    ]
    return plan.extend(shards=tuple(shards), parts=tuple(parts), data={**plan.data, "shards": own_data})


def _put_plans(path: Path, part: _Part) -> None:
    """Put the plans that are missing; raises PlanMismatchError where there are others."""
    storage = open_storage(path, StoreError)
    storage.remove_temporaries()
    for number, content in enumerate(part.contents):
        _put_same(content, storage, plan_file(number), is_raced=True)


def _put_options(source: Storage, target: Storage) -> None:
    """Put the options of the call that began the store, which are no part of it: those that are there stay."""
    if source.has(CONFIG_NAME) and not target.has(CONFIG_NAME):
        with target.put_if_absent(CONFIG_NAME) as file:
            file.write(source.read(CONFIG_NAME))


def _put_same(content: bytes, storage: Storage, name: str, *, is_raced: bool = False) -> None:
    """Put a file of these bytes; raises PlanMismatchError where there is another one.

    ``is_raced``: another process may put another one at the same time.
    """
    if is_new := not storage.has(name):
        with storage.put_if_absent(name) as file:
            file.write(content)
    if (is_raced or not is_new) and storage.read(name) != content:
        raise PlanMismatchError(
            f"{storage.describe(name)}: differs from the file to copy: it is of another store, or of another part "
            "of it (--shards), or damaged; choose another target"
        )


def _check_manifests(job: CopyJob, part: _Part, there: Collection[str]) -> set[str]:
    """The files that the target's own manifests list, ``there``; raises PlanMismatchError where they are others.

    The same command makes them so with another device or library: to be known before the first of them is replaced.
    """
    if not there:
        return set()
    manifests = Manifests(job.target, read_plans(job.target))
    listed: set[str] = set()
    for number, group in part.listed():
        if (manifest := manifest_name(number, group)) in there:
            files = manifests.read(number, group).content.files
            differing = [name for name, entry in files.items() if part.entries.get(name, entry) != entry]
            if differing:
                raise PlanMismatchError(
                    f"{job.target / manifest}: lists other bytes than those of {job.source} for {len(differing)} files "
                    f"(first: {differing[0]}): of a store that the same plan made elsewhere, or of other files since; "
                    "it stays as it is; choose another target"
                )
            listed |= files.keys()
    return listed


def _compare_entries(path: Path, part: _Part) -> None:
    """Raise StoreError where the manifests that were made at the target list other bytes than the source's."""
    manifests = Manifests(path, read_plans(path))
    plan = manifests.plan
    for number in range(len(plan.parts)):
        for group in (None, *(group for group in plan.view_groups if group[1] < part.num_views)):
            for name, entry in manifests.read(number, group).content.files.items():
                if part.entries.get(name, entry) != entry:
                    raise StoreError(f"{path / name}: changed while it was copied; run the same copy again")


def _copy_legacy(job: CopyJob) -> Copied:
    for option, value in (("--views", job.views), ("--shards", job.shards)):
        if value is not None:
            raise ConfigError(
                f"{option} {value}: is for stores of format 3; 'teachonce upgrade {job.source}' converts it"
            )
    store = Store(job.source)
    source, target = open_storage(job.source, StoreError), open_storage(job.target, StoreError)
    target.remove_temporaries()
    if source.has("plan.json"):
        _put_same(source.read("plan.json"), target, "plan.json")
    _put_options(source, target)
    manifest = legacy.read_manifest(job.source)[1]
    if target.has(legacy.MANIFEST_NAME):  # before any of its files is replaced
        _put_same(source.read(legacy.MANIFEST_NAME), target, legacy.MANIFEST_NAME)
    files = [file for shard in manifest["shards"] for file in shard["files"]]
    items = [
        Item(
            name=file["name"],
            num_bytes=file["bytes"],
            listed=ListedFile(file["bytes"], file["xxh3"]),
            may_replace=True,
        )
        for file in files
    ]
    present = sizes_of(target, [item.name for item in items])
    with progress("copy", sum(item.num_bytes for item in items), unit="bytes") as advance:
        moved = job.mover(source, target, advance).move_all(items, present)
    _put_same(source.read(legacy.MANIFEST_NAME), target, legacy.MANIFEST_NAME)
    copy_card(job.source, job.target)
    return sum_up(f"store of {plural(store.num_records, 'record')} x {plural(store.num_views, 'view')}", moved)
