"""One process a device: the ranks of a DDP training, started here or found started already.

``torchrun`` and SLURM start the ranks themselves; a plain call with several devices starts its own on this machine,
spawned, so that it works from a program, a notebook or a test as well as from the command line. When one rank fails
the others would wait for it in the next all-reduce for ever: they are ended, and its error is raised here unchanged.

A signal reaches ranks at different moments, or only some of them, and a rank that stops alone would leave the others
waiting. So they agree (``Agreement``) at which update to stop. The process that has started them passes signals on and
waits.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from teachonce.engine.machine import num_cores, slurm_step_tasks
from teachonce.engine.processes import exit_with_parent
from teachonce.engine.stop_long_work import PARENT_SECONDS, StopSignals, end_by_signal, stopping_children
from teachonce.errors import ConfigError, TeachonceError
from teachonce.terminal import show_warnings_as_lines
from teachonce.training.config import TrainConfig

if TYPE_CHECKING:
    import torch

_STOPPED = {128 + number: number for number in (signal.SIGTERM, signal.SIGINT)}
"""Exit codes of ranks that did as a signal asked, and the signal."""


def is_rank() -> bool:
    """Whether this process is one of several that somebody started: torchrun, SLURM's srun, or ``run_ranks``."""
    return "LOCAL_RANK" in os.environ or is_slurm_rank()


def is_slurm_rank() -> bool:
    """Whether this process is one of several of a step of SLURM: a batch script that asks for as many tasks is not."""
    return slurm_step_tasks(os.environ) > 0


def is_first_rank() -> bool:
    """Whether this process reports for the training; also before Lightning knows."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return os.environ["RANK"] == "0"  # torchrun may number nodes otherwise than the scheduler that started it
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
    ConfigError where several nodes were requested and the environment does not say where they meet.
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
    with StopSignals(config.grace_seconds + PARENT_SECONDS) as signals:
        try:
            for process in processes:
                process.start()
            with stopping_children(signals, lambda: processes):
                stopped = _wait_for(processes, errors, signals)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
            for process in processes:
                if process.pid is not None:
                    process.join()
    if stopped:
        raise end_by_signal(signals.received or stopped)


def _wait_for(processes: Sequence[BaseProcess], errors: Any, signals: StopSignals) -> int:
    """Until all have ended; returns the signal that one of them has stopped for, 0 where they have done their work."""
    stopped = 0
    running: dict[Any, BaseProcess] = {process.sentinel: process for process in processes}
    while running:
        for sentinel in connection.wait(list(running)):
            ended = running.pop(sentinel)
            ended.join()
            code = ended.exitcode or 0
            if code == -signal.SIGTERM and signals.received:
                code = 128 + signal.SIGTERM  # it was about to start, and had no other way of ending yet
            if code and code not in _STOPPED:
                raise errors.get() if not errors.empty() else _unexplained_exit(ended.name, code)
            stopped = max(stopped, _STOPPED.get(code, 0))
    return stopped


class Agreement:
    """What ranks decide together: the largest of their wishes, known to all of them one call later.

    Every rank calls ``decide`` equally often, at the same points. The ranks' wishes are reduced behind the work that is
    queued, and are looked at when the next ones are made: on a GPU this does not wait for the device, as with
    ``loss_watch``, and on the CPU the others' wishes have arrived by then. Lightning's own way asks at every batch and
    waits for it.
    """

    def __init__(self, device: torch.device, num_ranks: int) -> None:
        self._device = device
        self.num_ranks = num_ranks
        self._stream: torch.cuda.Stream | None = None
        self._pending: Callable[[], int] | None = None

    def decide(self, wish: int, *, wait: bool = False) -> int:
        """The largest wish of the call before, 0 at first; with ``wait`` of this call too. A lone rank never waits."""
        if self.num_ranks == 1:
            return wish
        decided = 0 if self._pending is None else self._pending()
        self._pending = self._reduce(wish)
        if wait:
            decided = max(decided, self._pending())
            self._pending = None
        return decided

    def check_equal(self, step: int) -> None:
        """Raise TeachonceError, on all ranks, where they are about to begin after different numbers of updates.

        Each looks for the checkpoint by itself, which one that is just ending may write meanwhile.
        """
        latest = self.decide(step, wait=True)
        if self.decide(int(step != latest), wait=True):
            raise TeachonceError(
                f"training: this rank would begin after {step:,} updates, another one after up to {latest:,}: the "
                "checkpoint appeared while they were starting. Run the same command again"
            )

    def check_same(self, inputs: Mapping[str, int]) -> None:
        """Raise TeachonceError, on all ranks, where they have other ``inputs``: numbers below 2**31 by what they are.

        Each opens data and store by itself: a store may grow meanwhile, and nodes may have other copies of the data.
        """
        latest = {name: self.decide(value, wait=True) for name, value in inputs.items()}
        is_other = inputs != latest
        if self.decide(int(is_other), wait=True):
            found = ", ".join(f"{name}: {inputs[name]} here, up to {most} elsewhere" for name, most in latest.items())
            what = found if is_other else "this rank has the larger numbers, or all are equal to its own"
            raise TeachonceError(
                f"training: the ranks opened different data, stores or settings ({what}); give all of them the same "
                "files and the same version; where a store is growing, run the same command again, or set --views"
            )

    def _reduce(self, wish: int) -> Callable[[], int]:
        import torch
        from torch.distributed import ReduceOp, all_reduce

        if self._device.type != "cuda":
            largest = torch.tensor([wish], dtype=torch.int32, device=self._device)
            work: Any = all_reduce(largest, ReduceOp.MAX, async_op=True)

            def read() -> int:
                work.wait()
                return int(largest)

            return read
        # On a stream of its own: neither the current update nor the next one is in its way.
        self._stream = self._stream or torch.cuda.Stream(self._device)
        with torch.cuda.stream(self._stream):
            largest = torch.full((1,), wish, dtype=torch.int32, device=self._device)
            all_reduce(largest, ReduceOp.MAX, async_op=True).wait()  # the stream waits, not this thread
            copy = torch.empty(1, dtype=torch.int32, pin_memory=True).copy_(largest, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()

        def read_copy() -> int:
            copied.synchronize()
            return int(copy)

        return read_copy


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
        return TeachonceError(f"{name} {how}; run the same command again to resume from the last checkpoint")
    return TeachonceError(f"{name} exited with code {exit_code}; its error is above and must be fixed first")
