"""Hugging Face data as a source of records, by pyarrow alone: a folder of Parquet, and what ``save_to_disk`` leaves.

Arrow files (save_to_disk) are mapped into memory and read by row as they are. Parquet has no rows to go to: each file
is copied once, its images as they are, into an Arrow file in the cache folder, which must have the room. Images are the
bytes of an Image feature, or the file at its path; class names are those of the ClassLabel feature. -1, as test splits
have it, is no label.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.engine.buffers import BufferPool
from teachonce.engine.progress import progress
from teachonce.errors import ConfigError, LogitsError, RecordError, TeachonceError
from teachonce.records.containers.hf_schema import (
    find_columns,
    find_common_columns,
    is_of_images,
    warn_where_unlabeled,
)
from teachonce.records.containers.labels import as_label, number_labels
from teachonce.records.options import RecordOptions
from teachonce.records.source import NO_LABEL, Location, Record, RecordSource, ShardInfo, record_key
from teachonce.storage.address import has_scheme
from teachonce.storage.cache_folder import cache_folder, filling_cache
from teachonce.storage.files import atomic_write, exists, locate, open_storage
from teachonce.storage.names import check_component
from teachonce.storage.storage import FileStatus
from teachonce.storage.strict_json import parse_json
from teachonce.terminal import plural

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_SUFFIX, ARROW_SUFFIX = ".parquet", ".arrow"
_BATCH_ROWS = 256
_ADVICE = "; name the column with --label-feature"


class ArrowSource(RecordSource):
    """Images in the rows of Parquet or Arrow files below ``data``; names of files may have folders."""

    format = "arrow"

    def __init__(
        self,
        data: Path,
        split: str,
        names: Sequence[str],
        options: RecordOptions,
        *,
        all_names: Sequence[str] = (),
        with_boxes: bool = False,
    ) -> None:
        """``all_names`` are the files of all splits, whose labels are numbered together where they are texts."""
        self.split, self.with_boxes = split, with_boxes
        self._data = data
        self._storage = open_storage(data, RecordError)
        self._names = sorted(names)
        statuses = [self._storage.status(name) for name in self._names]
        self._files = _prepare(data, self._names, statuses, options)
        self._tables: dict[int, _Rows] = {}
        rows = [self._rows(shard) for shard in range(len(self._files))]
        # Some writers leave files without rows, where they had fewer of these than workers.
        kept = [shard for shard, found in enumerate(rows) if len(found)]
        if not kept:
            raise RecordError(f"{data}: {plural(len(rows), 'file')} of {split} without any row, expected images")
        self._names, statuses = [self._names[shard] for shard in kept], [statuses[shard] for shard in kept]
        self._files, rows = [self._files[shard] for shard in kept], [rows[shard] for shard in kept]
        self._tables = {}
        places = [str(data / name) for name in self._names]
        schemas = {where: shard.schema for where, shard in zip(places, rows, strict=True)}
        columns = find_common_columns(schemas, options)
        # Copies of Parquet have no other column, and were asked before.
        warn_where_unlabeled(columns, rows[0].schema, places[0])
        self._columns = columns
        self._options = options
        texts = [
            as_label(label, f"{data / name}: {columns.label}", ConfigError, advice=_ADVICE)
            for name, shard in zip(self._names, rows, strict=True)
            for label in shard.labels(columns.label)
        ]
        num_rows = len(texts)
        if (
            columns.label
            and columns.names is None
            and options.labels is None
            and any(isinstance(t, str) for t in texts)
        ):
            others = sorted(set(all_names) - set(self._names))
            texts += sorted({text for name in others for text in _read_texts(data / name, columns.label)})
        labels, self.classes = number_labels(texts, options, str(data), columns.names)
        labels = labels[:num_rows]
        self._labels = np.split(labels, np.cumsum([len(shard) for shard in rows])[:-1])
        self.labeled = "none" if (labels == NO_LABEL).all() else "all" if (labels != NO_LABEL).all() else "some"
        self.shards = tuple(
            ShardInfo(name.replace("/", "-"), None, len(shard), status.num_bytes, self._identify(name, status))
            for name, shard, status in zip(self._names, rows, statuses, strict=True)
        )

    def _identify(self, name: str, status: FileStatus) -> str:
        text = f"{self._storage.describe(name)}\n{status.num_bytes} {status.modified_ns}{status.version}"
        text += f"\n{self._columns.image}"
        return xxhash.xxh3_128_hexdigest(text.encode(errors="surrogateescape"))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}

    def _rows(self, shard: int) -> _Rows:
        # Two threads may open the same file; one of the two is forgotten.
        if shard not in self._tables:
            self._tables[shard] = _Rows(self._files[shard])
        return self._tables[shard]

    def known_labels(self, shard: int) -> NDArray[np.int32]:
        """Those of the label's column."""
        return self._labels[shard]

    def read_batch(
        self, locations: Sequence[Location], *, with_logits: bool = False, buffers: BufferPool | None = None
    ) -> list[Record]:
        """The records at several locations; LogitsError where logits are asked for, which such data does not hold."""
        return [self._read(shard, row, with_logits) for shard, row in locations]

    def iter_shard(self, shard: int, *, with_logits: bool = False) -> Iterator[Record]:
        """The records of a file in order; raises as ``read_batch``."""
        for row in range(self.shards[shard].num_records):
            yield self._read(shard, row, with_logits)

    def _read(self, shard: int, row: int, with_logits: bool) -> Record:
        where = f"{self._storage.describe(self._names[shard])} row {row}"
        if with_logits:
            raise LogitsError(f"{where}: Hugging Face data holds no logits that are known here; give a --store")
        encoded, path = self._rows(shard).image(self._columns.image, row)
        if encoded is None:
            if not path:
                raise RecordError(f"{where}: {self._columns.image} is null, expected an image")
            if has_scheme(path):
                raise RecordError(
                    f"{where}: {self._columns.image} is the address {path}, expected the bytes of an image, or a path "
                    "below the data; write the data again with the images in it"
                )
            storage, name = locate(self._data / path, RecordError)
            try:
                encoded = storage.read(name)
            except RecordError as error:
                if not (self.keeps_unreadable and storage.is_local):
                    raise
                return Record.without_image(int(self._labels[shard][row]), path, where, error)
        filename = path or f"{self.shards[shard].name}-{row}"
        return Record(encoded, int(self._labels[shard][row]), filename, record_key(encoded), where)


class _Rows:
    """The rows of an Arrow file, mapped; columns are taken apart when they are first asked for."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import ipc

        storage, name = locate(path, RecordError)
        buffer = pa.py_buffer(storage.map(name)[:])
        try:
            # save_to_disk writes streams; files are what others write.
            table = (ipc.open_file if bytes(buffer[:6]) == b"ARROW1" else ipc.open_stream)(buffer).read_all()
            # Its numbers say where in the file the images are: none may lead elsewhere.
            table.validate(full=True)
        except pa.ArrowException as error:
            raise RecordError(
                f"{path}: is not an Arrow file, or is damaged: {error}; copy it again".splitlines()[0]
            ) from error
        self.schema = table.schema
        self._table = table
        self._starts = np.cumsum([0, *(len(chunk) for chunk in table.column(0).chunks)])
        self._chunks: dict[str, list[tuple[pa.Array, pa.Array | None]]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def labels(self, column: str | None) -> list[Any]:
        """A column as Python values; None for each row without one."""
        if column is None:
            return [None] * len(self)
        values: list[Any] = self._table[column].to_pylist()
        return values

    def image(self, column: str, row: int) -> tuple[bytes | None, str]:
        """The bytes of a row, None where there are none, and its path, "" where there is none."""
        if column not in self._chunks:
            self._chunks[column] = [_take_apart(chunk) for chunk in self._table[column].chunks]
        chunk = int(self._starts.searchsorted(row, side="right")) - 1
        images, paths = self._chunks[column][chunk]
        at = row - int(self._starts[chunk])
        content = images[at].as_buffer()
        path = None if paths is None else paths[at].as_py()
        return None if content is None else content.to_pybytes(), path or ""


def _take_apart(chunk: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    import pyarrow as pa

    if not pa.types.is_struct(chunk.type):
        return chunk, None
    # Not ``field``, which does not know that a row is null as a whole.
    parts = dict(zip((field.name for field in chunk.type), chunk.flatten(), strict=True))
    return parts["bytes"], parts.get("path")


def _read_texts(path: Path, column: str) -> set[str]:
    """The texts in a column of a file; none where it has no such column, as test splits may have none."""
    if not path.name.lower().endswith(PARQUET_SUFFIX):
        storage, name = locate(path, RecordError)
        rows = _Rows(storage.local_path(name))
        found = rows.labels(column) if column in rows.schema.names else []
    else:
        file = _open_parquet(path)
        found = file.read(columns=[column])[column].to_pylist() if column in file.schema_arrow.names else []
    return {text.strip() for text in found if isinstance(text, str)}


def find_saved_splits(data: Path) -> dict[str, list[str]] | None:
    """The Arrow files of ``save_to_disk`` by split ("": it has none); None where the folder is no such.

    Splits and files are those that its own lists name: a folder may hold what was saved there before.
    """
    storage = open_storage(data)
    if not storage.has("dataset_dict.json"):
        is_saved = storage.has("state.json") and storage.has("dataset_info.json")
        return {"": _arrow_files(data, "")} if is_saved else None
    folders = [name for name in sorted(storage.list_folder().folders) if storage.has(f"{name}/state.json")]
    listed = _read_list(data / "dataset_dict.json", "splits")
    if listed is not None and (missing := sorted(set(listed) - set(folders))):
        # The others can be used without it, and it may have been left out on purpose.
        warnings.warn(
            f"{data / 'dataset_dict.json'}: names the split {missing[0]}, which has no folder with a state.json here; "
            "copy it again if it is needed",
            stacklevel=2,
        )
    return {folder: _arrow_files(data, f"{folder}/") for folder in folders if listed is None or folder in listed}


def _arrow_files(data: Path, prefix: str) -> list[str]:
    state = data / prefix / "state.json"
    found = _read_list(state, "_data_files", "filename")
    if found is None:
        # What datasets' own map() left is no part of it.
        listed = open_storage(data).list_folder(prefix.rstrip("/")).files
        found = [name for name in listed if name.endswith(ARROW_SUFFIX) and not name.startswith(("cache-", "."))]
    if not found:
        raise RecordError(f"{data / prefix}: has no Arrow file, expected data-NNNNN-of-NNNNN.arrow; save it again")
    return [f"{prefix}{check_component(name, f'{state}: a file', RecordError)}" for name in found]


def _read_list(path: Path, key: str, name: str = "") -> list[str] | None:
    """The texts, or those called ``name``, in a list of a JSON file; None where it has no such list."""
    storage, file = locate(path, RecordError)
    try:
        content = parse_json(storage.read(file))
        found = content.get(key) if isinstance(content, dict) else None
    except ValueError as error:
        raise RecordError(f"{path}: is not JSON: {error}; copy it again".splitlines()[0]) from error
    if not isinstance(found, list):
        return None
    items = [item.get(name) if isinstance(item, dict) else item for item in found]
    texts = [item for item in items if isinstance(item, str)]
    return texts if len(texts) == len(items) else None


def holds_image_columns(path: Path, options: RecordOptions) -> bool:
    """Whether a Parquet file holds images, and not their paths; what is wrong with its labels is seen later."""
    try:
        schema = _read_parquet_schema(path)
    except ConfigError:
        return False
    return is_of_images(schema, options)


def _open_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    storage, name = locate(path, RecordError)
    try:
        return pq.ParquetFile(pa.BufferReader(pa.py_buffer(storage.map(name)[:])))
    except pa.ArrowException as error:
        raise RecordError(
            f"{path}: is not a Parquet file, or is damaged: {error}; copy it again".splitlines()[0]
        ) from error


def _read_parquet_schema(path: Path) -> pa.Schema:
    try:
        return _open_parquet(path).schema_arrow
    except RecordError as error:
        raise ConfigError(str(error)) from error


def _prepare(data: Path, names: Sequence[str], statuses: Sequence[FileStatus], options: RecordOptions) -> list[Path]:
    """The Arrow files to read: those given, or the copies of Parquet files, which are made where they are missing."""
    if not names[0].lower().endswith(PARQUET_SUFFIX):
        storage = open_storage(data, RecordError)
        return [storage.local_path(name) for name in names]
    cache = cache_folder()
    if cache is None:
        raise ConfigError(
            f"{data}: is Parquet, and there is no cache folder to copy it into by rows; set XDG_CACHE_HOME"
        )
    first, schema = str(data / names[0]), _read_parquet_schema(data / names[0])
    columns = find_columns(schema, options, first)
    warn_where_unlabeled(columns, schema, first)
    wanted = [column for column in (columns.image, columns.label) if column is not None]

    def check(path: Path, other: pa.Schema) -> None:
        # Most are as the first one.
        if not other.equals(schema, check_metadata=True):
            find_common_columns({first: schema, str(path): other}, options)

    storage = open_storage(data, RecordError)
    places = []
    for name, status in zip(names, statuses, strict=True):
        text = f"{storage.describe(name)}\n{status}\n{wanted}"
        places.append(
            cache / "arrow" / f"{xxhash.xxh3_128_hexdigest(text.encode(errors='surrogateescape'))}{ARROW_SUFFIX}"
        )
    if all(map(exists, places)):
        return places
    with filling_cache(places[0].stem):
        if missing := [index for index, place in enumerate(places) if not exists(place)]:
            with progress(f"copying Parquet into {cache / 'arrow'}", len(missing), unit="files") as advance:
                for index in missing:
                    _copy_rows(data / names[index], places[index], wanted, check)
                    advance(1)
    return places


def _copy_rows(path: Path, target: Path, wanted: Sequence[str], check: Callable[[Path, pa.Schema], None]) -> None:
    """Copy the ``wanted`` columns; ``check`` raises where those of a file with this schema are others."""
    import pyarrow as pa
    from pyarrow import ipc

    file = _open_parquet(path)
    missing = next((name for name in wanted if name not in file.schema_arrow.names), None)
    if missing is not None:
        raise RecordError(f"{path}: has no column {missing}, other files of the data have; copy it again")
    # Of files without rows the types may be any.
    if file.metadata.num_rows:
        check(path, file.schema_arrow)
    schema = pa.schema([file.schema_arrow.field(name) for name in wanted], file.schema_arrow.metadata)
    try:
        with atomic_write(target) as out, ipc.new_stream(out, schema) as writer:
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                writer.write_batch(batch.select(wanted).cast(schema) if batch.schema != schema else batch)
    except pa.ArrowException as error:
        raise RecordError(f"{path}: is damaged: {error}; copy it again".splitlines()[0]) from error
    except TeachonceError as error:
        raise RecordError(
            f"{path}: cannot be copied into the cache: {error}; make room, or set XDG_CACHE_HOME"
        ) from error
