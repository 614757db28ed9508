"""Training that is stopped within an epoch, in its evaluation or at its end, and resumed: nothing shows that it was."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from teachonce.cli.ablate import _open_log
from teachonce.cli.main import main
from teachonce.engine import stop_long_work
from teachonce.engine.stop_long_work import Interrupted
from teachonce.errors import ModelError, PlanMismatchError, TeachonceError
from teachonce.models.classifier import build_student
from teachonce.runs.metrics import read_metrics
from teachonce.runs.run import LOCK_NAME, Run
from teachonce.storage.address import to_location
from teachonce.storage.files import open_storage
from teachonce.storage.remote import lease
from teachonce.storage.remote.object_storage import ObjectStorage
from teachonce.training.config import TrainConfig
from teachonce.training.interruption import KEY, merge_rank_states
from teachonce.training.ranks import run_ranks
from teachonce.training.student_module import StudentModule
from teachonce.training.train import train
from tests.support.object_stores import environment, new_bucket
from tests.support.trainings import (
    DROPOUT_STUDENT,
    MOST_SECONDS,
    PROCESSES,
    forked,
    started,
    train_and_hang,
    train_until_killed,
)
from tests.support.warm_python import warm_python
from tests.training.test_train import GRACE_SECONDS, TRAIN, config, curve, tensor_bytes

# Batch norm, dropout, moving average, mixup, warm-up: everything that has a state or is drawn. 12 updates an epoch.
EVERYTHING: dict[str, Any] = {
    "student": DROPOUT_STUDENT,
    "epochs": 3,
    "batch_size": 8,
    "mixup_alpha": 0.3,
    "ema_decay": 0.9,
    "warmup_epochs": 1.5,
    "optimizer": "adamw",
    "lr": 1e-3,
    "clip_norm": 1.0,
    "validation_epochs": 1,
}
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def undisturbed(digits: Path, digits_store: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    run = config(digits, tmp_path_factory.mktemp("runs") / "undisturbed", store=digits_store, **EVERYTHING)
    train(run)
    return run


class Stopper:
    """Sends this process a signal in the ``at``-th call from now on of a method of ``StudentModule``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # On a busy machine an interrupted training may take longer to end, and its process is that of the tests.
        monkeypatch.setattr(stop_long_work, "SECOND_INTERRUPT_SECONDS", GRACE_SECONDS)
        self.num_calls: dict[str, int] = {}
        self._planned: dict[str, tuple[int, tuple[int, ...]]] = {}
        for name in ("training_step", "validation_step", "on_validation_epoch_end"):
            monkeypatch.setattr(StudentModule, name, self._counting(name, getattr(StudentModule, name)))

    def plan(self, name: str, at: int, *signals: int) -> None:
        self._planned = {name: (at, signals)}
        self.num_calls = {}

    def _counting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.num_calls[name] = self.num_calls.get(name, 0) + 1
            at, signals = self._planned.get(name, (0, ()))
            if self.num_calls[name] == at:
                for number in signals:
                    signal.raise_signal(number)
            return method(*arguments)

        return counted


@pytest.fixture
def stopper(monkeypatch: pytest.MonkeyPatch) -> Stopper:
    return Stopper(monkeypatch)


def stop(run: TrainConfig, number: int = signal.SIGTERM) -> None:
    """Train until the signal, which is planned."""
    with pytest.raises(SystemExit if number == signal.SIGTERM else Interrupted) as ended:
        train(run)
    assert number == signal.SIGINT or ended.value.code == 143


def last_checkpoint(run: TrainConfig) -> dict[str, Any]:
    return torch.load(run.out / "checkpoints" / "last.ckpt", weights_only=True)


def check_the_same(run: TrainConfig, undisturbed: TrainConfig) -> None:
    """Curve, weights, result; and nothing is left over."""
    assert curve(run.out) == curve(undisturbed.out)
    assert tensor_bytes(run.out / "student.safetensors") == tensor_bytes(undisturbed.out / "student.safetensors")
    found, expected = (Run(each.out).result or {} for each in (run, undisturbed))
    assert {name: found[name] for name in found if name not in TIMES} == {
        name: expected[name] for name in expected if name not in TIMES
    }
    assert sorted(path.name for path in (run.out / "checkpoints").iterdir()) == ["best.safetensors", "last.ckpt"]
    assert not list(run.out.rglob(".tmp-*")) and not (run.out / ".train.lock").exists()


def test_the_student_has_what_is_kept_and_what_is_drawn() -> None:
    student = build_student(DROPOUT_STUDENT, 10).train()
    names = student.state_dict().keys()
    assert any("running_var" in name for name in names) and any("num_batches_tracked" in name for name in names)
    images = torch.rand(8, 3, 16, 16)
    # Batch norm gives the same for the same batch: what differs is dropout.
    assert not torch.equal(student(images), student(images))
    assert torch.equal(student.eval()(images), student(images))


@pytest.mark.parametrize("seed", range(3))
def test_stopped_at_any_steps_and_resumed_is_bit_for_bit_the_same(
    undisturbed: TrainConfig, tmp_path: Path, stopper: Stopper, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = replace(undisturbed, out=tmp_path / "run", num_workers=seed % 2)
    rng, done = np.random.default_rng(seed), 0
    while True:
        steps = int(rng.integers(1, 13))
        if done + steps >= 36:
            break
        done += steps
        number = signal.SIGTERM if rng.random() < 0.5 else signal.SIGINT
        stopper.plan("training_step", steps, number)
        stop(run, number)
        epoch, step = divmod(done, 12)
        if step:
            place = last_checkpoint(run)[KEY]
            assert (place["epoch"], place["num_done"], place["num_updates"]) == (epoch, step, 12)
            where = f"in epoch {epoch + 1} at step {step} of 12"
        else:
            where = f"in the evaluation after epoch {epoch}"  # of its first batch, for a step that was the last one
        lines = capsys.readouterr().err.splitlines()
        expected = f"training: interrupted {where}; checkpoint saved. Run the same command to resume"
        assert [line for line in lines if line.startswith("training:")] == [expected]
        # No line but for epochs that have ended.
        assert len(read_metrics(run.out)) == epoch - (step == 0)
    stopper.plan("training_step", 0)
    train(run)
    assert stopper.num_calls["training_step"] == 36 - done
    assert f"{run.out}: resumes {where}" in capsys.readouterr().err
    check_the_same(run, undisturbed)


def test_accumulated_updates_are_not_torn(digits: Path, tmp_path: Path, stopper: Stopper) -> None:
    """A signal in the middle of an update is answered at its end."""
    settings = {"batch_size": 4, "accumulate": 3, "epochs": 2, "ema_decay": 0.9, "clip_norm": 0.5}
    undisturbed = config(digits, tmp_path / "undisturbed", **settings)
    train(undisturbed)
    run = replace(undisturbed, out=tmp_path / "run")
    stopper.plan("training_step", 7, signal.SIGTERM)  # the first of the third update's batches
    stop(run)
    assert stopper.num_calls["training_step"] == 9 and last_checkpoint(run)[KEY]["num_done"] == 3
    stopper.plan("training_step", 0)
    train(run)
    assert stopper.num_calls["training_step"] == 48 - 9
    check_the_same(run, undisturbed)


@pytest.mark.parametrize("options", [{"sampler": "balanced"}, {"class_weights": "balanced"}], ids=str)
def test_balanced_classes_resume_bit_for_bit(
    digits: Path, digits_store: Path, tmp_path: Path, stopper: Stopper, options: dict[str, Any]
) -> None:
    settings = {"batch_size": 8, "epochs": 2, "store": digits_store, "kd_temp": 2.0, **options}
    undisturbed = config(digits, tmp_path / "undisturbed", **settings)
    train(undisturbed)
    run = replace(undisturbed, out=tmp_path / "run", num_workers=1)
    for at in (5, 9):
        stopper.plan("training_step", at, signal.SIGTERM)
        stop(run)
    stopper.plan("training_step", 0)
    train(run)
    assert stopper.num_calls["training_step"] == 24 - 14
    check_the_same(run, undisturbed)


@pytest.mark.parametrize(("epoch", "batch"), [(1, 1), (1, 4), (2, 2), (3, 6)])
def test_an_interrupted_evaluation_is_repeated_and_its_epoch_is_not(
    undisturbed: TrainConfig, tmp_path: Path, stopper: Stopper, epoch: int, batch: int
) -> None:
    """48 validation images are 6 batches."""
    run = replace(undisturbed, out=tmp_path / "run")
    stopper.plan("validation_step", 6 * (epoch - 1) + batch, signal.SIGTERM)
    stop(run)
    assert len(read_metrics(run.out)) == epoch - 1
    stopper.plan("training_step", 0)
    train(run)
    assert stopper.num_calls.get("training_step", 0) == 12 * (3 - epoch)
    assert stopper.num_calls["validation_step"] == 6 * (4 - epoch)
    check_the_same(run, undisturbed)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_stopped_at_the_end_of_an_epoch(
    undisturbed: TrainConfig, tmp_path: Path, stopper: Stopper, epoch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of one that --checkpoint-epochs would not have saved."""
    run = replace(undisturbed, out=tmp_path / "run", checkpoint_epochs=3)
    stopper.plan("on_validation_epoch_end", epoch, signal.SIGTERM)
    stop(run)
    assert f"training: interrupted after epoch {epoch}; checkpoint saved." in capsys.readouterr().err
    assert KEY not in last_checkpoint(run) and len(read_metrics(run.out)) == epoch
    stopper.plan("training_step", 0)
    train(run)
    assert stopper.num_calls.get("training_step", 0) == 12 * (3 - epoch)
    assert curve(run.out) == curve(undisturbed.out)
    assert tensor_bytes(run.out / "student.safetensors") == tensor_bytes(undisturbed.out / "student.safetensors")


def test_without_an_evaluation(digits: Path, tmp_path: Path, stopper: Stopper) -> None:
    undisturbed = config(digits, tmp_path / "undisturbed", validation_split="none", epochs=2)
    train(undisturbed)
    run = replace(undisturbed, out=tmp_path / "run")
    for steps in (2, 1, 2):  # in the epoch, at its end, in the next one
        stopper.plan("training_step", steps, signal.SIGTERM)
        stop(run)
    train(run)
    assert curve(run.out) == curve(undisturbed.out)
    assert tensor_bytes(run.out / "student.safetensors") == tensor_bytes(undisturbed.out / "student.safetensors")


def test_the_times_of_an_epoch_leave_out_the_interruption(
    digits: Path, tmp_path: Path, stopper: Stopper, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(digits, tmp_path / "run", epochs=1, batch_size=8)
    stopper.plan("training_step", 6, signal.SIGTERM)
    before = time.monotonic()
    stop(run)
    first = time.monotonic() - before
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 10_000)  # another process, much later
    before = now()
    train(run)
    (row,) = read_metrics(run.out)
    assert 0 < row["seconds"] < first + now() - before
    assert row["images_per_second"] > 96 / (first + now() - before)


def test_a_second_interrupt_ends_at_once(
    undisturbed: TrainConfig, tmp_path: Path, stopper: Stopper, capsys: pytest.CaptureFixture[str]
) -> None:
    run = replace(undisturbed, out=tmp_path / "run")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stopper.plan("training_step", 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as ended:
        train(run)
    assert not isinstance(ended.value, Interrupted)
    assert "training:" not in capsys.readouterr().err
    assert not (run.out / "checkpoints").exists()
    # Signals mean again what they meant before.
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_says_one_line_and_its_exit_code_is_the_shells(
    digits: Path, tmp_path: Path, stopper: Stopper, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    words = f"train --data {digits} --student timm:test_resnet --out {tmp_path / 'run'} --size 16 --eval-crop-frac 1"
    words += " --epochs 3 --batch-size 8 --device cpu"
    stopper.plan("training_step", 17, number)
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == code
    shown = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("train: ")]
    assert shown == [
        "training: interrupted in epoch 2 at step 5 of 12; checkpoint saved. Run the same command to resume"
    ]


def test_killed_after_a_timed_checkpoint(undisturbed: TrainConfig, tmp_path: Path, stopper: Stopper) -> None:
    """kill -9 in the first epoch, whose end has not saved anything yet."""
    run = replace(undisturbed, out=tmp_path / "run", checkpoint_minutes=1e-6)
    train_until_killed(run, epoch=0, batch_index=6)
    place = last_checkpoint(run)[KEY]
    assert (place["epoch"], place["num_done"]) == (0, 6)
    train(replace(run, checkpoint_minutes=15.0))
    assert stopper.num_calls["training_step"] == 36 - 6
    check_the_same(run, undisturbed)


def test_a_checkpoint_is_written_when_its_minutes_have_passed(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic
    late = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + late[0])
    saved: list[int] = []
    step, save = StudentModule.training_step, StudentModule.on_save_checkpoint

    def counted(module: StudentModule, *arguments: Any) -> Any:
        late[0] += 60 * 5  # five minutes a step
        return step(module, *arguments)

    def noted(module: StudentModule, checkpoint: dict[str, Any]) -> None:
        saved.append(module.global_step)
        save(module, checkpoint)

    monkeypatch.setattr(StudentModule, "training_step", counted)
    monkeypatch.setattr(StudentModule, "on_save_checkpoint", noted)
    settings = {"validation_split": "none", "epochs": 2, "batch_size": 8}
    for minutes, expected in ((15.0, [3, 6, 9, 12, 15, 18, 21, 24]), (0.0, [12, 24])):
        saved.clear()
        train(config(digits, tmp_path / f"{minutes}", checkpoint_minutes=minutes, **settings))
        assert saved == expected


def test_a_loss_that_is_not_finite_is_not_saved(digits: Path, tmp_path: Path, stopper: Stopper) -> None:
    run = config(digits, tmp_path / "run", lr=1e4, batch_size=8, checkpoint_minutes=1e-9)
    with pytest.raises(TeachonceError, match="the loss is not finite in update"):
        train(run)
    assert all(tensor.isfinite().all() for tensor in last_checkpoint(run)["state_dict"].values())


def test_weights_that_the_newest_update_makes_are_not_saved(
    digits: Path, tmp_path: Path, stopper: Stopper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss has been computed by them when the signal asks for a checkpoint."""

    def poisoned(module: StudentModule, optimizer: torch.optim.Optimizer) -> None:
        if module.global_step == 1:
            next(module.student.parameters()).grad.fill_(float("nan"))

    monkeypatch.setattr(StudentModule, "on_before_optimizer_step", poisoned)
    run = config(digits, tmp_path / "run", batch_size=8)
    stopper.plan("training_step", 2, signal.SIGTERM)
    with pytest.raises(TeachonceError, match=r"the weights are not finite after update 2 \(epoch 1\)"):
        train(run)
    assert not (run.out / "checkpoints").exists()


@pytest.mark.xdist_group("trainings")
def test_a_step_that_hangs_ends_with_the_grace_period(digits: Path, tmp_path: Path) -> None:
    """The checkpoint before is kept."""
    run = config(digits, tmp_path / "run", grace_seconds=1.5, epochs=2, batch_size=16)
    hangs, said = PROCESSES.Event(), tmp_path / "said"
    with started(train_and_hang, run, 1, 2, hangs, said) as process:
        assert hangs.wait(MOST_SECONDS)
        process.terminate()
        begin = time.monotonic()
        process.join(MOST_SECONDS)
        assert 1 < time.monotonic() - begin < 60
        assert process.exitcode == 143
    assert said.read_text().splitlines()[-1] == (
        "training: no checkpoint could be written within 1.5 seconds of SIGTERM (--grace-seconds); the previous one is "
        "kept. Run the same command to resume"
    )
    assert KEY not in last_checkpoint(run) and len(read_metrics(run.out)) == 1
    whole = replace(run, out=tmp_path / "whole")
    train(run)
    train(whole)
    check_the_same(run, whole)


def test_checkpoints_of_earlier_versions_resume(undisturbed: TrainConfig, tmp_path: Path, stopper: Stopper) -> None:
    """They are of the end of an epoch, and know neither times nor what was met in the data."""
    run = replace(undisturbed, out=tmp_path / "run")
    stopper.plan("on_validation_epoch_end", 2, signal.SIGTERM)
    stop(run)
    checkpoint = last_checkpoint(run)
    del checkpoint["callbacks"]["Interruption"]
    recorder = checkpoint["callbacks"]["EpochRecorder"]
    checkpoint["callbacks"]["EpochRecorder"] = {"rows": recorder["rows"]}
    torch.save(checkpoint, run.out / "checkpoints" / "last.ckpt")
    config_file = run.out / "config.json"
    content = json.loads(config_file.read_text())
    for name in ("checkpoint_minutes", "grace_seconds"):
        del content[name]
    config_file.write_text(json.dumps(content))
    train(run)
    check_the_same(run, undisturbed)


def test_options_of_interruption_may_differ_between_two_calls(
    undisturbed: TrainConfig, tmp_path: Path, stopper: Stopper
) -> None:
    run = replace(undisturbed, out=tmp_path / "run")
    stopper.plan("training_step", 2, signal.SIGTERM)
    stop(run)
    train(replace(run, checkpoint_minutes=3.0, grace_seconds=5.0))
    check_the_same(run, undisturbed)


def stop_from_rank_1(config: TrainConfig) -> None:
    """What each rank does: the second one alone receives a signal, in its fifth step."""
    if os.environ["LOCAL_RANK"] == "1":
        with pytest.MonkeyPatch.context() as patch:
            Stopper(patch).plan("training_step", 5, signal.SIGTERM)
            train(config)
    else:
        train(config)


def kill_rank_0(config: TrainConfig) -> None:
    """The first rank is killed in its ninth step, which is in the second epoch."""
    if os.environ["LOCAL_RANK"] == "0":
        with pytest.MonkeyPatch.context() as patch:
            Stopper(patch).plan("training_step", 9, signal.SIGKILL)
            train(config)
    else:
        train(config)


@pytest.mark.slow
@pytest.mark.xdist_group("trainings")
def test_two_ranks_are_stopped_killed_and_resumed_bit_for_bit(
    digits: Path, digits_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Running statistics, random numbers and sums are each rank's own."""
    settings = EVERYTHING | {"batch_size": 4}
    undisturbed = config(digits, tmp_path / "undisturbed", store=digits_store, devices=2, **settings)
    forked(train, undisturbed)
    run = replace(undisturbed, out=tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        forked(run_ranks, stop_from_rank_1, run)
    assert ended.value.code == 143
    # Known to all when the next update is done.
    place = last_checkpoint(run)[KEY]
    assert (place["num_done"], len(place["ranks"])) == (6, 2)
    states = place["ranks"]
    assert not torch.equal(states[0]["sums"], states[1]["sums"])
    name = next(name for name in states[0]["buffers"] if "running_var" in name)
    assert not torch.equal(states[0]["buffers"][name], states[1]["buffers"][name])
    expected = "training: interrupted in epoch 1 at step 6 of 12; checkpoint saved. Run the same command to resume"
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("training:")] == [expected]
    with pytest.raises(TeachonceError, match="rank 0 was killed by signal 9"):
        forked(run_ranks, kill_rank_0, replace(run, checkpoint_minutes=1e-6))
    assert last_checkpoint(run)[KEY]["epoch"] == 1
    forked(train, run)
    check_the_same(run, undisturbed)


@pytest.mark.slow
@pytest.mark.xdist_group("trainings")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_are_resumed_on_one(
    digits: Path, digits_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], accumulate: int
) -> None:
    """A student without batch norm or dropout: with as many images an update, the same to rounding."""
    settings = {"student": "timm:test_vit", "size": 32, "store": digits_store, "epochs": 2, "lr": 0.01}
    settings |= {"ema_decay": 0.9, "clip_norm": 1.0}
    undisturbed = config(digits, tmp_path / "one", batch_size=8, **settings)
    train(undisturbed)
    run = replace(undisturbed, out=tmp_path / "run", devices=2, batch_size=4)
    with pytest.raises(SystemExit):
        forked(run_ranks, stop_from_rank_1, run)
    capsys.readouterr()
    alone = replace(run, devices=1, batch_size=8 // accumulate, accumulate=accumulate)
    train(alone)
    said = capsys.readouterr().err
    assert f"{run.out}: started on 2 devices with 8 images an update, now on 1: equal up to rounding" in said
    assert f"{run.out}: resumes in epoch 1 at step 6 of 12" in said
    assert json.loads((run.out / "config.json").read_text())["world_size"] == 2
    for found, expected in zip(curve(run.out), curve(undisturbed.out), strict=True):
        # The sums are taken in another order; 24 updates amplify 2^-24 to about 1e-5.
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_process_that_started_the_ranks(digits: Path, tmp_path: Path, number: int) -> None:
    """SIGTERM comes from a scheduler, to that process alone; Ctrl+C of a terminal reaches the ranks as well."""
    words = f"train --data {digits} --student timm:test_resnet --out {tmp_path / 'run'} --size 16 --eval-crop-frac 1"
    words += " --epochs 500 --batch-size 4 --device cpu --devices 2 --checkpoint-minutes 0.000001"
    program = f"from teachonce.cli.main import main\nmain({words.split()!r})"
    # The ranks of a user's are spawned, and of its process group.
    python = warm_python() if number == signal.SIGTERM else [sys.executable]
    process = subprocess.Popen([*python, "-c", program], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    lines = [line for line in said.splitlines() if not line.startswith("train: ")]
    assert len(lines) == 1 and lines[0].startswith("training: interrupted "), said
    assert lines[0].endswith("; checkpoint saved. Run the same command to resume")


@pytest.mark.slow
def test_a_scheduler_ends_torchrun(digits: Path, tmp_path: Path) -> None:
    run = config(digits, tmp_path / "run", batch_size=4, epochs=500)
    program = tmp_path / "program.py"
    program.write_text(TRAIN.format(config=run))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(program)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=90)
    assert said.count("training: interrupted ") == 1
    checkpoint = last_checkpoint(run)
    assert KEY not in checkpoint or len(checkpoint[KEY]["ranks"]) == 2


def test_merged_states_of_ranks() -> None:
    def state(value: float) -> dict[str, Any]:
        buffers = {"student.bn.running_mean": torch.full((2,), value), "student.index": torch.tensor([3])}
        return {"random": {"cpu": torch.get_rng_state()}, "sums": torch.full((5,), value), "buffers": buffers}

    first, second = (merge_rank_states([state(1.0), state(4.0)], rank=rank, seed=rank) for rank in (0, 1))
    assert first["sums"].tolist() == [5.0] * 5 and second["sums"].tolist() == [0.0] * 5
    for merged in (first, second):
        assert merged["buffers"]["student.bn.running_mean"].tolist() == [2.5, 2.5]
        assert merged["buffers"]["student.index"].tolist() == [3]


def test_other_devices_with_other_images_an_update_are_refused(
    digits: Path, tmp_path: Path, stopper: Stopper, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(digits, tmp_path / "run", epochs=2, batch_size=8)
    stopper.plan("training_step", 2, signal.SIGTERM)
    stop(run)
    config_file = run.out / "config.json"
    content = json.loads(config_file.read_text())

    def begun(**settings: int) -> None:
        config_file.write_text(json.dumps(content | settings))

    begun(world_size=4)
    with pytest.raises(
        PlanMismatchError,
        match=r"run: started on 4 devices with 32 images an update, now on 1 with 8; give --batch-size 32, or choose",
    ):
        train(run)
    begun(world_size=8, batch_size=1)
    with pytest.raises(PlanMismatchError, match=r"now on 1: with one image a batch an epoch may .*; resume on 8, or"):
        train(run)
    begun(world_size=4)
    with pytest.raises(PlanMismatchError, match=r"now on 1 with 24; choose a number of devices that divides it, or"):
        train(replace(run, accumulate=3))
    with pytest.raises(PlanMismatchError, match=r"now on 1 with 16; give --batch-size 16 --accumulate 2, or choose"):
        train(replace(run, accumulate=2))
    # As many images an update, and other records in it: 96 records as one a device are 96 devices at most.
    checkpoint = last_checkpoint(run)
    checkpoint[KEY]["num_updates"] = 11
    torch.save(checkpoint, run.out / "checkpoints" / "last.ckpt")
    begun()
    with pytest.raises(
        ModelError, match=r"last.ckpt: was saved with 11 updates per epoch, now there are 12; resume on as many"
    ):
        train(run)


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The address of an empty bucket."""
    for name, value in environment(moto).items():
        monkeypatch.setenv(name, value)
    return to_location(f"s3://{new_bucket(moto)}")


def test_a_remote_run_is_stopped_and_resumed(
    undisturbed: TrainConfig, bucket: Path, tmp_path: Path, stopper: Stopper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything of it is in the bucket, nothing that it writes is read back, and nothing is left on this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    read: list[str] = []
    opening = ObjectStorage._open

    def noted(storage: ObjectStorage, name: str) -> Any:
        read.append(name)
        return opening(storage, name)

    monkeypatch.setattr(ObjectStorage, "_open", noted)
    run = replace(undisturbed, out=bucket / "runs" / "one")
    for steps in (5, 16):  # in the first epoch, in the second
        stopper.plan("training_step", steps, signal.SIGTERM)
        stop(run)
    assert read.count("last.ckpt") == 1 and "best.safetensors" not in read
    stopper.plan("training_step", 0)
    train(run)
    assert stopper.num_calls["training_step"] == 36 - 5 - 16
    storage = open_storage(run.out)
    assert curve(run.out) == curve(undisturbed.out)
    # The order of the file's metadata differs from one writing to the next.
    (tmp_path / "weights").write_bytes(storage.read("student.safetensors"))
    assert tensor_bytes(tmp_path / "weights") == tensor_bytes(undisturbed.out / "student.safetensors")
    (tmp_path / "weights").unlink()
    events = [name for name in storage.walk() if name.startswith("tensorboard/events.out.tfevents.")]
    assert len(events) == 3 and all(storage.status(name).num_bytes > 100 for name in events)
    others = {"config.json", "metrics.csv", "result.json", "report.html", "student.safetensors"}
    others |= {"validation_classes.csv"}
    others |= {"checkpoints/last.ckpt", "checkpoints/best.safetensors"}
    assert set(storage.walk()) - set(events) == others
    assert not [path.name for path in tmp_path.iterdir()]
    assert train(run) == Run(run.out).result


def test_the_tables_of_a_remote_run_that_is_resumed(digits: Path, bucket: Path, stopper: Stopper) -> None:
    """Of each start its own; none is written over the one before."""
    run = config(digits, bucket / "run", logger="csv")
    stopper.plan("training_step", 5, signal.SIGTERM)
    stop(run)
    stopper.plan("training_step", 0)
    train(run)
    storage = open_storage(run.out)
    tables = {name: storage.read(name).count(b"\n") for name in storage.walk() if name.startswith("csv/")}
    tables = {name: lines for name, lines in tables.items() if name.endswith("metrics.csv")}
    assert set(tables) == {"csv/from_0/metrics.csv", "csv/from_5/metrics.csv"}
    num_epochs = sum(len(read_epochs(storage.read(name))) for name in tables)
    assert num_epochs == run.epochs and min(tables.values()) > 1


def read_epochs(content: bytes) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(content.decode().splitlines()) if row["epoch/train_loss"]]


def test_a_remote_run_that_another_training_has_taken_over_ends(
    digits: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease was not renewed for a while, as its machine was stopped; what the other one writes stays."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 60)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0)
    run = config(digits, bucket / "run", logger="csv")
    storage = open_storage(run.out)
    taken: dict[str, bytes] = {}

    def take_over(num_epochs: int) -> None:
        if taken:
            return
        with storage.put(LOCK_NAME) as file:
            file.write(b"deadbeef-12-34-01234567 7 process 12 on elsewhere\n")
        taken.update({name: storage.read(name) for name in storage.walk()})

    with pytest.raises(
        TeachonceError, match=r"run/\.train.lock: process 12 on elsewhere has taken over the lock of this"
    ):
        train(run, on_epoch=take_over)
    assert {name: storage.read(name) for name in storage.walk()} == taken


def test_the_log_of_a_student_of_a_remote_ablation(bucket: Path) -> None:
    """Nothing can be appended to in a bucket: it is put when it has ended, behind what was there."""
    for text in ("first", "second"):
        with pytest.raises(SystemExit), _open_log(bucket / "logs", "a.log") as log:
            log.write(f"{text}\n")
            raise SystemExit(143)
    assert open_storage(bucket / "logs").read("a.log") == b"first\nsecond\n"
