"""Heartbeats: what a worker says while it works, that nothing of it is left after success, and that it harms none."""

import dataclasses
import json
import os
import threading
import time
from contextlib import contextmanager
from functools import partial

import pytest

from teachonce.engine.heartbeat import (
    WORKERS_FOLDER,
    Beat,
    Heartbeat,
    heartbeats,
    read_heartbeats,
    remove_heartbeats,
)
from teachonce.engine.jobs import run_jobs
from teachonce.engine.options import Engine
from teachonce.errors import RecordError, TeachonceError
from teachonce.storage.address import to_location
from teachonce.storage.local import LocalStorage
from tests.support.kills import dead_writer
from tests.support.object_stores import environment, new_bucket
from tests.support.proxy import start_proxy

QUICK = 0.05  # seconds between beats


def wait_until(holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
    return found


def beats_in(folder):
    return list(read_heartbeats(folder).values())


def raise_in_session(folder, error, **options):
    with heartbeats(folder, "extract", **options):
        raise error


def test_a_worker_says_what_it_does(tmp_path):
    with heartbeats(tmp_path, "extract", "3/8", beat_seconds=QUICK) as session:
        heartbeat = session.start(0, device="cpu", total=100)
        heartbeat.change(units=("a", "b"))
        heartbeat.advance(0)
        first = wait_until(lambda: beats_in(tmp_path))[0]
        assert (first.work, first.part, first.state, first.item) == ("extract", "3/8", "running", "views")
        assert (first.pid, first.device, first.total, first.units) == (os.getpid(), "cpu", 100, ("a", "b"))
        assert first.done == 0 and first.per_second is None and first.beat_seconds == QUICK
        heartbeat.advance(10)
        heartbeat.finish_units(2)
        later = wait_until(lambda: [beat for beat in beats_in(tmp_path) if beat.units_done == 2])[0]
        assert later.beat > first.beat and later.done == 10 and later.units == ()
        assert later.written >= first.written >= first.started
        name = next((tmp_path / WORKERS_FOLDER).iterdir()).name
        assert name.startswith("3of8.") and name.endswith(".json")
    assert list(tmp_path.iterdir()) == []


def test_what_changes_together_is_put_together(tmp_path, monkeypatch):
    """Whenever a heartbeat is put, from its first moment on: here it is put at every chance to take the lock."""
    put = []
    monkeypatch.setattr(Heartbeat, "_run", lambda heartbeat: put.append(heartbeat._beat))
    with heartbeats(tmp_path, "train", item="images") as session:
        heartbeat = session.start(done=64, total=96, details={"step": 2})
        heartbeat._thread.join()

        class Lock:
            def __enter__(self):
                put.append(heartbeat._beat)

            def __exit__(self, *_):
                put.append(heartbeat._beat)

        heartbeat._lock = Lock()
        heartbeat.advance(32, details={"step": 3})
    assert {(beat.done, beat.details["step"]) for beat in put} == {(64, 2), (96, 3)}


def test_the_rate_is_of_the_time_since_the_first_items(tmp_path):
    """What comes before is no work, but the start of it."""
    with heartbeats(tmp_path, "train", item="images", beat_seconds=QUICK) as session:
        heartbeat = session.start()
        time.sleep(1)
        heartbeat.advance(100)
        rates = []
        for _ in range(12):
            time.sleep(0.1)
            heartbeat.advance(10)
            rates += [beat.per_second for beat in beats_in(tmp_path) if beat.per_second]
        # Ten items a tenth of a second, and less on a busy machine; the hundred at once would be thousands.
        assert rates and min(rates) > 0 and max(rates) < 400
        idle = wait_until(lambda: [item for item in beats_in(tmp_path) if item.idle_seconds > 0.3])[0]
        assert idle.done == 220


@pytest.mark.parametrize(
    ("error", "state", "line"),
    [
        (RecordError("a.tfrecord: record 3 is damaged"), "failed", "a.tfrecord: record 3 is damaged"),
        (ValueError("first\nsecond"), "failed", "ValueError: first"),
        (KeyboardInterrupt(), "interrupted", None),
        (SystemExit(143), "interrupted", None),
    ],
)
@pytest.mark.parametrize("has_beaten", [False, True])
def test_how_it_ended_stays(tmp_path, error, state, line, has_beaten):
    with pytest.raises(type(error)), heartbeats(tmp_path, "extract", beat_seconds=QUICK) as session:
        if has_beaten:
            session.start()
            wait_until(lambda: beats_in(tmp_path))
        raise error
    (beat,) = beats_in(tmp_path)
    assert (beat.state, beat.last_error) == (state, line)
    # The next session of this part takes its place, one of another part does not.
    with heartbeats(tmp_path, "extract", "1/2"):
        assert beats_in(tmp_path) == [beat]
    with heartbeats(tmp_path, "extract"):
        assert beats_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def build_counter(go_on, worker_index):
    return partial(count_until, go_on)


def count_until(go_on, job, report):
    """Four items, of which the last one is done when there is a file ``go_on`` (None: at once)."""
    if job == "bad":
        raise RecordError("bad: is bad")
    report(3)
    if go_on is not None:
        wait_until(go_on.exists, 120)
    report(1)
    return job


def describe(job):
    return [f"shard {job}"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_of_every_engine_beat(tmp_path, num_workers):
    store, go_on, seen, reported = tmp_path / "store", tmp_path / "go on", {}, []
    store.mkdir()
    jobs = list(range(6))

    def look_on():
        # Each worker is in its first job until all of them have been seen there.
        wait_until(
            lambda: seen.update(read_heartbeats(store)) or sum(beat.done > 0 for beat in seen.values()) >= num_workers,
            120,
        )
        go_on.touch()

    onlooker = threading.Thread(target=look_on)
    onlooker.start()
    with heartbeats(store, "extract", beat_seconds=QUICK) as session:
        build = session.around(partial(build_counter, go_on), describe)
        assert len(list(run_jobs(build, jobs, engine=Engine(num_workers=num_workers), report=reported.append))) == 6
    onlooker.join()
    assert sum(reported) == 24
    assert len(seen) == num_workers and len({beat.pid for beat in seen.values()}) == num_workers
    assert {beat.units for beat in seen.values()} <= {(f"shard {job}",) for job in jobs}
    assert {beat.done for beat in seen.values()} == {3}
    assert list(store.iterdir()) == []


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_worker_that_failed_says_why(tmp_path, num_workers):
    with pytest.raises(RecordError), heartbeats(tmp_path, "extract", beat_seconds=QUICK) as session:
        build = session.around(partial(build_counter, None), describe)
        list(run_jobs(build, [1, 2, "bad", 4], engine=Engine(num_workers=num_workers), report=lambda count: None))
    beats = beats_in(tmp_path)
    (failed,) = [beat for beat in beats if beat.state == "failed"]
    assert failed.last_error == "bad: is bad" and failed.units == ("shard bad",)
    assert all(beat.state == "interrupted" for beat in beats if beat is not failed)


def test_other_sessions_stay(tmp_path):
    with heartbeats(tmp_path, "extract", "0/2", beat_seconds=QUICK) as one:
        one.start()
        wait_until(lambda: beats_in(tmp_path))
        with heartbeats(tmp_path, "extract", "1/2", beat_seconds=QUICK) as other:
            other.start()
            wait_until(lambda: len(beats_in(tmp_path)) == 2)
        assert {beat.part for beat in beats_in(tmp_path)} == {"0/2"}


def test_a_killed_workers_heartbeat_goes_with_the_next_one_of_its_part(tmp_path):
    folder = tmp_path / WORKERS_FOLDER
    folder.mkdir()
    beat = Beat(
        work="extract",
        part="3/8",
        host="other",
        pid=1,
        device="cpu",
        started=0.0,
        written=0.0,
        beat=3,
        beat_seconds=15.0,
        item="views",
    )
    old = folder / f"3of8.01234567.0.{dead_writer()}.json"
    old.write_text(json.dumps(dataclasses.asdict(beat)))
    leftover = folder / f".tmp-{dead_writer()}-x.json"
    leftover.write_text("half")
    assert beats_in(tmp_path) == [beat]
    with heartbeats(tmp_path, "extract", "3/8"):
        assert not old.exists() and not leftover.exists()
    assert list(tmp_path.iterdir()) == []


def test_completion_removes_all_of_them_and_nothing_else(tmp_path):
    folder = tmp_path / WORKERS_FOLDER
    with pytest.raises(KeyError):
        raise_in_session(tmp_path, KeyError("x"), part="4/8")
    assert len(list(folder.iterdir())) == 1
    (folder / "notes.txt").write_text("somebody else's")
    remove_heartbeats(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    remove_heartbeats(tmp_path)
    assert list(tmp_path.iterdir()) == []
    remove_heartbeats(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"work": "extract"}', b"[" * 1000])
def test_what_is_no_heartbeat_is_passed_over(tmp_path, content):
    with pytest.raises(KeyError):
        raise_in_session(tmp_path, KeyError("x"))
    (path,) = (tmp_path / WORKERS_FOLDER).iterdir()
    path.write_bytes(content)
    assert read_heartbeats(tmp_path) == {}


def test_a_place_that_cannot_be_written_costs_one_warning(tmp_path, capsys):
    (tmp_path / WORKERS_FOLDER).write_text("a file where the folder would be")
    with heartbeats(tmp_path, "extract", beat_seconds=QUICK) as session:
        heartbeat = session.start()
        time.sleep(10 * QUICK)
        heartbeat.advance(1)
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1 and "heartbeats cannot be written" in shown[0] and WORKERS_FOLDER in shown[0]
    assert [path.name for path in tmp_path.iterdir()] == [WORKERS_FOLDER]


def test_an_error_of_the_work_is_raised_where_heartbeats_fail_too(tmp_path):
    (tmp_path / WORKERS_FOLDER).write_text("a file where the folder would be")
    with pytest.raises(RecordError, match="the cause"):
        raise_in_session(tmp_path, RecordError("the cause"))


def test_nobody_waits_for_a_put_that_hangs(tmp_path, monkeypatch):
    """Neither the work nor its end; here the end of a put never comes."""
    put, begun, hang = LocalStorage.put, threading.Event(), threading.Event()

    @contextmanager
    def hanging(storage, name):
        with put(storage, name) as file:
            yield file
            begun.set()
            hang.wait(30)

    monkeypatch.setattr(LocalStorage, "put", hanging)
    monkeypatch.setattr("teachonce.engine.heartbeat.STOP_SECONDS", 0.2)
    with heartbeats(tmp_path, "extract", beat_seconds=QUICK) as session:
        heartbeat = session.start()
        assert begun.wait(20)
        begin = time.monotonic()
        for _ in range(1000):
            heartbeat.advance(1)
        assert time.monotonic() - begin < 25
    assert time.monotonic() - begin < 25
    hang.set()


def test_an_error_is_said_at_once_where_the_server_is_away(moto, monkeypatch):
    """It has cost the work ``retry_seconds`` before: nobody waits as long again for the last heartbeats."""
    monkeypatch.setattr("teachonce.engine.heartbeat.STOP_SECONDS", 0.3)
    with start_proxy(moto) as proxy:
        for name, value in environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        location = to_location(f"s3://{new_bucket(moto)}/store")
        with (
            pytest.raises(RecordError, match="the cause"),
            heartbeats(location, "extract", beat_seconds=QUICK) as session,
        ):
            session.start()
            proxy.plan = lambda request, number: "503 SlowDown"
            begin = time.monotonic()
            raise RecordError("the cause")
        assert time.monotonic() - begin < 10 and proxy.faults.total()


def test_methods_of_a_heartbeat_that_has_stopped_do_nothing(tmp_path):
    with heartbeats(tmp_path, "extract", beat_seconds=QUICK) as session:
        heartbeat = session.start()
        assert isinstance(heartbeat, Heartbeat)
    heartbeat.advance(3)
    heartbeat.finish_units(1)
    heartbeat.stop("failed", TeachonceError("late"))
    assert list(tmp_path.iterdir()) == []
