"""Jobs: every engine keeps the contract (each job once, reports arrive, errors unchanged), and parts are disjoint."""

import threading
import time
from functools import partial

import pytest

from teachonce.engine.jobs import order_for_worker, others_permuted, partition, run_jobs
from teachonce.engine.options import Engine
from teachonce.errors import ConfigError, RecordError

engines = pytest.mark.parametrize("num_workers", [1, 2])


class Squarer:
    def __init__(self, fail_at, worker_index):
        self.fail_at = fail_at
        self.worker_index = worker_index

    def __call__(self, job, report):
        if job == self.fail_at:
            raise RecordError(f"job {job} is bad").at("shard-7")
        report(10)
        return job * job, self.worker_index


def ignore(count):
    pass


@engines
def test_every_job_is_done_once(num_workers):
    results = dict(
        run_jobs(partial(Squarer, None), list(range(7)), engine=Engine(num_workers=num_workers), report=ignore)
    )
    assert {job: square for job, (square, _) in results.items()} == {job: job * job for job in range(7)}
    assert {worker for _, worker in results.values()} <= set(range(num_workers))


def test_one_worker_keeps_the_order():
    results = list(run_jobs(partial(Squarer, None), [3, 1, 2], engine=Engine(num_workers=1), report=ignore))
    assert results == [(3, (9, 0)), (1, (1, 0)), (2, (4, 0))]


@engines
def test_without_jobs_nothing_is_built(num_workers):
    assert list(run_jobs(refuse, [], engine=Engine(num_workers=num_workers), report=ignore)) == []


@engines
def test_what_the_jobs_report_arrives(num_workers):
    counts = []
    assert (
        len(
            list(
                run_jobs(
                    partial(Squarer, None), list(range(7)), engine=Engine(num_workers=num_workers), report=counts.append
                )
            )
        )
        == 7
    )
    assert sum(counts) == 70


def build_waiter(path, worker_index):
    def report_and_wait(job, report):
        report(1)
        wait_until(path.exists)

    return report_and_wait


@engines
def test_reports_arrive_while_the_jobs_run(num_workers, tmp_path):
    """The jobs end only after the callback was called with what they have reported."""
    path = tmp_path / "reported"
    counts = []

    def report(count):
        counts.append(count)
        if sum(counts):
            path.touch()

    list(run_jobs(partial(build_waiter, path), [1, 2], engine=Engine(num_workers=num_workers), report=report))
    assert sum(counts) == 2


def build_threaded(worker_index):
    def report_from_threads(job, report):
        threads = [threading.Thread(target=lambda: [report(1) for _ in range(500)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return report_from_threads


def test_threads_of_a_worker_may_report():
    counts = []
    list(run_jobs(build_threaded, [1, 2, 3], engine=Engine(num_workers=2), report=counts.append))
    assert sum(counts) == 3 * 4 * 500


class Nested:
    """A worker whose jobs are runs with reports of their own."""

    def __init__(self, worker_index):
        self.worker_index = worker_index

    def __call__(self, job, report):
        report(1)
        counts = []
        list(run_jobs(partial(Squarer, None), [1, 2, 3], engine=Engine(num_workers=1), report=counts.append))
        report(1)
        return sum(counts)


@engines
def test_runs_keep_their_reports_apart(num_workers):
    counts = []
    results = dict(run_jobs(Nested, [1, 2], engine=Engine(num_workers=num_workers), report=counts.append))
    assert results == {1: 30, 2: 30} and sum(counts) == 4


@engines
def test_an_error_crosses_unchanged(num_workers):
    with pytest.raises(RecordError, match=r"^shard-7: job 3 is bad$") as caught:
        list(run_jobs(partial(Squarer, 3), list(range(6)), engine=Engine(num_workers=num_workers), report=ignore))
    assert type(caught.value) is RecordError


def refuse(worker_index):
    raise ConfigError("no teacher today")


@engines
def test_a_worker_that_cannot_be_built_says_why(num_workers):
    with pytest.raises(ConfigError, match=r"^no teacher today$"):
        list(run_jobs(refuse, [1, 2, 3], engine=Engine(num_workers=num_workers), report=ignore))


def test_parts_are_disjoint_and_whole():
    jobs = list(range(11))
    parts = [partition(jobs, index, 4) for index in range(4)]
    assert sorted(job for part in parts for job in part) == jobs
    assert partition(jobs, 0, 1) == jobs


def test_workers_of_an_array_do_the_others_parts_in_orders_of_their_own():
    jobs = list(range(40))
    orders = [order_for_worker(jobs, index, 4) for index in range(4)]
    for index, order in enumerate(orders):
        own, others = order[:10], order[10:]
        assert own == partition(jobs, index, 4) and others == others_permuted(jobs, index, 4)
        assert sorted(order) == jobs and others != sorted(others)
        assert order == order_for_worker(jobs, index, 4)
    assert len({tuple(order[10:20]) for order in orders}) == 4
    assert order_for_worker(jobs, 0, 1) == jobs


def wait_until(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
