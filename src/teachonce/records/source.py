"""Records: TFRecord shards, image folders and other containers behind one interface.

A record is one source example: its encoded image, label (it may have none) and file name, and a key, the 64-bit hash of
the encoded bytes, by which teacher logits are joined to it. A source is cut into shards, the unit of all offline work;
a folder is cut into virtual ones of ``FOLDER_SHARD_RECORDS`` images. Labels are those of the data: 1-based with
background 0 in TFRecords of this project, 0-based in folders.

Shards are read sequentially (``iter_shard``) or by row (``read_record``); TFRecord checksums are checked both ways.
Images are not decoded here. Nothing here imports torch.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.engine.buffers import BufferPool
from teachonce.engine.chunked import chunked
from teachonce.errors import ConfigError, RecordError
from teachonce.native import Buffer as Buffer
from teachonce.native import Buffers
from teachonce.on_demand import OnDemand
from teachonce.records.class_table import ClassTable
from teachonce.terminal import plural

SCANNED_RECORDS = 64
"""That are read and worked on at once."""

MISFIT_ADVICE = "--num-classes or --offset that fit the data"
"""What to give where labels and classes do not fit, to the commands that have these options."""

_SHARD_NAME = re.compile(r"([^.].*)-(\d{5,})-of-(\d{5,})")


@dataclass(frozen=True, slots=True)
class Record:
    """One source example; ``where`` names it in messages, ``logits`` [C] are there only on demand.

    ``boxes`` [N, 4] are its objects' xmin, ymin, xmax, ymax as fractions of the image: only of a source ``with_boxes``,
    and None where the record has none.
    """

    encoded: Buffer
    label: int
    filename: str
    key: int
    where: str
    logits: NDArray[np.float32] | None = None
    boxes: NDArray[np.float32] | None = None
    own_key: int | None = None
    """Of an image that was rewritten without loss the hash of its bytes as they are: ``key`` is the original's then.
    None: ``key`` is the hash of its bytes."""
    unreadable: str = ""
    """Why its file cannot be read; only of a source that ``keeps_unreadable``."""

    @classmethod
    def without_image(cls, label: int, filename: str, where: str, error: RecordError) -> Record:
        """Of a file that cannot be read: no bytes, and the hash of its place as the key."""
        key = record_key(where.encode(errors="surrogatepass"))
        return cls(b"", label, filename, key, where, unreadable=str(error).removeprefix(f"{where}: "))


class RecordBatch(OnDemand[Record]):
    """Records that were read together: what a batch needs of all of them as arrays, each as a ``Record`` on demand."""

    def __init__(
        self,
        keys: NDArray[np.uint64],
        labels: NDArray[np.int64],
        addresses: NDArray[np.uint64],
        num_bytes: NDArray[np.int64],
        make: Callable[[int], Record],
    ) -> None:
        super().__init__(len(keys), make)
        self.keys = keys
        self.labels = labels
        self.encoded = Buffers(addresses, num_bytes, lambda index: make(index).encoded)


def all_keys(records: Sequence[Record]) -> NDArray[np.uint64]:
    """The key [n] of each record."""
    return records.keys if isinstance(records, RecordBatch) else np.array([record.key for record in records], np.uint64)


def all_labels(records: Sequence[Record]) -> NDArray[np.int64]:
    """The label [n] of each record."""
    if isinstance(records, RecordBatch):
        return records.labels
    return np.array([record.label for record in records], np.int64)


def all_encoded(records: Sequence[Record]) -> Sequence[Buffer]:
    """The encoded image of each record; ``Buffers`` where it is known where they are."""
    return records.encoded if isinstance(records, RecordBatch) else [record.encoded for record in records]


def all_places(records: Sequence[Record]) -> Sequence[str]:
    """Where each record is, for messages."""
    return OnDemand(len(records), lambda index: records[index].where)


@dataclass(frozen=True)
class ShardInfo:
    """A shard by name, such as train-00000-of-00008; ``path`` is None for the virtual shards of a folder.

    ``identity`` is another one when a file of the shard was replaced, as far as sizes and times tell; "": not known.
    """

    name: str
    path: Path | None
    num_records: int
    num_bytes: int
    identity: str = ""


NO_LABEL = -1
"""The label of a record that has none."""

Location = tuple[int, int]
"""(shard, row) of a record."""


class Locations(OnDemand[Location]):
    """Where several records are, as arrays [n]; (shard, row) of each on demand."""

    def __init__(self, shards: NDArray[np.integer], rows: NDArray[np.integer]) -> None:
        super().__init__(len(shards))
        self.shards = shards
        self.rows = rows

    def _item(self, index: int) -> Location:
        return int(self.shards[index]), int(self.rows[index])

    @classmethod
    def of(cls, locations: Sequence[Location]) -> Locations:
        """The same locations."""
        return locations if isinstance(locations, Locations) else cls(*np.array(locations, np.int64).reshape(-1, 2).T)

    @cached_property
    def by_shard(self) -> list[tuple[int, NDArray[np.intp], NDArray[np.integer]]]:
        """(shard, positions among these, rows) of each shard that occurs."""
        if not len(self):
            return []
        order = np.argsort(self.shards, kind="stable")
        shards, rows = self.shards.take(order), self.rows.take(order)
        ends = [*((shards[1:] != shards[:-1]).nonzero()[0] + 1).tolist(), len(order)]
        parts = zip([0, *ends[:-1]], ends, strict=True)
        return [(int(shards[begin]), order[begin:end], rows[begin:end]) for begin, end in parts]


class ShardOffsets:
    """Which shard and row the records are that are counted through all shards, in order; ConfigError for others."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self._first = np.cumsum([0, *sizes], dtype=np.int64)

    def locate(self, index: int) -> Location:
        """(shard, row) of a record."""
        self._check(index, index)
        shard = int(self._first.searchsorted(index, side="right")) - 1
        return shard, index - int(self._first[shard])

    def locate_all(self, indices: NDArray[np.integer]) -> Locations:
        """(shard, row) of each of many records [n]; TypeError for what is no numbers: of a mask each truth would be."""
        if indices.dtype == np.bool_ or (indices.size and indices.dtype.kind not in "iu"):
            raise TypeError(f"records of {indices.dtype}, expected record numbers (of a mask: np.flatnonzero(mask))")
        indices = indices.astype(np.int64, copy=False)
        if len(indices):
            self._check(indices.min(), indices.max())
        shards = self._first.searchsorted(indices, side="right") - 1
        return Locations(shards, indices - self._first[shards])

    def _check(self, least: int | np.integer, most: int | np.integer) -> None:
        if least < 0 or most >= self._first[-1]:
            raise ConfigError(
                f"record {least if least < 0 else most}: expected 0 to {self._first[-1] - 1}, by which "
                f"{self._first[-1]} records are counted"
            )


class RecordSource(ABC):
    """The records of one split, cut into shards; picklable, and safe to read from several threads.

    A source of another kind is one file with one class that has six things: ``split``, ``shards`` (with their sizes)
    and ``classes``, set when it is opened; ``read_batch`` by location; ``iter_shard`` in order; and ``format``, which
    ``describe`` puts into a plan. ``discovery.open_records`` finds out the kind of a folder.

    What others rely on: a record's key is ``record_key`` of its encoded bytes, or of those that they were rewritten
    from without loss, as the record says (``rewritten_keys`` checks the bytes then). Names of shards become names of a
    store's files, so they are unique and have no "/". ``read_batch`` gives for (shard, row) the record that
    ``iter_shard`` gives as the row-th. A copy that was pickled reads the same; files and locks do not travel with it,
    it opens its own.
    """

    split: str
    shards: tuple[ShardInfo, ...]
    classes: ClassTable | None
    format: str
    with_boxes: bool = False
    """Whether records come with their bounding boxes (which image folders do not have), to draw crops by them."""
    keeps_unreadable: bool = False
    """Whether an image file of this machine that cannot be read is a record that says so, instead of an error."""
    unreadable: str = ""
    """The error of the first file that cannot be read, as far as opening the source shows it."""

    @property
    def num_records(self) -> int:
        """Records over all shards."""
        return sum(shard.num_records for shard in self.shards)

    @cached_property
    def _offsets(self) -> ShardOffsets:
        return ShardOffsets(shard.num_records for shard in self.shards)

    def locate(self, index: int) -> Location:
        """(shard, row) of a record that is counted through all shards; ConfigError for a number that none has."""
        return self._offsets.locate(index)

    def locate_all(self, indices: NDArray[np.integer]) -> Locations:
        """(shard, row) of each of many records [n]; raises as ``locate``."""
        return self._offsets.locate_all(indices)

    @abstractmethod
    def read_batch(
        self, locations: Sequence[Location], *, with_logits: bool = False, buffers: BufferPool | None = None
    ) -> Sequence[Record]:
        """The records at several locations, where it can be into memory of ``buffers``; a ``RecordBatch``, where many
        small images are read.

        Raises RecordError where one is damaged, LogitsError where one lacks the logits requested.
        """

    @abstractmethod
    def iter_shard(self, shard: int, *, with_logits: bool = False) -> Iterator[Record]:
        """The records of a shard in order, streaming; raises as ``read_batch``."""

    def scan_shard(self, shard: int) -> Iterator[list[Record]]:
        """The same in lists, which are not to be kept: what is read at once stays in memory with any record of it."""
        return chunked(self.iter_shard(shard), SCANNED_RECORDS)

    labeled: Literal["all", "some", "none"] = "all"
    """Which records have a label; the others' is ``NO_LABEL``."""

    label_reading: str = ""
    """What the labels depend on beside the files, for those who keep labels by a shard's identity."""

    def known_keys(self, shard: int) -> NDArray[np.uint64] | None:
        """The keys of a shard's records, where they are known without reading these."""
        return None

    def known_labels(self, shard: int) -> NDArray[np.int32] | None:
        """The labels of a shard's records, where they are known without reading these."""
        return None

    is_fetched: bool = False
    """Whether reading takes requests to another machine, of which a cache keeps the answers: ``fetch`` helps then."""

    def fetch(self, shard: int, go_on: Callable[[], bool] = lambda: True) -> None:  # noqa: B027, most sources have nothing to fetch
        """Have the bytes of a shard near, where they are far and something keeps them; raises as ``read_batch``.

        It ends early where ``go_on()``, asked every few MiB, is False.
        """

    def read_record(self, shard: int, row: int, *, with_logits: bool = False) -> Record:
        """One record; raises as ``read_batch``."""
        return self.read_batch([(shard, row)], with_logits=with_logits)[0]

    def describe(self) -> dict[str, Any]:
        """What identifies the data in a plan: split, format, class count, and name, records, bytes of each shard."""
        num_classes = None if self.classes is None else len(self.classes.names)
        shards = [[shard.name, shard.num_records, shard.num_bytes] for shard in self.shards]
        return {"split": self.split, "format": self.format, "num_classes": num_classes, "shards": shards}


def identify_data(source: RecordSource) -> dict[str, Any]:
    """What identifies the shards of a source in the plan of what is made of it: a hash, and what to say of others."""
    shards = source.describe()["shards"]
    return {
        "shards": xxhash.xxh3_64_hexdigest(repr(shards).encode()),
        "num_records": source.num_records,
        "num_shards": len(shards),
        "num_bytes": sum(num_bytes for *_, num_bytes in shards),
    }


def describe_data_change(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """A phrase for data whose ``identify_data`` is another one than then: how much it was, and is now.

    What older versions wrote lacks some of the numbers.
    """
    names = ("num_records", "num_shards", "num_bytes")
    known = [name for name in names if None not in (old.get(name), new.get(name))]
    if not (old and new):
        return f"{what} is another: {'none' if not old else 'some'} then, {'none' if not new else 'some'} now"
    phrase = f"{what} changed since"
    if not known:
        return phrase
    then, now = (_describe_amount({name: plan[name] for name in known}) for plan in (old, new))
    if then == now:
        return f"{phrase}: {then} then and now, but other shards or sizes"
    return f"{phrase}: {then} then, {now} now"


def _describe_amount(known: Mapping[str, int]) -> str:
    parts = []
    if "num_records" in known:
        parts.append(plural(known["num_records"], "image"))
    if "num_shards" in known:
        parts.append(f"in {plural(known['num_shards'], 'shard')}")
    if "num_bytes" in known:
        parts.append(f"({plural(known['num_bytes'], 'byte')})")
    return " ".join(parts)


def describe_shard_changes(old: Sequence[Sequence[Any]], new: Sequence[Sequence[Any]]) -> str:
    """Which of the data's shards (name, records, bytes) were added, removed and changed, as a phrase."""
    before, now = ({str(shard[0]): list(shard) for shard in shards} for shards in (old, new))
    found = [
        ("added", [name for name in now if name not in before]),
        ("removed", [name for name in before if name not in now]),
        ("changed", [name for name in before if name in now and before[name] != now[name]]),
    ]
    phrases = [f"{len(names):,} {word} (first: {names[0]})" for word, names in found if names]
    return f"the shards of the data changed since: {', '.join(phrases) or 'in another order'}"


def label_error(record: Record, expected: range, advice: str, *, has_names: bool) -> RecordError:
    """The error of a record whose label is not one of the ``expected``; ``advice`` is what else to give.

    It names only options that the command at hand has. ``has_names``: the data has names for its labels, which are
    their positions and so count from 0.
    """
    if record.label == NO_LABEL:
        return RecordError(
            f"{record.where}: has no label, expected {expected.start} to {expected.stop - 1} as other records of the "
            "split have; label it, or leave it out of the data"
        )
    start = "give " if has_names or expected.start else offset_hint(record.label, expected.stop)
    return RecordError(
        f"{record.where}: label {record.label}, expected {expected.start} to {expected.stop - 1}; {start}{advice}"
    )


def offset_hint(label: int, num_labels: int) -> str:
    """How the advice on a label that is not 0 to ``num_labels`` - 1 begins: one too high is of labels from 1."""
    return "if labels count from 1, give --label-offset -1, else " if label == num_labels else "give "


def require_labels(source: RecordSource, purpose: str, advice: str) -> None:
    """Raise ConfigError where records have no label and ``purpose`` needs them; ``advice`` is how to do without."""
    if source.labeled != "all":
        raise ConfigError(
            f"split {source.split}: {source.labeled} of its {source.num_records:,} images have labels, which {purpose} "
            f"needs; {advice}, or put images into folders named after their classes"
        )


def record_key(encoded: Buffer) -> int:
    """The record key: xxh3 of the encoded image bytes, 0 to 2^64 - 1."""
    return xxhash.xxh3_64_intdigest(encoded)


def rewritten_keys(encoded: Buffer, encoded_xxh3: int | None, original_key: int | None, where: str) -> tuple[int, int]:
    """(key, own key) of a record that says of which image it is a rewriting, by the hash of its own bytes that it has.

    Raises RecordError where that is another one: then it is not known of what these bytes are.
    """
    own_key = record_key(encoded)
    if original_key is None or encoded_xxh3 != own_key:
        has = "none" if encoded_xxh3 is None else f"{encoded_xxh3:016x}"
        raise RecordError(
            f"{where}: image/encoded_xxh3 {has}, expected {own_key:016x}, beside one image/original_key: the "
            "image was changed after the record was rewritten; restore the record, or write it again without "
            "these two features"
        )
    return original_key, own_key


def shard_name(split: str, index: int, count: int) -> str:
    """Name of a shard, as TensorFlow's readers expect it: train-00000-of-01024."""
    return f"{split}-{index:05d}-of-{count:05d}"


def parse_shard_name(name: str) -> tuple[str, int, int] | None:
    """Split, index and count that made a ``shard_name``; None for other names, and for hidden files."""
    match = _SHARD_NAME.fullmatch(name)
    return (match[1], int(match[2]), int(match[3])) if match else None


def split_in_names(source: RecordSource) -> str:
    """The split as the names of the shards have it, which ``--split`` may call by another name (val, valid)."""
    names = (parse_shard_name(info.name) for info in source.shards)
    return next((name[0] for name in names if name), source.split)


def choose_data_classes(given: int | None, source: RecordSource) -> int | None:
    """Classes of the data, background included: as ``--num-classes`` says, or the data; None where neither does.

    Raises ConfigError where the two differ: a student of this data would refuse what is made for another number.
    """
    known = None if source.classes is None else len(source.classes.names)
    if given is not None and known is not None and given != known:
        raise ConfigError(f"--num-classes {given}: the data has {known} classes; omit it")
    return known if given is None else given
