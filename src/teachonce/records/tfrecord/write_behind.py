"""Writing by a thread, while the next piece is made: where the system's copy takes as long as the work before it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

PENDING_PIECES = 2
"""That wait to be written, at most: who writes faster than the disk waits too, and memory stays small."""


@contextmanager
def write_behind(write: Callable[[bytes], object]) -> Iterator[Callable[[bytes], None]]:
    """A function that has ``write`` called with each piece, in order, by a thread; all are written after the block.

    What ``write`` raises is raised by one of the next calls, or at the end of the block.
    """
    pending: deque[Future[object]] = deque()

    def pass_on(piece: bytes) -> None:
        if len(pending) == PENDING_PIECES:
            pending.popleft().result()
        pending.append(pool.submit(write, piece))

    pool = ThreadPoolExecutor(1, thread_name_prefix="write")
    try:
        yield pass_on
        while pending:
            pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
