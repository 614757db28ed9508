"""Heartbeats: what each worker says of itself while it works, in a small file beside what it makes.

    FOLDER/.workers/PART.SESSION.INDEX.WRITER.json      put again every ``BEAT_SECONDS`` by a thread of the worker

They are for people (``teachonce status``) and decide nothing: no command reads them to find what is done, what is
missing or who does it. So nothing about them may stop or slow the work: a worker that is through in ``FIRST_SECONDS``
writes none, a failed put is one warning, and no one waits for a slow one longer than ``STOP_SECONDS``.

A heartbeat has a counter, as nothing else shows that a worker on another machine is alive: clocks of machines differ,
and so do those of storages. ``written`` and ``started`` are times of the worker's own clock. A session is one command
with all of its workers; ``heartbeats`` removes its files when it succeeds, and says in them how it ended when it does
not.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal

from teachonce.engine.progress import Advance
from teachonce.engine.worker import BuildWorker, Job, Result, Worker
from teachonce.errors import StoppedError, TeachonceError
from teachonce.storage.files import open_storage
from teachonce.storage.remote.settings import short_retries
from teachonce.storage.storage import Storage
from teachonce.storage.strict_json import convert_json, json_values, parse_json
from teachonce.storage.writers import writer_name
from teachonce.terminal import one_line, print_line

WORKERS_FOLDER = ".workers"
BEAT_SECONDS = 15.0
"""Between two puts of a heartbeat."""
FIRST_SECONDS = 2.0
"""From the start to the first put: there is nothing to watch in shorter work."""
STOP_SECONDS = 5.0
"""How long an ending worker waits for the last put of its heartbeat."""
RATE_BEATS = 8
"""Beats over which the rate is taken: two minutes."""
SHOWN_UNITS = 8
"""Units that a heartbeat names of the current ones."""

State = Literal["running", "failed", "interrupted"]
"""Who finishes removes its heartbeat."""
_NAME = re.compile(r"(?P<part>[\w-]+)\.(?P<session>[0-9a-f]{8})\.(?P<index>[0-9]+)\.(?P<writer>[0-9a-f-]+)\.json")


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The content of a heartbeat, fields in its order. Times are seconds since 1970 by the worker's own clock."""

    format_version: int = 1
    work: str
    """extract or train."""
    part: str
    """Which part of the work the command takes, as --worker has it."""
    state: State = "running"
    host: str
    pid: int
    device: str
    started: float
    written: float
    beat: int
    """Counts the puts of this worker."""
    beat_seconds: float
    """Until the next one."""
    item: str
    """What is counted: views, images."""
    done: int = 0
    """Items that this worker has done."""
    total: int | None = None
    """Items that it is going to have done; None where workers share what there is."""
    per_second: float | None = None
    """Over the last ``RATE_BEATS`` beats; None before there is something to take it from."""
    idle_seconds: float = 0.0
    """Since the last item was done."""
    units_done: int = 0
    units: tuple[str, ...] = ()
    """What it works on, ``SHOWN_UNITS`` of them at most."""
    details: dict[str, float | int | None] = dataclasses.field(default_factory=dict)
    """Of a training: epoch, step and the last figures."""
    last_error: str | None = None


class Heartbeat:
    """The heartbeat of one worker; its methods are for any thread of the worker and never raise."""

    def __init__(self, location: Path, name: str, beat: Beat) -> None:
        self._location = location
        self._name = f"{WORKERS_FOLDER}/{name}"
        self._beat = beat
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._rates: deque[tuple[float, int]] = deque(maxlen=RATE_BEATS + 1)
        self._last_item = time.monotonic()
        self._num_failed = 0
        self._has_warned = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def advance(self, count: int, **fields: Any) -> None:
        """So many more items are done; other fields of ``Beat`` change with them, so that no put is between the two."""
        with self._lock:
            now = time.monotonic()
            self._beat = dataclasses.replace(self._beat, done=self._beat.done + count, **fields)
            if count:
                self._last_item = now
                if not self._rates:
                    # The time before the first items is startup, not work.
                    self._rates.append((now, self._beat.done))

    def change(self, **fields: Any) -> None:
        """Other values of fields of ``Beat``."""
        with self._lock:
            self._beat = dataclasses.replace(self._beat, **fields)

    def finish_units(self, count: int) -> None:
        """The current units are done."""
        with self._lock:
            self._beat = dataclasses.replace(self._beat, units_done=self._beat.units_done + count, units=())

    def stop(self, state: State | None = None, error: BaseException | None = None) -> None:
        """End the thread; with a state, that is put as the last heartbeat; else the last one stays."""
        if state is not None:
            self.change(state=state, last_error=_describe_error(error))
        is_first = not self._stop.is_set()
        self._stop.set()
        if is_first:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        seconds = min(FIRST_SECONDS, self._beat.beat_seconds)
        while not self._stop.wait(seconds):
            seconds = self._beat.beat_seconds
            self._put()
        if self._beat.state != "running":
            self._put()

    def _put(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._beat = dataclasses.replace(
                self._beat,
                written=time.time(),
                beat=self._beat.beat + 1,
                per_second=self._rate(now),
                idle_seconds=round(now - self._last_item, 1),
            )
            beat = self._beat
        try:
            _write(open_storage(self._location), self._name, beat)
            self._num_failed = 0
        except Exception as error:
            # Of a heartbeat nothing may come that stops the work: a full disk, a lost network, a removed folder. One
            # that is missed is not worth a word: another command may have removed the empty folder at that moment.
            self._num_failed += 1
            if self._num_failed == 2 and not self._has_warned:
                self._has_warned = True
                print_line(
                    f"teachonce: warning: {self._location}: heartbeats cannot be written; this affects only the "
                    f"output of 'teachonce status': {_describe_error(error)}"
                )

    def _rate(self, now: float) -> float | None:
        if not self._rates:
            return None
        then, done = self._rates[0]
        self._rates.append((now, self._beat.done))
        return (self._beat.done - done) / (now - then) if now > then and self._beat.done > done else None


class Session:
    """A command that works on a store or a run, with the heartbeats of its workers; made by ``heartbeats``."""

    def __init__(self, location: Path, work: str, part: str, item: str, beat_seconds: float) -> None:
        self.location = location
        self.work = work
        self.part = part
        self.item = item
        self.beat_seconds = beat_seconds
        self.token = secrets.token_hex(4)
        self._own: list[Heartbeat] = []

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_own": []}

    def start(self, index: int = 0, device: str = "", **fields: Any) -> Heartbeat:
        """The heartbeat of the worker ``index``, in its process; ``fields`` of ``Beat`` are in its first put."""
        heartbeat = Heartbeat(self.location, self._name(index), dataclasses.replace(self._beat(device), **fields))
        self._own.append(heartbeat)
        return heartbeat

    def around(
        self, build_worker: BuildWorker[Job, Result], describe: Callable[[Job], Sequence[str]]
    ) -> BuildWorker[Job, Result]:
        """``build_worker`` for workers with a heartbeat; ``describe``, picklable too, names the units of a job.

        The heartbeat names the device where a worker says it by an attribute ``device``.
        """
        return partial(_build_beating, self, build_worker, describe)

    def close(self, error: BaseException | None = None) -> None:
        """Remove the files of all workers, which have ended; after an error: say in them how they ended."""
        state = None if error is None else _ended_by(error)
        for heartbeat in self._own:
            heartbeat.stop(state, error)
        storage = open_storage(self.location)
        mine = [name for name, match in _names(storage) if match["session"] == self.token]
        if error is None:
            _remove(storage, mine)
            return
        beats = {name: _read(storage, name) for name in mine}
        for name, beat in beats.items():
            if beat is not None and beat.state == "running":
                # A process that was ended with the others, or was killed.
                last_error = _describe_error(error)
                beat = dataclasses.replace(beat, state="interrupted", last_error=last_error, beat=beat.beat + 1)
                _write(storage, name, beat)
        if not beats:
            beat = dataclasses.replace(self._beat(""), state=_ended_by(error), last_error=_describe_error(error))
            _write(storage, f"{WORKERS_FOLDER}/{self._name(0)}", beat)

    def remove_earlier(self) -> None:
        """Remove the files that earlier sessions left of this part; one that lives puts its own again."""
        storage = open_storage(self.location)
        of_part = _file_part(self.part)
        _remove(
            storage,
            [name for name, match in _names(storage) if match["part"] == of_part and match["session"] != self.token],
        )

    def _name(self, index: int) -> str:
        return f"{_file_part(self.part)}.{self.token}.{index}.{writer_name()}.json"

    def _beat(self, device: str) -> Beat:
        now = time.time()
        return Beat(
            work=self.work,
            part=self.part,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=device,
            started=now,
            written=now,
            beat=0,
            beat_seconds=self.beat_seconds,
            item=self.item,
        )


@contextmanager
def heartbeats(
    location: Path, work: str, part: str = "0/1", *, item: str = "views", beat_seconds: float | None = None
) -> Iterator[Session]:
    """A session for the block, whose workers have ended when it ends; nothing of heartbeats is raised.

    ``beat_seconds``: ``BEAT_SECONDS`` by default. After a block without an error none of its files are left.
    """
    session = Session(location, work, part, item, beat_seconds or BEAT_SECONDS)
    try:
        with _harmless(), short_retries(STOP_SECONDS):
            session.remove_earlier()
        yield session
    except BaseException as error:
        # A server that is away has cost the work its time; what is wrong is to be said now.
        with _harmless(), short_retries(STOP_SECONDS):
            session.close(error)
        raise
    with _harmless():
        session.close()


def remove_heartbeats(location: Path) -> None:
    """Remove what is left of all heartbeats: the work is complete, and a worker that is still alive puts its own
    again."""
    with _harmless():
        storage = open_storage(location)
        _remove(storage, [name for name, _ in _names(storage)])


def read_heartbeats(location: Path) -> dict[str, Beat]:
    """The heartbeats that can be read, by their writers' names (``storage.writers``), those of killed workers too."""
    storage = open_storage(location)
    found = {}
    for name, match in _names(storage):
        beat = _read(storage, name)
        if beat is not None:
            found[match["writer"]] = beat
    return found


class _BeatingWorker(Generic[Job, Result]):
    def __init__(
        self, worker: Worker[Job, Result], heartbeat: Heartbeat, describe: Callable[[Job], Sequence[str]]
    ) -> None:
        self._worker = worker
        self._heartbeat = heartbeat
        self._describe = describe

    def __call__(self, job: Job, report: Advance) -> Result:
        units = self._describe(job)
        self._heartbeat.change(units=tuple(units[:SHOWN_UNITS]))

        def report_and_beat(count: int) -> None:
            self._heartbeat.advance(count)
            report(count)

        try:
            result = self._worker(job, report_and_beat)
        except BaseException as error:
            self._heartbeat.stop(_ended_by(error), error)
            raise
        self._heartbeat.finish_units(len(units))
        return result


def _build_beating(
    session: Session,
    build_worker: BuildWorker[Job, Result],
    describe: Callable[[Job], Sequence[str]],
    worker_index: int,
) -> Worker[Job, Result]:
    worker = build_worker(worker_index)
    heartbeat = session.start(worker_index, str(getattr(worker, "device", "")))
    return _BeatingWorker(worker, heartbeat, describe)


def _ended_by(error: BaseException) -> State:
    is_failure = isinstance(error, Exception) and not isinstance(error, StoppedError)
    return "failed" if is_failure else "interrupted"


def _describe_error(error: BaseException | None) -> str | None:
    """The first line of an error that is not empty; none of an interruption."""
    if error is None or _ended_by(error) == "interrupted":
        return None
    first = (str(error).strip().splitlines() or [""])[0]
    return one_line(first if isinstance(error, TeachonceError) else f"{type(error).__name__}: {first}")


def _file_part(part: str) -> str:
    """A part as the beginning of a file's name: 3/8 as 3of8."""
    return re.sub(r"[^\w-]", "_", part.replace("/", "of"), flags=re.ASCII)


def _names(storage: Storage) -> list[tuple[str, re.Match[str]]]:
    # No worker writes to a web server, and it has no listings.
    if not storage.can_list:
        return []
    matches = [_NAME.fullmatch(name) for name in sorted(storage.statuses(WORKERS_FOLDER))]
    return [(f"{WORKERS_FOLDER}/{match[0]}", match) for match in matches if match]


def _read(storage: Storage, name: str) -> Beat | None:
    """A heartbeat; None where it went meanwhile, is damaged, or is of a version that is not known here."""
    try:
        return convert_json(parse_json(storage.read(name)), Beat, name, TeachonceError)
    except (TeachonceError, ValueError):
        return None


def _write(storage: Storage, name: str, beat: Beat) -> None:
    with storage.put(name) as file:
        file.write(json.dumps(json_values(beat), indent=1).encode() + b"\n")


def _remove(storage: Storage, names: Iterable[str]) -> None:
    for name in names:
        storage.delete(name)
    storage.remove_temporaries(WORKERS_FOLDER)
    storage.remove_empty_folder(WORKERS_FOLDER)


@contextmanager
def _harmless() -> Iterator[None]:
    """Errors of heartbeats alone do no harm, and are reported where heartbeats are put."""
    with suppress(Exception):
        yield
