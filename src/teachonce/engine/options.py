"""The options of commands whose work is split into jobs: who does them, how many, and which part of them.

``Engine`` is what a program passes on to ``jobs.run_jobs``; the options are those of ``extract``, ``records`` and
``merge``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from teachonce.engine.machine import num_cores, slurm_step_tasks
from teachonce.errors import ConfigError
from teachonce.options import Common, Condition, Count, CountOrNone, InRunning, Range, only_with, require

EngineName = Literal["local", "ray"]
WORKERS_VARIABLE = "TEACHONCE_NUM_WORKERS"
"""How many workers a Kubernetes Indexed Job has, which Kubernetes itself does not say: its ``completions``."""

_Seconds = Annotated[float, Range(0, 86_400, "seconds from 0 to 86400")]
RAY = Condition("--engine ray", lambda config: config.engine == "ray")
_LOCAL = Condition("--engine local", lambda config: config.engine == "local")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Which engine does jobs, with how many workers of what size."""

    name: EngineName = "local"
    num_workers: int = 1
    """The most workers to use; 0: as many as the cluster has room for."""
    min_workers: int = 1
    """With a cluster: workers that must be ready before the first job is handed out."""
    address: str = "auto"
    worker_cpus: int = 1
    worker_gpus: float | None = 0
    """None: 1 where the cluster has any."""
    grace_seconds: float = 0.0
    """After SIGTERM, time in which a worker may end its job; 0: none."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What runs the work. A base of option classes, which may document ``num_workers`` themselves."""

    num_workers: InRunning[Common[CountOrNone]] = 0
    """Processes on this machine; 0 means one per core, fewer for small inputs. With --engine ray: workers in the
    cluster; 0 means as many as it has room for."""
    engine: InRunning[Common[EngineName]] = "local"
    """What runs the work: processes on this machine (local), or workers of a Ray cluster (ray), whose nodes may come
    and go. Paths must be reachable under the same name from all nodes."""
    address: InRunning[str] = only_with("auto", RAY)
    """Address of the Ray cluster: auto (the one this machine belongs to), or HOST:PORT of its head."""
    min_workers: InRunning[Count | None] = only_with(None, RAY)
    """Workers that must be ready before the work starts. Default: 1."""
    max_workers: InRunning[Count | None] = only_with(None, RAY)
    """Workers to request, instead of --num-workers; an autoscaling cluster grows to this size. Default:
    --num-workers, or --min-workers if that is larger."""
    worker_cpus: InRunning[Count] = only_with(1, RAY)
    """CPU cores per worker in the cluster; it decodes with as many threads."""
    worker: InRunning[Common[str]] = only_with("0/1", _LOCAL)
    """i/n: this process is worker i of n in a job array, counted from 0. It does its own part of the work, then
    whatever is missing of the other parts. auto: read i and n from the environment of a Slurm job array, a
    Kubernetes Indexed Job, torchrun or a step of srun, or of both of a job and its processes."""
    grace_seconds: InRunning[_Seconds] = 25.0
    """Seconds to finish started work after SIGTERM (preemption of a spot machine); then the command exits with code
    143."""

    def check_engine(self) -> None:
        """Raise ConfigError where the engine's options contradict each other."""
        if self.min_workers is not None or self.max_workers is not None:
            least, most = self.min_workers or 1, self.max_workers
            require(most is None or least <= most, "--max-workers", most, f"at least --min-workers {least}")
            is_default = self.num_workers == type(self).num_workers
            require(is_default, "--num-workers", self.num_workers, "none beside --min-workers and --max-workers")
        if self.engine == "ray":
            has_host = re.fullmatch(r"[^\s/:]+:[0-9]{1,5}|\[[0-9A-Fa-f:]+\]:[0-9]{1,5}", self.address) is not None
            require(
                self.address == "auto" or has_host,
                "--address",
                self.address or repr(self.address),
                "auto, or HOST:PORT of the cluster's head (run the command on a node of the cluster)",
            )
        self.worker_part()

    def choose_engine(self, num_useful: int, worker_gpus: float | None = 0) -> Engine:
        """The engine that the options mean, where more than ``num_useful`` workers would have too little to do."""
        if self.engine == "local":
            num_workers = self.num_workers or min(num_cores(), num_useful)
            return Engine(num_workers=num_workers, grace_seconds=self.grace_seconds)
        return Engine(
            name=self.engine,
            num_workers=self.max_workers or max(self.num_workers, self.min_workers or 0),
            min_workers=self.min_workers or 1,
            address=self.address,
            worker_cpus=self.worker_cpus,
            worker_gpus=worker_gpus,
            grace_seconds=self.grace_seconds,
        )

    def worker_part(self) -> tuple[int, int]:
        """(i, n) of ``--worker``."""
        return read_worker_part(self.worker, os.environ)


def read_worker_part(worker: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """(i, n) of ``i/n`` or ``auto``; raises ConfigError for other texts."""
    if worker == "auto":
        return _find_worker_part(environment)
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", worker)
    if match is None or int(match[2]) == 0:
        raise ConfigError(f"--worker {worker}: expected i/n with 0 <= i < n, such as 3/8, or auto")
    index, count = int(match[1]), int(match[2])
    if index >= count:
        raise ConfigError(
            f"--worker {worker}: expected i/n with i from 0 to {count - 1}; if the job array counts from 1, "
            f"subtract 1, as in $((N - 1))/{count}"
        )
    return index, count


def _find_worker_part(environment: Mapping[str, str]) -> tuple[int, int]:
    """By the number of the job in its array, and of the process among those that torchrun or srun started in it."""
    job = _find_job(environment)
    # A RANK that is not torchrun's is the job's own number once more.
    is_jobs_own = job is not None and "RANK" in environment and "LOCAL_WORLD_SIZE" not in environment
    process = None if is_jobs_own else _find_process(environment)
    if job is None and process is None:
        raise ConfigError(
            "--worker auto: found no SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX or RANK, nor a step of several tasks of "
            "srun, in the environment; give --worker i/n"
        )
    (index, count), (rank, num_ranks) = job or (0, 1), process or (0, 1)
    return index * num_ranks + rank, count * num_ranks


def _find_job(environment: Mapping[str, str]) -> tuple[int, int] | None:
    if "SLURM_ARRAY_TASK_ID" in environment:
        first, step = _number(environment, "SLURM_ARRAY_TASK_MIN", 0), _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
        index, rest = divmod(_number(environment, "SLURM_ARRAY_TASK_ID") - first, max(1, step))
        count = _number(environment, "SLURM_ARRAY_TASK_COUNT")
        return _checked(environment, "SLURM_ARRAY_TASK_ID", -1 if rest else index, count)
    if "JOB_COMPLETION_INDEX" not in environment:
        return None
    num_local = environment.get("LOCAL_WORLD_SIZE", environment.get("WORLD_SIZE", ""))
    if environment.get("WORLD_SIZE", "") != num_local:
        return None  # torchrun over all pods: its ranks are all there are
    index = _number(environment, "JOB_COMPLETION_INDEX")
    if WORKERS_VARIABLE not in environment:
        raise ConfigError(
            f"--worker auto: Kubernetes gives JOB_COMPLETION_INDEX {index} but not the number of workers; set "
            f"{WORKERS_VARIABLE} to the job's completions"
        )
    return _checked(environment, "JOB_COMPLETION_INDEX", index, _number(environment, WORKERS_VARIABLE))


def _find_process(environment: Mapping[str, str]) -> tuple[int, int] | None:
    if "RANK" in environment:
        return _checked(environment, "RANK", _number(environment, "RANK"), _number(environment, "WORLD_SIZE"))
    if num_tasks := slurm_step_tasks(environment):
        return _checked(environment, "SLURM_PROCID", _number(environment, "SLURM_PROCID"), num_tasks)
    return None


def _checked(environment: Mapping[str, str], name: str, index: int, count: int) -> tuple[int, int]:
    if not 0 <= index < count:
        raise ConfigError(
            f"--worker auto: {name} {environment[name]} is not in 0 to {count - 1}, or the numbers of the {count} "
            "workers have gaps; give --worker i/n"
        )
    return index, count


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigError(f"--worker auto: {name} is {text!r} in the environment, expected a number; give --worker i/n")
    return int(text)
