"""The engine of a Ray cluster: a pool of actors, each with a worker built once, which take the next job when free.

Ray Core and not Ray Data: a job stays a pure function of what it is given, and its result is a file that is complete
or absent. So a lost worker costs its job in the making, and nothing has to be undone. The pool is for all programs: a
task would build its worker again for each job.

Nodes may come and go. A worker that is lost, with its node or alone, is replaced as soon as there is room, and its job
is done by another one; an actor that Ray calls unavailable (it may be alive behind a broken connection) gets nothing to
do until a ping answers, else a queue of jobs would run through it within a second. What a worker raises is never
retried: it comes back as a value and is raised here with its class and message unchanged, where Ray would wrap it.
Counts, lines and warnings are sent by the actors to a mailbox on this node, which this process empties: Ray's own way
of showing what its workers print adds names and delays.

This is the only module that imports Ray, and only when it runs.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from teachonce.engine.options import Engine
from teachonce.engine.progress import Advance
from teachonce.engine.stop_between_units import is_stopping, stopped_error, stopping_gently
from teachonce.engine.worker import BuildWorker, Job, Result
from teachonce.errors import ConfigError, MissingExtraError, StoppedError, TeachonceError
from teachonce.terminal import print_line, send_lines

SETTINGS = "TEACHONCE_"
"""Variables whose names begin so go with the workers: how object stores are reached, say."""
REPORT_SECONDS = 0.5
"""How often actors send, and this process reads, what was done."""
CONNECT_SECONDS = 60.0
"""For the head of a cluster to answer."""
PING_SECONDS = 5.0
"""Between two pings of an actor that was unavailable."""
ROOM_SECONDS = 5.0
"""How often the size of the cluster is looked at, where it decides the number of workers."""
SAY_SECONDS, WAIT_SECONDS = 60.0, 3600.0
"""Without any worker, or with fewer than --min-workers at the start: when it is said, and when it is an error. An
autoscaler needs many minutes for a machine."""
MAX_LOSSES = 20
"""Workers that one job may lose, or that may be lost in a row before any is ready: then it is not the machines."""


def run_on_ray(
    build_worker: BuildWorker[Job, Result], jobs: Sequence[Job], engine: Engine, report: Advance
) -> Iterator[tuple[Job, Result]]:
    """Do ``jobs`` by actors of a Ray cluster; see ``worker`` for the contract.

    Raises MissingExtraError without Ray, ConfigError where there is no cluster, and TeachonceError where no worker
    can be started, or one job loses every worker that it is given.
    """
    if not jobs:
        return
    with _connected(engine.address) as ray:
        pool = _Pool(ray, build_worker, jobs, engine, report)
        try:
            yield from pool.run()
        finally:
            pool.close()


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster; where this process is connected already, it stays so."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("--engine ray needs Ray: pip install 'teachonce[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    handler = signal.getsignal(signal.SIGTERM)
    # Of each lost node Ray prints twenty lines of its log on stdout, and no option prevents that.
    private: Any = ray._private.worker
    private.listen_error_messages = lambda worker, threads_stopped: None
    try:
        if address != "auto":
            # Ray itself would try for ten minutes and more.
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        # Lost and replaced workers are not reported to the user, and the workers' messages come through the mailbox.
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        # Ray replaces our handler by its own, and exits with another code.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    except SystemExit as error:
        raise stopped_error() from error  # by that handler
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"--address {address}: no Ray cluster can be reached ({reason}); start one with 'ray start --head', and "
            "run the command on one of its nodes, or give HOST:PORT of its head"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Failed(NamedTuple):
    """What a worker raised, as a value: Ray would wrap it and put a traceback into its message."""

    error: Exception


class _Stopped(NamedTuple):
    """The worker's machine is preempted: its job may be unfinished, and it does no other."""


class _Mail(NamedTuple):
    """What actors have sent since the mailbox was emptied."""

    num_done: int
    lines: list[str]
    warned: list[bytes]
    """Pickled warnings."""


class _Mailbox:
    """The actor that takes what the others send."""

    def __init__(self) -> None:
        self._mail = _Mail(0, [], [])

    def put(self, mail: _Mail) -> None:
        self._mail = _Mail(*(mine + more for mine, more in zip(self._mail, mail, strict=True)))  # type: ignore[operator]

    def take(self) -> _Mail:
        taken, self._mail = self._mail, _Mail(0, [], [])
        return taken


class _Sender:
    """In an actor: collects counts, lines and warnings of any thread and sends them now and then."""

    def __init__(self, mailbox: Any) -> None:
        import ray

        self._ray, self._mailbox = ray, mailbox
        self._lock = threading.Lock()
        self._mail = _Mail(0, [], [])
        send_lines(lambda line: self._add(lines=[line]))
        warnings.showwarning = self._add_warning
        threading.Thread(target=self._run, name="send progress", daemon=True).start()

    def report(self, count: int) -> None:
        self._add(num_done=count)

    def flush(self) -> None:
        """Send what there is, and wait until it has arrived."""
        with self._lock:
            mail, self._mail = self._mail, _Mail(0, [], [])
        if mail != _Mail(0, [], []):
            with suppress(Exception):  # the mailbox is gone: so is the driver, and this actor will be
                self._ray.get(self._mailbox.put.remote(mail))

    def _add(self, num_done: int = 0, lines: Sequence[str] = (), warned: Sequence[bytes] = ()) -> None:
        with self._lock:
            mail = self._mail
            self._mail = _Mail(mail.num_done + num_done, [*mail.lines, *lines], [*mail.warned, *warned])

    def _add_warning(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        # Of the libraries' own deprecations, the user is not the reader.
        if issubclass(category, UserWarning):
            warning = message if isinstance(message, Warning) else category(message)
            self._add(warned=[_pickled(warning, UserWarning)])

    def _run(self) -> None:
        while True:
            time.sleep(REPORT_SECONDS)
            self.flush()


class _Actor:
    """A worker in a process of the cluster."""

    def __init__(self, mailbox: Any, folder: str, settings: Mapping[str, str], grace_seconds: float) -> None:
        os.environ.update(settings)
        self._sender = _Sender(mailbox)
        self._grace_seconds = grace_seconds
        self._worker: Any = None
        self._failure: Exception | None = None
        try:
            os.chdir(folder)
        except OSError:
            warnings.warn(
                f"{socket.gethostname()}: the folder {folder}, in which the command was started, does not exist "
                "on this node, so relative paths have another meaning; give absolute paths that all nodes share",
                stacklevel=1,
            )

    def start(self, pickled: bytes, index: int) -> None:
        """Build the worker; where that fails, the first job says why, as with local processes."""
        try:
            self._worker = pickle.loads(pickled)(index)
        except TeachonceError as error:
            self._failure = error
        except Exception as error:
            self._failure = TeachonceError(f"a worker process could not start: {type(error).__name__}: {error}")
        self._sender.flush()

    def do(self, job: Any) -> Any:
        """The worker's result, or what became of it."""
        if self._failure is not None:
            return _Failed(self._failure)
        try:
            with stopping_gently(self._grace_seconds):
                result = self._worker(job, self._sender.report)
                return _Stopped() if is_stopping() else result
        except StoppedError:  # of the job, which asks too, or of the block, after its last line
            return _Stopped()
        except Exception as error:
            return _Failed(pickle.loads(_pickled(error, TeachonceError)))
        finally:
            self._sender.flush()

    def ping(self) -> None:
        """Answers when the actor can be reached and has nothing to do."""


def _pickled(error: Exception, fallback: type[Exception]) -> bytes:
    """An error or a warning as bytes; as the text of ``fallback`` where another process could not read it."""
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
        return content
    except Exception:
        return pickle.dumps(fallback(f"{type(error).__name__}: {error}"))


@dataclass(eq=False)
class _Member:
    """An actor of the pool, and what it is waited for."""

    handle: Any
    index: int
    task: Any
    """The reference of what it is doing; None: it is free."""
    job: int | None = None
    """The number of the job that it is doing."""
    is_ready: bool = False
    """Whether its worker was built."""
    ping_at: float | None = None
    """It was unavailable, and is pinged again then."""


class _Pool:
    """The actors, the jobs that wait, and those that are being done."""

    def __init__(
        self, ray: Any, build_worker: BuildWorker[Any, Any], jobs: Sequence[Any], engine: Engine, report: Advance
    ) -> None:
        self._ray, self._jobs, self._engine, self._report = ray, jobs, engine, report
        self._waiting = deque(range(len(jobs)))
        self._num_left = len(jobs)
        self._losses = [0] * len(jobs)
        self._losses_at_start = 0
        self._members: list[_Member] = []
        self._has_begun = False
        self._room, self._room_at = 1, 0.0
        self._worker_since = self._said_at = time.monotonic()
        self._gpus = self._choose_gpus()
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._mailbox = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        self._build = ray.put(pickle.dumps(build_worker))
        self._mail_at = 0.0

    def run(self) -> Iterator[tuple[Any, Any]]:
        """(job, result) as they end; once this process is asked to stop, of those that run already."""
        while self._num_left:
            if not is_stopping():
                self._fill()
                self._hand_out()
            elif all(member.job is None for member in self._members):
                # Jobs that take longer than the time of grace end with this process, by the timer of the block.
                self._read_mail()
                raise stopped_error()
            for member in self._wait():
                yield from self._receive(member)
            if time.monotonic() >= self._mail_at:
                self._read_mail()
                self._check_workers()
        self._read_mail()

    def close(self) -> None:
        """End the actors: what they have not finished is dropped."""
        for handle in [*(member.handle for member in self._members), self._mailbox]:
            with suppress(Exception):
                self._ray.kill(handle)

    def _choose_gpus(self) -> float:
        if self._engine.worker_gpus is not None:
            return self._engine.worker_gpus
        return 1 if self._ray.cluster_resources().get("GPU", 0) else 0

    def _num_wanted(self) -> int:
        """Actors that there should be: no more than jobs, nor than were requested, nor, without that, than fit."""
        if self._engine.num_workers:
            return min(self._engine.num_workers, self._num_left)
        if time.monotonic() >= self._room_at:
            total = self._ray.cluster_resources()
            rooms = [total.get("CPU", 0) // self._engine.worker_cpus]
            rooms += [total.get("GPU", 0) // self._gpus] if self._gpus else []
            self._room, self._room_at = max(1, int(min(rooms))), time.monotonic() + ROOM_SECONDS
        return min(self._room, self._num_left)

    def _fill(self) -> None:
        """Ask for the actors that are missing; those that have no room yet wait in the cluster, which may grow."""
        taken = {member.index for member in self._members}
        # Of the command's own environment; credentials are the nodes' own matter.
        settings = {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
        for _ in range(self._num_wanted() - len(self._members)):
            index = min(set(range(len(taken) + 1)) - taken)
            taken.add(index)
            actor = self._ray.remote(_Actor).options(
                num_cpus=self._engine.worker_cpus,
                num_gpus=self._gpus,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy="SPREAD",
            )
            handle = actor.remote(self._mailbox, str(Path.cwd()), settings, self._engine.grace_seconds)
            self._members.append(_Member(handle, index, handle.start.remote(self._build, index)))

    def _hand_out(self) -> None:
        num_ready = sum(member.is_ready for member in self._members)
        self._has_begun = self._has_begun or num_ready >= min(self._engine.min_workers, self._num_left)
        now = time.monotonic()
        for member in self._members:
            if member.task is not None:
                continue
            if member.ping_at is not None:
                if now >= member.ping_at:
                    member.task = member.handle.ping.remote()
            elif self._has_begun and self._waiting:
                member.job = self._waiting.popleft()
                member.task = member.handle.do.remote(self._jobs[member.job])

    def _receive(self, member: _Member) -> Iterator[tuple[Any, Any]]:
        """What an actor's task ended with."""
        task, job = member.task, member.job
        member.task = member.job = None
        try:
            result = self._ray.get(task)
        except self._ray.exceptions.ActorUnavailableError:
            self._put_back(job)
            if member.is_ready:
                member.ping_at = time.monotonic() + PING_SECONDS
            else:  # whether its worker was built is unknown
                self._remove(member)
            return
        except self._ray.exceptions.RayTaskError as error:
            # What an actor does itself, outside of the worker.
            raise TeachonceError(f"a worker could not be started on the cluster: {_last_line(error)}") from error
        except self._ray.exceptions.RayError as error:
            # Lost: with its node, killed, out of memory, or with the data that it was to read.
            self._remove(member)
            self._put_back(job)
            self._count_loss(member, job, error)
            return
        if job is None:  # it was built, or has answered a ping
            member.ping_at, member.is_ready, self._losses_at_start = None, True, 0
        elif isinstance(result, _Stopped):
            self._remove(member)
            self._put_back(job)
        elif isinstance(result, _Failed):
            self._read_mail()
            raise result.error
        else:
            self._num_left -= 1
            yield self._jobs[job], result

    def _wait(self) -> list[_Member]:
        """The actors whose tasks have ended; none after a while."""
        members = {member.task: member for member in self._members if member.task is not None}
        if not members:
            time.sleep(REPORT_SECONDS)
            return []
        ended, _ = self._ray.wait(list(members), timeout=REPORT_SECONDS)
        return [members[task] for task in ended]

    def _remove(self, member: _Member) -> None:
        self._members.remove(member)
        with suppress(Exception):
            self._ray.kill(member.handle)

    def _put_back(self, job: int | None) -> None:
        if job is not None:
            self._waiting.appendleft(job)

    def _count_loss(self, member: _Member, job: int | None, error: Exception) -> None:
        if job is not None:
            self._losses[job] += 1
            num_lost = self._losses[job]
        elif not member.is_ready:
            self._losses_at_start += 1
            num_lost = self._losses_at_start
        else:
            return
        if num_lost >= MAX_LOSSES:
            what = "while processing the same unit of work" if job is not None else "before they were ready"
            raise TeachonceError(
                f"{num_lost} workers of the cluster were lost {what} ({_last_line(error)}); completed work is kept: "
                "give them more memory (more --worker-cpus, fewer workers), and run the same command again"
            )

    def _read_mail(self) -> None:
        """Pass on what actors have sent. All that a job has sent has arrived when it ends."""
        self._mail_at = time.monotonic() + REPORT_SECONDS
        try:
            mail = self._ray.get(self._mailbox.take.remote())
        except self._ray.exceptions.RayError:
            return  # nothing is decided by it
        self._report(mail.num_done)
        for line in mail.lines:
            print_line(line)
        for warning in mail.warned:
            warnings.warn(pickle.loads(warning), stacklevel=2)

    def _check_workers(self) -> None:
        """Say why nothing happens where too few workers are there, and raise TeachonceError where no more come."""
        now = time.monotonic()
        num_ready = sum(member.is_ready for member in self._members)
        if num_ready and self._has_begun:
            self._worker_since = self._said_at = now
            return
        has = self._ray.cluster_resources()
        found = f"{self._engine.worker_cpus} CPUs and {self._gpus:g} GPUs each, the cluster has {has.get('CPU', 0):g} "
        found += f"and {has.get('GPU', 0):g}"
        of_least = f"{num_ready} of {min(self._engine.min_workers, self._num_left)} (--min-workers)"
        if now - self._said_at >= SAY_SECONDS:
            self._said_at = now
            print_line(f"waiting for workers: {f'{of_least} are ready, ' if num_ready else ''}they request {found}")
        if now - self._worker_since >= WAIT_SECONDS:
            what = f"only {of_least} have" if num_ready else "no worker has"
            advice = "a smaller --min-workers, or other" if num_ready else "other"
            raise TeachonceError(
                f"{what} started within {WAIT_SECONDS:g} s: they request {found}; add nodes, or give {advice} "
                "--worker-cpus or --worker-gpus"
            )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
