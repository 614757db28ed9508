"""Chunks: sizes and order, what was read before an error, and streams that are left early."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from teachonce.engine.chunked import chunked
from teachonce.errors import LogitsError, RecordError, StoreError, TeachonceError


class Stream:
    """Numbers below ``end``, then ``error`` if there is one; knows how many were asked for and whether it was ended."""

    def __init__(self, end: int, error: Exception | None = None) -> None:
        self.end, self.error = end, error
        self.num_read = 0
        self.is_closed = False

    def __iter__(self) -> Iterator[int]:
        try:
            for number in range(self.end):
                self.num_read += 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.is_closed = True


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 100])
@pytest.mark.parametrize("end", [0, 1, 5, 6, 7])
def test_sizes_and_order(end: int, size: int) -> None:
    chunks = list(chunked(Stream(end), size))
    assert [number for chunk in chunks for number in chunk] == list(range(end))
    assert all(len(chunk) == size for chunk in chunks[:-1]) and all(1 <= len(chunk) <= size for chunk in chunks)


def test_an_empty_stream_has_no_chunks() -> None:
    assert list(chunked([], 3)) == [] and list(chunked(iter(()), 3)) == []


def test_a_size_that_is_none() -> None:
    with pytest.raises(AssertionError):
        next(chunked([1], 0))


@pytest.mark.parametrize(
    "kind", [TeachonceError, RecordError, LogitsError, StoreError, OSError, ValueError, AssertionError, Exception]
)
@pytest.mark.parametrize(("end", "expected"), [(0, []), (2, [[0, 1]]), (3, [[0, 1, 2]]), (5, [[0, 1, 2], [3, 4]])])
def test_what_was_read_comes_before_the_error(end: int, expected: list[list[int]], kind: type[Exception]) -> None:
    error = kind("damaged")
    found = []
    with pytest.raises(kind) as raised:
        for chunk in chunked(Stream(end, error), 3):
            found.append(chunk)
    assert found == expected and raised.value is error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interruption_does_not_wait_for_the_partial_chunk(kind: type[BaseException]) -> None:
    def interrupted() -> Iterator[int]:
        yield 0
        raise kind

    with pytest.raises(kind):
        next(chunked(interrupted(), 3))


def test_nothing_is_read_ahead_and_closing_early_ends_the_stream() -> None:
    stream = Stream(10)
    chunks = chunked(stream, 3)
    assert stream.num_read == 0
    assert next(chunks) == [0, 1, 2]
    assert stream.num_read == 3 and not stream.is_closed
    chunks.close()
    assert stream.is_closed and stream.num_read == 3 and list(chunks) == []


def test_closing_between_the_partial_chunk_and_its_error() -> None:
    stream = Stream(2, RecordError("damaged"))
    chunks = chunked(stream, 3)
    assert next(chunks) == [0, 1] and stream.is_closed
    chunks.close()
    assert list(chunks) == []


def test_an_error_of_the_consumer_is_not_one_of_the_stream() -> None:
    chunks = chunked(Stream(10), 3)
    next(chunks)
    with pytest.raises(RecordError, match="of the consumer"):
        chunks.throw(RecordError("of the consumer"))
    assert list(chunks) == []
