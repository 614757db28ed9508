"""What the names of files say of the shards of a split: NAME-00000-of-00005.tar, of which all are there, once.

Writers put the two numbers in front of an ending (Hugging Face, most tars) or behind it (TensorFlow Datasets); older
data of the Hugging Face hub has a hash behind them, another one in each file. Names without such numbers say nothing.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from teachonce.errors import RecordError

# Behind the numbers nothing is taken for a part of a set but endings and a hash: fold-1-of-5-000.tar is a shard of a
# fold, of which there may well be one alone.
_OF_A_SET = re.compile(
    r"(?P<before>(.*[-_./])?)(?P<index>\d+)-of-(?P<count>\d+)(?P<hash>-[0-9a-f]{16,})?(?P<after>(\.\w+)*)"
)
_PACKED = ".gz"


def check_shard_set(data: Path, names: Sequence[str], *, may_lack: bool = False) -> None:
    """Raise RecordError where the names of files say that some are missing, or that they are of several sets.

    ``may_lack``: files that are missing are a warning, as people take a part of what is large.
    What is before and behind the two numbers is one set, and its numbers begin with 0 or with 1. ``names`` may have
    folders.
    """
    sets: dict[tuple[str, str], dict[tuple[int, int], str]] = defaultdict(dict)
    for name in sorted(names):
        match = _OF_A_SET.fullmatch(name.removesuffix(_PACKED))
        if match is None:
            continue
        found = sets[match["before"], match["after"]]
        first = found.setdefault((int(match["index"]), int(match["count"])), name)
        if first != name:
            raise _several_sets(data, first, name)
    for found in sets.values():
        _check_set(data, found, may_lack)


def _check_set(data: Path, found: dict[tuple[int, int], str], may_lack: bool) -> None:
    """The same of one set, its files by number and count."""
    count = next(iter(found))[1]
    other = next((name for (_, other), name in found.items() if other != count), None)
    if other is not None:
        raise _several_sets(data, next(iter(found.values())), other)
    # Some count from 1: then there is none of number 0, and one of the last.
    start = int((0, count) not in found and (count, count) in found)
    missing = next((index for index in range(start, count + start) if (index, count) not in found), None)
    if missing is not None:
        name = _rename(next(iter(found.values())), missing)
        text = f"{data}: {name} is missing, of {count} shards"
        if not may_lack:
            raise RecordError(f"{text}; copy it again, or rename the others if they are all of the data")
        warnings.warn(
            f"{text}, {len(found)} are there: only these are read; copy it again if that is not on purpose",
            stacklevel=2,
        )
    beyond = next((name for (index, _), name in found.items() if not start <= index < count + start), None)
    if beyond is not None:
        raise RecordError(f"{data}: {beyond} is none of {count} shards, which are all there; remove it")


def _several_sets(data: Path, name: str, other: str) -> RecordError:
    return RecordError(f"{data}: shards of several sets ({name} and {other}), expected one; remove the leftovers")


def _rename(name: str, index: int) -> str:
    """The name of another file of the set; of a hash it is not known what it is."""
    match = _OF_A_SET.fullmatch(name.removesuffix(_PACKED))
    assert match is not None
    number = f"{index:0{len(match['index'])}d}"
    unknown = "-*" if match["hash"] else ""
    return f"{match['before']}{number}-of-{match['count']}{unknown}{match['after']}"
