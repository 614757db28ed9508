"""Sequences whose items are made when they are asked for: what is kept as arrays, seen item by item.

A batch of small images is rendered in 2 us an image, which is what one Python object of each takes; so those who work
on a batch use its arrays, and who wants an item has one made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class OnDemand(Sequence[T]):
    """``count`` items, each made by ``make(index)``; equal to any sequence of equal items.

    A subclass that makes items of what it holds has ``_item`` instead: a ``make`` that refers to it would be a cycle,
    and the memory that it holds not be free for the next batch until the garbage collector runs.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, count: int, make: Callable[[int], T] | None = None) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        found = range(self._count)[index]
        return self._item(found) if isinstance(found, int) else [self._item(at) for at in found]

    def _item(self, index: int) -> T:
        assert self._make is not None
        return self._make(index)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented
