"""One process at a time at a place in an object store: an object that its holder renews.

It keeps two people from training into one folder; nothing that several workers write together needs it. No clock is
compared with another machine's: a process that finds the object watches whether it changes. One that does not change
for ``STALE_SECONDS``, or whose process on this machine has ended, is taken over. Whoever lost it so, as it was stopped
or without a network for so long, can put nothing more into the folder: ``check_leases``.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from teachonce.errors import TeachonceError
from teachonce.storage.remote.settings import short_retries
from teachonce.storage.storage import Storage
from teachonce.storage.writers import is_dead, is_of_this_machine, writer_name

RENEW_SECONDS = 10.0
STALE_SECONDS = 35.0
LOOK_SECONDS = 1.0
"""How often it is looked whether a lease is renewed, up to ``STALE_SECONDS``."""
RELEASE_SECONDS = 5.0
"""That the end waits for a renewal, and then for the removal."""
SETTLE_SECONDS = 2.0
"""After a take-over: of two at once the later put counts, and both have seen it by then."""


@dataclass(eq=False)
class _Lease:
    storage: Storage
    name: str
    writer: str
    renewed: float
    """When it was last known to be ours, by the monotonic clock."""
    taken_by: str = ""
    """Who has it by now instead."""

    def look(self) -> None:
        """Find out who has it."""
        found = _read(self.storage, self.name)
        if found and not found.startswith(self.writer):
            self.taken_by = found.partition(" ")[2].partition(" ")[2] or "another process"

    def loss(self) -> str:
        return (
            f"{self.storage.describe(self.name)}: {self.taken_by} has taken over the lock of this process, which was "
            "not renewed in time"
        )


_LEASES: list[_Lease] = []
"""Of this process."""


def check_leases(storage: Storage, name: str) -> None:
    """Raise where what is to be put lies in a folder whose lease this process held and lost."""
    address = storage.describe(name)
    for lease in list(_LEASES):
        own = lease.storage.describe(lease.name)
        if address == own or not address.startswith(f"{own.rpartition('/')[0]}/"):
            continue
        # A process that was stopped for minutes comes here before its renewal does.
        if not lease.taken_by and time.monotonic() - lease.renewed > STALE_SECONDS:
            lease.look()
        if lease.taken_by:
            raise storage.raises(f"{lease.loss()}; {name} was not written, and is the other's from now on")


@contextmanager
def hold_lease(storage: Storage, name: str, doing: str) -> Iterator[None]:
    """Hold the object for a block; raises where another process does."""
    writer = writer_name()
    _take(storage, name, doing, writer)
    lease = _Lease(storage, name, writer, time.monotonic())
    _LEASES.append(lease)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lease, ended), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        _LEASES.remove(lease)
        renewal.join(RELEASE_SECONDS)
        # Where the server is away, the work has waited for it: one that is left is stale soon.
        with suppress(TeachonceError), short_retries(RELEASE_SECONDS):
            if _read(storage, name).startswith(writer):
                storage.delete(name)


def _take(storage: Storage, name: str, doing: str, writer: str) -> None:
    found = _read(storage, name)
    if not found:
        with storage.put_if_absent(name) as file:
            file.write(_content(writer, 0))
        found = _read(storage, name)
        if found.startswith(writer):
            return
    holder, _, shown = found.partition(" ")
    if is_of_this_machine(holder):
        is_held = not is_dead(holder, time.time())
    else:
        is_held = _changes(storage, name, found)
    if is_held:
        raise _held(storage, name, doing, shown)
    with storage.put(name) as file:
        file.write(_content(writer, 0))
    time.sleep(SETTLE_SECONDS)
    found = _read(storage, name)
    if not found.startswith(writer):
        raise _held(storage, name, doing, found.partition(" ")[2])


def _held(storage: Storage, name: str, doing: str, shown: str) -> TeachonceError:
    folder = storage.describe(name).rpartition("/")[0]
    holder = shown.partition(" ")[2] or "another process"
    return storage.raises(
        f"{folder}: is being {doing} by {holder}; wait until it has finished, or choose another --out"
    )


def _changes(storage: Storage, name: str, found: str) -> bool:
    end = time.monotonic() + STALE_SECONDS
    while time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        if _read(storage, name) != found:
            return True
    return False


def _renew(lease: _Lease, ended: threading.Event) -> None:
    count = 0
    while not ended.wait(RENEW_SECONDS):
        count += 1
        # What keeps the server from answering now will be an error where the work itself needs it.
        with suppress(TeachonceError):
            with short_retries(RENEW_SECONDS):
                lease.look()
            if ended.is_set():
                return
            if lease.taken_by:
                warnings.warn(f"{lease.loss()}; this one ends when it next writes", stacklevel=1)
                return
            seen = time.monotonic()
            # Not repeated for minutes: it would land on what another one has taken over meanwhile.
            with short_retries(RENEW_SECONDS), lease.storage.put(lease.name) as file:
                file.write(_content(lease.writer, count))
            lease.renewed = seen


def _read(storage: Storage, name: str) -> str:
    if not storage.has(name):
        return ""
    try:
        return storage.read(name).decode(errors="replace").strip()
    except TeachonceError:
        if storage.has(name):
            raise
        return ""  # released between the two


def _content(writer: str, count: int) -> bytes:
    return f"{writer} {count} process {os.getpid()} on {socket.gethostname()}\n".encode()
