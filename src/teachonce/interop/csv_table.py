"""The walkthrough's CSV logits by basename: lines found by ``csv_lines``, turned into numbers on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from teachonce.errors import ConfigError, LogitsError
from teachonce.interop.csv_lines import CsvLines
from teachonce.native import load_library
from teachonce.options import parse_number
from teachonce.records.class_space import ClassSpace, resolve_offset

_ONE_COLUMN = csv.ReadOptions(column_names=["logit"], use_threads=False, block_size=1 << 22)
_NO_QUOTES = csv.ParseOptions(quote_char=False, double_quote=False, escape_char=False, ignore_empty_lines=False)
_FLOAT64 = csv.ConvertOptions(column_types={"logit": pa.float64()}, null_values=[], check_utf8=False)


class CsvTable:
    """A ``LogitTable`` of ``SPLIT-*.csv`` in ``folder``; the first ``drop`` numbers of each line are left out."""

    def __init__(
        self,
        folder: Path,
        *,
        split: str,
        data_classes: int | None = None,
        offset: int | None = None,
        drop: int = 0,
    ) -> None:
        self.lines = CsvLines(folder, split)
        num_numbers = self.lines.num_numbers
        if not 0 <= drop < num_numbers:
            raise ConfigError(f"--drop {drop}: expected fewer than the {num_numbers} numbers of a line of {folder}")
        self.drop = drop
        offset = resolve_offset(num_numbers - drop, data_classes, offset, model=f"{folder}/{split}-*.csv")
        self.class_space = ClassSpace(num_classes=num_numbers - drop, offset=offset)

    def __len__(self) -> int:
        return len(self.lines)

    def digest(self) -> str:
        """Hash of the files' content."""
        return self.lines.digest

    def find_logits(self, *, key: int, filename: str, label: int | None = None) -> NDArray[np.float32]:
        """Logits of the image with this basename; LogitsError naming line and image where one is not a finite
        number."""
        at = self.lines.find(filename)
        name, text = self.lines.read(at)
        try:
            with np.errstate(over="ignore"):  # a number too large becomes inf, which is refused below
                numbers = [parse_number(word.strip()) for word in text.decode().split(",")[self.drop :]]
                logits = np.array(numbers, np.float64).astype(np.float32)
        except ValueError as error:
            raise LogitsError(f"{self.lines.describe(at)} ({name}): {error}; expected numbers") from error
        if not np.isfinite(logits).all():
            bad = int(np.flatnonzero(~np.isfinite(logits))[0])
            raise LogitsError(
                f"{self.lines.describe(at)} ({name}): logit {bad} is {logits[bad]}, expected a finite number; a "
                "class that the teacher masks needs a finite one, -1e4 say, else extract again"
            )
        return logits

    def find_all_logits(self, filenames: Sequence[str]) -> NDArray[np.float32]:
        """Logits [n, C] of many images, the same as ``find_logits`` of each, and as its errors; many times as fast."""
        texts = [self.lines.read(at)[1] for at in self.lines.find_all(filenames).tolist()]
        num_numbers = self.lines.num_numbers
        numbers = parse_numbers(b",".join(texts), len(texts) * num_numbers)
        if numbers is not None:
            with np.errstate(over="ignore"):
                logits = numbers.reshape(len(texts), num_numbers)[:, self.drop :].astype(np.float32)
            if np.isfinite(logits).all():
                return logits
        # Something is wrong with a line, or it is written in a way that only Python reads: one by one.
        return np.stack([self.find_logits(key=0, filename=filename) for filename in filenames])


def parse_numbers(text: bytes, count: int) -> NDArray[np.float64] | None:
    """The ``count`` numbers of a text with commas between them; None where it has others, or one that is none."""
    library = load_library()
    if library is not None:
        numbers = np.empty(count)
        if library.teachonce_read_numbers(text, len(text), numbers.ctypes.data, count) == count:
            return numbers
    # As one column and not as a thousand: a column costs more than the numbers that a block of lines puts into it.
    lines = pa.BufferReader(text.replace(b",", b"\n") + b"\n")
    try:
        table = csv.read_csv(lines, _ONE_COLUMN, _NO_QUOTES, _FLOAT64)
    except pa.ArrowInvalid:
        return None
    column = table.column(0)
    return None if column.null_count or len(column) != count else column.to_numpy()
