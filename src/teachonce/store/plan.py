"""The plan of a store: what it holds, decided before anything is extracted.

A plan is immutable. More views, and records that were added to the data, are a new plan that follows the one before
(``plan_files``): the groups of views and the shards of the later one begin with those of the earlier, so whatever was
made stays where it is. Shards that were added together are a *part* of the store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import xxhash
from msgspec import Meta

from teachonce.codecs.registry import codec_from_json
from teachonce.errors import StoreError, UnsupportedStoreError
from teachonce.records.class_space import ClassSpace
from teachonce.records.source import MISFIT_ADVICE, NO_LABEL, Record, RecordSource, label_error
from teachonce.storage.local import TEMPORARY_PREFIX
from teachonce.storage.names import check_component
from teachonce.storage.strict_json import Count, convert_json, json_values
from teachonce.views.policy import Policy, policy_from_json, policy_to_json

FORMAT_VERSION = 3
_IDENTITY = re.compile(r"[0-9a-f]{32}")
RESTORE = "restore the file, or extract again"
ADVICE = f"damaged, or written by a newer teachonce: {RESTORE}"


class TeacherEntry(TypedDict):
    """What a plan says of the teacher."""

    spec: str
    model: str
    weights_sha256: NotRequired[str]
    precision: NotRequired[str]
    num_parameters: NotRequired[int | None]
    preprocessing: NotRequired[dict[str, Any]]
    lines: NotRequired[Count]
    """Of CSV files, where the logits were imported from them."""
    csv_xxh3: NotRequired[str]
    """Hash of these files."""
    drop: NotRequired[Count]
    """Numbers that were left out at the start of each line."""


def teacher_name(teacher: Mapping[str, Any]) -> str:
    """What people call the teacher of a ``TeacherEntry``: its model; where that does not say which (a run, a file),
    the SPEC without its options."""
    model = str(teacher["model"])
    kind, _, rest = str(teacher["spec"]).partition(":")
    is_kind_alone = model.partition(",")[0] == kind and rest
    epoch = ",epoch=best" if ",epoch=best" in rest else ""
    return str(teacher["spec"]).partition(",")[0] + epoch if is_kind_alone else model


class DataEntry(TypedDict):
    """What a plan says of the data: ``RecordSource.describe``."""

    split: str
    format: str
    num_classes: NotRequired[Count | None]
    shards: Annotated[list[tuple[str, Count, Count]], Meta(min_length=1)]
    """Name, records and bytes of each."""


class Part(NamedTuple):
    """Shards of a store that were planned together: those from ``first_shard`` to the next part's."""

    first_shard: Count
    min_views: Count
    """Views that the part must have before readers see it: as many as the store had when the part was planned."""


Group = tuple[int, int]
"""First and last view of a file."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a store holds, fields in the order of plan.json.

    Teacher, data, policy and codec stay the dicts that are written, and are checked: raises StoreError, with the field,
    for what could not be read again.
    """

    format_version: int = FORMAT_VERSION
    identity: str = field(init=False, default="")
    """Is in every file of the store, so that one of another store is noticed; the same in each of its plans.

    A new plan has a hash of ``identified``; that of a stored one is what is written, which is not computed again.
    """
    signal: Literal["logits"] = "logits"
    """What the teacher was run on."""
    teacher: dict[str, Any]
    """Spec, SHA-256 of the weights, precision, and its evaluation preprocessing: a ``TeacherEntry``."""
    class_space: ClassSpace
    """The teacher's classes, and which data label its class 0 is."""
    data_classes: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    """Classes of the data, background included."""
    class_names: tuple[str, ...] | None = None
    """Names of the data's classes by label, where it has any."""
    policy: dict[str, Any]
    """Policy name and parameters, with the seed of the views where it draws any."""
    codec: dict[str, Any]
    """Codec name and parameters."""
    view_groups: tuple[tuple[Count, Count], ...]
    """First and last view of each file of a shard."""
    num_samples: Count = 0
    """Rows in the sample file of each view file; 0: there is none (logits that came without pixels)."""
    data: dict[str, Any]
    """The data that this plan was made for, as ``RecordSource.describe``: a ``DataEntry``."""
    shards: tuple[tuple[str, Count], ...]
    """(name, number of records) of each shard of the store."""
    parts: tuple[Part, ...] = (Part(0, 0),)
    """Shards that were added together."""

    def __post_init__(self) -> None:
        text = json.dumps(self.identified, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        object.__setattr__(self, "identity", xxhash.xxh3_128_hexdigest(text.encode()))
        convert_json(self.teacher, TeacherEntry, "teacher", StoreError, advice=ADVICE)
        convert_json(self.data, DataEntry, "data", StoreError, advice=ADVICE)
        check_component(self.data["split"], "data.split", StoreError)
        for name, _ in self.shards:
            check_component(name, "shards", StoreError)
            _require(not name.startswith(TEMPORARY_PREFIX), f"shards: {name!r} begins as files in the making do")
        _require(len({name for name, _ in self.shards}) == len(self.shards), "shards: a name occurs twice")
        names = self.class_names
        _require(names is None or len(names) == self.data_classes, "class_names: expected one for each of data_classes")
        codec_from_json(self.codec)
        self.read_policy()
        self._check_groups()
        _require(
            not self.parts or self.parts[0].min_views == 0,
            "parts: the first has min_views, expected [0, 0]",
        )
        firsts = [part.first_shard for part in self.parts]
        _require(
            firsts[:1] == [0] and firsts == sorted(set(firsts)) and firsts[-1] < len(self.shards),
            f"parts: begin with the shards {firsts}, expected rising numbers from 0 below {len(self.shards)}",
        )

    def _check_groups(self) -> None:
        expected = 0
        for first, last in self.view_groups:
            _require(
                first == expected and last >= first,
                f"view_groups: views {first} to {last}, expected those from {expected} on",
            )
            expected = last + 1
        _require(bool(self.view_groups), "view_groups: none, expected at least one")

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return json_values(self)

    @classmethod
    def from_json(cls, value: Any, where: object) -> Plan:
        """The plan in ``value``; raises StoreError with the field for another format version, and as ``Plan``."""
        check_version(value, where, "extract again")
        plan = convert_json(value, cls, where, StoreError, advice=ADVICE, also=("follows",))
        plan.check_policy_fields(where)
        identity = value.get("identity")
        if not isinstance(identity, str) or not _IDENTITY.fullmatch(identity):
            raise StoreError(f"{where}: identity: {identity!r}, expected 32 digits 0-9 a-f; {ADVICE}")
        object.__setattr__(plan, "identity", identity)
        return plan

    def extend(self, **changes: Any) -> Plan:
        """A plan of the same store, with the same identity, that has other groups of views, shards or parts."""
        plan = replace(self, **changes)
        assert plan.identified == self.identified
        object.__setattr__(plan, "identity", self.identity)
        return plan

    @property
    def num_views(self) -> int:
        """Views that the plan asks for."""
        return self.view_groups[-1][1] + 1

    @property
    def num_records(self) -> int:
        """Records of all shards."""
        return sum(num_records for _, num_records in self.shards)

    @property
    def identified(self) -> dict[str, Any]:
        """What the stored numbers depend on but the records, as JSON values; the same for each plan of a store.

        The location of the teacher's weights is not in it.
        """
        return {
            "signal": self.signal,
            "teacher": {name: value for name, value in self.teacher.items() if name != "spec"},
            "class_space": json_values(self.class_space),
            "data_classes": self.data_classes,
            "policy": self.policy,
            "codec": self.codec,
        }

    def part_shards(self, part: int) -> range:
        """The numbers of a part's shards."""
        ends = [*(later.first_shard for later in self.parts[1:]), len(self.shards)]
        return range(self.parts[part].first_shard, ends[part])

    def group_of(self, view: int) -> Group:
        """The group of a view."""
        return next(group for group in self.view_groups if group[0] <= view <= group[1])

    def read_policy(self) -> tuple[Policy, int]:
        """The policy, and the seed that its views were drawn by (0 where it draws none)."""
        entry = dict(self.policy)
        seed = convert_json(entry.pop("seed", 0), int, "policy: seed", StoreError, advice=ADVICE)
        return policy_from_json(entry), seed

    def check_policy_fields(self, where: object) -> None:
        """Raise StoreError where the policy lacks a parameter that format 3 always has, or has one that means nothing.

        Those of formats 1 and 2 may lack some.
        """
        policy, _ = self.read_policy()
        missing = _lacking(policy_to_json(policy) | ({"seed": 0} if policy.is_random else {}), self.policy)
        if missing:
            raise StoreError(f"{where}: policy: object missing required field `{missing}`; {ADVICE}")
        null = next((name for name, value in self.policy.items() if value is None), None)
        if null is not None:
            raise StoreError(f"{where}: policy: {null}: expected `object`, got `null`: left out where it is not drawn")
        if "seed" in self.policy and not policy.is_random:
            raise StoreError(f"{where}: policy: seed: unknown here, {policy.name} draws nothing; {ADVICE}")

    def check_label(self, record: Record) -> None:
        """Raise RecordError where a record's label is not one of the data's classes."""
        if record.label != NO_LABEL and not 0 <= record.label < self.data_classes:
            has_names = self.data.get("num_classes") is not None
            raise label_error(record, range(self.data_classes), MISFIT_ADVICE, has_names=has_names)

    def group_files(self, shard_name: str, group: Group) -> list[str]:
        """The files of a shard's group of views, without its records: the sample, where there is one, and the views."""
        samples = [samples_file(shard_name, group)] if self.num_samples else []
        return [*samples, views_file(shard_name, group)]

    def files(self) -> Iterator[str]:
        """Names of all files of shards, in the order in which they are made: by group of views, then by shard."""
        for name, _ in self.shards:
            yield records_file(name)
        for group in self.view_groups:
            for name, _ in self.shards:
                yield from self.group_files(name, group)


def describe_data(source: RecordSource, data_classes: int | None = None) -> dict[str, Any]:
    """What a plan says of a source: its fields ``data``, ``shards`` and ``class_names``.

    The names are left out where there are other than ``data_classes``.
    """
    described = source.describe()
    names = None if source.classes is None else source.classes.names
    return {
        "data": described,
        "shards": tuple((name, num_records) for name, num_records, _ in described["shards"]),
        "class_names": names if names is not None and data_classes in (None, len(names)) else None,
    }


def records_file(shard_name: str) -> str:
    """Name of the file with a shard's keys, filenames and labels."""
    return f"{shard_name}.records.arrow"


def views_file(shard_name: str, group: Group) -> str:
    """Name of the file with a shard's views ``group[0]``..``group[1]``."""
    return f"{shard_name}.v{group[0]:03d}-{group[1]:03d}.arrow"


def samples_file(shard_name: str, group: Group) -> str:
    """Name of the file with the sample of a shard's views ``group[0]``..``group[1]``."""
    return f"{shard_name}.v{group[0]:03d}-{group[1]:03d}.sample.arrow"


def group_views(num_views: int, views_per_file: int, done: Sequence[Group] = ()) -> tuple[Group, ...]:
    """View groups up to ``num_views``: those ``done`` stay as they are, further ones have ``views_per_file`` views."""
    groups = list(done)
    first = groups[-1][1] + 1 if groups else 0
    while first < num_views:
        last = min(first + views_per_file, num_views) - 1
        groups.append((first, last))
        first = last + 1
    return tuple(groups)


def check_version(value: Any, where: object, advice: str) -> None:
    """Raise StoreError for a plan or a manifest of another format version, UnsupportedStoreError for a newer one."""
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        is_newer = isinstance(version, int) and version > FORMAT_VERSION
        raise (UnsupportedStoreError if is_newer else StoreError)(
            f"{where}: store format version {version}, this teachonce reads {FORMAT_VERSION} (and 1 and 2); "
            f"use the version of teachonce that wrote it, or {advice}"
        )


def _lacking(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Path of the first entry that ``found`` lacks, objects in it included; "" where it has all."""
    for name, value in expected.items():
        if name not in found:
            return name
        inner = _lacking(value, found[name]) if isinstance(value, dict) else ""
        if inner:
            return f"{name}.{inner}"
    return ""


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise StoreError(f"{what}; {ADVICE}")
