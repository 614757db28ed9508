"""A lease: one holder at a time, also where several find one that nobody renews any more."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest

from teachonce.errors import RecordError
from teachonce.storage.files import open_storage
from teachonce.storage.local import LocalStorage
from teachonce.storage.remote import lease, retry
from teachonce.storage.remote.lease import hold_lease
from teachonce.storage.remote.settings import retry_limit
from teachonce.storage.storage import Storage
from tests.support.kills import dead_writer
from tests.support.object_stores import environment, new_bucket
from tests.support.proxy import no_faults, start_proxy

ELSEWHERE = "deadbeef-12-34-01234567 7 process 12 on elsewhere\n"


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.6)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    return LocalStorage(tmp_path, RecordError)


def put(storage: Storage, content: str) -> None:
    with storage.put("a/lock") as file:
        file.write(content.encode())


def test_one_of_this_machine_whose_process_has_ended_is_taken_over_at_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "STALE_SECONDS", 60)
    put(storage, f"{dead_writer()} 3 process 1 on here\n")
    begin = time.monotonic()
    with hold_lease(storage, "a/lock", "painted"):
        assert time.monotonic() - begin < 30
    assert not storage.has("a/lock")


def test_one_of_elsewhere_is_taken_over_when_it_is_not_renewed(storage: Storage) -> None:
    put(storage, ELSEWHERE)
    with hold_lease(storage, "a/lock", "painted"):
        pass
    assert not storage.has("a/lock")


def test_one_of_elsewhere_that_is_renewed_is_held(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "STALE_SECONDS", 60)
    put(storage, ELSEWHERE)
    ended = threading.Event()

    def renew() -> None:
        count = 7
        while not ended.wait(0.3):
            count += 1
            put(storage, ELSEWHERE.replace(" 7 ", f" {count} "))

    renewal = threading.Thread(target=renew)
    renewal.start()
    expected = "a: is being painted by process 12 on elsewhere; wait until it has finished, or choose another --out"
    with pytest.raises(RecordError, match=expected), hold_lease(storage, "a/lock", "painted"):
        pass
    ended.set()
    renewal.join()
    assert storage.read("a/lock").startswith(b"deadbeef")


def test_of_several_that_find_a_stale_one_one_takes_it(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    # All three have put theirs by then, however busy the machine is.
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 1.5)
    put(storage, ELSEWHERE)
    outcomes: list[str] = []

    def take() -> None:
        try:
            with hold_lease(storage, "a/lock", "painted"):
                outcomes.append("held")
                deadline = time.monotonic() + 30
                while len(outcomes) < 3 and time.monotonic() < deadline:
                    time.sleep(0.05)
        except RecordError:
            outcomes.append("refused")

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused", "refused"]


def test_a_holder_that_lost_it_says_so_and_leaves_it(storage: Storage) -> None:
    with pytest.warns(UserWarning, match="process 12 on elsewhere has taken over the lock of this process"):
        with hold_lease(storage, "a/lock", "painted"):
            put(storage, ELSEWHERE)
            time.sleep(0.5)
        assert storage.read("a/lock").startswith(b"deadbeef")


@pytest.fixture
def bucket(moto: str, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in environment(moto).items():
        monkeypatch.setenv(name, value)
    return open_storage(f"s3://{new_bucket(moto)}/run", RecordError)


LOST = r"a/lock: process 12 on elsewhere has taken over the lock of this process, .*; a/b/last.ckpt was not written"


def test_whoever_lost_it_puts_nothing_more_into_the_folder(bucket: Storage) -> None:
    with (
        pytest.warns(UserWarning, match="this one ends when it next writes"),
        bucket.lock("a/lock", "painted"),
        bucket.lock("a/another", "glued"),
    ):
        with bucket.put("a/b/last.ckpt") as file:
            file.write(b"mine")
        put(bucket, ELSEWHERE)
        time.sleep(0.5)
        with pytest.raises(RecordError, match=LOST), bucket.put("a/b/last.ckpt") as file:
            file.write(b"late")
        with bucket.put("ab/elsewhere") as file:
            file.write(b"of no concern")
    assert bucket.read("a/b/last.ckpt") == b"mine"
    with bucket.put("a/b/last.ckpt") as file:  # by something else of this process
        file.write(b"anew")


def test_a_process_that_was_stopped_looks_before_it_puts(bucket: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 60)
    with bucket.lock("a/lock", "painted"):
        put(bucket, ELSEWHERE)
        time.sleep(0.7)  # STALE_SECONDS, and it was not renewed
        with pytest.raises(RecordError, match=LOST), bucket.put("a/b/last.ckpt") as file:
            file.write(b"late")
    assert not bucket.has("a/b/last.ckpt")


def test_nobody_waits_long_for_a_release_that_cannot_be_done(
    bucket: Storage, moto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RELEASE_SECONDS", 0.5)
    monkeypatch.setattr(retry, "_LONGEST_PAUSE_SECONDS", 0.1)
    before = set(threading.enumerate())
    with start_proxy(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with bucket.lock("a/lock", "painted"):
            proxy.plan = lambda request, number: "reset before"
            time.sleep(0.5)  # a renewal is under way
            begin = time.monotonic()
        assert time.monotonic() - begin < 4  # before the warning that something is tried for long
        proxy.plan = no_faults
        for thread in set(threading.enumerate()) - before:
            if "_renew" in thread.name:
                thread.join()


def test_a_renewal_is_not_repeated_for_long(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was repeated for minutes put its lock over that of a process that had taken over meanwhile."""
    limits = []

    put = LocalStorage.put

    def put_and_note(self: LocalStorage, name: str) -> AbstractContextManager[BinaryIO]:
        limits.append(retry_limit())
        return put(self, name)

    monkeypatch.setattr(LocalStorage, "put", put_and_note)
    with hold_lease(storage, "a/lock", "painted"):
        time.sleep(0.3)
    assert limits and max(limits) <= lease.RENEW_SECONDS
