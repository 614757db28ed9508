"""Stores of format 1 and 2, as golden stores and users have them: read, verified, merged, and trained from.

They have one manifest, which is replaced as groups of views finish, and a hash of each complete file in it; format 1
has no samples. ``upgrade`` makes a store of format 3 of one. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pyarrow as pa
import xxhash
from pyarrow import ipc

from teachonce.errors import StoreError, TeachonceError
from teachonce.storage.block_file import ARROW_ERRORS, DamagedBlock, has_same_columns
from teachonce.storage.files import open_storage, read_json
from teachonce.storage.names import check_component
from teachonce.storage.sealed_json import SEALED_END
from teachonce.storage.storage import Storage
from teachonce.storage.strict_json import Count, convert_json, parse_json
from teachonce.store.plan import FORMAT_VERSION, Plan

MANIFEST_NAME = "manifest.json"
VERSIONS = (1, 2)
_ADVICE = "damaged: restore the file, or extract again"


class LegacyEntry(TypedDict):
    """What a manifest says of a file."""

    name: str
    bytes: Count
    xxh3: str


class ShardEntry(TypedDict):
    """What a manifest says of a shard."""

    name: str
    num_records: Count
    keys_xxh3: NotRequired[str]
    files: list[LegacyEntry]


class LegacyManifest(TypedDict):
    """manifest.json; its plan is read by ``_build_plan``."""

    format_version: int
    num_views: Count
    num_records: Count
    versions: dict[str, str]
    plan: dict[str, Any]
    shards: list[ShardEntry]


def is_legacy(path: Path) -> bool:
    """Whether the folder holds a store of format 1 or 2."""
    storage = open_storage(path)
    return is_legacy_plan(storage, storage.find("plan.json"))


def is_legacy_plan(storage: Storage, content: bytes | None) -> bool:
    """As ``is_legacy``, of a store whose plan.json has these bytes; None: it has none."""
    if content is not None:
        # Of format 3 the plan is sealed, whatever other files there are.
        if SEALED_END.search(content):
            return False
        try:
            value = parse_json(content)
        except ValueError:
            value = None
        if isinstance(value, dict) and value.get("format_version") in VERSIONS:
            return True
    return storage.has(MANIFEST_NAME)


def read_plan(path: Path) -> Plan:
    """The plan that the store was started with; of a store that has only its manifest, that one's."""
    if not open_storage(path).has("plan.json"):
        return read_manifest(path)[0]
    return _build_plan(read_json(path / "plan.json"), path / "plan.json")


def read_manifest(path: Path) -> tuple[Plan, LegacyManifest]:
    """The plan of the groups of views that are complete, and the manifest; raises StoreError where it is damaged."""
    where = path / MANIFEST_NAME
    manifest = convert_json(read_json(where), LegacyManifest, where, StoreError, advice=_ADVICE)
    plan = _build_plan(manifest["plan"], where)
    for shard in manifest["shards"]:
        for file in shard["files"]:
            check_component(file["name"], f"{where}: files", StoreError)
    expected = (plan.format_version, plan.num_views, plan.num_records)
    found = (manifest["format_version"], manifest["num_views"], manifest["num_records"])
    if found != expected:
        raise StoreError(
            f"{where}: (format_version, num_views, num_records) {found}, its plan has {expected}; {_ADVICE}"
        )
    if tuple((shard["name"], shard["num_records"]) for shard in manifest["shards"]) != plan.shards:
        raise StoreError(
            f"{where}: shards: expected those of its plan, in their order, with as many records; {_ADVICE}"
        )
    return plan, manifest


def _build_plan(value: Any, where: Path) -> Plan:
    if not isinstance(value, dict) or value.get("format_version") not in VERSIONS:
        version = value.get("format_version") if isinstance(value, dict) else None
        raise StoreError(
            f"{where}: store format version {version}, this teachonce reads 1 to {FORMAT_VERSION}; use the version of "
            "teachonce that wrote it, or extract again"
        )
    if value["format_version"] != 1 and "num_samples" not in value:
        raise StoreError(f"{where}: plan without num_samples; {_ADVICE}")
    for name in ("identity", "signal", "class_names", "shards", "parts"):
        if name in value:
            raise StoreError(f"{where}: {name}: unknown in format {value['format_version']}; {_ADVICE}")
    data = value.get("data")
    shards = data.get("shards") if isinstance(data, dict) else None
    pairs = convert_json(shards, list[tuple[str, Count, Count]], f"{where}: data.shards", StoreError, advice=_ADVICE)
    completed = {"num_samples": 0, **value, "shards": [[name, count] for name, count, _ in pairs]}
    return convert_json(completed, Plan, where, StoreError, advice=_ADVICE)


class LegacyFile:
    """An Arrow file whose manifest has a hash of the whole; the interface is that of ``block_file.BlockFile``."""

    def __init__(self, storage: Storage, name: str, *, entry: LegacyEntry | None, trust: bool, advice: str) -> None:
        self._where = storage.describe(name)
        self._advice = f"; {advice}"
        self._entry = entry
        try:
            self._bytes = storage.map(name)[:]
        except TeachonceError as error:
            raise StoreError(f"{error}{self._advice}") from error
        self._unchecked = not trust
        if entry is not None and len(self._bytes) != entry["bytes"]:
            raise self._error(f"has {len(self._bytes):,} bytes, {entry['bytes']:,} were written: damaged or replaced")
        try:
            self._reader = ipc.open_file(pa.py_buffer(self._bytes))
            self.num_blocks: int = self._reader.num_record_batches
        except ARROW_ERRORS as error:
            raise self._error(f"is not a readable Arrow file ({error}): damaged") from error
        self.schema: pa.Schema = self._reader.schema
        metadata = self.schema.metadata or {}
        self.metadata = {
            name.decode("utf-8", "replace"): text.decode("utf-8", "replace") for name, text in metadata.items()
        }

    def read(self, block: int, schema: pa.Schema, num_rows: int | None, *, is_checked: bool = False) -> pa.RecordBatch:
        """As ``BlockFile.read``; what is checked is the hash of the whole file, once."""
        if self._unchecked and not is_checked and (damage := self.find_damage()):
            raise self._error(damage[0].reason)
        self._unchecked = False
        if block >= self.num_blocks:
            raise self._error(f"{self.num_blocks} blocks, expected more than {block}: the file has other views")
        if not has_same_columns(self.schema, schema):
            raise self._error(f"columns {self.schema.names}, expected {schema.names}: of a different policy or codec")
        try:
            batch = self._reader.get_batch(block)
            batch.validate(full=True)
        except ARROW_ERRORS as error:
            raise self._error(f"block {block}: is not a readable Arrow record batch ({error}): damaged") from error
        if num_rows not in (None, batch.num_rows):
            raise self._error(f"block {block}: {batch.num_rows} rows, expected {num_rows}: the records differ")
        for field, column in zip(schema, batch.columns, strict=True):
            if column.null_count:
                raise self._error(f"block {block}: column {field.name} has {column.null_count} nulls, expected none")
        return batch

    def find_damage(self, entry: LegacyEntry | None = None) -> Sequence[DamagedBlock]:
        """Whether the file's bytes are not those of the manifest."""
        if self._entry is None:
            return []
        found = xxhash.xxh3_128_hexdigest(self._bytes)
        if found == self._entry["xxh3"]:
            return []
        return [DamagedBlock(None, f"hash {found}, the manifest says {self._entry['xxh3']}: its bytes changed on disk")]

    def _error(self, what: str) -> StoreError:
        return StoreError(f"{self._where}: {what}{self._advice}")
