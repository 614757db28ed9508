"""A table of image files as a source of records: CSV, JSONL or Parquet with a path, a label and a split a row.

    path,label,split                {"path": "images/1.jpg", "label": "cat", "split": "train"}
    images/1.jpg,cat,train          {"path": "images/2.jpg", "label": "dog", "split": "train"}

Paths are relative to the table's folder. Label and split may be missing: then records have no label, or are in no
splits. A text file of paths, one a line (.txt), is such a table too. Rows keep their order; blank lines do not count.
"""

from __future__ import annotations

import csv
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ConfigError
from teachonce.records.class_table import ClassTable, read_lines
from teachonce.records.containers.labels import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    SPLIT_COLUMNS,
    as_label,
    choose_column,
    number_labels,
    warn_without_label,
)
from teachonce.records.image_folder import ImageFileSource
from teachonce.records.image_listing import ImageListing, check_split_names, index_images
from teachonce.records.options import RecordOptions
from teachonce.records.source import RecordSource
from teachonce.storage.address import has_scheme, is_remote
from teachonce.storage.files import locate
from teachonce.storage.names import check_component
from teachonce.storage.storage import FileStatus
from teachonce.storage.strict_json import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet", ".txt")
_EXPECTED = "a header with path, and label and split where there are any"
_CONTROL = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class ImageTable:
    """The rows of a table: images, their labels [N], and which of ``splits`` [N] each is in (all 0 without any)."""

    images: ImageListing
    labels: NDArray[np.int32]
    classes: ClassTable | None
    splits: tuple[str, ...]
    split_of: NDArray[np.int32]

    def open_split(self, name: str, split: str, *, with_boxes: bool = False) -> RecordSource:
        """The rows of the split of this name ("": all), as ``split``."""
        chosen = np.flatnonzero(self.split_of == (self.splits.index(name) if name else 0))
        return ImageFileSource(
            self.images.select(chosen),
            self.labels[chosen],
            self.classes,
            split=split,
            format="table",
            with_boxes=with_boxes,
        )


def read_table(path: Path, options: RecordOptions) -> ImageTable:
    """The table in a file; raises ConfigError, with the line, for what is none."""
    storage, name = locate(path, ConfigError)
    # A command asks several times what the data is.
    return _read_table(path, storage.status(name), options)


@lru_cache(4)
def _read_table(path: Path, status: FileStatus, options: RecordOptions) -> ImageTable:
    columns = _read_columns(path, options)
    paths, labels, splits = columns
    if not paths:
        raise ConfigError(f"{path}: has no row, expected an image a row")
    splits = [(split or "").strip() or None for split in splits]
    numbers, classes = number_labels(labels, options, str(path))
    names = sorted({split for split in splits if split is not None})
    for split in names:
        check_component(split, f"{path}: split", ConfigError)
    check_split_names(names, str(path))
    if names and None in splits:
        raise ConfigError(f"{path}: row {splits.index(None) + 1} has no split, others have; complete the table")
    number_of = {split: number for number, split in enumerate(names)}
    split_of = np.array([number_of.get(split or "", 0) for split in splits], np.int32)
    root, relative = _place(path, paths)
    return ImageTable(index_images(root, relative), numbers, classes, tuple(names), split_of)


_Columns = tuple[list[str], list[str | int | None], list[str | None]]
"""Paths, labels and splits."""


def _read_columns(path: Path, options: RecordOptions) -> _Columns:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        for option, given in (("--image-feature", options.image_feature), ("--label-feature", options.label_feature)):
            if given is not None:
                raise ConfigError(f"{option} {given}: {path} is a list of paths and has no columns; leave it out")
        lines = [line.strip() for _, line in read_lines(path) if line]
        return lines, [None] * len(lines), [None] * len(lines)
    if suffix == ".parquet":
        return _read_parquet(path, options)
    is_csv = suffix == ".csv"
    iter_rows = _iter_csv if is_csv else _iter_json
    # Of JSON every row has keys of its own, as some programs leave out what is null.
    names = _read_header(path) if is_csv else list(dict.fromkeys(name for _, row in _iter_json(path) for name in row))
    paths: list[str] = []
    labels: list[str | int | None] = []
    splits: list[str | None] = []
    image, label, split = _choose_columns(names, options, path) if names else ("", None, None)
    for where, row in iter_rows(path):
        value = row.get(image)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{where}: {image} is {value!r}, expected the path of an image")
        if is_csv:
            _check_fields(row, (image, label, split), where)
        paths.append(value)
        found = None if label is None else row.get(label)
        labels.append(as_label(found, f"{where}: {label}", ConfigError))
        part = None if split is None else row.get(split) or None
        if not isinstance(part, str | None):
            raise ConfigError(f"{where}: {split} is {part!r}, expected the name of a split")
        splits.append(part)
    return paths, labels, splits


def _choose_columns(names: Sequence[str], options: RecordOptions, path: Path) -> tuple[str, str | None, str | None]:
    image = choose_column(names, options.image_feature, IMAGE_COLUMNS, "--image-feature", str(path))
    if image is None:
        raise ConfigError(
            f"{path}: has the columns {', '.join(names)}, expected {_EXPECTED}; name the column of paths with "
            "--image-feature"
        )
    label = choose_column(names, options.label_feature, LABEL_COLUMNS, "--label-feature", str(path))
    split = choose_column(names, None, SPLIT_COLUMNS, "", str(path))
    chosen = (name for name in (image, label, split) if name is not None)
    doubled = next((name for name in chosen if names.count(name) > 1), None)
    if doubled is not None:
        raise ConfigError(f"{path}: has {names.count(doubled)} columns {doubled}, expected one; rename the others")
    if label is None:
        warn_without_label([name.strip() for name in names if name not in (image, split)], str(path))
    return image, label, split


def _read_header(path: Path) -> list[str]:
    header = next((fields for _, fields in _iter_fields(path)), None)
    if header is None:
        raise ConfigError(f"{path}: is empty, expected {_EXPECTED}")
    return header


def _iter_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    header: list[str] | None = None
    for where, fields in _iter_fields(path):
        if header is None:
            header = fields
        elif len(fields) != len(header):
            raise ConfigError(f"{where}: {len(fields)} fields, expected {len(header)}: {', '.join(header)}")
        else:
            yield where, dict(zip(header, fields, strict=True))


def _iter_fields(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The rows that are not blank, with the line that each begins in: where a quote is wrong, the row ends far below.

    Strictly: a reader that is not takes all that follows such a quote for one field.
    """
    reader = csv.reader((line + "\n" for _, line in read_lines(path)), skipinitialspace=True, strict=True)
    first = 1
    try:
        for fields in reader:
            if fields:
                yield f"{path} line {first}", fields
            first = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{path} line {first}: is no row of CSV: {error}; mend its quotes") from error


def _check_fields(row: dict[str, Any], columns: Sequence[str | None], where: str) -> None:
    """Raise ConfigError for a field of several lines, as two quotes make it that are in rows apart."""
    for column in columns:
        value = "" if column is None else row[column].strip()
        if _CONTROL.search(value):
            raise ConfigError(
                f"{where}: {column} is {value!r}, with a line break or control character, expected one line; mend the "
                "quotes"
            )


def _iter_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in read_lines(path):
        if not line:
            continue
        where = f"{path} line {number}"
        try:
            row = parse_json(line.encode())
        except ValueError as error:
            raise ConfigError(f"{where}: is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: is not a JSON object, expected path, and label and split where there are any")
        yield where, row


def _read_parquet(path: Path, options: RecordOptions) -> _Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    storage, name = locate(path, ConfigError)
    try:
        file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(storage.map(name)[:])))
        image, label, split = _choose_columns(file.schema_arrow.names, options, path)
        table = file.read(columns=[column for column in (image, label, split) if column is not None])
    except pa.ArrowException as error:
        raise ConfigError(f"{path}: is not a Parquet file that can be read: {error}".splitlines()[0]) from error
    paths = _texts(table, image, path)
    if None in paths or "" in paths:
        raise ConfigError(f"{path}: row {next(i for i, text in enumerate(paths, 1) if not text)} has no {image}")
    labels: list[Any] = [None] * len(paths)
    if label is not None:
        column = table[label]
        if not (_is_number(column.type) or _is_text(column.type)):
            raise ConfigError(f"{path}: column {label} is of {column.type}, expected names or whole numbers")
        found = enumerate(column.to_pylist(), 1)
        labels = [as_label(value, f"{path}: row {row}: {label}", ConfigError) for row, value in found]
    splits: list[Any] = [None] * len(paths)
    if split is not None:
        splits = [text or None for text in _texts(table, split, path)]
    return [str(text) for text in paths], labels, splits


def _is_number(kind: pa.DataType) -> bool:
    """Whether a column can be one of whole numbers, or has no value at all."""
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _texts(table: pa.Table, column: str, path: Path) -> list[str | None]:
    if not _is_text(table[column].type):
        raise ConfigError(f"{path}: column {column} is of {table[column].type}, expected texts")
    found: list[str | None] = table[column].to_pylist()
    return found


def _place(path: Path, names: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder below which all images lie, and their names there: the table's own, unless they lead elsewhere."""
    for row, name in enumerate(names, 1):
        if _CONTROL.search(name):
            raise ConfigError(f"{path}: row {row}: the path {name!r} has a control character")
        if has_scheme(name):
            raise ConfigError(
                f"{path}: row {row}: {name} is an address, expected a path relative to the table; a table at an "
                "address, beside its images, is read there: give its address as --data"
            )
    clean = [posixpath.normpath(name) for name in names]
    if not any(name.startswith(("/", "../")) for name in clean):
        return path.parent, clean
    if is_remote(path):
        outside = next(name for name in names if posixpath.normpath(name).startswith(("/", "../")))
        raise ConfigError(f"{path}: the path {outside} leads out of the table's folder; expected one below it")
    full = [posixpath.normpath(posixpath.join(os.path.abspath(path.parent), name)) for name in clean]  # noqa: PTH100
    root = posixpath.commonpath([posixpath.dirname(name) for name in full])
    return Path(root), [posixpath.relpath(name, root) for name in full]
