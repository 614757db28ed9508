"""Labels as columns, features and JSON have them, names or numbers, as the labels of a data set."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ConfigError, TeachonceError
from teachonce.records.class_table import ClassTable, brief_names, positions, read_labels, unknown_class
from teachonce.records.options import RecordOptions
from teachonce.records.source import NO_LABEL, offset_hint

IMAGE_COLUMNS = ("path", "file_name", "filename", "file", "filepath", "image_path", "image")
LABEL_COLUMNS = ("label", "class", "target", "category", "class_name", "label_name", "cls")
SPLIT_COLUMNS = ("split", "subset")
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")
_WHOLE = re.compile(r"([+-]?[0-9]{1,9})\.0+")


def choose_column(names: Sequence[str], given: str | None, usual: Sequence[str], option: str, where: str) -> str | None:
    """The column that an option names, else the first usual one that is there; None: there is none.

    Spaces around a name, and upper or lower case, make no difference where no column has exactly this name. Raises
    ConfigError where the named one is not there.
    """
    plain = {_plain(name): name for name in reversed(names)} | {name: name for name in names}
    if given is not None and given not in plain and _plain(given) not in plain:
        raise ConfigError(f"{option} {given}: {where} has {', '.join(names) or 'nothing'}; give one of these")
    wanted = usual if given is None else (given,)
    return next((plain[key] for name in wanted for key in (name, _plain(name)) if key in plain), None)


def warn_without_label(others: Sequence[str], where: str, *, thing: str = "column") -> None:
    """Say that images are read without labels where there are ``others`` that may be these, under another name."""
    if others:
        warnings.warn(
            f"{where}: no {thing} is known as the label, so its images have none; has {brief_names(others)}: name one "
            "with --label-feature",
            stacklevel=3,
        )


def _plain(name: str) -> str:
    return name.strip().casefold()


def build_class_table(names: Sequence[str]) -> ClassTable:
    """The classes of these names, which have no background and no other texts."""
    return ClassTable(tuple(names), tuple(names), has_background=False)


def as_label(found: Any, where: str, error: type[TeachonceError], *, advice: str = "") -> str | int | None:
    """A label as a column, a feature or JSON has it; None: there is none. Raises ``error`` for what is no label.

    Many programs keep whole numbers as floats where some are missing, and these as NaN. Spaces around a name are no
    part of it, in whatever it is written. ``where`` ends in the column.
    """
    value = found.item() if isinstance(found, np.generic) else found
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() and abs(value) < 1 << 31 else value
    if not isinstance(value, str | int | None) or isinstance(value, bool):
        raise error(f"{where} is {value!r}, expected a name or a whole number{advice}")
    return value.strip() if isinstance(value, str) else value


def number_labels(
    found: Sequence[str | int | None], options: RecordOptions, where: str, known: Sequence[str] | None = None
) -> tuple[NDArray[np.int32], ClassTable | None]:
    """Labels [N] (``NO_LABEL`` where None, empty or -1 is found), and the classes where their names are known.

    Names are numbered by ``--labels``, by the ``known`` names that the data brings, or sorted; numbers are labels as
    they are, ``--label-offset`` added. An integer is a number, whatever the classes are called; a text of digits is one
    unless all texts are names. A number is the position of one of the ``known`` names, which ``--labels`` may have
    elsewhere (``positions``). Raises ConfigError for a name or number that is not among these.
    """
    items = [None if item is None or item == "" else item for item in found]
    if options.label_offset:
        known = None  # moved labels are another numbering than that of the names
    names = read_labels(options.labels) if options.labels is not None else known
    # 1.0 is 1 where all are whole numbers; beside 1.5, or among the names, it is a name.
    words = {item for item in items if isinstance(item, str)}
    # Where all is text, these among numbers stand for a label that is not there; among names they are names.
    nothing = {word for word in words if word.casefold() in ("nan", "null")} - set(names or ())
    if nothing and all(map(_is_number, words - nothing)):
        items, words = [None if item in nothing else item for item in items], words - nothing
    if all(map(_is_number, words)) and not words & set(names or ()):
        items = [None if item is None else _as_whole(item) for item in items]
    distinct = {item for item in items if item is not None}
    if not distinct:
        return np.full(len(items), NO_LABEL, np.int32), None if names is None else build_class_table(names)
    texts = {item for item in distinct if isinstance(item, str)}
    if texts and all(map(_NUMBER.fullmatch, texts)) and not texts <= set(names or ()):
        texts = set()
    # -1 is how data says that a label is not there: whatever the offset, which moves those that are.
    absent = {item for item in distinct - texts if int(item) == NO_LABEL}
    numbers = {item: int(item) + options.label_offset for item in distinct - texts - absent}
    if numbers and texts and names is None:
        raise ConfigError(
            f"{where}: labels that are numbers, such as {next(iter(numbers))}, and names, such as {min(texts)}: give "
            "--labels, or one kind of them"
        )
    if texts and options.label_offset:
        raise ConfigError(
            f"--label-offset {options.label_offset}: is for labels that are numbers, {where} has names, such as "
            f"{min(texts)}; leave it out"
        )
    label_of: dict[str | int, int] = dict.fromkeys(absent, NO_LABEL)
    if numbers:
        own = names if known is None else known
        check_numbers(numbers.values(), 2**31 - 2 if own is None else len(own) - 1, where)
        moved: dict[int, int] = {}
        if known is not None and names is not None and options.labels is not None:
            moved = positions(known, names, numbers.values(), where)
        label_of |= {item: moved.get(number, number) for item, number in numbers.items()}
    if texts:
        names = sorted(texts) if names is None else names
        place_of = {name: label for label, name in enumerate(names)}
        unknown = min(texts - place_of.keys(), default=None)
        if unknown is not None:
            raise unknown_class(unknown, names, where)
        label_of |= {text: place_of[text] for text in texts}
    labels = [NO_LABEL if item is None else label_of[item] for item in items]
    return np.array(labels, np.int32), None if names is None else build_class_table(names)


def _is_number(text: str) -> bool:
    """Whether a text is a whole number, as 3 or 3.0."""
    return _NUMBER.fullmatch(text) is not None or _WHOLE.fullmatch(text) is not None


def _as_whole(item: str | int) -> str | int:
    """A text such as 3.0, which is what many programs write for whole numbers beside missing ones, as 3."""
    match = _WHOLE.fullmatch(item) if isinstance(item, str) else None
    return item if match is None else match[1]


def check_numbers(numbers: Iterable[int], most: int, where: str) -> None:
    """Raise ConfigError for a label that is not 0 to ``most``."""
    bad = next((number for number in numbers if not 0 <= number <= most), None)
    if bad is not None:
        raise ConfigError(
            f"{where}: label {bad}, expected 0 to {most} (with --label-offset added); {offset_hint(bad, most + 1)}the "
            "--labels, or the --label-offset, of this data"
        )
