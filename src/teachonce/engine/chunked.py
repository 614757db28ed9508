"""Items of a stream in lists; items before an error of the stream are not lost."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def chunked(items: Iterable[Item], size: int) -> Generator[list[Item]]:
    """Lists of ``size`` items in order, the last one shorter; none is empty.

    Where the stream raises, whatever it raises, what was read before comes first as a shorter list, then the error:
    a damaged record costs only what is after it.
    """
    assert size > 0, size
    stream = iter(items)
    while True:
        chunk: list[Item] = []
        try:
            for item in islice(stream, size):
                chunk.append(item)
        except Exception:
            if chunk:
                yield chunk
            raise
        if chunk:
            yield chunk
        if len(chunk) < size:
            return
