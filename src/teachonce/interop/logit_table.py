"""Teacher logits looked up by image: from a store (by record key) or from the walkthrough's CSV files (by basename).

Both keep an index of a few bytes an image and read the logits when asked, so memory does not grow with the number of
classes (the walkthrough's own merge keeps every logit in one dict, about 41 GB for ImageNet). A CSV line is
``basename,logit,logit,...`` without a header; Arrow's reader turns the numbers of many lines into floats at once. A
basename that occurs twice is refused with its name: which of the two would be meant?
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from pyarrow import csv

from teachonce.errors import ConfigError, LogitsError
from teachonce.records.class_space import ClassSpace, map_logits, resolve_offset
from teachonce.records.source import ShardOffsets
from teachonce.storage.files import open_storage
from teachonce.storage.storage import Reader
from teachonce.store.plan import holds_store
from teachonce.store.store import Store

_opening = threading.Lock()  # of a table's files, which several threads read
_COMMA = ord(",")
_ONE_COLUMN = csv.ReadOptions(column_names=["logit"], use_threads=False, block_size=1 << 22)
_NO_QUOTES = csv.ParseOptions(quote_char=False, double_quote=False, escape_char=False, ignore_empty_lines=False)
_FLOAT64 = csv.ConvertOptions(column_types={"logit": pa.float64()}, null_values=[], check_utf8=False)


class LogitTable(Protocol):
    """Teacher logits in the teacher's own class space."""

    class_space: ClassSpace
    is_by_name: bool

    def digest(self) -> str:
        """What identifies the logits, to notice others on a re-run."""

    """Whether images are found by their basename, which then must be unique."""

    def __len__(self) -> int: ...

    def find_logits(self, *, key: int, filename: str, label: int | None = None) -> NDArray[np.float32]:
        """Logits [C] of an image; LogitsError naming it where there are none, or where its label is known and another.

        The label catches classes in another order, which would give every image the logits of wrong classes.
        """


class MappedTable:
    """A table's logits in the class space of the data; the classes the teacher lacks get ``background_logit``."""

    def __init__(self, table: LogitTable, num_classes: int, background_logit: float) -> None:
        self.table = table
        self.num_classes = num_classes
        self.background_logit = background_logit

    def logits_of(self, *, key: int, filename: str, label: int | None = None) -> NDArray[np.float32]:
        """Logits [num_classes] of an image; raises as ``LogitTable.find_logits``."""
        logits = self.table.find_logits(key=key, filename=filename, label=label)
        target = ClassSpace(num_classes=self.num_classes)
        return map_logits(logits, self.table.class_space, target, self.background_logit)


def open_logit_table(path: Path, *, split: str, num_classes: int, background_logit: float) -> MappedTable:
    """The logits of ``path``, a store or a folder of SPLIT-*.csv, for data of ``num_classes`` (background included).

    A store of an image folder has labels from 0 and no background; for TFRecords of the same images it is moved by 1.
    """
    table: LogitTable
    if holds_store(path):
        store = Store(path)
        if store.policy.is_random:
            raise ConfigError(
                f"{path}: holds what the teacher said of random views (policy {store.policy.name}), which is "
                "nothing to put beside whole images; give a store of policy center"
            )
        is_of_folder = store.plan.data["format"] == "folder"
        label_shift = int(is_of_folder and store.plan.data_classes == num_classes - 1)
        table = StoreTable(store, label_shift=label_shift)
        if store.plan.data_classes + label_shift != num_classes:
            raise ConfigError(
                f"{path}: logits for data of {store.plan.data_classes} classes, this data has {num_classes} "
                "(background included); give the store of this data"
            )
    else:
        table = CsvTable(path, split=split, data_classes=num_classes)
    return MappedTable(table, num_classes, background_logit)


class StoreTable:
    """A store's logits by record key (view 0); ``label_shift`` is added to the store's labels."""

    is_by_name = False

    def digest(self) -> str:
        """The store's fingerprint."""
        return self.store.fingerprint

    def __init__(self, store: Store, view: int = 0, label_shift: int = 0) -> None:
        self.store = store
        self.view = view
        self.label_shift = label_shift
        space = store.class_space
        self.class_space = ClassSpace(num_classes=space.num_classes, offset=space.offset + label_shift)
        sizes = [num_records for _, num_records in store.shards]
        keys = [store.read_keys(shard) for shard in range(len(sizes))]
        self._places = ShardOffsets(sizes)
        all_keys = np.concatenate(keys)
        self._order = np.argsort(all_keys, kind="stable")
        self._sorted_keys = all_keys[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def find_logits(self, *, key: int, filename: str, label: int | None = None) -> NDArray[np.float32]:
        """Logits of the image with this key. Equal images have equal keys and equal logits, so the first will do."""
        at, end = (int(np.searchsorted(self._sorted_keys, np.uint64(key), side)) for side in ("left", "right"))
        if at == end:
            raise LogitsError(
                f"{filename}: no logits in {self.store.path} (key {key:016x}): the image is missing there or changed "
                "since; extract the teacher over this data"
            )
        places = [self._places.locate(int(index)) for index in self._order[at:end]]
        labels = {int(self.store.read_labels(shard)[row]) + self.label_shift for shard, row in places}
        if label is not None and label not in labels:
            raise LogitsError(
                f"{filename}: label {label} here, {' and '.join(map(str, sorted(labels)))} in {self.store.path}: the "
                "classes have another order there; use the same --labels, or extract over this data"
            )
        shard, row = places[0]
        return self.store.read_logits(shard, self.view, [row])[0]


class CsvTable:
    """The walkthrough's CSV logits by basename, indexed by line and parsed when asked."""

    is_by_name = True

    def digest(self) -> str:
        """Hash of the files' content."""
        return self._digest

    def __init__(
        self,
        folder: Path,
        *,
        split: str,
        data_classes: int | None = None,
        offset: int | None = None,
        drop: int = 0,
    ) -> None:
        self.drop = drop
        self._storage = open_storage(folder)
        found = self._storage.list_folder().files if self._storage.is_folder() else []
        self._names = sorted(
            (name for name in found if name.startswith(f"{split}-") and name.endswith(".csv")), key=_number_in_name
        )
        if not self._names:
            raise ConfigError(f"{folder}: neither a store nor a folder with {split}-*.csv files")
        self._files: dict[int, Reader] = {}
        # Machine integers, not Python's: ImageNet has 1.28 million lines, and memory shall stay small.
        hashes, starts = array("Q"), array("q")
        sizes, file_indices = array("q"), array("q")
        hasher = xxhash.xxh3_128()
        num_classes = None
        for file_index, file_name in enumerate(self._names):
            path = self._storage.describe(file_name)
            with self._storage.stream(file_name) as file:
                start = 0
                for line_number, line in enumerate(file, 1):
                    hasher.update(line)
                    name, _, numbers = line.rstrip(b"\r\n").partition(b",")
                    if name or numbers:
                        # Six times as fast as bytes.count, which was most of this loop.
                        width = int(np.count_nonzero(np.frombuffer(numbers, np.uint8) == _COMMA)) + 1 if numbers else 0
                        num_classes = num_classes or width
                        if width != num_classes or not name:
                            raise LogitsError(
                                f"{path} line {line_number} ({name.decode(errors='replace')}): {width} logits, "
                                f"expected a name and {num_classes}; the line is cut or of another teacher"
                            )
                        if not line.endswith(b"\n"):
                            raise LogitsError(
                                f"{path} line {line_number} ({name.decode(errors='replace')}): no line break at the "
                                "end, so the last number may be cut; extract again, or add one if the line is whole"
                            )
                        hashes.append(_name_hash(name))
                        file_indices.append(file_index)
                        starts.append(start)
                        sizes.append(len(line))
                    start += len(line)
        if num_classes is None:
            raise LogitsError(f"{folder}: the {split}-*.csv files hold no line; extract the logits again")
        if not 0 <= drop < num_classes:
            raise ConfigError(f"--drop {drop}: expected fewer than the {num_classes} numbers of a line of {folder}")
        self._digest = hasher.hexdigest()
        unsorted = np.array(hashes, np.uint64)
        order = np.argsort(unsorted, kind="stable")
        self._hashes = unsorted[order]
        self._places = np.stack([np.array(values, np.int64) for values in (file_indices, starts, sizes)], axis=1)[order]
        self._refuse_doubles()
        offset = resolve_offset(num_classes - drop, data_classes, offset, model=f"{folder}/{split}-*.csv")
        self.class_space = ClassSpace(num_classes=num_classes - drop, offset=offset)

    def __len__(self) -> int:
        return len(self._hashes)

    def find_logits(self, *, key: int, filename: str, label: int | None = None) -> NDArray[np.float32]:
        """Logits of the image with this basename; LogitsError naming line and image where one is no finite number."""
        at = self._find_line(filename)
        name, text = self._read_line(at)
        try:
            with np.errstate(over="ignore"):  # a number too large becomes inf, which is refused below
                logits = np.array(text.decode().split(",")[self.drop :], np.float64).astype(np.float32)
        except ValueError as error:
            raise LogitsError(f"{self._where(at)} ({name}): {error}; expected numbers") from error
        if not np.isfinite(logits).all():
            bad = int(np.flatnonzero(~np.isfinite(logits))[0])
            raise LogitsError(
                f"{self._where(at)} ({name}): logit {bad} is {logits[bad]}, expected a finite number; extract again"
            )
        return logits

    def find_all_logits(self, filenames: Sequence[str]) -> NDArray[np.float32]:
        """Logits [n, C] of many images, the same as ``find_logits`` of each, and as its errors; five times as fast."""
        lines = [self._read_line(self._find_line(filename))[1] for filename in filenames]
        numbers = parse_numbers(b",".join(lines))
        num_numbers = self.class_space.num_classes + self.drop
        if numbers is not None and len(numbers) == len(lines) * num_numbers:
            with np.errstate(over="ignore"):
                logits = numbers.reshape(len(lines), num_numbers)[:, self.drop :].astype(np.float32)
            if np.isfinite(logits).all():
                return logits
        # Something is wrong with a line, or it is written in a way that only Python reads: one by one.
        return np.stack([self.find_logits(key=0, filename=filename) for filename in filenames])

    def _find_line(self, filename: str) -> int:
        basename = filename.rpartition("/")[2]
        name_hash = _name_hash(basename.encode())
        at = int(self._hashes.searchsorted(np.uint64(name_hash)))
        if at == len(self._hashes) or int(self._hashes[at]) != name_hash:
            raise LogitsError(
                f"{filename}: no line in {self._storage.describe()} ({len(self._names)} files, {len(self)} lines); the "
                "CSV is incomplete or of other data"
            )
        return at

    def _refuse_doubles(self) -> None:
        doubled = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        if len(doubled):
            at = int(doubled[0])
            name, _ = self._read_line(at)
            raise LogitsError(
                f"{name}: has two lines ({self._where(at)} and {self._where(at + 1)}), expected one; "
                f"{len(doubled)} names are doubled: remove the lines that are not meant"
            )

    def _read_line(self, at: int) -> tuple[str, bytes]:
        file_index, start, size_bytes = self._places[at].tolist()
        with _opening:
            if file_index not in self._files:
                self._files[file_index] = self._storage.open_reader(self._names[file_index])
        line = self._files[file_index].read(start, size_bytes)
        name, _, numbers = line.rstrip(b"\r\n").partition(b",")
        assert _name_hash(name) == int(self._hashes[at]), f"{self._where(at)}: the file has changed while it is read"
        return name.decode(), numbers

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # open files are this process's

    def _where(self, at: int) -> str:
        file_index, start, _ = self._places[at]
        return f"{self._storage.describe(self._names[file_index])} byte {start}"


def parse_numbers(text: bytes) -> NDArray[np.float64] | None:
    """The numbers [n] of a text with commas between them; None where Arrow's reader finds one that is none.

    As one column and not as a thousand: a column costs more than the numbers that a block of lines puts into it.
    """
    lines = pa.BufferReader(text.replace(b",", b"\n") + b"\n")
    try:
        table = csv.read_csv(lines, _ONE_COLUMN, _NO_QUOTES, _FLOAT64)
    except pa.ArrowInvalid:
        return None
    column = table.column(0)
    return None if column.null_count else column.to_numpy()


def _name_hash(name: bytes) -> int:
    return xxhash.xxh3_64_intdigest(name)


def _number_in_name(name: str) -> tuple[int, str]:
    digits = name.removesuffix(".csv").rpartition("-")[2]
    return (int(digits) if digits.isdecimal() else -1, name)
