"""Results made ahead by threads, in the order of their items, whatever the number of threads.

Threads and not processes: what is made ahead here (reading, decoding, resizing) releases Python's lock, and a result
need not cross a border between processes. The items themselves are taken in the thread that consumes the results, so an
iterator that reads a file needs no lock; only ``work`` must be thread-safe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from teachonce.storage.storage import Storage

Item = TypeVar("Item")
Result = TypeVar("Result")

THREAD_NAME = "prefetch"
_END: Any = object()


def prefetch(items: Iterable[Item], work: Callable[[Item], Result], *, threads: int, ahead: int) -> Iterator[Result]:
    """``work(item)`` of each item in order, made by ``threads`` threads; with 0 threads, on demand.

    At most ``ahead`` results that have not been requested yet are made or in progress, so memory does not grow with the
    items, and a result that was yielded is not referred to any more. What ``work`` raises is raised where its result
    would have come, what ``items`` raises after the results of the items before it. Leaving early (closing or dropping
    the iterator) cancels what has not started and waits for what has.
    """
    if threads == 0:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix=THREAD_NAME)
    try:
        submitted = _submit(pool, items, work)
        pending = deque(islice(submitted, ahead + 1))
        while pending:
            yield pending.popleft().result()
            pending.extend(islice(submitted, 1))
    finally:
        pool.shutdown(cancel_futures=True)
        # After an error its traceback would keep them open, and a thread that takes items (``take_ahead``) going.
        submitted.close()
        if isinstance(items, Generator):
            items.close()


def take_ahead(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The items in order, taken by a thread of their own, up to ``count`` before they are requested.

    What ``items`` raises is raised behind the items before it. Leaving early waits for the item that is being taken.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(1, thread_name_prefix=THREAD_NAME)
    try:
        # One thread: the items are taken one after another, in the order of these calls.
        pending = deque(pool.submit(next, iterator, _END) for _ in range(count + 1))
        while (item := pending.popleft().result()) is not _END:
            pending.append(pool.submit(next, iterator, _END))
            yield item
            del item
    finally:
        pool.shutdown(cancel_futures=True)
        if isinstance(iterator, Generator):
            iterator.close()


def overlap(storage: Storage, items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """``work(item)`` of each item in order, which reads from ``storage`` and is thread-safe; raises as ``prefetch``."""
    threads = storage.requests_at_once if storage.requests_at_once > 1 else 0
    return prefetch(items, work, threads=threads, ahead=2 * threads)


def _submit(
    pool: ThreadPoolExecutor, items: Iterable[Item], work: Callable[[Item], Result]
) -> Generator[Future[Result]]:
    """A future for each item, as it is requested; an error of ``items`` is the last one's."""
    try:
        for item in items:
            yield pool.submit(work, item)
    except Exception as error:
        yield _failed(error)


def _failed(error: Exception) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_exception(error)
    return future
