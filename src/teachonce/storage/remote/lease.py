"""One process at a time at a place in an object store: an object that its holder renews.

It keeps two people from training into one folder; nothing that several workers write together needs it. No clock is
compared with another machine's: whoever finds the object watches whether it changes. One that does not change for
``STALE_SECONDS``, or whose process on this machine has ended, is taken over.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from teachonce.errors import TeachonceError
from teachonce.storage.storage import Storage
from teachonce.storage.writers import is_dead, is_of_this_machine, writer_name

RENEW_SECONDS = 10.0
STALE_SECONDS = 35.0


@contextmanager
def hold_lease(storage: Storage, name: str, doing: str) -> Iterator[None]:
    """Hold the object for a block; raises where another process does."""
    writer = writer_name()
    _take(storage, name, doing, writer)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(storage, name, writer, ended), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        with suppress(TeachonceError):
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
        shown = shown.partition(" ")[2]
        folder = storage.describe(name).rpartition("/")[0]
        raise storage.raises(
            f"{folder}: is being {doing} by {shown or 'another process'}; wait until it has ended, or choose another "
            "--out"
        )
    with storage.put(name) as file:
        file.write(_content(writer, 0))


def _changes(storage: Storage, name: str, found: str) -> bool:
    end = time.monotonic() + STALE_SECONDS
    while time.monotonic() < end:
        time.sleep(1)
        if _read(storage, name) != found:
            return True
    return False


def _renew(storage: Storage, name: str, writer: str, ended: threading.Event) -> None:
    count = 0
    while not ended.wait(RENEW_SECONDS):
        count += 1
        with suppress(TeachonceError), storage.put(name) as file:
            file.write(_content(writer, count))


def _read(storage: Storage, name: str) -> str:
    return storage.read(name).decode(errors="replace").strip() if storage.has(name) else ""


def _content(writer: str, count: int) -> bytes:
    return f"{writer} {count} process {os.getpid()} on {socket.gethostname()}\n".encode()
