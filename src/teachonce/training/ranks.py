"""One process a device: the ranks of a DDP training, started here or found started already.

``torchrun`` and SLURM start the ranks themselves; a plain call with several devices starts its own on this machine,
spawned, so that it works from a program, a notebook or a test as well as from the command line. When one rank fails
the others would wait for it in the next all-reduce for ever: they are ended, and its error is raised here unchanged.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import Any

from teachonce.engine.cores import num_cores
from teachonce.engine.processes import exit_with_parent
from teachonce.errors import ConfigError, TeachonceError
from teachonce.terminal import show_warnings_as_lines
from teachonce.training.config import TrainConfig


def is_rank() -> bool:
    """Whether this process is one of several that somebody started: torchrun, SLURM's srun, or ``run_ranks``."""
    return "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1


def is_first_rank() -> bool:
    """Whether this process speaks for the training; also before Lightning knows."""
    ranks = [os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK") if name in os.environ]
    return all(rank == "0" for rank in ranks)


def world_shape(devices: int, num_nodes: int) -> tuple[int, int]:
    """(devices a node, nodes): what torchrun says where it started this process, else what is given."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        return devices, int(os.environ["WORLD_SIZE"]) // devices
    return devices, num_nodes


def run_ranks(program: Callable[[TrainConfig], Any], config: TrainConfig) -> None:
    """Run ``program(config)`` in ``config.devices`` processes at once, ranks of one group over all nodes.

    Raises the first rank's TeachonceError; TeachonceError where a rank ended otherwise (its traceback is on stderr);
    ConfigError where several nodes were asked for and the environment does not say where they meet.
    """
    environment = _environment(config.devices, config.num_nodes)
    context = get_context("spawn")
    errors = context.SimpleQueue()
    processes = [
        context.Process(
            target=_run_rank,
            args=(program, config, environment | {"LOCAL_RANK": str(rank)}, errors, os.getpid()),
            name=f"rank {rank}",
        )
        for rank in range(config.devices)
    ]
    try:
        for process in processes:
            process.start()
        running: dict[Any, BaseProcess] = {process.sentinel: process for process in processes}
        while running:
            for sentinel in connection.wait(list(running)):
                ended = running.pop(sentinel)
                ended.join()
                if ended.exitcode:
                    raise errors.get() if not errors.empty() else _unexplained_exit(ended.name, ended.exitcode)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
        for process in processes:
            if process.pid is not None:
                process.join()


def _environment(devices: int, num_nodes: int) -> dict[str, str]:
    """What Lightning reads in each rank."""
    world = {"WORLD_SIZE": str(devices * num_nodes), "LOCAL_WORLD_SIZE": str(devices)}
    if num_nodes == 1:
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"} | world
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"--num-nodes {num_nodes}: {', '.join(missing)} not set in the environment; set them on each node "
            "(the first node's address and a free port, 0, 1, ...), or start with torchrun or srun"
        )
    return world


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_rank(
    program: Callable[[TrainConfig], Any], config: TrainConfig, environment: Mapping[str, str], errors: Any, parent: int
) -> None:
    import torch

    exit_with_parent(parent)
    show_warnings_as_lines()
    os.environ.update(environment)
    torch.set_num_threads(max(1, num_cores() // config.devices))
    try:
        program(config)
    except TeachonceError as error:
        errors.put(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # Ctrl+C reaches every process; the first one says so


def _unexplained_exit(name: str, exit_code: int) -> TeachonceError:
    if exit_code < 0:
        how = f"was killed by signal {-exit_code} (out of memory?)"
        return TeachonceError(f"{name} {how}; the same command goes on from the last checkpoint")
    return TeachonceError(f"{name} ended with code {exit_code}; what it said is above, and must be mended first")
