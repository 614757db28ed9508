"""Which engine is meant, with how many workers, and which worker of a job array this is."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from teachonce.engine.jobs import run_jobs
from teachonce.engine.options import Engine, EngineOptions, read_worker_part
from teachonce.errors import ConfigError, MissingExtraError
from teachonce.options import check_applicable, check_values


@dataclass(frozen=True, kw_only=True)
class Options(EngineOptions):
    def __post_init__(self):
        check_values(self)
        check_applicable(self)
        self.check_engine()


ARRAY = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "2", "TEACHONCE_NUM_WORKERS": "5"}


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "8"}, (4, 8)),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "8"}, (0, 8)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "13",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_COUNT": "5",
                "SLURM_ARRAY_TASK_STEP": "4",
                "RANK": "0",
                "WORLD_SIZE": "1",
            },
            (3, 5),
        ),
        ({"JOB_COMPLETION_INDEX": "7", "TEACHONCE_NUM_WORKERS": "8"}, (7, 8)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
        ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "64", "SLURM_PROCID": "5"}, (5, 64)),
        # Eight processes in each job of an array: none does the work of another.
        (
            ARRAY | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "7", "SLURM_NTASKS": "9"},
            (15, 24),
        ),
        (ARRAY | {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, (1, 3)),
        (ARRAY | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, (7, 12)),
        (KUBERNETES | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, (11, 20)),
        (KUBERNETES | {"RANK": "2", "WORLD_SIZE": "5"}, (2, 5)),
        (KUBERNETES | {"RANK": "2"}, (2, 5)),
        (KUBERNETES | {"RANK": "9", "WORLD_SIZE": "20", "LOCAL_WORLD_SIZE": "4"}, (9, 20)),
    ],
    ids=[
        "slurm",
        "slurm from 0",
        "slurm with a step",
        "kubernetes",
        "torchrun",
        "srun",
        "srun in an array",
        "a batch script of an array",
        "torchrun in an array",
        "torchrun in a pod",
        "the pod's own number once more",
        "the pod's own number alone",
        "torchrun over pods",
    ],
)
def test_the_environment_says_which_worker_this_is(environment, part):
    assert read_worker_part("auto", environment) == part


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({}, "found no SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX or RANK, .* in the environment; give --worker i/n"),
        ({"JOB_COMPLETION_INDEX": "3"}, "set TEACHONCE_NUM_WORKERS to the job's completions"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_COUNT is '' in the environment, expected a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK 2 is not in 0 to 1"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x' in the environment, expected a number; give --worker i/n"),
        # --array=1,7: a number that no other one is next to.
        (
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2"},
            "SLURM_ARRAY_TASK_ID 7 is not in 0 to 1, or the numbers of the 2 workers",
        ),
    ],
)
def test_an_environment_that_does_not_say_it_is_one_line(environment, line):
    with pytest.raises(ConfigError, match=rf"^--worker auto: .*{line}"):
        read_worker_part("auto", environment)


@pytest.mark.parametrize("worker", ["", "3", "8/8", "-1/8", "1/0", "a/b", "AUTO", "1/2/3"])
def test_words_that_mean_no_worker(worker):
    with pytest.raises(ConfigError, match=r"^--worker .*: expected i/n"):
        read_worker_part(worker, {})


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"address": "a:1"}, "--address a:1: applies only with --engine ray, found --engine local"),
        ({"max_workers": 2}, "--max-workers 2: applies only with --engine ray"),
        ({"engine": "ray", "worker": "1/2"}, "--worker 1/2: applies only with --engine local, found --engine ray"),
        ({"engine": "ray", "min_workers": 3, "max_workers": 2}, "--max-workers 2: expected at least --min-workers 3"),
        (
            {"engine": "ray", "num_workers": 2, "max_workers": 2},
            "--num-workers 2: expected none beside --min-workers and --max-workers",
        ),
        ({"engine": "ray", "address": "ray://head:10001"}, "--address ray://head:10001: expected auto, or HOST:PORT"),
        ({"engine": "ray", "address": ""}, "--address '': expected auto, or HOST:PORT"),
        ({"grace_seconds": -1}, "--grace-seconds -1: expected seconds from 0 to 86400"),
    ],
)
def test_options_that_contradict_each_other(options, line):
    with pytest.raises(ConfigError) as caught:
        Options(**options)
    assert str(caught.value).startswith(line)


def test_the_engine_that_options_mean():
    assert Options(num_workers=3).choose_engine(1) == Engine(num_workers=3, grace_seconds=25)
    assert Options().choose_engine(0).num_workers == 0
    ray = {"name": "ray", "grace_seconds": 25}
    assert Options(engine="ray").choose_engine(1) == Engine(**ray, num_workers=0)
    assert Options(engine="ray", num_workers=4).choose_engine(1, None) == Engine(**ray, num_workers=4, worker_gpus=None)
    assert Options(engine="ray", min_workers=4).choose_engine(1) == Engine(**ray, num_workers=4, min_workers=4)
    options = {"min_workers": 2, "max_workers": 9, "address": "[::1]:6379", "worker_cpus": 4}
    found = Options(engine="ray", **options).choose_engine(1, 0.5)
    assert found == Engine(
        **ray, num_workers=9, min_workers=2, address="[::1]:6379", worker_cpus=4, worker_gpus=0.5
    )  # fmt: skip


def test_a_cluster_without_ray_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"^--engine ray needs Ray: pip install 'teachonce\[ray\]'$"):
        list(run_jobs(print, [1], engine=Engine(name="ray"), report=print))
