"""Ranks: who starts them, and what happens when one ends badly."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from teachonce.engine.machine import local_rank
from teachonce.errors import ConfigError, LogitsError, TeachonceError
from teachonce.training.config import TrainConfig
from teachonce.training.ranks import Agreement, is_first_rank, is_rank, run_ranks, world_shape
from teachonce.training.train import train
from tests.support.rank_program import write_rank
from tests.support.trainings import forked

CONFIG = TrainConfig(data=Path("data"), student="timm:x", out=Path("run"), devices=2)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm, meeting_point = (
        ("SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"),
        ("MASTER_ADDR", "MASTER_PORT"),
    )
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", *slurm, *meeting_point):
        monkeypatch.delenv(name, raising=False)


def test_shape_of_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_rank()
    assert world_shape(2, 3) == (2, 3)
    for name, value in {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert is_rank()
    assert world_shape(1, 1) == (4, 2)


def test_a_batch_script_of_many_tasks_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command is no rank, and starts its own; srun's steps are as many as they have tasks, not as the job has."""
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert not is_rank()
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert is_rank()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not is_rank()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert is_rank()


def test_a_training_on_one_device_in_a_batch_script(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which Lightning refuses (--ntasks), where it takes the allocation for a step."""
    for name, value in {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train"}.items():
        monkeypatch.setenv(name, value)
    options: dict[str, Any] = {"size": 16, "epochs": 1, "batch_size": 32, "validation_split": "none", "logger": "none"}
    result = train(TrainConfig(data=digits, student="timm:test_resnet", out=tmp_path, device="cpu", **options))
    assert result["steps"] == 3


def test_number_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_rank() == 0
    monkeypatch.setenv("SLURM_LOCALID", "3")  # srun says no LOCAL_RANK
    assert local_rank() == 3
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_rank() == 1


def test_several_nodes_need_a_meeting_point() -> None:
    with pytest.raises(ConfigError, match=r"--num-nodes 2: MASTER_ADDR, MASTER_PORT, NODE_RANK not set"):
        run_ranks(print, replace(CONFIG, num_nodes=2))


def fail_on_rank_1(config: TrainConfig) -> None:
    if os.environ["LOCAL_RANK"] == "1":
        raise LogitsError("train-00001 record 3: no image/logit")
    time.sleep(600)


def die_on_rank_0(config: TrainConfig) -> None:
    if os.environ["LOCAL_RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


@pytest.mark.slow
def test_every_rank_runs(tmp_path: Path) -> None:
    """In processes that are spawned, as users' are; the other tests have forks, which start at once."""
    run_ranks(write_rank, replace(CONFIG, out=tmp_path))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "2", "1": "2"}


@pytest.mark.xdist_group("trainings")
def test_an_error_of_one_rank_ends_the_others() -> None:
    with pytest.raises(LogitsError, match=r"^train-00001 record 3: no image/logit$"):
        forked(run_ranks, fail_on_rank_1, CONFIG)


def raise_on_rank_1(config: TrainConfig) -> None:
    if os.environ["LOCAL_RANK"] == "1":
        raise ZeroDivisionError("a mistake of ours")
    time.sleep(600)


@pytest.mark.xdist_group("trainings")
def test_a_rank_that_ends_by_itself_would_do_so_again() -> None:
    with pytest.raises(TeachonceError, match=r"^rank 1 exited with code 1; its error is above and must be fixed"):
        forked(run_ranks, raise_on_rank_1, CONFIG)


@pytest.mark.xdist_group("trainings")
def test_a_killed_rank_is_said() -> None:
    with pytest.raises(
        TeachonceError, match=r"rank 0 was killed by signal 9 .* same command again to resume from the last checkpoint"
    ):
        forked(run_ranks, die_on_rank_0, CONFIG)


def agree(config: TrainConfig) -> None:
    """Each rank wishes at another call; they must hear of it at one."""
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    agreement = Agreement(torch.device("cpu"), 2)
    decided = [agreement.decide(15 if (rank, call) == (1, 3) else int(call == 1)) for call in range(6)]
    decided += [agreement.decide(0, wait=True), agreement.decide(2 * rank, wait=True), agreement.decide(0)]
    agreement.check_equal(7)
    with pytest.raises(TeachonceError, match=rf"would begin after {rank} updates, another one after up to 1: .* again"):
        agreement.check_equal(rank)
    agreement.check_same({"records": 5, "views": 3})
    found = "this rank has the larger" if rank else "records: 5 here, up to 5 elsewhere, views: 0 here, up to 1 elsewh"
    with pytest.raises(TeachonceError, match=rf"opened different data, stores or settings \({found}.*growing, run"):
        agreement.check_same({"records": 5, "views": rank})
    (config.out / f"{rank}.json").write_text(json.dumps(decided))
    dist.destroy_process_group()


@pytest.mark.xdist_group("trainings")
def test_ranks_decide_alike_one_call_later(tmp_path: Path) -> None:
    forked(run_ranks, agree, replace(CONFIG, out=tmp_path))
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [0, 0, 1, 0, 15, 0, 0, 2, 0]


def test_a_lone_rank_decides_at_once() -> None:
    agreement = Agreement(torch.device("cpu"), 1)
    assert [agreement.decide(wish) for wish in (0, 15, 0)] == [0, 15, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_ranks_on_a_gpu_decide_without_waiting_for_it() -> None:
    """With NCCL, of one rank: what it queues is behind the work at hand, and is heard of one call later."""
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        agreement = Agreement(torch.device("cuda", 0), 2)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            decided = [agreement.decide(wish) for wish in (0, 15, 0)]
        finally:
            torch.cuda.set_sync_debug_mode(before)
        assert decided == [0, 0, 15]
    finally:
        dist.destroy_process_group()


def stop_itself(config: TrainConfig) -> None:
    if os.environ["LOCAL_RANK"] == "1":
        sys.exit(143)


@pytest.mark.xdist_group("trainings")
def test_ranks_that_have_stopped_end_their_parent_as_the_signal_would() -> None:
    """Where a machine of several is taken away, the ranks of the others stop as well."""
    with pytest.raises(SystemExit) as ended:
        forked(run_ranks, stop_itself, CONFIG)
    assert ended.value.code == 143


@pytest.mark.parametrize("rank", [0, 1])
def test_under_torchrun_its_number_alone_says_who_is_first(monkeypatch, rank):
    """srun may have numbered the nodes otherwise."""
    numbers = {"RANK": rank, "SLURM_PROCID": 1 - rank, "LOCAL_RANK": 0}
    for name, number in numbers.items():
        monkeypatch.setenv(name, str(number))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    assert is_first_rank() == (rank == 0)
