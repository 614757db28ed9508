"""Labels as columns, features and JSON have them, names or numbers, as the labels of a data set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from teachonce.errors import ConfigError
from teachonce.records.class_table import ClassTable, read_labels
from teachonce.records.options import RecordOptions
from teachonce.records.source import NO_LABEL

IMAGE_COLUMNS = ("path", "file_name", "filename", "file", "filepath", "image_path", "image")
LABEL_COLUMNS = ("label", "class", "target", "category", "class_name", "label_name", "cls")
SPLIT_COLUMNS = ("split", "subset")
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")


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


def _plain(name: str) -> str:
    return name.strip().casefold()


def build_class_table(names: Sequence[str]) -> ClassTable:
    """The classes of these names, which have no background and no other texts."""
    return ClassTable(tuple(names), tuple(names), has_background=False)


def number_labels(
    found: Sequence[str | int | None], options: RecordOptions, where: str, known: Sequence[str] | None = None
) -> tuple[NDArray[np.int32], ClassTable | None]:
    """Labels [N] (``NO_LABEL`` where None or empty is found), and the classes where their names are known.

    Names are numbered by ``--labels``, by the ``known`` names that the data brings, or sorted; numbers are labels as
    they are, ``--label-offset`` added. Raises ConfigError for a name or number that is not among these.
    """
    texts = [None if item is None or item == "" else str(item) for item in found]
    distinct = {text for text in texts if text is not None}
    names = read_labels(options.labels) if options.labels is not None else known
    are_numbers = bool(distinct) and all(map(_NUMBER.fullmatch, distinct)) and not distinct <= set(names or ())
    if not distinct:
        return np.full(len(texts), NO_LABEL, np.int32), None if names is None else build_class_table(names)
    if are_numbers:
        label_of = {text: int(text) + options.label_offset for text in distinct}
        most = 2**31 - 2 if names is None else len(names) - 1
        check_numbers(label_of.values(), most, where)
    else:
        if options.label_offset:
            raise ConfigError(
                f"--label-offset {options.label_offset}: is for labels that are numbers, {where} has names, such as "
                f"{min(distinct)}; leave it out"
            )
        names = sorted(distinct) if names is None else names
        label_of = {name: label for label, name in enumerate(names)}
        unknown = min(distinct - label_of.keys(), default=None)
        if unknown is not None:
            raise ConfigError(
                f"{where}: class {unknown} is not among the {len(names)} of {options.labels or 'the data'}; give the "
                "--labels of this data"
            )
    labels = [NO_LABEL if text is None else label_of[text] for text in texts]
    return np.array(labels, np.int32), None if names is None else build_class_table(names)


def check_numbers(numbers: Iterable[int], most: int, where: str) -> None:
    """Raise ConfigError for a label that is not 0 to ``most``."""
    bad = next((number for number in numbers if not 0 <= number <= most), None)
    if bad is not None:
        raise ConfigError(
            f"{where}: label {bad}, expected 0 to {most} (with --label-offset added); give the --labels, or the "
            "--label-offset, of this data"
        )
