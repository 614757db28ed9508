"""The files of a store as its manifests list them, behind one interface for format 3 and for the older ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from teachonce.engine.prefetch import overlap
from teachonce.errors import StoreError, TeachonceError
from teachonce.records.key_index import KeyIndex
from teachonce.storage.block_file import BlockFile, FileEntry, check_was_read
from teachonce.storage.files import open_storage
from teachonce.storage.storage import Storage
from teachonce.store.legacy import MANIFEST_NAME, LegacyEntry, LegacyFile, read_manifest
from teachonce.store.legacy import read_plan as read_legacy_plan
from teachonce.store.manifests import REPAIR, Manifests, index_file, records_manifest
from teachonce.store.plan import Group, records_file
from teachonce.store.plan_files import SealedPlan, read_plans
from teachonce.store.tables import check_file, check_metadata, keys_hash, read_index

StoreFile = BlockFile | LegacyFile
Damage = tuple[int, list[tuple[str, str]]]
"""Number of files, and (name, reason) of each damaged one."""


class StoreContents:
    """Of format 3: manifests are read when a file of theirs is first opened."""

    def __init__(
        self,
        path: Path,
        *,
        is_partial: bool,
        trust: bool,
        num_parts: int | None = None,
        plans: Sequence[SealedPlan] | None = None,
    ) -> None:
        """``plans``: those of the store, where they were read before."""
        self.path = path
        self._is_partial = is_partial
        self._trust = trust
        plans = plans or read_plans(path)
        self._manifests = Manifests(path, plans)
        plan = plans[-1].plan
        self.num_views, num_visible = self._manifests.visible(num_parts)
        num_parts = num_visible
        self._is_complete = self.num_views > 0
        if not self._is_complete and is_partial:
            self.num_views, num_parts = plan.num_views, len(plan.parts)
        self.plan = plan
        if self.num_views:
            end = plan.part_shards(num_parts - 1).stop
            groups = tuple(group for group in plan.view_groups if group[1] < self.num_views)
            self.plan = plan.extend(shards=plan.shards[:end], parts=plan.parts[:num_parts], view_groups=groups)
        self._part_of = [part for part in range(len(self.plan.parts)) for _ in self.plan.part_shards(part)]

    def open_file(self, name: str, shard: int, group: Group | None) -> BlockFile:
        """A file of a shard; raises StoreError where it is missing, damaged, or another than its name says."""
        shard_name, num_records = self.plan.shards[shard]
        entry: FileEntry | None = None
        expected: dict[str, Any] = {"plan": self.plan.identity, "shard": shard_name, "num_records": num_records}
        if group is not None:
            expected["views"] = list(group)
        if self._is_complete:
            part = self._part_of[shard]
            entry = self._entry(part, group, name)
            hashes = self._manifests.read(part, None).content.keys_xxh3
            expected["keys_xxh3"] = hashes[shard - self.plan.parts[part].first_shard]
        storage = open_storage(self.path)
        file = BlockFile(storage, name, entry=entry, trust=self._trust, advice=REPAIR)
        check_file(file, name, storage.describe(name), expected, REPAIR)
        return file

    def read_index(self) -> list[KeyIndex]:
        """The index of each part; none in an unfinished store."""
        return self.read_parts(range(len(self.plan.parts))) or [] if self._is_complete else []

    def read_parts(self, parts: range) -> list[KeyIndex] | None:
        """The index of some parts; None where the records of one are not complete."""
        storage = open_storage(self.path)
        if not all(storage.has(records_manifest(part)) for part in parts):
            return None
        plan = self._manifests.plan
        found: list[KeyIndex] = []
        for part in parts:
            name, shards = index_file(part), plan.part_shards(part)
            file = BlockFile(storage, name, entry=self._entry(part, None, name), trust=self._trust, advice=REPAIR)
            sizes = [plan.shards[shard][1] for shard in shards]
            expected = {"plan": plan.identity, "num_records": sum(sizes)}
            check_file(file, name, storage.describe(name), expected, REPAIR)
            found.append(read_index(file, shards, sizes))
        return found

    def made_by(self, groups: Sequence[Group]) -> list[dict[str, Any]]:
        """What made some groups of views, each once."""
        found: list[dict[str, Any]] = []
        for manifest in self._manifests.read_all(self._listed(groups)):
            found += [made for made in manifest.content.made_by if made not in found]
        return found

    def seals(self, groups: Sequence[Group]) -> list[str]:
        """Hashes that identify the bytes of some groups of views."""
        return self._manifests.seals(self._listed([None, *groups]))

    def file_sizes(self, groups: Sequence[Group]) -> dict[str, int]:
        """Bytes of each file of the records and of some groups of views."""
        return {
            name: entry.num_bytes
            for manifest in self._manifests.read_all(self._listed([None, *groups]))
            for name, entry in manifest.content.files.items()
        }

    def find_damage(self) -> Damage:
        """Of all files that the manifests list, every byte is compared."""
        storage = open_storage(self.path)

        def check(item: tuple[str, FileEntry]) -> tuple[str, str]:
            name, entry = item
            try:
                found = BlockFile(storage, name, entry=entry).find_damage(entry)
            except TeachonceError as error:
                _check_is_judged(storage, name, error)
                return name, str(error)
            return name, f"{storage.describe(name)}: {'; '.join(map(str, found))}" if found else ""

        items = (
            item
            for manifest in self._manifests.read_all(self._listed([None, *self.plan.view_groups]))
            for item in manifest.content.files.items()
        )
        checked = list(overlap(storage, items, check))
        return len(checked), [(name, reason) for name, reason in checked if reason]

    def _listed(self, groups: Sequence[Group | None]) -> Iterator[tuple[int, Group | None]]:
        if self._is_complete:
            for group in groups:
                for part in range(len(self.plan.parts)):
                    yield part, group

    def _entry(self, part: int, group: Group | None, name: str) -> FileEntry:
        return self._manifests.read(part, group).content.files[name]


class LegacyContents:
    """Of format 1 or 2."""

    def __init__(self, path: Path, *, is_partial: bool, trust: bool) -> None:
        self.path = path
        self._trust = trust
        self._entries: dict[str, LegacyEntry] = {}
        self._keys: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        if open_storage(path).has(MANIFEST_NAME):
            self.plan, manifest = read_manifest(path)
            self._entries = {file["name"]: file for shard in manifest["shards"] for file in shard["files"]}
            self._keys = {shard["name"]: shard["keys_xxh3"] for shard in manifest["shards"] if "keys_xxh3" in shard}
            self._versions = manifest["versions"]
            self.num_views = self.plan.num_views
        else:
            self.plan = read_legacy_plan(path)
            self.num_views = self.plan.num_views if is_partial else 0

    def open_file(self, name: str, shard: int, group: Group | None) -> LegacyFile:
        """A file of a shard; raises StoreError where it is missing, damaged, or made for other records."""
        advice = "restore the file, or extract again"
        if self._entries and name not in self._entries:
            raise StoreError(f"{self.path / name}: is not in {MANIFEST_NAME}: damaged; {advice}")
        file = LegacyFile(
            open_storage(self.path), name, entry=self._entries.get(name), trust=self._trust, advice=advice
        )
        if group is not None and "keys_xxh3" in file.metadata:
            check_metadata(file.metadata, str(self.path / name), {"keys_xxh3": self._expected_keys(shard)}, advice)
        return file

    def _expected_keys(self, shard: int) -> str:
        name, num_records = self.plan.shards[shard]
        if name not in self._keys:
            file = self.open_file(records_file(name), shard, None)
            batch = file.read(0, file.schema, num_records)
            self._keys[name] = keys_hash(batch["key"].to_numpy())
        return self._keys[name]

    def read_index(self) -> list[KeyIndex]:
        """There is none."""
        return []

    def made_by(self, groups: Sequence[Group]) -> list[dict[str, Any]]:
        """What the manifest says."""
        return [{"versions": self._versions, "device": "unknown"}] if self._versions else []

    def seals(self, groups: Sequence[Group]) -> list[str]:
        """The plan and the files' hashes."""
        kept = replace(self.plan, view_groups=tuple(groups))
        names = {records_file(name) for name, _ in self.plan.shards}
        names.update(
            file for name, _ in self.plan.shards for group in groups for file in self.plan.group_files(name, group)
        )
        return [
            str(sorted(kept.to_json().items())),
            *(self._entries[name]["xxh3"] for name in self._entries if name in names),
        ]

    def file_sizes(self, groups: Sequence[Group]) -> dict[str, int]:
        """Bytes of each file of the manifest."""
        return {name: entry["bytes"] for name, entry in self._entries.items()}

    def find_damage(self) -> Damage:
        """Every file's hash."""
        damaged = []
        storage = open_storage(self.path)
        for name, entry in self._entries.items():
            try:
                file = LegacyFile(storage, name, entry=entry, trust=False, advice="restore it")
                damaged += [(name, f"{self.path / name}: {why}") for _, why in file.find_damage()]
            except TeachonceError as error:
                _check_is_judged(storage, name, error)
                damaged.append((name, str(error)))
        return len(self._entries), damaged


def _check_is_judged(storage: Storage, name: str, error: TeachonceError) -> None:
    """Raise where a lost server, not the file, is why it cannot be read: the next ones would be no other."""
    if not storage.is_local:
        check_was_read(
            storage, name, error, "so nothing is known of the store's files: repeat it once this can be read"
        )


def open_contents(
    path: Path, *, is_partial: bool, trust: bool, num_parts: int | None = None
) -> StoreContents | LegacyContents:
    """The contents of a store of any format; raises StoreError where there is none."""
    plans = read_plans(path)
    if plans[-1].seal:
        return StoreContents(path, is_partial=is_partial, trust=trust, num_parts=num_parts, plans=plans)
    return LegacyContents(path, is_partial=is_partial, trust=trust)
