"""Repair: the damaged files of a store are found and removed, so that the program that made them makes them again.

A manifest goes before the files that it lists, and nothing else that it lists is trusted again for that: a manifest is
put together from hashes that each file has carried since it was written, and all of them are compared here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from teachonce.engine.prefetch import overlap
from teachonce.errors import StoreError
from teachonce.storage.block_file import BlockFile, FileEntry, check_was_read
from teachonce.storage.files import open_storage
from teachonce.storage.storage import Storage
from teachonce.store.manifests import Manifests, index_file, manifest_name
from teachonce.store.plan import Group, Plan, records_file
from teachonce.store.plan_files import read_plans
from teachonce.store.tables import check_file
from teachonce.terminal import print_note

_REPEAT = "--repair removes what it has read and found damaged: repeat it once this can be read"


class Damage(NamedTuple):
    """A file, and what is wrong with it."""

    name: str
    reason: str


def remove_damaged(path: Path) -> list[Damage]:
    """Compare every byte of a store's files, finished or not, and remove those that are damaged; returns them.

    Raises StoreError where a plan is damaged: nothing but a copy can bring that back.
    """
    plans = read_plans(path)
    manifests, storage = Manifests(path, plans), open_storage(path)
    plan = manifests.plan
    present = set(storage.list_folder().files)
    found: list[Damage] = []
    hashes = _read_key_hashes(storage, manifests, present)
    for part in range(len(plan.parts)):
        for group in (None, *plan.view_groups):
            manifest = manifest_name(part, group)
            entries: dict[str, FileEntry] = {}
            damaged: list[Damage] = []
            if manifest in present:
                try:
                    entries = manifests.read(part, group).content.files
                except StoreError as error:
                    check_was_read(storage, manifest, error, _REPEAT)
                    damaged.append(Damage(manifest, str(error)))

            def check(
                file: tuple[str, int | None],
                group: Group | None = group,
                entries: Mapping[str, FileEntry] = entries,
            ) -> Damage | None:
                name, shard = file
                if name in present:
                    reason = _check(storage, name, plan, (shard, group), entries.get(name), hashes.get(shard))
                else:
                    reason = f"{storage.describe(name)}: is missing" if name in entries else None
                return None if reason is None else Damage(name, reason)

            damaged += [file for file in overlap(storage, _files(plan, part, group), check) if file is not None]
            if damaged:
                storage.delete(manifest)
            for file in damaged:
                storage.delete(file.name)
            found += damaged
    return found


def report_repaired(path: Path, damaged: Sequence[Damage]) -> None:
    """Say on stderr what was removed."""
    print_note(f"{path}: {len(damaged)} damaged files" + (" are recomputed:" if damaged else ""))
    for _, reason in damaged:
        print_note(f"  {reason}")


def _files(plan: Plan, part: int, group: Group | None) -> Iterator[tuple[str, int | None]]:
    """(name, shard) of the files of a part's records or of one of its groups of views."""
    if group is None:
        yield index_file(part), None
    for shard in plan.part_shards(part):
        name = plan.shards[shard][0]
        for file in [records_file(name)] if group is None else plan.group_files(name, group):
            yield file, shard


def _read_key_hashes(storage: Storage, manifests: Manifests, present: set[str]) -> dict[int | None, str]:
    """The hash of each shard's keys: by the manifest of the records, else by the records files."""
    plan = manifests.plan
    hashes: dict[int | None, str] = {}
    for part in range(len(plan.parts)):
        shards = plan.part_shards(part)
        manifest = manifest_name(part, None)
        if manifest in present:
            try:
                hashes |= dict(zip(shards, manifests.read(part, None).content.keys_xxh3, strict=False))
                continue
            except StoreError as error:
                check_was_read(storage, manifest, error, _REPEAT)
        there = [shard for shard in shards if records_file(plan.shards[shard][0]) in present]
        read = overlap(storage, there, lambda shard: _read_keys_hash(storage, records_file(plan.shards[shard][0])))
        hashes |= {shard: found for shard, found in zip(there, read, strict=True) if found is not None}
    return hashes


def _read_keys_hash(storage: Storage, name: str) -> str | None:
    try:
        return str(BlockFile(storage, name).metadata.get("keys_xxh3"))
    except StoreError as error:
        # Without it the other files of the shard would not be compared with its keys.
        check_was_read(storage, name, error, _REPEAT)
        return None


def _check(
    storage: Storage,
    name: str,
    plan: Plan,
    place: tuple[int | None, Group | None],
    entry: FileEntry | None,
    keys_xxh3: str | None,
) -> str | None:
    shard, group = place
    expected: dict[str, Any] = {"plan": plan.identity}
    if shard is not None:
        expected |= dict(zip(("shard", "num_records"), plan.shards[shard], strict=True))
    if group is not None:
        expected["views"] = list(group)
    if keys_xxh3 is not None:
        expected["keys_xxh3"] = keys_xxh3
    try:
        file = BlockFile(storage, name, entry=entry)
        check_file(file, name, storage.describe(name), expected, "removed")
        file.check_tail()
    except StoreError as error:
        check_was_read(storage, name, error, _REPEAT)
        return str(error)
    damaged = file.find_damage(entry)
    return f"{storage.describe(name)}: {'; '.join(map(str, damaged))}" if damaged else None
