"""The lines of the walkthrough's CSV files, found by basename: an index of 40 bytes a line, nothing else in memory.

``SPLIT-0.csv``, ``SPLIT-1.csv``, ...: ``basename,number,number,...``, without a header; of a path the basename counts,
quotes and a byte order mark are left out. Every line is checked once, when the index is made: as many numbers as the
first has, a name, a line break at its end. A basename that occurs twice is refused with its name: which of the two
would be meant?
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from teachonce.errors import ConfigError, LogitsError
from teachonce.records.discovery import match_split
from teachonce.storage.files import open_storage
from teachonce.storage.names import check_component
from teachonce.storage.storage import Reader

MAX_LINE_BYTES = 1 << 24
"""The logits of 21,841 classes take half a megabyte; a file that holds something else may have no line break at all."""
_COMMA = ord(",")
_QUOTED = re.compile(rb'"((?:[^"]|"")*)"(?:,|$)')


class _Line(NamedTuple):
    file_index: int
    start: int
    whole: bytes
    name: bytes
    numbers: bytes


class CsvLines:
    """The lines of ``SPLIT-*.csv`` in a folder, of which any is read on demand; picklable, and thread-safe.

    Raises ConfigError where there is no such file and for a split that is not a name of one, LogitsError, with file and
    line, for a line that is cut or another's.
    """

    def __init__(self, folder: Path, split: str) -> None:
        check_component(split, f"{folder}: split", ConfigError)
        self._storage = open_storage(folder)
        if not self._storage.is_folder():
            raise ConfigError(f"{folder}: no such folder; expected one with {split}-*.csv files; check the path")
        found = self._storage.list_folder().files
        names = {name.rpartition("-")[0] for name in found if name.endswith(".csv")}
        prefix = match_split(sorted(names), split) or split
        self._files = sorted((name for name in found if is_csv_of(prefix, name)), key=_number_in_name)
        if not self._files:
            raise ConfigError(
                f"{folder}: is neither a store nor a folder with {split}-*.csv files; check the path and the split"
            )
        self._readers = self._open_readers()
        self.num_numbers = 0
        """Numbers of each line."""
        hasher = xxhash.xxh3_128()
        # Machine integers, not Python's: ImageNet has 1.28 million lines, and memory should stay small.
        hashes, line_hashes, ranges = array("Q"), array("Q"), array("q")
        self._first_name = ""
        for line in self._scan(hasher):
            self._first_name = self._first_name or line.name.decode(errors="backslashreplace")
            hashes.append(_hash(line.name))
            line_hashes.append(_hash(line.whole))
            ranges.extend((line.file_index, line.start, len(line.whole)))
        if not hashes:
            raise LogitsError(f"{folder}: the {split}-*.csv files have no lines; extract the logits again")
        self.digest: str = hasher.hexdigest()
        """Hash of the files' content."""
        unsorted = np.array(hashes, np.uint64)
        order = np.argsort(unsorted, kind="stable")
        self._hashes = unsorted[order]
        self._line_hashes = np.array(line_hashes, np.uint64)[order]
        self._ranges = np.array(ranges, np.int64).reshape(-1, 3)[order]
        self._refuse_duplicates()

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, filename: str) -> int:
        """The number, in this index, of the line with this file name's basename; LogitsError where there is none."""
        return int(self.find_all([filename])[0])

    def find_all(self, filenames: Sequence[str]) -> NDArray[np.int64]:
        """``find`` of many [n]; LogitsError with the first that has no line."""
        hashes = np.array([_hash(name.rpartition("/")[2].encode()) for name in filenames], np.uint64)
        at = np.minimum(self._hashes.searchsorted(hashes), len(self) - 1)
        missing = np.flatnonzero(self._hashes[at] != hashes)
        if len(missing):
            raise LogitsError(
                f"{filenames[missing[0]] or 'an image without a name'}: no line in {self._storage.describe()} "
                f"({len(self._files)} files, {len(self)} lines, the first of {self._first_name!r}); the CSV is "
                "incomplete or of other data"
            )
        return at

    def read(self, at: int) -> tuple[str, bytes]:
        """Name and numbers, as text, of a line; LogitsError where it is not, to the byte, what it was at the scan.

        A line that lost its last digit still has as many numbers, and they are numbers.
        """
        file_index, start, num_bytes = self._ranges[at].tolist()
        line = self._readers[file_index].read(start, num_bytes)
        if _hash(line) != int(self._line_hashes[at]):
            raise LogitsError(
                f"{self.describe(at)}: differs from when the file was opened ({len(line)} bytes, previously "
                f"{num_bytes}): the file was changed; run again"
            )
        name, numbers = _take_apart(line)
        return name.decode(errors="backslashreplace"), numbers

    def describe(self, at: int) -> str:
        """Where a line is, for messages."""
        file_index, start, _ = self._ranges[at].tolist()
        return f"{self._storage.describe(self._files[file_index])} byte {start}"

    def _scan(self, hasher: Any) -> Iterator[_Line]:
        """Every line that is not empty, checked; ``hasher`` gets all bytes."""
        for file_index, file_name in enumerate(self._files):
            start = 0
            with self._storage.stream(file_name) as file:
                for line_number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                    if len(line) > MAX_LINE_BYTES:
                        raise LogitsError(
                            f"{self._storage.describe(file_name)} line {line_number}: more than {MAX_LINE_BYTES:,} "
                            "bytes without a line break; expected a name and its logits"
                        )
                    hasher.update(line)
                    name, numbers = _take_apart(line)
                    if name or numbers:
                        self._check_line(file_name, line_number, name, numbers, line)
                        yield _Line(file_index, start, line, name, numbers)
                    start += len(line)

    def _check_line(self, file_name: str, line_number: int, name: bytes, numbers: bytes, line: bytes) -> None:
        # Six times as fast as bytes.count, which was most of the scan.
        width = int(np.count_nonzero(np.frombuffer(numbers, np.uint8) == _COMMA)) + 1 if numbers else 0
        self.num_numbers = self.num_numbers or width
        if width == self.num_numbers and name and line.endswith(b"\n"):
            return
        where = f"{self._storage.describe(file_name)} line {line_number} ({name.decode(errors='replace')})"
        if width != self.num_numbers or not name:
            raise LogitsError(
                f"{where}: {width} logits, expected a name and {self.num_numbers}; the line is truncated or of "
                "another teacher"
            )
        raise LogitsError(
            f"{where}: no line break at the end, so the last number may be truncated; extract again, or add one if "
            "the line is complete"
        )

    def _refuse_duplicates(self) -> None:
        duplicates = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        if len(duplicates):
            at = int(duplicates[0])
            name, _ = self.read(at)
            raise LogitsError(
                f"{name}: has two lines ({self.describe(at)} and {self.describe(at + 1)}), expected one; "
                f"{len(duplicates)} names are duplicated: remove the wrong lines"
            )

    def _open_readers(self) -> list[Reader]:
        return [self._storage.open_reader(name) for name in self._files]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_readers"}  # open files are a process's

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._readers = self._open_readers()


def _take_apart(line: bytes) -> tuple[bytes, bytes]:
    """Basename and numbers; spreadsheets put a byte order mark before the first line, and quotes around fields."""
    text = line.rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf")
    if quoted := _QUOTED.match(text):
        name, numbers = quoted[1].replace(b'""', b'"'), text[quoted.end() :]
    else:
        name, _, numbers = text.partition(b",")
    return name.rpartition(b"/")[2], numbers.replace(b'"', b"") if b'"' in numbers else numbers


def _hash(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)


def is_csv_of(split: str, name: str) -> bool:
    """Whether a file of this name is read as a part of the split."""
    return name.startswith(f"{split}-") and name.endswith(".csv")


def _number_in_name(name: str) -> tuple[int, str]:
    digits = name.removesuffix(".csv").rpartition("-")[2]
    return (int(digits) if digits.isdecimal() else -1, name)
