"""Names and texts of the labels of a dataset: classes.json beside TFRecord shards, and files of names, one a line."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from teachonce.errors import ConfigError, RecordError
from teachonce.storage.files import atomic_write, find_json, locate, write_json
from teachonce.storage.strict_json import convert_json, json_values

CLASSES_NAME = "classes.json"
LABELS_NAME = "labels.txt"
"""Of the file beside an exported model: what its classes are called, one a line, in the order of its outputs."""
BACKGROUND = "background"
"""Name of label 0 where the data has none of that label, as TFRecords of ImageNet."""
MAX_LINE_CHARACTERS = 1 << 20
"""A file that holds something else may have no line break in gigabytes."""


@dataclass(frozen=True)
class ClassTable:
    """Name and human text of every label, background (label 0) included where the data has one."""

    names: tuple[str, ...]
    texts: tuple[str, ...]
    has_background: bool


def hash_classes(names: Sequence[str]) -> str:
    """A hash of class names in the order of a model's outputs, to tell whether two models' outputs mean the same."""
    return xxhash.xxh3_128_hexdigest("\n".join(names).encode())


def brief_names(names: Sequence[str], most: int = 8) -> str:
    """Names for people: all of few, of many the first ones and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names) - most:,} more)"


def shown_names(classes: ClassTable | None) -> tuple[str, ...] | None:
    """The texts of the labels, where one is of several labels or empty with the name; None for data without names."""
    if classes is None:
        return None
    occurrences = Counter(classes.texts)
    return tuple(
        text if text == name or (text and occurrences[text] == 1) else f"{text} ({name})" if text else name
        for name, text in zip(classes.names, classes.texts, strict=True)
    )


def write_classes(data: Path, classes: ClassTable) -> None:
    """Keep the class table beside the shards."""
    write_json(data / CLASSES_NAME, json_values(classes))


def positions(known: Sequence[str], names: Sequence[str], numbers: Iterable[int], where: str) -> dict[int, int]:
    """Where ``names``, those of ``--labels``, have the ``known`` names at some positions.

    As many names of which none is known are other words for the same classes. Raises ConfigError for one of these
    numbers whose name is not among the names.
    """
    place_of = {name: label for label, name in enumerate(names)}
    if len(names) == len(known) and not place_of.keys() & set(known):
        return {number: number for number in numbers}
    unknown = next((known[number] for number in numbers if known[number] not in place_of), None)
    if unknown is not None:
        raise unknown_class(unknown, names, where)
    return {number: place_of[known[number]] for number in numbers}


def unknown_class(name: str, names: Sequence[str], where: str) -> ConfigError:
    """The error of a class that is not among the names that were given, or that the data brings."""
    return ConfigError(
        f"{where}: class {name} is not among the {len(names)} of --labels, or of the data; give the --labels of this "
        "data"
    )


def describe_other_names(names: Sequence[str], expected: Sequence[str]) -> str:
    """How names that differ from those of ``expected`` do so, as a phrase: "2 classes, expected 3"."""
    if len(names) != len(expected):
        return f"{len(names)} classes, expected {len(expected)}"
    label = next(at for at, (name, other) in enumerate(zip(names, expected, strict=True)) if name != other)
    what = "the same classes in another order" if set(names) == set(expected) else "classes of other names"
    return f"{what}: label {label} is {names[label]}, expected {expected[label]}"


def describe_classes(table: ClassTable | None) -> str:
    """A table in a few words, for messages."""
    if table is None:
        return "no list of classes"
    return f"{len(table.names)}, label 1 is {table.names[min(1, len(table.names) - 1)]}"


def read_classes(data: Path) -> ClassTable | None:
    """The class table beside the shards; None where there is none, as with records made elsewhere."""
    path = data / CLASSES_NAME
    value = find_json(path)
    if value is None:
        return None
    table = convert_json(value, ClassTable, path, RecordError, advice="create it again")
    if len(table.names) != len(table.texts) or not table.names:
        raise RecordError(f"{path}: {len(table.names)} names and {len(table.texts)} texts; create it again")
    return table


def check_labels_file(path: Path, names: Sequence[str]) -> None:
    """Raise ConfigError where a file at ``path`` has other names than ``write_labels_file`` would put there."""
    storage, name = locate(path)
    if not storage.has(name):
        return
    found = [line.strip() for _, line in read_lines(path)]
    if found != [line.strip() for line in _label_lines(names)]:
        raise ConfigError(
            f"{path}: has {len(found)} class names, expected the {len(names)} of this model in the order of its "
            "outputs; remove it, or export into another folder"
        )


def write_labels_file(path: Path, names: Sequence[str], *, overwrite: bool = False) -> None:
    """Write class names, one a line; unless it is overwritten, a file of the same ones stays, one of others raises
    ConfigError."""
    with atomic_write(path, overwrite=overwrite) as file:
        file.write("".join(f"{line}\n" for line in _label_lines(names)).encode())
    check_labels_file(path, names)


def _label_lines(names: Sequence[str]) -> list[str]:
    """A line a name, whatever a name holds: the reader of a line break would count on from there."""
    lines = [" ".join(name.splitlines()) for name in names]
    return [line if line.strip() else f"class {number}" for number, line in enumerate(lines)]


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names of a labels file; in their order. ConfigError for an empty or doubled line."""
    names: dict[str, int] = {}
    for number, line in read_lines(path):
        name = line.strip()
        if not name:
            raise ConfigError(f"{path} line {number}: empty, expected a class name; every line is a label")
        if name in names:
            raise ConfigError(
                f"{path} line {number}: {name} is a duplicate (of line {names[name]}); remove one of the two"
            )
        names[name] = number
    if not names:
        raise ConfigError(f"{path}: empty, expected one class name a line")
    return tuple(names)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines with their numbers from 1, without line ends; blank lines at the end of the file do not count."""
    blank: list[tuple[int, str]] = []
    storage, name = locate(path, ConfigError)
    try:
        # utf-8-sig: a byte order mark, as some editors write it, is no part of the first name.
        with storage.stream(name) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as text:
            for number, line in enumerate(iter(lambda: text.readline(MAX_LINE_CHARACTERS + 1), ""), 1):
                if len(line) > MAX_LINE_CHARACTERS:
                    raise ConfigError(
                        f"{path} line {number}: more than {MAX_LINE_CHARACTERS:,} characters without a line break; "
                        "expected a text file"
                    )
                if not line.strip():
                    blank.append((number, ""))
                    continue
                yield from blank
                blank.clear()
                yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error}") from error
