""" "Did you mean ...?": the known words that a mistyped one is close to, and none that only shares a few letters.

A wrong suggestion costs more than none. So a word is suggested only where a slip explains the difference: about one
letter in four inserted, left out, replaced or swapped with its neighbor; a word broken off (``--batch``); another form
of a word (``training``). The similarity ratio of ``difflib`` counts common letters wherever they are, the dashes of
options among them, and finds a neighbor for almost everything.
"""

from __future__ import annotations

from collections.abc import Iterable

_LETTERS_A_SLIP = 4
_LEAST_PREFIX = 3
_LEAST_STEM = 4


def closest(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """At most ``count`` of the known words that ``word`` may stand for, the nearest first.

    Leading dashes, case, and ``_`` for ``-`` make no difference. The beginning of several words stands for none of them
    where only one is wanted.
    """
    typed = _plain(word)
    names = sorted(known, key=lambda name: (len(name), name))
    parts = [name for name in names if _plain(name).startswith(f"{typed}-")]
    if len(parts) == 1:
        return parts
    most = max(1, len(typed) // _LETTERS_A_SLIP)
    distances = [(num_edits(typed, _plain(name), most), name) for name in names]
    near = [name for distance, name in sorted(distances, key=lambda pair: pair[0]) if distance <= most]
    if near:
        return near[:count]
    begun = [name for name in names if len(typed) >= _LEAST_PREFIX and _plain(name).startswith(typed)]
    if len(begun) == 1 or count > 1:
        return begun[:count]
    return [name for name in names if not begun and _is_form(typed, _plain(name))][-1:]


def num_edits(first: str, second: str, most: int) -> int:
    """Letters to insert, leave out, replace, or swap with the next, to make one of the other; above ``most`` inexact.

    The optimal string alignment distance.
    """
    if abs(len(first) - len(second)) > most:
        return most + 1
    before: list[int] = []
    above = list(range(len(second) + 1))
    for row, letter in enumerate(first, 1):
        line = [row]
        for column, other in enumerate(second, 1):
            cost = min(line[-1] + 1, above[column] + 1, above[column - 1] + (letter != other))
            is_swapped = row > 1 and column > 1 and (letter, first[row - 2]) == (second[column - 2], other)
            line.append(min(cost, before[column - 2] + 1) if is_swapped else cost)
        if min(line) > most:
            return most + 1
        before, above = above, line
    return above[-1]


def _plain(word: str) -> str:
    return word.lstrip("-").lower().replace("_", "-")


def _is_form(typed: str, name: str) -> bool:
    """Whether a single word begins as ``name`` does, but for its last letter: evaluation, evaluate."""
    return "-" not in typed and len(name) > _LEAST_STEM and typed.startswith(name[:-1])
