"""WebDataset tars as a source of records: images with their cls or json, read by row without being unpacked.

A folder of tars, one tar, or names with braces ("train-{000000..000146}.tar", "{train,val}-0.tar"), here or at an
address. Splits are words of the tars' names. Labels are the text of NAME.cls, else a field of NAME.json (label, class,
...), or the one that ``--label-feature`` names; names or numbers.
"""

from __future__ import annotations

import itertools
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.engine.buffers import BufferPool
from teachonce.engine.prefetch import prefetch
from teachonce.engine.progress import progress
from teachonce.errors import ConfigError, LogitsError, RecordError
from teachonce.records.class_table import ClassTable
from teachonce.records.containers.labels import (
    LABEL_COLUMNS,
    as_label,
    choose_column,
    number_labels,
    warn_without_label,
)
from teachonce.records.containers.tar_index import TarIndex, TarSample, load_tar_index, warn_of_left_out
from teachonce.records.options import RecordOptions
from teachonce.records.source import NO_LABEL, Buffer, Location, Record, RecordSource, ShardInfo, record_key
from teachonce.storage.files import open_storage
from teachonce.storage.storage import FileStatus, Reader
from teachonce.storage.strict_json import parse_json

TAR_SUFFIX = ".tar"
MAX_OPEN_TARS = 128
INDEX_THREADS = 4
"""Tars that are indexed at a time; where they are local the disk is what limits."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_NAMES = 1 << 20


def has_braces(name: str) -> bool:
    """Whether a name is a pattern of several."""
    return _BRACES.search(name) is not None


def expand_braces(name: str) -> list[str]:
    """The names that a pattern stands for, as a shell expands it; raises ConfigError for more than a million."""
    parts: list[list[str]] = []
    end = 0
    for match in _BRACES.finditer(name):
        parts.append([name[end : match.start()]])
        numbers = _RANGE.fullmatch(match[1])
        if numbers:
            first, last, width = int(numbers[1]), int(numbers[2]), len(numbers[1])
            if abs(last - first) > MAX_NAMES:
                raise ConfigError(f"{name}: stands for more than {MAX_NAMES:,} names")
            step = 1 if first <= last else -1
            parts.append([f"{number:0{width}d}" for number in range(first, last + step, step)])
        else:
            parts.append(match[1].split(","))
        end = match.end()
    return ["".join(words) for words in itertools.product(*parts, [name[end:]])]


class TarSource(RecordSource):
    """The images of some tars below ``data``; file names are those of the members."""

    format = "webdataset"

    def __init__(
        self,
        data: Path,
        split: str,
        names: Sequence[str],
        options: RecordOptions,
        *,
        all_names: Sequence[str] | None = None,
        with_boxes: bool = False,
    ) -> None:
        """``all_names`` are the tars of all splits, whose classes are numbered together."""
        self.split, self.with_boxes = split, with_boxes
        self._storage = open_storage(data, RecordError)
        self.is_fetched = self._storage.is_cached
        self._names = sorted(names)
        found: dict[str, FileStatus] = {}
        for folder in {name.rpartition("/")[0] for name in (*self._names, *(all_names or ()))}:
            statuses = self._storage.statuses(folder)
            found |= {f"{folder}/{name}" if folder else name: status for name, status in statuses.items()}
        missing = next((name for name in self._names if name not in found), None)
        if missing is not None:
            raise RecordError(f"{data / missing}: no such tar; copy it again, or give another pattern")
        numbered = sorted({*self._names, *(all_names or ())})
        samples, labels, self.classes, unread = _open_all(
            data, tuple(numbered), tuple(found[name] for name in numbered), options
        )
        self._samples = [samples[name] for name in self._names]
        self._labels = [labels[name] for name in self._names]
        is_labeled = np.concatenate(self._labels) != NO_LABEL
        self.labeled = "all" if is_labeled.all() else "some" if is_labeled.any() else "none"
        if self.labeled == "none":
            _warn_of_unread(data, {name: unread[name] for name in self._names if name in unread})
        self.shards = tuple(
            ShardInfo(
                name.replace("/", "-"),
                None,
                len(samples[name]),
                found[name].num_bytes,
                self._identify(name, found[name]),
            )
            for name in self._names
        )
        self._prepare()

    def _identify(self, name: str, status: FileStatus) -> str:
        text = f"{self._storage.describe(name)}\n{status.num_bytes} {status.modified_ns}{status.version}"
        return xxhash.xxh3_128_hexdigest(text.encode(errors="surrogateescape"))

    def _prepare(self) -> None:
        self._readers: OrderedDict[int, Reader] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_readers", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def known_labels(self, shard: int) -> NDArray[np.int32]:
        """Those of the indices."""
        return self._labels[shard]

    def read_batch(
        self, locations: Sequence[Location], *, with_logits: bool = False, buffers: BufferPool | None = None
    ) -> list[Record]:
        """The records at several locations; LogitsError where logits are asked for, which a tar does not hold."""
        samples = [self._samples[shard][row] for shard, row in locations]
        readers = {shard: self._open(shard) for shard in {shard for shard, _ in locations}}
        if buffers is None:
            found: list[Buffer] = [
                readers[shard].read(sample.offset, sample.num_bytes)
                for (shard, _), sample in zip(locations, samples, strict=True)
            ]
            sizes = [len(content) for content in found]
        else:
            memory = buffers.take((sum(sample.num_bytes for sample in samples),)).data
            found, sizes, start = [], [], 0
            for (shard, _), sample in zip(locations, samples, strict=True):
                part = memory[start : start + sample.num_bytes]
                sizes.append(readers[shard].read_into(part, sample.offset))
                found.append(part)
                start += sample.num_bytes
        return [
            self._build(location, sample, content, size, with_logits)
            for location, sample, content, size in zip(locations, samples, found, sizes, strict=True)
        ]

    def _build(self, location: Location, sample: TarSample, encoded: Buffer, size: int, with_logits: bool) -> Record:
        shard, row = location
        filename = f"{sample.name}.{sample.suffix}"
        where = f"{self._storage.describe(self._names[shard])}: {filename}"
        if with_logits:
            raise LogitsError(f"{where}: a tar holds no logits; give a --store")
        if size != sample.num_bytes:
            raise RecordError(
                f"{where}: {size} of {sample.num_bytes} bytes are there: the tar was cut short; copy it again"
            )
        return Record(encoded, int(self._labels[shard][row]), filename, record_key(encoded), where)

    def _open(self, shard: int) -> Reader:
        with self._lock:
            reader = self._readers.get(shard)
            if reader is None:
                reader = self._readers[shard] = self._storage.open_reader(self._names[shard])
            self._readers.move_to_end(shard)
            # Who reads holds a reference of its own, so a file that goes here is closed behind its last read.
            if len(self._readers) > MAX_OPEN_TARS:
                self._readers.popitem(last=False)
            return reader

    def iter_shard(self, shard: int, *, with_logits: bool = False) -> Iterator[Record]:
        """The images of a tar in order; raises as ``read_batch``."""
        reader = self._storage.open_reader(self._names[shard], in_order=True)
        for row, sample in enumerate(self._samples[shard]):
            encoded = reader.read(sample.offset, sample.num_bytes)
            yield self._build((shard, row), sample, encoded, len(encoded), with_logits)

    def fetch(self, shard: int, go_on: Callable[[], bool] = lambda: True) -> None:
        """All of a tar."""
        self._open(shard).fetch(go_on)


_Opened = tuple[dict[str, list[TarSample]], dict[str, NDArray[np.int32]], ClassTable | None, dict[str, tuple[str, ...]]]


@lru_cache(2)  # a command opens the splits of its data one after another
def _open_all(data: Path, names: tuple[str, ...], statuses: tuple[FileStatus, ...], options: RecordOptions) -> _Opened:
    """The samples and labels of tars, the classes where their names are known, and what might be labels."""
    with progress("tars", len(names), unit="tars") as advance:
        load = zip(names, statuses, strict=True)
        indices: dict[str, TarIndex] = {}
        loaded = prefetch(
            load, lambda item: load_tar_index(data / item[0], item[1]), threads=INDEX_THREADS, ahead=2 * INDEX_THREADS
        )
        for name, found in zip(names, loaded, strict=True):
            indices[name] = found
            advance(1)
    warn_of_left_out(data, indices)
    samples = {name: index.samples for name, index in indices.items()}
    unread = {name: hints for name, index in indices.items() if (hints := _find_unread(index, options))}
    texts = [_label_text(sample, data / name, options) for name in names for sample in samples[name]]
    numbers, classes = number_labels(texts, options, str(data))
    # Of millions of samples the texts would fill the memory.
    indices.clear()
    samples = {name: [sample._replace(cls=None, json=None) for sample in samples[name]] for name in names}
    ends = np.cumsum([len(samples[name]) for name in names])[:-1]
    return samples, dict(zip(names, np.split(numbers, ends), strict=True)), classes, unread


def _find_unread(index: TarIndex, options: RecordOptions) -> tuple[str, ...]:
    """The fields of the first sample's json, none of which is known as the label, and ".txt" where there are texts."""
    first = index.samples[0]
    if options.label_feature is not None or first.cls is not None:
        return ()
    try:
        found = {} if first.json is None else parse_json(first.json.encode())
    except ValueError:
        return ()  # as is said with the label
    fields = list(found) if isinstance(found, dict) else []
    if first.json is not None and (not fields or choose_column(fields, None, LABEL_COLUMNS, "", "") is not None):
        return ()
    return (*fields, *([".txt"] if index.has_txt else []))


def _warn_of_unread(data: Path, found: Mapping[str, Sequence[str]]) -> None:
    """Say what of a split without labels may be these."""
    if not found:
        return
    names = list(dict.fromkeys(name for names in found.values() for name in names))
    where = str(data / next(iter(found)))
    fields = [name for name in names if name != ".txt"]
    warn_without_label(fields, where, thing="field of the json")
    if not fields:
        warnings.warn(
            f"{where}: no sample has a label, has NAME.txt: labels are read from NAME.cls, or from a field of "
            "NAME.json; write them so, if these texts are labels",
            stacklevel=3,
        )


def _label_text(sample: TarSample, path: Path, options: RecordOptions) -> str | int | None:
    option = options.label_feature
    if sample.json is None or (sample.cls and option is None):
        if option not in (None, "cls") and sample.cls:
            choose_column(["cls"], option, (), "--label-feature", f"{path}: {sample.name}")
        return as_label(sample.cls, f"{path}: {sample.name}.cls", RecordError)
    where = f"{path}: {sample.name}.json"
    try:
        found = parse_json(sample.json.encode())
    except ValueError as error:
        raise RecordError(f"{where}: is not JSON: {error}") from error
    if not isinstance(found, dict):
        label = as_label(found, f"{where}:", RecordError)
        if option is None:
            return label
    # The option names a field of the JSON first, or the file beside it.
    fields = found if isinstance(found, dict) else {}
    if sample.cls:
        fields = {"cls": sample.cls, **fields}
    column = choose_column(list(fields), option, LABEL_COLUMNS, "--label-feature", where)
    if column is None:
        return None
    return as_label(fields[column], f"{where}: {column}", RecordError)
