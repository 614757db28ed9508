"""Records and a store, joined by key: where the store has each record, whatever the shards and the order of either.

Where data and store have the same shards, rewritten without loss or not, a record's position is tried first and its key
compared; else, and where the key is another one, the record is found by its key in the index. Labels compare by class
name where both have names, since numbers differ between containers (TFRecords count from 1, folders from 0). What does
not agree is refused, never guessed. Nothing here needs torch.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import StoreError
from teachonce.records.class_space import ClassSpace
from teachonce.records.class_table import BACKGROUND
from teachonce.records.data_keys import DataKeys
from teachonce.records.key_index import SORTED_AT_ONCE
from teachonce.records.selection import SelectedSource
from teachonce.records.source import (
    NO_LABEL,
    Location,
    Locations,
    Record,
    RecordSource,
    all_keys,
    all_labels,
)
from teachonce.storage.resume import plan_differences
from teachonce.store.relabeling.labels import compare_labels, describe_label, take_labels, warn_of_conflicts
from teachonce.store.store import Store

SAMPLED_KEYS = 32
"""Records whose keys say whether shards of other bytes are the store's, rewritten without loss."""


class StoreJoin:
    """A store and the records that it is read for; picklable, and safe to use from several threads.

    Raises StoreError where the store is of other classes or does not know all of the records (``known_records`` leaves
    such out); ``advice`` is the end of that message, where it is not what a training can do.
    """

    def __init__(self, store: Store, source: RecordSource, *, advice: str | None = None) -> None:
        self.store = store
        self.source = source
        names = None if source.classes is None else source.classes.names
        self.labels = label_map(store, names, None if names is None else len(names))
        """Store label of each data label [n], negative where the store has no such class; None: they are the same."""
        self.is_by_name = store.plan.class_names is not None and source.classes is not None
        self.class_space: ClassSpace = (
            store.class_space if self.labels is None else store.class_space.relabel(invert_labels(store, self.labels))
        )
        """The teacher's classes, and the *data's* label of each."""
        self.has_positions = has_same_shards(store, source) or is_rewriting(store, source)
        self.relabeled: set[int] = set()
        """Keys of the records that were read and have another label than in the store, by name."""
        self._lock = threading.Lock()
        if not self.has_positions:
            unknown = find_unknown([store], source)
            if unknown.count:
                skip = (
                    f"give the data of {store.path}, or extract over this data (train --missing skip leaves them out)"
                )
                raise StoreError(unknown.describe(advice or skip))
        # Without names every difference is refused when it is read.
        self._sample = compare_labels(store, source, self.labels) if self.is_by_name else None
        if self._sample is not None and self._sample.num_different:
            if not self._sample.is_relabeling:
                raise StoreError(
                    self._sample.refuse(
                        "use the labels of the extraction (the same --labels), or, if these are right, extract over "
                        "this data into another --out"
                    )
                )
            warnings.warn(self._sample.describe(), stacklevel=2)
        warn_of_conflicts(store)

    def fetch(self, shard: int, view: int) -> None:
        """Read the blocks of one view of a shard, where the store's shards are those of the records."""
        if self.has_positions:
            self.store.read_keys(shard)
            self.store.read_columns(shard, view)

    def locate(self, locations: Sequence[Location], records: Sequence[Record]) -> Sequence[Location]:
        """(shard, row) in the store of records that were read at ``locations`` of the source.

        Raises StoreError for a record that the store does not know, or has under another label.
        """
        keys = all_keys(records)
        locations = found = Locations.of(locations)
        if self.has_positions:
            stored, stored_labels = self.store.gather_keys(locations)
            others = np.flatnonzero(stored != keys)
        else:
            stored_labels = np.empty(len(records), np.int32)
            others = np.arange(len(records))
        if len(others):
            known, places = self.store.find(keys[others])
            if not known.all():
                at = int(others[np.flatnonzero(~known)[0]])
                raise StoreError(self._unknown(locations[at], records[at]))
            found = Locations(found.shards.copy(), found.rows.copy())
            found.shards[others], found.rows[others] = places.T
            stored, stored_labels[others] = self.store.gather_keys(Locations(*places.T))
            if (stored != keys[others]).any():
                at = int(others[np.flatnonzero(stored != keys[others])[0]])
                raise StoreError(
                    f"{records[at].where}: the index of {self.store.path} points to a row with another key: it is "
                    "damaged or of other records; run the command that made it, extract or import, with the same "
                    "options and --repair to rebuild it"
                )
        self._check_labels(records, stored_labels)
        return found

    def locate_key(self, key: int, where: str, *, by_position: bool = False) -> Location:
        """(shard, row) in the source of a record with a key that the store has: of a mix's partner, say.

        ``by_position``, where data and store have the same shards, it is where the store has it: another record may be
        there now, so the caller compares the key of what it reads, and asks again without. Raises StoreError where the
        data has no such record.
        """
        by_position = by_position and self.has_positions
        found = self._find_position(key) if by_position else self.find_in_source(key)
        if found is None:
            raise StoreError(
                f"{where}: record {key:016x} of the store {self.store.path} is not in the data but is needed here "
                "(for example, because a view is mixed with it); give all of the data from which the store was "
                "extracted"
            )
        return found

    def find_in_source(self, key: int) -> Location | None:
        """(shard, row) in the source of a key of the store; None where the data has no such record."""
        if self.has_positions:
            found = self._find_position(key)
            if found is None or self.source.read_record(*found).key == key:
                return found
        index = self._data_keys().index
        place = int(index.find(np.array([key], np.uint64))[0])
        return index.location(place) if place >= 0 else None

    def count_absent(self) -> int:
        """Images of the store that the data does not have."""
        if self.has_positions:
            return 0
        own = self._data_keys().index
        return sum(int((~own.contains(np.unique(part.keys))).sum()) for part in self.store.index)

    def _find_position(self, key: int) -> Location | None:
        found = self.store.locations_of(key)
        return found[0] if found else None

    def _data_keys(self) -> DataKeys:
        with self._lock:
            if not hasattr(self, "_keys"):
                self._keys = DataKeys(self.source)
        return self._keys

    def _check_labels(self, records: Sequence[Record], stored: NDArray[np.int32]) -> None:
        labels = all_labels(records)
        mapped = labels if self.labels is None else take_labels(self.labels, labels)
        is_other = (mapped != stored) & (labels != NO_LABEL) & (stored != NO_LABEL)
        for at in np.flatnonzero(is_other).tolist():
            self._check_label(records[at], int(mapped[at]), int(stored[at]))

    def _check_label(self, record: Record, mapped: int, stored: int) -> None:
        """Of equal images each may have a label of its own, and an image may have been given another one since."""
        for shard, row in self.store.locations_of(record.key):
            if int(self.store.read_labels(shard)[row]) == mapped:
                return
        what = describe_label(self.store, self.source, record, stored)
        if self._sample is None:
            raise StoreError(
                f"{what}: the classes have a different order or numbering there; use the same --labels, or extract "
                "over this data into another --out"
            )
        with self._lock:
            is_first = not self.relabeled
            self.relabeled.add(record.key)
        if is_first and not self._sample.num_different:
            warnings.warn(self._sample.describe_later(what), stacklevel=2)

    def _unknown(self, location: Location, record: Record) -> str:
        found = f"{record.where}: key {record.key:016x} ({record.filename})"
        if self.has_positions:
            expected = int(self.store.read_keys(location[0])[location[1]])
            return (
                f"{found}, the store {self.store.path} has {expected:016x} there and does not have this key: the "
                "image has changed since extraction, or this is other data; extract again"
            )
        return f"{found} is not in the store {self.store.path}: the image changed while it was read; start again"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_keys")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()


@dataclass(frozen=True)
class Unknown:
    """Records of a source that stores do not know: ``rows`` of each shard, and the first of them."""

    rows: list[NDArray[np.int64]]
    num_records: int
    stores: str
    first: str
    keys: list[NDArray[np.uint64]] | None
    """The keys of each shard of the source; None where positions were enough."""

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(map(len, self.rows))

    def describe(self, advice: str) -> str:
        """One line: how many are known, how many not, and the first of these."""
        return (
            f"{self.stores}: {self.num_records - self.count:,} of {self.num_records:,} records are in the store; "
            f"{self.count:,} are not (first: {self.first}); {advice}"
        )


def find_unknown(stores: Sequence[Store], source: RecordSource, *, by_position: bool = True) -> Unknown:
    """The records of a source that one of several stores does not know, by key.

    ``by_position`` believes shards of equal sizes to be the same, until their records are read.
    """
    missing = [np.zeros(info.num_records, bool) for info in source.shards]
    by_key = [store for store in stores if not (by_position and has_same_shards(store, source))]
    keys = None
    if by_key:
        keys = DataKeys(source).shards
        for shards in _together(list(map(len, keys))):
            together = np.concatenate([keys[shard] for shard in shards])
            ends = np.cumsum([len(keys[shard]) for shard in shards])
            is_missing = ~np.logical_and.reduce([store.knows(together) for store in by_key])
            for shard, of_shard in zip(shards, np.split(is_missing, ends[:-1]), strict=True):
                missing[shard] = of_shard
    rows = [np.flatnonzero(mask) for mask in missing]
    first = next(((shard, int(found[0])) for shard, found in enumerate(rows) if len(found)), None)
    paths = " and ".join(str(store.path) for store in stores)
    return Unknown(rows, source.num_records, paths, "" if first is None else _explain(by_key, source, first), keys)


def _together(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Shards in groups of about ``SORTED_AT_ONCE`` records."""
    group: list[int] = []
    num_records = 0
    for shard, size in enumerate(sizes):
        group.append(shard)
        num_records += size
        if num_records >= SORTED_AT_ONCE:
            yield group
            group, num_records = [], 0
    if group:
        yield group


def known_records(stores: Sequence[Store], source: RecordSource) -> tuple[RecordSource, Unknown]:
    """The records of a source that all of the stores know, and what was left out; StoreError where there is none."""
    unknown = find_unknown(stores, source, by_position=False)
    if not unknown.count:
        return source, unknown
    if unknown.count == source.num_records:
        raise StoreError(unknown.describe("a store of other data; give the data from which it was extracted"))
    rows = [
        np.setdiff1d(np.arange(info.num_records), gone, assume_unique=True)
        for info, gone in zip(source.shards, unknown.rows, strict=True)
    ]
    return SelectedSource(source, rows, unknown.keys), unknown


def has_same_shards(store: Store, source: RecordSource) -> bool:
    """Whether the store's shards are the source's: as many, of as many records and, where they are known, bytes.

    Then positions are tried first. Names may differ: the bytes of images are what counts.
    """
    described = store.plan.data["shards"]
    counts = [info.num_records for info in source.shards]
    # A store that has grown describes the latest data, whose shards hold only a part of its own.
    if len(store.plan.parts) > 1 or [count for _, count in store.shards] != counts or len(described) != len(counts):
        return False
    return all(
        (count, num_bytes) == (info.num_records, info.num_bytes)
        for (_, count, num_bytes), info in zip(described, source.shards, strict=True)
    )


def is_rewriting(store: Store, source: RecordSource) -> bool:
    """Whether the source's shards are the store's, rewritten without loss: as many records, and a sample has its keys.

    Other bytes alone are no sign of that: unless records say so, their keys are all looked up before anything begins.
    """
    sizes = [info.num_records for info in source.shards]
    count = min(SAMPLED_KEYS, source.num_records)
    if len(store.plan.parts) > 1 or [number for _, number in store.shards] != sizes or not count:
        return False
    locations = [source.locate(index * source.num_records // count) for index in range(count)]
    records = source.read_batch(locations)
    # Not the first alone: what is no JPEG, or one of CMYK, was left as it is.
    if all(record.own_key is None for record in records):
        return False
    stored, _ = store.gather_keys(locations)
    return bool((stored == all_keys(records)).all())


def check_same_policy(first: Store, other: Store) -> None:
    """Raise StoreError unless two stores have views drawn from one policy by one seed.

    Classes are compared by number where one of them does not name them; by name each is joined with the data.
    """
    plans = [store.plan for store in (first, other)]
    there, here = ({"policy": plan.policy, "data_classes": plan.data_classes} for plan in plans)
    is_named = None not in (first.plan.class_names, other.plan.class_names)
    differences = plan_differences(
        there, here, frozenset({"data_classes"} if is_named else ()), words=("there", "here")
    )
    if differences:
        raise StoreError(
            f"{other.path}: its views or classes differ from {first.path} (there): {'; '.join(differences)}: they "
            f"cannot be averaged; extract with --views-of {first.path}"
        )


@dataclass(frozen=True)
class JoinedRecords:
    """Records that were read, where they are in their source, and where in each of several stores."""

    records: Sequence[Record]
    locations: Sequence[Location]
    stored: Mapping[int, Sequence[Location]]
    _columns: dict[tuple[int, int], dict[str, NDArray[Any]]] = field(default_factory=dict, repr=False)
    """Of stores and views, once they were asked for: views and logits ask for the same."""

    def locations_in(self, store: Store) -> Sequence[Location]:
        """(shard, row) of each record in a store."""
        return self.stored[id(store)]

    def columns_in(self, store: Store, view: int) -> dict[str, NDArray[Any]]:
        """``store.gather_columns`` of the records; not to be changed."""
        found = self._columns.get((id(store), view))
        if found is None:
            found = self._columns[id(store), view] = store.gather_columns(self.locations_in(store), view)
        return found


def join_records(joins: Sequence[StoreJoin], locations: Sequence[Location], records: Sequence[Record]) -> JoinedRecords:
    """The records with their place in each store; StoreError for one that a store does not have."""
    return JoinedRecords(records, locations, {id(join.store): join.locate(locations, records) for join in joins})


def label_map(store: Store, names: Sequence[str] | None, num_classes: int | None) -> NDArray[np.int64] | None:
    """The store's label of each label of data with these class names [n], negative where it has none; None: the same.

    Without names on both sides numbers are compared. Raises StoreError where the classes are others, or where a name
    that occurs twice does not tell which of them is meant.
    """
    stored = store.plan.class_names
    if stored is None or names is None:
        if num_classes not in (None, store.plan.data_classes):
            raise StoreError(
                f"{store.path}: made for {store.plan.data_classes} classes (background included), the data has "
                f"{num_classes}, and the store has no class names to match them: a store of other data; give the "
                "data from which it was extracted"
            )
        return None
    if tuple(names) == stored:
        return None
    _check_doubled(store, stored, names)
    label_of = {name: label for label, name in enumerate(stored)}
    labels = np.array([label_of.get(name, -1) for name in names], np.int64)
    if all(label < 0 or name == BACKGROUND for label, name in zip(labels.tolist(), names, strict=True)):
        raise StoreError(
            f"{store.path}: its classes are {stored[0]}, {stored[-1]} and the like, those of the data {names[0]}, "
            f"{names[-1]}: none in common; give the data from which it was extracted, with the same names"
        )
    outputs = np.arange(store.class_space.num_classes) + store.class_space.offset
    num_kept = int(np.isin(outputs, labels[labels >= 0]).sum())
    if not num_kept:
        raise StoreError(
            f"{store.path}: none of the {len(outputs):,} classes of its teacher is, by name, among the {len(names):,} "
            "of the data, so there is no logit to learn from or to compare; give a store whose teacher knows them"
        )
    if 2 * num_kept < len(outputs):
        warnings.warn(
            f"{store.path}: by name the data has {num_kept:,} of the teacher's {len(outputs):,} classes; the "
            "teacher's logits of the others are left out",
            stacklevel=3,
        )
    return labels


def _check_doubled(store: Store, stored: Sequence[str], names: Sequence[str]) -> None:
    """Raise StoreError where both sides have a name that one of them has twice, as ImageNet's texts have "crane"."""
    doubled = {name for names_ in (stored, names) for name, count in Counter(names_).items() if count > 1}
    both = sorted(doubled & set(stored) & set(names))
    if both:
        raise StoreError(
            f"{store.path}: class {both[0]!r} is there {stored.count(both[0])} times, in the data "
            f"{names.count(both[0])} times, and the lists of classes differ, so its name does not say which is "
            "meant; give every class a unique name (WordNet ids, say), or data with the store's list of classes"
        )


def invert_labels(store: Store, labels: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The data's label of each label of the store [n], negative where it has none; ``labels`` as of ``label_map``."""
    if labels is None:
        return np.arange(store.plan.data_classes)
    inverted = np.full(store.plan.data_classes, -1, np.int64)
    known = np.flatnonzero(labels >= 0)
    inverted[labels[known]] = known
    return inverted


def _explain(stores: Sequence[Store], source: RecordSource, location: Location) -> str:
    record = source.read_record(*location)
    for store in stores:
        if store.has_filename(record.filename):
            return f"{record.filename}, a name that the store has for other bytes: re-encoded, or another image"
    return record.filename or record.where
