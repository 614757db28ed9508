"""Which GPU a process, and a worker of it, asks for."""

from __future__ import annotations

import pytest
import torch

from teachonce.extraction import prepare


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(prepare, "resolve_device", lambda name: torch.device("cuda" if name == "auto" else name))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for name in ("LOCAL_RANK", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def workers(num_workers: int) -> list[str]:
    return [prepare._worker_device("cuda", index, num_workers) for index in range(num_workers)]


def test_workers_of_one_process_have_a_gpu_each(eight_gpus: pytest.MonkeyPatch) -> None:
    assert prepare._own_device("auto") == "auto"
    assert workers(8) == [f"cuda:{index}" for index in range(8)]
    assert prepare._worker_device("cuda:3", 1, 2) == "cuda:3" and prepare._worker_device("cpu", 1, 2) == "cpu"


def test_processes_of_one_machine_have_a_gpu_each(eight_gpus: pytest.MonkeyPatch) -> None:
    eight_gpus.setenv("LOCAL_RANK", "5")
    assert prepare._own_device("auto") == "cuda:5"


def test_one_process_a_node_has_workers_on_all_of_its_gpus(eight_gpus: pytest.MonkeyPatch) -> None:
    """srun --ntasks-per-node 1 with --num-workers 8."""
    for name, value in {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}.items():
        eight_gpus.setenv(name, value)
    assert prepare._own_device("auto") == "cuda:0"
    assert workers(8) == [f"cuda:{index}" for index in range(8)]


def test_workers_of_several_processes_of_one_machine(eight_gpus: pytest.MonkeyPatch) -> None:
    eight_gpus.setenv("LOCAL_RANK", "1")
    assert workers(4) == ["cuda:4", "cuda:5", "cuda:6", "cuda:7"]
