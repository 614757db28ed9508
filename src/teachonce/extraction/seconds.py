"""Where the time of a bundle goes: the stopwatch behind ``extract --profile``."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass
class Seconds:
    """Seconds by part; parts that run in parallel add up to more than the total.

    ``teacher`` is what the extracting thread spends on asking and waiting for answers, ``wait`` what it waits for
    pixels: where that is not small, rendering is what limits, not the teacher.
    """

    read: float = 0.0
    look: float = 0.0
    wait: float = 0.0
    teacher: float = 0.0
    encode_and_write: float = 0.0

    @contextmanager
    def count(self, part: str) -> Iterator[None]:
        """Add the time that the block takes to a part."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            # Threads may add at once; a lost addition of some milliseconds in a profile does no harm.
            setattr(self, part, getattr(self, part) + time.perf_counter() - begin)

    def timed(self, part: str, items: Iterable[Item]) -> Generator[Item]:
        """The same items; the time until each is there counts for a part."""
        iterator = iter(items)
        while True:
            with self.count(part):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in vars(self).items())
