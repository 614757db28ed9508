"""Prefetch: order, the bound on what is made ahead, errors in their place, threads that end, memory that is let go."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from itertools import count, islice

import pytest

from teachonce.engine.prefetch import THREAD_NAME, prefetch, take_ahead
from teachonce.errors import RecordError


class Made:
    """A result, of which a test can ask whether anybody holds it."""

    def __init__(self, item: int) -> None:
        self.item = item


class Work:
    """Makes items, later ones faster, so that threads end in another order; counts what was begun."""

    def __init__(self, bad: int | None = None) -> None:
        self.bad = bad
        self.begun: list[int] = []

    def __call__(self, item: int) -> int:
        self.begun.append(item)
        time.sleep(0.002 * (3 - item % 4))
        if item == self.bad:
            raise RecordError(f"item {item} is bad")
        return 10 * item


def threads_alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def broken_after(num_items: int, error_class: type[BaseException]) -> Iterator[int]:
    yield from range(num_items)
    raise error_class(f"item {num_items} cannot be read")


@pytest.mark.parametrize("ahead", [0, 1, 4, 100])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_order_is_that_of_the_items(threads: int, ahead: int) -> None:
    assert list(prefetch(range(30), Work(), threads=threads, ahead=ahead)) == list(range(0, 300, 10))
    assert list(prefetch(iter([]), Work(), threads=threads, ahead=ahead)) == []
    assert not threads_alive()


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=30)  # passed by three at once or never
    assert len(list(prefetch(range(6), lambda _: together.wait(), threads=3, ahead=3))) == 6


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ahead", [0, 2, 5])
def test_no_more_is_made_ahead_than_said(threads: int, ahead: int) -> None:
    work, taken = Work(), []
    results = prefetch((taken.append(item) or item for item in count()), work, threads=threads, ahead=ahead)
    for num_asked in range(1, 4):
        next(results)
        end = time.monotonic() + 30
        while len(work.begun) < num_asked + ahead and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(0.02)  # for what should not come
        assert len(work.begun) == len(taken) == num_asked + ahead
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads", [0, 2])
def test_nothing_begins_before_it_is_asked_for(threads: int) -> None:
    work = Work()
    results = prefetch(range(5), work, threads=threads, ahead=3)
    time.sleep(0.02)
    assert not work.begun and not threads_alive()
    assert next(results) == 0


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_comes_where_its_result_would_have_come(threads: int) -> None:
    results = prefetch(range(20), Work(bad=6), threads=threads, ahead=4)
    assert list(islice(results, 6)) == [0, 10, 20, 30, 40, 50]
    with pytest.raises(RecordError, match="item 6 is bad"):
        next(results)
    assert not threads_alive()
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("num_good", [0, 2, 9])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_of_the_items_comes_after_the_results_before_it(threads: int, num_good: int) -> None:
    """With more ahead than there are items as well: what was read before the error is done and yielded."""
    results = prefetch(broken_after(num_good, RecordError), Work(), threads=threads, ahead=4)
    assert list(islice(results, num_good)) == list(range(0, 10 * num_good, 10))
    with pytest.raises(RecordError, match="cannot be read"):
        next(results)
    assert not threads_alive()


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_first_error_in_order_wins(threads: int) -> None:
    results = prefetch(broken_after(5, ValueError), Work(bad=3), threads=threads, ahead=9)
    with pytest.raises(RecordError, match="item 3 is bad"):
        list(results)


def test_an_interrupt_while_items_are_taken_ends_all_at_once() -> None:
    results = prefetch(broken_after(3, KeyboardInterrupt), Work(), threads=2, ahead=9)
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert not threads_alive()


@pytest.mark.parametrize("leave", ["close", "drop", "raise"])
def test_leaving_early_stops_the_threads_and_cancels_the_rest(leave: str) -> None:
    work = Work()
    results = prefetch(range(1000), work, threads=2, ahead=900)
    assert list(islice(results, 3)) == [0, 10, 20] and threads_alive()
    if leave == "close":
        results.close()  # type: ignore[attr-defined]
    elif leave == "drop":
        del results
        gc.collect()
    else:
        with pytest.raises(RuntimeError, match="the consumer's own"):
            results.throw(RuntimeError("the consumer's own"))  # type: ignore[attr-defined]
    num_begun = len(work.begun)
    assert not threads_alive()
    assert num_begun < 3 + 900, "what had not begun was not cancelled"
    time.sleep(0.05)
    assert len(work.begun) == num_begun


def test_what_has_begun_is_waited_for() -> None:
    may_end, ended = threading.Event(), []

    def work(item: int) -> int:
        if item:
            may_end.wait(30)
            ended.append(item)
        return item

    results = prefetch(range(9), work, threads=2, ahead=2)
    assert next(results) == 0
    threading.Timer(0.05, may_end.set).start()
    results.close()  # type: ignore[attr-defined]
    assert len(ended) <= 2 and may_end.is_set()


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_results_are_let_go(threads: int) -> None:
    """The iterator refers to no result that it has yielded, and to at most ``ahead`` others."""
    made: weakref.WeakSet[Made] = weakref.WeakSet()

    def work(item: int) -> Made:
        result = Made(item)
        made.add(result)
        return result

    most, ahead = 0, 3
    gc.disable()  # reference counts alone must do it: batches of pixels wait for no collector
    try:
        results = prefetch(range(200), work, threads=threads, ahead=ahead)
        for item in range(200):
            assert next(results).item == item
            most = max(most, len(made))
        # A thread holds its last result until it takes up the next item.
        assert most <= ahead + threads + 1
        assert next(results, None) is None and not made
    finally:
        gc.enable()


@pytest.mark.parametrize("threads", [0, 2])
def test_errors_are_let_go(threads: int) -> None:
    """Neither kind of error lies in a cycle with the frames of its traceback."""
    gc.disable()
    try:
        for items, work in ((range(5), Work(bad=2)), (broken_after(2, RecordError), Work())):
            error = caught(prefetch(items, work, threads=threads, ahead=3))
            assert error() is None
    finally:
        gc.enable()


def caught(results: Iterator[int]) -> weakref.ref[RecordError]:
    try:
        list(results)
    except RecordError as error:
        return weakref.ref(error)
    raise AssertionError("no error")


def test_iterators_may_be_nested_and_run_side_by_side() -> None:
    def inner(item: int) -> list[int]:
        return list(prefetch(range(item), lambda each: each + item, threads=2, ahead=2))

    results = prefetch(prefetch(range(20), lambda item: item % 5, threads=2, ahead=3), inner, threads=3, ahead=4)
    assert list(results) == [[each + item % 5 for each in range(item % 5)] for item in range(20)]
    assert not threads_alive()


def test_many_items_with_little_work_end() -> None:
    assert sum(prefetch(range(20_000), lambda item: item, threads=4, ahead=2)) == sum(range(20_000))


@pytest.mark.parametrize("num_ahead", [0, 1, 5])
def test_items_are_taken_ahead_in_order(num_ahead: int) -> None:
    taken: list[int] = []
    items = take_ahead((taken.append(item) or item for item in range(20)), num_ahead)
    assert not taken and next(items) == 0
    end = time.monotonic() + 30
    while len(taken) < num_ahead + 2 and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.02)  # for what should not come
    assert taken == list(range(num_ahead + 2))
    assert list(items) == list(range(1, 20)) and not threads_alive()
    assert list(take_ahead(iter([]), num_ahead)) == []


def test_items_come_from_one_other_thread_while_this_one_works() -> None:
    """A slow source and a slow consumer take the time of the slower one."""
    threads: set[threading.Thread] = set()
    at_once = threading.Barrier(2, timeout=30)

    def source() -> Iterator[int]:
        for item in range(4):
            threads.add(threading.current_thread())
            if item:
                at_once.wait()  # passed if the consumer is at work on the item before, or never
            yield item

    for item in take_ahead(source(), 1):
        if item < 3:
            at_once.wait()
    assert len(threads) == 1 and threading.current_thread() not in threads


@pytest.mark.parametrize("num_ahead", [0, 4])
def test_an_error_of_the_source_comes_behind_its_items(num_ahead: int) -> None:
    items = take_ahead(broken_after(3, RecordError), num_ahead)
    assert list(islice(items, 3)) == [0, 1, 2]
    with pytest.raises(RecordError, match="item 3 cannot be read"):
        next(items)
    assert not threads_alive()
    gc.disable()
    try:
        assert caught(take_ahead(broken_after(2, RecordError), num_ahead))() is None
    finally:
        gc.enable()


def test_an_error_of_the_work_ends_the_taking() -> None:
    """Also while the error, whose traceback holds what was suspended, is being handled."""
    taken: list[int] = []
    items = take_ahead((taken.append(item) or item for item in count()), 3)
    try:
        list(prefetch(items, Work(bad=2), threads=2, ahead=4))
    except RecordError:
        num_taken = len(taken)
        assert not threads_alive()
        time.sleep(0.05)
        assert len(taken) == num_taken
    else:
        raise AssertionError("no error")


def test_leaving_early_closes_the_source() -> None:
    closed: list[threading.Thread] = []

    def source() -> Iterator[int]:
        try:
            yield from count()
        finally:
            closed.append(threading.current_thread())

    items = take_ahead(source(), 3)
    assert next(items) == 0 and threads_alive()
    items.close()  # type: ignore[attr-defined]
    assert len(closed) == 1 and not threads_alive()
