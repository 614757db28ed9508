"""Requests to a storage, several under way at once where each takes a round trip; one by one where it is local."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from teachonce.engine.prefetch import prefetch
from teachonce.storage.storage import Storage

Item = TypeVar("Item")
Result = TypeVar("Result")


def overlap(storage: Storage, items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """``work(item)`` of each item in order, which asks ``storage`` and is thread-safe; raises as ``prefetch``."""
    threads = storage.requests_at_once if storage.requests_at_once > 1 else 0
    return prefetch(items, work, threads=threads, ahead=2 * threads)
