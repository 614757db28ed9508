"""Trainings in processes of their own, which are killed or hang, and a student for what is stopped and resumed.

A new Python takes many seconds to import what a training needs. These processes are forks of a server that has done
so, which starts with the first of them: tests that use it are best of one ``xdist_group``, "trainings".
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import register_model

from teachonce.training.config import TrainConfig
from teachonce.training.student_module import StudentModule
from teachonce.training.train import train
from tests.support.warm_python import fork_instead_of_spawn

MOST_SECONDS = 300
"""What a busy machine may need for a few epochs."""

PROCESSES = multiprocessing.get_context("forkserver")
# What cannot be imported ahead is imported by each process: slower, and the same.
PROCESSES.set_forkserver_preload([__name__])


@register_model
def teachonce_test_dropout(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    """A student with batch norm and dropout; its checkpoints are a hundredth of those of a MobileNet."""
    return timm.create_model("test_resnet", pretrained=pretrained, drop_rate=0.2, **options)


DROPOUT_STUDENT = "timm:teachonce_test_dropout"


@contextmanager
def started(function: Callable[..., object], *arguments: Any) -> Iterator[BaseProcess]:
    """A process that calls a function of a module; at the end it is killed, if it is still there."""
    process = PROCESSES.Process(target=_call, args=(dict(os.environ), function, arguments))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _call(environment: dict[str, str], function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    # The server has the environment of the first test that used it.
    os.environ.clear()
    os.environ.update(environment)
    # As in tests/conftest.py: what would outlast a crash of the machine is not tested.
    os.fsync = lambda fd: None  # type: ignore[assignment]
    function(*arguments)


def forked(function: Callable[..., object], *arguments: Any) -> Any:
    """What a function of a module returns in a process of its own, whose ranks are forks of it, not spawned.

    Raises what it raises, an exit too. What it says on stderr comes out of the process that runs the tests.
    """
    receiving, sending = PROCESSES.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile("r") as said:
        with started(_answer, sending, said.name, function, arguments) as process:
            sending.close()
            assert receiving.poll(MOST_SECONDS), f"{function} took over {MOST_SECONDS} s"
            try:
                is_result, value = receiving.recv()
            except EOFError:
                process.join()
                raise AssertionError(f"it ended with {process.exitcode}: {said.read()}") from None
            process.join(MOST_SECONDS)
        sys.stderr.write(said.read())
    if is_result:
        return value
    raise value


def _answer(answers: Connection, said: str, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), 2)
    fork_instead_of_spawn()
    torch.set_num_threads(1)  # threads of this process would be missing in its forks
    try:
        answer = (True, function(*arguments))
    except BaseException as error:
        answer = (False, error)
    sys.stderr.flush()
    answers.send(answer)


def train_until_killed(config: TrainConfig, epoch: int, batch_index: int) -> None:
    """Train in a process that kills itself at the beginning of a training step (both from 0), with SIGKILL.

    Who looks on from outside and kills comes too late on a busy machine: then the training is over.
    """
    with started(_train_and_die, config, epoch, batch_index) as process:
        process.join(MOST_SECONDS)
        assert process.exitcode == -signal.SIGKILL, process.exitcode


def _train_and_die(config: TrainConfig, epoch: int, batch_index: int) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    _train_and(die, config, epoch, batch_index)
    raise AssertionError("the training ended before its kill")


def train_and_hang(config: TrainConfig, epoch: int, batch_index: int, hangs: Event, said: Path) -> None:
    """Train until a step that never ends, at which ``hangs`` is set; stderr goes to the file ``said``."""

    def hang() -> None:
        # As in a collective whose other end is gone: no handler of Python's ever runs.
        mutex = ctypes.create_string_buffer(128)
        library = ctypes.CDLL(None)
        hangs.set()
        library.pthread_mutex_lock(mutex)
        library.pthread_mutex_lock(mutex)

    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    _train_and(hang, config, epoch, batch_index)


def _train_and(do: Callable[[], None], config: TrainConfig, epoch: int, batch_index: int) -> None:
    step = StudentModule.training_step

    def training_step(module: StudentModule, batch: Any, index: int) -> Any:
        if (module.current_epoch, index) == (epoch, batch_index):
            do()
        return step(module, batch, index)

    StudentModule.training_step = training_step  # type: ignore[method-assign]
    train(config)
