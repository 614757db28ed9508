"""The store: what one teacher said of one data set, as a directory that describes itself.

    STORE/plan.json                              what is being extracted; written first; a second extract must agree
          train-00000-of-01024.records.arrow     key, filename, label of each record, in record order
          train-00000-of-01024.v000-009.arrow    views 0..9 of that shard: view parameters and the codec's columns
          manifest.json                          written last, when every file of the plan is there and sound

Arrow IPC is memory-mapped, needs no parsing, and opens in pandas, polars or DuckDB (``shard_files`` reads and writes
the files). Nothing here needs torch.

A store without a manifest is unfinished and is refused by readers. More views are added by extending the plan's view
groups; until the new manifest is written, readers see the old number of views.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from teachonce.classes import ClassSpace
from teachonce.codec import Codec, codec_from_json
from teachonce.errors import PlanMismatchError, StoreError
from teachonce.files import read_json, write_json
from teachonce.shard_files import (
    file_entry,
    keys_hash,
    open_records_file,
    open_views_file,
    records_file,
    to_numpy,
    views_file,
)
from teachonce.views import VIEW_COLUMNS, Policy, View, decode_views, policy_from_json

FORMAT_VERSION = 1
PLAN_NAME = "plan.json"
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a store holds, decided before anything is extracted."""

    teacher: dict[str, Any]
    """Spec, SHA-256 of the weights, precision, and the preprocessing it looks through."""
    class_space: ClassSpace
    """The teacher's classes, and which data label its class 0 is."""
    data_classes: int
    """Classes of the data, background included."""
    data: dict[str, Any]
    """Split, format and shards ([name, records, bytes] each)."""
    policy: dict[str, Any]
    """Policy name and parameters, with the seed of the views where it draws any."""
    codec: dict[str, Any]
    """Codec name and parameters."""
    view_groups: tuple[tuple[int, int], ...]
    """First and last view of each file of a shard."""

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "teacher": self.teacher,
            "class_space": {"num_classes": self.class_space.num_classes, "offset": self.class_space.offset},
            "data_classes": self.data_classes,
            "policy": self.policy,
            "codec": self.codec,
            "view_groups": [list(group) for group in self.view_groups],
            "data": self.data,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], path: Path) -> Plan:
        """The plan in ``value``; raises StoreError for another format version or a missing field."""
        version = value.get("format_version")
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{path}: store format version {version}, this teachonce reads {FORMAT_VERSION}; "
                "use the version of teachonce that wrote it, or extract again"
            )
        try:
            return cls(
                teacher=value["teacher"],
                class_space=ClassSpace(**value["class_space"]),
                data_classes=value["data_classes"],
                data=value["data"],
                policy=value["policy"],
                codec=value["codec"],
                view_groups=tuple((int(first), int(last)) for first, last in value["view_groups"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: not a plan of a store: {error!r}") from error

    @property
    def num_views(self) -> int:
        """Views that the plan asks for."""
        return self.view_groups[-1][1] + 1

    @property
    def shards(self) -> list[tuple[str, int]]:
        """(name, number of records) of each shard."""
        return [(name, num_records) for name, num_records, _ in self.data["shards"]]


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
    plan_path = path / PLAN_NAME
    if not plan_path.exists():
        check_store_folder(path)
        write_json(plan_path, plan.to_json(), overwrite=False)
    old = Plan.from_json(read_json(plan_path), plan_path)
    differences = plan_differences(old, plan)
    if differences:
        raise PlanMismatchError(
            f"{path}: begun with another plan: {'; '.join(differences)}; choose another --out, or the same settings"
        )
    groups = group_views(plan.num_views, views_per_file, old.view_groups)
    if groups == old.view_groups:
        return old
    extended = Plan(**{**vars(old), "view_groups": groups})
    write_json(plan_path, extended.to_json())
    return extended


def check_store_folder(path: Path) -> None:
    """Raise StoreError where ``path`` is something else than a store or a place for one."""
    is_foreign = path.exists() and (not path.is_dir() or _foreign_files(path))
    # Another worker may begin the store at this moment, so the plan is looked for last.
    if is_foreign and not (path / PLAN_NAME).exists():
        raise StoreError(f"{path}: exists and is no store; choose another --out or remove it")


def plan_differences(old: Plan, new: Plan) -> list[str]:
    """One phrase for each setting in which two plans differ.

    View groups may differ, because more views may be added, and so may the teacher's spec, because its weights may lie
    elsewhere today: what the teacher is, its model and the weights' hash say.
    """
    old_json, new_json = old.to_json(), new.to_json()
    for value in (old_json, new_json):
        del value["view_groups"]
        value["teacher"] = {key: item for key, item in value["teacher"].items() if key != "spec"}
    return _differences("", old_json, new_json)


def finalise_store(path: Path, versions: Mapping[str, str]) -> bool:
    """Write the manifest if every file of the plan is there and sound; False while some are missing.

    Raises StoreError for a file that is there and damaged.
    """
    plan = Plan.from_json(read_json(path / PLAN_NAME), path / PLAN_NAME)
    if missing_files(path, plan):
        return False
    shards = []
    for name, num_records in plan.shards:
        keys = open_records_file(path / records_file(name), num_records)["key"].to_numpy()
        files = [file_entry(path, records_file(name))]
        for group in plan.view_groups:
            open_views_file(path / views_file(name, group), group, num_records, keys_hash(keys))
            files.append(file_entry(path, views_file(name, group)))
        shards.append({"name": name, "num_records": num_records, "keys_xxh3": keys_hash(keys), "files": files})
    manifest = {
        "format_version": FORMAT_VERSION,
        "num_views": plan.num_views,
        "num_records": sum(num_records for _, num_records in plan.shards),
        "versions": dict(versions),
        "plan": plan.to_json(),
        "shards": shards,
    }
    write_json(path / MANIFEST_NAME, manifest)
    return True


def missing_files(path: Path, plan: Plan) -> list[str]:
    """Names of the plan's files that are not there yet."""
    present = {file.name for file in path.iterdir()}
    wanted = []
    for name, _ in plan.shards:
        wanted += [records_file(name), *(views_file(name, group) for group in plan.view_groups)]
    return [name for name in wanted if name not in present]


class Store:
    """A finished store, opened for reading: memory-mapped, random access by (shard, view, row), picklable.

    ``is_partial`` also opens an unfinished one, for a worker that wants its own part: shards that are not there yet
    raise StoreError when they are read.
    """

    def __init__(self, path: Path | str, *, is_partial: bool = False) -> None:
        self.path = Path(path)
        manifest_path = self.path / MANIFEST_NAME
        if is_partial and not manifest_path.exists():
            self.manifest = _partial_manifest(self.path)
        elif manifest_path.exists():
            self.manifest = read_json(manifest_path)
        else:
            raise StoreError(self._why_unfinished())
        try:
            self.plan = Plan.from_json(self.manifest["plan"], manifest_path)
            self.num_records: int = self.manifest["num_records"]
            self._shards: list[dict[str, Any]] = self.manifest["shards"]
        except (KeyError, TypeError) as error:
            raise StoreError(f"{manifest_path}: not a manifest of a store: {error!r}") from error
        self.codec: Codec = codec_from_json(self.plan.codec)
        policy = dict(self.plan.policy)
        policy.pop("seed", None)
        self.policy: Policy = policy_from_json(policy)
        self._open_cache()

    @property
    def num_views(self) -> int:
        """Views of each record."""
        return self.plan.num_views

    @property
    def class_space(self) -> ClassSpace:
        """The teacher's classes, and which data label its class 0 is."""
        return self.plan.class_space

    @property
    def shards(self) -> list[tuple[str, int]]:
        """(name, number of records) of each shard."""
        return self.plan.shards

    @property
    def fingerprint(self) -> str:
        """Hash of the plan and of every file's hash: what a run says it was trained from."""
        parts = [str(sorted(self.plan.to_json().items()))]
        parts += [file["xxh3"] for shard in self._shards for file in shard["files"]]
        return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())

    def read_keys(self, shard: int) -> NDArray[np.uint64]:
        """Record keys [N] of a shard."""
        return self._records(shard)["key"].to_numpy()

    def read_labels(self, shard: int) -> NDArray[np.int32]:
        """Data labels [N] of a shard."""
        return self._records(shard)["label"].to_numpy()

    def read_filenames(self, shard: int) -> list[str]:
        """Filenames [N] of a shard."""
        return self._records(shard)["filename"].to_pylist()

    def read_logits(
        self, shard: int, view: int, rows: Sequence[int] | NDArray[np.integer] | slice
    ) -> NDArray[np.float32]:
        """Teacher logits [n, C] of some rows of one view, in the teacher's class space."""
        return self.codec.decode_logits(self.read_rows(shard, view, rows))

    def read_rows(
        self, shard: int, view: int, rows: Sequence[int] | NDArray[np.integer] | slice
    ) -> dict[str, NDArray[Any]]:
        """The codec's columns of some rows of one view, as they are stored."""
        columns = self.read_columns(shard, view)
        return {name: values[rows] for name, values in columns.items() if name not in VIEW_COLUMNS}

    def read_views(self, shard: int, view: int, rows: Sequence[int] | NDArray[np.integer] | slice) -> list[View]:
        """The stored views of some rows; StoreError for a policy that stores none (center)."""
        columns = self.read_columns(shard, view)
        if "box" not in columns:
            raise StoreError(f"{self.path}: policy {self.plan.policy['name']} stores no views to replay")
        return decode_views({name: columns[name][rows] for name in VIEW_COLUMNS})

    def check_files(self) -> int:
        """Compare every file's bytes with the manifest; StoreError for the first that differs. Returns their number."""
        for shard in self._shards:
            for file in shard["files"]:
                found = file_entry(self.path, file["name"])
                if found != file:
                    raise StoreError(
                        f"{self.path / file['name']}: {found['bytes']} bytes with hash {found['xxh3']}, the manifest "
                        f"says {file['bytes']} bytes with hash {file['xxh3']}: damaged; remove the file and "
                        f"{MANIFEST_NAME}, and extract again"
                    )
        return sum(len(shard["files"]) for shard in self._shards)

    def num_bytes(self) -> int:
        """Bytes of all files of the manifest."""
        return sum(file["bytes"] for shard in self._shards for file in shard["files"])

    def _records(self, shard: int) -> dict[str, pa.Array]:
        with self._lock:
            if shard not in self._record_tables:
                entry = self._shards[shard]
                self._record_tables[shard] = open_records_file(
                    self.path / records_file(entry["name"]), entry["num_records"]
                )
            return self._record_tables[shard]

    def read_columns(self, shard: int, view: int) -> dict[str, NDArray[Any]]:
        """The stored columns of one view of a shard, each [N] or [N, width], memory-mapped."""
        if not 0 <= view < self.num_views:
            raise StoreError(f"{self.path}: view {view} is not there: the store has views 0..{self.num_views - 1}")
        with self._lock:
            cached = self._columns.get(shard)
            # One view a shard is kept: an epoch reads one view of every shard, and the next epoch another one.
            if cached is not None and cached[0] == view:
                return cached[1]
        columns = self._map_columns(shard, view)
        with self._lock:
            self._columns[shard] = (view, columns)
        return columns

    def _map_columns(self, shard: int, view: int) -> dict[str, NDArray[Any]]:
        group = next(group for group in self.plan.view_groups if group[0] <= view <= group[1])
        entry = self._shards[shard]
        path = self.path / views_file(entry["name"], group)
        expected_keys = entry.get("keys_xxh3") or keys_hash(self._records(shard)["key"].to_numpy())
        reader = open_views_file(path, group, entry["num_records"], expected_keys)
        batch = reader.get_batch(view - group[0])
        return {name: to_numpy(batch.column(name)) for name in batch.schema.names}

    def _open_cache(self) -> None:
        self._lock = threading.Lock()
        self._record_tables: dict[int, dict[str, pa.Array]] = {}
        self._columns: dict[int, tuple[int, dict[str, NDArray[Any]]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        hidden = {"_lock", "_record_tables", "_columns"}  # memory maps are opened anew in each process
        return {name: value for name, value in vars(self).items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_cache()

    def _why_unfinished(self) -> str:
        plan_path = self.path / PLAN_NAME
        if not plan_path.exists():
            return f"{self.path}: is no store (neither {MANIFEST_NAME} nor {PLAN_NAME} is there)"
        plan = Plan.from_json(read_json(plan_path), plan_path)
        num_files = len(plan.shards) * (1 + len(plan.view_groups))
        num_missing = len(missing_files(self.path, plan))
        return (
            f"{self.path}: is not finished: {num_files - num_missing} of {num_files} files are there; "
            "run the same extract again"
        )


def _partial_manifest(path: Path) -> dict[str, Any]:
    plan = Plan.from_json(read_json(path / PLAN_NAME), path / PLAN_NAME)
    shards = [{"name": name, "num_records": num_records, "files": []} for name, num_records in plan.shards]
    return {"plan": plan.to_json(), "num_records": sum(n for _, n in plan.shards), "shards": shards}


def _foreign_files(path: Path) -> bool:
    return any(not file.name.startswith(".") for file in path.iterdir())


def _differences(prefix: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(f"{prefix}.{key}" if prefix else key, old.get(key), new.get(key))
        return found
    if old == new:
        return []
    if isinstance(old, list) and isinstance(new, list) and len(str(old)) > 80:
        different = sum(a != b for a, b in zip(old, new, strict=False)) + abs(len(old) - len(new))
        return [f"{prefix}: {different} of {max(len(old), len(new))} entries differ"]
    return [f"{prefix} was {old}, now {new}"]
