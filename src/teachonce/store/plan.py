"""The plan of a store: what is being extracted, who agreed to it, and which of its files are there.

    begin_store      the first call writes plan.json; every later one must agree with it, or adds views
    missing_files    what is not there yet, by name: so resuming is "skip what is there"
    finalize_store   writes manifest.json for the groups of views that are whole in every shard

The manifest is written whenever a group of views is whole, so training can begin while later views are still being
extracted, and whatever a stopped extraction left behind is usable for the views that are whole. More views are added by
extending the plan's groups. Version 1 stores have no sample files; they are read, and not extended. Nothing here needs
torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from teachonce.codecs.registry import codec_from_json
from teachonce.errors import PlanMismatchError, RecordError, StoreError, TeachonceError
from teachonce.records.class_space import ClassSpace
from teachonce.records.source import Record
from teachonce.storage.files import open_storage, read_json, write_json
from teachonce.storage.resume import PlanFile
from teachonce.storage.strict_json import Count, convert_json, json_values
from teachonce.store.arrow_files import (
    FileEntry,
    file_entry,
    keys_hash,
    open_records_file,
    open_views_file,
    records_file,
    samples_file,
    views_file,
)
from teachonce.views.policy import Policy, policy_from_json

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
PLAN_NAME = "plan.json"
MANIFEST_NAME = "manifest.json"
_ADVICE = "damaged, or written by a newer teachonce: restore the file, or extract again"


class TeacherEntry(TypedDict):
    """What a plan says of the teacher."""

    spec: str
    model: str
    weights_sha256: NotRequired[str]
    precision: NotRequired[str]
    num_parameters: NotRequired[int | None]
    preprocessing: NotRequired[dict[str, Any]]
    lines: NotRequired[Count]
    """Of a CSV file, where the logits were imported from one."""
    csv_xxh3: NotRequired[str]
    """Hash of the CSV files' content."""
    drop: NotRequired[Count]
    """Numbers that were left out at the start of each line."""


class DataEntry(TypedDict):
    """What a plan says of the data: ``RecordSource.describe``."""

    split: str
    format: str
    num_classes: NotRequired[Count | None]
    shards: Annotated[list[tuple[str, Count, Count]], Meta(min_length=1)]
    """Name, records and bytes of each."""


class ShardEntry(TypedDict):
    """What a manifest says of a shard."""

    name: str
    num_records: Count
    keys_xxh3: NotRequired[str]
    files: list[FileEntry]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a store holds, decided before anything is extracted: the content of plan.json, fields in its order.

    Teacher, data, policy and codec stay the dicts that are written, and are checked: raises StoreError, with the field,
    for what could not be read again.
    """

    format_version: int = FORMAT_VERSION
    teacher: dict[str, Any]
    """Spec, SHA-256 of the weights, precision, and its evaluation preprocessing: a ``TeacherEntry``."""
    class_space: ClassSpace
    """The teacher's classes, and which data label its class 0 is."""
    data_classes: Count
    """Classes of the data, background included."""
    policy: dict[str, Any]
    """Policy name and parameters, with the seed of the views where it draws any."""
    codec: dict[str, Any]
    """Codec name and parameters."""
    view_groups: tuple[tuple[Count, Count], ...]
    """First and last view of each file of a shard."""
    num_samples: Count = 0
    """Rows in the sample file of each view file; 0: there is none (format 1, and logits that came without pixels)."""
    data: dict[str, Any]
    """Split, format and shards ([name, records, bytes] each): a ``DataEntry``."""

    def __post_init__(self) -> None:
        convert_json(self.teacher, TeacherEntry, "teacher", StoreError, advice=_ADVICE)
        convert_json(self.data, DataEntry, "data", StoreError, advice=_ADVICE)
        codec_from_json(self.codec)
        self.read_policy()
        expected = 0
        for first, last in self.view_groups:
            if first != expected or last < first:
                raise StoreError(f"view_groups: views {first} to {last}, expected those from {expected} on; {_ADVICE}")
            expected = last + 1
        if not self.view_groups:
            raise StoreError(f"view_groups: none, expected at least one; {_ADVICE}")

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        value = json_values(self)
        if self.format_version == 1:
            del value["num_samples"]
        return value

    @classmethod
    def from_json(cls, value: Any, path: Path) -> Plan:
        """The plan in ``value``; raises StoreError with the field for another format version, and as ``Plan``."""
        return convert_json(_complete_plan(value, path), cls, path, StoreError, advice=_ADVICE)

    @property
    def num_views(self) -> int:
        """Views that the plan asks for."""
        return self.view_groups[-1][1] + 1

    @property
    def shards(self) -> list[tuple[str, int]]:
        """(name, number of records) of each shard."""
        return [(name, num_records) for name, num_records, _ in self.data["shards"]]

    def read_policy(self) -> tuple[Policy, int]:
        """The policy, and the seed that its views were drawn by (0 where it draws none)."""
        entry = dict(self.policy)
        seed = convert_json(entry.pop("seed", 0), int, "policy: seed", StoreError, advice=_ADVICE)
        return policy_from_json(entry), seed

    def check_label(self, record: Record) -> None:
        """Raise RecordError where a record's label is not one of the data's classes."""
        if not 0 <= record.label < self.data_classes:
            raise RecordError(
                f"{record.where}: label {record.label}, expected 0 to {self.data_classes - 1}; give --num-classes or "
                "--offset that fit the data"
            )

    def unit_files(self) -> dict[tuple[str, tuple[int, int]], list[str]]:
        """The files of each unit: (shard name, group of views) -> records, views and, where there is one, sample.

        Made anew at each call: ask once for a whole store.
        """
        return {
            (name, group): [records_file(name), views_file(name, group)]
            + ([samples_file(name, group)] if self.num_samples else [])
            for group in self.view_groups
            for name, _ in self.shards
        }


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store has, of its plan: the content of manifest.json, fields in its order."""

    format_version: int
    num_views: Count
    num_records: Count
    versions: dict[str, str]
    """Of the libraries that made pixels and logits, by name."""
    plan: Plan
    """With the groups of views that are whole."""
    shards: list[ShardEntry]
    """In the order of the plan's."""

    def __post_init__(self) -> None:
        expected = {
            "format_version": self.plan.format_version,
            "num_views": self.plan.num_views,
            "num_records": sum(num_records for _, num_records in self.plan.shards),
        }
        for field, value in expected.items():
            if getattr(self, field) != value:
                raise StoreError(f"{field}: {getattr(self, field)}, expected {value} as in its plan; {_ADVICE}")
        if [(shard["name"], shard["num_records"]) for shard in self.shards] != self.plan.shards:
            raise StoreError(f"shards: expected those of its plan, in their order, with as many records; {_ADVICE}")

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        return json_values(self) | {"plan": self.plan.to_json()}

    @classmethod
    def from_json(cls, value: Any, path: Path) -> Manifest:
        """The manifest in ``value``; raises StoreError with the field, as ``Plan.from_json``."""
        if isinstance(value, dict) and "plan" in value:
            value = {**value, "plan": _complete_plan(value["plan"], path)}
        return convert_json(value, cls, path, StoreError, advice=_ADVICE)


def _complete_plan(entry: Any, path: Path) -> Any:
    """A plan's JSON with what its format version did not have yet."""
    if not isinstance(entry, dict):
        return entry
    version = entry.get("format_version")
    if version not in READABLE_VERSIONS:
        raise StoreError(
            f"{path}: store format version {version}, this teachonce reads {READABLE_VERSIONS[0]} to "
            f"{READABLE_VERSIONS[-1]}; "
            "use the version of teachonce that wrote it, or extract again"
        )
    if version != 1 and "num_samples" not in entry:
        raise StoreError(f"{path}: plan without num_samples; {_ADVICE}")
    return {**entry, "num_samples": 0} if version == 1 else entry


def group_views(
    num_views: int, views_per_file: int, done: Sequence[tuple[int, int]] = ()
) -> tuple[tuple[int, int], ...]:
    """View groups up to ``num_views``: those ``done`` stay as they are, further ones have ``views_per_file`` views."""
    groups = list(done)
    first = groups[-1][1] + 1 if groups else 0
    while first < num_views:
        last = min(first + views_per_file, num_views) - 1
        groups.append((first, last))
        first = last + 1
    return tuple(groups)


def begin_store(path: Path, plan: Plan, views_per_file: int) -> Plan:
    """Write the plan, or agree with the one that is there, extended to more views if it has fewer.

    Several workers may begin the same store at once: the first one's plan counts. Raises PlanMismatchError naming each
    field that differs, and StoreError where ``path`` holds something that is no store.
    """
    plan_file = _plan_file(path)
    begun = plan_file.read()
    version = plan.format_version if begun is None else Plan.from_json(begun, path / PLAN_NAME).format_version
    if version != plan.format_version:
        raise PlanMismatchError(
            f"{path}: a store of format version {version}, this teachonce writes {plan.format_version}: it can be read "
            "and trained from, not extended; extract into another --out"
        )
    old = Plan.from_json(plan_file.begin(plan.to_json()), path / PLAN_NAME)
    groups = group_views(plan.num_views, views_per_file, old.view_groups)
    if groups == old.view_groups:
        return old
    extended = replace(old, view_groups=groups)
    write_json(path / PLAN_NAME, extended.to_json())
    return extended


def check_store_folder(path: Path) -> None:
    """Raise StoreError where ``path`` is something else than a store or a place for one."""
    _plan_file(path).check_folder()


def _plan_file(path: Path) -> PlanFile:
    return PlanFile(
        folder=path,
        name=PLAN_NAME,
        foreign=StoreError(f"{path}: exists and is no store; choose another --out or remove it"),
        # More views may be added, and the teacher's weights may lie elsewhere today: what the teacher is, its model and
        # the weights' hash say.
        may_differ=frozenset({"view_groups", "teacher.spec"}),
    )


def finalize_store(path: Path, versions: Mapping[str, str]) -> int:
    """Write the manifest of the groups of views that are whole in every shard; returns how many views these are.

    0 where not even the first group is whole: then there is no manifest. Raises StoreError for a file that is there and
    damaged.
    """
    whole = _finished_plan(path)
    while whole is not None:
        _write_manifest(path, whole, versions)
        # Other workers may have got further while this one was hashing, and their manifest been replaced by this one.
        later = _finished_plan(path)
        if later is None or later.num_views <= whole.num_views:
            break
        whole = later
    return 0 if whole is None else whole.num_views


def _finished_plan(path: Path) -> Plan | None:
    """The plan of the groups of views that are whole, None where the first one is not."""
    plan = read_plan(path)
    missing = set(missing_files(path, plan))
    incomplete = {group for (_, group), names in plan.unit_files().items() if missing.intersection(names)}
    whole = tuple(itertools.takewhile(lambda group: group not in incomplete, plan.view_groups))
    return replace(plan, view_groups=whole) if whole else None


def _write_manifest(path: Path, plan: Plan, versions: Mapping[str, str]) -> None:
    known = _known_entries(path)

    def entry(name: str) -> FileEntry:
        return known.get(name) or file_entry(path, name)

    unit_files = plan.unit_files()
    shards: list[ShardEntry] = []
    for name, num_records in plan.shards:
        keys = open_records_file(path / records_file(name), num_records)["key"].to_numpy()
        files = [entry(records_file(name))]
        for group in plan.view_groups:
            open_views_file(path / views_file(name, group), group, num_records, keys_hash(keys))
            files += [entry(file) for file in unit_files[name, group][1:]]
        shards.append({"name": name, "num_records": num_records, "keys_xxh3": keys_hash(keys), "files": files})
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        num_views=plan.num_views,
        num_records=sum(num_records for _, num_records in plan.shards),
        versions=dict(versions),
        plan=plan,
        shards=shards,
    )
    write_json(path / MANIFEST_NAME, manifest.to_json())


def _known_entries(path: Path) -> dict[str, FileEntry]:
    """Entries of the manifest that is there, by name, of the files that are older than it and of the same size.

    They were hashed when it was written; with many groups of views they would be hashed again for each of them.
    """
    try:
        storage = open_storage(path)
        written_ns = storage.status(MANIFEST_NAME).modified_ns
        manifest = Manifest.from_json(read_json(path / MANIFEST_NAME), path / MANIFEST_NAME)
        found: dict[str, FileEntry] = {}
        for item in [file for shard in manifest.shards for file in shard["files"]]:
            status = storage.status(item["name"])
            if status.num_bytes == item["bytes"] and status.modified_ns < written_ns:
                found[item["name"]] = item
        return found
    except TeachonceError:
        return {}  # no manifest, or a damaged one: everything is hashed


def holds_store(path: Path) -> bool:
    """Whether a store was begun in this folder."""
    storage = open_storage(path)
    return storage.has(PLAN_NAME) or storage.has(MANIFEST_NAME)


def read_plan(path: Path) -> Plan:
    """The plan of a store, finished or not; raises StoreError where there is none that can be read."""
    return Plan.from_json(read_json(path / PLAN_NAME), path / PLAN_NAME)


def missing_files(path: Path, plan: Plan) -> list[str]:
    """Names of the plan's files that are not there yet, each once."""
    present = set(open_storage(path).list_folder().files)
    wanted = dict.fromkeys(name for names in plan.unit_files().values() for name in names)
    return [name for name in wanted if name not in present]
