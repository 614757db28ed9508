"""A network that breaks and a server that is busy: what is done through a proxy that disturbs requests comes out right.

Whatever a fault is (``tests.support.proxy``), as long as there are requests that get through: each operation has the
result that it has without faults, several writers of one name end with one writer's complete bytes, which all see, and
nobody is told of it.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from teachonce.errors import ConfigError, RecordError
from teachonce.storage.files import open_storage
from teachonce.storage.remote import object_storage, retry
from teachonce.storage.remote.object_storage import ObjectStorage
from teachonce.storage.remote.settings import VARIABLE, short_retries
from teachonce.storage.storage import Storage
from tests.storage.test_storage import StorageContract, put
from tests.support.object_stores import environment, list_uploads, new_bucket
from tests.support.object_torture import disturbed_round
from tests.support.proxy import ERRORS, SWALLOW_SECONDS, Plan, Proxy, Request, random_faults, start_proxy


@contextmanager
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Repeat at once: what is tested is what is repeated."""
    with monkeypatch.context() as patch:
        patch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.01)
        patch.setattr(retry, "_LONGEST_PAUSE_SECONDS", 0.05)
        yield


def first_of(fault: str, method: str, *, is_listing: bool = False) -> Plan:
    """The first request of a kind has a fault, and no other."""
    seen: list[Request] = []

    def plan(request: Request, number: int) -> str | None:
        if request.method != method or request.is_listing != is_listing or seen:
            return None
        seen.append(request)
        return fault

    return plan


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with start_proxy(moto) as found, without_pauses(monkeypatch):
        for name, value in environment(found.endpoint).items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def storage(proxy: Proxy, moto: str) -> Storage:
    return open_storage(f"s3://{new_bucket(moto)}/folder", RecordError)


class TestContractWithFaults(StorageContract):
    """Every test of the contract, with a fault in each third request."""

    @pytest.fixture
    def storage(self, proxy: Proxy, moto: str) -> Storage:
        proxy.plan = random_faults(1, 0.3)
        return open_storage(f"s3://{new_bucket(moto)}/some/folder", RecordError)


@pytest.mark.parametrize("fault", [*ERRORS, "reset before", "reset after"])
@pytest.mark.parametrize("operation", ["put", "put_if_absent"])
def test_a_put_is_repeated(proxy: Proxy, storage: Storage, operation: str, fault: str) -> None:
    proxy.plan = first_of(fault, "PUT")
    with getattr(storage, operation)("a.bin") as file:
        file.write(b"mine")
    assert storage.read("a.bin") == b"mine" and proxy.faults == {fault: 1}


def test_the_answer_to_a_create_is_lost_and_another_writer_comes(proxy: Proxy, storage: Storage) -> None:
    """What was created first stays, whoever is told what."""
    proxy.plan = first_of("reset after", "PUT")
    with storage.put_if_absent("a.bin") as file:
        file.write(b"first")
    with storage.put_if_absent("a.bin") as file:
        file.write(b"second")
    assert storage.read("a.bin") == b"first"


def test_a_conflict_of_two_creates_that_left_nothing(proxy: Proxy, storage: Storage) -> None:
    """obstore says "exists" of 409 too, and S3 says that of two puts at once of which it may have done neither."""
    proxy.plan = first_of("409 ConditionalRequestConflict", "PUT")
    with storage.put_if_absent("a.bin") as file:
        file.write(b"mine")
    assert storage.read("a.bin") == b"mine"


def test_a_conflict_that_is_none_of_a_create(proxy: Proxy, storage: Storage) -> None:
    put(storage, "a.bin")
    for method, ask in (("HEAD", storage.status), ("GET", storage.read), ("DELETE", storage.delete)):
        proxy.plan = first_of("409 OperationAborted", method)
        ask("a.bin")
    assert not storage.has("a.bin")


@pytest.mark.parametrize("fault", ["cut", "reset after", "503 SlowDown"])
def test_what_is_read_is_complete(proxy: Proxy, storage: Storage, fault: str) -> None:
    content = np.random.default_rng(0).bytes(700_000)
    put(storage, "a.bin", content)
    for read in (
        storage.read,
        lambda name: bytes(storage.map(name)[:]),
        lambda name: storage.open_reader(name).read(0, 800_000),
        lambda name: storage.open_reader(name, in_order=True).read(0, 800_000),
    ):
        proxy.plan = first_of(fault, "GET")
        assert read("a.bin") == content
    with storage.stream("a.bin") as file:
        start = file.read(70_000)
        proxy.plan = random_faults(3, 0.5)
        assert start + file.read() == content
    assert proxy.faults[fault] >= 4


def test_several_writers_of_one_name(proxy: Proxy, storage: Storage) -> None:
    proxy.plan = random_faults(5, 0.4)
    bodies = [bytes([writer]) * 50_000 for writer in range(6)]
    seen: list[bytes] = []

    def write(writer: int) -> None:
        with storage.put_if_absent("a.bin") as file:
            file.write(bodies[writer])
        seen.append(storage.read("a.bin"))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 6 and len(set(seen)) == 1 and seen[0] in bodies
    assert proxy.faults.total() > 3


@pytest.mark.parametrize("seed", range(3))
def test_a_round_of_every_operation(proxy: Proxy, storage: Storage, seed: int) -> None:
    proxy.plan = random_faults(seed, 0.3)
    assert disturbed_round(storage, np.random.default_rng(seed)) is None
    assert proxy.faults.total() >= 5


@pytest.mark.parametrize("fault", ["503 SlowDown", "reset before", "reset after"])
@pytest.mark.parametrize("query", ["uploads", "partNumber=2", "uploadId="])
def test_a_large_body_goes_in_parts(
    proxy: Proxy, storage: Storage, moto: str, monkeypatch: pytest.MonkeyPatch, query: str, fault: str
) -> None:
    """Also where the answer that it is complete is lost: the object is there once, and no part of another upload."""
    monkeypatch.setattr(object_storage, "MAX_SINGLE_PUT_BYTES", 1 << 20)
    monkeypatch.setattr(object_storage, "PART_BYTES", 5 << 20)
    seen: list[Request] = []

    def plan(request: Request, number: int) -> str | None:
        is_meant = query in request.path and request.method == ("PUT" if "part" in query else "POST")
        if not is_meant or seen:
            return None
        seen.append(request)
        return fault

    proxy.plan = plan
    content = np.random.default_rng(0).bytes(11 << 20)
    with storage.put_if_absent("a.bin") as file:
        file.write(content)
    assert len(seen) == 1 and storage.read("a.bin") == content
    if (query, fault) != ("uploads", "reset after"):
        # An upload that was begun and whose name was lost stays, until the bucket's lifecycle rule removes it.
        assert list_uploads(moto, str(storage.describe()).split("/")[2]) == []


def test_a_server_that_does_not_answer_one_request(
    proxy: Proxy, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "timeout_seconds=0.5")
    put(storage, "a.bin")
    proxy.plan = first_of("swallow", "GET")
    begin = time.monotonic()
    assert storage.read("a.bin") == b"content"
    assert time.monotonic() - begin < SWALLOW_SECONDS - 5


def test_the_time_is_over(proxy: Proxy, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    put(storage, "a.bin")
    monkeypatch.setenv(VARIABLE, "retry_seconds=0.3")
    proxy.plan = lambda request, number: "503 SlowDown"
    expected = r"a\.bin: cannot be read: the server responded 503 SlowDown; tried for 0 s: it is busy or out of order"
    with pytest.raises(RecordError, match=expected):
        storage.read("a.bin")


@pytest.mark.parametrize("fault", [*ERRORS, "reset before"])
def test_a_server_that_says_it_is_busy_at_first_is_no_misspelt_one(
    proxy: Proxy, storage: Storage, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(retry, "FIRST_CONTACT_SECONDS", 0.3)
    begin = time.monotonic()
    proxy.plan = lambda request, number: fault if time.monotonic() - begin < 1.5 else None
    if fault in ERRORS:
        assert not storage.has("a.bin") and time.monotonic() - begin > 1.5
    else:
        with pytest.raises(RecordError, match="the connection failed; tried for 0 s: check the endpoint"):
            storage.has("a.bin")


def test_short_retries_end_soon_and_in_their_thread_alone(proxy: Proxy, storage: Storage) -> None:
    put(storage, "a.bin")
    begin = time.monotonic()
    proxy.plan = lambda request, number: "503 SlowDown" if time.monotonic() - begin < 2 else None
    with short_retries(0.3), ThreadPoolExecutor(1) as pool:
        other = pool.submit(storage.read, "a.bin")
        with pytest.raises(RecordError, match="503 SlowDown; tried for 0 s"):
            storage.read("a.bin")
        assert time.monotonic() - begin < 2 and other.result() == b"content"


def test_the_deadline_begins_with_the_first_failure(
    proxy: Proxy, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that took longer than all of it before its connection broke is repeated too."""
    put(storage, "a.bin")
    monkeypatch.setenv(VARIABLE, "retry_seconds=0.4 timeout_seconds=1")
    proxy.plan = first_of("swallow", "GET")
    assert storage.read("a.bin") == b"content"


def test_a_warning_after_a_while(proxy: Proxy, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    put(storage, "a.bin")
    monkeypatch.setattr(retry, "_WARN_AFTER_SECONDS", 0.0)
    proxy.plan = lambda request, number: "503 SlowDown" if number % 4 else None
    expected = r"a\.bin: the server responded 503 SlowDown; trying again for up to 300 s"
    with pytest.warns(UserWarning, match=expected) as found:
        assert storage.read("a.bin") == b"content"
    assert len(found) == 1


def test_what_a_process_has_met_its_workers_know(proxy: Proxy, storage: Storage) -> None:
    """A worker that is started while the server restarts waits for it, as it need not for one that was never there."""
    assert isinstance(storage, ObjectStorage)
    bucket = f"s3://{storage.address.bucket}"
    assert not retry.has_answered(bucket)
    assert not storage.has("a.bin")
    assert retry.has_answered(bucket)


def test_a_fork_is_told_that_it_cannot_read(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for ever: the threads of the library are not there."""
    storage.has("a.bin")
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(ConfigError, match="forked from one that has read an object store"):
        storage.has("a.bin")


def test_nothing_is_said_of_what_passes(proxy: Proxy, storage: Storage) -> None:
    proxy.plan = random_faults(2, 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(10):
            put(storage, f"{number}.bin")
            assert storage.read(f"{number}.bin") == b"content"
    assert proxy.faults.total() >= 3
