"""Manifests: what is complete in a store. Each is put once, behind the files that it lists, and never changed.

    manifest.records.json      the records files of all shards, and index.arrow, which is made of their keys
    manifest.v000-009.json     the view and sample files of a group of views, of all shards
    manifest.records.001.json, index.001.arrow, manifest.v000-009.001.json    those of the part that plan 1 added

A reader sees the views whose manifests are there. To finalize is to list the files and to read the first and the last
bytes of those that no manifest has yet; their blocks are not read. File times decide nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.engine.prefetch import overlap
from teachonce.errors import StoreError
from teachonce.records.key_index import KeyIndex
from teachonce.storage.block_file import BlockFile, FileEntry
from teachonce.storage.files import open_storage
from teachonce.storage.sealed_json import read_seal, read_sealed, write_sealed
from teachonce.storage.storage import Storage
from teachonce.storage.strict_json import Count, convert_json, json_values
from teachonce.store import legacy
from teachonce.store.plan import FORMAT_VERSION, Group, Plan, check_version, records_file
from teachonce.store.plan_files import SealedPlan, read_plans
from teachonce.store.tables import (
    check_file,
    check_made_by,
    read_index,
    read_records,
    records_schema,
    to_records,
    write_index,
)

REPAIR = "run the command that made it, extract or import, with the same options and --repair to rebuild it"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a manifest, fields in its order."""

    format_version: int = FORMAT_VERSION
    plan: str
    """Hash of the first plan that has these shards and views."""
    part: Count
    views: Group | None
    """First and last view; None: of the records."""
    made_by: list[dict[str, Any]]
    """What made the numbers, each once: versions of libraries, device."""
    keys_xxh3: list[str]
    """Of the records: the hash of each shard's keys."""
    files: dict[str, FileEntry]


class ReadManifest:
    """A manifest as it was read, with the hash that its file ends with."""

    def __init__(self, storage: Storage, name: str, plan: Plan, expected: tuple[str, int, Group | None]) -> None:
        value, self.seal = read_sealed(storage, name, StoreError, REPAIR)
        where = storage.describe(name)
        check_version(value, where, REPAIR)
        self.content = convert_json(value, Manifest, where, StoreError, advice=REPAIR)
        found = (self.content.plan, self.content.part, self.content.views)
        if found != expected:
            raise StoreError(f"{where}: (plan, part, views) {found}, expected {expected}: of another store; {REPAIR}")
        check_manifest(self.content, plan, where)


def check_manifest(manifest: Manifest, plan: Plan, where: str) -> None:
    """Raise StoreError unless a manifest lists the files that the plan says for its part and group, and no other."""
    part, group = manifest.part, manifest.views
    names = [plan.shards[shard][0] for shard in plan.part_shards(part)]
    if group is None:
        expected = {index_file(part), *map(records_file, names)}
    else:
        expected = {file for name in names for file in plan.group_files(name, group)}
    found = manifest.files.keys()
    if found != expected:
        first = min(found ^ expected)
        raise StoreError(
            f"{where}: files: {len(found - expected)} are not in the plan, {len(expected - found)} of its "
            f"{len(expected)} are missing (first: {first}): damaged; {REPAIR}"
        )
    num_hashes = len(names) if group is None else 0
    if len(manifest.keys_xxh3) != num_hashes:
        raise StoreError(
            f"{where}: keys_xxh3: {len(manifest.keys_xxh3)} hashes, expected {num_hashes}: damaged; {REPAIR}"
        )
    for made_by in manifest.made_by:
        check_made_by(made_by, where, REPAIR)


def records_manifest(part: int) -> str:
    """Name of the manifest of a part's records."""
    return f"manifest.records{_suffix(part)}.json"


def views_manifest(part: int, group: Group) -> str:
    """Name of the manifest of a part's group of views."""
    return f"manifest.v{group[0]:03d}-{group[1]:03d}{_suffix(part)}.json"


def manifest_name(part: int, group: Group | None) -> str:
    """Name of the manifest of a part's records (None) or of one of its groups of views."""
    return records_manifest(part) if group is None else views_manifest(part, group)


def index_file(part: int) -> str:
    """Name of a part's key index."""
    return f"index{_suffix(part)}.arrow"


def _suffix(part: int) -> str:
    return f".{part:03d}" if part else ""


class Manifests:
    """The manifests of a store, each read when it is first requested."""

    def __init__(self, path: Path, plans: Sequence[SealedPlan]) -> None:
        self.path = path
        self.plan: Plan = plans[-1].plan
        self._plans = list(plans)
        self._read: dict[tuple[int, Group | None], ReadManifest] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Of a large store they are megabytes, and a process that needs one reads it.
        return vars(self) | {"_read": {}}

    def read(self, part: int, group: Group | None) -> ReadManifest:
        """The manifest of a part's records (None) or of one of its groups; raises StoreError where it is damaged."""
        found = self._read.get((part, group))
        if found is None:
            name = manifest_name(part, group)
            found = ReadManifest(open_storage(self.path), name, self.plan, (self.plan_seal(part, group), part, group))
            self._read[part, group] = found
        return found

    def read_all(self, wanted: Iterable[tuple[int, Group | None]]) -> Iterator[ReadManifest]:
        """As ``read``, of each of some parts and groups, in their order."""
        return overlap(open_storage(self.path), wanted, lambda item: self.read(*item))

    def seals(self, wanted: Iterable[tuple[int, Group | None]]) -> list[str]:
        """The hashes that manifests end with; their entries are not read for that."""
        storage = open_storage(self.path)

        def seal(item: tuple[int, Group | None]) -> str:
            if item in self._read:
                return self._read[item].seal
            return read_seal(storage, manifest_name(*item), StoreError, REPAIR)

        return list(overlap(storage, wanted, seal))

    def plan_seal(self, part: int, group: Group | None) -> str:
        """Hash of the first plan that has both."""
        return next(
            seal
            for plan, seal in self._plans
            if len(plan.parts) > part and (group is None or group in plan.view_groups)
        )

    def complete_views(self, part: int) -> int:
        """Views of a part that are complete, from the first on."""
        storage = open_storage(self.path)
        if not storage.has(records_manifest(part)):
            return 0
        groups = self.plan.view_groups
        has_manifest = overlap(storage, groups, lambda group: storage.has(views_manifest(part, group)))
        complete = list(itertools.takewhile(lambda item: item[1], zip(groups, has_manifest, strict=True)))
        return complete[-1][0][1] + 1 if complete else 0

    def visible(self, num_parts: int | None = None) -> tuple[int, int]:
        """(views, parts) that a reader sees: a part that was added is there once it has as many views as it needs.

        ``num_parts``: of the first parts alone, as if there were no more.

        0 views where not even the first group is complete.
        """
        parts = range(len(self.plan.parts) if num_parts is None else min(num_parts, len(self.plan.parts)))
        complete = [self.complete_views(part) for part in parts]
        visible = list(
            itertools.takewhile(
                lambda item: item[0] >= max(1, item[1].min_views), zip(complete, self.plan.parts, strict=False)
            )
        )
        return min((views for views, _ in visible), default=0), len(visible)

    def is_complete(self, plan: Plan) -> bool:
        """Whether readers see all views and records of a plan, and find the records by their keys."""
        storage = open_storage(self.path)
        num_views, num_parts = self.visible()
        has_index = all(storage.has(index_file(part)) for part in range(len(plan.parts)))
        return has_index and num_views >= plan.num_views and num_parts >= len(plan.parts)


def missing_manifest(path: Path, plan: Plan) -> str | None:
    """Name of the first manifest without which a store of some format has no views to read; None: they are there."""
    storage = open_storage(path)
    needed = (
        [legacy.MANIFEST_NAME]
        if legacy.is_legacy(path)
        else [records_manifest(0), views_manifest(0, plan.view_groups[0])]
    )
    return next((name for name in needed if not storage.has(name)), None)


def finalize_store(path: Path) -> int:
    """Put the manifests of what is complete and has none yet; returns how many views readers see.

    Raises StoreError for a file that is there and damaged, or another one than its name says.
    """
    return put_manifests(path).visible()[0]


def put_manifests(path: Path) -> Manifests:
    """As ``finalize_store``; returns the manifests."""
    plans = read_plans(path)
    manifests = Manifests(path, plans)
    plan = manifests.plan
    present = set(open_storage(path).list_folder().files)
    for part in range(len(plan.parts)):
        shards = [plan.shards[shard] for shard in plan.part_shards(part)]
        if records_manifest(part) not in present:
            if not all(records_file(name) in present for name, _ in shards):
                continue
            _seal_records(manifests, part)
        elif index_file(part) not in present:
            _restore_index(manifests, part)
        for group in plan.view_groups:
            if views_manifest(part, group) in present:
                continue
            if all(file in present for name, _ in shards for file in plan.group_files(name, group)):
                _seal_views(manifests, part, group)
    return manifests


def _seal_records(manifests: Manifests, part: int) -> None:
    plan, storage = manifests.plan, open_storage(manifests.path)
    numbers = plan.part_shards(part)
    entries: dict[str, FileEntry] = {}
    keys: list[NDArray[np.uint64]] = []
    hashes: list[str] = []

    def read(shard: int) -> tuple[str, FileEntry, str, NDArray[np.uint64]]:
        name, num_records = plan.shards[shard]
        file = _open(storage, records_file(name), plan, shard, kind="records")
        own = to_records(file.read(0, records_schema(file.schema), num_records)).keys.copy()
        return records_file(name), file.entry, str(file.metadata.get("keys_xxh3")), own

    for name, entry, keys_xxh3, own in overlap(storage, numbers, read):
        entries[name] = entry
        hashes.append(keys_xxh3)
        keys.append(own)
    index = KeyIndex.build(keys, numbers[0])
    write_index(manifests.path, index_file(part), index, plan.identity)
    # Who came first may have written another: of other records, or by a kill and changed data between.
    file = BlockFile(storage, index_file(part), advice=REPAIR)
    if not read_index(file, numbers, [len(own) for own in keys]).fits(keys, numbers[0]):
        raise StoreError(f"{storage.describe(index_file(part))}: is not the index of these records; {REPAIR}")
    entries[index_file(part)] = file.entry
    _write(manifests, part, None, entries, [], hashes)


def _restore_index(manifests: Manifests, part: int) -> None:
    """Make a part's missing index again; StoreError where it is not the one of the manifest."""
    plan, name, storage = manifests.plan, index_file(part), open_storage(manifests.path)
    expected = manifests.read(part, None).content.files[name]
    numbers = plan.part_shards(part)
    keys = list(overlap(storage, numbers, lambda shard: read_records(manifests.path, plan, shard).keys))
    write_index(manifests.path, name, KeyIndex.build(keys, numbers[0]), plan.identity)
    if BlockFile(storage, name).entry != expected:
        storage.delete(name)
        raise StoreError(f"{storage.describe(name)}: is missing, and the records do not give the same one; {REPAIR}")


def _seal_views(manifests: Manifests, part: int, group: Group) -> None:
    plan, storage = manifests.plan, open_storage(manifests.path)
    hashes = manifests.read(part, None).content.keys_xxh3
    entries: dict[str, FileEntry] = {}
    made_by: list[dict[str, Any]] = []

    def read(item: tuple[str, int, str]) -> tuple[str, FileEntry, dict[str, Any]]:
        name, shard, keys_xxh3 = item
        file = _open(storage, name, plan, shard, views=list(group), keys_xxh3=keys_xxh3)
        return name, file.entry, file.metadata.get("made_by", {})

    items = (
        (name, shard, keys_xxh3)
        for shard, keys_xxh3 in zip(plan.part_shards(part), hashes, strict=True)
        for name in plan.group_files(plan.shards[shard][0], group)
    )
    for name, entry, made in overlap(storage, items, read):
        entries[name] = entry
        if made not in made_by:
            made_by.append(made)
    _write(manifests, part, group, entries, sorted(made_by, key=str), [])


def _open(storage: Storage, name: str, plan: Plan, shard: int, **expected: Any) -> BlockFile:
    shard_name, num_records = plan.shards[shard]
    file = BlockFile(storage, name, advice=REPAIR)
    known = {"plan": plan.identity, "shard": shard_name, "num_records": num_records, **expected}
    check_file(file, name, storage.describe(name), known, REPAIR)
    file.check_tail()
    return file


def _write(
    manifests: Manifests,
    part: int,
    group: Group | None,
    files: dict[str, FileEntry],
    made_by: list[dict[str, Any]],
    keys_xxh3: list[str],
) -> None:
    manifest = Manifest(
        plan=manifests.plan_seal(part, group),
        part=part,
        views=group,
        made_by=made_by,
        keys_xxh3=keys_xxh3,
        files=files,
    )
    write_sealed(open_storage(manifests.path), manifest_name(part, group), json_values(manifest))


def visible_views(path: Path) -> int:
    """Views that readers of a store see; 0 where there is none yet."""
    if legacy.is_legacy(path):
        has_manifest = open_storage(path).has(legacy.MANIFEST_NAME)
        return legacy.read_manifest(path)[0].num_views if has_manifest else 0
    return Manifests(path, read_plans(path)).visible()[0]


def is_complete(path: Path, plan: Plan) -> bool:
    """Whether readers of a store see all views and records of a plan, and find the records by their keys."""
    return Manifests(path, read_plans(path)).is_complete(plan)


def missing_files(path: Path, plan: Plan) -> set[str]:
    """Names of the plan's files that are not there yet."""
    storage = open_storage(path)
    if storage.can_list:
        present = set(storage.list_folder().files)
    elif legacy.is_legacy(path):
        shards = legacy.read_manifest(path)[1]["shards"] if storage.has(legacy.MANIFEST_NAME) else []
        present = {file["name"] for shard in shards for file in shard["files"]}
    else:
        present = _files_of_manifests(storage, plan)
    return set(_missing(plan.files(), present))


def _files_of_manifests(storage: Storage, plan: Plan) -> set[str]:
    """The files that are complete by manifests: what is known of a store that cannot be listed."""
    found: set[str] = set()
    for part in range(len(plan.parts)):
        names = [plan.shards[shard][0] for shard in plan.part_shards(part)]
        if storage.has(records_manifest(part)):
            found.update(map(records_file, names))
        for group in plan.view_groups:
            if storage.has(views_manifest(part, group)):
                found.update(file for name in names for file in plan.group_files(name, group))
    return found


def holds_first_views(path: Path, plan: Plan, missing: Collection[str]) -> bool:
    """Whether the first views of a plan are complete and no file of the later ones is there.

    So is a copy of a part of the views, and a store that is planned for more of them; never known of a place that lists
    no files. ``missing``: ``missing_files``.
    """
    num_views = visible_views(path)
    later = [group for group in plan.view_groups if group[0] >= num_views]
    if not num_views or not later or legacy.is_legacy(path) or not open_storage(path).can_list:
        return False
    not_here = {file for name, _ in plan.shards for group in later for file in plan.group_files(name, group)}
    first = plan.extend(view_groups=plan.view_groups[: -len(later)])
    return set(missing) == not_here and is_complete(path, first)


def missing_parts(path: Path, plan: Plan) -> set[tuple[int, Group]]:
    """(shard, group of views) whose files are not all there yet: the units of an extraction."""
    missing = missing_files(path, plan)
    if not missing:
        return set()
    return {
        (shard, group)
        for shard, (name, _) in enumerate(plan.shards)
        for group in plan.view_groups
        if records_file(name) in missing or not missing.isdisjoint(plan.group_files(name, group))
    }


def _missing(wanted: Iterable[str], present: set[str]) -> Iterable[str]:
    return (name for name in wanted if name not in present)
