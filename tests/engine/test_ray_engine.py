"""The Ray engine on a cluster of this machine: the contract of engines, the same bytes, and kills of everything."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from teachonce.engine.jobs import run_jobs
from teachonce.engine.options import Engine
from teachonce.engine.stop_between_units import check_stop, stopping_gently
from teachonce.errors import ConfigError, RecordError, StoppedError, TeachonceError
from teachonce.store.plan_files import CONFIG_NAME
from teachonce.terminal import print_line
from tests.engine.test_jobs import Nested, Squarer, build_threaded, build_waiter, refuse, wait_until
from tests.support.kills import everything
from tests.support.ray_cluster import DRIVER_WITHOUT_TORCH, actor_processes, finish, ray_cluster
from tests.support.small_data import write_image_folder, write_shards, write_store
from tests.support.small_models import write_color_shards, write_color_teacher

# Not beside others, nor in their process: nodes are killed, and Ray may end a process that is connected to them.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    # Not imported here: its environment is to be set before.
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster(2) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def connected(cluster):
    """This process as a driver, for the tests of the contract."""
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
    yield Engine(name="ray", num_workers=2)
    ray.shutdown()


def ignore(count):
    pass


def test_every_job_is_done_once(connected):
    counts = []
    results = dict(run_jobs(partial(Squarer, None), list(range(7)), engine=connected, report=counts.append))
    assert {job: square for job, (square, _) in results.items()} == {job: job * job for job in range(7)}
    assert {worker for _, worker in results.values()} <= {0, 1} and sum(counts) == 70
    assert list(run_jobs(refuse, [], engine=connected, report=ignore)) == []


def test_as_many_workers_as_the_cluster_has_room_for(connected):
    engine = Engine(name="ray", num_workers=0, min_workers=2)
    results = dict(run_jobs(partial(Squarer, None), list(range(20)), engine=engine, report=ignore))
    assert {worker for _, worker in results.values()} == {0, 1}


def test_reports_come_from_any_thread_and_while_jobs_run(connected, tmp_path):
    counts = []

    def report(count):
        counts.append(count)
        if sum(counts):
            (tmp_path / "reported").touch()

    list(run_jobs(partial(build_waiter, tmp_path / "reported"), [1], engine=connected, report=report))
    assert sum(counts) == 1
    counts.clear()
    list(run_jobs(build_threaded, [1, 2], engine=connected, report=counts.append))
    assert sum(counts) == 2 * 4 * 500
    assert dict(run_jobs(Nested, [1], engine=connected, report=ignore)) == {1: 30}


def build_asker(worker_index):
    return lambda job, report: os.environ.get(job)


def test_settings_of_the_command_go_with_the_workers(connected, monkeypatch):
    monkeypatch.setenv("TEACHONCE_STORAGE_OPTIONS", "region=nowhere")
    monkeypatch.setenv("SECRET_OF_THE_COMMAND", "x")
    names = ["TEACHONCE_STORAGE_OPTIONS", "SECRET_OF_THE_COMMAND"]
    assert dict(run_jobs(build_asker, names, engine=connected, report=ignore)) == dict(
        zip(names, ["region=nowhere", None], strict=True)
    )


class Failing:
    """A worker that notes what it tries."""

    def __init__(self, folder, error, worker_index):
        self.folder, self.error = folder, error

    def __call__(self, job, report):
        (self.folder / f"{job}-{time.time_ns()}").touch()
        if job == 3:
            raise self.error()
        time.sleep(0.05)


class UnreadableError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (partial(RecordError, "shard-7: job 3 is bad"), RecordError, "shard-7: job 3 is bad"),
        (partial(ConfigError, "no such teacher"), ConfigError, "no such teacher"),
        (partial(MemoryError, "of a library"), MemoryError, "of a library"),
        (partial(UnreadableError, "a", "b"), TeachonceError, "UnreadableError: a and b"),
    ],
    ids=["data", "config", "library", "unpicklable"],
)
def test_an_error_crosses_unchanged_and_is_not_retried(connected, tmp_path, error, kind, message):
    with pytest.raises(kind) as caught:
        list(run_jobs(partial(Failing, tmp_path, error), list(range(40)), engine=connected, report=ignore))
    assert type(caught.value) is kind and str(caught.value) == message
    tried = [path.name.partition("-")[0] for path in tmp_path.iterdir()]
    assert tried.count("3") == 1 and len(tried) < 40


def test_a_worker_that_cannot_be_built_says_why(connected):
    with pytest.raises(ConfigError, match=r"^no teacher today$"):
        list(run_jobs(refuse, [1, 2, 3], engine=connected, report=ignore))


def build_talker(worker_index):
    def talk(job, report):
        print_line(f"line of job {job}")
        warnings.warn(FutureSetting("a setting without effect"), stacklevel=1)

    return talk


class FutureSetting(UserWarning):
    pass


def test_lines_and_warnings_arrive_with_class_and_message(connected, capsys):
    with pytest.warns(FutureSetting, match="^a setting without effect$"):
        list(run_jobs(build_talker, [1, 2], engine=connected, report=ignore))
    assert sorted(capsys.readouterr().err.splitlines()) == ["line of job 1", "line of job 2"]


class Mortal:
    """A worker that is killed by its first job of some, and leaves a note, so that the second try lives."""

    def __init__(self, folder, number, worker_index):
        self.folder, self.number = folder, number

    def __call__(self, job, report):
        note = self.folder / str(job)
        if job in (2, 5) and not note.exists():
            note.touch()
            os.kill(os.getpid(), self.number)
            # Of two that are asked to stop, one asks about it itself, as a worker with an engine of its own does.
            if job == 2:
                check_stop()
            time.sleep(3)
        return os.getpid()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_or_stopped_worker_is_replaced(connected, tmp_path, number):
    engine = Engine(name="ray", num_workers=2, grace_seconds=20)
    results = dict(run_jobs(partial(Mortal, tmp_path, number), list(range(8)), engine=engine, report=ignore))
    assert set(results) == set(range(8)) and (tmp_path / "2").exists() and (tmp_path / "5").exists()
    assert len(set(results.values())) >= 2


class Noter:
    """A worker that takes a while, and leaves a note when it begins."""

    def __init__(self, folder, worker_index):
        self.folder = folder

    def __call__(self, job, report):
        (self.folder / str(job)).touch()
        time.sleep(1 + job % 2)


def test_what_runs_when_the_driver_is_asked_to_stop_is_finished(connected, tmp_path):
    done, done_when_asked = [], []
    with pytest.raises(StoppedError), stopping_gently(60):
        for job, _ in run_jobs(partial(Noter, tmp_path), list(range(40)), engine=connected, report=ignore):
            done.append(job)
            if len(list(tmp_path.iterdir())) > len(done) and not done_when_asked:
                done_when_asked = list(done)
                os.kill(os.getpid(), signal.SIGTERM)
    assert len(done_when_asked) < len(done) < 40
    assert sorted(done) == sorted(int(note.name) for note in tmp_path.iterdir())


def build_deadly(worker_index):
    return lambda job, report: os._exit(1)


def test_a_job_that_kills_every_worker_ends_with_a_line(connected, monkeypatch):
    monkeypatch.setattr("teachonce.engine.ray_engine.MAX_LOSSES", 2)
    with pytest.raises(TeachonceError, match=r"^2 workers of the cluster were lost while processing the same unit"):
        list(run_jobs(build_deadly, [1], engine=connected, report=ignore))


def test_workers_that_fit_nowhere_are_said_and_then_an_error(connected, monkeypatch, capsys):
    monkeypatch.setattr("teachonce.engine.ray_engine.SAY_SECONDS", 0.5)
    monkeypatch.setattr("teachonce.engine.ray_engine.WAIT_SECONDS", 3.0)
    engine = Engine(name="ray", num_workers=1, worker_cpus=3)
    found = "they request 3 CPUs and 0 GPUs each, the cluster has 2 and 0"
    with pytest.raises(TeachonceError, match=rf"^no worker has started within 3 s: {found}; add nodes"):
        list(run_jobs(partial(Squarer, None), [1], engine=engine, report=ignore))
    assert f"waiting for workers: {found}" in capsys.readouterr().err


def test_fewer_workers_than_wanted_are_said_and_then_an_error(connected, monkeypatch, capsys):
    monkeypatch.setattr("teachonce.engine.ray_engine.SAY_SECONDS", 0.5)
    monkeypatch.setattr("teachonce.engine.ray_engine.WAIT_SECONDS", 12.0)
    engine = Engine(name="ray", num_workers=4, min_workers=4)
    found = "they request 1 CPUs and 0 GPUs each, the cluster has 2 and 0"
    with pytest.raises(TeachonceError, match=rf"^only 2 of 4 \(--min-workers\) have started within 12 s: {found}; add"):
        list(run_jobs(partial(Squarer, None), [1, 2, 3, 4, 5], engine=engine, report=ignore))
    assert f"waiting for workers: 2 of 4 (--min-workers) are ready, {found}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Enough small units for a kill in their middle, the command, and its undisturbed store, made inline."""
    folder = tmp_path_factory.mktemp("work")
    data = write_color_shards(folder / "data", sizes=(8,) * 24)
    teacher = write_color_teacher(folder / "teacher.onnx")
    words = ["extract", "--data", data, "--teacher", teacher, "--policy", "crop", "--views", 8, "--views-per-file", 2]
    words += ["--batch-size", 1, "--device", "cpu"]
    run_inline(*words, "--out", folder / "inline")
    return folder, words


def run_inline(*words):
    from teachonce.cli.main import main

    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0


def num_views(out: Path) -> int:
    return len(list(out.glob("train-*.v*.arrow")))


def must_be_done(driver, work, out):
    code, said = finish(driver)
    assert code == 0, said
    # Calls of other options may make the same store.
    found, expected = ({**everything(folder), CONFIG_NAME: b""} for folder in (out, work[0] / "inline"))
    assert found == expected, said
    return said


def test_a_driver_that_cannot_load_the_teacher(cluster, work, tmp_path):
    """Gate, plan and units are the workers' work; and the working folder is no part of the paths."""
    out = tmp_path / "store"
    words = ["data" if word == work[0] / "data" else word for word in work[1]]
    driver = cluster.start(
        *words, "--expect-top1", 0.9, "--out", out, *cluster.options(num_workers=2), code=DRIVER_WITHOUT_TORCH,
        folder=work[0],
    )  # fmt: skip
    said = must_be_done(driver, work, out)
    assert "gate: top-1 1.000 on 192 records" in said and "views 0 to 1 are complete" in said
    assert "Traceback" not in said and "raylet" not in said
    again = cluster.start(*words, "--out", out, *cluster.options(num_workers=2), folder=work[0])
    assert "96 of 96 units done" in must_be_done(again, work, out)


def test_a_node_is_killed_and_another_one_joins(cluster, work, tmp_path):
    out = tmp_path / "store"
    driver = cluster.start(*work[1], "--out", out, *cluster.options(num_workers=2))
    wait_until(lambda: num_views(out) >= 4, 120)
    assert num_views(out) < 92
    cluster.kill()
    cluster.add()
    said = must_be_done(driver, work, out)
    assert "Traceback" not in said and "teachonce: " not in said and "raylet" not in said


def test_actors_are_killed(cluster, work, tmp_path):
    out = tmp_path / "store"
    driver = cluster.start(*work[1], "--out", out, *cluster.options(min_workers=1, max_workers=2))
    for number in (4, 12):
        wait_until(functools.partial(lambda number: num_views(out) >= number, number), 120)
        processes = actor_processes()
        assert processes
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    must_be_done(driver, work, out)


def test_the_driver_is_killed_and_started_again_beside_a_second_one(cluster, work, tmp_path):
    out = tmp_path / "store"
    driver = cluster.start(*work[1], "--out", out, *cluster.options(num_workers=2))
    wait_until(lambda: num_views(out) >= 4, 120)
    driver.kill()
    driver.communicate()
    assert num_views(out) < 92
    drivers = [cluster.start(*work[1], "--out", out, *cluster.options(num_workers=1)) for _ in range(2)]
    for one in drivers:
        must_be_done(one, work, out)
    wait_until(lambda: not actor_processes(), 60)


def test_a_driver_that_is_asked_to_stop(cluster, work, tmp_path):
    out = tmp_path / "store"
    driver = cluster.start(*work[1], "--out", out, *cluster.options(num_workers=1))
    wait_until(lambda: num_views(out) >= 4, 120)
    driver.send_signal(signal.SIGTERM)
    code, said = finish(driver)
    assert code == 143 and said.splitlines()[-1].startswith("teachonce: stopped by SIGTERM; completed work is kept.")
    assert 4 <= num_views(out) < 96
    must_be_done(cluster.start(*work[1], "--out", out, *cluster.options(num_workers=2)), work, out)


def test_a_driver_that_is_asked_to_stop_while_it_connects(cluster, work, tmp_path):
    """Whoever holds the signal at that moment, Python, we or Ray: its code is that of SIGTERM."""
    for seconds in (1.5, 2.0, 2.5, 3.0):
        driver = cluster.start(*work[1], "--out", tmp_path / "store", *cluster.options(num_workers=1))
        time.sleep(seconds)
        driver.send_signal(signal.SIGTERM)
        code, said = finish(driver)
        assert code in (143, -signal.SIGTERM), said


def test_calls_that_are_lost_on_their_way(cluster, work, tmp_path):
    """Ray says ActorUnavailableError of them: it does not know whether the actor lives, nor whether it did the job."""
    out = tmp_path / "store"
    lost = {"num_failures": 6, "req_failure_prob": 25, "resp_failure_prob": 25, "in_flight_failure_prob": 0}
    chaos = json.dumps({"CoreWorkerService.grpc_client.PushTask": lost})
    driver = cluster.start(
        *work[1], "--out", out, *cluster.options(num_workers=2), environment={"RAY_testing_rpc_failure": chaos}
    )
    must_be_done(driver, work, out)


def test_a_data_error_ends_the_command_at_once(cluster, work, tmp_path):
    data = write_shards(tmp_path / "data")
    shard = next(path for path in sorted(data.glob("train-*")) if not path.name.endswith(".index"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    words = ["extract", "--data", data, *work[1][3:5], "--gate-samples", 0, "--device", "cpu"]
    lines = []
    for more in ([], cluster.options(num_workers=2)):
        shard.write_bytes(content)
        code, said = finish(cluster.start(*words, "--out", tmp_path / "store", *more))
        lines.append(said.splitlines()[-1])
        assert code == 1 and shard.name in lines[-1], said
    assert lines[0] == lines[1]


def test_records_and_merge(cluster, tmp_path):
    images = write_image_folder(tmp_path / "images")
    data = write_shards(tmp_path / "data")
    store = write_store(tmp_path / "store", data)
    for words in (
        ["records", "--images", images, "--shards", 5],
        ["merge", store.path, "--data", data],
    ):
        out = tmp_path / words[0]
        run_inline(*words, "--out", out / "inline", "--num-workers", 1)
        code, said = finish(cluster.start(*words, "--out", out / "ray", *cluster.options()))
        assert code == 0 and everything(out / "ray") == everything(out / "inline"), said


def test_no_cluster_is_one_line(cluster, work, tmp_path):
    words = [*work[1], "--out", tmp_path / "s", "--engine", "ray", "--address", "127.0.0.1:9"]
    code, said = finish(cluster.start(*words))
    line = said.splitlines()[-1]
    assert code == 2 and line.startswith("teachonce: --address 127.0.0.1:9: no Ray cluster can be reached"), said
