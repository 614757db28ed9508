"""What ``status`` says of stores and runs that are begun, under way and complete, and of who works on them."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from teachonce.cli.main import main
from teachonce.engine.heartbeat import WORKERS_FOLDER, Beat, read_heartbeats
from teachonce.errors import ConfigError, TeachonceError
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.inspection.config import StatusConfig
from teachonce.inspection.status import Look, render_line, render_status, status
from teachonce.runs.metrics import METRIC_COLUMNS, write_metrics
from teachonce.storage.address import to_location
from teachonce.storage.files import open_storage, write_json
from teachonce.storage.writers import writer_name
from teachonce.store.begin import begin_store
from teachonce.store.manifests import finalize_store
from teachonce.store.plan_files import put_config
from teachonce.training.config import TrainConfig
from teachonce.training.train import train
from tests.support.copies import copy
from tests.support.kills import dead_writer, everything
from tests.support.object_stores import environment, new_bucket, start_moto
from tests.support.paths import GOLDEN, ROOT
from tests.support.small_models import write_color_shards, write_color_teacher
from tests.support.small_stores import fill, make_plan
from tests.support.web_server import serve

FOREIGN = "00000000-12-345-01234567"
"""A writer of another machine: the hash of this one is another."""
GROUPS = [(0, 1), (2, 3), (4, 4)]
SHARDS = 2


def write_beat(path: Path, writer: str, part: str = "0/1", **changes) -> Beat:
    beat = Beat(
        work="extract",
        part=part,
        host="node-7",
        pid=12,
        device="cuda:0 (NVIDIA H100)",
        started=time.time() - 100,
        written=time.time(),
        beat=5,
        beat_seconds=15.0,
        item="views",
        done=640,
        per_second=8.0,
        units_done=1,
        units=("train-00001 views 2 to 3", "train-00002 views 2 to 3"),
    )
    beat = dataclasses.replace(beat, **changes)
    write_json(path / WORKERS_FOLDER / f"{part.replace('/', 'of')}.01234567.0.{writer}.json", dataclasses.asdict(beat))
    return beat


@pytest.fixture
def store(tmp_path):
    """Five views of 8 records in two shards: views 0 and 1 are complete, of 2 and 3 one shard is there, of 4 none."""
    path, plan = tmp_path / "store", make_plan(5)
    assert list(plan.view_groups) == GROUPS and len(plan.shards) == SHARDS
    begin_store(path, plan, 2)
    fill(path, plan, groups=GROUPS[:1])
    fill(path, plan, groups=GROUPS[1:2], shards=[0])
    finalize_store(path)
    return path


def look_at(path):
    summary = json.loads(status(StatusConfig(path=path, json=True)))
    assert summary == json.loads(json.dumps(summary, allow_nan=False))
    return summary


def test_a_store_under_way(store):
    summary = look_at(store)
    assert (summary["kind"], summary["is_complete"], summary["num_records"]) == ("store", False, 8)
    assert (summary["units_done"], summary["units_missing"]) == (3, 3)
    # Shards of 5 and 3 records: 2 x 8 views of the first group, 2 x 5 of the second.
    assert (summary["views_done"], summary["views_missing"]) == (26, 14)
    assert (summary["num_views"], summary["num_views_planned"]) == (2, 5)
    assert [(item["units_done"], item["is_complete"]) for item in summary["groups"]] == [
        (2, True),
        (1, False),
        (0, False),
    ]
    assert summary["workers"] == [] and summary["last_error"] is None and summary["seconds_left"] is None
    text = status(StatusConfig(path=store))
    assert text.splitlines()[0] == f"{store}: 3 of 6 units done, 3 missing, 0 workers alive"
    assert "0 to 1 of 5 complete; 2 to 3: 1 of 2 shards" in text
    assert "no worker is active: run the command that made it (extract, copy or upgrade) to resume" in text
    put_config(store, {})
    assert "no worker is active: run the same extract command to resume" in status(StatusConfig(path=store))


@pytest.mark.parametrize("has_config", [True, False])
def test_a_part_of_the_views_is_nothing_to_wait_for(tmp_path, has_config, monkeypatch):
    """A copy of it was unfinished for ever: ``--watch`` never ended."""
    path, part = tmp_path / "store", tmp_path / "part"
    plan = begin_store(path, make_plan(5), 2)
    fill(path, plan)
    finalize_store(path)
    if has_config:
        put_config(path, {})
    copy(path, part, views="0:2")
    monkeypatch.setattr("teachonce.inspection.status.PART_SECONDS", 0)
    text = status(StatusConfig(path=part, watch=True))
    assert text.splitlines()[0] == f"{part}: 2 of 6 units done, 4 missing, not begun here"
    assert "0 to 1 of 5 complete; the others are planned, not begun here (extract makes them, copy with" in text
    assert "resume" not in text and "workers" not in text
    summary = look_at(part)
    assert summary["is_part"] and not summary["is_complete"]
    # With a file of the others, with a worker, or without one of its own, there is.
    writer = write_beat(part, FOREIGN)
    assert writer and not look_at(part)["is_part"]
    shutil.rmtree(part / WORKERS_FOLDER)
    assert look_at(part)["is_part"]
    for name in ("train-00000-of-00002.v002-003.arrow", "train-00001-of-00002.v004-004.arrow"):
        shutil.copy(path / name, part / name)
        assert not look_at(part)["is_part"] and "to resume" in status(StatusConfig(path=part))
        (part / name).unlink()
    copy(path, part, views="0:4")
    assert look_at(part)["is_part"] and "0 to 3 of 5 complete; the others" in status(StatusConfig(path=part))
    (part / "index.arrow").unlink()
    assert not look_at(part)["is_part"]
    copy(path, part)
    assert look_at(part)["is_complete"] and not look_at(part)["is_part"]


def test_a_part_is_watched_for_a_while_as_its_workers_may_only_be_starting(tmp_path, monkeypatch):
    """An extraction that adds views plans them long before its first heartbeat."""
    path, part = tmp_path / "store", tmp_path / "part"
    plan = begin_store(path, make_plan(5), 2)
    fill(path, plan)
    finalize_store(path)
    copy(path, part, views="0:2")
    seconds, looks = [0.0], []

    def sleep(_):
        seconds[0] += 400
        looks.append(look_at(part)["num_views"])
        if len(looks) == 1:
            copy(path, part, views="0:4")

    monkeypatch.setattr("teachonce.inspection.status.time", SimpleNamespace(monotonic=lambda: seconds[0], sleep=sleep))
    text = status(StatusConfig(path=part, watch=True))
    assert "0 to 3 of 5 complete; the others are planned" in text and looks == [2, 4]


def test_a_store_that_was_only_begun(tmp_path):
    plan = make_plan(5)
    begin_store(tmp_path, plan, 2)
    summary = look_at(tmp_path)
    assert (summary["units_done"], summary["units_missing"], summary["num_views"]) == (0, 6, 0)
    assert "none of 5 complete" in status(StatusConfig(path=tmp_path))


def test_a_complete_store_and_one_without_its_manifest(store):
    fill(store, make_plan(5))
    summary = look_at(store)
    assert summary["units_missing"] == 0 and not summary["is_complete"]
    assert "all files are there except the manifest, which the command that made it (extract, " in render_status(
        summary
    )
    finalize_store(store)
    summary = look_at(store)
    assert summary["is_complete"] and (summary["units_done"], summary["num_views"]) == (6, 5)
    text = render_status(summary)
    assert text.splitlines()[0] == f"{store}: 6 of 6 units done, 0 missing, complete"
    assert "workers" not in text and "again" not in text


@pytest.mark.parametrize("name", ["store-v1-int8", "store-v2-crop", "store-v3-grown"])
def test_stores_of_every_format(name):
    summary = look_at(ROOT / "tests" / "golden" / name)
    assert summary["is_complete"] and summary["units_missing"] == 0
    assert summary["num_views"] == summary["num_views_planned"]


def test_a_worker_of_this_machine_is_asked_for(store):
    """Whatever the clock in its heartbeat says."""
    write_beat(store, writer_name(), "0/2", written=0.0)
    write_beat(store, dead_writer(), "1/2")
    alive, dead = look_at(store)["workers"]
    assert (alive["alive"], alive["judged_by"], dead["alive"], dead["judged_by"]) == (True, "process", False, "process")
    summary = look_at(store)
    # 14 views at the 8 of the living one; what the dead one said counts no more.
    assert summary["views_per_second"] == 8.0 and summary["records_per_second"] == 8.0 / 5
    assert summary["seconds_left"] == 14 / 8
    text = render_status(summary)
    assert "3 of 6 units done, 3 missing, 8 views/s (1.6 records/s), 1.8 s left, 1 worker alive" in text
    assert "workers    1 alive, 1 gone" in text
    assert "part 1/2 on node-7 process 12, cuda:0 (NVIDIA H100): gone (its process exited unexpectedly)" in text
    assert "alive, 1 units, 640 views, 8/s, at train-00001 views 2 to 3 and 1 more" in text


@pytest.mark.parametrize(("age", "alive"), [(0, True), (40, True), (-40, True), (50, None), (-50, None), (1e6, None)])
def test_a_single_look_at_another_machine_has_its_clock_alone(store, age, alive):
    write_beat(store, FOREIGN, written=time.time() - age)
    (worker,) = look_at(store)["workers"]
    assert (worker["alive"], worker["judged_by"]) == (alive, "clock")
    assert worker["age_seconds"] == pytest.approx(age, abs=5)
    assert ("--watch shows whether it is alive" in status(StatusConfig(path=store))) is (alive is None)


def test_while_watching_the_counter_decides_and_no_clock(store):
    """A worker whose clock is a year behind lives as long as it counts; one whose clock is right has to count too."""
    look = Look(store)
    behind = {"written": time.time() - 3e7, "beat_seconds": 0.3}
    write_beat(store, FOREIGN, "0/2", beat=1, **behind)
    other = FOREIGN.replace("12", "13")
    write_beat(store, other, "1/2", beat=1, beat_seconds=0.3)
    assert [worker["alive"] for worker in look()["workers"]] == [None, True]
    write_beat(store, FOREIGN, "0/2", beat=2, **behind)
    first, second = look()["workers"]
    assert (first["alive"], first["judged_by"]) == (True, "counter")
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        write_beat(store, FOREIGN, "0/2", beat=int(10 * time.monotonic()), **behind)
        write_beat(store, other, "1/2", beat=1, beat_seconds=0.3)  # put again, and stands still all the same
        first, second = look()["workers"]
        time.sleep(0.1)
    assert (first["alive"], first["judged_by"]) == (True, "counter")
    assert (second["alive"], second["judged_by"]) == (False, "counter")
    assert "gone (its heartbeat stopped at 1)" in render_status(look())


def test_the_last_error_and_how_workers_ended(store):
    write_beat(store, FOREIGN, "0/3", state="failed", last_error="train-00000: record 3\x1b[2J", written=time.time())
    others = [FOREIGN.replace("12", number) for number in ("13", "14")]
    write_beat(store, others[0], "1/3", state="failed", last_error="earlier", written=time.time() - 9)
    write_beat(store, others[1], "2/3", state="interrupted")
    summary = look_at(store)
    assert summary["last_error"]["error"] == "train-00000: record 3\x1b[2J" and summary["last_error"]["part"] == "0/3"
    text = render_status(summary)
    assert "workers    0 alive, 2 failed, 1 interrupted" in text
    assert r"last error node-7, process 12: train-00000: record 3\x1b[2J" in text and "\x1b" not in text


def test_a_worker_that_hangs_is_told_from_one_that_works(store):
    write_beat(store, writer_name(), idle_seconds=600.0)
    assert "no progress for 10 min 00 s" in status(StatusConfig(path=store))


def test_many_workers_are_not_all_shown(store):
    for part in range(30):
        write_beat(store, FOREIGN.replace("12", str(100 + part)), f"{part}/30", written=0.0)
    lines = status(StatusConfig(path=store)).splitlines()
    assert "    ... 10 more (--json shows all)" in lines and len(lines) == 24
    assert len(look_at(store)["workers"]) == 30


@pytest.mark.parametrize("name", ["store-v1-int8", "store-v2-topk", "store-v3-grown"])
def test_a_store_on_a_web_server(name, capsys):
    here = look_at(GOLDEN / name)
    with serve(GOLDEN / name) as server:
        found = look_at(to_location(server.address))
        assert found == here | {"path": server.address} and found["is_complete"]
        with pytest.raises(SystemExit) as end:
            main(["status", server.address])
    shown = capsys.readouterr()
    assert end.value.code == 0 and "complete" in shown.out and not shown.err


def test_an_unfinished_store_on_a_web_server_has_what_its_manifests_list(store, tmp_path):
    with serve(store) as server:
        found = look_at(to_location(server.address))
        assert (found["is_complete"], found["num_views"]) == (False, 2)
        assert (found["units_done"], found["units_missing"]) == (2, 4)
        assert [group["units_done"] for group in found["groups"]] == [2, 0, 0]
    with serve(tmp_path / "nothing") as server, pytest.raises(ConfigError, match="neither a store nor a run"):
        status(StatusConfig(path=to_location(server.address)))


ROW = dict.fromkeys(METRIC_COLUMNS, 0.5) | {"epoch": 1, "step": 3}


@pytest.fixture(scope="module")
def finished_run(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train(
        TrainConfig(data=digits, student="timm:test_resnet", out=out, epochs=2, size=32, batch_size=32, num_workers=1)
    )
    return out


def test_a_run_on_a_web_server(finished_run):
    with serve(finished_run) as server:
        assert look_at(to_location(server.address)) == look_at(finished_run) | {"path": server.address}


def test_a_run(finished_run, tmp_path):
    summary = look_at(finished_run)
    assert (summary["kind"], summary["is_complete"]) == ("run", True)
    assert (summary["epochs_done"], summary["epochs"], summary["step"]) == (2, 2, 6)
    assert summary["last_epoch"]["epoch"] == 2 and summary["result"]["epochs"] == 2 and summary["workers"] == []
    text = render_status(summary)
    assert text.splitlines()[0] == f"{finished_run}: 2 of 2 epochs done, step 6, complete"
    assert "epoch 2    train_loss" in text
    begun = tmp_path / "run"
    begun.mkdir()
    shutil.copy(finished_run / "config.json", begun)
    summary = look_at(begun)
    assert (summary["is_complete"], summary["epochs_done"], summary["last_epoch"]) == (False, 0, None)
    assert "run the same train command to resume" in render_status(summary)
    write_metrics(begun, [ROW])
    details = {"epoch": 2, "epochs": 2, "step": 5, "train_loss": 1.25}
    write_beat(
        begun,
        writer_name(),
        work="train",
        item="images",
        total=192,
        done=160,
        units_done=0,
        units=(),
        details=details,
        per_second=16.0,
    )
    summary = look_at(begun)
    assert (summary["step"], summary["images_per_second"], summary["seconds_left"]) == (5, 16.0, 2.0)
    text = render_status(summary)
    assert "1 of 2 epochs done, step 5, 16 images/s, 2.0 s left, 1 worker alive" in text
    assert "alive, 160 images, 16/s, train_loss 1.25" in text


def test_the_step_of_a_run_is_never_before_its_last_epoch(finished_run, tmp_path):
    """Its heartbeat may be from before."""
    begun = tmp_path / "run"
    begun.mkdir()
    shutil.copy(finished_run / "config.json", begun)
    write_metrics(begun, [ROW])
    write_beat(begun, writer_name(), work="train", item="images", total=192, details={"epoch": 1, "step": 0})
    assert look_at(begun)["step"] == ROW["step"] > 0


@pytest.mark.slow
def test_a_training_beats_and_leaves_nothing_of_it(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("teachonce.engine.heartbeat.BEAT_SECONDS", 0.05)
    seen: list[Beat] = []
    config = TrainConfig(
        data=digits,
        student="timm:test_resnet",
        out=tmp_path / "run",
        epochs=8,
        size=32,
        batch_size=32,
        num_workers=1,
        device="cpu",
    )
    is_over = threading.Event()

    def look_on():
        while not is_over.wait(0.02):
            if (config.out / WORKERS_FOLDER).is_dir():
                seen.extend(read_heartbeats(config.out).values())

    thread = threading.Thread(target=look_on)
    thread.start()
    train(config)
    is_over.set()
    thread.join()
    assert not (config.out / WORKERS_FOLDER).exists()
    assert {(beat.work, beat.item, beat.total, beat.device) for beat in seen} == {("train", "images", 8 * 96, "cpu")}
    steps = [beat.details["step"] for beat in seen]
    assert steps == sorted(steps) and steps[-1] > steps[0]
    later = [beat for beat in seen if beat.details["epoch"] > 1]
    assert later and all({"train_loss", "validation_top1"} <= set(beat.details) for beat in later)
    assert all(beat.done == beat.details["step"] * 96 // 3 for beat in seen)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_store_is_the_same_with_and_without_heartbeats(tmp_path, monkeypatch, num_workers):
    """Byte for byte; here they are put every 10 ms, and not at all where a file is in the place of their folder."""
    data, teacher = write_color_shards(tmp_path / "data"), write_color_teacher(tmp_path / "teacher.onnx")
    monkeypatch.setattr("teachonce.engine.heartbeat.BEAT_SECONDS", 0.01)
    stores = []
    for name in ("with", "without"):
        path = tmp_path / name
        if name == "without":
            path.mkdir()
            (path / WORKERS_FOLDER).write_text("")
        extract(
            ExtractConfig(
                data=data,
                teacher=teacher,
                out=path,
                policy="crop",
                views=3,
                views_per_file=1,
                device="cpu",
                batch_size=8,
                gate_samples=0,
                num_workers=num_workers,
            )
        )
        stores.append(everything(path))
    assert stores[1].pop(WORKERS_FOLDER) == b""
    assert stores[0] == stores[1]
    assert not (tmp_path / "with" / WORKERS_FOLDER).exists()


def test_a_failed_extraction_says_why_until_one_succeeds(tmp_path):
    data, out = write_color_shards(tmp_path / "data"), tmp_path / "store"
    settings = {"data": data, "out": out, "device": "cpu", "batch_size": 8, "gate_samples": 0}
    with pytest.raises(TeachonceError, match="NaN"):
        extract(ExtractConfig(teacher=write_color_teacher(tmp_path / "bad.onnx", nan_above=0.5), **settings))
    summary = look_at(out)
    assert "the teacher's logits are NaN" in summary["last_error"]["error"]
    assert [worker["state"] for worker in summary["workers"]] == ["failed"]
    for name in [path.name for path in out.iterdir() if path.name != WORKERS_FOLDER]:
        (out / name).unlink()
    write_beat(out, FOREIGN, "7/8", state="failed", last_error="of another part")
    extract(ExtractConfig(teacher=write_color_teacher(tmp_path / "good.onnx"), **settings))
    assert look_at(out)["is_complete"] and not (out / WORKERS_FOLDER).exists()


@pytest.mark.parametrize("kind", ["nowhere", "file", "empty", "records"])
def test_what_is_neither_a_store_nor_a_run(tmp_path, capsys, kind):
    path = tmp_path / kind
    if kind == "file":
        path.write_text("")
    elif kind == "empty":
        path.mkdir()
    elif kind == "records":
        write_color_shards(path)
    with pytest.raises(SystemExit) as end:
        main(["status", str(path)])
    line = capsys.readouterr().err
    assert end.value.code == 2 and len(line.splitlines()) == 1
    assert line.startswith(f"teachonce: {path}: ") and "expected" in line
    with pytest.raises(ConfigError):
        status(StatusConfig(path=path, watch=True))


def test_options_that_cannot_be_meant():
    with pytest.raises(ConfigError, match=r"^--watch-seconds 3: applies only with --watch, found no --watch$"):
        StatusConfig(path=Path("store"), watch_seconds=3)
    with pytest.raises(ConfigError, match=r"^--watch-seconds 0: expected more than 0 seconds, at most 86400$"):
        StatusConfig(path=Path("store"), watch=True, watch_seconds=0)


def finish_meanwhile(store, monkeypatch):
    """The work is completed in the third pause between two looks, each of which takes no time."""
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            fill(store, make_plan(5))
            finalize_store(store)

    clock = SimpleNamespace(time=time.time, monotonic=lambda: 1000.0, sleep=pause)
    monkeypatch.setattr("teachonce.inspection.status.time", clock)
    return pauses


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_ends_when_the_work_is_complete(store, capsys, monkeypatch, as_json):
    pauses = finish_meanwhile(store, monkeypatch)
    text = status(StatusConfig(path=store, watch=True, watch_seconds=0.05, json=as_json))
    assert pauses == [0.05] * 3
    before = capsys.readouterr().out.splitlines()
    if as_json:
        looks = [json.loads(line) for line in before]
        assert len(looks) == 3 and not any(look["is_complete"] for look in looks)
        assert json.loads(text)["is_complete"]
    else:
        assert before == [f"{store}: 3 of 6 units done, 3 missing, 0 workers alive"], "one line, ten seconds apart"
        assert text.startswith(f"{store}: 6 of 6 units done, 0 missing, complete")
        assert render_line(look_at(store)) == text.splitlines()[0]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_the_text_is_renewed_in_its_place(store, monkeypatch):
    finish_meanwhile(store, monkeypatch)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    text = status(StatusConfig(path=store, watch=True, watch_seconds=0.05))
    shown = terminal.getvalue()
    assert shown.count("3 of 6 units done") > 2 and "\x1b[2K" in shown and "complete; 2 to 3: 1 of 2 shards" in shown
    assert text.startswith(f"{store}: 6 of 6 units done")


@pytest.mark.slow
def test_to_stop_watching_is_no_interruption(store):
    code = "from teachonce.cli.main import main; main()"
    words = [sys.executable, "-c", code, "status", str(store), "--watch"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and "3 of 6 units done" in process.stdout.readline()
    process.send_signal(2)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.slow
def test_a_store_in_an_object_store(tmp_path, monkeypatch):
    """Heartbeats come and go there as in a folder, and nothing of them is left in the bucket."""
    monkeypatch.setattr("teachonce.engine.heartbeat.BEAT_SECONDS", 0.05)
    with start_moto() as endpoint:
        for name, value in environment(endpoint).items():
            monkeypatch.setenv(name, value)
        out = to_location(f"s3://{new_bucket(endpoint)}/store")
        data, teacher = write_color_shards(tmp_path / "data"), write_color_teacher(tmp_path / "teacher.onnx")
        settings = {"policy": "crop", "views": 6, "views_per_file": 1, "device": "cpu", "batch_size": 8}
        config = ExtractConfig(data=data, teacher=teacher, out=out, gate_samples=0, **settings)
        extraction = threading.Thread(target=extract, args=(config,))
        extraction.start()
        looks = []
        while extraction.is_alive():
            if open_storage(out).has("plan.json"):
                looks.append(look_at(out))
        extraction.join()
        assert look_at(out)["is_complete"]
        workers = [worker for look in looks for worker in look["workers"]]
        assert {(worker["alive"], worker["judged_by"]) for worker in workers} == {(True, "process")}
        assert not [name for name in open_storage(out).walk() if WORKERS_FOLDER in name]
